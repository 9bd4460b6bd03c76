//! A spool without a disk, for the fleet simulator and for a node that has nowhere to write.

use std::collections::VecDeque;

use crate::ledger::Ledger;
use crate::lost::LostReason;

/// What a record costs beside its bytes.
const OVERHEAD: u64 = 32;

/// A bounded queue of records in memory.
#[derive(Debug)]
pub(crate) struct MemoryLog {
    pub(crate) ledger: Ledger,
    records: VecDeque<Stored>,
    bytes: u64,
    capacity: u64,
    since_key: u64,
}

#[derive(Debug)]
struct Stored {
    sequence: u64,
    key: bool,
    bytes: Box<[u8]>,
}

impl MemoryLog {
    pub(crate) fn new(capacity: u64, epoch: u64) -> Self {
        Self { ledger: Ledger::new(epoch), records: VecDeque::new(), bytes: 0, capacity, since_key: 0 }
    }

    /// Longest record.
    pub(crate) fn max_record(&self) -> usize {
        usize::try_from(self.capacity / 4).unwrap_or(usize::MAX)
    }

    /// A key every eighth of the capacity bounds what dropping the oldest costs.
    pub(crate) fn needs_key(&self) -> bool {
        self.records.is_empty() || self.since_key >= self.capacity / 8
    }

    pub(crate) fn fits(&self, length: usize) -> bool {
        self.bytes + length as u64 + OVERHEAD <= self.capacity
    }

    pub(crate) fn append(&mut self, record: &[u8], key: bool) -> u64 {
        let sequence = self.ledger.take();
        let cost = record.len() as u64 + OVERHEAD;
        self.records.push_back(Stored { sequence, key, bytes: record.into() });
        self.bytes += cost;
        self.since_key = if key { cost } else { self.since_key + cost };
        while self.bytes > self.capacity {
            self.drop_oldest();
        }
        sequence
    }

    /// Forgets what the other side has, but for what the first pending record needs to be read.
    pub(crate) fn retire(&mut self) {
        let pending = self.ledger.first();
        let keep = self.records.iter().rposition(|stored| stored.key && stored.sequence <= pending).unwrap_or(0);
        for stored in self.records.drain(..keep) {
            self.bytes -= stored.bytes.len() as u64 + OVERHEAD;
        }
    }

    /// The first record from `number` on.
    pub(crate) fn at(&self, number: u64) -> Option<(u64, bool, &[u8])> {
        let index = self.records.partition_point(|stored| stored.sequence < number);
        self.records.get(index).map(|stored| (stored.sequence, stored.key, &*stored.bytes))
    }

    pub(crate) fn last_key_at_or_before(&self, number: u64) -> Option<u64> {
        self.records.iter().rev().find(|stored| stored.key && stored.sequence <= number).map(|stored| stored.sequence)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Gives up all through `through`.
    pub(crate) fn discard(&mut self, through: u64, reason: LostReason) {
        let through = through.min(self.ledger.last());
        self.ledger.lose(self.ledger.first(), through, reason);
        let count = self.records.partition_point(|stored| stored.sequence <= through);
        for stored in self.records.drain(..count) {
            self.bytes -= stored.bytes.len() as u64 + OVERHEAD;
        }
    }

    fn drop_oldest(&mut self) {
        let keep = self.records.iter().skip(1).position(|stored| stored.key).map_or(self.records.len(), |at| at + 1);
        for stored in self.records.drain(..keep) {
            self.bytes -= stored.bytes.len() as u64 + OVERHEAD;
            self.ledger.lose(stored.sequence, stored.sequence, LostReason::Overflow);
        }
    }
}
