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
//!
//! A message of which more is known than that is of version 2: bit 4 of the second byte says that it is a birth's, bit 5 that
//! it is historical, bit 6 that it is stale, bit 7 that it is transient, and the length of notes (4 bytes) stands at 13, so
//! that the rest begins at 17: name, topic, notes, payload.
//! A note is its kind (1 byte), the length of its text (2 bytes) and the text.

use protocol::Timestamp;

const PLAIN: u8 = 1;
const NOTED: u8 = 2;
const HEADER: usize = 13;
const RETAINED: u8 = 4;
const DUPLICATE: u8 = 8;
const BIRTH: u8 = 16;
const HISTORICAL: u8 = 32;
const STALE: u8 = 64;
const TRANSIENT: u8 = 128;

/// Kinds of notes.
const CONTENT_TYPE: u8 = 1;
const PROPERTY: u8 = 2;
/// Belongs to the property before it.
const VALUE: u8 = 3;
const UNS: u8 = 4;
const UNMAPPED: u8 = 5;
const CUT: u8 = 6;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// What else is known of it.
    pub notes: Notes<'a>,
}

/// What is known of a message beside what every message has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes<'a> {
    /// Its content type.
    pub content_type: Option<&'a str>,
    /// Its user properties, in their order.
    pub properties: Vec<(&'a str, &'a str)>,
    /// Topic of the Unified Namespace that it was decoded to.
    pub uns: Option<&'a str>,
    /// Why it is as it came although its route declares what to do with it.
    pub unmapped: Option<&'a str>,
    /// It comes from a birth: a state, and no news.
    pub birth: bool,
    /// It is older than what came before it.
    pub historical: bool,
    /// It is the death of a life that was over before.
    pub stale: bool,
    /// Its sender does not want it to be kept.
    pub transient: bool,
    /// How many bytes its payload had of which only the beginning is here, because the log takes no more: a dead letter.
    pub cut: Option<u64>,
}

impl<'a> Record<'a> {
    /// Bytes it takes in the log.
    pub fn encoded(&self) -> Vec<u8> {
        let flag = |is: bool, bit: u8| if is { bit } else { 0 };
        let flags = self.qos & 3
            | flag(self.retained, RETAINED)
            | flag(self.duplicate, DUPLICATE)
            | flag(self.notes.birth, BIRTH)
            | flag(self.notes.historical, HISTORICAL)
            | flag(self.notes.stale, STALE)
            | flag(self.notes.transient, TRANSIENT);
        let notes = self.notes.encoded();
        let plain = self.notes == Notes::default();
        let mut bytes =
            Vec::with_capacity(HEADER + 4 + self.mqtt.len() + self.topic.len() + notes.len() + self.payload.len());
        bytes.extend([if plain { PLAIN } else { NOTED }, flags]);
        bytes.extend(self.received.millis().to_le_bytes());
        // Names of connections have at most 64 bytes, and topics no more than MQTT can tell.
        bytes.push(u8::try_from(self.mqtt.len()).unwrap_or(u8::MAX));
        bytes.extend(u16::try_from(self.topic.len()).unwrap_or(u16::MAX).to_le_bytes());
        if !plain {
            // Nor are there more notes than an MQTT packet has room for.
            bytes.extend(u32::try_from(notes.len()).unwrap_or(u32::MAX).to_le_bytes());
        }
        bytes.extend(self.mqtt.as_bytes());
        bytes.extend(self.topic.as_bytes());
        bytes.extend(notes);
        bytes.extend(self.payload);
        bytes
    }

    /// The bytes of what fits where no more than `limit` are taken: the beginning of the payload, and a note of what it was.
    pub fn cut_to(&self, limit: usize) -> Vec<u8> {
        let notes = Notes { cut: self.notes.cut.or(Some(self.payload.len() as u64)), ..self.notes.clone() };
        let mut cut = Self { payload: b"", notes, ..self.clone() };
        let mut beside = cut.encoded().len();
        if beside > limit {
            // What its publisher added, or a topic of many kilobytes, is too much by itself.
            cut.notes = Notes { cut: cut.notes.cut, ..Notes::default() };
            beside = cut.encoded().len();
            let room = self.topic.len().saturating_sub(beside.saturating_sub(limit));
            cut.topic = &self.topic[..self.topic.floor_char_boundary(room)];
            beside -= self.topic.len() - cut.topic.len();
        }
        cut.payload = &self.payload[..self.payload.len().min(limit.saturating_sub(beside))];
        cut.encoded()
    }

    /// When an encoded record was received.
    pub fn received(encoded: &[u8]) -> Option<Timestamp> {
        let received = encoded.get(2..)?.first_chunk()?;
        Some(Timestamp::from_millis(i64::from_le_bytes(*received)))
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
        let (notes, rest) = match version {
            PLAIN => (0, rest),
            NOTED => {
                let (length, rest) = rest.split_first_chunk().ok_or(RecordError::Malformed)?;
                (usize::try_from(u32::from_le_bytes(*length)).map_err(|_| RecordError::Malformed)?, rest)
            }
            version => return Err(RecordError::Version(version)),
        };
        let (mqtt, rest) = rest.split_at_checked(usize::from(name)).ok_or(RecordError::Malformed)?;
        let topic = usize::from(u16::from_le_bytes([low, high]));
        let (topic, rest) = rest.split_at_checked(topic).ok_or(RecordError::Malformed)?;
        let (notes, payload) = rest.split_at_checked(notes).ok_or(RecordError::Malformed)?;
        let mut notes = Notes::decode(notes)?;
        let is = |bit| flags & bit != 0;
        (notes.birth, notes.historical) = (is(BIRTH), is(HISTORICAL));
        (notes.stale, notes.transient) = (is(STALE), is(TRANSIENT));
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| RecordError::Malformed);
        Ok(Self {
            mqtt: text(mqtt)?,
            topic: text(topic)?,
            payload,
            received: Timestamp::from_millis(i64::from_le_bytes(received)),
            qos: flags & 3,
            retained: flags & RETAINED != 0,
            duplicate: flags & DUPLICATE != 0,
            notes,
        })
    }
}

