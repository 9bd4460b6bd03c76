//! Gathers samples and changes into numbered batches, and puts them into the backlog that the link sends from.

mod services;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use protocol::message::{BatchBody, BridgeStatus, ClassStatus, Engine, NodeStatus, Service, ServiceKey, SpoolStatus};
use protocol::session::ClockReading;
use protocol::telemetry::{Encoder, Row, Schema};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::backlog::{Backlog, SpoolError, Store};
use crate::health::Pulse;

use services::Services;

/// Samples in a batch when nothing urges: a packet costs more than its samples (about 140 bytes with its
/// acknowledgement), so four travel in one.
pub const SAMPLES_PER_BATCH: usize = 4;
/// Samples kept for the next attempt when a batch can't be stored; older ones are dropped.
const MOST_ROWS: usize = 64;
/// Longest the hub may ask for live samples at a time.
const LONGEST_LIVE: Duration = Duration::from_secs(600);
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
    /// Counts what can't or shall not wait for the backlog, so that the link sends a snapshot.
    snapshot_due: watch::Sender<u64>,
}

/// What is known and not yet in a batch.
struct Gathered {
    encoder: Encoder,
    schema: Option<Arc<Schema>>,
    rows: Vec<Row>,
    /// Samples that make the next batch.
    next_batch: usize,
    newest: Option<Row>,
    services: Services,
    engine: Option<Engine>,
    engine_changed: bool,
    clock: Option<ClockReading>,
    bridge: Option<BridgeStatus>,
    bridge_changed: bool,
    told: Option<NodeStatus>,
    /// The next batch starts afresh: after the process's start, and after one that could not be stored.
    key_due: bool,
}

impl Recorder {
    /// A recorder that stores batches of `samples_per_batch` samples in `backlog`.
    pub fn new(backlog: Backlog, samples_per_batch: usize) -> Self {
        let samples_per_batch = samples_per_batch.clamp(1, MOST_ROWS);
        let gathered = Gathered::new(samples_per_batch, backlog.max_body() / 2);
        Self(Arc::new(Shared {
            samples_per_batch,
            backlog,
            pulse: Arc::default(),
            gathered: Mutex::new(gathered),
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
            let full = gathered.rows.len() >= gathered.next_batch;
            if full {
                gathered.next_batch = self.0.samples_per_batch;
            }
            full || self.is_live()
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

    /// Takes how a bridge stands with its brokers; stored at once when that is another state than before.
    pub async fn bridge(&self, status: BridgeStatus) {
        let changed = {
            let mut gathered = self.gathered();
            let told = gathered.bridge.replace(status.clone());
            let changed = told.is_none_or(|told| without_progress(told) != without_progress(status));
            gathered.bridge_changed |= changed;
            changed
        };
        if changed {
            self.store().await;
        }
    }

    /// Takes the complete list of services: those that are not on it are gone.
    pub async fn replace_services(&self, services: Vec<Service>) {
        let removed = self.gathered().services.missing_in(&services);
        self.change(Change { services, removed, engine: None }).await;
    }

    /// Stores what is gathered as a batch now.
    ///
    /// The batch after it is a random bit shorter: nodes flush when their sessions come up, which after a restart of
    /// the hub is for all of them at once, and would go on sending at one moment.
    pub async fn flush(&self) {
        self.store().await;
        let most = self.0.samples_per_batch;
        self.gathered().next_batch = rand::random_range(1..=most);
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

    /// Sends every sample at once for `duration` from now, and the newest state right away when nobody looked before.
    pub fn live_for(&self, duration: Duration) {
        if !self.is_live() {
            self.0.snapshot_due.send_modify(|count| *count += 1);
        }
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
        // Fails only when the process goes down.
        let _ = self.0.backlog.with(move |store| shared.store(store)).await;
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
    fn store(&self, store: &mut Store) {
        let appended = match self.append(store, store.needs_key()) {
            // It turned out to begin a segment, or to follow a loss.
            Err(SpoolError::NeedsKey) => self.append(store, true),
            other => other,
        };
        match appended.and_then(|appended| if appended { store.sync() } else { Ok(()) }) {
            Ok(()) => {}
            Err(error) => {
                // Its status tells it to everyone who looks; the hub learns of it and of the newest state past it.
                tracing::debug!("the spool: {error}");
                self.snapshot_due.send_modify(|count| *count += 1);
            }
        }
    }

    /// Whether there was something to append. What is not appended is kept for the next attempt.
    fn append(&self, store: &mut Store, key: bool) -> Result<bool, SpoolError> {
        let mut gathered = self.gathered();
        let status = self.status(&gathered);
        let Some((body, rows)) = gathered.take(status, key) else { return Ok(false) };
        let (bytes, most) = (body.encode_to_vec(), store.max_body());
        if bytes.len() > most {
            tracing::error!(bytes = bytes.len(), most, "a batch is too large to be stored and is dropped");
            gathered.key_due = true;
            return Ok(false);
        }
        store.append(&bytes, body.key).inspect_err(|_| gathered.put_back(rows)).map(|()| true)
    }

    fn status(&self, gathered: &Gathered) -> NodeStatus {
        NodeStatus {
            clock: gathered.clock.map(Into::into),
            clock_state: gathered.clock.map_or(0, |reading| reading.state().into()),
            spool: Some(self.backlog.status()),
            bridge: gathered.bridge.clone().map(Box::new),
        }
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gathered {
    fn new(next_batch: usize, most_service_bytes: usize) -> Self {
        Self {
            encoder: Encoder::new(),
            schema: None,
            rows: Vec::new(),
            next_batch,
            newest: None,
            services: Services::new(most_service_bytes),
            engine: None,
            engine_changed: false,
            clock: None,
            bridge: None,
            bridge_changed: false,
            told: None,
            key_due: true,
        }
    }

    /// The next batch and the rows in it, or `None` when there is nothing to tell.
    fn take(&mut self, status: NodeStatus, needs_key: bool) -> Option<(BatchBody, Vec<Row>)> {
        if self.rows.is_empty() && !self.services.changed() && !self.engine_changed && !self.bridge_changed {
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
        self.bridge_changed = false;
        self.key_due = false;
        Some((BatchBody { key, samples, services, removed, engine, status: told.then_some(status) }, rows))
    }

    /// Takes back the rows of a batch that was not stored, and whatever else was in it.
    fn put_back(&mut self, mut rows: Vec<Row>) {
        self.key_due = true;
        rows.append(&mut self.rows);
        rows.drain(..rows.len().saturating_sub(MOST_ROWS));
        self.rows = rows;
    }
}

/// What of it is a state: when records last passed, and how many are dropped, may change with every look.
fn without_progress(status: BridgeStatus) -> BridgeStatus {
    let faulty = status.classes.into_iter().filter(|class| !class.fault.is_empty());
    let classes = faulty.map(|ClassStatus { name, fault, .. }| ClassStatus { name, fault, ..ClassStatus::default() });
    BridgeStatus { routes: Vec::new(), classes: classes.collect(), ..status }
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
    moved || told.bridge != now.bridge || told.clock_state != now.clock_state || spool(told) != spool(now)
}

#[cfg(test)]
mod tests;
