//! The batches the hub has not stored yet: numbered, bounded, on disk or in memory.

mod memory;

use std::sync::{Arc, Mutex, PoisonError};

use protocol::message::{LostReason, SpoolRange, SpoolStatus};
use protocol::{Sequence, SpoolEpoch};
use tokio::sync::watch;

use memory::Memory;

/// A node's backlog; clones share it. Files are read and written off the runtime's thread.
#[derive(Clone)]
pub struct Backlog(Arc<Shared>);

struct Shared {
    store: Mutex<Spool>,
    /// On disk: calls go to a thread that may block.
    blocks: bool,
    known: watch::Sender<Known>,
    status: watch::Sender<SpoolStatus>,
}

/// The backlog itself, in the hands of one who may block.
pub(crate) enum Spool {
    Memory(Memory),
}

/// What can be told without waiting for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) epoch: SpoolEpoch,
    pub(crate) first: Sequence,
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

impl Entry {
    /// Its first number.
    pub(crate) fn first(&self) -> Sequence {
        match self {
            Self::Batch { sequence, .. } => *sequence,
            Self::Lost { first, .. } => *first,
        }
    }
}

impl Backlog {
    /// A backlog of at most `capacity` bytes that is gone with the process. `epoch` is random.
    pub fn in_memory(epoch: SpoolEpoch, capacity: u64) -> Self {
        Self::of(Spool::Memory(Memory::new(epoch.0, capacity)), false)
    }

    /// Its depth, size and faults.
    pub fn status(&self) -> SpoolStatus {
        self.0.status.borrow().clone()
    }

    /// Its depth, size and faults as they change.
    pub fn watch(&self) -> watch::Receiver<SpoolStatus> {
        self.0.status.subscribe()
    }

    /// The numbers it holds, as Hello tells them.
    pub(crate) fn range(&self) -> SpoolRange {
        let known = *self.0.known.borrow();
        SpoolRange { epoch: known.epoch.0, first: known.first.0, last: known.last.0 }
    }

    /// Changes with every append.
    pub(crate) fn appended(&self) -> watch::Receiver<Known> {
        self.0.known.subscribe()
    }

    /// Reads on from `from`: at least one entry if there is one, and no more than `bytes` of bodies or `count`
    /// entries otherwise.
    pub(crate) async fn read(&self, from: Sequence, count: usize, bytes: usize) -> Result<Vec<Entry>, BacklogError> {
        self.with(move |store| match store {
            Spool::Memory(memory) => Ok(read_memory(memory, from, count, bytes)),
        })
        .await
    }

    /// The last batch at or before `sequence` that decodes alone.
    pub(crate) async fn last_key_at_or_before(&self, sequence: Sequence) -> Result<Option<Sequence>, BacklogError> {
        self.with(move |store| match store {
            Spool::Memory(memory) => Ok(memory.last_key_at_or_before(sequence.0).map(Sequence)),
        })
        .await
    }

    /// Lets go of everything up to and including `through`: the hub has it. Gives the number of batches.
    pub(crate) async fn acknowledge(&self, through: Sequence) -> Result<u64, BacklogError> {
        self.with(move |store| match store {
            Spool::Memory(memory) => {
                let before = memory.pending();
                memory.acknowledge(through.0);
                Ok(before - memory.pending())
            }
        })
        .await
    }

    fn of(store: Spool, blocks: bool) -> Self {
        let (known, status) = store.describe();
        let (known, status) = (watch::Sender::new(known), watch::Sender::new(status));
        Self(Arc::new(Shared { store: Mutex::new(store), blocks, known, status }))
    }

    /// Gives the backlog to `act`, which may block; it runs to its end also when nobody waits for it any more.
    pub(crate) async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Spool) -> Result<T, BacklogError> + Send + 'static,
    ) -> Result<T, BacklogError> {
        if !self.0.blocks {
            return self.0.act(act);
        }
        let shared = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || shared.act(act)).await.map_err(|_| BacklogError::Stopped)?
    }
}

impl Shared {
    fn act<T>(&self, act: impl FnOnce(&mut Spool) -> Result<T, BacklogError>) -> Result<T, BacklogError> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut store);
        let (known, status) = store.describe();
        drop(store);
        self.status.send_if_modified(|old| std::mem::replace(old, status.clone()) != status);
        self.known.send_if_modified(|old| std::mem::replace(old, known) != known);
        result
    }
}

impl Spool {
    /// Whether the next batch must decode alone.
    pub(crate) fn needs_key(&self) -> bool {
        match self {
            Self::Memory(memory) => memory.needs_key(),
        }
    }

    /// Stores a batch; on return it is durable.
    pub(crate) fn append(&mut self, body: &[u8], key: bool) -> Result<Sequence, BacklogError> {
        match self {
            Self::Memory(memory) => Ok(Sequence(memory.append(body, key))),
        }
    }

    fn describe(&self) -> (Known, SpoolStatus) {
        match self {
            Self::Memory(memory) => (
                Known {
                    epoch: SpoolEpoch(memory.epoch),
                    first: Sequence(memory.first()),
                    last: Sequence(memory.last()),
                },
                SpoolStatus {
                    pending_batches: memory.pending(),
                    bytes: memory.bytes(),
                    capacity_bytes: memory.capacity(),
                    lost_batches: memory.lost(),
                    fault: 0,
                    message: String::new(),
                },
            ),
        }
    }
}

fn read_memory(memory: &Memory, from: Sequence, count: usize, bytes: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    if let Some(dropped) = memory.dropped().filter(|dropped| *dropped.end() >= from.0) {
        let first = Sequence(from.0.max(*dropped.start()));
        entries.push(Entry::Lost { first, last: Sequence(*dropped.end()), reason: LostReason::Overflow });
    }
    let mut room = bytes;
    for sequence in from.0.max(memory.first())..=memory.last() {
        let Some((key, body)) = memory.get(sequence) else { break };
        if entries.len() >= count || (!entries.is_empty() && body.len() > room) {
            break;
        }
        room = room.saturating_sub(body.len());
        entries.push(Entry::Batch { sequence: Sequence(sequence), key, body: body.to_vec() });
    }
    entries
}

/// A backlog that could not take or give a batch.
#[derive(Debug, thiserror::Error)]
pub enum BacklogError {
    /// The process is going down.
    #[error("the process is shutting down")]
    Stopped,
}
