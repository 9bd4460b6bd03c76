//! What a node knows of its own connection to the hub, for people and for probes.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use protocol::message::ClockState;
use protocol::session::ClockReading;
use protocol::{SessionId, Timestamp};
use tokio::time::Instant;

/// The connection's state, published whenever it changes.
#[derive(Clone, Debug)]
pub struct LinkStatus {
    /// Where it stands.
    pub state: LinkState,
    /// When it came to stand there.
    pub since: Timestamp,
    /// When a session last ended, on the monotonic clock; `None` before the first.
    pub last_up: Option<Instant>,
    /// This node's clock beside the hub's, from the newest session.
    pub clock: Option<ClockReading>,
    /// When the certificate in use ends.
    pub certificate_not_after: Timestamp,
    /// When it is due to be renewed.
    pub renew_at: Timestamp,
    /// Why the last attempt to renew failed, and what to do; `None` when the certificate is in order.
    pub renewal_trouble: Option<String>,
}

impl LinkStatus {
    /// Whether a session is up.
    pub fn is_up(&self) -> bool {
        matches!(self.state, LinkState::Up { .. })
    }

    /// Whether a session is up, or was within `grace`.
    pub fn was_up_within(&self, grace: Duration) -> bool {
        self.is_up() || self.last_up.is_some_and(|at| at.elapsed() <= grace)
    }

    /// The clock's named state; unspecified before the first session.
    pub fn clock_state(&self) -> ClockState {
        self.clock.map_or(ClockState::Unspecified, ClockReading::state)
    }
}

/// Where a link stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Resolving the address and shaking hands.
    Connecting,
    /// In session.
    Up {
        /// The session's id, as the hub's audit shows it.
        session: SessionId,
        /// The hub's address.
        remote: SocketAddr,
        /// The hub's release.
        hub_version: String,
    },
    /// Waiting before the next attempt.
    Waiting {
        /// What ended the last one.
        trouble: Trouble,
        /// When the next one is due.
        until: Timestamp,
    },
    /// Shut down.
    Stopped,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("connecting"),
            Self::Up { remote, hub_version, .. } => write!(f, "in session with {remote} (hub {hub_version})"),
            Self::Waiting { trouble, until } => write!(f, "{trouble} (next attempt {until})"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// Why there is no session, told apart by what a person would do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Which kind.
    pub kind: TroubleKind,
    /// What happened, and what to do.
    pub message: String,
}

impl Trouble {
    pub(crate) fn new(kind: TroubleKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Kinds of [`Trouble`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TroubleKind {
    /// The hub's name does not resolve.
    Address,
    /// Nothing answers.
    Unreachable,
    /// A certificate did not hold, on either side.
    Trust,
    /// The hub takes this node's certificate no more; the node recovers by itself.
    Outdated,
    /// The hub knows no such certificate of this node, as when its database is of a time before.
    Unissued,
    /// Two nodes have one key; an operator has to decide.
    Frozen,
    /// Another process connected with this node's identity.
    Displaced,
    /// The hub refused this node.
    Refused,
    /// The hub no longer knows this node, or has revoked its certificate; only a new enrollment helps.
    Revoked,
    /// The hub has no room, or failed.
    Busy,
    /// The hub said goodbye; it is draining or restarting.
    Goodbye,
    /// The session broke off.
    Broken,
    /// This node's own disk failed.
    Disk,
}

/// What a link counted since the process started.
#[derive(Debug, Default)]
pub struct Counters {
    sessions: AtomicU64,
    sent: AtomicU64,
    resent: AtomicU64,
    sent_bytes: AtomicU64,
    acknowledged: AtomicU64,
}

/// The figures of [`Counters`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Sessions that came up.
    pub sessions: u64,
    /// Batches sent, resends included.
    pub sent: u64,
    /// Batches sent that had been sent before in this process's life.
    pub resent: u64,
    /// Bytes of those batches.
    pub sent_bytes: u64,
    /// Batches the hub acknowledged.
    pub acknowledged: u64,
}

impl Counters {
    /// Reads them.
    pub fn read(&self) -> Counted {
        Counted {
            sessions: self.sessions.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            resent: self.resent.load(Ordering::Relaxed),
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            acknowledged: self.acknowledged.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn session(&self) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, bytes: usize, again: bool) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.resent.fetch_add(u64::from(again), Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn acknowledged(&self, batches: u64) {
        self.acknowledged.fetch_add(batches, Ordering::Relaxed);
    }
}
