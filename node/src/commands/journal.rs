//! The journal of commands: one append-only file, synced record by record, cut short now and then.
//!
//! A record is its length and its checksum, each four bytes, least significant first, and its bytes. Only the last one can
//! be torn, because each is on the disk before the next is begun; it permitted nothing yet and is dropped. Anything else
//! that can't be read is damage: rather than to guess what was done, the node then carries out nothing, and says of each
//! command that it may have been done.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use prost::Message;
use protocol::CommandId;
use protocol::command::{Ending, MAX_OUTPUT, Phase, Record};
use protocol::message::{CommandOutcome, CommandState};

use crate::file::{self, FileError};

/// A journal is cut short when it is longer than this, and twice as long as when it was last cut short.
const LONG: u64 = 1 << 20;
/// Longest journal that is read: every open command with all its output, several times over.
const LONGEST: u64 = 64 << 20;
/// Longest record: an outcome with all its output.
const LONGEST_RECORD: usize = MAX_OUTPUT + 8 * 1024;
/// Bytes before a record's own.
const HEAD: usize = 8;

const ACCEPTED: u8 = 1;
const STARTED: u8 = 2;
const ENDED: u8 = 3;
const SETTLED: u8 = 4;
const FORGOTTEN: u8 = 5;

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    /// `None`: in memory, gone with the process.
    on_disk: Option<OnDisk>,
}

#[derive(Debug)]
struct OnDisk {
    path: PathBuf,
    file: File,
    /// Where the next record goes.
    length: u64,
    short: u64,
    /// An attempt to write has failed: what it left is cut off before the next one.
    dirty: bool,
}

/// A journal that can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file can't be read or replaced.
    #[error(transparent)]
    File(#[from] FileError),
    /// The disk refused.
    #[error("cannot write {}: check the disk's free space and that this user owns the file", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its bytes are not what was written.
    #[error(
        "{} is damaged at byte {at}, so it can't be told which commands were carried out: move it away when all that the \
         hub has open with this node may be carried out again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: usize,
    },
    /// An earlier write never returned.
    #[error("the journal of commands is lost to this process: restart it")]
    Lost,
}

impl Journal {
    pub(super) fn in_memory() -> Self {
        Self { on_disk: None }
    }

    /// Opens the journal and gives what is in it.
    pub(super) fn open(path: PathBuf) -> Result<(Self, Vec<Record>), JournalError> {
        let bytes = file::read(&path, LONGEST)?.unwrap_or_default();
        let (records, length) = read(&bytes).map_err(|at| JournalError::Damaged { path: path.clone(), at })?;
        let file = open(&path)?;
        let length = length as u64;
        let mut journal = OnDisk { path, file, length, short: length, dirty: length < bytes.len() as u64 };
        journal.clean()?;
        Ok((Self { on_disk: Some(journal) }, records))
    }

    /// Whether it is time to replace it by a shorter one.
    pub(super) fn is_long(&self) -> bool {
        self.on_disk.as_ref().is_some_and(|journal| journal.length > LONG.max(2 * journal.short))
    }

    /// Adds a record; on return it survives a power cut.
    pub(super) fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        let Some(journal) = &mut self.on_disk else { return Ok(()) };
        journal.clean()?;
        let mut bytes = Vec::new();
        write(record, &mut bytes);
        journal.dirty = true;
        let written = journal.file.write_all_at(&bytes, journal.length).and_then(|()| journal.file.sync_data());
        written.map_err(|source| JournalError::Write { path: journal.path.clone(), source })?;
        journal.dirty = false;
        journal.length += bytes.len() as u64;
        Ok(())
    }

    /// Replaces all of it.
    pub(super) fn replace(&mut self, records: &[Record]) -> Result<(), JournalError> {
        let Some(journal) = &mut self.on_disk else { return Ok(()) };
        let mut bytes = Vec::new();
        records.iter().for_each(|record| write(record, &mut bytes));
        file::replace(&journal.path, &bytes)?;
        journal.file = open(&journal.path)?;
        journal.length = bytes.len() as u64;
        journal.short = journal.length;
        Ok(())
    }
}

