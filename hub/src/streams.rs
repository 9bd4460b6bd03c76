//! Numbered batches as rows: the lives of nodes' spools, how far each is stored, and what of it is lost.
//!
//! Telemetry and shipped logs have tables of their own for it, and the same rules.

mod coverage;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::delivery::DeliveryError;
use protocol::frame;
use protocol::message::{Acknowledge, LostReason, Upload};
use protocol::{NodeId, SpoolEpoch, TenantId, Timestamp};
use store::group::GroupError;
use store::sqlx::{self, Row};
use store::{Database, StoreError, Transaction};

use crate::rows::{self, Insert};

pub(crate) use coverage::coverage;
pub use coverage::{Coverage, LostRange};

/// What takes in a stream of numbered uploads.
pub(crate) trait TakesIn {
    /// Takes in one upload; it waits for [`TakesIn::commit`].
    fn receive(&mut self, upload: Upload, now: Timestamp) -> Result<(), IngestError>;

    /// Whether enough has been taken in: commit before the next.
    fn is_full(&self) -> bool;

    /// Stores what was taken in. Gives the acknowledgement to send, when that is news.
    fn commit(&mut self, now: Timestamp) -> impl Future<Output = Result<Option<Acknowledge>, IngestError>> + Send;
}

/// An upload that was not taken in, or not stored. The session must end: the next one starts from what is stored.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// It is not what comes next.
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
    /// Its body can't be read.
    #[error("batch {sequence} is not a telemetry batch")]
    Body {
        /// Its number.
        sequence: u64,
        /// Why.
        #[source]
        source: frame::FrameError,
    },
    /// A batch before it was not stored.
    #[error("a batch was not stored because the one before it was not")]
    OutOfOrder,
    /// It was not committed.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where streams of one kind stand in the database.
pub(crate) struct Tables {
    /// The newest stream of each node: node, tenant, epoch, through.
    pub(crate) newest: &'static str,
    /// How far the stream of a node ($1) and an epoch ($2) is stored.
    pub(crate) through: &'static str,
    pub(crate) streams: Insert,
    pub(crate) lost: Insert,
    /// All streams of a node ($1), oldest first: id, epoch, opened_at, through, deleted_through.
    pub(crate) lives: &'static str,
    /// First and last of each run of numbers of a stream ($1) that is stored.
    pub(crate) stored: &'static str,
    /// First and last of each range of a stream ($1) that is lost, and the reason.
    pub(crate) lost_of: &'static str,
}

