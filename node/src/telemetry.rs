//! Gathers samples and changes into numbered batches, and puts them into the backlog that the link sends from.

mod services;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use protocol::message::{BatchBody, Engine, NodeStatus, Service, ServiceKey, SpoolStatus};
use protocol::session::ClockReading;
use protocol::telemetry::{Encoder, Row, Schema};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::backlog::{Backlog, BacklogError, Spool};
use crate::health::Pulse;

use services::Services;

/// Samples in a batch when nothing urges: a packet costs more than its samples (about 140 bytes with its
/// acknowledgement), so four travel in one.
pub const SAMPLES_PER_BATCH: usize = 4;
/// Samples kept for the next attempt when a batch can't be stored; older ones are dropped.
const MOST_ROWS: usize = 64;
/// Longest the hub may ask for live samples at a time.
const LONGEST_LIVE: Duration = Duration::from_secs(600);
/// Largest body: a frame's limit less the numbers around the body.
const MAX_BODY: usize = protocol::frame::MAX_TELEMETRY - 64;
/// A clock that moved less than this against the hub's is not worth telling again.
const CLOCK_STEP_MS: u64 = 100;

/// What happened on the node, apart from figures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Services that are new or different.
    pub services: Vec<Service>,
    /// Services that are gone.
    pub removed: Vec<ServiceKey>,
    /// The engine's state, when it is known now.
    pub engine: Option<Engine>,
}

/// The one door to a node's telemetry; cheap to clone.
///
/// Nothing it takes can fail: what the disk refuses stands in the node's status, reaches the hub in a snapshot, and
/// is stored when the disk takes writes again.
#[derive(Clone)]
pub struct Recorder(Arc<Shared>);

struct Shared {
    samples_per_batch: usize,
    backlog: Backlog,
    pulse: Arc<Pulse>,
    gathered: Mutex<Gathered>,
    live_until: watch::Sender<Option<Instant>>,
    /// Counts what can't go through the backlog, so that the link sends a snapshot.
    snapshot_due: watch::Sender<u64>,
}

/// What is known and not yet in a batch.
#[derive(Default)]
struct Gathered {
    encoder: Encoder,
    schema: Option<Arc<Schema>>,
    rows: Vec<Row>,
    newest: Option<Row>,
    services: Services,
    engine: Option<Engine>,
    engine_changed: bool,
    clock: Option<ClockReading>,
    told: Option<NodeStatus>,
    /// The next batch starts afresh: after the process's start, and after one that could not be stored.
    key_due: bool,
}

impl Recorder {
    /// A recorder that stores batches of `samples_per_batch` samples in `backlog`.
    pub fn new(backlog: Backlog, samples_per_batch: usize) -> Self {
        Self(Arc::new(Shared {
            samples_per_batch: samples_per_batch.clamp(1, MOST_ROWS),
            backlog,
            pulse: Arc::default(),
            gathered: Mutex::new(Gathered { key_due: true, ..Gathered::default() }),
            live_until: watch::Sender::new(None),
            snapshot_due: watch::Sender::new(0),
        }))
    }

    /// Takes one sample of every series: one value for each, in the schema's order.
    ///
    /// Returns when the sample is gathered or its batch is stored.
    pub async fn record(&self, schema: &Arc<Schema>, row: Row) {
        self.0.pulse.beat();
        if row.values.len() != schema.len() {
            tracing::error!(values = row.values.len(), series = schema.len(), "a sample does not fit its schema");
            return;
        }
        let changed_schema = {
            let gathered = self.gathered();
            gathered.schema.as_ref().is_some_and(|known| !Arc::ptr_eq(known, schema) && **known != **schema)
        };
        if changed_schema {
            // Rows of one batch share one schema.
            self.store().await;
        }
        let due = {
            let mut gathered = self.gathered();
            if changed_schema {
                // Those that could not be stored under the old one.
                gathered.rows.clear();
            }
            gathered.schema = Some(Arc::clone(schema));
            gathered.newest = Some(row.clone());
            if gathered.rows.len() == MOST_ROWS {
                gathered.rows.remove(0);
            }
            gathered.rows.push(row);
            gathered.rows.len() >= self.0.samples_per_batch || self.is_live()
        };
        if due {
            self.store().await;
        }
    }

    /// Takes a change and stores it at once, with the samples gathered so far. What is already known is no change.
    pub async fn change(&self, change: Change) {
        let news = {
            let mut gathered = self.gathered();
            let engine_changed = change.engine.is_some() && change.engine != gathered.engine;
            if engine_changed {
                gathered.engine = change.engine;
                gathered.engine_changed = true;
            }
            gathered.services.apply(change.services, change.removed) || engine_changed
        };
        if news {
            self.store().await;
        }
    }

    /// Takes the complete list of services: those that are not on it are gone.
    pub async fn replace_services(&self, services: Vec<Service>) {
        let removed = self.gathered().services.missing_in(&services);
        self.change(Change { services, removed, engine: None }).await;
    }

    /// Stores what is gathered as a batch now.
    pub async fn flush(&self) {
        self.store().await;
    }

    /// The newest full state, as a batch that decodes alone and is not numbered.
    pub fn snapshot(&self) -> BatchBody {
        let gathered = self.gathered();
        let samples = match (&gathered.schema, &gathered.newest) {
            (Some(schema), Some(row)) => Encoder::new().encode(schema, std::slice::from_ref(row), true).bytes,
            _ => Vec::new(),
        };
        BatchBody {
            key: true,
            samples,
            services: gathered.services.all(),
            removed: Vec::new(),
            engine: gathered.engine.clone(),
            status: Some(self.status(&gathered)),
        }
    }

