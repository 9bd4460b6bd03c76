//! Commands of one session: hands over what the rows say, once each, and stores what the node says before it is told so.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

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
        if self.more && self.open.len() < WINDOW {
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

    /// Stores a node's word; gives the message that says so, when it is the last one.
    pub(super) async fn word(
        &mut self,
        word: CommandOutcome,
        machine: &HubSession,
        now: Timestamp,
    ) -> Result<Option<ToNode>, Over> {
        let id = read(&word.command_id)?;
        let end = word.state().is_end();
        self.commands.word(self.node, id, word, now).await.map_err(|error| not_stored(self.node, &error))?;
        if !end {
            return Ok(None);
        }
        self.open.remove(&id);
        Ok(machine.outcome_stored(id))
    }

    /// Stores a piece of output.
    pub(super) async fn piece(&self, piece: CommandOutput) -> Result<(), Over> {
        let id = read(&piece.command_id)?;
        self.commands.piece(self.node, id, piece).await.map_err(|error| not_stored(self.node, &error))
    }

    fn later(&mut self, error: &dyn std::error::Error) {
        warn!(node = %self.node, %error, "a node's commands were not handed over; they will be");
        self.again = Some(Instant::now() + AGAIN);
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
