//! Lines that go to the hub together, in the order in which they came.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message;
use protocol::message::{LogBatch, LogSource};
use protocol::shipping::{MAX_LINES, MAX_SOURCES, MAX_TEXT};
use tokio::time::{Instant, sleep_until};

use super::position::Positions;
use super::reader::Item;
use crate::container::ContainerId;

/// Bytes of lines that go together.
const BYTES: usize = 64 * 1024;
/// What a line takes beside its text, at most, and a source beside its names.
const OVERHEAD: usize = 48;
/// Longest time that a line waits for others to go with it: each batch costs two syncs of the disk.
const GATHER: Duration = Duration::from_secs(1);
/// Of zstd: logs shrink to a fifth or less at the lowest already.
const LEVEL: i32 = 1;

/// What is gathered.
pub(super) struct Batch {
    lines: LogBatch,
    sources: HashMap<ContainerId, u32>,
    positions: Positions,
    bytes: usize,
    most_bytes: usize,
    due: Option<Instant>,
}

/// A batch that goes to the spool.
pub(super) struct Full {
    /// Compressed.
    pub(super) body: Vec<u8>,
    /// How far each of its containers was read.
    pub(super) positions: Positions,
}

impl Batch {
    /// Batches of at most `most` bytes, also when nothing can be compressed.
    pub(super) fn new(most: usize) -> Self {
        Self {
            lines: LogBatch::default(),
            sources: HashMap::new(),
            positions: Positions::new(),
            bytes: 0,
            most_bytes: BYTES.min(most.saturating_sub(MAX_TEXT + 1024)),
            due: None,
        }
    }

    /// Takes one in.
    pub(super) fn add(&mut self, item: Item) {
        let Item { container, source, mut line, position } = item;
        self.positions.insert(container.as_str().to_owned(), position);
        let place = self.lines.sources.len() as u32;
        line.source = *self.sources.entry(container).or_insert_with(|| {
            let (stack, service) = (source.stack.to_string(), source.service.to_string());
            self.bytes += stack.len() + service.len() + OVERHEAD;
            self.lines.sources.push(LogSource { stack, service, number: source.number });
            place
        });
        self.bytes += line.text.len() + OVERHEAD;
        self.lines.lines.push(line);
        self.due.get_or_insert_with(|| Instant::now() + GATHER);
    }

    /// Whether it must go before more comes.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= self.most_bytes || self.lines.lines.len() >= MAX_LINES || self.lines.sources.len() >= MAX_SOURCES
    }

    /// Waits until it is time to take it. Cancel-safe.
    pub(super) async fn due(&self) {
        match self.due {
            _ if self.is_full() => {}
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Takes what is gathered.
    pub(super) fn take(&mut self) -> Full {
        let most = self.most_bytes;
        let Self { lines, positions, .. } = std::mem::replace(self, Self { most_bytes: most, ..Self::new(usize::MAX) });
        let raw = lines.encode_to_vec();
        // Compressing to memory fails only for want of it.
        Full { body: zstd::bulk::compress(&raw, LEVEL).unwrap_or_default(), positions }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use protocol::message::LogLine;
    use protocol::shipping::MAX_RAW;

    use super::super::position::Position;
    use super::*;
    use crate::container::Key;

    fn item(container: &str, text: Vec<u8>) -> Item {
        let source = Arc::new(Key { stack: "shop".into(), service: container.into(), number: 1 });
        let line = LogLine { text, at_ns: i64::MAX, until_ns: i64::MAX, dropped: u64::MAX, ..LogLine::default() };
        Item { container: container.to_owned().into(), source, line, position: Position::default() }
    }

    #[test]
    fn a_source_is_named_once_and_lines_keep_their_order() {
        let mut batch = Batch::new(1 << 20);
        for (container, text) in [("web", "1"), ("api", "2"), ("web", "3")] {
            batch.add(item(container, text.into()));
        }
        let full = batch.take();
        let raw = zstd::bulk::decompress(&full.body, MAX_RAW).unwrap();
        let read = LogBatch::decode(&raw[..]).unwrap();
        let lines: Vec<_> = read.lines.iter().map(|line| (line.source, &line.text[..])).collect();
        assert_eq!(lines, [(0, &b"1"[..]), (1, b"2"), (0, b"3")]);
        assert_eq!((read.sources.len(), full.positions.len()), (2, 2));
        assert!(batch.take().positions.is_empty());
    }

    #[test]
    fn a_batch_fits_whatever_is_in_it() {
        for most in [32 << 10, 1 << 20] {
            let mut batch = Batch::new(most);
            let mut noise = 1u32;
            while !batch.is_full() {
                let mut random = || {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (noise >> 24) as u8
                };
                batch.add(item("web", (0..MAX_TEXT).map(|_| random()).collect()));
            }
            let full = batch.take();
            assert!(full.body.len() <= most, "{} bytes of {most}", full.body.len());
            assert!(zstd::bulk::decompress(&full.body, MAX_RAW).is_ok());
        }
        let mut short = Batch::new(1 << 20);
        while !short.is_full() {
            short.add(item("web", Vec::new()));
        }
        assert!(zstd::bulk::decompress(&short.take().body, MAX_RAW).is_ok());
    }
}
