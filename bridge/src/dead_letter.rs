//! Records that Kafka refused for good, or that no route takes, kept on disk with the reason for someone to look at.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spool::{Entry, LostRange, Options, Overflow, Recovery, Spool, SpoolError};

use crate::complaint::Complaint;

/// Longest reason, in characters.
const LONGEST_REASON: usize = 500;

/// The dead letters. When their room is used up, the oldest give way, unless what comes is not to displace any; when the disk
/// is full, no more are taken.
#[derive(Debug)]
pub struct DeadLetters {
    spool: Spool,
    unsaved: bool,
    gone: Gone,
    /// How many are gone, when that was told last, and when.
    told: (u64, Complaint),
}

/// What is gone of dead letters; clones share it. Their numbers are their own, from the first dead letter on.
#[derive(Clone, Debug, Default)]
pub struct Gone(Arc<Mutex<(u64, Option<LostRange>)>>);

impl Gone {
    /// How many, and the last range of them.
    pub fn now(&self) -> (u64, Option<LostRange>) {
        *self.known()
    }

    fn known(&self) -> MutexGuard<'_, (u64, Option<LostRange>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its number in the log.
    pub sequence: u64,
    /// Why it is one.
    pub reason: String,
    /// The encoded [`crate::record::Record`], cut where it was too large to be kept as a whole.
    pub record: Vec<u8>,
}

impl DeadLetters {
    /// Opens those in `directory`, or begins.
    ///
    /// # Errors
    /// [`SpoolError`], which says what to do.
    pub fn open(directory: PathBuf, capacity_bytes: u64) -> Result<(Self, Recovery), SpoolError> {
        let (spool, recovery) = Spool::open(Self::options(directory, capacity_bytes), rand::random())?;
        Ok((Self::new(spool), recovery))
    }

    /// As [`Self::open`], to look at them and change nothing.
    ///
    /// # Errors
    /// [`SpoolError`], which says what to do.
    pub fn look(directory: PathBuf, capacity_bytes: u64) -> Result<Self, SpoolError> {
        let (spool, _) = Spool::look(Self::options(directory, capacity_bytes))?;
        Ok(Self::new(spool))
    }

    fn new(spool: Spool) -> Self {
        let told = (spool.status().lost, Complaint::default());
        let letters = Self { spool, unsaved: false, gone: Gone::default(), told };
        letters.note();
        letters
    }

    /// How they are laid out.
    pub fn options(directory: PathBuf, capacity_bytes: u64) -> Options {
        Options { overflow: Overflow::OldestOrRefuse, ..Options::new(directory, capacity_bytes) }
    }

    /// What is gone of them, to be looked at from elsewhere.
    pub fn gone(&self) -> Gone {
        self.gone.clone()
    }

    /// Takes one; it is durable after [`Self::sync`].
    ///
    /// # Errors
    /// [`SpoolError`], when it is not taken: the disk is full or fails.
    pub fn put(&mut self, letter: &DeadLetter) -> Result<(), SpoolError> {
        self.unsaved = true;
        match self.spool.append(&letter.encoded(), true) {
            Err(SpoolError::TooLarge { limit, .. }) => {
                let kept = limit.saturating_sub(LONGEST_REASON * 4 + 64);
                let reason = format!("cut to {kept} of {} bytes; {}", letter.record.len(), letter.reason);
                let record = letter.record.iter().take(kept).copied().collect();
                let cut = DeadLetter { sequence: letter.sequence, reason, record };
                self.spool.append(&cut.encoded(), true).map(drop)
            }
            other => other.map(drop),
        }
    }

    /// Takes one if no older one has to give way to it.
    ///
    /// # Errors
    /// [`SpoolError::Full`] when one would; otherwise as [`Self::put`].
    pub fn put_beside(&mut self, letter: &DeadLetter) -> Result<(), SpoolError> {
        if self.spool.fits(letter.encoded().len().min(self.spool.max_record())) {
            return self.put(letter);
        }
        Err(SpoolError::Full { capacity: self.spool.status().capacity_bytes })
    }

