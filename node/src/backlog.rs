//! The batches the hub has not stored yet: a spool, on disk or in memory, shared by recorder and link.

use std::sync::{Arc, Mutex, PoisonError};

use protocol::message::{self, LostReason, SpoolRange, SpoolStatus};
use protocol::{Sequence, SpoolEpoch, frame};
use spool::{FaultKind, Reader, Spool};
use tokio::sync::watch;

use crate::file::FileError;

pub use spool::{Options, Recovery, SpoolError};

/// A node's backlog; clones share it. Files are read and written off the runtime's thread.
#[derive(Clone)]
pub struct Backlog(Arc<Shared>);

struct Shared {
    store: Mutex<Store>,
    /// On disk: calls go to a thread that may block.
    blocks: bool,
    known: watch::Sender<Known>,
    status: watch::Sender<SpoolStatus>,
}

/// The spool, in the hands of one who may block.
pub(crate) struct Store {
    spool: Spool,
    /// Where the link reads on; a new one would have to search its segment from the start.
    reader: Reader,
    durable: Sequence,
}

/// What can be told without waiting for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    epoch: SpoolEpoch,
    first: Sequence,
    /// The last number that is durable.
    pub(crate) last: Sequence,
}

/// What stands next in the backlog.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    /// A batch.
    Batch {
        sequence: Sequence,
        key: bool,
        /// An encoded `BatchBody`.
        body: Vec<u8>,
    },
    /// Numbers that can't be delivered any more.
    Lost { first: Sequence, last: Sequence, reason: LostReason },
}

/// Room a frame needs around a body.
const FRAME_OVERHEAD: usize = 64;

impl Backlog {
    /// Opens the spool in a directory, or begins one, and says what was found there. Blocks.
    ///
    /// # Errors
    /// [`SpoolError`], which says what to do.
    pub fn open(options: Options) -> Result<(Self, Recovery), SpoolError> {
        let (spool, recovery) = Spool::open(options, rand::random())?;
        Ok((Self::of(spool, true), recovery))
    }

    /// A backlog of at most `capacity` bytes that is gone with the process. `epoch` is random.
    pub fn in_memory(epoch: SpoolEpoch, capacity: u64) -> Self {
        Self::of(Spool::memory(capacity, epoch.0), false)
    }

    /// Its depth, size and faults.
    pub fn status(&self) -> SpoolStatus {
        self.0.status.borrow().clone()
    }

    /// Its depth, size and faults as they change.
    pub fn watch(&self) -> watch::Receiver<SpoolStatus> {
        self.0.status.subscribe()
    }

    /// Longest body it takes, in bytes.
    pub fn max_body(&self) -> usize {
        self.0.store.lock().unwrap_or_else(PoisonError::into_inner).max_body()
    }

    /// The life of its numbers, and the last number that is durable.
    pub fn newest(&self) -> (SpoolEpoch, Sequence) {
        let Known { epoch, last, .. } = *self.0.known.borrow();
        (epoch, last)
    }

    /// Takes a batch that decodes alone, and makes it durable. `first` is told the number it gets before it has it; when
    /// that fails, the batch is not taken. When the disk refuses the batch, it waits in memory: [`Self::settle`] tries again.
    ///
    /// # Errors
    /// [`BacklogError::Before`] when `first` failed; otherwise when the disk refuses.
    pub async fn store(
        &self,
        body: Vec<u8>,
        first: impl FnOnce(SpoolEpoch, Sequence) -> Result<(), FileError> + Send + 'static,
    ) -> Result<(), BacklogError> {
        self.with(move |store| {
            first(SpoolEpoch(store.spool.epoch()), Sequence(store.spool.last()).next())?;
            store.append(&body, true)?;
            Ok(store.sync()?)
        })
        .await?
    }

    /// Makes durable what waits in memory.
    ///
    /// # Errors
    /// When the disk still refuses.
    pub async fn settle(&self) -> Result<(), BacklogError> {
        self.with(|store| Ok(store.sync()?)).await?
    }

    /// The numbers it holds, as Hello tells them.
    pub(crate) fn range(&self) -> SpoolRange {
        let Known { epoch, first, last } = *self.0.known.borrow();
        SpoolRange::new(epoch, first, last)
    }

    /// Changes when more became durable.
    pub(crate) fn known(&self) -> watch::Receiver<Known> {
        self.0.known.subscribe()
    }

    /// Reads on from `from` until about `bytes` of bodies; empty when nothing there is durable yet.
    pub(crate) async fn read(&self, from: Sequence, bytes: usize) -> Result<Vec<Entry>, BacklogError> {
        self.with(move |store| store.read(from, bytes)).await?
    }

    /// The last batch at or before `sequence` that decodes alone.
    pub(crate) async fn last_key_at_or_before(&self, sequence: Sequence) -> Result<Option<Sequence>, BacklogError> {
        Ok(self.with(move |store| store.spool.last_key_at_or_before(sequence.0)).await??.map(Sequence))
    }

