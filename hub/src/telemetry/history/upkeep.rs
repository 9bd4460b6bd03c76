//! Upkeep of the history, stream by stream and never all at once: old batches become chunks, older chunks go.

use std::time::Duration;

use protocol::Timestamp;
use store::sqlx::{self, Row};
use store::{Database, StoreError};
use tokio_util::sync::CancellationToken;

use crate::upkeep::PAUSE;

/// One round over all streams takes so long; each stream gets its moment in it.
const ROUND: Duration = Duration::from_secs(30 * 60);
/// Batches younger than this stay as they are: charts of the last minutes read them most.
const SETTLE: Duration = Duration::from_secs(10 * 60);
/// A chunk ends at the first key batch after so many bytes.
const CHUNK_BYTES: usize = 64 * 1024;
/// Batches looked at in one step, and rows deleted in one.
const STEP: i64 = 1024;
/// A run of delta batches longer than this stays as it is.
const STEP_MAX: i64 = 16 * STEP;

/// Turns batches into chunks, and deletes what is too old.
#[derive(Clone)]
pub struct Upkeep {
    database: Database,
    retention: Duration,
}

struct Stored {
    sequence: i64,
    key_sequence: i64,
    first_at: i64,
    last_at: i64,
    received_at: i64,
    body: Vec<u8>,
    tenant: String,
}

impl Upkeep {
    /// Upkeep of the history in `database`; what was received longer than `retention` ago is deleted.
    pub fn new(database: Database, retention: Duration) -> Self {
        Self { database, retention }
    }