    /// Makes durable what was taken.
    ///
    /// # Errors
    /// When the disk is full or fails; the next call tries again.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        if self.unsaved {
            self.spool.sync()?;
            self.unsaved = false;
            self.note();
            self.tell_what_is_gone();
        }
        Ok(())
    }

    /// All that are there and what is gone of them, oldest first, each given to `see`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn each(&mut self, mut see: impl FnMut(Result<DeadLetter, LostRange>)) -> Result<(), SpoolError> {
        let mut reader = self.spool.read_from(self.spool.first());
        while let Some(entry) = reader.next(&mut self.spool)? {
            match entry {
                Entry::Record { bytes, .. } => {
                    if let Some(letter) = DeadLetter::decode(&bytes) {
                        see(Ok(letter));
                    }
                }
                Entry::Lost(range) => see(Err(range)),
            }
        }
        Ok(())
    }

    fn note(&self) {
        *self.gone.known() = (self.spool.status().lost, self.spool.lost().last().copied());
    }

    fn tell_what_is_gone(&mut self) {
        let (total, last) = self.gone.now();
        if let (true, Some(range)) = (total > self.told.0, last)
            && self.told.1.is_due()
        {
            tracing::warn!(
                more = total - self.told.0,
                total,
                "dead letters gave way to newer ones, the last of them {range}: their room is dead-letter-size"
            );
            self.told.0 = total;
        }
    }
}

impl DeadLetter {
    /// Sequence (8 bytes, little-endian), length of the reason (2 bytes), reason, record.
    fn encoded(&self) -> Vec<u8> {
        let reason: String = self.reason.chars().take(LONGEST_REASON).collect();
        let mut bytes = self.sequence.to_le_bytes().to_vec();
        bytes.extend(u16::try_from(reason.len()).unwrap_or(u16::MAX).to_le_bytes());
        bytes.extend(reason.as_bytes());
        bytes.extend(&self.record);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (sequence, rest) = bytes.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (reason, record) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        let reason = String::from_utf8_lossy(reason).into_owned();
        Some(Self { sequence: u64::from_le_bytes(*sequence), reason, record: record.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letters_are_kept_and_one_too_large_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let open = || DeadLetters::open(directory.path().to_owned(), 1 << 20).unwrap().0;
        let letter = DeadLetter { sequence: 7, reason: "no route matches".into(), record: b"record".to_vec() };
        let large = DeadLetter { sequence: 8, reason: "too large".into(), record: vec![0; 100_000] };
        let mut letters = open();
        letters.put(&letter).unwrap();
        letters.put(&large).unwrap();
        letters.sync().unwrap();
        drop(letters);
        let mut found = Vec::new();
        open().each(|letter| found.push(letter.unwrap())).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], letter);
        assert!(found[1].reason.ends_with("of 100000 bytes; too large") && found[1].record.len() > 10_000, "{found:?}");
    }

    #[test]
    fn dead_letters_that_gave_way_are_counted_and_told_with_their_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let open = || DeadLetters::open(directory.path().to_owned(), 1 << 20).unwrap().0;
        let mut letters = open();
        let gone = letters.gone();
        for sequence in 1001..=3000 {
            letters.put(&DeadLetter { sequence, reason: "refused".into(), record: vec![0; 1000] }).unwrap();
        }
        letters.sync().unwrap();
        let (count, last) = gone.now();
        let range = last.unwrap();
        assert!(count > 500 && (range.first, range.last) == (1, count), "{count}, {range}");
        drop(letters);
        let mut letters = open();
        assert_eq!(letters.gone().now(), (count, last), "also by the next process");
        let mut found = Vec::new();
        letters.each(|letter| found.push(letter.map(|letter| letter.sequence))).unwrap();
        assert_eq!((found[0], found[1], found.len() as u64), (Err(range), Ok(1001 + count), 2001 - count));
    }
}
