//! The queue between the connections, which must not block, and the one thread that writes the log, which does.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Bytes that wait to be written, and what each message takes that leaves none. When they are used up, connections are no longer read, and the broker keeps what comes.
const MOST_BYTES: usize = 8 << 20;
/// From group to group, at least: a sync for what each of many connections brings would cost more than the messages. One
/// that is alone brings less often by itself.
const PACE: Duration = Duration::from_millis(2);
/// A group of this many bytes waits no longer.
const ENOUGH: usize = 256 << 10;

/// A message on its way to the log.
#[derive(Debug)]
pub struct Submission {
    /// Index of its connection.
    pub mqtt: usize,
    /// Its number within the connection, when an acknowledgement is owed for it; of a message that became several records,
    /// the last has it.
    pub number: Option<u64>,
    /// An encoded [`crate::record::Record`]; nothing for a message that is passed over.
    pub record: Vec<u8>,
}

impl Submission {
    /// What it takes in memory, at least.
    fn bytes(&self) -> usize {
        self.record.len() + size_of::<Self>()
    }
}

/// The queue.
#[derive(Debug, Default)]
pub struct Intake {
    waiting: Mutex<Waiting>,
    filled: Condvar,
    drained: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    submissions: Vec<Submission>,
    bytes: usize,
    /// How many were ever put in.
    given: u64,
    closed: bool,
    /// When the last group was taken.
    taken: Option<Instant>,
}

impl Intake {
    /// Puts messages in, when there is room for them. They are in as a whole or, when this is given up, not at all.
    pub async fn put(&self, mut submissions: Vec<Submission>) {
        let bytes: usize = submissions.iter().map(Submission::bytes).sum();
        loop {
            let drained = self.drained.notified();
            {
                let mut waiting = self.waiting();
                if waiting.submissions.is_empty() || waiting.bytes + bytes <= MOST_BYTES {
                    waiting.bytes += bytes;
                    waiting.given += submissions.len() as u64;
                    waiting.submissions.append(&mut submissions);
                    self.filled.notify_one();
                    return;
                }
            }
            // Whoever takes notifies those that were made before, also when they do not wait yet.
            drained.await;
        }
    }

    /// Waits for messages and takes all there are; `None` when it is closed and empty.
    pub fn take(&self) -> Option<Vec<Submission>> {
        let mut waiting = self.waiting();
        while waiting.submissions.is_empty() {
            if waiting.closed {
                return None;
            }
            waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        let since = waiting.taken.map_or(PACE, |taken| taken.elapsed());
        if since < PACE && waiting.bytes < ENOUGH && !waiting.closed {
            drop(waiting);
            std::thread::sleep(PACE - since);
            waiting = self.waiting();
        }
        waiting.taken = Some(Instant::now());
        waiting.bytes = 0;
        let taken = std::mem::take(&mut waiting.submissions);
        drop(waiting);
        self.drained.notify_waiters();
        Some(taken)
    }

    /// How many messages were ever put in.
    pub fn given(&self) -> u64 {
        self.waiting().given
    }

    /// Ends it: what is in it is still taken.
    pub fn close(&self) {
        self.waiting().closed = true;
        self.filled.notify_one();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submission(number: u64, bytes: usize) -> Submission {
        Submission { mqtt: 0, number: Some(number), record: vec![0; bytes] }
    }

    #[tokio::test]
    async fn a_full_intake_waits_until_it_is_taken() {
        let intake = Intake::default();
        // One that is larger than all the room still goes in alone.
        intake.put(vec![submission(1, MOST_BYTES + 1)]).await;
        let second = intake.put(vec![submission(2, 1)]);
        tokio::pin!(second);
        assert!(tokio::time::timeout(Duration::from_millis(1), second.as_mut()).await.is_err());
        assert_eq!(intake.take().unwrap().len(), 1);
        second.await;
        intake.close();
        assert_eq!(intake.take().unwrap()[0].number, Some(2));
        assert!(intake.take().is_none());
    }

    #[tokio::test]
    async fn what_is_passed_over_takes_room_too() {
        let intake = Intake::default();
        let many = |count| (0..count).map(|number| submission(number, 0)).collect::<Vec<_>>();
        intake.put(many((MOST_BYTES / size_of::<Submission>()) as u64)).await;
        assert!(tokio::time::timeout(Duration::from_millis(1), intake.put(many(1))).await.is_err());
    }
}
