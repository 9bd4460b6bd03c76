//! Kept lines go when their time is over, or when their tenant has too many: the oldest first, a few batches at a time.

use std::time::Duration;

use protocol::Timestamp;
use store::sqlx::{self, Row};
use store::{Database, StoreError};
use tokio_util::sync::CancellationToken;

use super::writer::LINES;
use crate::upkeep;

/// Batches deleted in one transaction: half a MiB of lines, for whose words the one writer is held a moment.
const STEP: i64 = 4;

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
}

impl Upkeep {
    /// Upkeep of the lines in `database`.
    pub fn new(database: Database, bounds: Bounds) -> Self {
        Self { database, bounds }
    }

    /// Works until `stop`. What fails is tried again the next time.
    pub async fn keep(self, clock: impl Fn() -> Timestamp + Send, stop: CancellationToken) {
        while upkeep::round("kept logs", async { self.run_once(clock()).await }, &stop).await {}
    }

    /// Deletes all that is to go now.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn run_once(&self, now: Timestamp) -> Result<(), StoreError> {
        let tenants = sqlx::query("SELECT tenant, CAST(SUM(bytes) AS BIGINT) FROM log_batches GROUP BY tenant")
            .fetch_all(self.database.reader())
            .await?;
        let most = i64::try_from(self.bounds.bytes).unwrap_or(i64::MAX);
        for row in &tenants {
            let (tenant, bytes): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            let mut over = bytes.saturating_sub(most);
            while self.step(&tenant, now.minus(self.bounds.retention), &mut over).await? {
                tokio::time::sleep(upkeep::PAUSE).await;
            }
        }
        Ok(())
    }

    /// Deletes a tenant's oldest batches, while they are from before `horizon` or its bytes are `over`; says whether there
    /// may be more of them.
    async fn step(&self, tenant: &str, horizon: Timestamp, over: &mut i64) -> Result<bool, StoreError> {
        let oldest = sqlx::query(
            "SELECT id, stream, sequence, received_at, bytes FROM log_batches WHERE tenant = $1 ORDER BY id LIMIT $2",
        )
        .bind(tenant)
        .bind(STEP)
        .fetch_all(self.database.reader())
        .await?;
        let mut doomed = Vec::with_capacity(oldest.len());
        for row in &oldest {
            let (id, stream, sequence): (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            if row.try_get::<i64, _>(3)? >= horizon.millis() && *over <= 0 {
                break;
            }
            *over = over.saturating_sub(row.try_get(4)?);
            doomed.push((id, stream, sequence));
        }
        if doomed.is_empty() {
            return Ok(false);
        }
        let mut transaction = self.database.begin_write().await?;
        for (id, stream, sequence) in &doomed {
            sqlx::query("DELETE FROM log_lines WHERE id >= $1 AND id < $2")
                .bind(id * LINES)
                .bind((id + 1) * LINES)
                .execute(&mut *transaction)
                .await?;
            sqlx::query("DELETE FROM log_batches WHERE id = $1").bind(id).execute(&mut *transaction).await?;
            for statement in [
                "DELETE FROM log_lost_ranges WHERE stream = $1 AND last_sequence <= $2",
                "UPDATE log_streams SET deleted_through = $2 WHERE id = $1 AND deleted_through < $2",
            ] {
                sqlx::query(statement).bind(stream).bind(sequence).execute(&mut *transaction).await?;
            }
        }
        transaction.commit().await?;
        Ok(doomed.len() as i64 == STEP)
    }
}
