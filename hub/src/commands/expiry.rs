//! Deadlines: one task for all of them, which judges rows and nothing else, and has sessions look at those they may have missed.

use std::time::Duration;

use protocol::{NodeId, Timestamp};
use store::sqlx::{self, Row};
use store::{StoreError, Transaction};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Commands, command_id, unreadable};

/// At least this often it looks: a command whose node went away after its deadline is then given up.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How long the nodes of a hub that just started have to come back, before it gives up what they have.
const COME_BACK_WITHIN: Duration = Duration::from_secs(60);
/// Commands read at once.
const AT_ONCE: i64 = 1_000;

/// Expires what has not been handed over by its deadline, and gives up what is with a node that is away.
pub(super) async fn keep(commands: Commands, now: impl Fn() -> Timestamp, stop: CancellationToken) {
    let began = Instant::now();
    let mut reminded = began;
    loop {
        let wait = match commands.judge(now(), began.elapsed() >= COME_BACK_WITHIN).await {
            Ok(wait) => wait,
            Err(error) => {
                warn!(%error, "deadlines of commands were not judged");
                LOOK_EVERY
            }
        };
        if reminded.elapsed() >= LOOK_EVERY {
            reminded = Instant::now();
            if let Err(error) = commands.remind().await {
                warn!(%error, "sessions were not reminded of commands");
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = commands.0.sooner.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

impl Commands {
    /// Judges all that is past its deadline, and says when to look again. `give_up`: what is with nodes that are away, too.
    ///
    /// # Errors
    /// When it could not be stored.
    pub async fn judge(&self, now: Timestamp, give_up: bool) -> Result<Duration, StoreError> {
        let (steady, database) = (self.0.clock.now(), &self.0.database);
        let mut changed: Vec<NodeId> = Vec::new();
        let mut transaction = database.begin_write().await?;
        let expired = sqlx::query(
            "UPDATE commands SET state = 'expired', ended_at = $2, message = 'its node was not there in time'
             WHERE state = 'queued' AND deadline <= $1 RETURNING node",
        )
        .bind(steady.millis())
        .bind(now.millis())
        .fetch_all(&mut *transaction)
        .await?;
        for row in &expired {
            changed.push(row.try_get::<String, _>(0)?.parse().map_err(unreadable)?);
        }
        if give_up {
            self.give_up(&mut transaction, steady, now, &mut changed).await?;
        }
        let next: Option<i64> = sqlx::query(
            "SELECT MIN(deadline) FROM commands WHERE state IN ('queued', 'delivered', 'running') AND deadline > $1",
        )
        .bind(steady.millis())
        .fetch_one(&mut *transaction)
        .await?
        .try_get(0)?;
        transaction.commit().await?;
        for node in changed {
            // Nobody listening is fine.
            let _ = self.0.changes.send(node);
        }
        let next = next.map_or(LOOK_EVERY, |at| Timestamp::from_millis(at).since(steady));
        Ok(next.clamp(Duration::from_millis(1), LOOK_EVERY))
    }

    /// Gives up what is past its deadline with nodes that are away.
    async fn give_up(
        &self,
        transaction: &mut Transaction,
        steady: Timestamp,
        now: Timestamp,
        changed: &mut Vec<NodeId>,
    ) -> Result<(), StoreError> {
        let mut after = (i64::MIN, String::new());
        loop {
            let overdue = sqlx::query(
                "SELECT id, node, deadline FROM commands WHERE state IN ('delivered', 'running') AND deadline <= $1
                   AND (deadline > $2 OR deadline = $2 AND id > $3)
                 ORDER BY deadline, id LIMIT $4",
            )
            .bind(steady.millis())
            .bind(after.0)
            .bind(&after.1)
            .bind(AT_ONCE)
            .fetch_all(&mut **transaction)
            .await?;
            for row in &overdue {
                after = (row.try_get(2)?, row.try_get(0)?);
                let id = command_id(&after.1)?;
                let node: NodeId = row.try_get::<String, _>(1)?.parse().map_err(unreadable)?;
                // A node that is there says itself how it goes.
                if self.0.sessions.has(node) {
                    continue;
                }
                // Its node may have come back meanwhile, also to another hub.
                let given_up = sqlx::query(
                    "UPDATE commands SET state = 'unknown', ended_at = $2,
                       message = 'its node went away with it and has not told what came of it; when it is back, it will'
                     WHERE id = $1 AND state IN ('delivered', 'running') AND told_at IS NULL",
                )
                .bind(&after.1)
                .bind(now.millis())
                .execute(&mut **transaction)
                .await?;
                if given_up.rows_affected() == 1 {
                    info!(command = %id, %node, "a command's node is away past its deadline");
                    changed.push(node);
                }
            }
            if (overdue.len() as i64) < AT_ONCE {
                return Ok(());
            }
        }
    }
}
