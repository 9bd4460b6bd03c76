//! The sessions this hub holds: at most one for each node, and a way to reach it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::message::{Command, Trust};
use protocol::{NodeId, SessionId};
use tokio::sync::{Notify, mpsc, oneshot};
use transport::CloseCode;

/// Directives that may wait for one session. A session that lets them fill up is stuck and is cut off.
const DIRECTIVES_BOUND: usize = 8;

/// Of them, those that may be taken by commands which are being written: the rest is for what else a session must hear.
const RESERVED_BOUND: usize = DIRECTIVES_BOUND / 2;

/// What a node hears that is revoked while its session lasts.
pub(super) const REVOKED: &str = "this node has been revoked; to have it back, enroll it with a new token";

/// What a node hears that has opened another session.
const DISPLACED: &str = "another session of this node has taken over; if you did not start it, revoke the node";

/// What a node hears that is frozen while its session lasts.
const FROZEN: &str = "this node is frozen: two machines have had its key; see `hfctl alert list` at the hub";

/// What the rest of the hub asks of a session.
#[derive(Debug)]
pub enum Directive {
    /// Someone looks at the node: have it send every sample at once for this long.
    Pace(Duration),
    /// Have it trust these roots.
    Trust(Arc<Trust>),
    /// Tell it again when to renew, and why that has changed.
    Renew(Arc<str>),
    /// A bridge's Kafka certificate, or the roots that go with it, stand differently than it was told, for this reason.
    Kafka(Arc<str>),
    /// Tell it this command, whose row is there and says that it is handed over.
    Command(Box<Command>),
}

/// A place in a session's queue, kept for a command while its row is written.
pub(crate) struct Reserved {
    node: NodeId,
    session: SessionId,
    place: mpsc::OwnedPermit<Directive>,
}

/// The sessions this hub holds.
#[derive(Default)]
pub struct Registry {
    live: Mutex<HashMap<NodeId, Live>>,
}

struct Live {
    session: SessionId,
    ending: oneshot::Sender<Ending>,
    directives: mpsc::Sender<Directive>,
    commands: Arc<Notify>,
    tails: Arc<Notify>,
}

