//! Room: what the spool takes, what it drops when it may not take more, and what opening costs.

use std::sync::{Arc, Mutex};

use super::{EPOCH, drain, fill, keys, lost, named, open, record, scratch, segments, small};
use crate::segment::{self, HEADER, PAGE, Seed, SegmentHeader};
use crate::{Entry, LostRange, LostReason, Options, Overflow, Spool, SpoolError, rehearsal};

fn taken(directory: &std::path::Path) -> u64 {
    let bytes = |path: &std::path::PathBuf| std::fs::metadata(path).expect("metadata").len();
    [".seg", ".free", ".quarantine"].iter().flat_map(|ending| named(directory, ending)).map(|path| bytes(&path)).sum()
}

#[test]
fn what_is_appended_is_read_after_a_sync_and_not_before() {
    let directory = scratch();
    let (mut spool, recovery) = open(directory.path());
    assert!(recovery.is_clean() && spool.needs_key());
    assert_eq!((spool.epoch(), spool.first(), spool.last()), (EPOCH, 1, 0));
    assert_eq!(spool.append(&record(1), true).expect("appended"), 1);
    assert!(drain(&mut spool, 1).is_empty());
    spool.sync().expect("synced");
    assert_eq!(drain(&mut spool, 1), [Entry::Record { sequence: 1, key: true, bytes: record(1) }]);
    assert_eq!(spool.status().pending, 1);
    spool.acknowledge(1).expect("acknowledged");
    assert_eq!((spool.first(), spool.last(), spool.status().pending), (2, 1, 0));
    drop(spool);
    let (spool, recovery) = open(directory.path());
    assert!(recovery.is_clean());
    assert_eq!((spool.epoch(), spool.first(), spool.last()), (EPOCH, 2, 1));
}

#[test]
fn a_spool_whose_disk_is_at_work_is_read_and_written_by_others() {
    let directory = scratch();
    let (mut spool, _) = open(directory.path());
    fill(&mut spool, 3, 1);
    assert_eq!(spool.append(&record(4), true).expect("appended"), 4);
    let spool = Arc::new(Mutex::new(spool));
    let (others, seen) = (Arc::clone(&spool), Arc::new(Mutex::new(0)));
    let saw = Arc::clone(&seen);
    rehearsal::at_next_sync(move || {
        let mut spool = others.try_lock().expect("it is not locked");
        *saw.lock().expect("locked") = drain(&mut spool, 1).len();
        spool.acknowledge(2).expect("acknowledged");
        assert_eq!(spool.append(&record(5), true).expect("appended"), 5);
        assert!(matches!(spool.sync(), Err(SpoolError::Syncing)));
    });
    Spool::sync_shared(&spool).expect("synced");
    assert_eq!(*seen.lock().expect("locked"), 3, "what is not durable is not read");
    let mut spool = spool.lock().expect("locked");
    assert_eq!(drain(&mut spool, 3).len(), 2, "what came meanwhile is for the next sync");
    spool.sync().expect("synced");
    assert_eq!(drain(&mut spool, 3).len(), 3);
}

#[test]
fn a_full_spool_drops_its_oldest_segment_and_says_so() {
    let directory = scratch();
    let (mut spool, _) = open(directory.path());
    while spool.lost().is_empty() {
        fill(&mut spool, 1, 7);
        assert!(taken(directory.path()) <= 8 * 4096);
    }
    assert_eq!(segments(directory.path()).len(), 8, "all room is used first");
    let dropped = spool.lost()[0];
    assert_eq!((dropped.first, dropped.reason), (1, LostReason::Overflow));
    let entries = drain(&mut spool, 1);
    assert_eq!(entries[0], Entry::Lost(dropped));
    assert!(matches!(entries[1], Entry::Record { key: true, .. }), "a segment decodes alone");
    fill(&mut spool, 500, 7);
    assert!(taken(directory.path()) <= 8 * 4096);
    assert_eq!(spool.lost().len(), 1, "one range grows");
    let (lost, last) = (spool.lost().to_vec(), spool.last());
    drop(spool);
    let (mut spool, recovery) = open(directory.path());
    assert_eq!(recovery.lost, lost);
    assert_eq!(super::lost(&drain(&mut spool, 1)).len() as u64, lost[0].len());
    spool.acknowledge(last).expect("acknowledged");
    assert_eq!((spool.lost(), spool.status().lost), (&[][..], lost[0].len()));
    fill(&mut spool, 5, 7);
}

