//! Many sessions' log batches in one transaction.

use std::collections::HashMap;

use store::group::Apply;
use store::sqlx::{self, Row};
use store::{StoreError, Transaction};

use crate::rows::{self, Insert};
use crate::streams::{self, Delivery, Hole, Tables, tables};

/// Ids of one batch's lines; more than [`protocol::shipping::MAX_LINES`] are never needed.
pub(super) const LINES: i64 = protocol::shipping::MAX_LINES as i64;
/// Serializes hubs on one PostgreSQL: batches then have their numbers in the order of their commits, and whoever reads on
/// from a number misses none. "hflogs" in ASCII.
const LOCK: &str = "SELECT pg_advisory_xact_lock(114789115193203)";

/// A batch, unpacked.
pub(super) struct BatchRow {
    pub(super) sequence: u64,
    pub(super) sources: Vec<Source>,
    pub(super) lines: Vec<LineRow>,
}

/// A container of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Source {
    pub(super) stack: String,
    pub(super) service: String,
    pub(super) number: i64,
}

pub(super) struct LineRow {
    /// Its place in the batch's sources.
    pub(super) source: usize,
    pub(super) at: i64,
    pub(super) error: bool,
    pub(super) text: String,
    pub(super) cut: i64,
    pub(super) dropped: i64,
    pub(super) until: i64,
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
        if transaction.backend_name() == "PostgreSQL" {
            sqlx::query(LOCK).execute(&mut **transaction).await?;
        }
        let (outcomes, accepted) = streams::advance(transaction, &TABLES, deliveries).await?;
        let batches: Vec<_> = accepted
            .iter()
            .flat_map(|accepted| accepted.delivery.batches.iter().map(move |row| (accepted, row)))
            .filter(|(accepted, row)| row.sequence > accepted.known)
            .collect();
        let inserted = rows::write(transaction, BATCHES, &batches, |query, (accepted, row)| {
            let bytes: usize = row.lines.iter().map(|line| line.text.len()).sum();
            query
                .bind(accepted.stream)
                .bind(row.sequence as i64)
                .bind(accepted.delivery.stream.tenant.as_str().to_owned())
                .bind(accepted.delivery.received_at.millis())
                .bind(bytes as i64)
        })
        .await?;
        let mut ids = HashMap::with_capacity(inserted.len());
        for row in &inserted {
            ids.insert((row.try_get::<i64, _>(1)?, row.try_get::<i64, _>(2)?), row.try_get::<i64, _>(0)?);
        }
        let mut named: HashMap<(String, &Source), &str> = HashMap::new();
        for (accepted, row) in &batches {
            let stream = &accepted.delivery.stream;
            named.extend(row.sources.iter().map(|source| ((stream.node.to_string(), source), stream.tenant.as_str())));
        }
        let sources = sources(transaction, named).await?;
        let mut lines = Vec::with_capacity(batches.iter().map(|(_, row)| row.lines.len()).sum());
        for (accepted, row) in &batches {
            let stream = &accepted.delivery.stream;
            // Without a row of its own it was stored before, and this hub did not know.
            let Some(batch) = ids.get(&(accepted.stream, row.sequence as i64)) else { continue };
            let node = stream.node.to_string();
            let places: Vec<Option<i64>> =
                row.sources.iter().map(|source| sources.get(&(node.clone(), source.clone())).copied()).collect();
            for (place, line) in row.lines.iter().enumerate() {
                let source = places.get(line.source).copied().flatten();
                lines.push((batch * LINES + place as i64, stream.tenant.as_str(), source, line));
            }
        }
        rows::write(transaction, INTO_LINES, &lines, |query, (id, tenant, source, line)| {
            query
                .bind(*id)
                .bind((*tenant).to_owned())
                .bind(*source)
                .bind(line.at)
                .bind(i64::from(line.error))
                .bind(line.text.clone())
                .bind(line.cut)
                .bind(line.dropped)
                .bind(line.until)
        })
        .await?;
        Ok(outcomes)
    }

    fn committed(&mut self, deliveries: &[&Delivery<BatchRow>], outcomes: &[Self::Outcome]) {
        streams::committed(deliveries, outcomes);
    }
}

/// The rows of sources, made where they are new.
async fn sources(
    transaction: &mut Transaction,
    named: HashMap<(String, &Source), &str>,
) -> Result<HashMap<(String, Source), i64>, StoreError> {
    let named: Vec<_> = named.into_iter().collect();
    let rows = rows::write(transaction, SOURCES, &named, |query, ((node, source), tenant)| {
        query
            .bind((*tenant).to_owned())
            .bind(node.clone())
            .bind(source.stack.clone())
            .bind(source.service.clone())
            .bind(source.number)
    })
    .await?;
    let mut sources = HashMap::with_capacity(rows.len());
    for row in &rows {
        let source = Source { stack: row.try_get(2)?, service: row.try_get(3)?, number: row.try_get(4)? };
        sources.insert((row.try_get(1)?, source), row.try_get(0)?);
    }
    Ok(sources)
}

pub(super) static TABLES: Tables = tables!("log_" and "");

const BATCHES: Insert = Insert {
    into: "log_batches (stream, sequence, tenant, received_at, bytes)",
    columns: 5,
    on_conflict: "(stream, sequence) DO NOTHING RETURNING id, stream, sequence",
};

const SOURCES: Insert = Insert {
    into: "log_sources (tenant, node, stack, service, number)",
    columns: 5,
    on_conflict: "(node, stack, service, number) DO UPDATE SET number = excluded.number
        RETURNING id, node, stack, service, number",
};

const INTO_LINES: Insert = Insert {
    into: "log_lines (id, tenant, source, at, error, text, cut, dropped, until)",
    columns: 9,
    on_conflict: "",
};
