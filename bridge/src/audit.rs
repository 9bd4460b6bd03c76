//! The verb `audit`: reads what is in Kafka, and says what is missing, doubled or out of order. A gap is no loss when the
//! bridge says that it was dropped as its class asks for: the first record after it does, in the header `hf-dropped`.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::metadata::MetadataTopic;
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::config::KafkaConfig;
use crate::header;
use crate::plain::plain;
use crate::producer::{client, client_with};

/// How long brokers may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Gaps that are listed one by one.
const MOST_LISTED: usize = 20;

/// What is known of the records of all bridges.
#[derive(Debug, Default)]
pub struct Ledger {
    streams: BTreeMap<(String, String), Stream>,
    /// Records without the bridge's headers.
    foreign: u64,
}

/// The records of one bridge and epoch.
#[derive(Debug, Default)]
struct Stream {
    /// Ranges seen, last number by first.
    seen: BTreeMap<u64, u64>,
    records: u64,
    doubled: u64,
    /// The name of the class, if it is one's.
    class: Option<String>,
    /// Ranges that are said to be dropped.
    dropped: Vec<(u64, u64)>,
    /// The highest number of each MQTT topic, in each Kafka topic.
    latest: HashMap<Box<str>, u64>,
    disordered: u64,
}

impl Ledger {
    /// Takes a record, in the order of its partition.
    pub fn take(&mut self, bridge: &str, epoch: &str, sequence: u64, topic: &str) {
        let stream = self.streams.entry((bridge.to_owned(), epoch.to_owned())).or_default();
        stream.records += 1;
        if !stream.note(sequence) {
            stream.doubled += 1;
            return;
        }
        match stream.latest.get_mut(topic) {
            Some(latest) if *latest > sequence => stream.disordered += 1,
            Some(latest) => *latest = sequence,
            None => drop(stream.latest.insert(topic.into(), sequence)),
        }
    }

    /// Takes what a record says of its class, and of what was dropped before it.
    pub fn take_dropped(&mut self, bridge: &str, epoch: &str, class: Option<String>, dropped: Option<&str>) {
        let stream = self.streams.entry((bridge.to_owned(), epoch.to_owned())).or_default();
        stream.class = class.or(stream.class.take());
        stream.dropped.extend(dropped.into_iter().flat_map(header::parse_dropped));
    }

    /// Whether no number is missing that was not dropped, and the records of each topic are in order. Numbers may be doubled.
    pub fn is_whole(&self) -> bool {
        self.streams.values().all(|stream| stream.missing().is_empty() && stream.disordered == 0)
    }

    /// What was found, for a person.
    pub fn report(&self) -> String {
        let mut text = String::new();
        for ((bridge, epoch), stream) in &self.streams {
            let last = stream.seen.last_key_value().map_or(0, |(_, last)| *last);
            let sum = |ranges: &[(u64, u64)]| ranges.iter().map(|(first, last)| last - first + 1).sum::<u64>();
            let gaps: Vec<_> = stream.gaps().collect();
            let ranges = stream.missing();
            let (missing, dropped) = (sum(&ranges), sum(&gaps) - sum(&ranges));
            let Stream { records, doubled, disordered, .. } = stream;
            let class = stream.class.as_ref().map_or_else(String::new, |class| format!(" of class {}", plain(class)));
            let dropped = if dropped > 0 { format!("{dropped} dropped as configured, ") } else { String::new() };
            let _ = writeln!(
                text,
                "{} {}: {records} records{class}, numbers to {last}: {missing} missing, {dropped}{doubled} \
                 doubled, {disordered} out of order",
                plain(bridge),
                plain(epoch)
            );
            for (first, last) in ranges.iter().take(MOST_LISTED) {
                let _ = writeln!(text, "  missing {first} to {last}: see the bridge's log dump --dead-letters");
            }
        }
        if self.foreign > 0 {
            let _ = writeln!(text, "{} records are not of a bridge", self.foreign);
        }
        if text.is_empty() {
            text.push_str("no records\n");
        }
        text
    }

