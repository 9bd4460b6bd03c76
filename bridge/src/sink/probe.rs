//! Asks a topic that takes no records whether it does again: by one of them and a producer of its own, so that what is refused
//! ends that one alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use super::Sink;
use super::burial::{Put, refused_by, takes_none};
use super::refusals::{ASK, is_about_record, is_about_topic};
use super::window::Window;
use crate::dead_letter::DeadLetters;
use crate::producer::Producer;
use crate::record::Record;
use crate::route::Target;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A record by which a topic is asked. One that is refused becomes a dead letter, and what can't be one asks again.
pub(super) struct Probe {
    sequence: u64,
    target: Arc<Target>,
    /// As it is in the log.
    record: Vec<u8>,
    /// Who has it; nobody until it is time.
    producer: Option<Producer>,
    /// When it is given up there, or asks.
    until: Instant,
}

impl Probe {
    pub(super) fn new(sequence: u64, target: Arc<Target>, record: Vec<u8>) -> Self {
        Self { sequence, target, record, producer: None, until: Instant::now() }
    }

    /// Whether it asks this topic.
    pub(super) fn is_for(&self, topic: &str) -> bool {
        self.target.topic == topic
    }
}

impl Sink {
    /// Has it ask when it is time, and hears what came of it.
    pub(super) fn ask(&mut self, window: &mut Window) {
        let Some(mut probe) = self.probe.take() else { return };
        let now = Instant::now();
        let answer = match &probe.producer {
            Some(producer) => {
                let report = producer.poll().pop().map(|(_, outcome)| outcome);
                report.or_else(|| (now > probe.until).then_some(Err(RDKafkaErrorCode::MessageTimedOut)))
            }
            None if now < probe.until => None,
            None => match self.producer_with(&probe) {
                Ok(producer) => {
                    (probe.producer, probe.until) = (Some(producer), now + PATIENCE);
                    None
                }
                Err(code) => Some(Err(code)),
            },
        };
        let topic = &probe.target.topic;
        let refused = match answer {
            None => {
                self.probe = Some(probe);
                return;
            }
            Some(Ok(())) => {
                tracing::info!("Kafka's topic {topic} takes records again");
                self.refusals.is_over(topic);
                self.parts.counters.delivered.add(1);
                window.answered(probe.sequence);
                return;
            }
            Some(Err(code)) if is_about_topic(code) => {
                self.refusals.note(topic, code, now);
                self.refusals.of(topic, now).map(|code| (takes_none(topic, code), DeadLetters::put_beside as Put))
            }
            Some(Err(code)) => is_about_record(code).then(|| (refused_by(topic, code), DeadLetters::put as Put)),
        };
        let left = match refused {
            Some((reason, put)) => self.keep(probe.sequence, reason, probe.record, put).err(),
            None => Some(probe.record),
        };
        match left {
            Some(record) => self.probe = Some(Probe { record, producer: None, until: now + ASK, ..probe }),
            None => window.answered(probe.sequence),
        }
    }

    fn producer_with(&self, probe: &Probe) -> Result<Producer, RDKafkaErrorCode> {
        let producer = Producer::asking(&self.parts.config, &self.parts.bridge);
        let producer = producer.map_err(|_| RDKafkaErrorCode::Fail)?;
        let record = Record::decode(&probe.record).map_err(|_| RDKafkaErrorCode::InvalidRecord)?;
        producer.send(self.outgoing(probe.sequence, &[], &record, &probe.target))?;
        Ok(producer)
    }
}
