//! Many sessions' batches in one transaction: one statement for their streams, few for all their rows.

use protocol::Timestamp;
use store::group::Apply;
use store::{StoreError, Transaction};

use crate::rows::{self, Insert};
use crate::streams::{self, Delivery, Hole, Tables};

pub(super) struct BatchRow {
    pub(super) sequence: u64,
    pub(super) key_sequence: u64,
    pub(super) first_at: Timestamp,
    pub(super) last_at: Timestamp,
    pub(super) body: Vec<u8>,
}

pub(super) struct Writer;

impl Apply for Writer {
    type Operation = Delivery<BatchRow>;
    type Outcome = Result<(), Hole>;

    async fn apply(
        &mut self,
        transaction: &mut Transaction,
        deliveries: &[&Delivery<BatchRow>],
    ) -> Result<Vec<Self::Outcome>, StoreError> {
        let (outcomes, accepted) = streams::advance(transaction, &TABLES, deliveries).await?;
        let batches: Vec<_> = accepted
            .iter()
            .flat_map(|accepted| accepted.delivery.batches.iter().map(move |row| (accepted, row)))
            .filter(|(accepted, row)| row.sequence > accepted.known)
            .collect();
        rows::write(transaction, BATCHES, &batches, |query, (accepted, row)| {
            query
                .bind(accepted.stream)
                .bind(row.sequence as i64)
                .bind(accepted.delivery.stream.tenant.as_str().to_owned())
                .bind(row.key_sequence as i64)
                .bind(row.first_at.millis())
                .bind(row.last_at.millis())
                .bind(accepted.delivery.received_at.millis())
                .bind(row.body.clone())
        })
        .await?;
        Ok(outcomes)
    }

    fn committed(&mut self, deliveries: &[&Delivery<BatchRow>], outcomes: &[Self::Outcome]) {
        streams::committed(deliveries, outcomes);
    }
}

pub(super) static TABLES: Tables = Tables {
    newest: "SELECT node, tenant, epoch, through FROM streams
        WHERE id IN (SELECT MAX(id) FROM streams GROUP BY node)",
    through: "SELECT through FROM streams WHERE node = $1 AND epoch = $2",
    streams: Insert {
        into: "streams (tenant, node, epoch, through, deleted_through, opened_at)",
        columns: 6,
        on_conflict: "(node, epoch) DO UPDATE SET through =
            CASE WHEN excluded.through > streams.through THEN excluded.through ELSE streams.through END
            RETURNING id, node, epoch",
    },
    lost: Insert {
        into: "lost_ranges (stream, first_sequence, last_sequence, tenant, reason, reported_at)",
        columns: 6,
        on_conflict: "(stream, first_sequence) DO NOTHING",
    },
    lives: "SELECT id, epoch, opened_at, through, deleted_through FROM streams WHERE node = $1 ORDER BY id",
    // Within a run without a hole, number minus rank stays the same.
    stored: "SELECT MIN(sequence), MAX(sequence) FROM
            (SELECT sequence, sequence - ROW_NUMBER() OVER (ORDER BY sequence) AS run
             FROM batches WHERE stream = $1) AS numbered
        GROUP BY run
        UNION ALL SELECT first_sequence, last_sequence FROM chunks WHERE stream = $1",
    lost_of: "SELECT first_sequence, last_sequence, reason FROM lost_ranges WHERE stream = $1",
};

const BATCHES: Insert = Insert {
    into: "batches (stream, sequence, tenant, key_sequence, first_at, last_at, received_at, body)",
    columns: 8,
    on_conflict: "(stream, sequence) DO NOTHING",
};
