//! The verb `audit`: reads what is in Kafka, and says what is missing, doubled or out of order. A gap is no loss when the
//! bridge says that it was dropped as its class asks for: the first record after it does, in the header `hf-dropped`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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
/// What is said when something is missing that may have been where Kafka has deleted all there was.
const ALL_GONE: &str = "  of some partitions Kafka has deleted the beginning, and they have none of these records: any that was there counts as missing\n";
/// What numbers mean that are given twice, and what to do.
const GIVEN_TWICE: &str = "  numbers are given twice: the bridge's state was restored from an image, or two machines run with it. Whoever \
     drops what came twice by its number has dropped new records. Stop the bridge, empty its state directory and enroll it \
     anew: its numbers then begin a new epoch\n";

/// What is known of the records of all bridges.
#[derive(Debug, Default)]
pub struct Ledger {
    streams: BTreeMap<(String, String), Stream>,
    /// Partitions of which Kafka has deleted the beginning.
    cut: BTreeSet<String>,
    /// Records without the bridge's headers.
    foreign: u64,
}

/// A record, as its headers tell.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Name of the bridge.
    pub bridge: &'a str,
    /// Life of the log that its number belongs to.
    pub epoch: &'a str,
    /// Its number.
    pub sequence: u64,
    /// The connection and the topic by which it came, in whose order it is.
    pub source: &'a str,
    /// The Kafka topic and partition that it is in.
    pub partition: &'a str,
    /// When the bridge received it, in milliseconds since the Unix epoch.
    pub received: i64,
}

/// The records of one bridge and epoch.
#[derive(Debug, Default)]
struct Stream {
    /// Ranges seen, last number by first.
    seen: BTreeMap<u64, u64>,
    records: u64,
    doubled: u64,
    /// Records that have the number of another one.
    given_twice: u64,
    /// The name of the class, if it is one's.
    class: Option<String>,
    /// Ranges that are said to be dropped.
    dropped: Vec<(u64, u64)>,
    partitions: BTreeMap<String, Partition>,
    disordered: u64,
}

/// What a stream has in a partition: between partitions Kafka keeps no order.
#[derive(Debug)]
struct Partition {
    first: u64,
    highest: u64,
    /// When the latest was received.
    received: i64,
    /// The highest number of each source.
    latest: HashMap<Box<str>, u64>,
}

impl Ledger {
    /// Takes a record, in the order of its partition.
    pub fn take(&mut self, seen: Seen<'_>) {
        let Seen { bridge, epoch, sequence, source, partition, received } = seen;
        let stream = self.streams.entry((bridge.to_owned(), epoch.to_owned())).or_default();
        stream.records += 1;
        let new = stream.note(sequence);
        let begin = || Partition { first: sequence, highest: sequence, received, latest: HashMap::new() };
        let partition = stream.partitions.entry(partition.to_owned()).or_insert_with(begin);
        // What is sent again was received before what was sent after it the first time. Where nothing after it was sent before,
        // it goes to another partition than then: some were added.
        if !new && sequence <= partition.highest && received > partition.received {
            stream.given_twice += 1;
            return;
        }
        partition.highest = partition.highest.max(sequence);
        partition.received = partition.received.max(received);
        if !new {
            stream.doubled += 1;
            return;
        }
        match partition.latest.get_mut(source) {
            Some(latest) if *latest > sequence => stream.disordered += 1,
            Some(latest) => *latest = sequence,
            None => drop(partition.latest.insert(source.into(), sequence)),
        }
    }

    /// Takes note that Kafka has deleted the beginning of a partition.
    pub fn take_cut(&mut self, partition: String) {
        self.cut.insert(partition);
    }

    /// Takes what a record says of its class, and of what was dropped before it.
    pub fn take_dropped(&mut self, bridge: &str, epoch: &str, class: Option<String>, dropped: Option<&str>) {
        let stream = self.streams.entry((bridge.to_owned(), epoch.to_owned())).or_default();
        stream.class = class.or(stream.class.take());
        stream.dropped.extend(dropped.into_iter().flat_map(header::parse_dropped));
    }

