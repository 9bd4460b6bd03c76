//! The log on disk: groups of records go to the newest segment, acknowledged segments are given back, and when all
//! room is used the oldest is dropped.

use std::collections::VecDeque;

use crate::cursor::Cursor;
use crate::error::SpoolError;
use crate::file::{Directory, SpoolFile};
use crate::ledger::Ledger;
use crate::lost::LostReason;
use crate::options::{Options, Overflow};
use crate::room::Room;
use crate::segment::{self, HEADER, PAGE, Seed, SegmentHeader};
use crate::walk::Walk;

/// Memory a group keeps while there is nothing in it.
const IDLE_GROUP: usize = 64 << 10;
/// Segments tried for one group before the disk is taken for broken.
pub(crate) const ATTEMPTS: usize = 3;

/// The log on disk.
#[derive(Debug)]
pub(crate) struct DiskLog {
    pub(crate) options: Options,
    pub(crate) directory: Directory,
    /// Nothing when the spool is only looked at: then nothing of it is written.
    pub(crate) cursor: Option<Cursor>,
    pub(crate) ledger: Ledger,
    /// Oldest first; the last may be the one that is written.
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) active: Option<Active>,
    pub(crate) room: Room,
    pub(crate) group: Group,
    /// Bytes of the group that is being written; 0: none is.
    pub(crate) flying: u64,
    /// The last number that is durable, as a record or as a loss.
    pub(crate) durable: u64,
    /// The next record has to be a key, whatever the segment says.
    pub(crate) key_due: bool,
    /// The ledger knows of losses that the cursor file does not.
    pub(crate) unsaved: bool,
    /// Why the last write failed.
    pub(crate) failure: Option<Failure>,
    /// The disk has no room for the reserve.
    pub(crate) short: bool,
}

/// A segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Number of its first record; the file is named after it.
    pub(crate) first: u64,
    pub(crate) bytes: u64,
    pub(crate) starts_with_key: bool,
    /// Damage was found in it: it is set aside, not given back.
    pub(crate) damaged: bool,
}

/// The segment that is written.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) file: SpoolFile,
    pub(crate) seed: Seed,
    /// Where its durable records end.
    pub(crate) end: u64,
}

/// Records that are not durable yet. They stay here until they are, so that a failed segment loses none of them.
#[derive(Debug, Default)]
pub(crate) struct Group {
    bytes: Vec<u8>,
    first: u64,
    last: u64,
    starts_with_key: bool,
}

/// A group on its way to the disk. Nothing of the log is needed meanwhile.
#[derive(Debug)]
pub(crate) struct Flight {
    group: Group,
    file: SpoolFile,
    at: u64,
}

impl Flight {
    /// Writes the group and makes it durable.
    pub(crate) fn write(&self) -> Result<(), SpoolError> {
        self.file.write_at(&self.group.bytes, self.at).map_err(|source| self.file.failed("write", source))?;
        self.file.sync()
    }
}

/// Why a write failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// All the room that the spool may take is used: no fault of the disk's.
    Capacity,
    Full,
    Io(String),
}

impl DiskLog {
    pub(crate) fn needs_key(&self) -> bool {
        self.key_due || self.planned_end() == HEADER || self.planned_end() >= self.options.full_at()
    }

    /// Longest record.
    pub(crate) fn max_record(&self) -> usize {
        self.options.max_record()
    }

    /// Whether there is room for a key record of so many bytes beside all that is here.
    pub(crate) fn fits(&self, length: usize) -> bool {
        let (end, segment) = (self.planned_end(), self.options.segment_bytes);
        let rolls = end + segment::record_size(length) > segment || end >= self.options.full_at();
        // Without a segment that is written, the group begins one.
        let wanted = u64::from(self.active.is_none()) + u64::from(rolls);
        self.segment_bytes() + wanted * segment <= self.options.capacity_bytes
    }

