//! The spool as its users see it, on disk or in memory.

use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::disk::{ATTEMPTS, DiskLog, Failure};
use crate::error::SpoolError;
use crate::ledger::Ledger;
use crate::lost::{LostRange, LostReason};
use crate::memory::MemoryLog;
use crate::open;
use crate::options::{Options, Overflow};
use crate::reader::{self, Reader};
use crate::recovery::Recovery;
use crate::segment::MAX_NUMBER;
use crate::status::{Fault, FaultKind, Status};

/// A durable, bounded queue of numbered records.
///
/// Its calls block on the disk; call them where that is allowed.
#[derive(Debug)]
pub struct Spool {
    pub(crate) store: Store,
}

#[derive(Debug)]
pub(crate) enum Store {
    Disk(Box<DiskLog>),
    Memory(MemoryLog),
}

impl Spool {
    /// Opens the spool in `options.directory`, or begins one. `epoch` is a fresh random number; it is used only when
    /// there is nothing to take up.
    ///
    /// Damage is never an error: what can be read is kept, the rest is set aside, and both are in the [`Recovery`].
    ///
    /// # Errors
    /// Sizes that cannot work, a directory that cannot be written, one that another process has open, a disk too full
    /// to begin.
    pub fn open(options: Options, epoch: u64) -> Result<(Self, Recovery), SpoolError> {
        let (log, recovery) = open::open(options, epoch)?;
        Ok((Self { store: Store::Disk(Box::new(log)) }, recovery))
    }

