//! Many sessions' batches in one transaction: one statement for their streams, few for all their rows.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use protocol::message::LostReason;
use protocol::{NodeId, SpoolEpoch, TenantId, Timestamp};
use store::group::Apply;
use store::sqlx::Row;
use store::{StoreError, Transaction};

use crate::rows::{self, Insert};

/// One life of a node's spool, and how far it is stored. There is one of these for one stream in a hub.
pub(super) struct Stream {
    pub(super) node: NodeId,
    pub(super) tenant: TenantId,
    pub(super) epoch: SpoolEpoch,
    committed: AtomicU64,
}

impl Stream {
    pub(super) fn new(node: NodeId, tenant: TenantId, epoch: SpoolEpoch, through: u64) -> Self {
        Self { node, tenant, epoch, committed: AtomicU64::new(through) }
    }

    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }
}

/// What one session has taken in since its last commit: all numbers from `base` + 1 to `through`.
pub(super) struct Delivery {
    pub(super) stream: Arc<Stream>,
    pub(super) base: u64,
    pub(super) through: u64,
    pub(super) batches: Vec<BatchRow>,
    pub(super) lost: Vec<LostRow>,
    pub(super) received_at: Timestamp,
}

pub(super) struct BatchRow {
    pub(super) sequence: u64,
    pub(super) key_sequence: u64,
    pub(super) first_at: Timestamp,
    pub(super) last_at: Timestamp,
    pub(super) body: Vec<u8>,
}

pub(super) struct LostRow {
    pub(super) range: RangeInclusive<u64>,
    pub(super) reason: LostReason,
    pub(super) reported_at: Timestamp,
}

/// A delivery whose predecessor was not stored: stored itself, it would leave a hole behind.
pub(super) struct Hole;

pub(super) struct Writer;

/// How far a stream will be stored once this group is.
struct Advance<'a> {
    stream: &'a Stream,
    before: u64,
    through: u64,
    at: Timestamp,
}

impl Apply for Writer {
    type Operation = Delivery;
    type Outcome = Result<(), Hole>;

    async fn apply(
        &mut self,
        transaction: &mut Transaction,
        deliveries: &[&Delivery],
    ) -> Result<Vec<Self::Outcome>, StoreError> {
        let mut advances: HashMap<(NodeId, SpoolEpoch), Advance<'_>> = HashMap::new();
        let mut outcomes = Vec::with_capacity(deliveries.len());
        let mut batches = Vec::new();
        let mut lost = Vec::new();
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
            let known = advance.through;
            batches.extend(delivery.batches.iter().filter(|row| row.sequence > known).map(|row| (delivery, row)));
            lost.extend(delivery.lost.iter().filter(|row| *row.range.end() > known).map(|row| (delivery, row, known)));
            advance.through = advance.through.max(delivery.through);
            outcomes.push(Ok(()));
        }
        let advances: Vec<_> = advances.into_values().filter(|advance| advance.through > advance.before).collect();
        let ids = advance(transaction, &advances).await?;
        let id = |delivery: &Delivery| ids.get(&(delivery.stream.node, delivery.stream.epoch)).copied();
        rows::write(transaction, BATCHES, &batches, |query, (delivery, row)| {
            query
                .bind(id(delivery))
                .bind(row.sequence as i64)
                .bind(delivery.stream.tenant.as_str().to_owned())
                .bind(row.key_sequence as i64)
                .bind(row.first_at.millis())
                .bind(row.last_at.millis())
                .bind(delivery.received_at.millis())
                .bind(row.body.clone())
        })
        .await?;
        rows::write(transaction, LOST, &lost, |query, (delivery, row, known)| {
            query
                .bind(id(delivery))
                .bind((*row.range.start()).max(known + 1) as i64)
                .bind(*row.range.end() as i64)
                .bind(delivery.stream.tenant.as_str().to_owned())
                .bind(reason(row.reason))
                .bind(row.reported_at.millis())
        })
        .await?;
        Ok(outcomes)
    }

    fn committed(&mut self, deliveries: &[&Delivery], outcomes: &[Self::Outcome]) {
        for (delivery, outcome) in deliveries.iter().zip(outcomes) {
            if outcome.is_ok() {
                delivery.stream.committed.fetch_max(delivery.through, Ordering::AcqRel);
            }
        }
    }
}

/// Moves the streams on, making those that are new; gives their ids.
async fn advance(
    transaction: &mut Transaction,
    advances: &[Advance<'_>],
) -> Result<HashMap<(NodeId, SpoolEpoch), i64>, StoreError> {
    let rows = rows::write(transaction, STREAMS, advances, |query, advance| {
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

const STREAMS: Insert = Insert {
    into: "streams (tenant, node, epoch, through, deleted_through, opened_at)",
    columns: 6,
    on_conflict: "(node, epoch) DO UPDATE SET through =
        CASE WHEN excluded.through > streams.through THEN excluded.through ELSE streams.through END
        RETURNING id, node, epoch",
};

const BATCHES: Insert = Insert {
    into: "batches (stream, sequence, tenant, key_sequence, first_at, last_at, received_at, body)",
    columns: 8,
    on_conflict: "(stream, sequence) DO NOTHING",
};

const LOST: Insert = Insert {
    into: "lost_ranges (stream, first_sequence, last_sequence, tenant, reason, reported_at)",
    columns: 6,
    on_conflict: "(stream, first_sequence) DO NOTHING",
};

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
