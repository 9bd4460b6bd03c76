//! Random lives of a spool, power cuts and failing syncs included, against what was promised.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{scratch, small};
use crate::disk::DiskLog;
use crate::memory::MemoryLog;
use crate::rehearsal::{self, Choices};
use crate::spool::Store;
use crate::{Entry, LostReason, Options, Overflow, Reader, Spool, SpoolError};

#[derive(Clone, Debug)]
enum Step {
    Append {
        length: usize,
        key: bool,
    },
    Sync,
    /// A sync of a shared spool: meanwhile others append, read and acknowledge.
    Share {
        appends: usize,
        reads: usize,
        short: u64,
    },
    FailSyncs(usize),
    Read(usize),
    Acknowledge(u64),
    /// What is acknowledged is kept beyond the process's end.
    Note,
    /// The oldest so many, up to the next key, are given up.
    Discard(u64),
    Reopen,
    /// The process is killed after some operations on files, while one of these is done; the machine goes on.
    Kill {
        during: During,
        operations: usize,
    },
    /// A power cut after some operations on files, while one of these is done.
    PowerCut {
        during: During,
        operations: usize,
        seed: u64,
    },
}

#[derive(Clone, Copy, Debug)]
enum During {
    Nothing,
    Writing,
    Acknowledging,
    Noting,
    Discarding,
    Opening,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0usize..700, prop::bool::weighted(0.2)).prop_map(|(length, key)| Step::Append { length, key }),
        4 => Just(Step::Sync),
        4 => (0usize..4, 0usize..20, 0u64..20).prop_map(|(appends, reads, short)| Step::Share { appends, reads, short }),
        1 => (1usize..8).prop_map(Step::FailSyncs),
        3 => (1usize..20).prop_map(Step::Read),
        2 => (0u64..20).prop_map(Step::Acknowledge),
        2 => Just(Step::Note),
        1 => (0u64..30).prop_map(Step::Discard),
        1 => Just(Step::Reopen),
        2 => (during(), 0usize..30).prop_map(|(during, operations)| Step::Kill { during, operations }),
        3 => (during(), 0usize..30, any::<u64>())
            .prop_map(|(during, operations, seed)| Step::PowerCut { during, operations, seed }),
    ]
}

fn during() -> impl Strategy<Value = During> {
    prop_oneof![
        Just(During::Nothing),
        Just(During::Writing),
        Just(During::Writing),
        Just(During::Acknowledging),
        Just(During::Noting),
        Just(During::Discarding),
        Just(During::Opening)
    ]
}

/// A spool and what is known about it from outside.
struct Life {
    overflow: Overflow,
    directory: TempDir,
    spool: Option<Spool>,
    reader: Reader,
    /// The last entry of `reader` was the record before its position.
    unbroken: bool,
    appended: BTreeMap<u64, (bool, Vec<u8>)>,
    records: u64,
    /// Numbers that a sync made durable.
    promised: BTreeSet<u64>,
    /// What was read of each number; `None` is a loss.
    delivered: BTreeMap<u64, Option<Vec<u8>>>,
    acknowledged: u64,
    /// What of that outlives the process.
    noted: u64,
}

impl Life {
    fn begin() -> Self {
        Self::with(Overflow::DropOldest)
    }

    fn with(overflow: Overflow) -> Self {
        let directory = scratch();
        rehearsal::watch(directory.path());
        let (spool, _) = Spool::open(Options { overflow, ..small(directory.path()) }, 1).expect("opened");
        Self {
            overflow,
            directory,
            reader: spool.read_from(1),
            unbroken: false,
            spool: Some(spool),
            appended: BTreeMap::new(),
            records: 0,
            promised: BTreeSet::new(),
            delivered: BTreeMap::new(),
            acknowledged: 0,
            noted: 0,
        }
    }

    fn options(&self) -> Options {
        Options { overflow: self.overflow, ..small(self.directory.path()) }
    }