#[test]
fn a_spool_that_refuses_keeps_every_record_and_takes_more_when_some_are_acknowledged() {
    let directory = scratch();
    let options = Options { overflow: Overflow::Refuse, ..small(directory.path()) };
    let (mut spool, _) = Spool::open(options, EPOCH).expect("opened");
    let refused = loop {
        let number = spool.last() + 1;
        match spool.append(&record(number), true).and_then(|_| spool.sync()) {
            Ok(()) => assert!(taken(directory.path()) <= 8 * 4096),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, SpoolError::Full { capacity: 32768 }), "{refused}");
    let last = spool.last();
    assert_eq!((spool.lost(), spool.status().lost, spool.status().fault), (&[][..], 0, None));
    // The one that waits in memory is tried again, in vain.
    assert!(matches!(spool.sync(), Err(SpoolError::Full { .. })));
    assert_eq!(drain(&mut spool, 1).len() as u64, last - 1);

    spool.acknowledge(last / 2).expect("acknowledged");
    spool.sync().expect("there is room again");
    assert_eq!(drain(&mut spool, last / 2).last().expect("some").next_sequence(), last + 1);
    spool.acknowledge(last).expect("acknowledged");
    spool.save_acknowledged().expect("saved");
    assert_eq!(spool.append(&record(last + 1), true).expect("taken"), last + 1);
}

#[test]
fn room_that_an_acknowledgement_could_not_give_back_is_given_back_later() {
    let directory = scratch();
    let options = Options { overflow: Overflow::Refuse, ..small(directory.path()) };
    let (mut spool, _) = Spool::open(options, EPOCH).expect("opened");
    while spool.append(&record(spool.last() + 1), true).and_then(|_| spool.sync()).is_ok() {}
    rehearsal::watch(directory.path());
    rehearsal::fail_syncs(100);
    let durable = spool.last() - 1;
    assert!(matches!(spool.acknowledge(durable), Err(SpoolError::Io { .. })));
    rehearsal::fail_syncs(0);
    spool.acknowledge(durable).expect("nothing new");
    assert!(matches!(spool.sync(), Err(SpoolError::Full { .. })));
    spool.save_acknowledged().expect("saved");
    spool.sync().expect("there is room again");
}

#[test]
fn what_is_delivered_although_it_was_dropped_meanwhile_does_not_count_as_lost() {
    let directory = scratch();
    let (mut spool, _) = open(directory.path());
    fill(&mut spool, 100, 1);
    let mut reader = spool.deliver();
    let take = |reader: &mut crate::Reader, spool: &mut Spool, count| {
        (0..count).for_each(|_| assert!(matches!(reader.next(spool), Ok(Some(Entry::Record { .. })))));
    };
    take(&mut reader, &mut spool, 20);
    while spool.lost().last().is_none_or(|range| range.last < 90) {
        fill(&mut spool, 1, 1);
    }
    let dropped = spool.lost()[0].last;
    assert_eq!((spool.lost()[0].first, spool.status().lost), (1, dropped - 20), "it may arrive yet");
    drain(&mut spool, 1);
    // Twelve arrive. Who took them ends, and nobody has the others any more.
    spool.acknowledge(12).expect("acknowledged");
    assert_eq!(spool.status().lost, dropped - 20);
    let mut reader = spool.deliver();
    assert_eq!(spool.status().lost, dropped - 12);
    assert!(
        matches!(reader.next(&mut spool), Ok(Some(Entry::Lost(range))) if (range.first, range.last) == (13, dropped))
    );
    // What was passed as lost is not lost again with what is dropped after it.
    take(&mut reader, &mut spool, 5);
    spool.discard(dropped + 30, LostReason::Expired).expect("discarded");
    assert_eq!(spool.status().lost, dropped - 12 + 25);
    spool.acknowledge(dropped + 3).expect("acknowledged");
    assert_eq!(spool.status().lost, dropped - 12 + 25);
    // After a crash nobody has what was taken.
    spool.save_acknowledged().expect("saved");
    let crashed = super::copy(directory.path());
    assert_eq!(open(crashed.path()).0.status().lost, dropped - 12 + 27);
    spool.acknowledge(dropped + 5).expect("acknowledged");
    drop(spool);
    assert_eq!(open(directory.path()).0.status().lost, dropped - 12 + 25);
}

