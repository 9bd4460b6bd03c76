//! Many sessions' batches in one transaction: one statement for their streams, few for all their rows.

use protocol::Timestamp;
use store::group::Apply;
use store::{StoreError, Transaction};

use crate::rows::{self, Insert};
use crate::streams::{self, Delivery, Hole, Tables, tables};

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

pub(super) static TABLES: Tables =
    tables!("" and "UNION ALL SELECT first_sequence, last_sequence FROM chunks WHERE stream = $1");

const BATCHES: Insert = Insert {
    into: "batches (stream, sequence, tenant, key_sequence, first_at, last_at, received_at, body)",
    columns: 8,
    on_conflict: "(stream, sequence) DO NOTHING",
};
