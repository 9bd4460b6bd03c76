//! Heads of the log, published where somebody who rewrites the database does not reach: so that a cut tail is seen.

mod webhook;

use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::Timestamp;
use serde::{Deserialize, Serialize};
use store::Database;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::chain::{Hash, Head};
use crate::metrics::Metrics;

pub use webhook::{Webhook, WebhookError};

/// How often the database is asked for its head.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// See [`LOOK_EVERY`]; heads can be published this often at most.
const LOOK_LEAST: Duration = Duration::from_millis(100);
/// So many entries after the last published head, the next one is published before its time.
const ENTRIES: i64 = 1_000;

/// A head as it is published: a line of the file, the webhook's body, the API's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Number of the newest entry.
    pub id: i64,
    /// Its hash.
    pub hash: Hash,
    /// When it was the newest, ms since the Unix epoch.
    pub at_ms: i64,
}

impl Published {
    /// `head` as of `now`.
    pub fn of(head: Head, now: Timestamp) -> Self {
        Self { id: head.id, hash: head.hash, at_ms: now.millis() }
    }

    /// What is published.
    pub fn head(&self) -> Head {
        Head { id: self.id, hash: self.hash }
    }
}

/// Publishes heads as metrics and, when told where, in a file and to a webhook.
pub struct Publisher {
    database: Database,
    metrics: Arc<Metrics>,
    file: Option<PathBuf>,
    webhook: Option<Webhook>,
    every: Duration,
    newest: Option<(Head, Instant)>,
    /// Published, and not yet in the file.
    unwritten: Option<Published>,
    /// Published, and not yet taken by the webhook: the newest is enough, it stands for those before it.
    unsent: Option<Published>,
}

impl Publisher {
    /// Publishes a head every `every`, when there is a new one, and whenever a thousand entries are new.
    pub fn new(
        database: Database,
        metrics: Arc<Metrics>,
        file: Option<PathBuf>,
        webhook: Option<Webhook>,
        every: Duration,
    ) -> Self {
        Self { database, metrics, file, webhook, every, newest: None, unwritten: None, unsent: None }
    }

    /// Works until `stop`; the last head goes to the file then.
    pub async fn keep(mut self, clock: impl Fn() -> Timestamp + Send, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_EVERY.min(self.every).max(LOOK_LEAST));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let retry = self.webhook.as_ref().map(Webhook::next_try).filter(|_| self.unsent.is_some());
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.look(clock(), true).await;
                    self.write().await;
                    return;
                }
                () = tokio::time::sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {}
                _ = look.tick() => {
                    self.look(clock(), false).await;
                    self.write().await;
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = self.send() => {}
            }
        }
    }

    async fn look(&mut self, now: Timestamp, last: bool) {
        let head = match super::head(&self.database).await {
            Ok(head) => head,
            Err(error) => {
                warn!(%error, "the audit log's head could not be read");
                return;
            }
        };
        self.metrics.audit_entries.set(head.id);
        let due = self.newest.is_none_or(|(before, at)| {
            head != before && (last || at.elapsed() >= self.every || head.id - before.id >= ENTRIES)
        });
        if !due {
            return;
        }
        self.newest = Some((head, Instant::now()));
        self.metrics.audit_published(&head);
        let published = Published::of(head, now);
        self.unwritten = Some(published).filter(|_| self.file.is_some());
        self.unsent = Some(published).filter(|_| self.webhook.is_some());
    }

    async fn write(&mut self) {
        let (Some(published), Some(path)) = (self.unwritten, self.file.clone()) else { return };
        let shown = path.display().to_string();
        match tokio::task::spawn_blocking(move || append(&path, &published)).await {
            Ok(Ok(())) => self.unwritten = None,
            Ok(Err(error)) => {
                self.metrics.audit_publish_failures.inc();
                error!(path = shown, %error, "the audit log's head could not be written: see audit-heads-file");
            }
            // The hub is stopping.
            Err(_) => {}
        }
    }

    async fn send(&mut self) {
        let (Some(published), Some(webhook)) = (self.unsent, &mut self.webhook) else { return };
        if webhook.next_try() > Instant::now() {
            return;
        }
        match webhook.send(published).await {
            Ok(()) => self.unsent = None,
            Err(error) => {
                self.metrics.audit_publish_failures.inc();
                warn!(%error, "the audit log's head was not taken by the webhook; it is sent again");
            }
        }
    }
}

/// Adds a line, and returns when it is on the disk.
fn append(path: &Path, published: &Published) -> std::io::Result<()> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let mut line = serde_json::to_vec(published)?;
    line.push(b'\n');
    // A line that a crash tore ends here.
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            line.insert(0, b'\n');
        }
    }
    file.write_all(&line)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_does_not_swallow_the_next() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("heads");
        let one = Published { id: 1, hash: Hash([1; 32]), at_ms: 5 };
        let two = Published { id: 2, hash: Hash([2; 32]), at_ms: 6 };
        append(&path, &one).expect("written");
        let whole = std::fs::read(&path).expect("a file");
        std::fs::write(&path, [&whole[..], &whole[..20]].concat()).expect("torn");
        append(&path, &two).expect("written");
        let text = std::fs::read_to_string(&path).expect("a file");
        let lines: Vec<Option<Published>> = text.lines().map(|line| serde_json::from_str(line).ok()).collect();
        assert_eq!(lines, [Some(one), None, Some(two)]);
    }
}