    fn spool(&mut self) -> &mut Spool {
        self.spool.as_mut().expect("open")
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Append { length, key } => self.append(length, key),
            Step::Sync => self.sync(),
            Step::Share { appends, reads, short } => self.share(appends, reads, short),
            Step::FailSyncs(count) => rehearsal::fail_syncs(count),
            Step::Read(count) => {
                for _ in 0..count {
                    if !self.read() {
                        break;
                    }
                }
            }
            Step::Acknowledge(short) => {
                let through = (self.reader.position() - 1).saturating_sub(short);
                self.acknowledged = self.acknowledged.max(through);
                // A disk that fails is no reason not to know.
                let _ = self.spool().acknowledge(through);
                assert_eq!(self.spool().acknowledged(), self.acknowledged);
            }
            Step::Note => {
                // A disk that fails takes note later.
                if self.spool().note_acknowledged().is_ok() {
                    self.noted = self.acknowledged;
                }
            }
            Step::Discard(count) => {
                let spool = self.spool();
                let key = spool.last_key_at_or_before(spool.first() + count).expect("readable");
                // A disk that fails may know of the loss later than the reader.
                let _ = key.map(|key| spool.discard(key - 1, LostReason::Expired));
            }
            Step::Reopen => {
                rehearsal::fail_syncs(0);
                self.spool = None;
                self.reopen(None);
                assert_eq!(self.spool().acknowledged(), self.acknowledged, "a clean end keeps acknowledgements");
            }
            Step::Kill { during, operations } => {
                let promised = self.promised.clone();
                rehearsal::kill_after(operations, || self.work(during));
                self.promised = promised;
                self.kill();
                rehearsal::fail_syncs(0);
                self.reopen(None);
            }
            Step::PowerCut { during, operations, seed } => {
                rehearsal::fail_syncs(0);
                self.cut(during, operations, seed);
            }
        }
    }

    fn work(&mut self, during: During) {
        match during {
            During::Nothing => {}
            During::Writing => {
                (0..12).for_each(|_| self.append(300, false));
                self.sync();
            }
            During::Acknowledging => self.take(Step::Acknowledge(1)),
            During::Noting => {
                self.take(Step::Note);
                self.take(Step::Acknowledge(0));
                self.take(Step::Note);
            }
            During::Discarding => self.take(Step::Discard(15)),
            During::Opening => {
                self.spool = None;
                self.spool = Some(Spool::open(self.options(), 2).expect("opened").0);
            }
        }
    }

    /// Ends the spool without its farewell.
    fn kill(&mut self) {
        if let Some(spool) = &mut self.spool {
            drop(std::mem::replace(&mut spool.store, Store::Memory(MemoryLog::new(1, 1))));
        }
        self.spool = None;
    }

    /// Cuts the power in the midst of something. What that has promised comes too late for anybody to hear.
    fn cut(&mut self, during: During, operations: usize, seed: u64) {
        let promised = self.promised.clone();
        rehearsal::cut_after(operations, Choices::new(seed.rotate_left(17)));
        self.work(during);
        self.promised = promised;
        let after = rehearsal::cut(&mut Choices::new(seed));
        self.spool = None;
        self.reopen(Some(after));
    }

    fn append(&mut self, length: usize, key: bool) {
        self.records += 1;
        let mut bytes = self.records.to_le_bytes().to_vec();
        bytes.resize(8 + length, self.records as u8);
        let (last, needs_key) = (self.spool().last(), self.spool().needs_key());
        let (given, key) = match self.spool().append(&bytes, key) {
            Err(SpoolError::Syncing) => return,
            // What drops the newest for want of room drops nothing for a disk that fails: that is the caller's to try again.
            Err(SpoolError::Io { .. }) if self.overflow == Overflow::DropNewest => return,
            Err(SpoolError::NeedsKey) => {
                assert!(!key && self.spool().needs_key());
                match self.spool().append(&bytes, true) {
                    Err(SpoolError::Syncing) => return,
                    Err(SpoolError::Io { .. }) if self.overflow == Overflow::DropNewest => return,
                    other => (other.expect("a key is always taken"), true),
                }
            }
            other => {
                assert!(key || !needs_key, "a delta was taken where a key was needed");
                (other.expect("appended"), key)
            }
        };
        assert_eq!(given, last + 1);
        assert!(!self.promised.contains(&given) && !self.delivered.contains_key(&given), "{given} is used twice");
        self.appended.insert(given, (key, bytes));
    }

    fn sync(&mut self) {
        let last = self.spool().last();
        let synced = self.spool().sync();
        self.synced(synced.is_ok(), last);
    }

    fn share(&mut self, appends: usize, reads: usize, short: u64) {
        let last = self.spool().last();
        let flight = match self.log().begin_flush() {
            Ok(Some(flight)) => flight,
            Ok(None) => return self.sync(),
            Err(error) => {
                self.log().note(&error);
                return;
            }
        };
        (0..appends).for_each(|_| self.append(200, true));
        assert!(matches!(self.spool().sync(), Err(SpoolError::Syncing)));
        self.take(Step::Read(reads));
        self.take(Step::Acknowledge(short));
        let written = flight.write();
        let flushed = self.log().end_flush(flight, written);
        let synced = self.log().after_flush(flushed);
        self.synced(synced.is_ok(), last);
    }

    fn log(&mut self) -> &mut DiskLog {
        match &mut self.spool().store {
            Store::Disk(log) => log,
            Store::Memory(_) => panic!("a spool on disk"),
        }
    }

    /// Takes note of a sync after `last` was appended.
    fn synced(&mut self, synced: bool, last: u64) {
        if synced {
            let spool = self.spool.as_ref().expect("open");
            let is_lost = |number: u64| spool.lost().iter().any(|range| (range.first..=range.last).contains(&number));
            let durable = self
                .appended
                .range(self.acknowledged + 1..(last + 1).max(self.acknowledged + 1))
                .map(|(number, _)| *number);
            self.promised.extend(durable.filter(|number| !is_lost(*number)));
            assert_eq!(spool.status().fault.filter(|fault| fault.kind == crate::FaultKind::Io), None);
        } else {
            assert!(self.spool().status().fault.is_some());
        }
    }

    /// Reads one entry, and judges it.
    fn read(&mut self) -> bool {
        let at = self.reader.position();
        let spool = self.spool.as_mut().expect("open");
        // A failing disk is tried again; nothing is passed over.
        let Ok(Some(entry)) = self.reader.next(spool) else { return false };
        match entry {
            Entry::Record { sequence, key, bytes } => {
                if sequence > at {
                    assert!(sequence <= self.acknowledged + 1, "{at} is passed over");
                    self.unbroken = false;
                }
                assert!(sequence >= at);
                assert!(key || self.unbroken, "{sequence} needs its predecessor");
                assert_eq!(self.appended.get(&sequence), Some(&(key, bytes.clone())), "{sequence} is another record");
                if let Some(before) = self.delivered.insert(sequence, Some(bytes.clone())) {
                    // What was given up and is acknowledged may still be there for who begins at the key before.
                    let given_up = before.is_none() && sequence <= self.acknowledged;
                    assert!(given_up || before == Some(bytes), "{sequence} was delivered otherwise before");
                }
                self.unbroken = true;
            }
            Entry::Lost(range) => {
                assert!(range.first == at || (range.first > at && range.first <= self.acknowledged + 1));
                assert_eq!(range.last + 1, self.reader.position());
                for number in range.first..=range.last {
                    let given_up = match self.overflow {
                        Overflow::DropOldest => matches!(range.reason, LostReason::Overflow | LostReason::Expired),
                        _ => range.reason == LostReason::Expired,
                    };
                    let excused = given_up || !self.promised.contains(&number);
                    assert!(excused, "{number} was promised and is lost: {range}");
                    self.delivered.insert(number, None);
                }
                self.unbroken = false;
            }
        }
        true
    }

    /// Opens the spool, in another directory when there was a power cut, and reads it through.
    fn reopen(&mut self, after: Option<TempDir>) {
        let cut = after.is_some();
        if let Some(after) = after {
            self.directory = after;
            rehearsal::watch(self.directory.path());
        }
        let (spool, recovery) = Spool::open(self.options(), 2).expect("opened");
        assert_eq!(recovery.fresh_epoch, None);
        assert!((if cut { 0 } else { self.noted }..=self.acknowledged).contains(&spool.acknowledged()));
        assert!(spool.last() >= self.promised.last().copied().unwrap_or(0));
        let begin = spool.last_key_at_or_before(spool.first()).expect("readable").unwrap_or(spool.first());
        self.reader = spool.read_from(begin);
        self.unbroken = true;
        if spool.epoch() != 1 {
            assert!(self.promised.is_empty() && self.delivered.is_empty(), "an epoch that promised anything is kept");
        }
        self.acknowledged = spool.acknowledged();
        self.noted = self.acknowledged;
        self.spool = Some(spool);
        while self.read() {}
        let promised = self.promised.last().copied().unwrap_or(0);
        assert!(self.reader.position() > promised, "everything promised is delivered or lost");
        let last = self.spool().last();
        self.appended.retain(|number, _| *number <= last);
        // What is still there is durable now.
        let first = self.spool().first();
        let kept = self.delivered.range(first..).filter(|(_, record)| record.is_some());
        self.promised.extend(kept.map(|(number, _)| *number));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn what_was_promised_is_delivered_or_its_loss_is_reported(
        overflow in prop_oneof![Just(Overflow::DropOldest), Just(Overflow::DropNewest)],
        steps in prop::collection::vec(step(), 1..250),
    ) {
        let mut life = Life::with(overflow);
        for step in steps {
            life.take(step);
        }
        rehearsal::fail_syncs(0);
        life.sync();
        life.take(Step::Reopen);
    }
}