    /// Sends every sample at once for `duration` from now.
    pub fn live_for(&self, duration: Duration) {
        self.0.live_until.send_replace(Some(Instant::now() + duration.min(LONGEST_LIVE)));
    }

    /// Whether somebody is looking.
    pub fn is_live(&self) -> bool {
        self.0.live_until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// The pulse of the loop that records.
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.0.pulse)
    }

    /// The backlog it stores in.
    pub fn backlog(&self) -> &Backlog {
        &self.0.backlog
    }

    /// Changes whenever the hub should be told the newest state past the backlog.
    pub(crate) fn snapshot_due(&self) -> watch::Receiver<u64> {
        self.0.snapshot_due.subscribe()
    }

    /// Takes the clock's reading, as measured when a session came up.
    pub(crate) fn clock_measured(&self, reading: ClockReading) {
        self.gathered().clock = Some(reading);
    }

    /// Encodes and stores what is gathered. Nothing is left half done when the caller is gone before it ends.
    async fn store(&self) {
        let shared = Arc::clone(&self.0);
        let stored = self.0.backlog.with(move |spool| Ok(shared.store(spool)));
        if let Err(error) = stored.await {
            tracing::debug!(%error, "a batch was not stored");
        }
    }

    fn status(&self, gathered: &Gathered) -> NodeStatus {
        self.0.status(gathered)
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.0.gathered()
    }
}

impl Shared {
    /// Encodes what is gathered and appends it, in one go: batches are stored in the order of their deltas.
    fn store(&self, spool: &mut Spool) {
        let taken = {
            let mut gathered = self.gathered();
            let status = self.status(&gathered);
            let schema = gathered.schema.clone();
            gathered.take(status, spool.needs_key()).map(|(body, rows)| (body, rows, schema))
        };
        let Some((body, rows, schema)) = taken else { return };
        let (bytes, key) = (body.encode_to_vec(), body.key);
        if bytes.len() > MAX_BODY {
            tracing::error!(bytes = bytes.len(), most = MAX_BODY, "a batch is too large to be sent and is dropped");
            self.gathered().key_due = true;
        } else if let Err(error) = spool.append(&bytes, key) {
            self.not_stored(&error, rows, schema);
        }
    }

    /// Keeps the rows for the next attempt, and has the link tell the hub past the backlog.
    fn not_stored(&self, error: &BacklogError, rows: Vec<Row>, schema: Option<Arc<Schema>>) {
        tracing::debug!(%error, "a batch could not be stored");
        let mut gathered = self.gathered();
        gathered.key_due = true;
        if gathered.schema == schema {
            let newer = std::mem::replace(&mut gathered.rows, rows);
            gathered.rows.extend(newer);
            let surplus = gathered.rows.len().saturating_sub(MOST_ROWS);
            gathered.rows.drain(..surplus);
        }
        drop(gathered);
        self.snapshot_due.send_modify(|count| *count += 1);
    }

    fn status(&self, gathered: &Gathered) -> NodeStatus {
        NodeStatus {
            clock: gathered.clock.map(Into::into),
            clock_state: gathered.clock.map_or(0, |reading| reading.state().into()),
            spool: Some(self.backlog.status()),
        }
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gathered {
    /// The next batch and the rows in it, or `None` when there is nothing to tell.
    fn take(&mut self, status: NodeStatus, needs_key: bool) -> Option<(BatchBody, Vec<Row>)> {
        if self.rows.is_empty() && !self.services.changed() && !self.engine_changed {
            return None;
        }
        let rows = std::mem::take(&mut self.rows);
        let mut key = needs_key || self.key_due;
        let samples = match &self.schema {
            // A key batch carries the schema even without rows: the deltas after it build on it.
            Some(schema) if key || !rows.is_empty() => {
                let encoded = self.encoder.encode(schema, &rows, key);
                key |= encoded.key;
                encoded.bytes
            }
            _ => Vec::new(),
        };
        let (services, removed) =
            if key { (self.services.take_all(), Vec::new()) } else { self.services.take_changed() };
        let engine = (key || self.engine_changed).then(|| self.engine.clone()).flatten();
        let told = key || self.told.as_ref().is_none_or(|told| differs(told, &status));
        if told {
            self.told = Some(status.clone());
        }
        self.engine_changed = false;
        self.key_due = false;
        Some((BatchBody { key, samples, services, removed, engine, status: told.then_some(status) }, rows))
    }
}

/// Whether a status is worth telling: depth and size of the spool change with every batch and are series of their own.
fn differs(told: &NodeStatus, now: &NodeStatus) -> bool {
    let spool = |status: &NodeStatus| {
        let spool = status.spool.clone().unwrap_or_default();
        SpoolStatus { pending_batches: 0, bytes: 0, ..spool }
    };
    let moved = match (told.clock, now.clock) {
        (Some(told), Some(now)) => told.offset_ms.abs_diff(now.offset_ms) >= CLOCK_STEP_MS,
        (told, now) => told != now,
    };
    moved || told.clock_state != now.clock_state || spool(told) != spool(now)
}

#[cfg(test)]
mod tests;
