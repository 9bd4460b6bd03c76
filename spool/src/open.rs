//! Opening a spool: what is there is taken up again, what cannot be used is set aside and reported.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use crate::cursor::{self, Cursor, Found};
use crate::disk::{Active, DiskLog, Group, Segment};
use crate::error::SpoolError;
use crate::file::{Directory, SpoolFile, is_ours};
use crate::ledger::Ledger;
use crate::lost::LostReason;
use crate::options::Options;
use crate::recovery::Recovery;
use crate::room::Room;
use crate::segment::{self, HEADER, PAGE, RECORD_HEADER, Seed, SegmentHeader};
use crate::walk::Walk;

/// A header that jumps further ahead than this is taken for damage that happens to have the right checksum.
const MAX_JUMP: u64 = 1 << 32;

/// Takes up the spool in the directory, or begins one with `epoch`.
pub(crate) fn open(options: Options, epoch: u64) -> Result<(DiskLog, Recovery), SpoolError> {
    open_to(options, epoch, false)
}

/// Finds what [`open`] would, and changes nothing.
pub(crate) fn look(options: Options) -> Result<(DiskLog, Recovery), SpoolError> {
    open_to(options, 0, true)
}

fn open_to(options: Options, epoch: u64, look: bool) -> Result<(DiskLog, Recovery), SpoolError> {
    options.check()?;
    let directory = Directory::open(&options.directory)?;
    // What the process before renamed may not be durable, and is built upon from here on.
    directory.sync()?;
    let names = directory.names()?;
    let room = if look { Room::default() } else { Room::open(&directory, &options, &names)? };
    let mut opening = Opening { room, recovery: Recovery::default(), directory: &directory, look };
    let found = opening.segments(&names)?;
    let sizes: BTreeMap<u64, u64> = found.iter().map(|segment| (segment.first, segment.size(&options))).collect();
    let (cursor, mut ledger, segments) = opening.ledger(found, epoch)?;
    let newest_size = segments.back().and_then(|newest| sizes.get(&newest.first)).copied().unwrap_or(0);
    let tail = opening.tail(&ledger, &segments, newest_size)?;
    let known = ledger.lost.as_slice().to_vec();
    let changed = opening.settle(&mut ledger, &segments, &tail, &options);
    let Opening { room, mut recovery, .. } = opening;

    let durable = tail.highest.max(ledger.acknowledged);
    recovery.known = known;
    recovery.lost = ledger.lost.as_slice().to_vec();
    recovery.pending = ledger.pending();
    let mut log = DiskLog {
        options,
        directory,
        cursor,
        ledger,
        segments,
        active: None,
        room,
        group: Group::default(),
        flying: 0,
        durable,
        // Nobody knows any more what the last record would be the predecessor of.
        key_due: true,
        unsaved: changed,
        failure: None,
        short: false,
    };
    if look {
        return Ok((log, recovery));
    }
    // From here on trouble with the disk is no reason not to start: it shows in the status, and is tried again.
    let saved = !changed || log.save().is_ok();
    if saved {
        take_up_newest(&mut log, tail);
        let _ = log.retire();
    }
    log.top_up();
    Ok((log, recovery))
}

/// A segment file as it was found.
struct FoundSegment {
    first: u64,
    bytes: u64,
    header: Option<SegmentHeader>,
}

impl FoundSegment {
    /// Bytes it had when it was made; without its header, what one made today has.
    fn size(&self, options: &Options) -> u64 {
        self.header.map_or(options.segment_bytes, |header| u64::from(header.pages) * PAGE).max(self.bytes)
    }
}

/// The end of the newest segment.
#[derive(Default)]
struct Tail {
    file: Option<SpoolFile>,
    /// The highest number that is there as a whole record, or the one before the segment.
    highest: u64,
    /// The highest number that may have been given out.
    given_out: u64,
    /// Where the last whole record ends.
    end: u64,
    /// Bytes after it that are not zero, or that the file should have and has not.
    torn: u64,
    /// Bytes the file should have.
    size: u64,
    /// There is damage before it.
    damaged: bool,
}

struct Opening<'a> {
    directory: &'a Directory,
    room: Room,
    recovery: Recovery,
    /// Nothing is written, renamed or removed.
    look: bool,
}

