//! Damaged, torn, cut and foreign files cost what they must and no more.

use std::ops::RangeInclusive;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::{EPOCH, drain, fill, keys, lost, named, open, record, scratch, segments, small};
use crate::rehearsal;
use crate::segment::{self, HEADER, RECORD_HEADER};
use crate::{FaultKind, LostReason, Spool};

/// Three segments and a bit, a key about every fifth record, as a crash would leave them.
fn written() -> (TempDir, u64) {
    let directory = scratch();
    let (mut spool, _) = open(directory.path());
    while segments(directory.path()).len() < 4 {
        fill(&mut spool, 1, 5);
    }
    fill(&mut spool, 6, 5);
    let last = spool.last();
    (super::copy(directory.path()), last)
}

/// Each record of the segment that begins with `first`, and where it is.
fn places(first: u64, last: u64) -> Vec<(u64, RangeInclusive<u64>, u64)> {
    let mut offset = HEADER;
    let mut places = Vec::new();
    for number in first..=last {
        let (length, size) = (record(number).len() as u64, segment::record_size(record(number).len()));
        places.push((number, offset..=offset + RECORD_HEADER as u64 + length - 1, offset + size));
        offset += size;
    }
    places
}

fn first_of(path: &Path) -> u64 {
    segment::first_of(&path.file_name().expect("a name").to_string_lossy()).expect("a segment")
}

#[test]
fn a_bit_turned_anywhere_costs_the_records_up_to_the_next_key() {
    let (directory, last) = written();
    let paths = segments(directory.path());
    let all_keys = keys(&drain(&mut open(directory.path()).0, 1));
    // A full segment in the middle, and the newest.
    for index in [1, paths.len() - 1] {
        let newest = index == paths.len() - 1;
        let first = first_of(&paths[index]);
        let segment_last = if newest { last } else { first_of(&paths[index + 1]) - 1 };
        let places = places(first, segment_last);
        let end = places.last().expect("records").2;
        let name = paths[index].file_name().expect("a name");
        for at in (0..end + 40).chain([4095]) {
            let damaged = super::copy(directory.path());
            let path = damaged.path().join(name);
            let mut bytes = std::fs::read(&path).expect("read");
            bytes[at as usize] ^= 1 << (at % 8);
            std::fs::write(&path, bytes).expect("written");

            let (mut spool, recovery) = open(damaged.path());
            assert_eq!((spool.epoch(), recovery.fresh_epoch.clone()), (EPOCH, None));
            let entries = drain(&mut spool, 1);
            let hit = places.iter().find(|(_, range, _)| range.contains(&at)).map(|(number, ..)| *number);
            let expected: Vec<u64> = hit.map_or(vec![], |hit| {
                let key = all_keys.iter().find(|key| **key > hit).copied().unwrap_or(last + 1);
                (hit..key).collect()
            });
            let lost = lost(&entries);
            let known: Vec<u64> = lost.iter().filter(|number| **number <= last).copied().collect();
            assert_eq!(known, expected, "byte {at} of segment {index}");
            if !newest {
                assert_eq!(lost, expected, "byte {at} of segment {index}");
            }
            if at % 5 != 0 {
                continue;
            }
            // What is lost stays lost, and what comes after is numbered after it.
            fill(&mut spool, 3, 5);
            let again = drain(&mut spool, 1);
            assert_eq!(super::lost(&again), lost);
            drop(spool);
            let (mut spool, _) = open(damaged.path());
            assert_eq!(super::lost(&drain(&mut spool, 1)), lost, "byte {at} of segment {index}");
            if !lost.is_empty() {
                assert_eq!(spool.status().fault.map(|fault| fault.kind), Some(FaultKind::Corrupt));
                spool.acknowledge(spool.last()).expect("acknowledged");
                assert_eq!(spool.status().fault, None);
            }
        }
    }
}

/// The newest segment of what was written, and where its last record begins.
fn newest(directory: &Path, last: u64) -> (std::path::PathBuf, Vec<u8>, usize) {
    let path = segments(directory).pop().expect("a segment");
    let (number, range, _) = places(first_of(&path), last).pop().expect("records");
    assert_eq!(number, last);
    let bytes = std::fs::read(&path).expect("read");
    (path, bytes, *range.start() as usize)
}