#[test]
fn a_segment_that_fails_a_sync_is_left_and_nothing_is_lost() {
    let mut life = Life::begin();
    for _ in 0..5 {
        life.append(100, false);
    }
    life.sync();
    life.append(100, false);
    life.append(100, false);
    rehearsal::fail_syncs(1);
    life.sync();
    assert!(life.promised.contains(&7), "the next segment took them");
    assert_eq!(super::segments(life.directory.path()).len(), 2);
    for seed in 0..20 {
        let after = rehearsal::cut(&mut Choices::new(seed * 7919));
        let (mut spool, _) = Spool::open(small(after.path()), 2).expect("opened");
        let mut reader = spool.read_from(1);
        let mut numbers = Vec::new();
        while let Some(Entry::Record { sequence, .. }) = reader.next(&mut spool).expect("readable") {
            numbers.push(sequence);
        }
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
        rehearsal::watch(life.directory.path());
    }
}

#[test]
fn a_disk_that_fails_every_sync_is_reported_and_tried_again() {
    let mut life = Life::begin();
    life.append(100, true);
    rehearsal::fail_syncs(usize::MAX);
    let error = life.spool().sync().expect_err("refused");
    assert!(matches!(error, SpoolError::Io { doing: "sync" | "allocate", .. }), "{error}");
    let fault = life.spool().status().fault.expect("a fault");
    assert_eq!(fault.kind, crate::FaultKind::Io);
    assert!(fault.message.contains("check the disk"), "{}", fault.message);
    rehearsal::fail_syncs(0);
    life.append(100, false);
    life.sync();
    assert_eq!(life.promised.len(), 2);
    assert_eq!(life.spool().status().fault, None);
}