impl Opening<'_> {
    /// The segment files, oldest first; what is none in spite of its name is set aside.
    fn segments(&mut self, names: &[String]) -> Result<Vec<FoundSegment>, SpoolError> {
        let mut found = Vec::new();
        for name in names {
            let Some(first) = segment::first_of(name) else { continue };
            let file = match self.directory.open_file(name) {
                Ok(file) => file,
                Err(source) if is_ours(&source) => {
                    return Err(SpoolError::Directory { path: self.directory.path().to_owned(), source });
                }
                Err(_) => {
                    self.quarantine(name)?;
                    continue;
                }
            };
            let mut bytes = [0; HEADER as usize];
            let read = file.read_at(&mut bytes, 0).unwrap_or(0);
            self.recovery.read_bytes += read as u64;
            let header = SegmentHeader::from_bytes(&bytes[..read]);
            if header.is_some_and(|header| header.first != first) {
                self.quarantine(name)?;
                continue;
            }
            found.push(FoundSegment { first, bytes: file.length().unwrap_or(0), header });
        }
        Ok(found)
    }

    /// The ledger, from the cursor or, failing that, from the segments; and the segments that belong to it.
    fn ledger(
        &mut self,
        found: Vec<FoundSegment>,
        epoch: u64,
    ) -> Result<(Option<Cursor>, Ledger, VecDeque<Segment>), SpoolError> {
        let newest_epoch = found.iter().rev().find_map(|segment| segment.header).map(|header| header.epoch);
        let (cursor, mut ledger) = match (Cursor::open(self.directory, self.look)?, newest_epoch) {
            (Found::Ledger(cursor, ledger), _) => {
                self.recovery.read_bytes += Cursor::BYTES;
                (Some(cursor), ledger)
            }
            (Found::Missing, None) if found.is_empty() => (None, Ledger::new(epoch)),
            (lost, None) => {
                self.recovery.fresh_epoch = Some("neither the cursor nor any segment could be read".to_owned());
                self.set_cursor_aside(&lost)?;
                (None, Ledger::new(epoch))
            }
            (lost, Some(found)) => {
                self.recovery.cursor_rebuilt = true;
                self.set_cursor_aside(&lost)?;
                (None, Ledger::new(found))
            }
        };
        let mut segments = VecDeque::new();
        for segment in found {
            let foreign = segment.header.is_some_and(|header| header.epoch != ledger.epoch);
            if foreign || self.recovery.fresh_epoch.is_some() {
                self.quarantine(&segment::name(segment.first))?;
                continue;
            }
            let evidence = match segment.header {
                Some(header) => Some(header.starts_with_key),
                // A name alone is not enough to believe in numbers that nobody else knows of.
                None => self.first_record_is_key(&ledger, &segment).or_else(|| {
                    let known = segment.first <= ledger.newest_segment;
                    known.then_some(false)
                }),
            };
            let Some(starts_with_key) = evidence else {
                self.quarantine(&segment::name(segment.first))?;
                continue;
            };
            let FoundSegment { first, bytes, header } = segment;
            segments.push_back(Segment { first, bytes, starts_with_key, damaged: header.is_none() });
        }
        if cursor.is_none()
            && let (Some(oldest), Some(newest)) = (segments.front(), segments.back())
        {
            ledger.acknowledged = oldest.first - 1;
            ledger.next = newest.first;
            ledger.newest_segment = newest.first;
        }
        let cursor = match cursor {
            _ if self.look => None,
            Some(cursor) => Some(cursor),
            None => Some(Cursor::create(self.directory, &ledger)?),
        };
        Ok((cursor, ledger, segments))
    }

    /// Walks the newest segment, and no other, to its end.
    fn tail(&mut self, ledger: &Ledger, segments: &VecDeque<Segment>, size: u64) -> Result<Tail, SpoolError> {
        let Some(newest) = segments.back() else {
            return Ok(Tail { highest: ledger.acknowledged, given_out: ledger.acknowledged, ..Tail::default() });
        };
        let name = segment::name(newest.first);
        let failed = |source| SpoolError::Io { doing: "read", path: self.directory.path().join(&name), source };
        let file = self.directory.open_file(&name).map_err(failed)?;
        let mut walk = Walk::new(file, Seed::of(ledger.epoch, newest.first), newest.bytes);
        let (mut tail, records) = walk_tail(&mut walk, newest.first, newest.bytes, size).map_err(failed)?;
        self.recovery.scanned_records += records;
        self.recovery.read_bytes += walk.read_bytes();
        self.recovery.torn_bytes = tail.torn;
        tail.file = Some(walk.into_file());
        Ok(tail)
    }

    /// Accounts for the numbers that were given out and are in no segment; gives back whether the ledger changed.
    fn settle(&self, ledger: &mut Ledger, segments: &VecDeque<Segment>, tail: &Tail, options: &Options) -> bool {
        let before = ledger.clone();
        let newest = segments.back().map_or(0, |segment| segment.first);
        let mut given_out = tail.given_out.max(ledger.last());
        if ledger.newest_segment > newest {
            // Somebody removed it, and nobody knows how many records it held: as many as it could.
            given_out = given_out.max(ledger.newest_segment + options.segment_bytes / RECORD_HEADER as u64);
        }
        ledger.newest_segment = ledger.newest_segment.max(newest);
        let mut number = tail.highest.max(ledger.acknowledged) + 1;
        while number <= given_out {
            number = match (ledger.lost.at(number), ledger.lost.next_from(number)) {
                (Some(range), _) => range.last + 1,
                // What waited in memory before a number that the disk did not take was not taken either.
                (None, Some(next)) => {
                    let reason = ledger.lost.at(next).map_or(LostReason::Corrupt, |range| range.reason);
                    ledger.lose(number, next - 1, reason);
                    next
                }
                (None, None) => {
                    ledger.lose(number, given_out, LostReason::Corrupt);
                    given_out + 1
                }
            };
        }
        ledger.next = ledger.next.max(given_out + 1);
        *ledger != before
    }

    /// Whether a segment without a header begins with a key; `None` when there is no record of it at all.
    fn first_record_is_key(&self, ledger: &Ledger, segment: &FoundSegment) -> Option<bool> {
        let file = self.directory.open_file(&segment::name(segment.first)).ok()?;
        let mut walk = Walk::new(file, Seed::of(ledger.epoch, segment.first), segment.bytes);
        let place = walk.resync(segment.first).ok()??;
        Some(place.header.key && place.header.sequence == segment.first)
    }

    fn set_cursor_aside(&mut self, found: &Found) -> Result<(), SpoolError> {
        if matches!(found, Found::Unreadable) { self.quarantine(cursor::NAME) } else { Ok(()) }
    }

    fn quarantine(&mut self, name: &str) -> Result<(), SpoolError> {
        if self.look {
            self.recovery.quarantined.push(self.directory.path().join(name));
            return Ok(());
        }
        let path = self.room.quarantine(self.directory, name)?;
        self.directory.sync()?;
        self.recovery.quarantined.push(path);
        Ok(())
    }
}