    /// Numbers a record and keeps it for the next sync; the caller has checked its length.
    pub(crate) fn append(&mut self, record: &[u8], key: bool) -> Result<u64, SpoolError> {
        if self.cursor.is_none() {
            return Err(SpoolError::LookedAt);
        }
        let size = segment::record_size(record.len());
        let fits = self.planned_end() + size <= self.options.segment_bytes;
        if !key && (self.needs_key() || !fits) {
            self.key_due = true;
            return Err(SpoolError::NeedsKey);
        }
        let rolls = !fits || (key && self.planned_end() >= self.options.full_at());
        // What would pass the group's bound writes first.
        let overflows = self.group.bytes.len() as u64 + size > self.options.group_bytes as u64;
        if rolls || overflows {
            match (self.flush(), self.options.overflow) {
                (Ok(()), _) => {}
                (Err(error @ SpoolError::Syncing), _) => return Err(error),
                (Err(_), Overflow::DropOldest) => return Ok(self.lose_new(LostReason::DiskFull)),
                (Err(error), _) => match self.gives_way(&error) {
                    Some(reason) => return Ok(self.lose_new(reason)),
                    None => return Err(error),
                },
            }
        }
        if rolls {
            self.active = None;
        }
        let number = self.ledger.take();
        self.group.push(number, key, record);
        self.key_due = false;
        Ok(number)
    }

    /// Makes every record and loss durable, and sees to the reserve.
    pub(crate) fn sync(&mut self) -> Result<(), SpoolError> {
        if self.flying > 0 {
            return Err(SpoolError::Syncing);
        }
        let flushed = self.flush();
        self.after_flush(flushed)
    }

    /// The rest of a sync, whose records are flushed or not.
    pub(crate) fn after_flush(&mut self, mut flushed: Result<(), SpoolError>) -> Result<(), SpoolError> {
        let written = flushed.is_ok();
        if let Err(error) = &flushed {
            self.note(error);
            if let Some(reason) = self.gives_way(error) {
                self.lose_group(reason);
                flushed = Ok(());
            }
        }
        if self.unsaved {
            self.save()?;
        }
        if written {
            self.failure = None;
        }
        if self.short {
            self.top_up();
        }
        flushed
    }

    /// Takes note that everything through `through` has arrived, and gives back the segments that nobody needs.
    pub(crate) fn acknowledge(&mut self, through: u64) -> Result<(), SpoolError> {
        let last = self.ledger.last();
        if !self.ledger.acknowledge(through) {
            return Ok(());
        }
        if through > last {
            self.group.clear();
            self.flying = 0;
            self.active = None;
            self.key_due = true;
            self.durable = through;
            self.save()?;
        }
        self.retire()?;
        if through > last { Err(SpoolError::Ahead { through, last }) } else { Ok(()) }
    }

    /// Gives up all that is durable through `through`, and the room of whole segments.
    pub(crate) fn discard(&mut self, through: u64, reason: LostReason) -> Result<(), SpoolError> {
        if self.cursor.is_none() {
            return Err(SpoolError::LookedAt);
        }
        let through = through.min(self.durable);
        if !self.ledger.lose(self.ledger.first(), through, reason) {
            return Ok(());
        }
        self.save()?;
        while self.segments.len() > 1 && self.last_of(0) <= through {
            let Some(segment) = self.segments.pop_front() else { break };
            self.room.recycle(&self.directory, &self.options, &segment::name(segment.first))?;
        }
        self.directory.sync()
    }

    /// Writes what is left and saves the acknowledgements. Nobody is promised that: it spares sending twice.
    pub(crate) fn finish(&mut self) {
        let _ = self.flush();
        let _ = self.save();
    }

    /// Bytes of the segments that hold pending records.
    pub(crate) fn bytes(&self) -> u64 {
        let from = self.locate(self.ledger.first()).unwrap_or(0);
        let sealed = self.segments.len() - usize::from(self.active.is_some());
        let backlog: u64 = self.segments.range(from.min(sealed)..sealed).map(|segment| segment.bytes).sum();
        backlog + self.active.as_ref().map_or(0, |active| active.end) + self.flying + self.group.bytes.len() as u64
    }