    fn message(&mut self, message: &BorrowedMessage<'_>) {
        let value = |name: &str| {
            let headers = message.headers()?;
            let found = headers.iter().find(|header| header.key == name)?;
            std::str::from_utf8(found.value?).ok().map(str::to_owned)
        };
        let sequence = value(header::SEQUENCE).and_then(|sequence| sequence.parse().ok());
        // What one message was decoded to is many topics', and other routes may send a topic elsewhere.
        let topic = value(header::UNS).or_else(|| value(header::TOPIC));
        match (value(header::BRIDGE), value(header::EPOCH), sequence, topic) {
            (Some(bridge), Some(epoch), Some(sequence), Some(topic)) => {
                self.take(&bridge, &epoch, sequence, &format!("{} {topic}", message.topic()));
                self.take_dropped(&bridge, &epoch, value(header::CLASS), value(header::DROPPED).as_deref());
            }
            _ => self.foreign += 1,
        }
    }
}

impl Stream {
    /// Notes a number; whether it is new.
    fn note(&mut self, number: u64) -> bool {
        let before = self.seen.range(..=number).next_back().map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| last >= number) {
            return false;
        }
        let first = before.filter(|(_, last)| last + 1 == number).map_or(number, |(first, _)| first);
        let last = self.seen.remove(&(number + 1)).unwrap_or(number);
        self.seen.insert(first, last);
        true
    }

    /// The gaps, without what is said to be dropped.
    fn missing(&self) -> Vec<(u64, u64)> {
        let mut dropped = self.dropped.clone();
        dropped.sort_unstable();
        let mut missing = Vec::new();
        for (begin, last) in self.gaps() {
            let mut first = begin;
            for (from, until) in dropped.iter().filter(|(from, until)| *until >= begin && *from <= last) {
                if *from > first {
                    missing.push((first, from - 1));
                }
                first = first.max(until + 1);
            }
            if first <= last {
                missing.push((first, last));
            }
        }
        missing
    }

    fn gaps(&self) -> impl Iterator<Item = (u64, u64)> {
        let ends = std::iter::once(0).chain(self.seen.values().copied());
        ends.zip(self.seen.keys()).filter(|(last, first)| last + 1 < **first).map(|(last, first)| (last + 1, first - 1))
    }
}

/// Whose certificate the audit shows, in place of the bridge's own, which as a rule may only write.
#[derive(Clone, Debug)]
pub struct Reader {
    /// The certificate, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
}

/// Reads all that is in `topics` now, and gives what was found. Blocks.
///
/// # Errors
/// When Kafka can't be read.
pub fn run(config: &KafkaConfig, reader: Option<&Reader>, topics: &[String]) -> anyhow::Result<Ledger> {
    let mut settings = match reader {
        None => client(config)?,
        Some(reader) => {
            for file in [&reader.certificate, &reader.key] {
                std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
            }
            client_with(config, &reader.certificate, &reader.key)?
        }
    };
    settings
        .set("group.id", "hyperfactory-bridge-audit")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer = settings.create().context("no connection to Kafka can be made")?;
    let (mut assignment, mut ends) = (TopicPartitionList::new(), HashMap::new());
    for topic in topics {
        let failed = |error: KafkaError| explain(&error, topic, reader);
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).map_err(failed)?;
        let said = metadata.topics().iter().find_map(MetadataTopic::error).map(RDKafkaErrorCode::from);
        if let Some(code) = said.filter(|code| is_refusal(*code)) {
            return Err(failed(KafkaError::MetadataFetch(code)));
        }
        let known = metadata.topics().iter().any(|topic| !topic.partitions().is_empty());
        anyhow::ensure!(known, "Kafka has no topic {topic}, or does not let this certificate see it");
        for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
            let (low, high) = consumer.fetch_watermarks(topic, partition.id(), PATIENCE).map_err(failed)?;
            if low < high {
                assignment.add_partition_offset(topic, partition.id(), Offset::Offset(low))?;
                ends.insert((topic.clone(), partition.id()), high);
            }
        }
    }
    consumer.assign(&assignment)?;
    let (mut ledger, mut heard) = (Ledger::default(), Instant::now());
    while !ends.is_empty() {
        let Some(message) = consumer.poll(Duration::from_millis(200)) else {
            anyhow::ensure!(heard.elapsed() < PATIENCE, "Kafka gives no more records although there are some");
            continue;
        };
        let message = message.map_err(|error| explain(&error, &topics.join(", "), reader))?;
        heard = Instant::now();
        ledger.message(&message);
        let place = (message.topic().to_owned(), message.partition());
        if ends.get(&place).is_some_and(|end| message.offset() + 1 >= *end) {
            ends.remove(&place);
        }
    }
    Ok(ledger)
}