impl<'a> Notes<'a> {
    fn encoded(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut note = |kind: u8, text: &str| {
            // No text of MQTT is longer.
            let text = &text.as_bytes()[..text.floor_char_boundary(usize::from(u16::MAX))];
            bytes.push(kind);
            bytes.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
            bytes.extend(text);
        };
        let single = [(CONTENT_TYPE, self.content_type), (UNS, self.uns), (UNMAPPED, self.unmapped)];
        single.into_iter().filter_map(|(kind, text)| Some((kind, text?))).for_each(|(kind, text)| note(kind, text));
        for (name, value) in &self.properties {
            note(PROPERTY, name);
            note(VALUE, value);
        }
        if let Some(bytes) = self.cut {
            note(CUT, &bytes.to_string());
        }
        bytes
    }

    fn decode(mut bytes: &'a [u8]) -> Result<Self, RecordError> {
        let mut notes = Self::default();
        while let Some(([kind, low, high], rest)) = bytes.split_first_chunk() {
            let length = usize::from(u16::from_le_bytes([*low, *high]));
            let (text, rest) = rest.split_at_checked(length).ok_or(RecordError::Malformed)?;
            let text = std::str::from_utf8(text).map_err(|_| RecordError::Malformed)?;
            match *kind {
                CONTENT_TYPE => notes.content_type = Some(text),
                PROPERTY => notes.properties.push((text, "")),
                VALUE => notes.properties.last_mut().ok_or(RecordError::Malformed)?.1 = text,
                UNS => notes.uns = Some(text),
                UNMAPPED => notes.unmapped = Some(text),
                CUT => notes.cut = Some(text.parse().map_err(|_| RecordError::Malformed)?),
                _ => return Err(RecordError::Malformed),
            }
            bytes = rest;
        }
        if bytes.is_empty() { Ok(notes) } else { Err(RecordError::Malformed) }
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
            notes: Notes::default(),
        };
        assert_eq!(record.encoded(), b"\x01\x05\x04\x03\x02\x01\0\0\0\0\x01\x03\0ma/b21");
        let notes = Notes { content_type: Some("x"), properties: vec![("n", "vw")], birth: true, ..Notes::default() };
        assert_eq!(
            Record { notes, ..record }.encoded(),
            b"\x02\x15\x04\x03\x02\x01\0\0\0\0\x01\x03\0\x0d\0\0\0ma/b\x01\x01\0x\x02\x01\0n\x03\x02\0vw21"
        );
        assert_eq!(Record::decode(b"\x03\x05\x04\x03\x02\x01\0\0\0\0\x01\x03\0ma/b21"), Err(RecordError::Version(3)));
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
            content_type in prop::option::of(".{0,5}"),
            properties in prop::collection::vec((".{0,5}", ".{0,5}"), 0..3),
            uns in prop::option::of(".{0,9}"),
            unmapped in prop::option::of(".{0,9}"),
            birth: bool,
            historical: bool,
            stale: bool,
            transient: bool,
            cut in prop::option::of(any::<u64>()),
        ) {
            let received = Timestamp::from_millis(received);
            let notes = Notes {
                content_type: content_type.as_deref(),
                properties: properties.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
                uns: uns.as_deref(),
                unmapped: unmapped.as_deref(),
                birth,
                historical,
                stale,
                transient,
                cut,
            };
            let record =
                Record { mqtt: &mqtt, topic: &topic, payload: &payload, received, qos, retained, duplicate, notes };
            let bytes = record.encoded();
            prop_assert_eq!(Record::received(&bytes), Some(record.received));
            prop_assert_eq!(Record::decode(&bytes), Ok(record));
        }

        #[test]
        fn what_is_cut_fits_and_says_what_it_was(
            topic in ".{0,400}",
            payload in prop::collection::vec(any::<u8>(), 0..400),
            property in ".{0,200}",
            limit in 100usize..600,
        ) {
            let notes = Notes { properties: vec![("p", &property)], ..Notes::default() };
            let (received, length) = (Timestamp::from_millis(7), payload.len() as u64);
            let record = Record {
                mqtt: "m",
                topic: &topic,
                payload: &payload,
                received,
                qos: 1,
                retained: false,
                duplicate: true,
                notes,
            };
            let bytes = record.cut_to(limit);
            prop_assert!(bytes.len() <= limit);
            let cut = Record::decode(&bytes).unwrap();
            prop_assert_eq!((cut.notes.cut, cut.duplicate, cut.received), (Some(length), true, received));
            prop_assert!(topic.starts_with(cut.topic) && payload.starts_with(cut.payload));
            // Once more, for a smaller log.
            let again = cut.cut_to(90);
            prop_assert!(again.len() <= 90 && Record::decode(&again).unwrap().notes.cut == Some(length));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), version in 0u8..4) {
            let _ = Record::decode(&bytes);
            let _ = Record::decode(&[&[version], &bytes[..]].concat());
        }
    }
}