    /// Goes round all streams until `stop`, which ends it also in the middle of one. What fails is tried again in the next round.
    pub async fn keep(self, clock: impl Fn() -> Timestamp + Send, stop: CancellationToken) {
        loop {
            let streams = self.streams().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the history's upkeep could not begin a round");
                Vec::new()
            });
            let pause = ROUND / u32::try_from(streams.len().max(1)).unwrap_or(u32::MAX);
            for stream in streams.iter().map(Some).chain(streams.is_empty().then_some(None)) {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                let Some(stream) = stream else { continue };
                match stop.run_until_cancelled(self.stream(*stream, clock())).await {
                    Some(Ok(())) => {}
                    Some(Err(error)) => tracing::warn!(%error, stream, "the history's upkeep failed for one node"),
                    None => return,
                }
            }
        }
    }

    /// Does all upkeep that is due, at once.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn run_once(&self, now: Timestamp) -> Result<(), StoreError> {
        for stream in self.streams().await? {
            self.stream(stream, now).await?;
        }
        Ok(())
    }

    async fn streams(&self) -> Result<Vec<i64>, StoreError> {
        let ids = sqlx::query_scalar("SELECT id FROM streams WHERE through > deleted_through ORDER BY id");
        Ok(ids.fetch_all(self.database.reader()).await?)
    }

    async fn stream(&self, stream: i64, now: Timestamp) -> Result<(), StoreError> {
        while self.compact(stream, now.minus(SETTLE)).await? {
            tokio::time::sleep(PAUSE).await;
        }
        while self.delete(stream, now.minus(self.retention)).await? {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Turns the oldest batches into chunks; says whether there may be more.
    async fn compact(&self, stream: i64, settled: Timestamp) -> Result<bool, StoreError> {
        let mut step = STEP;
        loop {
            let batches = self.oldest(stream, step).await?;
            let full = batches.len() as i64 == step;
            let chunks = chunks(&batches, settled.millis(), full);
            if !chunks.is_empty() {
                self.replace(stream, &batches, &chunks).await?;
                return Ok(full);
            }
            if !full || step >= STEP_MAX {
                return Ok(false);
            }
            step *= 4;
        }
    }

    async fn oldest(&self, stream: i64, limit: i64) -> Result<Vec<Stored>, StoreError> {
        let rows = sqlx::query(
            "SELECT sequence, key_sequence, first_at, last_at, received_at, body, tenant FROM batches
             WHERE stream = $1 ORDER BY sequence LIMIT $2",
        )
        .bind(stream)
        .bind(limit)
        .fetch_all(self.database.reader())
        .await?;
        let mut batches = Vec::with_capacity(rows.len());
        for row in &rows {
            batches.push(Stored {
                sequence: row.try_get(0)?,
                key_sequence: row.try_get(1)?,
                first_at: row.try_get(2)?,
                last_at: row.try_get(3)?,
                received_at: row.try_get(4)?,
                body: row.try_get(5)?,
                tenant: row.try_get(6)?,
            });
        }
        Ok(batches)
    }

    /// Moves `batches` into chunks of these places, all or none.
    async fn replace(&self, stream: i64, batches: &[Stored], chunks: &[(usize, usize)]) -> Result<(), StoreError> {
        let mut transaction = self.database.begin_write().await?;
        for part in chunks.iter().map(|(start, end)| &batches[*start..*end]) {
            let (Some(first), Some(last)) = (part.first(), part.last()) else { continue };
            let mut bodies = Vec::with_capacity(part.iter().map(|batch| batch.body.len() + 4).sum());
            for batch in part {
                prost::encoding::encode_varint(batch.body.len() as u64, &mut bodies);
                bodies.extend_from_slice(&batch.body);
            }
            sqlx::query(
                "INSERT INTO chunks
                     (stream, first_sequence, last_sequence, tenant, first_at, last_at, received_at, bodies)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            )
            .bind(stream)
            .bind(first.sequence)
            .bind(last.sequence)
            .bind(&first.tenant)
            .bind(part.iter().map(|batch| batch.first_at).min())
            .bind(part.iter().map(|batch| batch.last_at).max())
            .bind(part.iter().map(|batch| batch.received_at).max())
            .bind(bodies)
            .execute(&mut *transaction)
            .await?;
            sqlx::query("DELETE FROM batches WHERE stream = $1 AND sequence >= $2 AND sequence <= $3")
                .bind(stream)
                .bind(first.sequence)
                .bind(last.sequence)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Deletes the oldest rows from before `horizon`, oldest numbers first; says whether there may be more.
    async fn delete(&self, stream: i64, horizon: Timestamp) -> Result<bool, StoreError> {
        // Numbers go from the front without a hole, up to the last row that is too old, with whatever a clock that was ahead has
        // dated later: so `deleted_through` says all there is to say about what is gone.
        let through: Option<i64> = sqlx::query_scalar(
            "SELECT MAX(last) FROM (
                 SELECT last_sequence AS last, received_at FROM chunks WHERE stream = $1 AND received_at < $2
                 UNION ALL SELECT sequence, received_at FROM batches WHERE stream = $1 AND received_at < $2
                 ORDER BY last LIMIT $3
             ) AS old",
        )
        .bind(stream)
        .bind(horizon.millis())
        .bind(STEP)
        .fetch_one(self.database.reader())
        .await?;
        let Some(through) = through else { return Ok(false) };
        let mut transaction = self.database.begin_write().await?;
        for statement in [
            "DELETE FROM chunks WHERE stream = $1 AND last_sequence <= $2",
            "DELETE FROM batches WHERE stream = $1 AND sequence <= $2",
            "DELETE FROM lost_ranges WHERE stream = $1 AND last_sequence <= $2",
            "UPDATE streams SET deleted_through = $2 WHERE id = $1 AND deleted_through < $2",
        ] {
            sqlx::query(statement).bind(stream).bind(through).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }
}

/// Which of `batches` become chunks, as ranges of their places: each starts at a key batch, has no hole, is settled,
/// and ends where another key batch begins. A group that is still growing stays, and so do small ones until together
/// they are worth a chunk; unless `full` says that there may be more batches behind these.
fn chunks(batches: &[Stored], settled: i64, full: bool) -> Vec<(usize, usize)> {
    let hole_before = |place: usize| batches[place].sequence != batches[place - 1].sequence + 1;
    let starts_anew = |place: usize| batches[place].sequence == batches[place].key_sequence || hole_before(place);
    let mut chunks = Vec::new();
    // Start of the chunk being gathered, where its last whole group ends, and its bytes so far.
    let (mut start, mut whole, mut bytes) = (0, 0, 0);
    for place in 1..batches.len() {
        bytes += batches[place - 1].body.len();
        if batches[place - 1].received_at >= settled {
            break;
        }
        if starts_anew(place) {
            whole = place;
            if bytes >= CHUNK_BYTES || hole_before(place) {
                chunks.push((start, place));
                (start, bytes) = (place, 0);
            }
        }
    }
    if chunks.is_empty() && full && whole > 0 {
        chunks.push((0, whole));
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of `bytes` each, with the sequence of their key; all received at 0.
    fn batches(keys: &[(i64, i64)], bytes: usize) -> Vec<Stored> {
        let stored = |(sequence, key_sequence): &(i64, i64)| Stored {
            sequence: *sequence,
            key_sequence: *key_sequence,
            first_at: 0,
            last_at: 0,
            received_at: 0,
            body: vec![0; bytes],
            tenant: "acme".into(),
        };
        keys.iter().map(stored).collect()
    }

    #[test]
    fn chunks_hold_whole_groups() {
        let big = CHUNK_BYTES / 2;
        let groups = [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5)];
        assert_eq!(chunks(&batches(&groups, big), 1, false), [(0, 2), (2, 4)], "the last group still grows");
        assert_eq!(chunks(&batches(&groups, 10), 1, false), [], "too small to be worth it");
        assert_eq!(chunks(&batches(&groups, 10), 1, true), [(0, 4)], "unless there are many more");
        assert_eq!(chunks(&batches(&groups, big), 0, true), [], "not settled yet");
        let hole = [(1, 1), (2, 1), (5, 5), (6, 5), (7, 7)];
        assert_eq!(chunks(&batches(&hole, 10), 1, false), [(0, 2)], "no chunk goes over a hole");
    }
}
