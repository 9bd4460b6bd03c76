//! Records in Kafka with all that they have.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::delivered::Cluster;
use crate::rig::SOON;

/// A record.
#[derive(Clone, Debug)]
pub(crate) struct Full {
    pub(crate) key: String,
    pub(crate) payload: Vec<u8>,
    headers: Vec<(String, String)>,
}

impl Full {
    /// The first header of this name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }
}

/// Reads so many records of a topic with one partition, and looks whether there are more.
pub(crate) fn read(cluster: &Cluster, topic: &str, count: usize) -> Vec<Full> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .set("group.id", "records")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&assignment).unwrap();
    let (mut records, begun) = (Vec::new(), Instant::now());
    let mut complete = None;
    while complete.is_none_or(|at: Instant| at.elapsed() < Duration::from_millis(300)) {
        if let Some(message) = consumer.poll(Duration::from_millis(50)) {
            let message = message.unwrap();
            let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
            let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
            records.push(Full {
                key: text(message.key()),
                payload: message.payload().unwrap_or_default().to_vec(),
                headers: headers.map(|header| (header.key.to_owned(), text(header.value))).collect(),
            });
        }
        if records.len() >= count {
            complete.get_or_insert_with(Instant::now);
        }
        assert!(begun.elapsed() < SOON, "{} of {count} records in {topic}: {records:?}", records.len());
    }
    records
}
