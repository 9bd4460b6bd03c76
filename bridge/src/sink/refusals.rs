//! What Kafka refuses: a record for good, or a topic for a while.

use std::collections::HashMap;
use std::time::Duration;
use std::time::Instant;

use rdkafka::error::RDKafkaErrorCode;

/// How long a topic that refused a record is not asked again, and how many such topics are remembered; when there are more,
/// all are asked again.
const REFUSAL: Duration = Duration::from_secs(60);
const MOST_REFUSALS: usize = 1000;

/// Topics that refused a record, and when.
#[derive(Default)]
pub(super) struct Refusals(HashMap<String, (Instant, RDKafkaErrorCode)>);

impl Refusals {
    /// Why the topic takes no record for now.
    pub(super) fn of(&mut self, topic: &str) -> Option<RDKafkaErrorCode> {
        let (since, code) = self.0.get(topic).copied()?;
        if since.elapsed() < REFUSAL {
            return Some(code);
        }
        self.0.remove(topic);
        None
    }

    /// The topic takes no record for now.
    pub(super) fn note(&mut self, topic: &str, code: RDKafkaErrorCode) {
        if self.0.len() >= MOST_REFUSALS {
            self.0.clear();
        }
        self.0.insert(topic.to_owned(), (Instant::now(), code));
    }
}

/// Whether the code is about the record, or another in its batch: it will be refused however often it is sent.
pub(super) fn is_about_record(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::MessageBatchTooLarge
            | RDKafkaErrorCode::InvalidTimestamp
            | RDKafkaErrorCode::PolicyViolation
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::InvalidArgument
    )
}

/// Whether the code is about the topic: it takes no record for now.
pub(super) fn is_about_topic(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::InvalidTopic
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownTopicOrPartition
    )
}