#[test]
fn a_spool_that_drops_the_newest_keeps_the_oldest_and_takes_more_when_some_are_acknowledged() {
    let directory = scratch();
    let options = Options { overflow: Overflow::DropNewest, ..small(directory.path()) };
    let (mut spool, _) = Spool::open(options.clone(), EPOCH).expect("opened");
    fill(&mut spool, 600, 1);
    let (last, dropped) = (spool.last(), spool.lost().to_vec());
    assert_eq!((last, dropped.len()), (600, 1), "{dropped:?}");
    let dropped = dropped[0];
    assert!(dropped.first > 100 && dropped.last == 600 && dropped.reason == LostReason::Overflow, "{dropped}");
    assert_eq!(spool.status().fault, None);
    assert!(taken(directory.path()) <= 8 * 4096);
    assert_eq!(drain(&mut spool, 1).last(), Some(&Entry::Lost(dropped)));
    drop(spool);
    let (mut spool, recovery) = Spool::open(options, EPOCH).expect("opened");
    assert_eq!((recovery.lost, spool.last()), (vec![dropped], 600));
    spool.acknowledge(dropped.first - 1).expect("acknowledged");
    fill(&mut spool, 3, 1);
    let entries = drain(&mut spool, dropped.first);
    assert_eq!((entries.len(), &entries[0], spool.status().pending), (4, &Entry::Lost(dropped), 3));
}

#[test]
fn what_is_discarded_is_lost_for_its_reason_and_its_room_is_given_back() {
    let directory = scratch();
    let (mut spool, _) = open(directory.path());
    fill(&mut spool, 150, 1);
    let before = segments(directory.path()).len();
    spool.acknowledge(10).expect("acknowledged");
    spool.discard(100, LostReason::Expired).expect("discarded");
    // What is not durable is not given up.
    spool.append(&record(151), true).expect("appended");
    spool.discard(100, LostReason::Expired).expect("nothing new");
    assert!(segments(directory.path()).len() < before);
    let range = LostRange { first: 11, last: 100, reason: LostReason::Expired };
    assert_eq!((spool.lost(), spool.status().lost, spool.status().pending), (&[range][..], 90, 51));
    drop(spool);
    let (mut spool, recovery) = open(directory.path());
    assert_eq!(recovery.lost, [range]);
    let entries = drain(&mut spool, 11);
    assert_eq!((entries.len(), &entries[0]), (52, &Entry::Lost(range)));
    spool.discard(u64::MAX, LostReason::Superseded).expect("discarded");
    assert_eq!((spool.status().pending, drain(&mut spool, 11).len()), (0, 2));
    fill(&mut spool, 1, 1);
    assert_eq!(spool.status().pending, 1);
}

#[test]
fn looking_changes_nothing() {
    let directory = scratch();
    let (mut spool, _) = open(directory.path());
    fill(&mut spool, 150, 1);
    spool.acknowledge(10).expect("acknowledged");
    drop(spool);
    let path = segments(directory.path()).pop().expect("a segment");
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[3000..3100].fill(9);
    std::fs::write(&path, bytes).expect("written");
    std::fs::write(directory.path().join(segment::name(7000)), b"rubbish").expect("written");
    let content = || {
        let files = named(directory.path(), "").into_iter();
        files.map(|path| (path.clone(), std::fs::read(path).expect("read"))).collect::<Vec<_>>()
    };
    let before = content();
    let (mut spool, recovery) = Spool::look(small(directory.path())).expect("looked");
    assert!(!recovery.is_clean());
    let seen = drain(&mut spool, 11);
    assert!(matches!(spool.append(b"more", true), Err(SpoolError::LookedAt)));
    assert!(matches!(spool.discard(20, LostReason::Expired), Err(SpoolError::LookedAt)));
    assert!(matches!(Spool::look(small(directory.path())), Err(SpoolError::Busy { .. })));
    spool.acknowledge(149).expect("noted");
    drop(spool);
    assert_eq!(content(), before);
    // Who opens it finds the same.
    let (mut spool, opened) = open(directory.path());
    assert_eq!((opened.pending, opened.lost.clone()), (recovery.pending, recovery.lost));
    assert_eq!(drain(&mut spool, 11), seen);
    assert_ne!(content(), before);
}