    /// Looks at the spool in `options.directory`: finds what [`Self::open`] would, which then is not done yet, and can be read.
    /// Nothing is written, renamed or removed, but for a lock file: nobody else has the spool open meanwhile.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn look(options: Options) -> Result<(Self, Recovery), SpoolError> {
        let (log, recovery) = open::look(options)?;
        Ok((Self { store: Store::Disk(Box::new(log)) }, recovery))
    }

    /// A spool that is gone with the process and holds at most `capacity_bytes`.
    pub fn memory(capacity_bytes: u64, epoch: u64) -> Self {
        Self { store: Store::Memory(MemoryLog::new(capacity_bytes, epoch)) }
    }

    /// The spool's life that its numbers belong to.
    pub fn epoch(&self) -> u64 {
        self.ledger().epoch
    }

    /// The first number that is not acknowledged; `last() + 1` when all are.
    pub fn first(&self) -> u64 {
        self.ledger().first()
    }

    /// The last number given out, 0 before the first.
    pub fn last(&self) -> u64 {
        self.ledger().last()
    }

    /// Everything up to and including this number is acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.ledger().acknowledged
    }

    /// Longest record that [`Self::append`] takes, in bytes.
    pub fn max_record(&self) -> usize {
        match &self.store {
            Store::Disk(log) => log.max_record(),
            Store::Memory(log) => log.max_record(),
        }
    }

    /// Whether there is room for a key record of so many bytes without an older one giving way; the disk may still be full.
    pub fn fits(&self, length: usize) -> bool {
        match &self.store {
            Store::Disk(log) => log.fits(length),
            Store::Memory(log) => log.fits(length),
        }
    }

    /// Whether the next record should be a key: it begins a segment, follows a loss, or is the first since the spool
    /// was opened. Segments then decode alone, and dropping the oldest costs only itself.
    pub fn needs_key(&self) -> bool {
        match &self.store {
            Store::Disk(log) => log.needs_key(),
            Store::Memory(log) => log.needs_key(),
        }
    }

    /// Gives `record` the next number. It is durable after [`Self::sync`], and only then handed out by a [`Reader`].
    ///
    /// When the disk is full the record waits in memory for it; beyond a bound its number is lost instead
    /// ([`LostReason::DiskFull`]), which [`Self::status`] shows; with [`Overflow::DropNewest`] also when all room is used, and
    /// then the sync loses what waits. With [`Overflow::Refuse`] it is refused there, with
    /// the error of the disk or [`SpoolError::Full`], and no number is used up; with [`Overflow::OldestOrRefuse`], with the
    /// error of the disk.
    ///
    /// # Errors
    /// [`SpoolError::NeedsKey`] when the record is no key and has to be one, which [`Self::needs_key`] says in most
    /// cases before and in all cases after: encode it again as a key. [`SpoolError::TooLarge`]. No number is used up.
    pub fn append(&mut self, record: &[u8], key: bool) -> Result<u64, SpoolError> {
        let (length, limit) = (record.len(), self.max_record());
        if length > limit {
            return Err(SpoolError::TooLarge { length, limit });
        }
        match &mut self.store {
            Store::Disk(log) => log.append(record, key),
            Store::Memory(log) if !key && log.needs_key() => Err(SpoolError::NeedsKey),
            Store::Memory(log) => Ok(log.append(record, key)),
        }
    }

    /// Appends many key records, for one [`Self::sync`] after them; gives back their numbers, `None` for no records.
    ///
    /// # Errors
    /// As [`Self::append`]; the records before the one refused are appended.
    pub fn append_many<R: AsRef<[u8]>>(
        &mut self,
        records: impl IntoIterator<Item = R>,
    ) -> Result<Option<RangeInclusive<u64>>, SpoolError> {
        let mut numbers: Option<RangeInclusive<u64>> = None;
        for record in records {
            let number = self.append(record.as_ref(), true)?;
            numbers = Some(numbers.map_or(number, |numbers| *numbers.start())..=number);
        }
        Ok(numbers)
    }

    /// Makes everything appended durable, with one sync of the disk in the usual case.
    ///
    /// # Errors
    /// When the disk is full or fails. What was appended is kept in memory within a bound, and the next call tries
    /// again.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        match &mut self.store {
            Store::Disk(log) => log.sync(),
            Store::Memory(_) => Ok(()),
        }
    }

    /// As [`Self::sync`], of a spool that is shared: while the disk writes a group it is not locked, so nobody who reads it
    /// or acknowledges waits for the disk. Appending meanwhile is allowed, as far as it needs no sync itself.
    ///
    /// # Errors
    /// As [`Self::sync`]; [`SpoolError::Syncing`] when another sync is under way.
    pub fn sync_shared(shared: &Mutex<Self>) -> Result<(), SpoolError> {
        let begin = || match &mut lock(shared).store {
            Store::Disk(log) => log.begin_flush(),
            Store::Memory(_) => Ok(None),
        };
        let mut flushed = Ok(());
        for _ in 0..ATTEMPTS {
            let flight = match begin() {
                Ok(Some(flight)) => flight,
                Ok(None) => break,
                Err(error @ SpoolError::Syncing) => return Err(error),
                Err(error) => {
                    flushed = Err(error);
                    break;
                }
            };
            let written = flight.write();
            if let Store::Disk(log) = &mut lock(shared).store {
                flushed = log.end_flush(flight, written);
            }
            if flushed.is_ok() {
                break;
            }
        }
        match &mut lock(shared).store {
            Store::Disk(log) => log.after_flush(flushed),
            Store::Memory(_) => Ok(()),
        }
    }

    /// Takes note that everything up to and including `through` has arrived. Room is given back by whole segments.
    ///
    /// # Errors
    /// When the disk fails, and [`SpoolError::Ahead`] when `through` was never given out.
    pub fn acknowledge(&mut self, through: u64) -> Result<(), SpoolError> {
        let last = self.last();
        if through >= MAX_NUMBER {
            return Err(SpoolError::Ahead { through, last });
        }
        match &mut self.store {
            Store::Disk(log) => log.acknowledge(through),
            Store::Memory(log) => {
                if log.ledger.acknowledge(through) {
                    log.retire();
                }
                if through > last { Err(SpoolError::Ahead { through, last }) } else { Ok(()) }
            }
        }
    }

    /// Gives up what is durable through `through` and not acknowledged, for this reason: a [`Reader`] gives it as lost. Room
    /// is given back by whole segments. For records that are all keys: a delta after it would be lost, too.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn discard(&mut self, through: u64, reason: LostReason) -> Result<(), SpoolError> {
        match &mut self.store {
            Store::Disk(log) => log.discard(through, reason),
            Store::Memory(log) => {
                log.discard(through, reason);
                Ok(())
            }
        }
    }

    /// Makes durable what is acknowledged, and gives back the room that an acknowledgement could not. Without it that is
    /// durable once a segment is given back, and what was acknowledged since is pending again after a crash.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn save_acknowledged(&mut self) -> Result<(), SpoolError> {
        match &mut self.store {
            Store::Disk(log) => log.save().and_then(|()| log.retire()),
            Store::Memory(_) => Ok(()),
        }
    }

    /// Keeps what is acknowledged beyond this process's end, without a sync: after a power cut, what was last made durable
    /// counts.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn note_acknowledged(&mut self) -> Result<(), SpoolError> {
        match &mut self.store {
            Store::Disk(log) => log.jot(),
            Store::Memory(_) => Ok(()),
        }
    }

    /// A reader that begins with `number`. For delta records begin at [`Self::last_key_at_or_before`].
    pub fn read_from(&self, number: u64) -> Reader {
        Reader::new(number)
    }

    /// A reader from the first number that is not acknowledged, for the one who delivers what it gives, in place of the
    /// reader before, if there was one: what is dropped of what it gave counts as lost only when this is called again.
    pub fn deliver(&mut self) -> Reader {
        let ledger = match &mut self.store {
            Store::Disk(log) => &mut log.ledger,
            Store::Memory(log) => &mut log.ledger,
        };
        ledger.begin_delivery();
        Reader::delivering(ledger.first())
    }

    /// The last durable key at or before `number` that is still here: where reading has to begin.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn last_key_at_or_before(&self, number: u64) -> Result<Option<u64>, SpoolError> {
        match &self.store {
            Store::Disk(log) => reader::last_key(log, number),
            Store::Memory(log) => Ok(log.last_key_at_or_before(number)),
        }
    }

    /// What is lost and not acknowledged yet, in order.
    pub fn lost(&self) -> &[LostRange] {
        self.ledger().lost.as_slice()
    }

    /// How the spool is doing.
    pub fn status(&self) -> Status {
        let ledger = self.ledger();
        let (bytes, capacity_bytes, fault) = match &self.store {
            Store::Disk(log) => (log.bytes(), log.options.capacity_bytes, fault(log)),
            Store::Memory(log) => (log.bytes(), log.capacity(), None),
        };
        Status { pending: ledger.pending(), bytes, capacity_bytes, lost: ledger.lost_total, fault }
    }

    fn ledger(&self) -> &Ledger {
        match &self.store {
            Store::Disk(log) => &log.ledger,
            Store::Memory(log) => &log.ledger,
        }
    }
}

