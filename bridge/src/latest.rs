//! Makes room in the log of a class of which only the latest value of each topic counts.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use spool::{Entry, LostReason, SpoolError};

use crate::lanes::Lane;
use crate::log::Log;
use crate::record::Record;

/// Topics that are told apart, of a few bytes each; records of others count as superseded.
const MOST_TOPICS: usize = 1 << 18;
/// Most bytes of records that are moved at once.
const MOST_MOVED: usize = 4 << 20;
/// Segments that are free before anything is written: one for what is moved, the others for what comes.
const FREE_SEGMENTS: u64 = 3;
/// Records read while the log is locked.
const CHUNK: usize = 512;

/// Where a pass over the log is, and what it saw.
struct Pass {
    first: u64,
    /// The last number of a topic, by the topic's hash.
    latest: HashMap<u64, u64>,
    hashes: RandomState,
    /// The numbers at which an eighth of the bytes are passed, and half of them.
    eighth: u64,
    half: u64,
}

/// Bytes that are written at once at most, so that what is free is enough for them.
pub(crate) fn part_bytes(segment_bytes: u64) -> usize {
    usize::try_from(segment_bytes / 2).unwrap_or(usize::MAX)
}

/// Sees to it that a part can be written. When room is short, the older half of the log is given up but for records that
/// are their topic's latest: those are written again at the end, under new numbers, before the old ones go. When there
/// are too many of them, the oldest go, too.
///
/// # Errors
/// When the disk is full or fails; what was there still is.
pub(crate) fn make_room(log: &Log, lane: &Lane, capacity: u64, segment_bytes: u64) -> Result<(), SpoolError> {
    while log.spool().status().bytes + FREE_SEGMENTS * segment_bytes > capacity {
        lane.moving();
        let given_up = give_up_some(log, segment_bytes);
        lane.moved(log.spool().last());
        given_up?;
    }
    Ok(())
}

/// Gives up the oldest eighth, whatever it is: the disk has no more room for anything.
///
/// # Errors
/// When the disk fails.
pub(crate) fn give_up_oldest(log: &Log) -> Result<(), SpoolError> {
    let mut spool = log.spool();
    let first = spool.first();
    let begin = spool.lost().first().filter(|range| range.first <= first).map_or(first, |range| range.last + 1);
    let through = begin + spool.status().pending / 8;
    spool.discard(through, LostReason::Overflow)
}

fn give_up_some(log: &Log, segment_bytes: u64) -> Result<(), SpoolError> {
    let pass = Pass::over(log)?;
    let bound = MOST_MOVED.min(part_bytes(segment_bytes));
    let (moved, through, bytes) = pass.survivors(log, bound)?;
    let kept: u64 = moved.iter().map(|record| record.len() as u64).sum();
    // Moving what is nearly all of it would make no room.
    let (moved, through, reason) = if bytes >= kept + segment_bytes {
        (moved, through, LostReason::Superseded)
    } else {
        (Vec::new(), through.max(pass.eighth), LostReason::Overflow)
    };
    let mut spool = log.spool();
    if !moved.is_empty() {
        spool.append_many(moved)?;
        spool.sync()?;
    }
    spool.discard(through, reason)
}

impl Pass {
    fn over(log: &Log) -> Result<Self, SpoolError> {
        let (first, bytes) = {
            let spool = log.spool();
            (spool.first(), spool.status().bytes)
        };
        let mut pass = Self { first, latest: HashMap::new(), hashes: RandomState::new(), eighth: first, half: first };
        let (mut latest, mut passed) = (HashMap::new(), 0);
        let (mut eighth, mut half) = (first, first);
        pass.each(log, |sequence, hash, record| {
            if latest.len() < MOST_TOPICS || latest.contains_key(&hash) {
                latest.insert(hash, sequence);
            }
            passed += record.len() as u64;
            for (share, at) in [(8, &mut eighth), (2, &mut half)] {
                if passed <= bytes / share {
                    *at = sequence;
                }
            }
            true
        })?;
        (pass.latest, pass.eighth, pass.half) = (latest, eighth, half);
        Ok(pass)
    }

    /// The latest records in the older half, no more than `bound` bytes of them; through which number they are all, and how
    /// many bytes there are up to it.
    fn survivors(&self, log: &Log, bound: usize) -> Result<(Vec<Vec<u8>>, u64, u64), SpoolError> {
        let (mut moved, mut kept, mut through, mut bytes) = (Vec::new(), 0, self.first, 0);
        self.each(log, |sequence, hash, record| {
            let survives = self.latest.get(&hash) == Some(&sequence);
            if sequence > self.half || (survives && kept + record.len() > bound) {
                return false;
            }
            if survives {
                kept += record.len();
                moved.push(Record::doubled(record));
            }
            (through, bytes) = (sequence, bytes + record.len() as u64);
            true
        })?;
        Ok((moved, through, bytes))
    }

    /// Gives each record to `see` until that has enough.
    fn each(&self, log: &Log, mut see: impl FnMut(u64, u64, &[u8]) -> bool) -> Result<(), SpoolError> {
        let mut reader = log.spool().read_from(self.first);
        loop {
            // The sink reads in between.
            let mut spool = log.spool();
            for _ in 0..CHUNK {
                match reader.next(&mut spool)? {
                    None => return Ok(()),
                    Some(Entry::Lost(_)) => {}
                    Some(Entry::Record { sequence, bytes, .. }) => {
                        // Of one that was decoded, the topic that it was decoded to: a device's message has many.
                        let topic = Record::decode(&bytes).map_or((bytes.as_slice(), ""), |record| {
                            (record.notes.uns.unwrap_or(record.topic).as_bytes(), record.mqtt)
                        });
                        if !see(sequence, self.hashes.hash_one(topic), &bytes) {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}
