//! The node's connection to its hub: dials, holds the session, renews the certificate, and comes back.

mod delivery;
mod dial;
mod kafka;
mod logs;
mod recovery;
mod renewal;
mod session;
mod shipment;
mod status;
mod trust;
mod upload;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use protocol::Timestamp;
use protocol::message::NodeFacts;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::{Backoff, ConnectError, Endpoint};

use crate::backlog::Backlog;
use crate::clock::Clock;
use crate::commands::Commands;
use crate::identity::{Identity, IdentityStore};
use crate::kafka::Kafka;
use crate::tails::Source;
use crate::telemetry::Recorder;

pub use dial::DialError;
pub(crate) use dial::{Caller, dial, resolve};
pub use status::{Counted, Counters, LinkState, LinkStatus, Trouble, TroubleKind};
pub(crate) use trust::ders;

use session::{Ending, Failure, of_closed};

/// The first attempt after a session comes within this, so that a fleet is back soon after its hub is.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Later ones come within up to this.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// A session that lasted this long was a good one: back-off starts over after it.
const GOOD_SESSION: Duration = Duration::from_secs(30);
/// Two processes with one identity must not fight over the session.
const AFTER_DISPLACED: Duration = Duration::from_secs(60);
/// What a person has to put right is not put right by asking every minute.
const AFTER_REFUSED: Duration = Duration::from_secs(300);

/// What a link needs.
pub struct LinkOptions {
    /// The socket; many links may share one.
    pub endpoint: Endpoint,
    /// Where a renewed identity is saved.
    pub store: IdentityStore,
    /// Who this node is.
    pub identity: Identity,
    /// What Hello tells of it.
    pub facts: NodeFacts,
    /// Random, new at every start of the process.
    pub process: u64,
    /// The telemetry to send.
    pub recorder: Recorder,
    /// Where commands go; `None`: this node carries out none, and says so.
    pub commands: Option<Commands>,
    /// What reads services' logs; `None`: this node has none, and says so.
    pub tails: Option<Source>,
    /// A bridge's certificate for its tenant's brokers; `None`: it wants none from the hub.
    pub kafka: Option<Kafka>,
    /// Log lines to ship; `None`: this node ships none.
    pub logs: Option<Backlog>,
    /// Notified, it has the certificate renewed now.
    pub renew: Arc<Notify>,
    /// The wall clock.
    pub clock: Clock,
}

/// A running link; the handle of its task.
#[derive(Clone)]
pub struct Link {
    status: watch::Receiver<LinkStatus>,
    counters: Arc<Counters>,
}

impl Link {
    /// Starts a link in `tasks`. At `shutdown` it sends what is gathered, waits a few seconds for the hub to store it,
    /// says goodbye and ends.
    pub fn start(options: LinkOptions, tasks: &TaskTracker, shutdown: CancellationToken) -> Self {
        let counters = Arc::<Counters>::default();
        let credential = &options.identity.credential;
        let (sender, status) = watch::channel(LinkStatus {
            state: LinkState::Connecting,
            since: options.clock.now(),
            last_up: None,
            clock: None,
            certificate_not_after: credential.subject().not_after,
            renew_at: renewal::due(credential),
            renewal_trouble: None,
        });
        let actor = Actor {
            options,
            shutdown,
            status: sender,
            counters: Arc::clone(&counters),
            sent_through: AtomicU64::new(0),
            renewed: None,
        };
        tasks.spawn(actor.run());
        Self { status, counters }
    }

    /// Where it stands, as it changes.
    pub fn status(&self) -> watch::Receiver<LinkStatus> {
        self.status.clone()
    }

