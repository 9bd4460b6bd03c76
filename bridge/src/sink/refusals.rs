//! What Kafka refuses: a record for good, or a topic for a while.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

/// How long it is believed of a topic that it takes none, and how many such topics are remembered; when there are more, all are
/// taken to be open.
const BELIEVED: Duration = Duration::from_secs(60);
const MOST_REFUSALS: usize = 1000;
/// A topic that takes none is asked again after this.
pub(super) const ASK: Duration = Duration::from_secs(2);
/// How long brokers may say that they don't know a topic until that is believed: those that start say so, and of topics that are
/// only made.
const UNKNOWN: Duration = Duration::from_secs(180);

/// Topics that refused a record.
#[derive(Default)]
pub(super) struct Refusals(HashMap<String, Refusal>);

struct Refusal {
    code: RDKafkaErrorCode,
    /// When it did so first, and last.
    first: Instant,
    last: Instant,
}

impl Refusals {
    /// Why the topic takes no record.
    pub(super) fn of(&self, topic: &str, now: Instant) -> Option<RDKafkaErrorCode> {
        let refusal = self.0.get(topic)?;
        let passes = is_about_existence(refusal.code) && refusal.last.duration_since(refusal.first) < UNKNOWN;
        (!passes && now.duration_since(refusal.last) < BELIEVED).then_some(refusal.code)
    }

    /// Whether it is time to ask the topic again.
    pub(super) fn is_due(&self, topic: &str, now: Instant) -> bool {
        self.0.get(topic).is_none_or(|refusal| now.duration_since(refusal.last) >= ASK)
    }

    /// The topic refused a record.
    pub(super) fn note(&mut self, topic: &str, code: RDKafkaErrorCode, now: Instant) {
        if self.0.len() >= MOST_REFUSALS {
            self.0.clear();
        }
        let refusal = self.0.entry(topic.to_owned()).or_insert(Refusal { code, first: now, last: now });
        // What it said long ago is not what it goes on saying.
        if now.duration_since(refusal.last) > BELIEVED {
            refusal.first = now;
        }
        (refusal.code, refusal.last) = (code, now);
    }

    /// The topic took a record.
    pub(super) fn is_over(&mut self, topic: &str) {
        if !self.0.is_empty() {
            self.0.remove(topic);
        }
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
    matches!(code, RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::InvalidTopic)
        || is_about_existence(code)
}

fn is_about_existence(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENIED: RDKafkaErrorCode = RDKafkaErrorCode::TopicAuthorizationFailed;
    const ABSENT: RDKafkaErrorCode = RDKafkaErrorCode::UnknownTopicOrPartition;

    #[test]
    fn a_topic_that_refuses_is_asked_again_and_not_believed_for_ever() {
        let (mut refusals, begun) = (Refusals::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(refusals.of("t", begun), None);
        refusals.note("t", DENIED, begun);
        assert_eq!((refusals.of("t", begun), refusals.is_due("t", begun)), (Some(DENIED), false));
        assert_eq!((refusals.of("t", after(2)), refusals.is_due("t", after(2))), (Some(DENIED), true));
        refusals.note("t", DENIED, after(50));
        assert_eq!((refusals.of("t", after(100)), refusals.of("t", after(110))), (Some(DENIED), None));
        refusals.note("t", DENIED, after(120));
        refusals.is_over("t");
        assert_eq!(refusals.of("t", after(120)), None);
    }

    #[test]
    fn that_brokers_do_not_know_a_topic_passes_unless_they_go_on_saying_so() {
        let (mut refusals, begun) = (Refusals::default(), Instant::now());
        let mut says = |code, seconds| {
            let now = begun + Duration::from_secs(seconds);
            refusals.note("t", code, now);
            refusals.of("t", now)
        };
        for seconds in (0..180).step_by(30) {
            assert_eq!(says(ABSENT, seconds), None, "after {seconds} seconds");
        }
        assert_eq!(says(ABSENT, 180), Some(ABSENT));
        assert_eq!(says(ABSENT, 3600), None, "nobody knows how it was in between");
        assert_eq!(says(DENIED, 3601), Some(DENIED));
        assert_eq!(says(ABSENT, 3700), None);
    }
}
