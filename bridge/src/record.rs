//! An MQTT message as the log keeps it. The format is stable: a newer bridge reads what an older one wrote.
//!
//! | offset | size | version 1, little-endian |
//! |---|---|---|
//! | 0 | 1 | version |
//! | 1 | 1 | bits 0–1 quality of service, bit 2 retained, bit 3 maybe delivered before |
//! | 2 | 8 | when it was received, in milliseconds since the Unix epoch |
//! | 10 | 1 | length of the connection's name |
//! | 11 | 2 | length of the topic |
//! | 13 | | the connection's name, the topic, the payload |

use protocol::Timestamp;

const VERSION: u8 = 1;
const HEADER: usize = 13;
const RETAINED: u8 = 4;
const DUPLICATE: u8 = 8;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Name of the connection that it came by.
    pub mqtt: &'a str,
    /// Its topic.
    pub topic: &'a str,
    /// Its payload.
    pub payload: &'a [u8],
    /// When the bridge received it.
    pub received: Timestamp,
    /// Quality of service that it came with.
    pub qos: u8,
    /// It was kept by the broker from before, and is no news.
    pub retained: bool,
    /// The broker can't tell whether it delivered it before.
    pub duplicate: bool,
}

impl<'a> Record<'a> {
    /// Bytes it takes in the log.
    pub fn encoded(&self) -> Vec<u8> {
        let flags =
            self.qos & 3 | if self.retained { RETAINED } else { 0 } | if self.duplicate { DUPLICATE } else { 0 };
        let mut bytes = Vec::with_capacity(HEADER + self.mqtt.len() + self.topic.len() + self.payload.len());
        bytes.extend([VERSION, flags]);
        bytes.extend(self.received.millis().to_le_bytes());
        // Names of connections have at most 64 bytes, and topics no more than MQTT can tell.
        bytes.push(u8::try_from(self.mqtt.len()).unwrap_or(u8::MAX));
        bytes.extend(u16::try_from(self.topic.len()).unwrap_or(u16::MAX).to_le_bytes());
        bytes.extend(self.mqtt.as_bytes());
        bytes.extend(self.topic.as_bytes());
        bytes.extend(self.payload);
        bytes
    }

    /// An encoded record, marked as one that may be in another record too.
    pub fn doubled(encoded: &[u8]) -> Vec<u8> {
        let mut bytes = encoded.to_vec();
        if let Some(flags) = bytes.get_mut(1) {
            *flags |= DUPLICATE;
        }
        bytes
    }

    /// Reads what [`Self::encoded`] wrote.
    ///
    /// # Errors
    /// [`RecordError`] for bytes of another origin or a later version.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>().ok_or(RecordError::Malformed)?;
        let [version, flags, received @ .., name, low, high] = *header;
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let (mqtt, rest) = rest.split_at_checked(usize::from(name)).ok_or(RecordError::Malformed)?;
        let topic = usize::from(u16::from_le_bytes([low, high]));
        let (topic, payload) = rest.split_at_checked(topic).ok_or(RecordError::Malformed)?;
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| RecordError::Malformed);
        Ok(Self {
            mqtt: text(mqtt)?,
            topic: text(topic)?,
            payload,
            received: Timestamp::from_millis(i64::from_le_bytes(received)),
            qos: flags & 3,
            retained: flags & RETAINED != 0,
            duplicate: flags & DUPLICATE != 0,
        })
    }
}

/// Bytes that are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by a later release.
    #[error("it is of version {0}, which this release does not know: go back to the release that wrote it")]
    Version(u8),
    /// Not a record at all.
    #[error("it is not a record of the bridge's")]
    Malformed,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_format_is_these_bytes() {
        let record = Record {
            mqtt: "m",
            topic: "a/b",
            payload: b"21",
            received: Timestamp::from_millis(0x0102_0304),
            qos: 1,
            retained: true,
            duplicate: false,
        };
        assert_eq!(record.encoded(), b"\x01\x05\x04\x03\x02\x01\0\0\0\0\x01\x03\0ma/b21");
        assert_eq!(Record::decode(b"\x02\x05\x04\x03\x02\x01\0\0\0\0\x01\x03\0ma/b21"), Err(RecordError::Version(2)));
    }

    proptest! {
        #[test]
        fn records_round_trip(
            mqtt in "[a-z]{0,64}",
            topic in ".{0,40}",
            payload in prop::collection::vec(any::<u8>(), 0..40),
            received in any::<i64>(),
            qos in 0u8..3,
            retained: bool,
            duplicate: bool,
        ) {
            let received = Timestamp::from_millis(received);
            let record = Record { mqtt: &mqtt, topic: &topic, payload: &payload, received, qos, retained, duplicate };
            let bytes = record.encoded();
            prop_assert_eq!(Record::decode(&bytes), Ok(record));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), version in 0u8..3) {
            let _ = Record::decode(&bytes);
            let _ = Record::decode(&[&[version], &bytes[..]].concat());
        }
    }
}
