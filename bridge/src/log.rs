//! The log: records on disk from their MQTT acknowledgement to Kafka's.
//!
//! One thread writes it in groups, one sync each, and says what is durable; the sink reads it. When it is full, or the
//! disk is, the writer waits: nothing is acknowledged to MQTT, and nothing is lost. In the log of a class of which something
//! may be dropped, that gives way instead, and the log keeps its numbers and the reason.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::Duration;

use protocol::Timestamp;
use spool::{Options, Overflow, Recovery, Spool, SpoolError, Status};

use crate::class::{self, Class};
use crate::complaint::Complaint;
use crate::counters::Counters;
use crate::intake::Submission;
use crate::lanes::Lane;
use crate::latest;
use crate::receipts::{Receipts, Stored};
use crate::record::Record;

/// Bytes that wait in memory for a sync. Half of it is the largest record.
const GROUP: usize = 4 << 20;
/// How long the writer waits before it tries again what the disk or the bound refused.
const RETRY: Duration = Duration::from_millis(50);

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
    /// When the oldest record was received that the sink has and Kafka has not confirmed; `None` while it has none.
    oldest: Mutex<Option<Timestamp>>,
    grown: Condvar,
}

impl Log {
    /// How a log in `directory` is laid out that drops nothing.
    pub fn options(directory: PathBuf, capacity_bytes: u64) -> Options {
        Options { group_bytes: GROUP, overflow: Overflow::Refuse, ..Options::new(directory, capacity_bytes) }
    }

