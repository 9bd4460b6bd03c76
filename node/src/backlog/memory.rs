//! A backlog that is gone with the process, for simulated nodes and for machines without a disk to write to.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Batches between two that decode alone: what an overflow drops at least.
const KEY_EVERY: u64 = 64;

/// Numbered batches, the oldest dropped when there are too many bytes of them.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(super) epoch: u64,
    capacity: u64,
    bytes: u64,
    batches: VecDeque<(bool, Arc<[u8]>)>,
    /// Sequence of the front batch, or of the next one when there is none.
    first: u64,
    last_key: u64,
    /// The hub has everything up to here.
    acknowledged: u64,
    /// Dropped before the hub had it; ends right before `first`.
    dropped: Option<RangeInclusive<u64>>,
    lost: u64,
}

impl Memory {
    pub(super) fn new(epoch: u64, capacity: u64) -> Self {
        let batches = VecDeque::new();
        Self { epoch, capacity, bytes: 0, batches, first: 1, last_key: 0, acknowledged: 0, dropped: None, lost: 0 }
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn last(&self) -> u64 {
        self.first + self.batches.len() as u64 - 1
    }

    pub(super) fn pending(&self) -> u64 {
        self.last() - self.acknowledged.max(self.first - 1).min(self.last())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    pub(super) fn dropped(&self) -> Option<RangeInclusive<u64>> {
        self.dropped.clone()
    }

    pub(super) fn needs_key(&self) -> bool {
        self.last_key == 0 || self.last() - self.last_key >= KEY_EVERY
    }

    pub(super) fn append(&mut self, body: &[u8], key: bool) -> u64 {
        self.bytes += body.len() as u64;
        self.batches.push_back((key, body.into()));
        let sequence = self.last();
        if key {
            self.last_key = sequence;
        }
        while self.bytes > self.capacity && self.batches.len() > 1 {
            self.drop_front();
            // What follows can't be decoded without what was dropped, up to the next key batch.
            while self.batches.len() > 1 && self.batches.front().is_some_and(|(key, _)| !key) {
                self.drop_front();
            }
        }
        sequence
    }

    pub(super) fn get(&self, sequence: u64) -> Option<(bool, &Arc<[u8]>)> {
        let index = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.batches.get(index).map(|(key, body)| (*key, body))
    }

    pub(super) fn last_key_at_or_before(&self, sequence: u64) -> Option<u64> {
        (self.first..=sequence.min(self.last())).rev().find(|at| self.get(*at).is_some_and(|(key, _)| key))
    }

    pub(super) fn acknowledge(&mut self, through: u64) {
        self.acknowledged = self.acknowledged.max(through.min(self.last()));
        self.dropped.take_if(|dropped| *dropped.end() <= through);
        // The key batch that the next one builds on stays: a session starts from it.
        let keep_from = self.last_key_at_or_before(through.saturating_add(1)).unwrap_or(self.first);
        while self.first < keep_from {
            self.pop_front();
        }
    }

    fn drop_front(&mut self) {
        if self.first > self.acknowledged {
            let start = self.dropped.as_ref().map_or(self.first, |dropped| *dropped.start());
            self.dropped = Some(start..=self.first);
            self.lost += 1;
        }
        self.pop_front();
    }

    fn pop_front(&mut self) {
        if let Some((_, body)) = self.batches.pop_front() {
            self.bytes -= body.len() as u64;
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(capacity: u64, keys: &[bool]) -> Memory {
        let mut memory = Memory::new(1, capacity);
        for key in keys {
            memory.append(&[0; 10], *key);
        }
        memory
    }

    #[test]
    fn an_overflow_drops_up_to_the_next_key_batch_and_says_what() {
        let memory = filled(40, &[true, false, false, true, false]);
        assert_eq!((memory.first(), memory.last()), (4, 5));
        assert_eq!((memory.dropped(), memory.lost()), (Some(1..=3), 3));
    }

    #[test]
    fn what_the_hub_has_is_let_go_except_the_key_batch_the_next_builds_on() {
        let mut memory = filled(1000, &[true, false, true, false, false]);
        memory.acknowledge(4);
        assert_eq!((memory.first(), memory.last(), memory.pending()), (3, 5, 1));
        memory.acknowledge(5);
        assert_eq!(memory.pending(), 0);
        assert_eq!(memory.append(&[0; 10], false), 6);
    }

    #[test]
    fn batches_the_hub_has_are_not_lost_when_dropped() {
        let mut memory = filled(1000, &[true, false, false]);
        memory.acknowledge(2);
        memory.capacity = 20;
        memory.append(&[0; 10], true);
        assert_eq!((memory.first(), memory.dropped(), memory.lost()), (4, Some(3..=3), 1));
        memory.acknowledge(3);
        assert_eq!(memory.dropped(), None);
    }

    #[test]
    fn key_batches_are_asked_for_at_the_start_and_now_and_then() {
        let mut memory = filled(1_000_000, &[]);
        assert!(memory.needs_key());
        memory.append(&[0], true);
        for _ in 0..KEY_EVERY {
            assert!(!memory.needs_key());
            memory.append(&[0], false);
        }
        assert!(memory.needs_key());
    }
}
