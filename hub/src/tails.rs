//! Services' logs on their way from a node's session to whoever reads them now. Nothing of them is kept here.
//!
//! A reader that is slower than its log is told how many lines it did not get, in their place; nobody waits for it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::message::{TailEndReason, TailLines};
use protocol::tail::{AT_ONCE, Tail, TailError};
use protocol::{NodeId, SessionId, TailId, TenantId, Timestamp};
use serde_json::json;
use store::{Database, StoreError};
use tokio::sync::mpsc;

use crate::audit::{self, Actor, Record, action};
use crate::gateway::Registry;
use crate::metrics::Metrics;
use crate::reason::Reason;

/// Logs that are read at once, of all nodes; one more is told to come back.
const TAILS: usize = 64;
/// Of these, by one reader.
const TAILS_OF_ONE: usize = TAILS / 4;
/// Batches that wait for one reader, of 32 KiB at most: 32 MiB for all. Over it, lines are left out and counted.
const BATCHES_BOUND: usize = 16;
/// Most characters of a node's message that are kept.
const MESSAGE: usize = 500;

/// The logs that are being read. Clones share them.
#[derive(Clone)]
pub struct Tails(Arc<Inner>);

struct Inner {
    database: Database,
    sessions: Arc<Registry>,
    metrics: Arc<Metrics>,
    open: Mutex<HashMap<TailId, Open>>,
}

struct Open {
    node: NodeId,
    reader: Actor,
    tail: Tail,
    /// The session that has told the node.
    session: Option<SessionId>,
    /// The node has said something of it.
    begun: bool,
    batches: mpsc::Sender<TailLines>,
    /// Lines that the reader did not get, since those that it did or will.
    dropped: u64,
    end: Arc<Mutex<Option<End>>>,
    _counted: Counted,
}

/// A tail that is open, in the metrics.
struct Counted(Arc<Metrics>);

impl Counted {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.tails.inc();
        Self(Arc::clone(metrics))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.tails.dec();
    }
}

/// How a tail ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub reason: EndReason,
    /// For a person.
    pub message: String,
    /// Lines left out since the last batch.
    pub dropped: u64,
}

/// Why a tail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// There is no more of what was asked for.
    Complete,
    /// The node's own policy does not allow it.
    Refused,
    /// The node could not read it.
    Failed,
    /// The node's session ended.
    Gone,
}

/// What a reader gets.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// Lines, or that there were some.
    Lines(TailLines),
    /// No more.
    End(End),
}

/// A log that is not read.
#[derive(Debug, thiserror::Error)]
pub enum TailsError {
    /// What was asked for makes no sense.
    #[error(transparent)]
    Tail(#[from] TailError),
    /// The node has no session here.
    #[error("the node has no session now, and a log is read live or not at all")]
    Offline,
    /// Too many are read already.
    #[error("as many logs are read as may be at once, by you, of this node or of all; end one, or try again later")]
    Busy,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Tails {
    /// Of the nodes that have their sessions in `sessions`; they are counted in `metrics`.
    pub fn new(database: Database, sessions: Arc<Registry>, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner { database, sessions, metrics, open: Mutex::default() }))
    }