#[test]
fn what_is_acknowledged_and_saved_is_not_pending_after_a_crash() {
    let directory = scratch();
    let (mut spool, _) = open(directory.path());
    fill(&mut spool, 10, 1);
    spool.acknowledge(4).expect("acknowledged");
    spool.save_acknowledged().expect("saved");
    spool.acknowledge(7).expect("acknowledged");
    let copy = scratch();
    for name in std::fs::read_dir(directory.path()).expect("listed") {
        let from = name.expect("an entry").path();
        std::fs::copy(&from, copy.path().join(from.file_name().expect("a name"))).expect("copied");
    }
    let (spool, _) = open(copy.path());
    assert_eq!((spool.first(), spool.last()), (5, 10));
}

#[test]
fn acknowledged_segments_are_given_back_but_for_the_reserve() {
    let directory = scratch();
    let (mut spool, _) = open(directory.path());
    fill(&mut spool, 100, 7);
    let before = segments(directory.path());
    assert!(before.len() > 3);
    spool.acknowledge(50).expect("acknowledged");
    let key = spool.last_key_at_or_before(51).expect("readable").expect("kept: 51 needs it");
    assert!(key <= 51);
    assert_eq!(lost(&drain(&mut spool, key)), []);
    spool.acknowledge(100).expect("acknowledged");
    assert_eq!((segments(directory.path()).len(), named(directory.path(), ".free").len()), (1, 1));
    assert_eq!(taken(directory.path()), 2 * 4096);
    // A reader that comes late passes over what is gone.
    let first = segment::first_of(&segments(directory.path())[0].file_name().expect("a name").to_string_lossy());
    let mut reader = spool.read_from(1);
    let entry = reader.next(&mut spool).expect("readable");
    assert!(matches!(entry, Some(Entry::Record { sequence, .. }) if Some(sequence) == first));
}

#[test]
fn reading_begins_at_the_last_key() {
    let directory = scratch();
    let (mut spool, _) = open(directory.path());
    fill(&mut spool, 100, 7);
    let keys = keys(&drain(&mut spool, 1));
    for number in 1..=100 {
        let expected = keys.iter().rev().find(|key| **key <= number).copied();
        assert_eq!(spool.last_key_at_or_before(number).expect("readable"), expected);
    }
    assert_eq!(spool.last_key_at_or_before(1000).expect("readable"), keys.last().copied());
    assert_eq!(spool.last_key_at_or_before(0).expect("readable"), None);
}

#[test]
fn a_segment_begins_with_a_key_and_a_delta_is_refused_there() {
    let directory = scratch();
    let (mut spool, _) = open(directory.path());
    assert!(matches!(spool.append(b"delta", false), Err(SpoolError::NeedsKey)));
    spool.append(b"key", true).expect("appended");
    let mut refused = 0;
    for number in 2..200 {
        match spool.append(&record(number), false) {
            Ok(_) => {}
            Err(SpoolError::NeedsKey) => {
                refused += 1;
                assert!(spool.needs_key());
                spool.append(&record(number), true).expect("appended");
            }
            Err(other) => panic!("{other}"),
        }
    }
    spool.sync().expect("synced");
    assert_eq!(refused + 1, segments(directory.path()).len());
    let too_long = vec![0; spool.max_record() + 1];
    assert!(matches!(spool.append(&too_long, true), Err(SpoolError::TooLarge { .. })));
    assert_eq!(spool.append(&too_long[1..], true).expect("appended"), 200);
}

#[test]
fn one_sync_makes_many_records_durable() {
    let directory = scratch();
    let (mut spool, _) = open(directory.path());
    assert_eq!(spool.append_many(Vec::<&[u8]>::new()).expect("appended"), None);
    assert_eq!(spool.append_many((1..=20).map(record)).expect("appended"), Some(1..=20));
    spool.sync().expect("synced");
    assert_eq!(drain(&mut spool, 1).len(), 20);
}

