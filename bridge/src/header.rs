//! Headers of the records in Kafka: by them whoever reads can prove that nothing is missing, and drop what came twice.
//!
//! Records of one bridge and epoch are numbered from 1 without a hole over all topics, but for those that were dropped: the
//! next record says which. A number that comes twice is the
//! same record, sent again.

/// Name of the bridge.
pub const BRIDGE: &str = "hf-bridge";
/// The life of its log that the sequence belongs to, in hexadecimal.
pub const EPOCH: &str = "hf-epoch";
/// The record's number, in decimal.
pub const SEQUENCE: &str = "hf-sequence";
/// Name of the record's class, if it is of one: classes have epochs of their own.
pub const CLASS: &str = "hf-class";
/// Numbers before this one that were dropped as the class asks for, as in `3-9,12-12`: they never come.
pub const DROPPED: &str = "hf-dropped";
/// Name of the MQTT connection that it came by.
pub const MQTT: &str = "hf-mqtt";
/// Its MQTT topic.
pub const TOPIC: &str = "hf-topic";
/// When the bridge received it, in milliseconds since the Unix epoch.
pub const RECEIVED: &str = "hf-received";
/// `true` when the broker had kept it from before: a state, and no news.
pub const RETAINED: &str = "hf-retained";
/// `true` when the broker could not tell whether it delivered the message before: it may be in another record too.
pub const DUPLICATE: &str = "hf-duplicate";
/// Topic of the Unified Namespace that it was decoded to.
pub const UNS: &str = "hf-uns";
/// `true` when it comes from a Sparkplug birth: a state, and no news.
pub const BIRTH: &str = "hf-birth";
/// `true` when the edge had kept it, and it is older than what came before it.
pub const HISTORICAL: &str = "hf-historical";
/// `true` when its Sparkplug sender does not want it to be kept in a history.
pub const TRANSIENT: &str = "hf-transient";
/// `true` when it is the death of a Sparkplug edge node that has been born again since: the node lives on.
pub const STALE: &str = "hf-stale";
/// Why it is as it came although its route declares what to do with it.
pub const UNMAPPED: &str = "hf-unmapped";
/// Content type that its publisher gave it (MQTT 5).
pub const CONTENT_TYPE: &str = "hf-content-type";
/// What the names above begin with, and no other header does: before a user property (MQTT 5) with such a name stands
/// [`FOREIGN`].
pub const OWN: &str = "hf-";
/// See [`OWN`].
pub const FOREIGN: &str = "user.";

/// Ranges of dropped numbers as the header has them.
pub fn dropped(ranges: &[(u64, u64)]) -> String {
    let ranges: Vec<String> = ranges.iter().map(|(first, last)| format!("{first}-{last}")).collect();
    ranges.join(",")
}

/// What [`dropped`] wrote; what is not understood is left out.
pub fn parse_dropped(text: &str) -> impl Iterator<Item = (u64, u64)> {
    text.split(',').filter_map(|range| {
        let (first, last) = range.split_once('-')?;
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (1 <= first && first <= last).then_some((first, last))
    })
}

/// An epoch as the header has it.
pub fn epoch(epoch: u64) -> String {
    format!("{epoch:016x}")
}