    /// What it counted.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

struct Actor {
    options: LinkOptions,
    shutdown: CancellationToken,
    status: watch::Sender<LinkStatus>,
    counters: Arc<Counters>,
    /// The highest batch number this process ever sent.
    sent_through: AtomicU64,
    /// When the certificate was renewed.
    renewed: Option<Instant>,
}

impl Actor {
    async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
        let mut said = String::new();
        let mut recovered = false;
        while !self.shutdown.is_cancelled() {
            self.publish(LinkState::Connecting);
            let (trouble, retry_after) = match self.attempt().await {
                Ending::Shutdown => break,
                Ending::Renewed(identity) => {
                    self.options.identity = *identity;
                    self.renewed = Some(Instant::now());
                    self.publish_certificate();
                    continue;
                }
                Ending::Trouble { trouble, retry_after, lasted } => {
                    if lasted >= GOOD_SESSION {
                        backoff.reset();
                        said.clear();
                        recovered = false;
                    }
                    // When what was just recovered will not do either, back-off comes first.
                    if trouble.kind == TroubleKind::Outdated && !std::mem::take(&mut recovered) {
                        match self.come_back(&trouble).await {
                            Ending::Shutdown => break,
                            Ending::Renewed(identity) => {
                                self.options.identity = *identity;
                                self.publish_certificate();
                                recovered = true;
                                continue;
                            }
                            Ending::Trouble { trouble, retry_after, .. } => (trouble, retry_after),
                        }
                    } else {
                        (trouble, retry_after)
                    }
                }
            };
            if said != trouble.message {
                tracing::warn!(hub = self.options.identity.hub, "no session: {trouble}");
                said.clone_from(&trouble.message);
            }
            backoff.after(retry_after.unwrap_or_default().max(least_delay(trouble.kind)));
            let delay = backoff.next_delay(&mut rand::rng());
            let until = self.options.clock.now().plus(delay);
            self.publish(LinkState::Waiting { trouble, until });
            let shutdown = self.shutdown.clone();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(delay) => {}
            }
        }
        self.publish(LinkState::Stopped);
    }

    /// Recovers from a certificate that the hub takes no more.
    async fn come_back(&mut self, outdated: &Trouble) -> Ending {
        tracing::info!(hub = self.options.identity.hub, "recovering: {outdated}");
        let recovered = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => return Ending::Shutdown,
            recovered = self.recover() => recovered,
        };
        match recovered {
            Ok(identity) => Ending::Renewed(Box::new(identity)),
            Err(Failure { trouble, retry_after }) => {
                if trouble.kind == TroubleKind::Unissued
                    && let Some(trouble) = self.go_back(&trouble).await
                {
                    return Ending::Trouble { trouble, retry_after: None, lasted: Duration::ZERO };
                }
                let message = format!("{outdated}; not recovered yet: {trouble}");
                let trouble = Trouble { kind: trouble.kind, message };
                Ending::Trouble { trouble, retry_after, lasted: Duration::ZERO }
            }
        }
    }

    /// Dials, and holds the session that comes of it.
    async fn attempt(&mut self) -> Ending {
        let options = &self.options;
        let dialed = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => return Ending::Shutdown,
            dialed = dial(&options.endpoint, &options.identity.hub, Caller::Node(&options.identity), &options.clock) => {
                dialed
            }
        };
        match dialed {
            Ok(connection) => self.session(connection).await,
            Err(error) => Ending::Trouble { trouble: of_dial(&error), retry_after: None, lasted: Duration::ZERO },
        }
    }

    fn publish(&self, state: LinkState) {
        let now = self.options.clock.now();
        self.status.send_modify(|status| {
            if status.is_up() {
                status.last_up = Some(Instant::now());
            }
            status.since = now;
            status.state = state;
        });
    }

    fn publish_certificate(&self) {
        let credential = &self.options.identity.credential;
        self.status.send_modify(|status| {
            status.certificate_not_after = credential.subject().not_after;
            status.renew_at = renewal::due(credential);
            status.renewal_trouble = None;
        });
    }

    fn publish_renewal(&self, renew_at: Timestamp, trouble: Option<String>) {
        self.status.send_if_modified(|status| {
            let changed = status.renew_at != renew_at || status.renewal_trouble != trouble;
            status.renew_at = renew_at;
            status.renewal_trouble = trouble;
            changed
        });
    }

    /// Counts a batch that goes out.
    fn count_sent(&self, sequence: u64, bytes: usize) {
        let before = self.sent_through.fetch_max(sequence, Ordering::Relaxed);
        self.counters.sent(bytes, sequence <= before);
    }
}

fn of_dial(error: &DialError) -> Trouble {
    let kind = match error {
        DialError::Resolve { .. } | DialError::NoAddress { .. } => TroubleKind::Address,
        DialError::Identity(_) => TroubleKind::Trust,
        DialError::Connect(error) => match error {
            ConnectError::HubDistrusted { .. } | ConnectError::OtherProtocol => TroubleKind::Trust,
            ConnectError::Closed(closed) if closed.distrust.is_some() => return of_closed(closed),
            _ => TroubleKind::Unreachable,
        },
    };
    Trouble { kind, message: error.to_string() }
}

/// The least time to wait after trouble of a kind.
fn least_delay(kind: TroubleKind) -> Duration {
    match kind {
        TroubleKind::Displaced => AFTER_DISPLACED,
        TroubleKind::Refused | TroubleKind::Revoked | TroubleKind::Frozen | TroubleKind::Unissued => AFTER_REFUSED,
        TroubleKind::Address
        | TroubleKind::Unreachable
        | TroubleKind::Trust
        | TroubleKind::Outdated
        | TroubleKind::Busy
        | TroubleKind::Goodbye
        | TroubleKind::Broken
        | TroubleKind::Disk => Duration::ZERO,
    }
}
