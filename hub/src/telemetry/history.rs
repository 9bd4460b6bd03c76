//! What was measured, over time: ranges out of the stored batches, and their upkeep.

mod series;
mod upkeep;

use std::time::Duration;

use protocol::telemetry::{Kind, Unit};
use protocol::{NodeId, Timestamp};
use store::sqlx::{self, Row};
use store::{Database, StoreError, Transaction};

use series::Collector;

pub use upkeep::Upkeep;

/// Most points of one series in an answer.
pub const MAX_POINTS: usize = 2_000;
/// Longest range of one question.
pub const MAX_RANGE: Duration = Duration::from_secs(31 * 86_400);
/// Rows read at once: of chunks, a few MiB at most.
const PAGE: i64 = 32;

/// The history of all nodes. Clones share it.
#[derive(Clone)]
pub struct History {
    database: Database,
}

/// Which series to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// The metric's name.
    pub metric: String,
    /// Its target (`""`: the host itself), or all of them.
    pub target: Option<String>,
}

impl Selector {
    /// All targets of `metric`.
    pub fn all(metric: &str) -> Self {
        Self { metric: metric.to_owned(), target: None }
    }

    /// One series.
    pub fn one(metric: &str, target: &str) -> Self {
        Self { metric: metric.to_owned(), target: Some(target.to_owned()) }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Range {
    /// Its start.
    pub from: Timestamp,
    /// Its end.
    pub to: Timestamp,
    /// The time that one point stands for. Where points lie much further apart, nothing was measured in between.
    pub step: Duration,
    /// The series, in the order of metric and target.
    pub series: Vec<SeriesPoints>,
}

/// One series of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct SeriesPoints {
    /// The metric's name.
    pub metric: String,
    /// Its target.
    pub target: String,
    /// What the metric counts; a counter's points are that per second.
    pub unit: Unit,
    /// A gauge's points are levels, a counter's are rates.
    pub kind: Kind,
    /// The points, oldest first.
    pub points: Vec<Point>,
}

/// What was measured in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// When the last of it was measured, by the node's clock.
    pub at: Timestamp,
    /// The mean.
    pub mean: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

/// A question that has no answer.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The range is empty, or longer than [`MAX_RANGE`].
    #[error("a range ends after it starts, and spans at most {} days", MAX_RANGE.as_secs() / 86_400)]
    Range,
    /// The hub is stopping.
    #[error("the hub is stopping")]
    Stopped,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for HistoryError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl History {
    /// The history in `database`.
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// The history of one tenant's nodes.
    #[must_use]
    pub fn within(&self, tenant: &str) -> Self {
        Self { database: self.database.within(Some(tenant)) }
    }

    /// What `selectors` measured at `node` from `from` to before `to`, in at most `max_points` steps.
    ///
    /// # Errors
    /// [`HistoryError::Range`], or that the database does not answer.
    pub async fn range(
        &self,
        node: NodeId,
        selectors: &[Selector],
        from: Timestamp,
        to: Timestamp,
        max_points: usize,
    ) -> Result<Range, HistoryError> {
        if to <= from || to.since(from) > MAX_RANGE {
            return Err(HistoryError::Range);
        }
        let steps = max_points.clamp(1, MAX_POINTS) as u32;
        let step = (to.since(from) / steps).max(Duration::from_millis(1));
        let mut collector = Collector::new(selectors.to_vec(), from, to, step);
        // A little earlier: a counter's first rate needs the row before the range.
        let earlier = from.minus(series::RATE_WITHIN);
        let mut snapshot = self.database.begin_read().await?;
        let streams: Vec<i64> = sqlx::query_scalar("SELECT id FROM streams WHERE node = $1 ORDER BY id")
            .bind(node.to_string())
            .fetch_all(&mut *snapshot)
            .await?;
        for stream in streams {
            collector = chunks(&mut snapshot, stream, earlier, to, collector).await?;
            collector = batches(&mut snapshot, stream, earlier, to, collector).await?;
        }
        Ok(Range { from, to, step, series: collector.finish() })
    }
}

async fn chunks(
    snapshot: &mut Transaction,
    stream: i64,
    from: Timestamp,
    to: Timestamp,
    mut collector: Collector,
) -> Result<Collector, HistoryError> {
    let mut after = 0i64;
    loop {
        let rows = sqlx::query(
            "SELECT first_sequence, bodies FROM chunks
             WHERE stream = $1 AND first_sequence > $2 AND last_at >= $3 AND first_at < $4
             ORDER BY first_sequence LIMIT $5",
        )
        .bind(stream)
        .bind(after)
        .bind(from.millis())
        .bind(to.millis())
        .bind(PAGE)
        .fetch_all(&mut **snapshot)
        .await?;
        let Some(last) = rows.last() else { return Ok(collector) };
        after = last.try_get(0)?;
        let chunks = rows.iter().map(|row| row.try_get(1)).collect::<Result<Vec<Vec<u8>>, _>>()?;
        collector = decode(collector, move |collector| {
            for chunk in &chunks {
                collector.chunk(chunk);
            }
        })
        .await?;
    }
}

/// Batches that are in no chunk yet.
async fn batches(
    snapshot: &mut Transaction,
    stream: i64,
    from: Timestamp,
    to: Timestamp,
    collector: Collector,
) -> Result<Collector, HistoryError> {
    let rows = sqlx::query(
        "SELECT body FROM batches WHERE stream = $1 AND first_at < $3 AND sequence >=
             (SELECT MIN(key_sequence) FROM batches WHERE stream = $1 AND last_at >= $2)
         ORDER BY sequence",
    )
    .bind(stream)
    .bind(from.millis())
    .bind(to.millis())
    .fetch_all(&mut **snapshot)
    .await?;
    let bodies = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<Vec<u8>>, _>>()?;
    decode(collector, move |collector| {
        collector.restart();
        for body in &bodies {
            collector.body(body);
        }
    })
    .await
}

/// Decoding a day of a node takes tens of milliseconds: too long for the threads that serve sessions.
async fn decode(
    mut collector: Collector,
    work: impl FnOnce(&mut Collector) + Send + 'static,
) -> Result<Collector, HistoryError> {
    tokio::task::spawn_blocking(move || {
        work(&mut collector);
        collector
    })
    .await
    .map_err(|_| HistoryError::Stopped)
}
