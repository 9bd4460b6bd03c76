//! A spool on a disk that is really full, and a directory that somebody else has.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that can't go on has failed")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hyperfactory_spool::{Entry, FaultKind, LostReason, Options, Overflow, Spool, SpoolError};
use tempfile::TempDir;

const SEGMENT: u64 = 16 << 10;

/// A file system of its own, of one mebibyte, that something else can fill.
struct Disk {
    directory: TempDir,
}

impl Disk {
    fn mount() -> Self {
        let disk = Self { directory: tempfile::tempdir().expect("a directory") };
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(disk.directory.path())
            .output()
            .expect("the program mount can be run");
        assert!(
            mount.status.success(),
            "this test needs root, to mount a small file system that it can fill: {}",
            String::from_utf8_lossy(&mount.stderr)
        );
        disk
    }

    fn options(&self) -> Options {
        let directory = self.directory.path().join("spool");
        Options { segment_bytes: SEGMENT, reserve_bytes: 2 * SEGMENT, ..Options::new(directory, 32 * SEGMENT) }
    }

    fn open(&self) -> Spool {
        Spool::open(self.options(), 1).expect("opened").0
    }

    fn hog(&self) -> PathBuf {
        self.directory.path().join("hog")
    }

    /// Takes all room that is left.
    fn fill(&self) {
        let mut hog = std::fs::OpenOptions::new().create(true).append(true).open(self.hog()).expect("opened");
        for size in [4096, 1] {
            while hog.write_all(&vec![0xaa; size]).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.hog()).expect("removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.directory.path()).status();
    }
}

fn record(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(1000, number as u8);
    bytes
}

fn append(spool: &mut Spool) -> u64 {
    let number = spool.append(&record(spool.last() + 1), spool.needs_key()).expect("appended");
    assert_eq!(number, spool.last());
    number
}

/// Reads everything; gives back how many records there are and which numbers are lost.
fn read(spool: &mut Spool) -> (u64, Vec<(u64, u64, LostReason)>) {
    let mut reader = spool.read_from(spool.first());
    let (mut records, mut lost, mut at) = (0, Vec::new(), spool.first());
    while let Some(entry) = reader.next(spool).expect("readable") {
        match &entry {
            Entry::Record { sequence, bytes, .. } => {
                assert_eq!((*sequence, bytes), (at, &record(at)));
                records += 1;
            }
            Entry::Lost(range) => {
                assert_eq!(range.first, at);
                lost.push((range.first, range.last, range.reason));
            }
        }
        at = entry.next_sequence();
    }
    assert_eq!(at, spool.last() + 1, "every number is accounted for");
    (records, lost)
}

#[test]
fn a_full_disk_costs_the_newest_records_and_heals_by_itself() {
    let disk = Disk::mount();
    let mut spool = disk.open();
    for _ in 0..5 {
        append(&mut spool);
    }
    spool.sync().expect("there is room");
    disk.fill();
    assert_eq!(spool.status().fault, None);

    // The reserve is used up first, and that is told.
    let mut refused = None;
    while refused.is_none() {
        append(&mut spool);
        refused = spool.sync().err();
        let fault = spool.status().fault;
        assert!(spool.last() < 16 || fault.is_some_and(|fault| fault.kind == FaultKind::DiskFull));
    }
    assert!(spool.last() > 25, "two segments were in reserve, and {} records went there", spool.last());
    assert!(matches!(refused, Some(SpoolError::NoSpace { .. })), "{refused:?}");
    let fault = spool.status().fault.expect("a fault");
    assert!(fault.kind == FaultKind::DiskFull && fault.message.contains("free some space"), "{fault:?}");

    // What waits in memory is bounded; beyond that it is lost, by its number.
    while spool.status().lost < 10 {
        append(&mut spool);
        assert!(spool.status().bytes < 2 << 20);
    }
    let first_lost = spool.lost()[0].first;
    assert_eq!((spool.lost()[0].reason, spool.lost()[0].last), (LostReason::DiskFull, spool.last()));
    assert!(spool.sync().is_err());
    assert!(read_durable(&mut spool) < first_lost);

    disk.free();
    spool.sync().expect("there is room again");
    assert_eq!(spool.status().fault, None);
    assert!(spool.needs_key(), "after a loss");
    append(&mut spool);
    spool.sync().expect("there is room");
    let expected = (first_lost, first_lost + 9, LostReason::DiskFull);
    let (records, lost) = read(&mut spool);
    assert_eq!((records, lost.last()), (spool.last() - lost_count(&lost), Some(&expected)));
    drop(spool);
    let mut spool = disk.open();
    assert_eq!(read(&mut spool), (records, lost));
}

#[test]
fn a_spool_that_drops_the_oldest_alone_refuses_on_a_full_disk_and_loses_nothing() {
    let disk = Disk::mount();
    let options = Options { overflow: Overflow::OldestOrRefuse, ..disk.options() };
    let (mut spool, _) = Spool::open(options.clone(), 1).expect("opened");
    disk.fill();
    let refused = loop {
        let number = spool.last() + 1;
        match spool.append(&record(number), true) {
            Ok(taken) => assert!(taken == number && number < 2000),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, SpoolError::NoSpace { .. }), "{refused:?}");
    let last = spool.last();
    assert!(matches!(spool.append(&record(last + 1), true), Err(SpoolError::NoSpace { .. })));
    assert_eq!((spool.last(), spool.status().lost), (last, 0));

    disk.free();
    assert_eq!(spool.append(&record(last + 1), true).expect("there is room again"), last + 1);
    spool.sync().expect("there is room again");
    assert_eq!(read(&mut spool), (last + 1, vec![]));
    drop(spool);

    // When all its room is used, the oldest go.
    let (mut spool, _) = Spool::open(options, 1).expect("opened");
    while spool.status().lost == 0 {
        append(&mut spool);
        spool.sync().expect("there is room");
    }
    let (records, lost) = read(&mut spool);
    assert_eq!((lost.len(), lost[0].2), (1, LostReason::Overflow));
    assert_eq!(records + lost_count(&lost), spool.last());
}

#[test]
fn a_record_that_fits_makes_none_give_way() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = Options { overflow: Overflow::OldestOrRefuse, ..Options::new(directory.path(), 1 << 20) };
    let mut appended = 0;
    // Also across restarts, and whether it waits in memory with others or not.
    for (records, each) in [(200, 1), (300, 40), (2000, 7)] {
        let (mut spool, _) = Spool::open(options.clone(), 1).expect("opened");
        for _ in 0..records {
            let number = spool.last() + 1;
            if !spool.fits(1000) {
                break;
            }
            spool.append(&[7; 1000], true).expect("there is room");
            if number % each == 0 {
                spool.sync().expect("there is room");
            }
            appended += 1;
        }
        spool.sync().expect("there is room");
        assert_eq!((spool.last(), spool.status().lost), (appended, 0));
    }
    let (mut spool, _) = Spool::open(options, 1).expect("opened");
    assert!(appended > 850 && !spool.fits(1000), "{appended}");
    while spool.status().lost == 0 {
        assert!(!spool.fits(1000) && spool.last() < appended + 100);
        spool.append(&[7; 1000], true).expect("the oldest give way");
        spool.sync().expect("there is room");
    }
}

