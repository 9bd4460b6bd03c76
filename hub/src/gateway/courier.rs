//! Commands of one session: hands over what the rows say, once each, and stores what the node says before it is told so.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use protocol::command::WINDOW;
use protocol::message::{Command, CommandOutcome, CommandOutput, ToNode};
use protocol::session::HubSession;
use protocol::{CommandId, NodeId, Timestamp};
use store::group::GroupError;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;
use transport::CloseCode;

use super::session::Over;
use crate::commands::Commands;

/// What a node says and is not stored yet: at most so many words and pieces of output, and it waits with the next.
const SAYING: usize = 8;

/// After the database did not answer.
const AGAIN: Duration = Duration::from_secs(5);

/// What this session has handed over.
pub(super) struct Courier {
    commands: Commands,
    node: NodeId,
    /// Commands that the node has and has not ended, and whether it was told to let go of them.
    open: HashMap<CommandId, bool>,
    /// There may be more than the window had room for.
    more: bool,
    /// The database did not answer; look again then.
    again: Option<Instant>,
}

impl Courier {
    pub(super) fn new(commands: &Commands, node: NodeId) -> Self {
        Self { commands: commands.clone(), node, open: HashMap::new(), more: false, again: None }
    }

    /// Waits until there may be something to hand over. Cancel-safe.
    pub(super) async fn due(&self, changed: &Notify) {
        if self.more && self.again.is_none() && self.open.len() < WINDOW {
            return;
        }
        let again = async {
            match self.again {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = changed.notified() => {}
            () = again => {}
        }
    }

    /// What to send now: it is stored as handed over.
    pub(super) async fn collect(&mut self, machine: &HubSession, now: Timestamp) -> Vec<ToNode> {
        (self.more, self.again) = (false, None);
        // What is with the node is among them, and may be taken back.
        let reach = 2 * WINDOW;
        let due = match self.commands.due(self.node, reach, now).await {
            Ok(due) => due,
            Err(error) => {
                self.later(&error);
                return Vec::new();
            }
        };
        let full = due.len() == reach;
        let mut messages = Vec::new();
        let mut fresh = Vec::new();
        for due in due {
            let room = self.open.len() + fresh.len() < WINDOW;
            match self.open.get(&due.id) {
                Some(told) if due.cancelled && !told => {
                    self.open.insert(due.id, true);
                    messages.extend(machine.cancel(due.id));
                }
                Some(_) => {}
                None if !room => self.more = true,
                None if due.cancelled => {
                    self.open.insert(due.id, true);
                    messages.extend(machine.cancel(due.id));
                }
                None => fresh.push(due),
            }
        }
        self.more |= full;
        match self.commands.deliver(self.node, fresh, now).await {
            Ok(delivered) => {
                for (id, command) in delivered {
                    self.open.insert(id, false);
                    messages.extend(machine.command(command));
                }
            }
            Err(error) => self.later(&error),
        }
        messages
    }

    /// What to send of a command that was written as handed over. One that comes while others wait is found with them.
    pub(super) fn handed(&mut self, command: Command, machine: &HubSession) -> Option<ToNode> {
        let id = CommandId::from_bytes(&command.command_id).ok()?;
        if self.more || self.open.len() >= WINDOW {
            self.more = true;
            return None;
        }
        match self.open.entry(id) {
            // A look at the rows was quicker.
            Entry::Occupied(_) => None,
            Entry::Vacant(entry) => {
                entry.insert(false);
                machine.command(command)
            }
        }
    }

    /// The node has ended this one, and its word is stored.
    pub(super) fn ended(&mut self, id: CommandId) {
        self.open.remove(&id);
    }

    fn later(&mut self, error: &dyn std::error::Error) {
        warn!(node = %self.node, %error, "a node's commands were not handed over; they will be");
        self.again = Some(Instant::now() + AGAIN);
    }
}

/// What a session's node says of its commands, while it is being stored: in the order in which it was said. The session goes
/// on meanwhile, so that nothing it must hear waits for the database.
pub(super) struct Words {
    commands: Commands,
    node: NodeId,
    /// Each gives the command that has ended with it. Mostly there is none, and thousands of sessions keep no room for any.
    saying: Option<Box<FuturesOrdered<Saying>>>,
}

type Saying = Pin<Box<dyn Future<Output = Result<Option<CommandId>, GroupError>> + Send>>;

impl Words {
    pub(super) fn new(commands: &Commands, node: NodeId) -> Self {
        Self { commands: commands.clone(), node, saying: None }
    }

    /// Whether more may be said: else the node waits with it.
    pub(super) fn have_room(&self) -> bool {
        self.saying.as_ref().is_none_or(|saying| saying.len() < SAYING)
    }

    /// Begins to store a word.
    pub(super) fn word(&mut self, word: CommandOutcome, now: Timestamp) -> Result<(), Over> {
        let (commands, node, id) = (self.commands.clone(), self.node, read(&word.command_id)?);
        let ended = word.state().is_end().then_some(id);
        self.store(async move { commands.word(node, id, word, now).await.map(|()| ended) });
        Ok(())
    }

    /// Begins to store a piece of output.
    pub(super) fn piece(&mut self, piece: CommandOutput) -> Result<(), Over> {
        let (commands, node, id) = (self.commands.clone(), self.node, read(&piece.command_id)?);
        self.store(async move { commands.piece(node, id, piece).await.map(|()| None) });
        Ok(())
    }

    fn store(&mut self, saying: impl Future<Output = Result<Option<CommandId>, GroupError>> + Send + 'static) {
        self.saying.get_or_insert_default().push_back(Box::pin(saying));
    }

    /// Waits until the next of them is stored; gives the command that has ended with it. Cancel-safe.
    pub(super) async fn stored(&mut self) -> Result<Option<CommandId>, Over> {
        let stored = match &mut self.saying {
            Some(saying) => saying.next().await,
            None => None,
        };
        let Some(stored) = stored else { return std::future::pending().await };
        if self.saying.as_ref().is_some_and(|saying| saying.is_empty()) {
            self.saying = None;
        }
        stored.map_err(|error| not_stored(self.node, &error))
    }
}

fn read(id: &[u8]) -> Result<CommandId, Over> {
    let malformed = |_| Over::Close(CloseCode::Malformed, "a command's id is not 16 bytes".to_owned());
    CommandId::from_bytes(id).map_err(malformed)
}

/// The node keeps it, and tells it again in its next session.
fn not_stored(node: NodeId, error: &GroupError) -> Over {
    warn!(%node, %error, "what a node says of a command was not stored; it keeps it and comes back");
    Over::Goodbye("the hub can't store outcomes right now; see the hub's log")
}

#[cfg(test)]
mod tests;