#[test]
fn a_record_torn_in_its_body_costs_its_own_number() {
    let (directory, last) = written();
    let (path, mut bytes, at) = newest(directory.path(), last);
    bytes[at + RECORD_HEADER + 15..].fill(0);
    std::fs::write(&path, bytes).expect("written");
    let (mut spool, recovery) = open(directory.path());
    assert_eq!(recovery.torn_bytes, RECORD_HEADER as u64 + 15);
    assert_eq!(recovery.lost.iter().map(|range| (range.first, range.last)).collect::<Vec<_>>(), [(last, last)]);
    assert_eq!(lost(&drain(&mut spool, 1)), [last]);
    assert_eq!(spool.last(), last);
    drop(spool);
    let (spool, recovery) = open(directory.path());
    assert_eq!((recovery.torn_bytes, spool.last(), spool.status().lost), (0, last, 1), "it is found once");
}

#[test]
fn a_record_that_never_reached_the_disk_costs_nothing() {
    let (directory, last) = written();
    let (path, mut bytes, at) = newest(directory.path(), last);
    bytes[at..].fill(0);
    std::fs::write(&path, bytes).expect("written");
    let (mut spool, recovery) = open(directory.path());
    assert!(recovery.is_clean(), "{recovery}");
    assert_eq!(spool.last(), last - 1);
    fill(&mut spool, 5, 5);
    assert_eq!(lost(&drain(&mut spool, 1)), []);
}

#[test]
fn a_group_of_which_the_first_page_is_missing_is_lost_by_its_numbers() {
    let (directory, last) = written();
    let (path, mut bytes, at) = newest(directory.path(), last);
    let before = places(first_of(&path), last);
    let (number, range, _) = &before[before.len() - 3];
    bytes[*range.start() as usize..at].fill(0);
    bytes[at + RECORD_HEADER..].fill(0);
    std::fs::write(&path, bytes).expect("written");
    let (mut spool, _) = open(directory.path());
    assert_eq!(lost(&drain(&mut spool, 1)), (*number..=last).collect::<Vec<_>>());
    assert_eq!(spool.last(), last);
}

/// Two segments of which the second took over when a sync of the first failed, and so begins with the delta 5; 8 is
/// the next key.
fn taken_over() -> (TempDir, Spool) {
    let directory = scratch();
    rehearsal::watch(directory.path());
    let (mut spool, _) = open(directory.path());
    fill(&mut spool, 4, 100);
    rehearsal::fail_syncs(1);
    fill(&mut spool, 3, 100);
    assert_eq!(segments(directory.path()).iter().map(|path| first_of(path)).collect::<Vec<_>>(), [1, 5]);
    fill(&mut spool, 3, 8);
    (directory, spool)
}

#[test]
fn damage_at_the_end_of_a_segment_costs_up_to_the_next_key_in_the_one_after() {
    let (directory, mut spool) = taken_over();
    let path = segments(directory.path()).remove(0);
    let (number, range, _) = places(1, 4).pop().expect("records");
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[*range.end() as usize] ^= 1;
    std::fs::write(path, bytes).expect("written");
    let entries = drain(&mut spool, 1);
    assert_eq!((number, keys(&entries)), (4, vec![1, 8]));
    assert_eq!(lost(&entries), [4, 5, 6, 7]);
}

#[test]
fn a_segment_is_kept_for_the_deltas_that_need_it() {
    let (directory, mut spool) = taken_over();
    spool.acknowledge(5).expect("acknowledged");
    assert_eq!(segments(directory.path()).len(), 2);
    assert_eq!(spool.last_key_at_or_before(6).expect("readable"), Some(1));
    assert_eq!(lost(&drain(&mut spool, 1)), []);
}

#[test]
fn deltas_are_dropped_with_the_segment_that_they_need() {
    let (_directory, mut spool) = taken_over();
    while spool.lost().is_empty() {
        fill(&mut spool, 1, 8);
    }
    let dropped: Vec<_> = spool.lost().iter().map(|range| (range.first, range.last, range.reason)).collect();
    assert_eq!(dropped, [(1, 7, LostReason::Overflow)]);
    assert_eq!(lost(&drain(&mut spool, 1)).len(), 7);
}

