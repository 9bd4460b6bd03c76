//! Alerts that are over go when they have been for long: the oldest first, a few at a time.

use std::time::Duration;

use protocol::Timestamp;
use store::sqlx;
use store::{Database, StoreError};
use tokio_util::sync::CancellationToken;

use crate::upkeep;

/// How long an alert is kept after its end.
const KEPT_FOR: Duration = Duration::from_secs(90 * 86_400);
/// Alerts deleted in one transaction.
const STEP: i64 = 500;

/// Deletes alerts that are over. Those that are open stay, however old they are.
#[derive(Clone)]
pub struct Upkeep {
    database: Database,
}

impl Upkeep {
    /// Upkeep of the alerts in `database`.
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// Works until `stop`. What fails is tried again the next time.
    pub async fn keep(self, clock: impl Fn() -> Timestamp + Send, stop: CancellationToken) {
        while upkeep::round("alerts", async { self.run_once(clock()).await }, &stop).await {}
    }

    /// Deletes all that is to go now.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn run_once(&self, now: Timestamp) -> Result<(), StoreError> {
        while self.step(now.minus(KEPT_FOR)).await? {
            tokio::time::sleep(upkeep::PAUSE).await;
        }
        Ok(())
    }

    /// Deletes the first of those that ended before `horizon`; says whether there were any.
    async fn step(&self, horizon: Timestamp) -> Result<bool, StoreError> {
        let any: Option<i64> = sqlx::query_scalar("SELECT id FROM alerts WHERE closed_at < $1 LIMIT 1")
            .bind(horizon.millis())
            .fetch_optional(self.database.reader())
            .await?;
        if any.is_none() {
            return Ok(false);
        }
        let mut transaction = self.database.begin_write().await?;
        sqlx::query(
            "DELETE FROM alerts WHERE id IN
                 (SELECT id FROM alerts WHERE closed_at < $1 ORDER BY closed_at, id LIMIT $2)",
        )
        .bind(horizon.millis())
        .bind(STEP)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(true)
    }
}