fn lock(shared: &Mutex<Spool>) -> MutexGuard<'_, Spool> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Store::Disk(log) = &mut self.store {
            log.finish();
        }
    }
}

/// The worst that is wrong, with advice.
fn fault(log: &DiskLog) -> Option<Fault> {
    let place = log.directory.path().display();
    let fault = |kind, message| Some(Fault { kind, message });
    match &log.failure {
        Some(Failure::Full) => {
            let then = match log.options.overflow {
                Overflow::DropOldest | Overflow::DropNewest => "lost",
                Overflow::OldestOrRefuse | Overflow::Refuse => "refused",
            };
            return fault(
                FaultKind::DiskFull,
                format!(
                    "the disk that holds {place} is full and new records are kept in memory, then {then}: free some space"
                ),
            );
        }
        Some(Failure::Io(what)) => return fault(FaultKind::Io, what.clone()),
        Some(Failure::Capacity) | None => {}
    }
    if log.short {
        let missing = log.options.reserve_bytes;
        return fault(
            FaultKind::DiskFull,
            format!(
                "the disk that holds {place} has no room left for the reserve of {missing} bytes; nothing is lost yet: free some space"
            ),
        );
    }
    let damaged: u64 =
        log.ledger.lost.as_slice().iter().filter(|range| range.reason == LostReason::Corrupt).map(LostRange::len).sum();
    if damaged > 0 {
        return fault(
            FaultKind::Corrupt,
            format!(
                "{damaged} records in {place} were damaged and are lost; check the disk and its file system if it happens again"
            ),
        );
    }
    None
}
