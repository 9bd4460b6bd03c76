//! Shipped logs in: judged, unpacked, committed in groups, and only then acknowledged.

use std::sync::Arc;

use prost::Message;
use protocol::delivery::{Inbox, Verdict};
use protocol::message::{Acknowledge, Batch, LogBatch, Lost, LostReason, SpoolRange, Upload, upload};
use protocol::shipping::{MAX_LINES, MAX_RAW, MAX_SOURCES, MAX_TEXT};
use protocol::{NodeId, Sequence, SpoolEpoch, TenantId, Timestamp};
use store::group::{GroupError, Limits, Submitter, group_commit};
use store::{Database, StoreError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::writer::{BatchRow, LineRow, Source, TABLES, Writer};
use crate::metrics::Metrics;
use crate::rows;
use crate::streams::{Delivery, IngestError, LostRow, Stream, Streams, TakesIn, storable};

/// Packed batches taken in before a commit, and their bytes: what a session may make the hub hold beside the transport's
/// own window.
const PENDING_BATCHES: usize = 4;
const PENDING_BYTES: usize = 64 * 1024;
/// Sessions whose batches are unpacked at once: 4 MiB in all. Others wait, and their nodes with them.
const UNPACKED: usize = 8;
/// Longest name of a stack or service; Compose makes shorter ones.
const NAME: usize = 100;
/// What begins a control sequence for a terminal (ECMA-48, section 5.4), such as one for colour.
const CSI: &str = "\u{1b}[";
/// So many deliveries in one transaction at most, lest telemetry wait for the one writer.
const GROUP: usize = 4;

/// Where sessions hand in what nodes ship. Clones share it.
#[derive(Clone)]
pub struct Ingest(Arc<Inner>);

struct Inner {
    database: Database,
    submitter: Submitter<Writer>,
    streams: Streams,
    unpacked: Semaphore,
    metrics: Arc<Metrics>,
}

impl Ingest {
    /// Starts taking in: a handle, and the task that commits until `stop`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn start(
        database: Database,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send), StoreError> {
        let streams = Streams::load(&database, &TABLES).await?;
        // A delivery holds a permit: no more can be waiting.
        let limits = Limits { queue: UNPACKED, group: GROUP, ..Limits::default() };
        let (submitter, task) = group_commit(database.clone(), Writer, limits, stop);
        let inner = Inner { database, submitter, streams, unpacked: Semaphore::new(UNPACKED), metrics };
        Ok((Self(Arc::new(inner)), task))
    }

    /// Opens a session's intake, for the spool for logs that the node named in its Hello.
    ///
    /// # Errors
    /// When the database does not answer; it is asked only about a spool that is not the node's newest.
    pub async fn open(&self, node: NodeId, tenant: &TenantId, spool: &SpoolRange) -> Result<Intake, StoreError> {
        let epoch = SpoolEpoch(spool.epoch);
        let stream = self.0.streams.open(&self.0.database, node, tenant, epoch).await?;
        let stored = stream.committed();
        let inbox = Inbox::open(epoch, (stored > 0).then_some(Sequence(stored)));
        Ok(Intake { ingest: self.clone(), stream, inbox, base: stored, pending: Pending::default() })
    }
}

/// One session's way in.
pub struct Intake {
    ingest: Ingest,
    stream: Arc<Stream>,
    inbox: Inbox,
    /// Everything up to here is stored, or in a commit under way.
    base: u64,
    pending: Pending,
}

#[derive(Default)]
struct Pending {
    /// Packed.
    batches: Vec<Batch>,
    lost: Vec<LostRow>,
    bytes: usize,
}

impl Intake {
    /// What to say in the Welcome: how far the hub has this spool.
    pub fn stored(&self) -> Option<Acknowledge> {
        self.inbox.position()
    }

    /// Takes in one upload. A batch waits for [`Intake::commit`].
    ///
    /// # Errors
    /// [`IngestError`]; the session must end.
    pub fn receive(&mut self, upload: Upload, now: Timestamp) -> Result<(), IngestError> {
        match upload.message {
            Some(upload::Message::Batch(batch)) => self.batch(batch),
            Some(upload::Message::Lost(lost)) => self.lost(&lost, now),
            // A newer node's message: skipped, as the contract says. Of logs there is no newest state.
            Some(upload::Message::Snapshot(_)) | None => Ok(()),
        }
    }

