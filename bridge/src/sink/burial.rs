//! Makes dead letters of records that nobody takes, and holds back those that can't be kept.

use rdkafka::error::RDKafkaErrorCode;
use spool::SpoolError;

use super::Sink;
use super::window::Window;
use crate::dead_letter::{DeadLetter, DeadLetters};

/// Reasons for dead letters that are remembered as told.
const MOST_TOLD: usize = 100;

/// How a dead letter is put among the others.
pub(super) type Put = fn(&mut DeadLetters, &DeadLetter) -> Result<(), SpoolError>;

impl Sink {
    /// Makes a dead letter of a record, put there so. One that can't be kept holds the record back: it stays in the log, and is
    /// tried again.
    pub(super) fn bury(
        &mut self,
        window: &mut Window,
        sequence: u64,
        reason: String,
        record: Vec<u8>,
        put: Put,
    ) -> bool {
        match self.keep(sequence, window.and_dropped(reason), record, put) {
            Ok(()) => window.done(sequence),
            Err(record) => {
                window.hold(sequence, record);
                return false;
            }
        }
        true
    }

    /// Keeps a dead letter; gives the record back when it can't be kept.
    pub(super) fn keep(&mut self, sequence: u64, reason: String, record: Vec<u8>, put: Put) -> Result<(), Vec<u8>> {
        let letter = DeadLetter { sequence, reason, record };
        if let Err(error) = put(&mut self.parts.dead_letters, &letter) {
            match error {
                _ if !self.complaints.burying.is_due() => {}
                SpoolError::Full { .. } => tracing::error!(
                    sequence,
                    "records wait, for dead-letter-size is used up and what a topic does not take displaces nothing there: {}; \
                     allow this bridge to write to it, or raise dead-letter-size",
                    letter.reason
                ),
                error => tracing::error!(sequence, "records wait, for a dead letter can't be kept: {error}"),
            }
            return Err(letter.record);
        }
        if self.complaints.burying.is_over() {
            tracing::info!("dead letters are kept again");
        }
        self.parts.counters.refused.add(1);
        let reason = letter.reason;
        tracing::debug!(sequence, reason, "a record becomes a dead letter");
        // The first of a kind is told; a topic that takes none would fill the log.
        if self.told.insert(reason.clone()) {
            tracing::warn!(sequence, "records become dead letters: {reason}");
        }
        if self.told.len() > MOST_TOLD {
            self.told.clear();
        }
        Ok(())
    }
}

pub(super) fn takes_none(topic: &str, code: RDKafkaErrorCode) -> String {
    format!("Kafka's topic {topic} takes none: {code}")
}

pub(super) fn refused_by(topic: &str, code: RDKafkaErrorCode) -> String {
    format!("Kafka's topic {topic} refuses it: {code}")
}
