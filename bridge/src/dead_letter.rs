//! Records that Kafka refused for good, or that no route takes, kept on disk with the reason for someone to look at.

use std::path::PathBuf;

use spool::{Entry, Options, Recovery, Spool, SpoolError};

/// Longest reason, in characters.
const LONGEST_REASON: usize = 500;

/// The dead letters. When their room is used up, the oldest give way.
#[derive(Debug)]
pub struct DeadLetters {
    spool: Spool,
    unsaved: bool,
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
        Ok((Self { spool, unsaved: false }, recovery))
    }

    /// As [`Self::open`], to look at them and change nothing.
    ///
    /// # Errors
    /// [`SpoolError`], which says what to do.
    pub fn look(directory: PathBuf, capacity_bytes: u64) -> Result<Self, SpoolError> {
        let (spool, _) = Spool::look(Self::options(directory, capacity_bytes))?;
        Ok(Self { spool, unsaved: false })
    }

    /// How they are laid out.
    pub fn options(directory: PathBuf, capacity_bytes: u64) -> Options {
        Options::new(directory, capacity_bytes)
    }

    /// Takes one; it is durable after [`Self::sync`].
    ///
    /// # Errors
    /// [`SpoolError`], when not even its reason can be kept.
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

    /// Makes durable what was taken.
    ///
    /// # Errors
    /// When the disk is full or fails; the next call tries again.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        if self.unsaved {
            self.spool.sync()?;
            self.unsaved = false;
        }
        Ok(())
    }

    /// All that are there, oldest first, each given to `see`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn each(&mut self, mut see: impl FnMut(DeadLetter)) -> Result<(), SpoolError> {
        let mut reader = self.spool.read_from(self.spool.first());
        while let Some(entry) = reader.next(&mut self.spool)? {
            if let Entry::Record { bytes, .. } = entry
                && let Some(letter) = DeadLetter::decode(&bytes)
            {
                see(letter);
            }
        }
        Ok(())
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
        open().each(|letter| found.push(letter)).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], letter);
        assert!(found[1].reason.ends_with("of 100000 bytes; too large") && found[1].record.len() > 10_000, "{found:?}");
    }
}