    /// Stores what was taken in, together with what other sessions took in. Gives the acknowledgement to send, when
    /// that is news. Dropped before its end, it may still store; the session must then end.
    ///
    /// # Errors
    /// [`IngestError`]; nothing is acknowledged, the session must end, and the node sends it all again.
    pub async fn commit(&mut self, now: Timestamp) -> Result<Option<Acknowledge>, IngestError> {
        if self.pending.batches.is_empty() && self.pending.lost.is_empty() {
            return Ok(None);
        }
        let ingest = Arc::clone(&self.ingest.0);
        let _permit = ingest.unpacked.acquire().await.map_err(|_| GroupError::Stopped)?;
        let through = self.inbox.accepted();
        let Pending { batches: packed, mut lost, .. } = std::mem::take(&mut self.pending);
        let (mut batches, mut lines, mut dropped) = (Vec::with_capacity(packed.len()), 0, 0u64);
        for Batch { sequence, body, .. } in packed {
            match unpack(sequence, &body) {
                Some(batch) => {
                    lines += batch.lines.iter().filter(|line| line.dropped == 0).count() as u64;
                    dropped = batch.lines.iter().map(|line| line.dropped as u64).fold(dropped, u64::saturating_add);
                    batches.push(batch);
                }
                None => {
                    // The node would only send the same again.
                    tracing::warn!(node = %self.stream.node, sequence, "a batch of log lines can't be read and is lost");
                    lost.push(LostRow { range: sequence..=sequence, reason: LostReason::Corrupt, reported_at: now });
                }
            }
        }
        let stream = Arc::clone(&self.stream);
        // Moved on before it is known to be stored: should it fail, whatever follows in this session is a hole and is
        // refused.
        let base = std::mem::replace(&mut self.base, through.0);
        let delivery = Delivery { stream, base, through: through.0, batches, lost, received_at: now };
        ingest.submitter.submit(delivery).await?.map_err(|_| IngestError::OutOfOrder)?;
        ingest.metrics.log_lines.inc_by(lines);
        ingest.metrics.log_lines_dropped.inc_by(dropped);
        Ok(self.inbox.committed(through))
    }

    fn batch(&mut self, batch: Batch) -> Result<(), IngestError> {
        storable(batch.sequence, batch.sequence)?;
        if self.inbox.batch(&batch, true)? == Verdict::Accept {
            self.pending.bytes += batch.body.len();
            self.pending.batches.push(batch);
        }
        Ok(())
    }

    fn lost(&mut self, lost: &Lost, now: Timestamp) -> Result<(), IngestError> {
        storable(lost.first, lost.last)?;
        if let Some(range) = self.inbox.lost(lost)? {
            tracing::warn!(node = %self.stream.node, first = range.start(), last = range.end(), reason = ?lost.reason(),
                "the node has lost batches of log lines");
            self.pending.lost.push(LostRow { range, reason: lost.reason(), reported_at: now });
        }
        Ok(())
    }
}

impl TakesIn for Intake {
    fn receive(&mut self, upload: Upload, now: Timestamp) -> Result<(), IngestError> {
        self.receive(upload, now)
    }

    fn is_full(&self) -> bool {
        self.pending.batches.len() >= PENDING_BATCHES || self.pending.bytes >= PENDING_BYTES
    }

    async fn commit(&mut self, now: Timestamp) -> Result<Option<Acknowledge>, IngestError> {
        self.commit(now).await
    }
}