impl OnDisk {
    fn clean(&mut self) -> Result<(), JournalError> {
        if self.dirty {
            let cut = self.file.set_len(self.length).and_then(|()| self.file.sync_all());
            cut.map_err(|source| JournalError::Write { path: self.path.clone(), source })?;
            self.dirty = false;
        }
        Ok(())
    }
}

/// Opens the file, which a first start makes: durably, or a power cut could take it with all that was written.
fn open(path: &Path) -> Result<File, JournalError> {
    let opened = || {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(file)
    };
    opened().map_err(|source| JournalError::Write { path: path.to_owned(), source })
}

fn write(record: &Record, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend([0; HEAD]);
    let kind = match &record.phase {
        Phase::Accepted => ACCEPTED,
        Phase::Started => STARTED,
        Phase::Ended { .. } => ENDED,
        Phase::Settled(_) => SETTLED,
        Phase::Forgotten => FORGOTTEN,
    };
    out.push(kind);
    out.extend(record.id.to_bytes());
    match &record.phase {
        Phase::Accepted | Phase::Started | Phase::Forgotten => {}
        Phase::Ended { ending, output, dropped } => {
            let outcome = CommandOutcome {
                state: ending.state.into(),
                message: ending.message.clone(),
                output_dropped: *dropped,
                ..CommandOutcome::default()
            };
            let outcome = outcome.encode_to_vec();
            out.extend((outcome.len() as u32).to_le_bytes());
            out.extend(outcome);
            out.extend(output);
        }
        Phase::Settled(state) => out.push(*state as u8),
    }
    let body = out.get(start + HEAD..).unwrap_or_default();
    let head = [(body.len() as u32).to_le_bytes(), crc32c::crc32c(body).to_le_bytes()].concat();
    if let Some(place) = out.get_mut(start..start + HEAD) {
        place.copy_from_slice(&head);
    }
}

/// The records, and where the last whole one ends; the error is where it is damaged.
fn read(bytes: &[u8]) -> Result<(Vec<Record>, usize), usize> {
    let (mut records, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let Some(head) = bytes.get(at..at + HEAD) else { break };
        let (length, checksum) = head.split_at(4);
        let (length, checksum) = (number(length) as usize, number(checksum));
        if length > LONGEST_RECORD {
            return Err(at);
        }
        let end = at + HEAD + length;
        let Some(body) = bytes.get(at + HEAD..end) else { break };
        match parse(body).filter(|_| crc32c::crc32c(body) == checksum) {
            Some(record) => records.push(record),
            // Torn: the file may have grown before its bytes came, or before any of them.
            None if end == bytes.len() => break,
            None if bytes.iter().skip(at).all(|byte| *byte == 0) => break,
            None => return Err(at),
        }
        at = end;
    }
    Ok((records, at))
}

fn parse(body: &[u8]) -> Option<Record> {
    let (kind, rest) = body.split_first()?;
    let (id, rest) = rest.split_at_checked(16)?;
    let phase = match *kind {
        ACCEPTED => Phase::Accepted,
        STARTED => Phase::Started,
        ENDED => {
            let (length, rest) = rest.split_at_checked(4)?;
            let (outcome, output) = rest.split_at_checked(number(length) as usize)?;
            let outcome = CommandOutcome::decode(outcome).ok()?;
            let ending = Ending { state: outcome.state(), message: outcome.message };
            Phase::Ended { ending, output: output.to_vec(), dropped: outcome.output_dropped }
        }
        SETTLED => Phase::Settled(CommandState::try_from(i32::from(*rest.first()?)).ok()?),
        FORGOTTEN => Phase::Forgotten,
        _ => return None,
    };
    Some(Record { id: CommandId::from_bytes(id).ok()?, phase })
}

fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use protocol::Timestamp;

    use super::*;

    fn records() -> Vec<Record> {
        let id = |number| CommandId::new(Timestamp::from_millis(1), [number; 10]);
        let ending = Ending { state: CommandState::Failed, message: "no".into() };
        vec![
            Record { id: id(1), phase: Phase::Accepted },
            Record { id: id(1), phase: Phase::Started },
            Record { id: id(1), phase: Phase::Ended { ending, output: b"line".to_vec(), dropped: 7 } },
            Record { id: id(1), phase: Phase::Settled(CommandState::Failed) },
            Record { id: id(2), phase: Phase::Forgotten },
        ]
    }

    fn written(path: &Path) {
        let (mut journal, before) = Journal::open(path.to_owned()).expect("new");
        assert_eq!(before, []);
        for record in records() {
            journal.append(&record).expect("written");
        }
    }

    #[test]
    fn a_journal_cut_off_anywhere_gives_what_was_whole_and_goes_on_from_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("commands");
        written(&path);
        let whole = std::fs::read(&path).expect("read");
        let (all, _) = read(&whole).expect("good");
        assert_eq!(all, records());
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("cut");
            let (mut journal, mut found) = Journal::open(path.clone()).expect("a torn end is no damage");
            assert!(records().starts_with(&found), "{cut}");
            journal.append(&records()[0]).expect("written");
            found.push(records()[0].clone());
            assert_eq!(Journal::open(path.clone()).expect("good").1, found, "{cut}");
        }
    }

    #[test]
    fn a_journal_that_grew_by_nothing_but_zeros_goes_on_before_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("commands");
        written(&path);
        let whole = std::fs::read(&path).expect("read");
        for zeros in [1, HEAD, HEAD + 1, 33, 4_096] {
            std::fs::write(&path, [&*whole, &vec![0; zeros]].concat()).expect("written");
            let (mut journal, mut found) = Journal::open(path.clone()).expect("a torn end is no damage");
            assert_eq!(found, records(), "{zeros}");
            journal.append(&records()[0]).expect("written");
            found.push(records()[0].clone());
            assert_eq!(Journal::open(path.clone()).expect("good").1, found, "{zeros}");
        }
        // What is whole behind them was on the disk before.
        std::fs::write(&path, [&*whole, &[0; 33], &whole].concat()).expect("written");
        Journal::open(path).expect_err("damaged");
    }

    #[test]
    fn a_wrong_byte_before_the_last_record_is_damage() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("commands");
        written(&path);
        let whole = std::fs::read(&path).expect("read");
        let last = whole.len() - HEAD - 17;
        for place in (HEAD..last).step_by(3) {
            let mut wrong = whole.clone();
            wrong[place] ^= 0x10;
            match read(&wrong) {
                Err(_) => {}
                // A wrong length can make all the rest look like one torn record.
                Ok((found, _)) => assert!(found.len() < records().len() && place % 4 != 1, "{place}"),
            }
        }
        let mut wrong = whole;
        wrong[HEAD] ^= 0x10;
        std::fs::write(&path, wrong).expect("written");
        let error = Journal::open(path).expect_err("damaged").to_string();
        assert!(error.contains("byte 0") && error.contains("move it away"), "{error}");
    }

    #[test]
    fn a_long_journal_is_replaced_by_one_that_says_the_same() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("commands");
        let (mut journal, _) = Journal::open(path.clone()).expect("new");
        let Phase::Ended { ending, .. } = records()[2].phase.clone() else { panic!("an end") };
        let long = Phase::Ended { ending, output: vec![b'x'; MAX_OUTPUT], dropped: 0 };
        while !journal.is_long() {
            journal.append(&Record { id: records()[0].id, phase: long.clone() }).expect("written");
        }
        journal.replace(&records()).expect("replaced");
        journal.append(&records()[0]).expect("written");
        let found = Journal::open(path).expect("good").1;
        assert_eq!((&found[..5], &found[5..]), (&records()[..], &records()[..1]));
    }
}
