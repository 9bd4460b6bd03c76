//! Reads a spool in order: records and losses, with nothing between them.

use crate::disk::DiskLog;
use crate::error::SpoolError;
use crate::lost::LostRange;
use crate::memory::MemoryLog;
use crate::spool::{Spool, Store};
use crate::walk::{Place, Walk};

/// A position in a spool. It does not keep the spool from being written, and holds a few kilobytes.
#[derive(Debug)]
pub struct Reader {
    /// The number that comes next.
    at: u64,
    /// What came before `at` is missing, so only a key can follow.
    broken: bool,
    /// The segment being read, by its first number.
    walk: Option<(u64, Walk)>,
    /// What it gives is delivered.
    delivers: bool,
}

/// What a [`Reader`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A record.
    Record {
        /// Its number.
        sequence: u64,
        /// Whether it can be read without the one before it.
        key: bool,
        /// The record, byte for byte as it was appended.
        bytes: Vec<u8>,
    },
    /// Numbers that can no longer be delivered.
    Lost(LostRange),
}

impl Entry {
    /// The number after this entry.
    pub fn next_sequence(&self) -> u64 {
        match self {
            Self::Record { sequence, .. } => sequence + 1,
            Self::Lost(range) => range.last + 1,
        }
    }
}

impl Reader {
    pub(crate) fn new(at: u64) -> Self {
        Self { at: at.max(1), broken: false, walk: None, delivers: false }
    }

    pub(crate) fn delivering(at: u64) -> Self {
        Self { delivers: true, ..Self::new(at) }
    }

    /// The number of the next entry.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next entry that is durable; `None` when there is none for now. Ask again after a sync.
    ///
    /// Numbers that are acknowledged and no longer there are passed over in silence.
    ///
    /// # Errors
    /// When the disk fails. Nothing is passed over by that; ask again later. Damaged records are no error: they come as
    /// [`Entry::Lost`].
    pub fn next(&mut self, spool: &mut Spool) -> Result<Option<Entry>, SpoolError> {
        let (entry, ledger) = match &mut spool.store {
            Store::Disk(log) => (self.next_on_disk(log)?, &mut log.ledger),
            Store::Memory(log) => (self.next_in_memory(log), &mut log.ledger),
        };
        if self.delivers {
            ledger.taken = self.at - 1;
        }
        Ok(entry)
    }

    fn next_in_memory(&mut self, log: &MemoryLog) -> Option<Entry> {
        if let Some(range) = log.ledger.lost.at(self.at) {
            return Some(self.lost(range));
        }
        let (sequence, key, bytes) = log.at(self.at)?;
        self.at = sequence + 1;
        Some(Entry::Record { sequence, key, bytes: bytes.to_vec() })
    }

    fn next_on_disk(&mut self, log: &mut DiskLog) -> Result<Option<Entry>, SpoolError> {
        loop {
            if let Some(range) = log.ledger.lost.at(self.at) {
                if log.unsaved {
                    log.save()?;
                }
                return Ok(Some(self.lost(range)));
            }
            if self.at > log.durable {
                return Ok(None);
            }
            let index = log.locate(self.at);
            let segment_last = index.map_or_else(
                || log.segments.front().map_or(log.durable, |oldest| oldest.first - 1),
                |index| log.last_of(index),
            );
            let last = log.ledger.lost.next_from(self.at).map_or(segment_last, |lost| segment_last.min(lost - 1));
            let found = match index {
                Some(index) => self.find(log, index, last)?,
                None => None,
            };
            match found {
                Some((place, bytes)) if place.header.sequence == self.at => {
                    self.at += 1;
                    self.broken = false;
                    return Ok(Some(Entry::Record { sequence: place.header.sequence, key: place.header.key, bytes }));
                }
                Some((place, _)) => self.give_up(log, index, place.header.sequence - 1)?,
                None => self.give_up(log, index, last)?,
            }
        }
    }

    /// The record at the position or, when that cannot be read, the next key up to `last`; the position in the file is
    /// then in front of it.
    fn find(&mut self, log: &DiskLog, index: usize, last: u64) -> Result<Option<(Place, Vec<u8>)>, SpoolError> {
        let first = log.segments.get(index).map_or(0, |segment| segment.first);
        if self.walk.as_ref().is_none_or(|(open, _)| *open != first) {
            self.walk = log.walk(index)?.map(|walk| (first, walk));
        }
        let Some((_, walk)) = &mut self.walk else { return Ok(None) };
        walk.extend(log.readable_end(index));
        let failed = |source| SpoolError::Io {
            doing: "read",
            path: log.directory.path().join(crate::segment::name(first)),
            source,
        };
        loop {
            let mut next = walk.next().map_err(failed)?;
            if next.is_none() {
                next = walk.resync(self.at).map_err(failed)?;
            }
            let Some(place) = next else { return Ok(None) };
            let header = place.header;
            if header.sequence < self.at {
                continue;
            }
            if header.sequence > last {
                walk.back_to(place);
                return Ok(None);
            }
            if header.key || (header.sequence == self.at && !self.broken) {
                let bytes = walk.body(place).map_err(failed)?.to_vec();
                if header.sequence > self.at {
                    walk.back_to(place);
                }
                return Ok(Some((place, bytes)));
            }
        }
    }

    /// Everything from the position through `last` cannot be read.
    fn give_up(&mut self, log: &mut DiskLog, index: Option<usize>, last: u64) -> Result<(), SpoolError> {
        log.lose_damaged(index, self.at, last)?;
        // What is acknowledged is not lost, only gone.
        let acknowledged = log.ledger.acknowledged;
        if self.at <= acknowledged {
            self.at = last.min(acknowledged) + 1;
        }
        self.broken = true;
        Ok(())
    }

    fn lost(&mut self, range: LostRange) -> Entry {
        let lost = LostRange { first: self.at, ..range };
        self.at = range.last + 1;
        self.broken = true;
        Entry::Lost(lost)
    }
}

/// The last key at or before `number`, where a reader has to begin for `number` to be readable.
pub(crate) fn last_key(log: &DiskLog, number: u64) -> Result<Option<u64>, SpoolError> {
    let number = number.min(log.durable);
    let Some(newest) = log.locate(number) else { return Ok(None) };
    for index in (0..=newest).rev() {
        let Some(mut walk) = log.walk(index)? else { continue };
        let last = log.last_of(index).min(number);
        let failed = |source| SpoolError::Io { doing: "read", path: log.directory.path().to_owned(), source };
        let mut key = None;
        loop {
            let mut next = walk.next().map_err(failed)?;
            if next.is_none() && walk.offset() < log.readable_end(index) {
                next = walk.resync(1).map_err(failed)?;
            }
            match next {
                Some(place) if place.header.sequence > last => break,
                Some(place) if place.header.key => key = Some(place.header.sequence),
                Some(_) => {}
                None => break,
            }
        }
        if key.is_some() {
            return Ok(key);
        }
    }
    Ok(None)
}
