//! Pushes kept lines on to a Loki, or what takes its push API: each at least once, in the order in which they came.
//!
//! How far it has pushed stands in the database. It begins with what comes after it is first turned on. What upkeep deletes
//! before it is pushed is passed over; upkeep counts it.

mod push;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use store::sqlx::{self, Row};
use store::{Database, StoreError, Transaction};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::writer::LINES;
use crate::client::Tries;
use crate::metrics::Metrics;
use push::{Answer, Target};

pub use push::{Endpoint, LokiError};

/// The row of `hub_settings` that says how far it has pushed: a batch's number.
const SETTING: &str = "loki.through";
const THROUGH: &str = "SELECT value FROM hub_settings WHERE name = $1";
/// How often it looks for new lines when there are none.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Batches in one push: half a MiB of lines at most.
const BATCHES: i64 = 4;
/// Refusals within one push, after which what is still refused is left out as it is: each costs a request.
const MOST_REFUSED: u32 = 64;

/// Pushes lines.
pub struct Pusher {
    database: Database,
    metrics: Arc<Metrics>,
    target: Target,
    tries: Tries,
}

/// Which stream of which container; Loki's labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    tenant: String,
    node: String,
    project: String,
    service: String,
    stream: &'static str,
}

/// A line for Loki: its time in ns, and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    labels: Arc<Labels>,
    at: i64,
    text: String,
}

/// Lines of one push.
#[derive(Default)]
struct Pushed {
    taken: u64,
    /// Left out there.
    refused: u64,
}

impl Pusher {
    /// Pushes what is in `database` to `endpoint`.
    ///
    /// # Errors
    /// When its address can't be used.
    pub fn new(database: Database, metrics: Arc<Metrics>, endpoint: Endpoint) -> Result<Self, LokiError> {
        Ok(Self { database, metrics, target: Target::new(endpoint)?, tries: Tries::new() })
    }

    /// Works until `stop`.
    pub async fn keep(mut self, stop: CancellationToken) {
        loop {
            let wait = match stop.run_until_cancelled(self.go_on()).await {
                None => return,
                Some(Ok(true)) => continue,
                Some(Ok(false)) => Instant::now() + LOOK_EVERY,
                Some(Err(error)) => {
                    self.metrics.loki_failures.inc();
                    tracing::warn!(%error, "log lines were not pushed on; they are pushed again");
                    self.tries.next()
                }
            };
            if stop.run_until_cancelled(tokio::time::sleep_until(wait)).await.is_none() {
                return;
            }
        }
    }

    /// Pushes the next batches; says whether there were any.
    async fn go_on(&mut self) -> Result<bool, PushError> {
        let pushed = self.push_next().await;
        self.tries.went(pushed.is_ok());
        pushed
    }

    async fn push_next(&mut self) -> Result<bool, PushError> {
        let Some(through) = self.through().await? else { return Ok(false) };
        let batches = sqlx::query_scalar::<_, i64>("SELECT id FROM log_batches WHERE id > $1 ORDER BY id LIMIT $2")
            .bind(through)
            .bind(BATCHES)
            .fetch_all(self.database.reader())
            .await
            .map_err(StoreError::from)?;
        let (Some(first), Some(last)) = (batches.first(), batches.last()) else { return Ok(false) };
        let entries = self.entries(*first, *last).await?;
        let Pushed { taken, refused } = self.push(entries).await?;
        self.save(*last).await?;
        // Not before: what breaks off is pushed again from its beginning.
        self.metrics.loki_pushed.inc_by(taken);
        self.metrics.loki_refused.inc_by(refused);
        Ok(true)
    }

    /// Pushes entries; halves what is refused until the refused stand alone, and leaves those out.
    async fn push(&self, entries: Vec<Entry>) -> Result<Pushed, PushError> {
        let (mut pushed, mut refusals) = (Pushed::default(), 0);
        let mut parts = vec![entries];
        while let Some(mut part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            let count = part.len() as u64;
            match self.target.push(body(&part)).await {
                Answer::Taken => pushed.taken += count,
                Answer::NotNow(why) => return Err(PushError::NotNow(why)),
                Answer::Refused(_) if part.len() > 1 && refusals < MOST_REFUSED => {
                    refusals += 1;
                    // The last pushed goes first: order is kept.
                    parts.push(part.split_off(part.len() / 2));
                    parts.push(part);
                }
                Answer::Refused(why) => {
                    refusals += 1;
                    pushed.refused += count;
                    let of = part.first().map(|entry| Arc::clone(&entry.labels));
                    tracing::warn!(
                        lines = count,
                        ?of,
                        why,
                        "log lines were refused by loki-url and are left out there"
                    );
                }
            }
        }
        Ok(pushed)
    }