/// Why `topics` can't be read, and what to do.
fn explain(error: &KafkaError, topics: &str, reader: Option<&Reader>) -> anyhow::Error {
    let advice = match (reader, error.rdkafka_error_code().is_some_and(is_refusal)) {
        (None, true) => {
            "the bridge's own certificate may write and not read: name one of a consumer that may READ, with --certificate \
             FILE --key FILE"
        }
        (Some(_), true) => "allow the principal of the certificate that is named to READ it",
        (None, false) => "see that the brokers run and let the bridge in; check --rotate tries that",
        (Some(_), false) => "see that the brokers run, and trust the authority of the certificate that is named",
    };
    anyhow::anyhow!("Kafka does not let {topics} be read ({error}): {advice}")
}

fn is_refusal(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::GroupAuthorizationFailed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(records: &[(u64, &str)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (sequence, topic) in records {
            ledger.take("b", "e", *sequence, topic);
        }
        ledger
    }

    #[test]
    fn what_came_twice_is_whole() {
        let ledger = ledger(&[(2, "b"), (1, "a"), (3, "a"), (1, "a"), (3, "a"), (4, "b")]);
        assert!(ledger.is_whole());
        assert!(ledger.report().contains("numbers to 4: 0 missing, 2 doubled, 0 out of order"), "{}", ledger.report());
    }

    #[test]
    fn what_was_dropped_is_no_loss_and_what_is_missing_beside_it_is_one() {
        let mut ledger = ledger(&[(1, "a"), (5, "a"), (9, "a"), (20, "a"), (30, "b")]);
        ledger.take_dropped("b", "e", Some("trends".into()), Some("2-4"));
        ledger.take_dropped("b", "e", None, Some("6-8,9-9"));
        ledger.take_dropped("b", "e", None, Some("10-12,14-19"));
        ledger.take_dropped("b", "e", None, Some("rubbish,7,0-40,30-21,25-40"));
        assert!(!ledger.is_whole());
        let report = ledger.report();
        assert!(
            report.contains("5 records of class trends, numbers to 30: 5 missing, 20 dropped as configured"),
            "{report}"
        );
        assert!(report.contains("missing 13 to 13") && report.contains("missing 21 to 24"), "{report}");
        ledger.take_dropped("b", "e", None, Some("21-24,13-13"));
        assert!(ledger.is_whole(), "{}", ledger.report());
        assert_eq!(header::dropped(&[(2, 4), (9, 9)]), "2-4,9-9");
    }

    #[test]
    fn gaps_and_disorder_are_found() {
        let gap = ledger(&[(1, "a"), (2, "a"), (5, "a"), (7, "a")]);
        assert!(!gap.is_whole());
        assert!(gap.report().contains("3 missing") && gap.report().contains("missing 3 to 4"), "{}", gap.report());
        assert!(ledger(&[(2, "a")]).report().contains("missing 1 to 1"));
        let disorder = ledger(&[(2, "a"), (1, "a")]);
        assert!(!disorder.is_whole() && disorder.report().contains("1 out of order"));
        assert!(Ledger::default().is_whole());
    }
}
