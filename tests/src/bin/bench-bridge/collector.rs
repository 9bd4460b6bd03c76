//! Reads along at the Kafka end: what came, how late, and what came twice.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};

use crate::kafka::{Kafka, PARTITIONS};
use crate::message::{self, KAFKA_TOPIC};

/// A reader at work.
pub(crate) struct Collector {
    stop: Arc<AtomicBool>,
    seen: Arc<AtomicU64>,
    thread: JoinHandle<Result<Collected>>,
}

/// What came.
#[derive(Default)]
pub(crate) struct Collected {
    /// Records, with those of warming up.
    pub(crate) records: u64,
    /// How often each message came.
    pub(crate) times: HashMap<u64, u32>,
    /// How often each came without what the headers show to be a repetition; nothing when there are no such headers.
    pub(crate) unmarked: HashMap<u64, u32>,
    /// Milliseconds from publishing to here, with the message's number.
    pub(crate) late: Vec<(u64, f64)>,
    /// The longest time between two records.
    pub(crate) stall: Duration,
    last: Option<Instant>,
    marks: HashSet<(Vec<u8>, Vec<u8>)>,
}

impl Collector {
    /// Begins to read.
    pub(crate) fn start(kafka: &Kafka) -> Result<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", kafka.brokers())
            .set("group.id", "collector")
            .set("enable.auto.commit", "false")
            // The mock answers a fetch that finds nothing after this time, whatever comes in between.
            .set("fetch.wait.max.ms", "1")
            .create()?;
        let mut all = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            all.add_partition_offset(KAFKA_TOPIC, partition, Offset::Beginning)?;
        }
        consumer.assign(&all)?;
        let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::Builder::new().name("collector".into()).spawn(move || {
            let mut collected = Collected::default();
            while !stopped.load(Ordering::Relaxed) {
                // After an error it connects again by itself.
                if let Some(Ok(record)) = consumer.poll(Duration::from_millis(20)) {
                    collected.take(&record);
                    counted.store(collected.times.len() as u64, Ordering::Relaxed);
                }
            }
            Ok(collected)
        })?;
        Ok(Self { stop, seen, thread })
    }

    /// Different messages so far.
    pub(crate) fn messages(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// All that came; an error when this reader has missed some of it.
    pub(crate) fn finish(self, kafka: &Kafka) -> Result<Collected> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok(collected) = self.thread.join() else { bail!("the reader ended badly") };
        let (collected, there) = (collected?, kafka.records()?);
        ensure!(collected.records == there, "{} of {there} records were read: too slow", collected.records);
        Ok(collected)
    }
}

impl Collected {
    fn take(&mut self, record: &BorrowedMessage<'_>) {
        self.records += 1;
        let Some((number @ 1.., published)) = record.payload().and_then(message::parse) else { return };
        *self.times.entry(number).or_default() += 1;
        let now = Instant::now();
        self.stall = self.last.replace(now).map_or(self.stall, |last| self.stall.max(now - last));
        self.late.push((number, message::now().saturating_sub(published) as f64 / 1e6));
        let header = |name: &str| {
            record
                .headers()?
                .iter()
                .find(|header| header.key == name)
                .and_then(|header| header.value)
                .map(<[u8]>::to_vec)
        };
        if let (Some(epoch), Some(sequence)) = (header("hf-epoch"), header("hf-sequence"))
            && self.marks.insert((epoch, sequence))
        {
            *self.unmarked.entry(number).or_default() += 1;
        }
    }
}

/// Repetitions in it.
pub(crate) fn doubled(times: &HashMap<u64, u32>) -> u64 {
    times.values().map(|times| u64::from(times - 1)).sum()
}
