//! What was asked of nodes goes when its time is over: commands with their outputs and requests, and rollouts that have ended.

use std::time::Duration;

use protocol::Timestamp;
use store::sqlx::{self, Row};
use store::{Database, StoreError};
use tokio_util::sync::CancellationToken;

use crate::upkeep;

/// Commands deleted in one transaction, with up to 256 KiB of output each.
const STEP: i64 = 500;

/// Deletes what is too old.
#[derive(Clone)]
pub struct Asked {
    database: Database,
    retention: Duration,
}

impl Asked {
    /// Upkeep of `database`: a command is kept for so long after it was asked for, a rollout after its end.
    pub fn new(database: Database, retention: Duration) -> Self {
        Self { database, retention }
    }

    /// Works until `stop`. What fails is tried again the next time.
    pub async fn keep(self, clock: impl Fn() -> Timestamp + Send, stop: CancellationToken) {
        while upkeep::round("commands and rollouts", async { self.run_once(clock()).await }, &stop).await {}
    }

    /// Deletes all that is to go now.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn run_once(&self, now: Timestamp) -> Result<(), StoreError> {
        let horizon = now.minus(self.retention);
        while self.commands(horizon).await? || self.rollout(horizon).await? {
            tokio::time::sleep(upkeep::PAUSE).await;
        }
        Ok(())
    }

    /// Deletes the oldest commands that have ended; says whether there were any.
    async fn commands(&self, horizon: Timestamp) -> Result<bool, StoreError> {
        const OLD: &str = "SELECT id FROM commands WHERE created_at < $1
             AND state IN ('succeeded', 'failed', 'expired', 'cancelled', 'unknown') ORDER BY created_at, id LIMIT $2";
        let any = sqlx::query(OLD).bind(horizon.millis()).bind(1_i64).fetch_optional(self.database.reader()).await?;
        if any.is_none() {
            return Ok(false);
        }
        let mut transaction = self.database.begin_write().await?;
        for sql in [
            format!("DELETE FROM command_outputs WHERE command IN ({OLD})"),
            format!("DELETE FROM commands WHERE id IN ({OLD})"),
        ] {
            let deletion = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(horizon.millis()).bind(STEP);
            deletion.execute(&mut *transaction).await?;
        }
        sqlx::query(
            "DELETE FROM command_requests WHERE created_at < $1
               AND NOT EXISTS (SELECT 1 FROM commands WHERE commands.request = command_requests.id)",
        )
        .bind(horizon.millis())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Deletes the oldest rollout that has ended, with its nodes' rows; says whether there was one.
    async fn rollout(&self, horizon: Timestamp) -> Result<bool, StoreError> {
        let old = sqlx::query("SELECT id FROM rollouts WHERE ended_at < $1 ORDER BY ended_at, id LIMIT 1")
            .bind(horizon.millis())
            .fetch_optional(self.database.reader())
            .await?;
        let Some(old) = old else { return Ok(false) };
        let id: i64 = old.try_get(0)?;
        let mut transaction = self.database.begin_write().await?;
        for sql in ["DELETE FROM rollout_nodes WHERE rollout = $1", "DELETE FROM rollouts WHERE id = $1"] {
            sqlx::query(sql).bind(id).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }
}
