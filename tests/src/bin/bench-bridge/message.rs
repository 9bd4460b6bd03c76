//! What is published: 200 bytes of JSON that tell which message it is, and when it was published.

use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of a payload.
pub(crate) const BYTES: usize = 200;
/// Topics in use.
const TOPICS: u64 = 100;
/// What subscribes to all of them.
pub(crate) const FILTER: &str = "bench/#";
/// The Kafka topic.
pub(crate) const KAFKA_TOPIC: &str = "bench";

/// The MQTT topic of the message with this number.
pub(crate) fn topic(number: u64) -> String {
    format!("bench/line-{:02}/temperature", number % TOPICS)
}

/// The payload of the message with this number, published now.
pub(crate) fn payload(number: u64) -> String {
    let value = number.wrapping_mul(2_654_435_761) % 1_000_000;
    let text = format!(
        "{{\"n\":{number:010},\"at\":{:019},\"value\":{}.{:04},\"unit\":\"celsius\",\"quality\":\"good\",\"source\":\"",
        now(),
        value / 10_000,
        value % 10_000
    );
    format!("{text:x<width$}\"}}", width = BYTES - 2)
}

/// Number of a payload and when it was published, in nanoseconds.
pub(crate) fn parse(payload: &[u8]) -> Option<(u64, u64)> {
    let number = |range: std::ops::Range<usize>| std::str::from_utf8(payload.get(range)?).ok()?.parse().ok();
    Some((number(5..15)?, number(21..40)?))
}

/// Nanoseconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_tells_its_number_and_its_time() {
        let text = payload(1_234);
        assert_eq!(text.len(), BYTES);
        let (number, at) = parse(text.as_bytes()).unwrap();
        assert_eq!((number, at <= now()), (1_234, true));
    }
}