#[test]
fn a_segment_cut_at_any_length_keeps_what_is_before() {
    let (directory, last) = written();
    let paths = segments(directory.path());
    for index in [1, paths.len() - 1] {
        let first = first_of(&paths[index]);
        let newest = index == paths.len() - 1;
        let segment_last = if newest { last } else { first_of(&paths[index + 1]) - 1 };
        let places = places(first, segment_last);
        let name = paths[index].file_name().expect("a name");
        for length in 0..places.last().expect("records").2 {
            let damaged = super::copy(directory.path());
            let path = damaged.path().join(name);
            std::fs::OpenOptions::new().write(true).open(&path).expect("opened").set_len(length).expect("cut");
            let (mut spool, _) = open(damaged.path());
            let whole = places.iter().take_while(|(_, range, _)| *range.end() < length).count() as u64;
            let lost = lost(&drain(&mut spool, 1));
            if newest {
                // Nobody can say how many records there were, so some numbers that were not used are given up too.
                let expected: Vec<u64> = (first + whole..=spool.last()).collect();
                assert!(lost == expected && spool.last() >= last, "cut at {length}");
            } else {
                let expected: Vec<u64> = (first + whole..=segment_last).collect();
                assert_eq!(lost, expected, "cut at {length}");
            }
            fill(&mut spool, 2, 5);
        }
    }
}

#[test]
fn a_cursor_with_any_byte_damaged_costs_no_record() {
    let (directory, last) = written();
    let mut spool = open(directory.path()).0;
    spool.acknowledge(3).expect("acknowledged");
    drop(spool);
    let mut spool = open(directory.path()).0;
    spool.acknowledge(4).expect("acknowledged");
    drop(spool);
    for at in (0..64).chain(4090..4160).chain(8186..8192) {
        let damaged = super::copy(directory.path());
        let path = damaged.path().join("cursor");
        let mut bytes = std::fs::read(&path).expect("read");
        bytes[at] ^= 0x10;
        std::fs::write(&path, &bytes).expect("written");
        let (mut spool, recovery) = open(damaged.path());
        assert!(recovery.is_clean() && (3..=4).contains(&spool.acknowledged()), "byte {at}: {recovery}");
        assert_eq!(lost(&drain(&mut spool, 5)), []);
        assert_eq!(spool.last(), last);
    }
}

#[test]
fn without_a_cursor_the_segments_say_enough() {
    for damage in [None, Some(&b""[..]), Some(b"rubbish"), Some(&[0; 8192])] {
        let (directory, last) = written();
        let path = directory.path().join("cursor");
        match damage {
            None => std::fs::remove_file(path).expect("removed"),
            Some(bytes) => std::fs::write(path, bytes).expect("written"),
        }
        let (mut spool, recovery) = open(directory.path());
        assert!(recovery.cursor_rebuilt && recovery.lost.is_empty(), "{recovery}");
        assert_eq!(recovery.quarantined.len(), usize::from(damage.is_some()));
        assert_eq!((spool.epoch(), spool.first(), spool.last()), (EPOCH, 1, last));
        assert_eq!(drain(&mut spool, 1).len() as u64, last);
    }
}

#[test]
fn with_nothing_readable_a_fresh_epoch_begins_and_the_files_are_set_aside() {
    let (directory, _) = written();
    for path in segments(directory.path()).iter().chain([&directory.path().join("cursor")]) {
        std::fs::write(path, [0xa5; 4096]).expect("written");
    }
    let (mut spool, recovery) = Spool::open(small(directory.path()), 77).expect("opened");
    assert_eq!((spool.epoch(), spool.first(), spool.last()), (77, 1, 0));
    assert!(recovery.fresh_epoch.is_some() && recovery.quarantined.len() == 5, "{recovery}");
    assert_eq!(named(directory.path(), ".quarantine").len(), 4, "only so many are kept");
    fill(&mut spool, 3, 5);
    drop(spool);
    let (spool, recovery) = open(directory.path());
    assert_eq!((spool.epoch(), spool.last()), (77, 3));
    assert!(recovery.is_clean());
}

#[test]
fn a_segment_of_another_epoch_is_set_aside() {
    let (directory, last) = written();
    let other = scratch();
    let (mut spool, _) = Spool::open(small(other.path()), 5).expect("opened");
    fill(&mut spool, 3, 5);
    let name = segment::name(last + 1000);
    let header = segment::SegmentHeader { epoch: 5, first: last + 1000, starts_with_key: true, pages: 1 };
    std::fs::write(directory.path().join(&name), header.to_bytes()).expect("written");
    let (mut spool, recovery) = open(directory.path());
    assert_eq!(recovery.quarantined, [directory.path().join(format!("{name}.quarantine"))]);
    assert_eq!((spool.last(), drain(&mut spool, 1).len() as u64), (last, last));
}

