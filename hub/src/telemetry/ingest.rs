//! Telemetry in: judged, decoded, committed in groups across all sessions, and only then acknowledged.

mod writer;

use std::cell::RefCell;
use std::sync::Arc;

use protocol::delivery::{Inbox, Verdict};
use protocol::message::{Acknowledge, Batch, BatchBody, Lost, SpoolRange, Upload, upload};
use protocol::telemetry::Decoder;
use protocol::{NodeId, Sequence, SpoolEpoch, TenantId, Timestamp, frame};
use store::group::{Limits, Submitter, group_commit};
use store::{Database, StoreError};
use tokio_util::sync::CancellationToken;

use super::state::{Fleet, Report, Sample, Services};
use crate::streams::{self, Delivery, LostRow, Stream, Streams, TakesIn, storable};
use writer::{BatchRow, TABLES, Writer};

pub use crate::streams::{Coverage, IngestError, LostRange};

/// Batches taken in before [`Intake::is_full`] asks for a commit, and their bytes: what a session may make the hub
/// hold in memory beside the transport's own window.
const PENDING_BATCHES: usize = 64;
const PENDING_BYTES: usize = 128 * 1024;

/// Where sessions hand in what nodes upload. Clones share it.
#[derive(Clone)]
pub struct Ingest(Arc<Inner>);

struct Inner {
    database: Database,
    fleet: Fleet,
    submitter: Submitter<Writer>,
    streams: Streams,
}

impl Ingest {
    /// Starts taking in: a handle, and the task that commits until `stop`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn start(
        database: Database,
        fleet: Fleet,
        limits: Limits,
        stop: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send), StoreError> {
        let streams = Streams::load(&database, &TABLES).await?;
        let (submitter, task) = group_commit(database.clone(), Writer, limits, stop);
        Ok((Self(Arc::new(Inner { database, fleet, submitter, streams })), task))
    }

    /// Opens a session's intake, for the spool that the node named in its Hello.
    ///
    /// # Errors
    /// When the database does not answer; it is asked only about a spool that is not the node's newest.
    pub async fn open(&self, node: NodeId, tenant: &TenantId, spool: &SpoolRange) -> Result<Intake, StoreError> {
        let epoch = SpoolEpoch(spool.epoch);
        let stream = self.0.streams.open(&self.0.database, node, tenant, epoch).await?;
        let stored = stream.committed();
        Ok(Intake {
            ingest: self.clone(),
            inbox: Inbox::open(epoch, (stored > 0).then_some(Sequence(stored))),
            decoder: Decoder::sharing(self.0.fleet.schemas()),
            key: 0,
            backlog: spool.last,
            snapshot: false,
            reached: None,
            base: stored,
            pending: Pending::default(),
            node,
            stream,
        })
    }

    /// Every spool epoch of a tenant's `node` with what is stored of it: the proof that no number is missing.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn coverage(&self, tenant: &TenantId, node: NodeId) -> Result<Vec<Coverage>, StoreError> {
        coverage(&self.0.database.within(Some(tenant.as_str())), node).await
    }
}

/// Every spool epoch of `node`, oldest first.
///
/// # Errors
/// When the database does not answer.
pub async fn coverage(database: &Database, node: NodeId) -> Result<Vec<Coverage>, StoreError> {
    streams::coverage(database, &TABLES, node).await
}

/// One session's way in.
pub struct Intake {
    ingest: Ingest,
    node: NodeId,
    stream: Arc<Stream>,
    inbox: Inbox,
    decoder: Decoder,
    /// The key batch that the batches now coming continue from.
    key: u64,
    /// Up to here, batches were written before the session began, and so before its snapshot.
    backlog: u64,
    snapshot: bool,
    /// The time of the last row that came in a batch.
    reached: Option<Timestamp>,
    /// Everything up to here is stored, or in a commit under way.
    base: u64,
    pending: Pending,
}

#[derive(Default)]
struct Pending {
    batches: Vec<BatchRow>,
    lost: Vec<LostRow>,
    reports: Vec<Report>,
    bytes: usize,
}

impl Intake {
    /// What to say in the Welcome: how far the hub has this spool.
    pub fn stored(&self) -> Option<Acknowledge> {
        self.inbox.position()
    }

    /// Takes in one upload. A batch waits for [`Intake::commit`]; a snapshot is shown at once and kept nowhere.
    ///
    /// # Errors
    /// [`IngestError`]; the session must end.
    pub fn receive(&mut self, upload: Upload, now: Timestamp) -> Result<(), IngestError> {
        match upload.message {
            Some(upload::Message::Batch(batch)) => self.batch(batch, now),
            Some(upload::Message::Lost(lost)) => self.lost(&lost, now),
            Some(upload::Message::Snapshot(body)) => {
                self.snapshot = true;
                let mut decoder = Decoder::sharing(self.ingest.0.fleet.schemas());
                let (report, _) = decode(&mut decoder, body, true, &mut None, self.node);
                self.ingest.0.fleet.report(self.node, vec![report], now);
                Ok(())
            }
            // A newer node's message: skipped, as the contract says.
            None => Ok(()),
        }
    }

    /// Whether there is something to commit.
    pub fn is_empty(&self) -> bool {
        self.pending.batches.is_empty() && self.pending.lost.is_empty()
    }