/// A batch's lines; `None` for one that can't be read, or says what can't be.
fn unpack(sequence: u64, body: &[u8]) -> Option<BatchRow> {
    let raw = zstd::bulk::decompress(body, MAX_RAW).ok()?;
    let batch = LogBatch::decode(&raw[..]).ok()?;
    if batch.sources.len() > MAX_SOURCES || batch.lines.len() > MAX_LINES {
        return None;
    }
    let is_name = |name: &str| (1..=NAME).contains(&name.len()) && !name.contains('\0');
    let sources: Vec<Source> = batch
        .sources
        .into_iter()
        .map(|source| Source { stack: source.stack, service: source.service, number: source.number.into() })
        .collect();
    if sources.iter().any(|source| !is_name(&source.stack) || !is_name(&source.service)) {
        return None;
    }
    let mut lines = Vec::with_capacity(batch.lines.len());
    for line in batch.lines {
        let source = line.source as usize;
        if source >= sources.len() || line.text.len() > MAX_TEXT {
            return None;
        }
        lines.push(LineRow {
            source,
            at: line.at_ns,
            error: line.error,
            text: shown(&line.text),
            cut: line.cut.into(),
            dropped: i64::try_from(line.dropped).unwrap_or(i64::MAX),
            until: if line.dropped > 0 { line.until_ns.max(line.at_ns) } else { line.at_ns },
        });
    }
    Some(BatchRow { sequence, sources, lines })
}

/// A line as it is kept, without what is for a terminal: `ESC[31mERROR` would be the word `31mERROR` to both engines.
fn shown(line: &[u8]) -> String {
    let text = rows::text(&String::from_utf8_lossy(line));
    let Some((before, sequences)) = text.split_once(CSI) else { return text };
    let mut shown = before.to_owned();
    for sequence in sequences.split(CSI) {
        // Parameters, intermediate bytes, one final byte.
        let rest =
            sequence.trim_start_matches(|c| matches!(c, '0'..='?')).trim_start_matches(|c| matches!(c, ' '..='/'));
        shown.push_str(rest.strip_prefix(|c| matches!(c, '@'..='~')).unwrap_or(rest));
    }
    shown
}

#[cfg(test)]
mod tests {
    use protocol::message::{LogLine, LogSource};

    use super::*;

    fn packed(batch: &LogBatch) -> Vec<u8> {
        zstd::bulk::compress(&batch.encode_to_vec(), 1).unwrap()
    }

    fn batch(line: LogLine) -> LogBatch {
        let source = LogSource { stack: "shop".into(), service: "web".into(), number: 1 };
        LogBatch { sources: vec![source], lines: vec![line] }
    }

    #[test]
    fn a_batch_is_read_and_what_is_no_text_is_replaced() {
        let line = LogLine { at_ns: 7, text: b"a\0b\xffc".to_vec(), ..LogLine::default() };
        let row = unpack(3, &packed(&batch(line))).unwrap();
        assert_eq!((row.lines[0].text.as_str(), row.lines[0].until), ("a\u{fffd}b\u{fffd}c", 7));
    }

    #[test]
    fn what_is_for_a_terminal_is_left_out() {
        for (text, expected) in [
            ("\u{1b}[31mERROR\u{1b}[0m: 7 bar", "ERROR: 7 bar"),
            ("\u{1b}[1;38;5;208m\u{1b}[Kwarn\u{1b}[m", "warn"),
            ("a\u{1b}[?25l\u{1b}[2 qb", "ab"),
            ("cut off\u{1b}[3", "cut off"),
            ("none [31m \u{1b}7", "none [31m \u{1b}7"),
            ("broken \u{1b}[31\u{fffd}m", "broken \u{fffd}m"),
        ] {
            assert_eq!(shown(text.as_bytes()), expected);
        }
    }

    #[test]
    fn what_can_not_be_is_not_read() {
        let good = batch(LogLine { text: b"x".to_vec(), ..LogLine::default() });
        assert!(unpack(1, &packed(&good)).is_some());
        let wrong = [
            batch(LogLine { source: 1, ..LogLine::default() }),
            batch(LogLine { text: vec![b'x'; MAX_TEXT + 1], ..LogLine::default() }),
            LogBatch { sources: vec![LogSource::default()], ..good.clone() },
            LogBatch { lines: vec![LogLine::default(); MAX_LINES + 1], ..good.clone() },
            LogBatch { sources: vec![good.sources[0].clone(); MAX_SOURCES + 1], ..good },
        ];
        for wrong in wrong {
            assert!(unpack(1, &packed(&wrong)).is_none());
        }
        assert!(unpack(1, b"no zstd").is_none());
        assert!(unpack(1, &zstd::bulk::compress(&vec![0; MAX_RAW + 1], 1).unwrap()).is_none(), "a bomb");
    }
}