#[test]
fn a_removed_segment_costs_its_own_numbers() {
    let (directory, last) = written();
    let paths = segments(directory.path());
    let (first, next) = (first_of(&paths[1]), first_of(&paths[2]));
    std::fs::remove_file(&paths[1]).expect("removed");
    let (mut spool, _) = open(directory.path());
    assert_eq!(lost(&drain(&mut spool, 1)), (first..next).collect::<Vec<_>>());
    assert_eq!(spool.last(), last);
    drop(spool);

    // Of the newest nobody knows how far it went: no number that it may have held is used again.
    std::fs::remove_file(segments(directory.path()).pop().expect("a segment")).expect("removed");
    let (mut spool, _) = open(directory.path());
    assert!(spool.last() >= last);
    assert_eq!(lost(&drain(&mut spool, 1)).last(), Some(&spool.last()));
    fill(&mut spool, 5, 5);
}

#[test]
fn a_damaged_segment_is_set_aside_when_it_is_drained() {
    let (directory, last) = written();
    let path = segments(directory.path()).remove(1);
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let (mut spool, _) = open(directory.path());
    let lost = lost(&drain(&mut spool, 1));
    assert!(!lost.is_empty());
    assert_eq!(spool.lost().iter().map(|range| range.reason).collect::<Vec<_>>(), [LostReason::Corrupt]);
    spool.acknowledge(last).expect("acknowledged");
    assert_eq!(named(directory.path(), ".quarantine"), [path.with_extension("seg.quarantine")]);
    assert_eq!(segments(directory.path()).len(), 1);
    assert_eq!((spool.lost(), spool.status().lost), (&[][..], lost.len() as u64));
}

#[test]
fn a_directory_in_place_of_a_file_is_set_aside() {
    let (directory, _) = written();
    std::fs::create_dir(directory.path().join(segment::name(900))).expect("created");
    std::fs::create_dir(directory.path().join("spare-77.free")).expect("created");
    let (_, recovery) = open(directory.path());
    assert_eq!(recovery.quarantined.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn arbitrary_files_are_no_reason_not_to_start(
        files in prop::collection::vec((0usize..8, prop::collection::vec(any::<u8>(), 0..300), any::<bool>()), 0..6),
        swaps in prop::collection::vec((0usize..9, 0usize..9), 0..3),
    ) {
        let (directory, _) = written();
        let names = |index: usize| match index {
            0 => "cursor".to_owned(),
            1 => "cursor.new".to_owned(),
            2 => "spare-1.free".to_owned(),
            3 => segment::name(segment::MAX_NUMBER),
            4 => segment::name(2),
            5 => "x.quarantine".to_owned(),
            index => segments(directory.path()).get(index - 6).map_or(segment::name(50), |path| {
                path.file_name().expect("a name").to_string_lossy().into_owned()
            }),
        };
        for (from, to) in swaps {
            let _ = std::fs::copy(directory.path().join(names(from)), directory.path().join(names(to)));
        }
        for (index, bytes, keep) in files {
            let path = directory.path().join(names(index));
            let mut content = if keep { std::fs::read(&path).unwrap_or_default() } else { Vec::new() };
            let at = bytes.len() * 7 % (content.len() + 1);
            content.truncate(at.max(content.len().saturating_sub(bytes.len())));
            content.splice(at.min(content.len())..at.min(content.len()), bytes);
            std::fs::write(path, content).expect("written");
        }
        let (mut spool, _) = open(directory.path());
        let mut reader = spool.read_from(spool.first());
        let mut at = spool.first();
        while let Some(entry) = reader.next(&mut spool).expect("readable") {
            prop_assert!(entry.next_sequence() > at);
            at = entry.next_sequence();
        }
        let before = spool.last();
        spool.append(b"more", true).expect("appended");
        spool.sync().expect("synced");
        prop_assert_eq!(spool.last(), before + 1);
        spool.acknowledge(spool.last()).expect("acknowledged");
    }
}
