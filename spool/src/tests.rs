//! What the spool promises, tried on real files.

mod bounds;
mod damage;
mod model;

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::rehearsal;
use crate::{Entry, Options, Recovery, Spool};

const EPOCH: u64 = 0xfeed_beef_cafe_f00d;

/// A spool of 8 segments of 4 KiB, two of them in reserve.
pub(crate) fn small(directory: &Path) -> Options {
    Options { segment_bytes: 4096, reserve_bytes: 2 * 4096, ..Options::new(directory, 8 * 4096) }
}

pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir_in(rehearsal::fast()).expect("a directory")
}

pub(crate) fn open(directory: &Path) -> (Spool, Recovery) {
    Spool::open(small(directory), EPOCH).expect("opened")
}

/// The record with this number: its size and its bytes follow from it.
pub(crate) fn record(number: u64) -> Vec<u8> {
    let length = 20 + number as usize * 37 % 150;
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((bytes.len()..length).map(|at| (at as u64 * 7 + number) as u8));
    bytes
}

/// Appends the records of the next `count` numbers, every `key`th a key, and syncs them.
pub(crate) fn fill(spool: &mut Spool, count: u64, key: u64) {
    for number in spool.last() + 1..=spool.last() + count {
        let is_key = spool.needs_key() || number % key == 0;
        let given = match spool.append(&record(number), is_key) {
            Err(crate::SpoolError::NeedsKey) => spool.append(&record(number), true),
            other => other,
        };
        assert_eq!(given.expect("appended"), number);
    }
    spool.sync().expect("synced");
}

/// Everything a reader gives from `from` on, and that it leaves nothing out.
pub(crate) fn drain(spool: &mut Spool, from: u64) -> Vec<Entry> {
    let mut reader = spool.read_from(from);
    let mut entries = Vec::new();
    let mut at = from;
    while let Some(entry) = reader.next(spool).expect("readable") {
        let first = match &entry {
            Entry::Record { sequence, bytes, .. } => {
                assert_eq!(*bytes, record(*sequence), "record {sequence}");
                *sequence
            }
            Entry::Lost(range) => range.first,
        };
        assert_eq!(first, at, "nothing is left out");
        at = entry.next_sequence();
        assert_eq!(at, reader.position());
        entries.push(entry);
    }
    entries
}

/// The numbers that were read as lost.
pub(crate) fn lost(entries: &[Entry]) -> Vec<u64> {
    let ranges = entries.iter().filter_map(|entry| match entry {
        Entry::Lost(range) => Some(range.first..=range.last),
        Entry::Record { .. } => None,
    });
    ranges.flatten().collect()
}

/// The keys that were read.
pub(crate) fn keys(entries: &[Entry]) -> Vec<u64> {
    let key = |entry: &Entry| match entry {
        Entry::Record { sequence, key: true, .. } => Some(*sequence),
        _ => None,
    };
    entries.iter().filter_map(key).collect()
}

pub(crate) fn segments(directory: &Path) -> Vec<PathBuf> {
    named(directory, ".seg")
}

pub(crate) fn named(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("listed").map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<PathBuf> = entries.filter(|path| path.display().to_string().ends_with(ending)).collect();
    paths.sort();
    paths
}

pub(crate) fn copy(from: &Path) -> TempDir {
    let to = scratch();
    for path in named(from, "") {
        std::fs::copy(&path, to.path().join(path.file_name().expect("a name"))).expect("copied");
    }
    to
}