#[test]
fn an_acknowledgement_from_the_future_moves_the_numbers_past_it() {
    let directory = scratch();
    let (mut spool, _) = open(directory.path());
    fill(&mut spool, 10, 7);
    assert!(matches!(spool.acknowledge(50), Err(SpoolError::Ahead { through: 50, last: 10 })));
    assert!(matches!(spool.acknowledge(u64::MAX), Err(SpoolError::Ahead { .. })));
    assert_eq!((spool.first(), spool.last(), spool.status().pending), (51, 50, 0));
    fill(&mut spool, 3, 7);
    assert_eq!(drain(&mut spool, 51).len(), 3);
    drop(spool);
    let (mut spool, recovery) = open(directory.path());
    assert!(recovery.is_clean());
    assert_eq!((spool.first(), spool.last()), (51, 53));
    assert_eq!(drain(&mut spool, 51).len(), 3);
}

/// Ten gigabytes of backlog, of which the disk holds what is not zero.
#[test]
fn opening_reads_the_headers_and_the_newest_segment_whatever_the_backlog() {
    let mut costs = Vec::new();
    for count in [10, 640] {
        let directory = tempfile::tempdir().expect("a directory");
        let options = Options { segment_bytes: 16 << 20, ..Options::new(directory.path(), 11 << 30) };
        let (spool, _) = Spool::open(options.clone(), EPOCH).expect("opened");
        drop(spool);
        for index in 0..count {
            let first = 1 + index * 10;
            let header = SegmentHeader { epoch: EPOCH, first, starts_with_key: true, pages: (16 << 20) / PAGE as u32 };
            let mut bytes = header.to_bytes().to_vec();
            let mut group = Vec::new();
            (first..first + 10).for_each(|number| segment::push_record(&mut group, number, true, &record(number)));
            segment::stamp(&mut group, Seed::of(EPOCH, first));
            bytes.extend(group);
            let path = directory.path().join(segment::name(first));
            std::fs::write(&path, bytes).expect("written");
            std::fs::OpenOptions::new().write(true).open(path).expect("opened").set_len(16 << 20).expect("sparse");
        }
        let (mut spool, recovery) = Spool::open(options, EPOCH).expect("opened");
        assert_eq!((recovery.pending, recovery.scanned_records), (count * 10, 10), "{recovery}");
        assert_eq!(drain(&mut spool, 1).len() as u64, count * 10);
        costs.push(recovery.read_bytes);
    }
    assert_eq!(costs[1] - costs[0], 630 * HEADER);
    assert!(costs[0] < 17 << 20);
}

#[test]
fn a_spool_in_memory_keeps_the_same_promises() {
    let mut spool = Spool::memory(4096, EPOCH);
    let mut last_key = 0;
    for number in 1..=200 {
        let key = spool.needs_key();
        if !key {
            assert!(spool.append(&record(number), false).is_ok());
        } else {
            assert!(matches!(spool.append(&record(number), false), Err(SpoolError::NeedsKey)));
            spool.append(&record(number), true).expect("appended");
            last_key = number;
        }
        assert!(spool.status().bytes <= 4096);
    }
    spool.sync().expect("synced");
    let entries = drain(&mut spool, 1);
    assert!(matches!(entries[0], Entry::Lost(range) if range.first == 1 && range.reason == LostReason::Overflow));
    assert!(matches!(entries[1], Entry::Record { key: true, .. }));
    assert_eq!(entries.last().map(Entry::next_sequence), Some(201));
    assert_eq!(spool.last_key_at_or_before(200).expect("known"), Some(last_key));
    spool.acknowledge(199).expect("acknowledged");
    assert_eq!((spool.lost(), spool.status().pending), (&[][..], 1));
    assert_eq!(drain(&mut spool, last_key).len() as u64, 201 - last_key, "200 needs what is before it");
    assert!(matches!(spool.acknowledge(300), Err(SpoolError::Ahead { through: 300, last: 200 })));
    assert_eq!(spool.append(b"x", true).expect("appended"), 301);
}

#[test]
fn sizes_that_cannot_work_are_refused() {
    let directory = scratch();
    let options = Options { capacity_bytes: 4096, ..small(directory.path()) };
    assert!(matches!(Spool::open(options, 1), Err(SpoolError::Options(_))));
}
