//! What came out: the records in Kafka, and in which order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use hyperfactory_tests::rig::Tansu;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::rig::SOON;

pub(crate) type Cluster = MockCluster<'static, DefaultProducerContext>;

/// Brokers, as a client without TLS finds them.
pub(crate) trait Brokers {
    fn addresses(&self) -> String;
}

impl Brokers for MockCluster<'static, DefaultProducerContext> {
    fn addresses(&self) -> String {
        self.bootstrap_servers()
    }
}

impl Brokers for Tansu {
    fn addresses(&self) -> String {
        self.address().to_owned()
    }
}

/// Topics and how many messages there are of each, numbered from 1.
pub(crate) type Published = [(String, u64)];

/// Puts a record into Kafka that is not the bridge's.
pub(crate) fn produce(cluster: &impl Brokers, topic: &str, key: &str, payload: &str) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", cluster.addresses()).create().unwrap();
    producer.send(BaseRecord::to(topic).key(key).payload(payload)).unwrap();
    producer.flush(SOON).unwrap();
}

/// A record in Kafka.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    topic: String,
    key: String,
    mqtt_topic: String,
    epoch: String,
    sequence: u64,
    /// The number in its payload; none when that is too long.
    number: u64,
    retained: bool,
    pub(crate) duplicate: bool,
}

/// What came out, the records of a partition in order.
pub(crate) struct Delivered(Vec<Record>);

impl Delivered {
    /// Reads until all that was published is there.
    pub(crate) fn wait(cluster: &impl Brokers, topics: &[&str], published: &Published) -> Self {
        Self::wait_but(cluster, topics, published, None)
    }

    /// The same, without one.
    pub(crate) fn wait_but(
        cluster: &impl Brokers,
        topics: &[&str],
        published: &Published,
        but: Option<(&str, u64)>,
    ) -> Self {
        let mut missing: HashSet<(String, u64)> = HashSet::new();
        for (topic, count) in published {
            missing.extend((1..=*count).map(|number| (topic.clone(), number)));
        }
        if let Some((topic, number)) = but {
            missing.remove(&(topic.to_owned(), number));
        }
        Self::read(cluster, topics, missing)
    }

    /// Reads until these messages are there.
    pub(crate) fn wait_for(cluster: &impl Brokers, topics: &[&str], messages: &[(String, u64)]) -> Self {
        Self::read(cluster, topics, messages.iter().cloned().collect())
    }

    /// What is there now.
    pub(crate) fn now(cluster: &impl Brokers, topics: &[&str]) -> Self {
        Self::read(cluster, topics, HashSet::new())
    }

    fn read(cluster: &impl Brokers, topics: &[&str], mut missing: HashSet<(String, u64)>) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", cluster.addresses())
            .set("group.id", "test")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let mut assignment = TopicPartitionList::new();
        for topic in topics {
            let metadata = consumer.fetch_metadata(Some(topic), SOON).unwrap();
            for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
                assignment.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
            }
        }
        consumer.assign(&assignment).unwrap();
        let (mut records, begun) = (Vec::new(), Instant::now());
        // A little longer than until all is there, for what comes twice.
        let mut complete = None;
        while complete.is_none_or(|at: Instant| at.elapsed() < Duration::from_millis(300)) {
            if let Some(message) = consumer.poll(Duration::from_millis(50)) {
                // What is not the bridge's has no headers.
                if let Some(record) = Record::of(&message.unwrap()) {
                    missing.remove(&(record.mqtt_topic.clone(), record.number));
                    records.push(record);
                }
            }
            if missing.is_empty() {
                complete.get_or_insert_with(Instant::now);
            }
            let some: Vec<_> = missing.iter().take(5).collect();
            assert!(begun.elapsed() < SOON, "{} messages are lost, among them {some:?}", missing.len());
        }
        Self(records)
    }

    pub(crate) fn assert_complete_and_in_order(&self, published: &Published) {
        let mut found: BTreeMap<&str, HashSet<u64>> = BTreeMap::new();
        for record in &self.0 {
            found.entry(&record.mqtt_topic).or_default().insert(record.number);
        }
        for (topic, count) in published {
            assert_eq!(found[topic.as_str()].len() as u64, *count, "{topic}");
        }
        self.assert_in_order();
    }

    /// Of each topic the messages, the first time they come, are in the order in which they were published.
    pub(crate) fn assert_in_order(&self) {
        let (mut seen, mut latest) = (HashSet::new(), HashMap::new());
        for record in self.once() {
            if seen.insert((record.mqtt_topic.clone(), record.number)) {
                let before = latest.insert(record.mqtt_topic.clone(), record.number);
                assert!(before.is_none_or(|before| before < record.number), "{before:?}, then {record:?}");
            }
        }
    }

    /// Messages that came more than once, without records that came twice.
    pub(crate) fn twice(&self) -> Vec<Record> {
        let mut seen = HashSet::new();
        self.once().filter(|record| !seen.insert((record.mqtt_topic.clone(), record.number))).cloned().collect()
    }

    /// How many records there are.
    pub(crate) fn records(&self) -> usize {
        self.once().count()
    }

    /// Their numbers, in their order.
    pub(crate) fn sequences(&self) -> Vec<u64> {
        self.once().map(|record| record.sequence).collect()
    }

    /// How many came again, under their numbers.
    pub(crate) fn again(&self) -> usize {
        self.0.len() - self.records()
    }

    /// How often each message came, but for records that came twice, and those that say themselves that they may be repetitions.
    pub(crate) fn times(&self) -> BTreeMap<(String, u64), usize> {
        let mut times = BTreeMap::new();
        for record in self.once().filter(|record| !record.duplicate) {
            *times.entry((record.mqtt_topic.clone(), record.number)).or_default() += 1;
        }
        times
    }

    /// The numbers that came of an MQTT topic, each record once, in their order.
    pub(crate) fn numbers(&self, topic: &str) -> Vec<u64> {
        self.once().filter(|record| record.mqtt_topic == topic).map(|record| record.number).collect()
    }

    pub(crate) fn keys(&self, topic: &str) -> Vec<&str> {
        self.0.iter().filter(|record| record.topic == topic).map(|record| record.key.as_str()).collect()
    }

    pub(crate) fn retained(&self) -> Vec<bool> {
        self.0.iter().map(|record| record.retained).collect()
    }

    fn once(&self) -> impl Iterator<Item = &Record> {
        let mut seen = HashSet::new();
        self.0.iter().filter(move |record| seen.insert((record.epoch.clone(), record.sequence)))
    }
}

impl Record {
    fn of(message: &impl Message) -> Option<Self> {
        let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
        let headers = message.headers()?;
        let header = |name: &str| headers.iter().find(|header| header.key == name).map(|header| text(header.value));
        Some(Self {
            topic: message.topic().to_owned(),
            key: text(message.key()),
            mqtt_topic: header("hf-topic").unwrap(),
            epoch: header("hf-epoch").unwrap(),
            sequence: header("hf-sequence").unwrap().parse().unwrap(),
            number: text(message.payload()).parse().unwrap_or(0),
            retained: header("hf-retained").is_some(),
            duplicate: header("hf-duplicate").is_some(),
        })
    }
}