    /// Index of the segment that would hold `number`.
    pub(crate) fn locate(&self, number: u64) -> Option<usize> {
        self.segments.partition_point(|segment| segment.first <= number).checked_sub(1)
    }

    /// The last number that belongs to the segment at `index`.
    pub(crate) fn last_of(&self, index: usize) -> u64 {
        self.segments.get(index + 1).map_or(self.durable, |next| next.first - 1)
    }

    /// Opens the segment at `index` to read its durable records.
    pub(crate) fn walk(&self, index: usize) -> Result<Option<Walk>, SpoolError> {
        let Some(segment) = self.segments.get(index) else { return Ok(None) };
        let name = segment::name(segment.first);
        let end = self.readable_end(index);
        match self.directory.open_file(&name) {
            Ok(file) => Ok(Some(Walk::new(file, Seed::of(self.ledger.epoch, segment.first), end))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SpoolError::Io { doing: "open", path: self.directory.path().join(name), source }),
        }
    }

    /// Where the readable bytes of the segment at `index` end.
    pub(crate) fn readable_end(&self, index: usize) -> u64 {
        match &self.active {
            Some(active) if index + 1 == self.segments.len() => active.end,
            _ => self.segments.get(index).map_or(0, |segment| segment.bytes),
        }
    }

    /// Notes a loss that was found while reading. It is durable before anybody hears of it.
    pub(crate) fn lose_damaged(&mut self, index: Option<usize>, first: u64, last: u64) -> Result<(), SpoolError> {
        if let Some(segment) = index.and_then(|index| self.segments.get_mut(index)) {
            segment.damaged = true;
        }
        if self.ledger.lose(first, last, LostReason::Corrupt) {
            self.save()?;
        }
        Ok(())
    }

    /// Saves the ledger.
    pub(crate) fn save(&mut self) -> Result<(), SpoolError> {
        let ledger = self.ledger_of_disk();
        let Some(cursor) = &mut self.cursor else { return Ok(()) };
        self.unsaved = true;
        cursor.save(&self.directory, &ledger).inspect_err(|error| self.failure = Some(Failure::of(error)))?;
        self.unsaved = false;
        Ok(())
    }

    /// Writes the ledger without a sync.
    pub(crate) fn jot(&mut self) -> Result<(), SpoolError> {
        let ledger = self.ledger_of_disk();
        let Some(cursor) = &mut self.cursor else { return Ok(()) };
        cursor.note(&self.directory, &ledger).inspect_err(|error| self.failure = Some(Failure::of(error)))
    }

    /// The ledger as far as the disk is concerned: what only waits in memory is not given out yet.
    fn ledger_of_disk(&self) -> Ledger {
        let mut ledger = self.ledger.clone();
        // Nobody has it any more after a crash.
        ledger.lost_total += std::mem::take(&mut ledger.held).count();
        let lost = ledger.lost.last().unwrap_or(0);
        ledger.next = self.durable.max(lost).max(ledger.acknowledged) + 1;
        ledger
    }

    /// Notes a failure that is not the caller's business, for the status.
    pub(crate) fn note(&mut self, error: &SpoolError) {
        self.failure = Some(Failure::of(error));
    }

    /// Allocates what is missing of the reserve.
    pub(crate) fn top_up(&mut self) {
        let segments = self.segment_bytes();
        self.short = !self.room.top_up(&self.directory, &self.options, segments);
    }

    /// Gives back the segments before the one that the first pending record needs.
    pub(crate) fn retire(&mut self) -> Result<(), SpoolError> {
        let pending = self.ledger.first();
        let keep = self.segments.iter().rposition(|segment| segment.starts_with_key && segment.first <= pending);
        let Some(count @ 1..) = keep.filter(|_| self.cursor.is_some()) else { return Ok(()) };
        self.save()?;
        for segment in self.segments.drain(..count) {
            let name = segment::name(segment.first);
            let gone = if segment.damaged {
                self.room.quarantine(&self.directory, &name).map(drop)
            } else {
                self.room.recycle(&self.directory, &self.options, &name)
            };
            // A file that will not go is in nobody's way; the next start finds it.
            self.failure = gone.err().map(|error| Failure::of(&error)).or(self.failure.take());
        }
        self.directory.sync()
    }

