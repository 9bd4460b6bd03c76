//! Tells each connection up to which of its messages it may acknowledge: those on disk or, where that is asked for, those
//! that Kafka has.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Ack;
use crate::lanes::Told;

/// What connections are told of one log.
#[derive(Debug, Default)]
pub struct Receipts {
    /// The log's lane.
    lane: usize,
    connections: Vec<(Arc<Told>, Ack)>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Messages that are on disk, of connections that acknowledge what is delivered; oldest first. There are no more than
    /// brokers leave unacknowledged.
    stored: VecDeque<Stored>,
    /// What was delivered last: it may be before it is known to be stored.
    delivered: u64,
}

/// The last message of a connection in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Index of its connection.
    pub mqtt: usize,
    /// Its number within the connection.
    pub message: u64,
    /// Its number in the log, or the last before it when it is passed over.
    pub record: u64,
}

impl Receipts {
    /// Those of a lane.
    pub fn of(lane: usize) -> Self {
        Self { lane, ..Self::default() }
    }

    /// Adds a connection, the next by its index, that is told up to which of its messages it may acknowledge.
    pub fn connect(&mut self, told: Arc<Told>, ack: Ack) {
        self.connections.push((told, ack));
    }

    /// Messages are on disk, through this one of its connection.
    pub fn stored(&self, stored: Stored) {
        match self.connections.get(stored.mqtt) {
            Some((told, Ack::Durable)) => told.tell(self.lane, stored.message),
            Some((told, Ack::Delivered)) => {
                let mut waiting = self.waiting();
                if stored.record <= waiting.delivered {
                    told.tell(self.lane, stored.message);
                } else {
                    waiting.stored.push_back(stored);
                }
            }
            None => {}
        }
    }

    /// The log's records through this one are in Kafka, or dead letters on disk.
    pub fn delivered(&self, through: u64) {
        let mut waiting = self.waiting();
        waiting.delivered = through;
        while let Some(first) = waiting.stored.front().copied().filter(|first| first.record <= through) {
            waiting.stored.pop_front();
            if let Some((told, _)) = self.connections.get(first.mqtt) {
                told.tell(self.lane, first.message);
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_hears_of_what_it_asked_for() {
        let mut receipts = Receipts::default();
        let mut connect = |ack| {
            let told = Arc::new(Told::new(1));
            let heard = told.hear();
            receipts.connect(told, ack);
            heard
        };
        let (disk, kafka) = (connect(Ack::Durable), connect(Ack::Delivered));
        receipts.stored(Stored { mqtt: 0, message: 5, record: 10 });
        receipts.stored(Stored { mqtt: 1, message: 7, record: 12 });
        receipts.stored(Stored { mqtt: 1, message: 9, record: 20 });
        assert_eq!((*disk.borrow(), *kafka.borrow()), (5, 0));
        receipts.delivered(11);
        assert_eq!(*kafka.borrow(), 0);
        receipts.delivered(19);
        assert_eq!(*kafka.borrow(), 7);
        receipts.delivered(30);
        // What Kafka has may be there before it is known to be stored.
        receipts.stored(Stored { mqtt: 1, message: 11, record: 30 });
        assert_eq!(*kafka.borrow(), 11);
        assert_eq!((*disk.borrow(), *kafka.borrow()), (5, 11));
    }
}