/// Where streams are whose tables' names begin so; `and`: what else is stored of a stream ($1).
macro_rules! tables {
    ($prefix:literal and $more:literal) => {
        $crate::streams::Tables {
            newest: concat!(
                "SELECT node, tenant, epoch, through FROM ",
                $prefix,
                "streams
                 WHERE id IN (SELECT MAX(id) FROM ",
                $prefix,
                "streams GROUP BY node)"
            ),
            through: concat!("SELECT through FROM ", $prefix, "streams WHERE node = $1 AND epoch = $2"),
            streams: $crate::rows::Insert {
                into: concat!($prefix, "streams (tenant, node, epoch, through, deleted_through, opened_at)"),
                columns: 6,
                on_conflict: concat!(
                    "(node, epoch) DO UPDATE SET through = CASE WHEN excluded.through > ",
                    $prefix,
                    "streams.through
                     THEN excluded.through ELSE ",
                    $prefix,
                    "streams.through END RETURNING id, node, epoch"
                ),
            },
            lost: $crate::rows::Insert {
                into: concat!(
                    $prefix,
                    "lost_ranges (stream, first_sequence, last_sequence, tenant, reason, reported_at)"
                ),
                columns: 6,
                on_conflict: "(stream, first_sequence) DO NOTHING",
            },
            lives: concat!(
                "SELECT id, epoch, opened_at, through, deleted_through FROM ",
                $prefix,
                "streams
                 WHERE node = $1 ORDER BY id"
            ),
            // Within a run without a hole, number minus rank stays the same.
            stored: concat!(
                "SELECT MIN(sequence), MAX(sequence) FROM
                    (SELECT sequence, sequence - ROW_NUMBER() OVER (ORDER BY sequence) AS run
                     FROM ",
                $prefix,
                "batches WHERE stream = $1) AS numbered
                 GROUP BY run ",
                $more
            ),
            lost_of: concat!(
                "SELECT first_sequence, last_sequence, reason FROM ",
                $prefix,
                "lost_ranges WHERE stream = $1"
            ),
        }
    };
}
pub(crate) use tables;

/// One life of a node's spool, and how far it is stored. All sessions with a node's newest one share it.
pub(crate) struct Stream {
    pub(crate) node: NodeId,
    pub(crate) tenant: TenantId,
    pub(crate) epoch: SpoolEpoch,
    committed: AtomicU64,
}

impl Stream {
    fn new(node: NodeId, tenant: TenantId, epoch: SpoolEpoch, through: u64) -> Self {
        Self { node, tenant, epoch, committed: AtomicU64::new(through) }
    }

    pub(crate) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }
}

/// The newest spool of each node, so that opening a session costs no query.
pub(crate) struct Streams {
    tables: &'static Tables,
    known: Mutex<HashMap<NodeId, Arc<Stream>>>,
}

impl Streams {
    pub(crate) async fn load(database: &Database, tables: &'static Tables) -> Result<Self, StoreError> {
        let rows = sqlx::query(tables.newest).fetch_all(database.reader()).await?;
        let mut known = HashMap::with_capacity(rows.len());
        for row in &rows {
            let (node, tenant): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let (Ok(node), Ok(tenant)) = (node.parse(), tenant.parse()) else { continue };
            let epoch = SpoolEpoch(row.try_get::<i64, _>(2)? as u64);
            let through = row.try_get::<i64, _>(3)? as u64;
            known.insert(node, Arc::new(Stream::new(node, tenant, epoch, through)));
        }
        Ok(Self { tables, known: Mutex::new(known) })
    }

    /// A node's stream of this epoch. The database is asked only about one that is not the node's newest.
    pub(crate) async fn open(
        &self,
        database: &Database,
        node: NodeId,
        tenant: &TenantId,
        epoch: SpoolEpoch,
    ) -> Result<Arc<Stream>, StoreError> {
        let known = |streams: &HashMap<NodeId, Arc<Stream>>| {
            streams.get(&node).filter(|stream| stream.epoch == epoch).map(Arc::clone)
        };
        if let Some(stream) = known(&self.lock()) {
            return Ok(stream);
        }
        let through: Option<i64> = sqlx::query_scalar(self.tables.through)
            .bind(node.to_string())
            .bind(epoch.0 as i64)
            .fetch_optional(database.reader())
            .await?;
        let mut streams = self.lock();
        // Another session of the node may have been quicker; there must be one position for one stream.
        if let Some(stream) = known(&streams) {
            return Ok(stream);
        }
        let stream = Arc::new(Stream::new(node, tenant.clone(), epoch, through.unwrap_or(0) as u64));
        streams.insert(node, Arc::clone(&stream));
        Ok(stream)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Stream>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one session has taken in since its last commit: all numbers from `base` + 1 to `through`.
pub(crate) struct Delivery<B> {
    pub(crate) stream: Arc<Stream>,
    pub(crate) base: u64,
    pub(crate) through: u64,
    pub(crate) batches: Vec<B>,
    pub(crate) lost: Vec<LostRow>,
    pub(crate) received_at: Timestamp,
}

/// Numbers a node could not deliver.
pub(crate) struct LostRow {
    pub(crate) range: RangeInclusive<u64>,
    pub(crate) reason: LostReason,
    pub(crate) reported_at: Timestamp,
}

/// A delivery whose predecessor was not stored: stored itself, it would leave a hole behind.
pub(crate) struct Hole;

/// A delivery whose batches are to be stored.
pub(crate) struct Accepted<'a, B> {
    pub(crate) delivery: &'a Delivery<B>,
    /// The stream's row.
    pub(crate) stream: i64,
    /// Its batches up to here are stored, by a session that was quicker.
    pub(crate) known: u64,
}

/// How far a stream will be stored once this group is.
struct Advance<'a> {
    stream: &'a Stream,
    before: u64,
    through: u64,
    at: Timestamp,
}

/// Moves the streams of a group on, and records what is lost. The batches themselves are the caller's to store, in the
/// same transaction.
pub(crate) async fn advance<'a, B>(
    transaction: &mut Transaction,
    tables: &Tables,
    deliveries: &[&'a Delivery<B>],
) -> Result<(Vec<Result<(), Hole>>, Vec<Accepted<'a, B>>), StoreError> {
    let mut advances: HashMap<(NodeId, SpoolEpoch), Advance<'_>> = HashMap::new();
    let mut outcomes = Vec::with_capacity(deliveries.len());
    let mut accepted = Vec::with_capacity(deliveries.len());
    for delivery in deliveries {
        let stream = &*delivery.stream;
        let advance = advances.entry((stream.node, stream.epoch)).or_insert_with(|| {
            let before = stream.committed();
            Advance { stream, before, through: before, at: delivery.received_at }
        });
        if delivery.base > advance.through {
            outcomes.push(Err(Hole));
            continue;
        }
        // Two sessions of one node may bring the same: the first counts.
        accepted.push((*delivery, advance.through));
        advance.through = advance.through.max(delivery.through);
        outcomes.push(Ok(()));
    }
    let advances: Vec<_> = advances.into_values().filter(|advance| advance.through > advance.before).collect();
    let ids = move_on(transaction, tables, &advances).await?;
    let accepted: Vec<Accepted<'a, B>> = accepted
        .into_iter()
        .filter_map(|(delivery, known)| {
            // Without a row, the stream does not move: all of it is stored already.
            let stream = *ids.get(&(delivery.stream.node, delivery.stream.epoch))?;
            Some(Accepted { delivery, stream, known })
        })
        .collect();
    let lost: Vec<_> = accepted
        .iter()
        .flat_map(|accepted| accepted.delivery.lost.iter().map(move |row| (accepted, row)))
        .filter(|(accepted, row)| *row.range.end() > accepted.known)
        .collect();
    rows::write(transaction, tables.lost, &lost, |query, (accepted, row)| {
        query
            .bind(accepted.stream)
            .bind((*row.range.start()).max(accepted.known + 1) as i64)
            .bind(*row.range.end() as i64)
            .bind(accepted.delivery.stream.tenant.as_str().to_owned())
            .bind(reason(row.reason))
            .bind(row.reported_at.millis())
    })
    .await?;
    Ok((outcomes, accepted))
}

/// The group is committed.
pub(crate) fn committed<B>(deliveries: &[&Delivery<B>], outcomes: &[Result<(), Hole>]) {
    for (delivery, outcome) in deliveries.iter().zip(outcomes) {
        if outcome.is_ok() {
            delivery.stream.committed.fetch_max(delivery.through, Ordering::AcqRel);
        }
    }
}

/// The database counts to 2^63 - 1.
pub(crate) fn storable(first: u64, last: u64) -> Result<(), DeliveryError> {
    if last > i64::MAX as u64 { Err(DeliveryError::Number { first, last }) } else { Ok(()) }
}

/// Moves the streams on, making those that are new; gives their ids.
async fn move_on(
    transaction: &mut Transaction,
    tables: &Tables,
    advances: &[Advance<'_>],
) -> Result<HashMap<(NodeId, SpoolEpoch), i64>, StoreError> {
    let rows = rows::write(transaction, tables.streams, advances, |query, advance| {
        query
            .bind(advance.stream.tenant.as_str().to_owned())
            .bind(advance.stream.node.to_string())
            .bind(advance.stream.epoch.0 as i64)
            .bind(advance.through as i64)
            .bind(0i64)
            .bind(advance.at.millis())
    })
    .await?;
    let mut ids = HashMap::with_capacity(rows.len());
    for row in &rows {
        let node: String = row.try_get(1)?;
        if let Ok(node) = node.parse() {
            ids.insert((node, SpoolEpoch(row.try_get::<i64, _>(2)? as u64)), row.try_get(0)?);
        }
    }
    Ok(ids)
}

/// The word in the table.
fn reason(reason: LostReason) -> &'static str {
    match reason {
        LostReason::Overflow => "overflow",
        LostReason::Corrupt => "corrupt",
        LostReason::DiskFull => "disk_full",
        LostReason::Released => "released",
        LostReason::Unspecified => "unknown",
    }
}
