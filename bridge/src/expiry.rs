//! Drops from a class's log what is older than it may become.

use std::time::Duration;

use protocol::Timestamp;
use spool::{Entry, LostReason, Reader, SpoolError};

use crate::log::Log;
use crate::record::Record;

/// Records read while the log is locked.
const CHUNK: usize = 512;

/// Where the young records begin.
#[derive(Debug)]
pub struct Expiry {
    age: Duration,
    reader: Option<Reader>,
    /// The first record that was too young when it was looked at, and when it was received.
    young: Option<(u64, Timestamp)>,
}

impl Expiry {
    /// Of records that may become so old.
    pub fn new(age: Duration) -> Self {
        Self { age, reader: None, young: None }
    }

    /// Whether what was received then should not even wait in the Kafka client any more. Taking it back there takes a new
    /// connection, so that is not done for every record.
    pub fn is_late(&self, received: Timestamp, now: Timestamp) -> bool {
        let age = Duration::from_millis(now.millis().saturating_sub(received.millis()).try_into().unwrap_or_default());
        age > self.age + self.age / 10
    }

    /// Gives up what is too old now.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn check(&mut self, log: &Log, now: Timestamp) -> Result<(), SpoolError> {
        let age = i64::try_from(self.age.as_millis()).unwrap_or(i64::MAX);
        let bound = Timestamp::from_millis(now.millis().saturating_sub(age));
        let mut through = None;
        'log: loop {
            let mut spool = log.spool();
            for _ in 0..CHUNK {
                let first = spool.first();
                if self.young.is_none_or(|(sequence, _)| sequence < first) {
                    let reader = self.reader.take().filter(|reader| reader.position() >= first);
                    let reader = self.reader.insert(reader.unwrap_or_else(|| spool.read_from(first)));
                    self.young = match reader.next(&mut spool)? {
                        None => break 'log,
                        Some(Entry::Lost(_)) => None,
                        // What nobody can read becomes a dead letter, unless it is among what is too old.
                        Some(Entry::Record { sequence, bytes, .. }) => {
                            Record::decode(&bytes).ok().map(|record| (sequence, record.received))
                        }
                    };
                }
                match self.young {
                    Some((_, received)) if received >= bound => break 'log,
                    Some((sequence, _)) => through = Some(sequence),
                    None => {}
                }
                self.young = None;
            }
        }
        through.map_or(Ok(()), |through| log.spool().discard(through, LostReason::Expired))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Notes;

    #[test]
    fn what_is_too_old_is_given_up_and_what_is_not_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (log, _) = Log::open(Log::options(directory.path().to_owned(), 1 << 20)).unwrap();
        let append = |seconds: i64| {
            let received = Timestamp::from_millis(seconds * 1000);
            let record = Record {
                mqtt: "m",
                topic: "t",
                payload: b"",
                received,
                qos: 1,
                retained: false,
                duplicate: false,
                notes: Notes::default(),
            };
            log.spool().append(&record.encoded(), true).unwrap();
        };
        (1..=1000).for_each(append);
        log.spool().sync().unwrap();
        let mut expiry = Expiry::new(Duration::from_secs(100));
        let mut pending_at = |seconds: i64| {
            expiry.check(&log, Timestamp::from_millis(seconds * 1000)).unwrap();
            log.status().pending
        };
        assert_eq!(pending_at(101), 1000);
        assert_eq!(pending_at(102), 999);
        assert_eq!(pending_at(801), 300);
        log.spool().acknowledge(900).unwrap();
        assert_eq!((pending_at(801), pending_at(1002)), (100, 99));
        assert_eq!(pending_at(5000), 0);
        append(5000);
        log.spool().sync().unwrap();
        assert_eq!((pending_at(5100), pending_at(5101)), (1, 0));
        let lost: Vec<_> = log.spool().lost().iter().map(|range| (range.first, range.last, range.reason)).collect();
        assert_eq!(lost, [(901, 1001, LostReason::Expired)]);
    }
}