/// Goes on writing the newest segment when it ends in zeros, as it should; otherwise blanks what cannot be read and
/// leaves it.
fn take_up_newest(log: &mut DiskLog, tail: Tail) {
    let (Some(newest), Some(file)) = (log.segments.back_mut(), tail.file) else { return };
    newest.damaged |= tail.damaged;
    if tail.torn > 0 {
        // Nothing of it is needed: the ledger has its numbers. Left there it would be found again at the next start.
        let until = newest.bytes.min(tail.end + tail.torn);
        let blanked = file.blank(tail.end, until, tail.size).and_then(|()| file.rewrite(tail.end));
        newest.bytes = tail.size;
        if let Err(error) = blanked {
            log.note(&error);
        }
        return;
    }
    let usable = !tail.damaged && newest.bytes == log.options.segment_bytes && tail.end < log.options.full_at();
    // The process before may have written without a sync, or with one that failed.
    match file.rewrite(tail.end) {
        Ok(()) if usable => {
            log.active = Some(Active { seed: Seed::of(log.ledger.epoch, newest.first), file, end: tail.end });
        }
        Ok(()) => {}
        Err(error) => log.note(&error),
    }
}

/// Finds the end of a segment of `bytes` bytes that should have `size`; gives back also how many records there are.
fn walk_tail(walk: &mut Walk, first: u64, bytes: u64, size: u64) -> io::Result<(Tail, u64)> {
    let mut tail = Tail { highest: first - 1, end: HEADER, size, ..Tail::default() };
    let mut records = 0;
    let mut written = None;
    loop {
        let mut next = walk.next()?;
        if next.is_none() {
            // The usual end is zeros, quickly told from damage.
            written = walk.written_after(walk.offset())?;
            if written.is_some() {
                next = walk.resync(tail.highest + 1)?;
                tail.damaged |= next.is_some();
            }
        }
        let Some(place) = next else { break };
        if place.header.sequence <= tail.highest || place.header.sequence - tail.highest > MAX_JUMP {
            tail.damaged = true;
            continue;
        }
        records += 1;
        (tail.highest, tail.end) = (place.header.sequence, place.end());
    }
    tail.given_out = tail.highest;
    let written = if bytes < size { Some(size) } else { written };
    if let Some(written) = written.filter(|written| *written > tail.end) {
        tail.torn = written - tail.end;
        tail.given_out = given_out(walk, &tail)?;
    }
    Ok((tail, records))
}

/// The highest number that may have been given out, by what can be made of a torn or damaged end. When a record's
/// header is whole, its number is known; for bytes of which nothing is known, as many records as would fit.
fn given_out(walk: &mut Walk, tail: &Tail) -> io::Result<u64> {
    let (mut number, mut offset, written) = (tail.highest, tail.end, tail.end + tail.torn);
    while let Some(place) = walk.header_from(offset, number + 1)? {
        if place.header.sequence - number <= MAX_JUMP {
            number = place.header.sequence;
            offset = place.end();
        } else {
            offset = place.offset + segment::ALIGNMENT;
        }
    }
    Ok(number + written.saturating_sub(offset).div_ceil(RECORD_HEADER as u64))
}