    /// Where the newest segment will end once the group is in it.
    fn planned_end(&self) -> u64 {
        self.active.as_ref().map_or(HEADER, |active| active.end) + self.flying + self.group.bytes.len() as u64
    }

    fn segment_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Gives the new record a number only to say that it is lost; the sync that follows makes that durable.
    fn lose_new(&mut self, reason: LostReason) -> u64 {
        let number = self.ledger.take();
        self.ledger.lose(number, number, reason);
        self.unsaved = true;
        self.key_due = true;
        number
    }

    /// Whether the oldest gives way when all room is used.
    fn drops_oldest(&self) -> bool {
        matches!(self.options.overflow, Overflow::DropOldest | Overflow::OldestOrRefuse)
    }

    /// Why what is new is lost with this error, when it is to give way.
    fn gives_way(&self, error: &SpoolError) -> Option<LostReason> {
        match (self.options.overflow, error) {
            (Overflow::DropNewest, SpoolError::Full { .. }) => Some(LostReason::Overflow),
            (Overflow::DropNewest, SpoolError::NoSpace { .. }) => Some(LostReason::DiskFull),
            _ => None,
        }
    }

    /// Gives up the group, whose numbers are given out; the sync makes that durable.
    fn lose_group(&mut self, reason: LostReason) {
        if !self.group.bytes.is_empty() {
            self.ledger.lose(self.group.first, self.group.last, reason);
            self.group.clear();
            self.unsaved = true;
            self.key_due = true;
        }
    }

    /// Writes the group and syncs it. A segment that fails is left as it is, and the whole group goes into the next.
    fn flush(&mut self) -> Result<(), SpoolError> {
        if self.flying > 0 {
            return Err(SpoolError::Syncing);
        }
        if self.group.bytes.is_empty() {
            return Ok(());
        }
        let flushed = self.try_flush();
        self.failure = flushed.as_ref().err().map(Failure::of);
        flushed
    }

    fn try_flush(&mut self) -> Result<(), SpoolError> {
        let mut failed = None;
        for _ in 0..ATTEMPTS {
            let Some(flight) = self.begin_flush()? else { return Ok(()) };
            let written = flight.write();
            match self.end_flush(flight, written) {
                Ok(()) => return Ok(()),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| self.directory.full()))
    }

    /// Makes the group ready to be written, where the log does not have to be kept still; `None` when it is empty.
    pub(crate) fn begin_flush(&mut self) -> Result<Option<Flight>, SpoolError> {
        if self.flying > 0 {
            return Err(SpoolError::Syncing);
        }
        if self.group.bytes.is_empty() {
            return Ok(None);
        }
        let active = match self.active.take() {
            Some(active) => active,
            None => self.begin_segment()?,
        };
        segment::stamp(&mut self.group.bytes, active.seed);
        self.flying = self.group.bytes.len() as u64;
        let flight = Flight { group: std::mem::take(&mut self.group), file: active.file.share(), at: active.end };
        self.active = Some(active);
        Ok(Some(flight))
    }

    /// Takes note of what became of a flight. After a failure its records are in the group again, for the next segment.
    pub(crate) fn end_flush(&mut self, flight: Flight, written: Result<(), SpoolError>) -> Result<(), SpoolError> {
        let Flight { mut group, .. } = flight;
        // Whoever receives has acknowledged more than there was meanwhile: nothing of it counts any more.
        let (1.., Some(active)) = (std::mem::take(&mut self.flying), &mut self.active) else { return Ok(()) };
        match written {
            Ok(()) => {
                active.end += group.bytes.len() as u64;
                self.durable = group.last;
                group.clear();
                if self.group.bytes.is_empty() {
                    self.group = group;
                }
                Ok(())
            }
            Err(error) => {
                if let Some(active) = self.active.take() {
                    self.abandon(&active);
                }
                self.group.put_before(group);
                Err(error)
            }
        }
    }

