//! What a record in Kafka tells in its headers: where it comes from, and what is known of it.

use std::borrow::Cow;

use rdkafka::message::{Header, OwnedHeaders};

use crate::header;
use crate::record::Record;
use crate::route::Target;

/// Where the records of a log come from.
pub(super) struct Origin {
    /// Name of the bridge.
    pub(super) bridge: String,
    /// Life of the log that numbers belong to.
    pub(super) epoch: String,
    /// The class; empty for none.
    pub(super) class: String,
}

impl Origin {
    /// Those of a record, which tells of what was dropped before it.
    pub(super) fn headers(
        &self,
        sequence: u64,
        dropped: &[(u64, u64)],
        record: &Record<'_>,
        target: &Target,
    ) -> OwnedHeaders {
        let add = |headers: OwnedHeaders, key: &str, value: &str| headers.insert(Header { key, value: Some(value) });
        let mut headers = OwnedHeaders::new_with_capacity(8 + target.headers.len());
        headers = add(headers, header::BRIDGE, &self.bridge);
        headers = add(headers, header::EPOCH, &self.epoch);
        headers = add(headers, header::SEQUENCE, &sequence.to_string());
        headers = add(headers, header::MQTT, record.mqtt);
        headers = add(headers, header::TOPIC, record.topic);
        headers = add(headers, header::RECEIVED, &record.received.millis().to_string());
        if !self.class.is_empty() {
            headers = add(headers, header::CLASS, &self.class);
        }
        if !dropped.is_empty() {
            headers = add(headers, header::DROPPED, &header::dropped(dropped));
        }
        if record.retained {
            headers = add(headers, header::RETAINED, "true");
        }
        if record.duplicate {
            headers = add(headers, header::DUPLICATE, "true");
        }
        let notes = &record.notes;
        let notable = [
            (header::UNS, notes.uns),
            (header::BIRTH, notes.birth.then_some("true")),
            (header::HISTORICAL, notes.historical.then_some("true")),
            (header::TRANSIENT, notes.transient.then_some("true")),
            (header::STALE, notes.stale.then_some("true")),
            (header::UNMAPPED, notes.unmapped),
            (header::CONTENT_TYPE, notes.content_type),
        ];
        for (name, value) in notable.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            headers = add(headers, name, value);
        }
        for (name, value) in &target.headers {
            headers = add(headers, name, value);
        }
        for (name, value) in &notes.properties {
            // No broker lets a NUL through; one that did must not stop the sink.
            let plain = !name.starts_with(header::OWN) && !name.contains('\0');
            let foreign = || Cow::Owned(format!("{}{}", header::FOREIGN, name.replace('\0', "")));
            headers = add(headers, &if plain { Cow::Borrowed(*name) } else { foreign() }, value);
        }
        headers
    }
}
