//! The log: records on disk from their MQTT acknowledgement to Kafka's.
//!
//! One thread writes it in groups, one sync each, and says what is durable; the sink reads it. When it is full, or the
//! disk is, the writer waits: nothing is acknowledged to MQTT, and nothing is lost.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use spool::{Options, Overflow, Recovery, Spool, SpoolError, Status};

use crate::counters::Counters;
use crate::intake::{Intake, Submission};
use crate::receipts::{Receipts, Stored};

/// Bytes that wait in memory for a sync. Half of it is the largest record.
const GROUP: usize = 4 << 20;
/// How long the writer waits before it tries again what the disk or the bound refused.
const RETRY: Duration = Duration::from_millis(50);
/// A complaint that goes on is repeated this often.
const REPEAT: Duration = Duration::from_secs(60);

/// The records on disk; clones share them.
#[derive(Clone, Debug)]
pub struct Log(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    spool: Mutex<Spool>,
    /// Counts groups that became durable.
    groups: Mutex<u64>,
    /// As it was when somebody last asked and the disk was not at work.
    status: Mutex<Status>,
    grown: Condvar,
}

impl Log {
    /// How a log in `directory` is laid out.
    pub fn options(directory: PathBuf, capacity_bytes: u64) -> Options {
        Options { group_bytes: GROUP, overflow: Overflow::Refuse, ..Options::new(directory, capacity_bytes) }
    }

    /// Opens the log in `directory`, or begins one, and says what was found there.
    ///
    /// # Errors
    /// [`SpoolError`], which says what to do.
    pub fn open(directory: PathBuf, capacity_bytes: u64) -> Result<(Self, Recovery), SpoolError> {
        let (spool, recovery) = Spool::open(Self::options(directory, capacity_bytes), rand::random())?;
        let status = Mutex::new(spool.status());
        let shared = Shared { status, spool: Mutex::new(spool), groups: Mutex::new(0), grown: Condvar::new() };
        Ok((Self(Arc::new(shared)), recovery))
    }

    /// The spool itself, for as long as the guard is held. What is written to it waits for that; it does not wait for a
    /// group that is being written.
    pub fn spool(&self) -> MutexGuard<'_, Spool> {
        self.0.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The spool itself, unless it is in use: the disk may be at work.
    pub fn try_spool(&self) -> Option<MutexGuard<'_, Spool>> {
        match self.0.spool.try_lock() {
            Ok(spool) => Some(spool),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// How it is doing, or was a moment ago: this does not wait for the disk.
    pub fn status(&self) -> Status {
        let mut status = self.0.status.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spool) = self.try_spool() {
            *status = spool.status();
        }
        status.clone()
    }

    /// Waits until more than `seen` groups are durable, but not longer than `patience`; gives how many are.
    pub fn wait(&self, seen: u64, patience: Duration) -> u64 {
        let groups = self.0.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.grown.wait_timeout_while(groups, patience, |groups| *groups <= seen);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn grew(&self) {
        *self.0.groups.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.grown.notify_all();
    }
}

/// The thread that writes the log. It ends when the intake is closed and written.
#[derive(Debug)]
pub struct Writer {
    log: Log,
    intake: Arc<Intake>,
    receipts: Arc<Receipts>,
    counters: Arc<Counters>,
    complained: Option<Instant>,
}

impl Writer {
    /// Starts it.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(
        log: Log,
        intake: Arc<Intake>,
        receipts: Arc<Receipts>,
        counters: Arc<Counters>,
    ) -> std::io::Result<JoinHandle<()>> {
        let writer = Self { log, intake, receipts, counters, complained: None };
        std::thread::Builder::new().name("log".into()).spawn(move || writer.run())
    }

    fn run(mut self) {
        while let Some(group) = self.intake.take() {
            let (mut left, mut ends) = (group.as_slice(), Vec::new());
            self.persist(|log| append(&mut log.spool(), &mut left, &mut ends));
            self.persist(|log| Spool::sync_shared(&log.0.spool));
            self.counters.stored.add(group.len() as u64);
            self.log.grew();
            for end in ends {
                self.receipts.stored(end);
            }
        }
    }

    /// Does it until it is done. Meanwhile nothing is acknowledged, and MQTT brokers keep what they have.
    fn persist(&mut self, mut act: impl FnMut(&Log) -> Result<(), SpoolError>) {
        loop {
            match act(&self.log) {
                Ok(()) => {
                    if self.complained.take().is_some() {
                        tracing::info!("the log takes records again");
                    }
                    return;
                }
                Err(error) => {
                    if self.complained.is_none_or(|at| at.elapsed() > REPEAT) {
                        self.complained = Some(Instant::now());
                        tracing::warn!("MQTT messages are not acknowledged for now: {error}");
                    }
                    // The groups before may be what the sink waits for.
                    self.log.grew();
                    std::thread::sleep(RETRY);
                }
            }
        }
    }
}

/// Appends what is left, and leaves what is not appended; `ends` are the last of each connection.
fn append(spool: &mut Spool, left: &mut &[Submission], ends: &mut Vec<Stored>) -> Result<(), SpoolError> {
    while let Some((submission, after)) = left.split_first() {
        if !submission.record.is_empty() {
            match spool.append(&submission.record, true) {
                // Its connection lets nothing through that is larger than the log takes.
                Err(error @ SpoolError::TooLarge { .. }) => tracing::error!("a message is dropped: {error}"),
                other => drop(other?),
            }
        }
        let end = Stored { mqtt: submission.mqtt, message: submission.number, record: spool.last() };
        match ends.iter_mut().find(|known| known.mqtt == end.mqtt) {
            Some(known) => *known = end,
            None => ends.push(end),
        }
        *left = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Ack;

    #[test]
    fn a_full_log_holds_acknowledgements_back_until_there_is_room() {
        let directory = tempfile::tempdir().unwrap();
        let (log, _) = Log::open(directory.path().to_owned(), 1 << 20).unwrap();
        let (intake, counters) = (Arc::new(Intake::default()), Arc::<Counters>::default());
        let mut receipts = Receipts::default();
        let told = receipts.connect(Ack::Durable);
        let writer = Writer::start(log.clone(), Arc::clone(&intake), Arc::new(receipts), counters).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let record = vec![7; 20_000];
        runtime.block_on(async {
            for number in 1..=100 {
                intake.put(vec![Submission { mqtt: 0, number, record: record.clone() }]).await;
            }
        });
        intake.close();
        let mut acknowledged = 0;
        while acknowledged < 100 {
            log.wait(0, Duration::from_millis(1));
            let mut spool = log.spool();
            let mut reader = spool.read_from(acknowledged + 1);
            // A sink that is slower than the writer: it takes one at a time.
            if reader.next(&mut spool).unwrap().is_some() {
                acknowledged += 1;
                spool.acknowledge(acknowledged).unwrap();
            }
            drop(spool);
            std::thread::yield_now();
        }
        writer.join().unwrap();
        assert_eq!((*told.borrow(), log.spool().status().lost), (100, 0));
    }
}
