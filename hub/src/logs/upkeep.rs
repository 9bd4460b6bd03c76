//! Kept lines go when their time is over, or when their tenant has too many: the oldest first, a few at a time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use protocol::Timestamp;
use store::sqlx::{self, AssertSqlSafe, Row};
use store::{Database, StoreError};
use tokio_util::sync::CancellationToken;

use super::loki;
use super::writer::LINES;
use crate::metrics::Metrics;
use crate::{rows, upkeep};

/// Bytes of lines deleted in one transaction: for their words, the one writer is held a moment.
const STEP_BYTES: i64 = 512 * 1024;
/// Batches deleted in one transaction, where they are small: each may take a statement.
const STEP_BATCHES: i64 = 128;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// For how long, from when it came.
    pub retention: Duration,
    /// Most bytes of each tenant's lines; what stands around them takes about as much again.
    pub bytes: u64,
}

/// Deletes what is over the bounds.
#[derive(Clone)]
pub struct Upkeep {
    database: Database,
    bounds: Bounds,
    loki: Option<Arc<Metrics>>,
}

/// What a tenant has to lose.
struct Due {
    tenant: String,
    /// The newest batch whose time is over, among those before the first whose time is not.
    through: i64,
    /// Bytes over the bound.
    over: i64,
}

impl Upkeep {
    /// Upkeep of the lines in `database`. Where they are pushed on to a Loki, `loki` counts those that go before.
    pub fn new(database: Database, bounds: Bounds, loki: Option<Arc<Metrics>>) -> Self {
        Self { database, bounds, loki }
    }

    /// Works until `stop`. What fails is tried again the next time.
    pub async fn keep(self, clock: impl Fn() -> Timestamp + Send, stop: CancellationToken) {
        while upkeep::round("kept logs", async { self.run_once(clock()).await.map(drop) }, &stop).await {}
    }

    /// Deletes all that is to go now, of each tenant in its turn; gives how many transactions it took.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn run_once(&self, now: Timestamp) -> Result<usize, StoreError> {
        let mut due = self.due(now).await?;
        let (mut steps, mut missed) = (0, 0);
        while let Some(mut next) = due.pop_front() {
            if let Some(more) = self.step(&mut next).await? {
                (steps, missed) = (steps + 1, missed + more);
                due.push_back(next);
                tokio::time::sleep(upkeep::PAUSE).await;
            }
        }
        if missed > 0 {
            tracing::warn!(
                lines = missed,
                "log lines went by logs-retention or logs-size before loki-url had them: see why it is behind"
            );
        }
        Ok(steps)
    }

    async fn due(&self, now: Timestamp) -> Result<VecDeque<Due>, StoreError> {
        let most = i64::try_from(self.bounds.bytes).unwrap_or(i64::MAX);
        // Batches have their numbers as they came, and not all their times need be right: of a clock that was ahead, one goes
        // with those after it; of a clock that was behind, it takes none with it that came before and is to be kept.
        let rows = sqlx::query(
            "SELECT tenant, bytes, COALESCE((SELECT MAX(id) FROM log_batches AS old
                 WHERE old.tenant = sums.tenant AND old.id < sums.kept AND old.received_at < $1), 0)
             FROM (SELECT tenant, CAST(SUM(bytes) AS BIGINT) AS bytes,
                     COALESCE(MIN(CASE WHEN received_at BETWEEN $1 AND $2 THEN id END), $3) AS kept
                 FROM log_batches GROUP BY tenant) AS sums",
        )
        .bind(now.minus(self.bounds.retention).millis())
        .bind(now.millis())
        .bind(i64::MAX)
        .fetch_all(self.database.reader())
        .await?;
        let due = |row: &sqlx::any::AnyRow| {
            let over = row.try_get::<i64, _>(1)?.saturating_sub(most);
            Ok(Due { tenant: row.try_get(0)?, through: row.try_get(2)?, over })
        };
        Ok(rows.iter().map(due).collect::<Result<_, sqlx::Error>>()?)
    }

    /// Deletes some of a tenant's oldest batches; gives how many of their lines a Loki has missed. `None`: there are none to
    /// delete.
    async fn step(&self, due: &mut Due) -> Result<Option<u64>, StoreError> {
        let oldest =
            sqlx::query("SELECT id, bytes, stream, sequence FROM log_batches WHERE tenant = $1 ORDER BY id LIMIT $2")
                .bind(&due.tenant)
                .bind(STEP_BATCHES)
                .fetch_all(self.database.reader())
                .await?;
        let (mut doomed, mut streams, mut bytes) = (Vec::with_capacity(oldest.len()), BTreeMap::new(), 0);
        for row in &oldest {
            let id: i64 = row.try_get(0)?;
            if (id > due.through && due.over <= 0) || bytes >= STEP_BYTES {
                break;
            }
            let size: i64 = row.try_get(1)?;
            bytes += size;
            due.over = due.over.saturating_sub(size);
            doomed.push(id);
            streams.insert(row.try_get::<i64, _>(2)?, row.try_get::<i64, _>(3)?);
        }
        let Some(last) = doomed.last() else { return Ok(None) };
        let streams: Vec<(i64, i64)> = streams.into_iter().collect();
        let mut transaction = self.database.begin_write().await?;
        let pushed = match &self.loki {
            Some(_) => loki::through(&mut transaction).await?,
            None => None,
        };
        let (pushed, mut missed) = (pushed.unwrap_or(i64::MAX), 0);
        // Between them are other tenants' lines.
        for run in doomed.chunk_by(|one, next| one + 1 == *next && *one != pushed) {
            let deleted = sqlx::query("DELETE FROM log_lines WHERE id >= $1 AND id < $2")
                .bind(run[0] * LINES)
                .bind((run[0] + run.len() as i64) * LINES)
                .execute(&mut *transaction)
                .await?;
            if run[0] > pushed {
                missed += deleted.rows_affected();
            }
        }
        sqlx::query("DELETE FROM log_batches WHERE tenant = $1 AND id <= $2")
            .bind(&due.tenant)
            .bind(last)
            .execute(&mut *transaction)
            .await?;
        for part in rows::parts(&streams) {
            // Both engines name the columns of VALUES so.
            let moved = format!(
                "UPDATE log_streams SET deleted_through = gone.column2 FROM (VALUES {}) AS gone
                 WHERE id = gone.column1 AND deleted_through < gone.column2",
                rows::placeholders(part.len(), 2)
            );
            let moved = part.iter().fold(sqlx::query(AssertSqlSafe(moved)), |query, (stream, sequence)| {
                query.bind(*stream).bind(*sequence)
            });
            moved.execute(&mut *transaction).await?;
            let lost = format!(
                "DELETE FROM log_lost_ranges WHERE stream IN {}
                   AND last_sequence <= (SELECT deleted_through FROM log_streams WHERE id = stream)",
                rows::placeholders(1, part.len())
            );
            let lost = part.iter().fold(sqlx::query(AssertSqlSafe(lost)), |query, (stream, _)| query.bind(*stream));
            lost.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        if let Some(metrics) = &self.loki {
            metrics.loki_missed.inc_by(missed);
        }
        Ok(Some(missed))
    }
}