    /// Lets go of everything up to and including `through`: the hub has it. Gives the number of batches.
    ///
    /// A number that was never given out moves the spool past it: its directory was put back to an earlier state.
    pub(crate) async fn acknowledge(&self, through: Sequence) -> Result<u64, BacklogError> {
        let acknowledged = self.with(move |store| {
            let before = store.spool.acknowledged();
            match store.spool.acknowledge(through.0) {
                Ok(()) => Ok(store.spool.acknowledged().saturating_sub(before)),
                Err(error @ SpoolError::Ahead { .. }) => {
                    tracing::error!("{error}");
                    store.durable = Sequence(store.spool.last());
                    Ok(0)
                }
                Err(error) => Err(error),
            }
        });
        Ok(acknowledged.await??)
    }

    /// Gives the spool to `act`, which may block; it runs to its end also when nobody waits for it any more.
    pub(crate) async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Store) -> T + Send + 'static,
    ) -> Result<T, BacklogError> {
        if !self.0.blocks {
            return Ok(self.0.act(act));
        }
        let shared = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || shared.act(act)).await.map_err(|_| BacklogError::Stopped)
    }

    fn of(spool: Spool, blocks: bool) -> Self {
        // What was read back from the disk is durable.
        let store = Store { reader: spool.read_from(spool.first()), durable: Sequence(spool.last()), spool };
        let (known, status) = (watch::Sender::new(store.known()), watch::Sender::new(store.status()));
        Self(Arc::new(Shared { store: Mutex::new(store), blocks, known, status }))
    }
}

impl Shared {
    fn act<T>(&self, act: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut store);
        let (known, status) = (store.known(), store.status());
        // Published before another can act: watchers see the states in their order.
        self.status.send_if_modified(|old| std::mem::replace(old, status.clone()) != status);
        self.known.send_if_modified(|old| std::mem::replace(old, known) != known);
        result
    }
}

impl Store {
    /// Whether the next batch must decode alone.
    pub(crate) fn needs_key(&self) -> bool {
        self.spool.needs_key()
    }

    /// Longest body it takes.
    pub(crate) fn max_body(&self) -> usize {
        self.spool.max_record().min(frame::MAX_TELEMETRY - FRAME_OVERHEAD)
    }

    /// Takes a batch. It is durable, and sent, after [`Self::sync`].
    pub(crate) fn append(&mut self, body: &[u8], key: bool) -> Result<(), SpoolError> {
        self.spool.append(body, key).map(|_| ())
    }

    /// Makes what was taken durable.
    pub(crate) fn sync(&mut self) -> Result<(), SpoolError> {
        self.spool.sync()?;
        self.durable = Sequence(self.spool.last());
        Ok(())
    }

    fn read(&mut self, from: Sequence, bytes: usize) -> Result<Vec<Entry>, BacklogError> {
        if self.reader.position() != from.0 {
            self.reader = self.spool.read_from(from.0);
        }
        let (mut entries, mut size) = (Vec::new(), 0);
        while size < bytes
            && let Some(entry) = self.reader.next(&mut self.spool)?
        {
            entries.push(match entry {
                spool::Entry::Record { sequence, key, bytes: body } => {
                    size += body.len();
                    Entry::Batch { sequence: Sequence(sequence), key, body }
                }
                spool::Entry::Lost(range) => Entry::Lost {
                    first: Sequence(range.first),
                    last: Sequence(range.last),
                    reason: match range.reason {
                        spool::LostReason::Overflow | spool::LostReason::Expired | spool::LostReason::Superseded => {
                            LostReason::Overflow
                        }
                        spool::LostReason::Corrupt => LostReason::Corrupt,
                        spool::LostReason::DiskFull => LostReason::DiskFull,
                    },
                },
            });
        }
        Ok(entries)
    }

    fn known(&self) -> Known {
        let epoch = SpoolEpoch(self.spool.epoch());
        // With every batch still in memory for want of room on the disk, the range is empty.
        let first = Sequence(self.spool.first()).min(self.durable.next());
        Known { epoch, first, last: self.durable }
    }

    fn status(&self) -> SpoolStatus {
        let status = self.spool.status();
        let (fault, message) = match status.fault {
            None => (message::SpoolFault::Unspecified, String::new()),
            Some(fault) => {
                let kind = match fault.kind {
                    FaultKind::DiskFull => message::SpoolFault::DiskFull,
                    FaultKind::Corrupt => message::SpoolFault::Corrupt,
                    FaultKind::Io => message::SpoolFault::Io,
                };
                (kind, fault.message)
            }
        };
        SpoolStatus {
            pending_batches: status.pending,
            bytes: status.bytes,
            capacity_bytes: status.capacity_bytes,
            lost_batches: status.lost,
            fault: fault.into(),
            message,
        }
    }
}

impl Entry {
    /// Its first number.
    pub(crate) fn first(&self) -> Sequence {
        match self {
            Self::Batch { sequence, .. } => *sequence,
            Self::Lost { first, .. } => *first,
        }
    }
}

/// A backlog that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BacklogError {
    /// The spool failed.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// What had to be written before failed.
    #[error(transparent)]
    Before(#[from] FileError),
    /// The process is going down.
    #[error("the process is shutting down")]
    Stopped,
}