    /// Whether no number is missing that was not dropped and that Kafka can't have deleted, none is given to two records, and
    /// the records of each topic are in order. Records may be doubled.
    pub fn is_whole(&self) -> bool {
        let whole = |stream: &Stream| {
            stream.missing(&self.cut).1.is_empty() && stream.given_twice == 0 && stream.disordered == 0
        };
        self.streams.values().all(whole)
    }

    /// What was found, for a person.
    pub fn report(&self) -> String {
        let mut text = String::new();
        for ((bridge, epoch), stream) in &self.streams {
            let last = stream.seen.last_key_value().map_or(0, |(_, last)| *last);
            let gaps: Vec<_> = stream.gaps().collect();
            let (gone, ranges) = stream.missing(&self.cut);
            let missing = sum(&ranges);
            let dropped = sum(&gaps) - missing - gone;
            let Stream { records, doubled, given_twice, disordered, .. } = stream;
            let class = stream.class.as_ref().map_or_else(String::new, |class| format!(" of class {}", plain(class)));
            let some = |count, what| if count > 0 { format!("{count} {what}, ") } else { String::new() };
            let dropped = some(dropped, "dropped as configured");
            let gone = some(gone, "no longer in Kafka");
            let twice = some(*given_twice, "given twice");
            let _ = writeln!(
                text,
                "{} {}: {records} records{class}, numbers to {last}: {missing} missing, {dropped}{gone}{doubled} \
                 doubled, {twice}{disordered} out of order",
                plain(bridge),
                plain(epoch)
            );
            for (first, last) in ranges.iter().take(MOST_LISTED) {
                let _ = writeln!(text, "  missing {first} to {last}: see the bridge's log dump --dead-letters");
            }
            if missing > 0 && self.cut.iter().any(|partition| !stream.partitions.contains_key(partition)) {
                text.push_str(ALL_GONE);
            }
            if *given_twice > 0 {
                text.push_str(GIVEN_TWICE);
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
                let source = format!("{} {topic}", value(header::MQTT).unwrap_or_default());
                let partition = place(message.topic(), message.partition());
                let received = value(header::RECEIVED).and_then(|received| received.parse().ok()).unwrap_or_default();
                let (source, partition) = (source.as_str(), partition.as_str());
                self.take(Seen { bridge: &bridge, epoch: &epoch, sequence, source, partition, received });
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

    /// The gaps, without what is said to be dropped: how many numbers of them Kafka may have deleted, and what is missing.
    fn missing(&self, cut: &BTreeSet<String>) -> (u64, Vec<(u64, u64)>) {
        // Of a partition that is cut, what comes before its first record is deleted.
        let firsts =
            self.partitions.iter().filter(|(name, _)| cut.contains(*name)).map(|(_, partition)| partition.first);
        let bound = firsts.max().unwrap_or(0);
        let unknown = self.unknown();
        let below = unknown.iter().filter(|(first, _)| *first < bound);
        let gone: Vec<_> = below.map(|(first, last)| (*first, (*last).min(bound - 1))).collect();
        let above = unknown.iter().filter(|(_, last)| *last >= bound);
        (sum(&gone), above.map(|(first, last)| ((*first).max(bound), *last)).collect())
    }

    /// The gaps, without what is said to be dropped.
    fn unknown(&self) -> Vec<(u64, u64)> {
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

/// How many numbers are in these ranges.
fn sum(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().map(|(first, last)| last - first + 1).sum()
}

/// What a partition is called here.
fn place(topic: &str, partition: i32) -> String {
    format!("{topic}/{partition}")
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
    let (mut assignment, mut ends, mut ledger) = (TopicPartitionList::new(), HashMap::new(), Ledger::default());
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
            if low > 0 {
                ledger.take_cut(place(topic, partition.id()));
            }
            if low < high {
                assignment.add_partition_offset(topic, partition.id(), Offset::Offset(low))?;
                ends.insert((topic.clone(), partition.id()), high);
            }
        }
    }
    consumer.assign(&assignment)?;
    let mut heard = Instant::now();
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
        for (sequence, source) in records {
            ledger.take(seen(*sequence, source, "t/0", *sequence as i64));
        }
        ledger
    }

    fn seen<'a>(sequence: u64, source: &'a str, partition: &'a str, received: i64) -> Seen<'a> {
        Seen { bridge: "b", epoch: "e", sequence, source, partition, received }
    }

    #[test]
    fn what_kafka_has_deleted_is_not_missing_and_what_is_missing_after_it_is() {
        let mut ledger = ledger(&[(100, "a"), (101, "a")]);
        assert!(!ledger.is_whole() && ledger.report().contains("99 missing"), "{}", ledger.report());
        ledger.take_cut("t/0".into());
        assert!(ledger.is_whole(), "{}", ledger.report());
        assert!(ledger.report().contains(" 0 missing, 99 no longer in Kafka, 0 doubled"), "{}", ledger.report());
        // The first of another partition is as far as that may have had the others.
        ledger.take(seen(104, "b", "t/1", 104));
        assert!(ledger.report().contains(" 2 missing, 99 no longer in Kafka"), "{}", ledger.report());
        ledger.take_cut("t/2".into());
        assert!(!ledger.is_whole() && ledger.report().contains("Kafka has deleted the beginning"));
        ledger.take_cut("t/1".into());
        ledger.take(seen(106, "b", "t/1", 106));
        assert!(!ledger.is_whole(), "{}", ledger.report());
        let report = ledger.report();
        assert!(
            report.contains(" 1 missing, 101 no longer in Kafka") && report.contains("missing 105 to 105"),
            "{report}"
        );
        ledger.take_dropped("b", "e", None, Some("105-105,50-59"));
        assert!(ledger.is_whole());
        assert!(ledger.report().contains(" 11 dropped as configured, 91 no longer in Kafka"), "{}", ledger.report());
    }

    #[test]
    fn partitions_may_be_read_in_any_order_and_connections_have_orders_of_their_own() {
        let mut ledger = Ledger::default();
        for (sequence, partition) in [(2, "t/1"), (4, "t/1"), (1, "t/0"), (3, "t/0")] {
            ledger.take(seen(sequence, "m a", partition, sequence as i64));
        }
        ledger.take(seen(6, "m a", "t/0", 6));
        ledger.take(seen(5, "n a", "t/0", 5));
        assert!(ledger.is_whole() && ledger.report().contains(" 0 out of order"), "{}", ledger.report());
        ledger.take(seen(8, "m a", "t/0", 8));
        ledger.take(seen(7, "m a", "t/0", 7));
        assert!(!ledger.is_whole() && ledger.report().contains(" 1 out of order"), "{}", ledger.report());
    }

    #[test]
    fn a_number_that_was_given_twice_is_told_from_a_record_that_came_twice() {
        let mut ledger = Ledger::default();
        for sequence in [1, 2, 3, 4, 5, 3, 4, 5, 6] {
            ledger.take(seen(sequence, "a", "t/0", sequence as i64));
        }
        // Partitions were added: it is sent again to another.
        ledger.take(seen(6, "a", "t/1", 6));
        assert!(ledger.is_whole() && ledger.report().contains(" 4 doubled, 0 out"), "{}", ledger.report());
        ledger.take(seen(3, "a", "t/0", 9));
        assert!(!ledger.is_whole());
        let report = ledger.report();
        assert!(report.contains(" 4 doubled, 1 given twice, 0 out of order\n  numbers are given twice: "), "{report}");
    }

    #[test]
    fn records_that_are_sent_again_to_a_partition_that_was_added_came_twice_whichever_is_read_first() {
        let (before, added) =
            ([1, 2, 3, 4, 5, 6].map(|number| (number, "t/0")), [4, 5, 6, 7].map(|number| (number, "t/1")));
        for read in [[&before[..], &added], [&added, &before]] {
            let mut ledger = Ledger::default();
            for (sequence, partition) in read.concat() {
                ledger.take(seen(sequence, "a", partition, sequence as i64));
            }
            assert!(ledger.is_whole() && ledger.report().contains(" 3 doubled, 0 out of order"), "{}", ledger.report());
            // What has another time is another record all the same.
            ledger.take(seen(5, "a", "t/1", 9));
            assert!(!ledger.is_whole() && ledger.report().contains(" 1 given twice"), "{}", ledger.report());
        }
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