    /// Has a node read a service's log. That it was asked for, by whom and why if they say so, is in the audit log before the node hears of it.
    ///
    /// # Errors
    /// [`TailsError`]; nothing is read then.
    pub async fn start(
        &self,
        tail: Tail,
        (node, tenant): (NodeId, TenantId),
        reason: Option<&Reason>,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Reading, TailsError> {
        let tail = tail.checked()?;
        if !self.0.sessions.has(node) {
            return Err(TailsError::Offline);
        }
        room(node, actor, &self.open())?;
        let record = Record {
            actor: actor.clone(),
            action: action::TAIL_STARTED,
            tenant: Some(tenant),
            subject: node.to_string(),
            detail: json!({
                "tail": tail.id.to_string(),
                "service": format!("{}/{}", tail.stack, tail.service),
                "since": tail.since.map(|since| since.to_string()),
                "until": tail.until.map(|until| until.to_string()),
                "grep": tail.grep,
                "lines": tail.lines,
                "follow": tail.follow,
                "reason": reason.map(Reason::as_str),
            }),
            remote: None,
        };
        audit::record(&self.0.database, now, record).await?;
        let (sender, batches) = mpsc::channel(BATCHES_BOUND);
        let end = Arc::<Mutex<Option<End>>>::default();
        let reading = Reading { tails: self.clone(), id: tail.id, batches, end: Arc::clone(&end), over: false };
        {
            let mut open = self.open();
            room(node, actor, &open)?;
            let _counted = Counted::new(&self.0.metrics);
            let new = Open {
                node,
                reader: actor.clone(),
                session: None,
                begun: false,
                batches: sender,
                dropped: 0,
                end,
                tail,
                _counted,
            };
            open.insert(new.tail.id, new);
        }
        self.0.sessions.wake_tails(node);
        if !self.0.sessions.has(node) {
            // It ended meanwhile, and whoever cleared up after it may have done so before this was here.
            return Err(TailsError::Offline);
        }
        Ok(reading)
    }

    /// What a node is to read in this session.
    pub(crate) fn of(&self, node: NodeId, session: SessionId) -> Vec<Tail> {
        let mut open = self.open();
        let here = open.values_mut().filter(|open| open.node == node);
        let ours = here.filter_map(|open| {
            let of = *open.session.get_or_insert(session);
            (of == session).then(|| open.tail.clone())
        });
        ours.collect()
    }

    /// Hands lines on to their reader. Nothing when there is none any more.
    pub(crate) fn relay(&self, session: SessionId, id: TailId, mut lines: TailLines) {
        let mut open = self.open();
        let Some(open) = open.get_mut(&id).filter(|open| open.session == Some(session)) else { return };
        open.begun = true;
        lines.dropped_before(std::mem::take(&mut open.dropped));
        if lines.count() == 0 {
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(lines) | mpsc::error::TrySendError::Closed(lines)) =
            open.batches.try_send(lines)
        {
            open.dropped = lines.count();
        }
    }

    /// The node has ended a tail. Gives why.
    pub(crate) fn ended(&self, session: SessionId, id: TailId, reason: TailEndReason, message: &str) -> EndReason {
        let reason = match reason {
            TailEndReason::Complete => EndReason::Complete,
            TailEndReason::Refused => EndReason::Refused,
            TailEndReason::Failed | TailEndReason::Unspecified => EndReason::Failed,
        };
        if let Entry::Occupied(entry) = self.open().entry(id)
            && entry.get().session == Some(session)
        {
            finish(entry.remove(), reason, &message.chars().take(MESSAGE).collect::<String>());
        }
        reason
    }

    /// The node does not know a message: what it has said nothing of, it does not know.
    pub(crate) fn unsupported(&self, session: SessionId) {
        let why = "the node's agent does not read logs live: update it, or use hfctl service logs";
        self.finish_all(EndReason::Failed, why, |open| open.session == Some(session) && !open.begun);
    }

    /// A node's session is over, and the node's tails with it.
    pub(crate) fn session_ended(&self, node: NodeId, session: SessionId, why: &str) {
        let another = self.0.sessions.has(node);
        self.finish_all(EndReason::Gone, why, |open| {
            open.node == node && open.session.map_or(!another, |of| of == session)
        });
    }

    fn finish_all(&self, reason: EndReason, why: &str, which: impl Fn(&Open) -> bool) {
        for (_, open) in self.open().extract_if(|_, open| which(open)) {
            finish(open, reason, why);
        }
    }

    fn close(&self, id: TailId) {
        let closed = self.open().remove(&id);
        if let Some(open) = closed {
            self.0.sessions.wake_tails(open.node);
        }
    }

    /// How many are read.
    pub fn len(&self) -> usize {
        self.open().len()
    }

    /// True when none is.
    pub fn is_empty(&self) -> bool {
        self.open().is_empty()
    }

    fn open(&self) -> MutexGuard<'_, HashMap<TailId, Open>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there is room for one more, of this node and by this reader.
fn room(node: NodeId, reader: &Actor, open: &HashMap<TailId, Open>) -> Result<(), TailsError> {
    let of_node = open.values().filter(|open| open.node == node).count();
    let of_one = open.values().filter(|open| open.reader.is(reader)).count();
    let full = open.len() >= TAILS || of_node >= AT_ONCE || of_one >= TAILS_OF_ONE;
    if full { Err(TailsError::Busy) } else { Ok(()) }
}

/// Leaves word for the reader, who finds it behind the last batch.
fn finish(open: Open, reason: EndReason, message: &str) {
    let end = End { reason, message: message.to_owned(), dropped: open.dropped };
    *open.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
}

/// A log that is being read; dropped, the node is told to end it.
pub struct Reading {
    tails: Tails,
    id: TailId,
    batches: mpsc::Receiver<TailLines>,
    end: Arc<Mutex<Option<End>>>,
    over: bool,
}

impl Reading {
    /// What comes next; `None` after the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<News> {
        let news = self.look().await?;
        let (lines, dropped) = match &news {
            News::Lines(lines) => (lines.lines.len() as u64, lines.count().saturating_sub(lines.lines.len() as u64)),
            News::End(end) => (0, end.dropped),
        };
        self.tails.0.metrics.tail_lines.inc_by(lines);
        self.tails.0.metrics.tail_lines_dropped.inc_by(dropped);
        Some(news)
    }

    async fn look(&mut self) -> Option<News> {
        if self.over {
            return None;
        }
        if self.batches.is_empty()
            && let Some(dropped) = self.missed()
        {
            return Some(News::Lines(TailLines { dropped, ..TailLines::default() }));
        }
        if let Some(lines) = self.batches.recv().await {
            return Some(News::Lines(lines));
        }
        self.over = true;
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner).take();
        let gone = || End { reason: EndReason::Gone, message: "the hub let go of it".into(), dropped: 0 };
        Some(News::End(end.unwrap_or_else(gone)))
    }