    /// Whether enough has been taken in: commit before the next [`Intake::receive`].
    pub fn is_full(&self) -> bool {
        self.pending.batches.len() >= PENDING_BATCHES || self.pending.bytes >= PENDING_BYTES
    }

    /// Stores what was taken in, together with what other sessions took in. Gives the acknowledgement to send, when
    /// that is news. Dropped before its end, it may still store; the session must then end.
    ///
    /// # Errors
    /// [`IngestError`]; nothing is acknowledged, the session must end, and the node sends it all again.
    pub async fn commit(&mut self, now: Timestamp) -> Result<Option<Acknowledge>, IngestError> {
        if self.is_empty() {
            return Ok(None);
        }
        let through = self.inbox.accepted();
        let Pending { batches, lost, reports, .. } = std::mem::take(&mut self.pending);
        let delivery = Delivery {
            stream: Arc::clone(&self.stream),
            // Moved on before it is known to be stored: should it fail, whatever follows in this session is a hole
            // and is refused.
            base: std::mem::replace(&mut self.base, through.0),
            through: through.0,
            batches,
            lost,
            received_at: now,
        };
        self.ingest.0.submitter.submit(delivery).await?.map_err(|_| IngestError::OutOfOrder)?;
        self.ingest.0.fleet.report(self.node, reports, now);
        Ok(self.inbox.committed(through))
    }

    fn batch(&mut self, batch: Batch, now: Timestamp) -> Result<(), IngestError> {
        storable(batch.sequence, batch.sequence)?;
        let body: BatchBody =
            frame::decode(&batch.body).map_err(|source| IngestError::Body { sequence: batch.sequence, source })?;
        let verdict = self.inbox.batch(&batch, body.key)?;
        if body.key {
            self.key = batch.sequence;
        }
        let current = !self.snapshot || batch.sequence > self.backlog;
        let (report, span) = decode(&mut self.decoder, body, current, &mut self.reached, self.node);
        if verdict == Verdict::Duplicate {
            return Ok(());
        }
        let (first_at, last_at) = span.unwrap_or((now, now));
        self.pending.bytes += batch.body.len();
        self.pending.reports.push(report);
        self.pending.batches.push(BatchRow {
            sequence: batch.sequence,
            key_sequence: self.key,
            first_at,
            last_at,
            body: batch.body,
        });
        Ok(())
    }

    fn lost(&mut self, lost: &Lost, now: Timestamp) -> Result<(), IngestError> {
        storable(lost.first, lost.last)?;
        if let Some(range) = self.inbox.lost(lost)? {
            tracing::warn!(node = %self.node, first = range.start(), last = range.end(), reason = ?lost.reason(),
                "the node has lost batches");
            self.pending.lost.push(LostRow { range, reason: lost.reason(), reported_at: now });
        }
        Ok(())
    }
}

impl TakesIn for Intake {
    fn receive(&mut self, upload: Upload, now: Timestamp) -> Result<(), IngestError> {
        self.receive(upload, now)
    }

    fn is_full(&self) -> bool {
        self.is_full()
    }

    async fn commit(&mut self, now: Timestamp) -> Result<Option<Acknowledge>, IngestError> {
        self.commit(now).await
    }
}

/// Rows while a batch is decoded. Each batch would otherwise leave holes of their size between rows that are kept for minutes.
#[derive(Default)]
struct Scratch {
    row: Vec<Option<i64>>,
    /// The newest two, the newest last.
    newest: [(Timestamp, Vec<Option<i64>>); 2],
    /// How many of them are of this batch.
    count: usize,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What a body says, and the times of its first and last row. A body whose samples can't be read is stored all the
/// same: what arrived is not thrown away, and the node would only send it again.
///
/// `reached` is the time of the row before, and becomes that of the last one. Rows come in the order in which they were measured:
/// one that is older than the one before tells of a clock that was set back. Of the first that is about now, nobody knows.
fn decode(
    decoder: &mut Decoder,
    body: BatchBody,
    current: bool,
    reached: &mut Option<Timestamp>,
    node: NodeId,
) -> (Report, Option<(Timestamp, Timestamp)>) {
    let mut span = None;
    let mut samples = Vec::new();
    let mut set_back = current && reached.is_none();
    if !body.samples.is_empty() {
        SCRATCH.with_borrow_mut(|Scratch { row, newest, count }| {
            *count = 0;
            let decoded = decoder.decode_with(&body.samples, row, |_, at, values| {
                set_back |= reached.replace(at).is_some_and(|reached| at < reached);
                let (first, last) = span.unwrap_or((at, at));
                span = Some((at.min(first), at.max(last)));
                newest.swap(0, 1);
                let (kept_at, kept) = &mut newest[1];
                *kept_at = at;
                kept.clear();
                kept.extend_from_slice(values);
                *count = (*count + 1).min(2);
            });
            if let Err(error) = decoded {
                tracing::warn!(%node, %error, "a batch's samples can't be read; it is stored unread");
            }
            if let Some(schema) = decoder.schema() {
                let kept = newest.iter().skip(2 - *count);
                samples = kept.map(|(at, row)| Sample::new(*at, Arc::clone(schema), row.iter().copied())).collect();
            }
        });
    }
    let report = Report {
        current,
        complete: body.key,
        services: Services::new(body.services),
        removed: body.removed,
        engine: body.engine,
        status: body.status,
        samples,
        set_back,
    };
    (report, span)
}