/// Why the hub ends a session, as its node is told.
pub(super) type Ending = (CloseCode, &'static str);

/// A session's place in the registry.
pub(super) struct Registered {
    /// Tells when the session is to end, whatever it waits for, and why; an error, that it let its queue fill up.
    pub(super) ending: oneshot::Receiver<Ending>,
    /// Where the session receives directives.
    pub(super) directives: mpsc::Receiver<Directive>,
    /// Notified when the node's commands have changed, however often.
    pub(super) commands: Arc<Notify>,
    /// Notified when other logs of the node are to be read than before, however often.
    pub(super) tails: Arc<Notify>,
    /// The session of the same node that this one displaced.
    pub(super) displaced: Option<SessionId>,
}

impl Registry {
    /// Puts a new session in its node's place and ends the one that was there.
    pub(super) fn register(&self, node: NodeId, session: SessionId) -> Registered {
        let (sender, directives) = mpsc::channel(DIRECTIVES_BOUND);
        let (end, ending) = oneshot::channel();
        let (commands, tails) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        let live = Live {
            session,
            ending: end,
            directives: sender,
            commands: Arc::clone(&commands),
            tails: Arc::clone(&tails),
        };
        let displaced = self.live().insert(node, live).map(|old| {
            let session = old.session;
            old.end(CloseCode::Displaced, DISPLACED);
            session
        });
        Registered { ending, directives, commands, tails, displaced }
    }

    /// Takes a session out, unless another has taken its place. True when it was the node's current one.
    pub(super) fn remove(&self, node: NodeId, session: SessionId) -> bool {
        let mut live = self.live();
        let current = live.get(&node).is_some_and(|entry| entry.session == session);
        if current {
            live.remove(&node);
        }
        current
    }

    /// Hands a directive to a node's session. False when the node has none here.
    pub fn direct(&self, node: NodeId, directive: Directive) -> bool {
        let mut live = self.live();
        let Some(entry) = live.get(&node) else { return false };
        match entry.directives.try_send(directive) {
            Ok(()) => true,
            Err(_) => {
                live.remove(&node);
                false
            }
        }
    }

    /// Has a node's session look what commands there are for it. Nothing when the node has none here: its next one looks.
    pub(crate) fn wake(&self, node: NodeId) {
        if let Some(entry) = self.live().get(&node) {
            entry.commands.notify_one();
        }
    }

    /// Keeps a place for a command in the queue of a node's session. `None` when the node has none here, or much to hear.
    pub(crate) fn reserve(&self, node: NodeId) -> Option<Reserved> {
        let live = self.live();
        let Live { session, directives, .. } = live.get(&node)?;
        if directives.capacity() <= DIRECTIVES_BOUND - RESERVED_BOUND {
            return None;
        }
        let place = directives.clone().try_reserve_owned().ok()?;
        Some(Reserved { node, session: *session, place })
    }

    /// Hands a command over to the session that has the place, now that its row is written. Where that session has ended,
    /// the node's next one finds the row; one that began meanwhile looked before it was there, and looks again.
    pub(crate) fn hand_over(&self, Reserved { node, session, place }: Reserved, command: Command) {
        place.send(Directive::Command(Box::new(command)));
        if let Some(entry) = self.live().get(&node)
            && entry.session != session
        {
            entry.commands.notify_one();
        }
    }

    /// Has a node's session look which logs are to be read. Nothing when the node has none here.
    pub(crate) fn wake_tails(&self, node: NodeId) {
        if let Some(entry) = self.live().get(&node) {
            entry.tails.notify_one();
        }
    }

    /// Whether a node has a session here.
    pub(crate) fn has(&self, node: NodeId) -> bool {
        self.live().contains_key(&node)
    }

    /// Tells every session which roots to trust.
    pub fn trust(&self, trust: &Arc<Trust>) {
        self.live().retain(|_, entry| entry.directives.try_send(Directive::Trust(Arc::clone(trust))).is_ok());
    }

    /// Has every bridge ask how its Kafka certificate stands.
    pub fn kafka(&self, reason: &Arc<str>) {
        self.live().retain(|_, entry| entry.directives.try_send(Directive::Kafka(Arc::clone(reason))).is_ok());
    }

    /// Ends the session of a node that is frozen.
    pub fn freeze(&self, node: NodeId) {
        if let Some(entry) = self.live().remove(&node) {
            entry.end(CloseCode::Refused, FROZEN);
        }
    }

    /// Ends the session of a node that has been revoked.
    pub fn end(&self, node: NodeId) {
        if let Some(entry) = self.live().remove(&node) {
            entry.end(CloseCode::Revoked, REVOKED);
        }
    }

    /// How many sessions are live.
    pub fn len(&self) -> usize {
        self.live().len()
    }

    /// True when no session is live.
    pub fn is_empty(&self) -> bool {
        self.live().is_empty()
    }

    fn live(&self) -> MutexGuard<'_, HashMap<NodeId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// Not through the queue, which a session does not read while its node takes nothing.
    fn end(self, code: CloseCode, reason: &'static str) {
        // One that is ending by itself needs no telling.
        let _ = self.ending.send((code, reason));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use protocol::Timestamp;

    fn ids() -> (NodeId, SessionId, SessionId) {
        let now = Timestamp::from_millis(1);
        (NodeId::new(now, [1; 10]), SessionId::new(now, [2; 10]), SessionId::new(now, [3; 10]))
    }

    #[tokio::test]
    async fn a_second_session_of_a_node_ends_the_first() {
        let (node, first, second) = ids();
        let registry = Registry::default();
        let mut old = registry.register(node, first);
        let new = registry.register(node, second);
        assert_eq!(new.displaced, Some(first));
        assert_eq!(old.ending.await, Ok((CloseCode::Displaced, DISPLACED)));
        assert!(old.directives.recv().await.is_none(), "the old session can no longer be reached");
        assert!(!registry.remove(node, first), "the displaced session must not take the new one out");
        assert_eq!(registry.len(), 1);
        assert!(registry.remove(node, second));
    }

    #[tokio::test]
    async fn commands_leave_room_for_what_else_a_session_must_hear() {
        let (node, session, _) = ids();
        let registry = Registry::default();
        assert!(registry.reserve(node).is_none(), "the node has no session");
        let mut registered = registry.register(node, session);
        let mut reserved: Vec<Reserved> = std::iter::from_fn(|| registry.reserve(node)).collect();
        assert_eq!(reserved.len(), RESERVED_BOUND);
        assert!(registry.direct(node, Directive::Pace(Duration::from_secs(1))), "the session is not stuck");
        drop(reserved.pop());
        registry.hand_over(reserved.pop().expect("a place"), Command { priority: 7, ..Command::default() });
        assert!(matches!(registered.directives.recv().await, Some(Directive::Pace(_))));
        assert!(
            matches!(registered.directives.recv().await, Some(Directive::Command(command)) if command.priority == 7)
        );
    }

    #[tokio::test]
    async fn a_command_for_a_session_that_was_displaced_has_the_next_one_look() {
        let (node, first, second) = ids();
        let registry = Registry::default();
        let old = registry.register(node, first);
        let place = registry.reserve(node).expect("a place");
        // It has looked at the rows already, and the command's was not there.
        let new = registry.register(node, second);
        registry.hand_over(place, Command::default());
        new.commands.notified().now_or_never().expect("the new session looks again");
        assert!(old.commands.notified().now_or_never().is_none());
        let place = registry.reserve(node).expect("a place");
        registry.hand_over(place, Command::default());
        assert!(new.commands.notified().now_or_never().is_none(), "what it is handed it need not look for");
    }

    #[tokio::test]
    async fn a_session_that_does_not_take_its_directives_is_cut_off() {
        let (node, session, _) = ids();
        let registry = Registry::default();
        let mut stuck = registry.register(node, session);
        for _ in 0..DIRECTIVES_BOUND {
            assert!(registry.direct(node, Directive::Pace(Duration::from_secs(1))));
        }
        assert!((&mut stuck.ending).now_or_never().is_none(), "a queue that is full is not yet one too many");
        assert!(!registry.direct(node, Directive::Pace(Duration::from_secs(1))));
        assert!(stuck.ending.await.is_err());
    }
}