fn lost_count(lost: &[(u64, u64, LostReason)]) -> u64 {
    lost.iter().map(|(first, last, _)| last - first + 1).sum()
}

/// The last number a reader gives for now.
fn read_durable(spool: &mut Spool) -> u64 {
    let mut reader = spool.read_from(spool.first());
    while reader.next(spool).expect("readable").is_some() {}
    reader.position() - 1
}

#[test]
fn on_a_full_disk_a_spool_that_is_drained_loses_nothing() {
    let disk = Disk::mount();
    let mut spool = disk.open();
    append(&mut spool);
    spool.sync().expect("there is room");
    disk.fill();
    for _ in 0..500 {
        let number = append(&mut spool);
        spool.sync().expect("the reserve goes round");
        assert_eq!(read(&mut spool), (1 + number - spool.first(), vec![]));
        spool.acknowledge(number).expect("acknowledged");
    }
    assert_eq!(spool.status().lost, 0);
    drop(spool);
    let mut spool = disk.open();
    assert_eq!((spool.first(), spool.last()), (502, 501));
    append(&mut spool);
    spool.sync().expect("the reserve is still there");
}

#[test]
fn a_spool_that_cannot_begin_says_that_the_disk_is_full() {
    let disk = Disk::mount();
    disk.fill();
    let error = Spool::open(disk.options(), 1).expect_err("refused");
    assert!(matches!(error, SpoolError::NoSpace { .. }), "{error:?}");
    assert!(error.to_string().contains("free some space"), "{error}");
    disk.free();
    assert!(Spool::open(disk.options(), 1).is_ok());
}

#[test]
fn a_disk_that_fills_while_stopped_is_no_reason_not_to_start() {
    let disk = Disk::mount();
    let mut spool = disk.open();
    for _ in 0..40 {
        append(&mut spool);
    }
    spool.sync().expect("there is room");
    drop(spool);
    for entry in std::fs::read_dir(disk.options().directory).expect("listed") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "free") {
            std::fs::remove_file(path).expect("removed");
        }
    }
    disk.fill();
    let mut spool = disk.open();
    assert_eq!(read(&mut spool), (40, vec![]));
    assert_eq!(spool.status().fault.map(|fault| fault.kind), Some(FaultKind::DiskFull));
    disk.free();
    spool.sync().expect("nothing to do but the reserve");
    assert_eq!(spool.status().fault, None);
}

/// Another process that has the lock.
struct Holder(Child);

impl Holder {
    fn of(lock: &Path) -> Self {
        let child = Command::new("flock")
            .arg(lock)
            .args(["sh", "-c", "echo held; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.expect("the program flock can be run");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("read");
        assert_eq!(line, "held\n");
        Self(child)
    }

    fn end(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("ended");
    }
}

#[test]
fn two_processes_cannot_have_one_directory() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = Options::new(directory.path(), 1 << 20);
    let lock = directory.path().join("lock");
    let holder = Holder::of(&lock);
    let error = Spool::open(options.clone(), 1).expect_err("refused");
    assert!(matches!(error, SpoolError::Busy { .. }), "{error:?}");
    assert!(error.to_string().contains("another process"), "{error}");
    holder.end();

    let spool = Spool::open(options.clone(), 1).expect("opened");
    assert!(matches!(Spool::open(options, 1), Err(SpoolError::Busy { .. })));
    let other = Command::new("flock").arg("--nonblock").arg(&lock).arg("true").status().expect("run");
    assert!(!other.success());
    drop(spool);
    assert!(Command::new("flock").arg("--nonblock").arg(&lock).arg("true").status().expect("run").success());
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    for directory in ["/proc/spool", "/dev/null/spool"] {
        let error = Spool::open(Options::new(directory, 1 << 20), 1).expect_err("refused");
        assert!(matches!(error, SpoolError::Directory { .. }), "{error:?}");
        assert!(error.to_string().contains(directory) && error.to_string().contains("writable"), "{error}");
    }
}