    /// The newest segment is written no more. One without a durable record is forgotten, but its file stays until the
    /// next takes its name: while it is there, nobody takes what the segment before it has beyond for records.
    fn abandon(&mut self, active: &Active) {
        if active.end == HEADER {
            self.segments.pop_back();
        }
    }

    /// Makes a durable segment for the group.
    fn begin_segment(&mut self) -> Result<Active, SpoolError> {
        let (spare, file) = loop {
            let segments = self.segment_bytes();
            match self.room.take(&self.directory, &self.options, segments)? {
                Some(taken) => break taken,
                None if self.drops_oldest() => self.drop_oldest()?,
                None => return Err(SpoolError::Full { capacity: self.options.capacity_bytes }),
            }
        };
        let (epoch, first, starts_with_key) = (self.ledger.epoch, self.group.first, self.group.starts_with_key);
        let pages = u32::try_from(self.options.segment_bytes / PAGE).unwrap_or(u32::MAX);
        let header = SegmentHeader { epoch, first, starts_with_key, pages }.to_bytes();
        let written = file.write_at(&header, 0).map_err(|source| file.failed("write", source));
        let named = written.and_then(|()| file.sync()).and_then(|()| {
            self.directory.rename(&spare, &segment::name(first))?;
            self.directory.sync()
        });
        if let Err(error) = named {
            // When it has its new name already, it stays, as an abandoned one does.
            let _ = self.directory.remove(&spare);
            return Err(error);
        }
        let bytes = self.options.segment_bytes;
        self.segments.push_back(Segment { first, bytes, starts_with_key, damaged: false });
        self.ledger.newest_segment = first;
        // That the cursor names the newest segment only serves to notice when somebody removes the file.
        let _ = self.save();
        self.top_up();
        Ok(Active { file, seed: Seed::of(epoch, first), end: HEADER })
    }

    /// Drops the oldest segment, and what cannot be read without it.
    fn drop_oldest(&mut self) -> Result<(), SpoolError> {
        let (Some(oldest), true) = (self.segments.front().copied(), self.segments.len() > 1) else {
            return Err(self.directory.full());
        };
        let key = self.first_key(1)?;
        self.ledger.lose(oldest.first, key - 1, LostReason::Overflow);
        self.save()?;
        self.segments.pop_front();
        self.room.recycle(&self.directory, &self.options, &segment::name(oldest.first))?;
        self.directory.sync()
    }

    /// Number of the first key from the segment at `index` on.
    fn first_key(&self, index: usize) -> Result<u64, SpoolError> {
        for index in index..self.segments.len() {
            let segment = self.segments[index];
            if segment.starts_with_key {
                return Ok(segment.first);
            }
            let Some(mut walk) = self.walk(index)? else { continue };
            let read = |source| SpoolError::Io { doing: "read", path: self.directory.path().to_owned(), source };
            while let Some(place) = walk.resync(segment.first).map_err(read)? {
                if place.header.key && place.header.sequence <= self.last_of(index) {
                    return Ok(place.header.sequence);
                }
            }
        }
        Ok(self.durable + 1)
    }
}

impl Group {
    fn push(&mut self, number: u64, key: bool, record: &[u8]) {
        if self.bytes.is_empty() {
            self.first = number;
            self.starts_with_key = key;
        }
        self.last = number;
        segment::push_record(&mut self.bytes, number, key, record);
    }

    /// Puts these in front, which come before.
    fn put_before(&mut self, mut earlier: Self) {
        if !self.bytes.is_empty() {
            earlier.bytes.append(&mut self.bytes);
            earlier.last = self.last;
        }
        *self = earlier;
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(IDLE_GROUP);
    }
}

impl Failure {
    fn of(error: &SpoolError) -> Self {
        match error {
            SpoolError::Full { .. } => Self::Capacity,
            SpoolError::NoSpace { .. } => Self::Full,
            other => {
                let cause = std::error::Error::source(other).map(|cause| format!(": {cause}"));
                Self::Io(format!("{other}{}", cause.unwrap_or_default()))
            }
        }
    }
}