    /// How far it has pushed; the first time, everything that is there counts as pushed.
    async fn through(&self) -> Result<Option<i64>, StoreError> {
        let through: Option<String> =
            sqlx::query_scalar(THROUGH).bind(SETTING).fetch_optional(self.database.reader()).await?;
        if let Some(through) = through {
            return Ok(through.parse().ok());
        }
        let newest: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(id), 0) FROM log_batches")
            .fetch_one(self.database.reader())
            .await?;
        self.save(newest).await?;
        Ok(Some(newest))
    }

    async fn save(&self, through: i64) -> Result<(), StoreError> {
        let mut transaction = self.database.begin_write().await?;
        sqlx::query(
            "INSERT INTO hub_settings (name, value) VALUES ($1, $2)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(SETTING)
        .bind(through.to_string())
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }

    /// The lines of these batches.
    async fn entries(&self, first: i64, last: i64) -> Result<Vec<Entry>, StoreError> {
        let rows = sqlx::query(
            "SELECT l.tenant, n.name, s.stack, s.service, l.error, l.at, l.text, l.dropped
             FROM log_lines l JOIN log_sources s ON s.id = l.source JOIN nodes n ON n.id = s.node
             WHERE l.id >= $1 AND l.id < $2 ORDER BY l.id",
        )
        .bind(first * LINES)
        .bind((last + 1) * LINES)
        .fetch_all(self.database.reader())
        .await?;
        let mut entries: Vec<Entry> = Vec::with_capacity(rows.len());
        for row in &rows {
            let stream = if row.try_get::<i64, _>(4)? != 0 { "stderr" } else { "stdout" };
            let (tenant, node, project) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let labels = Labels { tenant, node, project, service: row.try_get(3)?, stream };
            // Lines of one source mostly stand together.
            let labels = match entries.last() {
                Some(last) if *last.labels == labels => Arc::clone(&last.labels),
                _ => Arc::new(labels),
            };
            let text = match row.try_get::<i64, _>(7)? {
                0 => row.try_get(6)?,
                1 => "--- 1 line dropped ---".to_owned(),
                dropped => format!("--- {dropped} lines dropped ---"),
            };
            entries.push(Entry { labels, at: row.try_get(5)?, text });
        }
        Ok(entries)
    }
}

/// How far lines have been pushed; `None`: nowhere yet.
pub(super) async fn through(transaction: &mut Transaction) -> Result<Option<i64>, StoreError> {
    let through: Option<String> = sqlx::query_scalar(THROUGH).bind(SETTING).fetch_optional(&mut **transaction).await?;
    Ok(through.and_then(|through| through.parse().ok()))
}

/// A push's JSON (Loki's HTTP API, "Ingest logs").
fn body(entries: &[Entry]) -> serde_json::Value {
    let mut streams: BTreeMap<&Labels, Vec<(i64, &str)>> = BTreeMap::new();
    for entry in entries {
        streams.entry(&entry.labels).or_default().push((entry.at, &entry.text));
    }
    let streams: Vec<serde_json::Value> = streams
        .into_iter()
        .map(|(labels, mut values)| {
            // The two streams of a container may pass each other by a little; within one, order is by time.
            values.sort_by_key(|(at, _)| *at);
            let values: Vec<[String; 2]> =
                values.into_iter().map(|(at, text)| [at.to_string(), text.to_owned()]).collect();
            serde_json::json!({
                "stream": {
                    "tenant": labels.tenant,
                    "node": labels.node,
                    "project": labels.project,
                    "service": labels.service,
                    "stream": labels.stream,
                },
                "values": values,
            })
        })
        .collect();
    serde_json::json!({ "streams": streams })
}

/// Why a push did not go through.
#[derive(Debug, thiserror::Error)]
enum PushError {
    #[error("loki-url {0}")]
    NotNow(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}