    /// What was left out after all that waited here: nothing may come behind it that could say so.
    fn missed(&self) -> Option<u64> {
        let mut open = self.tails.open();
        let open = open.get_mut(&self.id)?;
        // Under the lock nothing is added.
        if !self.batches.is_empty() {
            return None;
        }
        Some(std::mem::take(&mut open.dropped)).filter(|dropped| *dropped > 0)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.tails.close(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_reader_has_all_that_may_be_read_at_once() {
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let (ann, bob) = (Actor::operator("ann"), Actor::operator("bob"));
        let mut open = HashMap::new();
        for number in 0..TAILS_OF_ONE as u8 {
            let node = NodeId::new(Timestamp::from_millis(0), [number; 10]);
            room(node, &ann, &open).expect("room");
            let tail = Tail {
                id: TailId::new(Timestamp::from_millis(0), [number; 10]),
                stack: "shop".into(),
                service: "web".into(),
                since: None,
                until: None,
                grep: None,
                lines: 1,
                follow: true,
            };
            let (batches, _) = mpsc::channel(1);
            let (reader, end, _counted) = (ann.clone(), Arc::default(), Counted::new(&metrics));
            let new = Open { node, reader, session: None, begun: false, batches, dropped: 0, end, tail, _counted };
            open.insert(new.tail.id, new);
        }
        let node = NodeId::new(Timestamp::from_millis(0), [99; 10]);
        let elsewhere = ann.by(None, Some([192, 0, 2, 1].into()));
        assert!(matches!(room(node, &elsewhere, &open), Err(TailsError::Busy)));
        room(node, &elsewhere.by(Some("a token of the same name"), None), &open).expect("room");
        room(node, &bob, &open).expect("room");
    }
}