/// A segment that failed a sync has records of which nobody knows; they must not come back in place of later ones.
#[test]
fn what_a_failed_segment_still_holds_does_not_come_back() {
    for seed in 0..400u64 {
        let mut life = Life::begin();
        [609, 617, 17, 529].into_iter().for_each(|length| life.append(length, false));
        life.sync();
        rehearsal::fail_syncs(2);
        [257, 553, 113, 545, 0].into_iter().for_each(|length| life.append(length, false));
        rehearsal::fail_syncs(0);
        life.cut(During::Writing, (seed % 16) as usize, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        rehearsal::fail_syncs(2);
        life.append(0, false);
        life.sync();
        life.cut(During::Nothing, 0, seed.wrapping_mul(0xd134_2543_de82_ef95));
    }
}

#[test]
fn a_loss_is_durable_before_anybody_hears_of_it() {
    let mut life = Life::begin();
    life.append(100, true);
    life.sync();
    // The segment is full, the disk fails, and the record that would begin the next has no place.
    rehearsal::fail_syncs(usize::MAX);
    while life.spool().status().lost == 0 {
        life.append(600, true);
    }
    rehearsal::fail_syncs(0);
    let lost = life.spool().lost()[0];
    // No sync by the caller, and the cursor fails when the next segment is made, after that was allocated and got its
    // header: only the reader is left to save it.
    rehearsal::fail_syncs_after(2, 1);
    while life.reader.position() <= lost.last {
        life.append(600, true);
        while life.read() {}
    }
    assert_eq!(life.delivered.get(&lost.last), Some(&None));
    for seed in 0..20u64 {
        let after = rehearsal::cut(&mut Choices::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let (spool, _) = Spool::open(small(after.path()), 2).expect("opened");
        assert!(spool.last() >= lost.last, "{} is not used again", lost.last);
        assert!(spool.lost().iter().any(|range| range.first <= lost.first && lost.last <= range.last));
    }
}

#[test]
fn a_cursor_that_failed_a_sync_is_made_anew() {
    let mut life = Life::begin();
    life.append(100, true);
    life.sync();
    let cursor = life.directory.path().join("cursor");
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&cursor).expect("metadata"));
    let before = inode();
    rehearsal::fail_syncs(1);
    assert!(life.spool().acknowledge(40).is_err());
    assert!(life.spool().status().fault.is_some());
    assert_eq!(inode(), before);
    life.spool().sync().expect("saved elsewhere");
    assert_ne!(inode(), before);
    assert_eq!(life.spool().status().fault, None);
}