    /// Opens a log, or begins one, and says what was found there.
    ///
    /// # Errors
    /// [`SpoolError`], which says what to do.
    pub fn open(options: Options) -> Result<(Self, Recovery), SpoolError> {
        let (spool, recovery) = Spool::open(options, rand::random())?;
        let status = Mutex::new(spool.status());
        let (spool, groups, oldest) = (Mutex::new(spool), Mutex::default(), Mutex::default());
        Ok((Self(Arc::new(Shared { spool, groups, status, oldest, grown: Condvar::new() })), recovery))
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

    /// When the oldest record was received that the sink has and Kafka has not confirmed; `None` while it has none.
    pub fn oldest(&self) -> Option<Timestamp> {
        *self.0.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest record that the sink has and Kafka has not confirmed was received then.
    pub fn waits_since(&self, received: Option<Timestamp>) {
        *self.0.oldest.lock().unwrap_or_else(PoisonError::into_inner) = received;
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

/// The thread that writes the log. It ends when the lane's intake is closed and written.
#[derive(Debug)]
pub struct Writer {
    log: Log,
    class: Class,
    lane: Arc<Lane>,
    receipts: Arc<Receipts>,
    counters: Arc<Counters>,
    complaint: Complaint,
    /// Numbers that were lost when that was told last.
    told: (u64, Complaint),
}

impl Writer {
    /// Starts it.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(
        log: Log,
        class: Class,
        lane: Arc<Lane>,
        receipts: Arc<Receipts>,
        counters: Arc<Counters>,
    ) -> std::io::Result<JoinHandle<()>> {
        let told = (log.status().lost, Complaint::default());
        let writer = Self { log, class, lane, receipts, counters, complaint: Complaint::default(), told };
        std::thread::Builder::new().name("log".into()).spawn(move || writer.run())
    }

    fn run(mut self) {
        self.lane.written(0, self.log.spool().last());
        while let Some(group) = self.lane.intake.take() {
            if self.class.overflow == class::Overflow::LatestPerTopic {
                let Options { capacity_bytes, segment_bytes, .. } = self.class.options();
                for part in parts(&group, latest::part_bytes(segment_bytes)) {
                    let lane = Arc::clone(&self.lane);
                    self.persist(|log| latest::make_room(log, &lane, capacity_bytes, segment_bytes));
                    self.write(part);
                }
            } else {
                self.write(&group);
            }
            self.lane.written(group.len(), self.log.spool().last());
            self.tell_what_is_dropped();
        }
    }

    fn write(&mut self, group: &[Submission]) {
        let (mut left, mut ends) = (group, Vec::new());
        self.persist(|log| append(&mut log.spool(), &mut left, &mut ends));
        self.persist(|log| Spool::sync_shared(&log.0.spool));
        self.counters.stored.add(group.iter().filter(|submission| !submission.record.is_empty()).count() as u64);
        self.log.grew();
        for end in ends {
            self.receipts.stored(end);
        }
    }

    fn tell_what_is_dropped(&mut self) {
        let lost = self.log.status().lost;
        if self.class.name.is_empty() || lost <= self.told.0 || !self.told.1.is_due() {
            return;
        }
        if let Some(range) = self.log.spool().lost().last() {
            tracing::warn!(
                class = self.class.name, overflow = %self.class.overflow, more = lost - self.told.0, total = lost,
                "records are dropped, the last of them {range}"
            );
        }
        self.told.0 = lost;
    }

    /// Does it until it is done. Meanwhile nothing is acknowledged, and MQTT brokers keep what they have.
    fn persist(&mut self, mut act: impl FnMut(&Log) -> Result<(), SpoolError>) {
        loop {
            match act(&self.log) {
                Ok(()) => {
                    if self.complaint.is_over() {
                        tracing::info!("the log takes records again");
                    }
                    return;
                }
                Err(error) => {
                    if self.complaint.is_due() {
                        tracing::warn!(log = self.class.title(), "MQTT messages are not acknowledged for now: {error}");
                    }
                    if let (class::Overflow::LatestPerTopic, SpoolError::Full { .. }) = (self.class.overflow, error) {
                        let _ = latest::give_up_oldest(&self.log);
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
                // A connection lets through what the largest log takes.
                Err(SpoolError::TooLarge { limit, .. }) => {
                    let cut = Record::decode(&submission.record).map(|record| record.cut_to(limit));
                    spool.append(&cut.unwrap_or_default(), true)?;
                }
                other => drop(other?),
            }
        }
        if let Some(message) = submission.number {
            let end = Stored { mqtt: submission.mqtt, message, record: spool.last() };
            match ends.iter_mut().find(|known| known.mqtt == end.mqtt) {
                Some(known) => *known = end,
                None => ends.push(end),
            }
        }
        *left = after;
    }
    Ok(())
}

/// Cuts a group into parts of about so many bytes.
fn parts(mut group: &[Submission], bytes: usize) -> impl Iterator<Item = &[Submission]> {
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = group.iter().take_while(|submission| {
            sum += submission.record.len();
            sum <= bytes
        });
        let (part, rest) = group.split_at(fits.count().max(1).min(group.len()));
        group = rest;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::ClassConfig;
    use crate::config::{Ack, Config};
    use crate::lanes::Told;
    use crate::record::Notes;
    use settings::Size;

    #[test]
    fn a_full_log_holds_acknowledgements_back_until_there_is_room() {
        let directory = tempfile::tempdir().unwrap();
        let (log, lane, told, writer) = written(directory.path(), None);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let record = vec![7; 20_000];
        runtime.block_on(async {
            for number in 1..=100 {
                lane.intake.put(vec![Submission { mqtt: 0, number: Some(number), record: record.clone() }]).await;
            }
        });
        lane.intake.close();
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

    /// A log of a mebibyte, of no class or of one that overflows so, and what is told of it.
    fn written(
        directory: &std::path::Path,
        overflow: Option<class::Overflow>,
    ) -> (Log, Arc<Lane>, tokio::sync::watch::Receiver<u64>, JoinHandle<()>) {
        let size = Size::mebibytes(1);
        let class = |overflow| ClassConfig { name: "c".into(), overflow, size, max_age: None };
        let class = overflow.map(class).into_iter().collect();
        let config = Config { state_dir: directory.to_owned(), log_size: size, class, ..Config::default() };
        let class = Class::all(&config).pop().unwrap();
        let (log, _) = Log::open(class.options()).unwrap();
        let (lane, told) = (Arc::<Lane>::default(), Arc::new(Told::new(1)));
        let (heard, mut receipts) = (told.hear(), Receipts::default());
        receipts.connect(told, Ack::Durable);
        let writer = Writer::start(log.clone(), class, Arc::clone(&lane), Arc::new(receipts), Arc::default());
        (log, lane, heard, writer.unwrap())
    }

    /// A message of about a kilobyte.
    fn submission(number: u64, topic: &str) -> Submission {
        let payload = format!("{number:01000}");
        let record = Record {
            mqtt: "m",
            topic,
            payload: payload.as_bytes(),
            received: Timestamp::from_millis(0),
            qos: 1,
            retained: false,
            duplicate: false,
            notes: Notes::default(),
        };
        Submission { mqtt: 0, number: Some(number), record: record.encoded() }
    }

    /// Writes so many messages to a log that nobody empties, three of topics of their own, then of so many topics in turn.
    /// Gives which ranges are dropped, and of each record that is left its message, its topic, and whether it may be there
    /// twice.
    fn overflown(
        overflow: class::Overflow,
        count: u64,
        topics: u64,
    ) -> (Vec<spool::LostRange>, Vec<(u64, String, bool)>) {
        let directory = tempfile::tempdir().unwrap();
        let (log, lane, heard, writer) = written(directory.path(), Some(overflow));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for number in 1..=count {
                let topic = if number > 3 { format!("t/{}", number % topics) } else { format!("once/{number}") };
                lane.intake.put(vec![submission(number, &topic)]).await;
            }
        });
        lane.intake.close();
        writer.join().unwrap();
        assert_eq!(*heard.borrow(), count, "what is dropped is acknowledged, too");
        let mut spool = log.spool();
        let (lost, mut kept) = (spool.lost().to_vec(), Vec::new());
        assert_eq!(spool.status().lost, lost.iter().map(spool::LostRange::len).sum::<u64>());
        let mut reader = spool.read_from(1);
        while let Some(entry) = reader.next(&mut spool).unwrap() {
            if let spool::Entry::Record { bytes, .. } = entry {
                let record = Record::decode(&bytes).unwrap();
                let message = std::str::from_utf8(record.payload).unwrap().parse().unwrap();
                kept.push((message, record.topic.to_owned(), record.duplicate));
            }
        }
        (lost, kept)
    }

    #[test]
    fn a_class_drops_its_oldest_or_its_newest_and_knows_which() {
        let (lost, kept) = overflown(class::Overflow::DropOldest, 3000, 10);
        assert_eq!((lost.len(), lost[0].first, lost[0].reason), (1, 1, spool::LostReason::Overflow));
        let expected: Vec<u64> = (lost[0].last + 1..=3000).collect();
        assert_eq!(kept.iter().map(|(message, ..)| *message).collect::<Vec<_>>(), expected);
        assert!(expected.len() > 700, "all but a segment is used: {}", expected.len());

        let (lost, kept) = overflown(class::Overflow::DropNewest, 3000, 10);
        assert_eq!((lost.len(), lost[0].last, lost[0].reason), (1, 3000, spool::LostReason::Overflow));
        let expected: Vec<u64> = (1..lost[0].first).collect();
        assert_eq!(kept.iter().map(|(message, ..)| *message).collect::<Vec<_>>(), expected);
        assert!(expected.len() > 700, "all but a segment is used: {}", expected.len());
    }

    #[test]
    fn what_is_larger_than_the_log_takes_has_its_number_and_its_beginning_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (log, lane, heard, writer) = written(directory.path(), None);
        let large = Record {
            mqtt: "m",
            topic: "t",
            payload: &[b'x'; 100_000],
            received: Timestamp::from_millis(0),
            qos: 1,
            retained: false,
            duplicate: false,
            notes: Notes::default(),
        };
        let large = Submission { mqtt: 0, number: Some(2), record: large.encoded() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(lane.intake.put(vec![submission(1, "t"), large, submission(3, "t")]));
        lane.intake.close();
        writer.join().unwrap();
        assert_eq!(*heard.borrow(), 3);
        let mut spool = log.spool();
        let (mut reader, mut seen) = (spool.read_from(1), Vec::new());
        while let Some(spool::Entry::Record { bytes, .. }) = reader.next(&mut spool).unwrap() {
            let record = Record::decode(&bytes).unwrap();
            seen.push((record.notes.cut, record.payload.len() > 10_000));
        }
        assert_eq!(seen, [(None, false), (Some(100_000), true), (None, false)]);
    }

    #[test]
    fn a_class_of_latest_values_keeps_the_last_of_each_topic_in_order() {
        let (lost, kept) = overflown(class::Overflow::LatestPerTopic, 6000, 37);
        assert!(lost.iter().all(|range| range.reason == spool::LostReason::Superseded), "{lost:?}");
        let mut last = std::collections::BTreeMap::new();
        for (message, topic, _) in &kept {
            let before = last.insert(topic, *message);
            assert!(before.is_none_or(|before| before <= *message), "{topic}: {before:?}, then {message}");
        }
        let mut last: Vec<u64> = last.into_values().collect();
        last.sort_unstable();
        assert_eq!(last, (1..=3).chain(6000 - 36..=6000).collect::<Vec<_>>());
        // What is written again may be in Kafka already.
        assert!(kept.iter().all(|(message, _, twice)| *twice == (*message <= 3)), "{kept:?}");
    }

    #[test]
    fn a_class_of_latest_values_with_more_topics_than_room_drops_the_oldest() {
        let (lost, kept) = overflown(class::Overflow::LatestPerTopic, 6000, 6000);
        assert!(kept.len() > 300, "{} stay", kept.len());
        assert_eq!((kept.last().unwrap().0, lost[0].first), (6000, 1));
    }

    #[test]
    fn a_record_that_is_written_again_at_the_end_is_not_taken_for_delivered() {
        let directory = tempfile::tempdir().unwrap();
        let (log, lane, _, writer) = written(directory.path(), Some(class::Overflow::LatestPerTopic));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            lane.intake.put(vec![submission(1, "once")]).await;
            while log.status().pending < 1 {
                std::thread::yield_now();
            }
            let mut through = std::pin::pin!(lane.is_through());
            let mut asked = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(through.as_mut().poll(&mut asked).is_pending(), "it waits in the log");
            for number in 2..=3000 {
                lane.intake.put(vec![submission(number, "often")]).await;
            }
            lane.intake.close();
            writer.join().unwrap();
            assert!(!log.spool().lost().is_empty());
            // Kafka has what was there when it was asked.
            lane.delivered(1);
            assert_eq!(through.as_mut().poll(&mut asked), std::task::Poll::Ready(false));
        });
    }
}
