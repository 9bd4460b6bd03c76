//! Sparkplug B messages as readings of the Unified Namespace.
//!
//! A birth says what an edge node or a device has, with a number for each name; data come by number. The numbers are kept on
//! disk, because nobody here can ask for a birth: the bridge never writes to MQTT. What they do not resolve goes on as it
//! came. `spBv1.0/GROUP/DDATA/EDGE/DEVICE` becomes `umh/v1/GROUP/EDGE/DEVICE/_raw/NAME` with `{"timestamp_ms":…,"value":…}`.
//!
//! After a death, what births told counts no more (Eclipse Sparkplug 3.0, sections 5.5 and 5.7), unless it is an edge node's of
//! another life than its last birth began: an MQTT broker may be late to notice that a connection is gone, and then tells the
//! death after the next birth. Both have the number of their life, `bdSeq`. Where a host application would ask for a birth
//! (section 5.9: something is missing in the sequence; and a number that no birth told), that is counted and told, for one of
//! them has to.

mod payload;
mod tables;

use data_encoding::BASE64;
use prost::{DecodeError, Message as _};

use crate::uns;
use payload::{LIFE, Metric, Payload, Value};
pub use tables::{Saving, Tables};

/// Longest name of a metric, and of a group, an edge node and a device.
const LONGEST_NAME: usize = 1024;

/// Largest payload that is read, and most metrics of it: so much memory may one message take. A larger one goes on as it came.
const LARGEST: usize = 1 << 20;
const MOST_METRICS: usize = 10_000;
/// Most bytes that its readings may have in common, in all of them: its topic, and what its publisher added.
const MOST_REPEATED: usize = 16 << 20;

/// Numbers of types (Eclipse Sparkplug 3.0, section 6.4.16).
mod datatype {
    pub(super) const INT8: u32 = 1;
    pub(super) const INT16: u32 = 2;
    pub(super) const INT32: u32 = 3;
    pub(super) const INT64: u32 = 4;
    pub(super) const BYTES: u32 = 17;
    pub(super) const FILE: u32 = 18;
}

/// A message, as it came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Message<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// Its payload.
    pub payload: &'a [u8],
    /// When it came, in milliseconds since the Unix epoch.
    pub received: i64,
    /// The broker had kept it: it may be from another life of its sender, so nothing is learnt from it.
    pub retained: bool,
    /// It may have come before, and so be out of sequence.
    pub duplicate: bool,
    /// Bytes that each of its readings has beside its own.
    pub beside: usize,
}

/// A message, read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// What it tells.
    pub readings: Vec<Reading>,
    /// Whether the message itself goes on too, and why.
    pub rest: Rest,
    /// What is missing before it, for a person.
    pub gap: Option<String>,
    /// A host application would ask for a birth.
    pub wants_birth: bool,
}

/// Whether a message goes on as it came.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Rest {
    /// Nothing of it is left.
    #[default]
    Nothing,
    /// It tells no values: a death, a command, a state.
    NoData,
    /// It is a death of a life that was over before: whom it is of lives on.
    Stale,
    /// Something of it can't be told otherwise.
    Unresolved(String),
}

/// A value of the Unified Namespace.
#[derive(Debug, PartialEq, Eq)]
pub struct Reading {
    /// Its topic.
    pub topic: String,
    /// Value and time, as JSON.
    pub payload: Vec<u8>,
    /// It comes from a birth: what stands, and no news.
    pub birth: bool,
    /// It was kept at the edge.
    pub historical: bool,
    /// Its sender does not want it to be kept.
    pub transient: bool,
}

/// Whom a message is from.
struct Sender<'a> {
    group: &'a str,
    kind: &'a str,
    edge: &'a str,
    device: Option<&'a str>,
}

impl<'a> Sender<'a> {
    /// `None` for a topic that is not of Sparkplug, or has neither births, data nor deaths.
    fn of(topic: &'a str) -> Option<Self> {
        let mut levels = topic.split('/');
        let ("spBv1.0", group, kind, edge) = (levels.next()?, levels.next()?, levels.next()?, levels.next()?) else {
            return None;
        };
        let device = levels.next();
        let known = match device {
            None => matches!(kind, "NBIRTH" | "NDATA" | "NDEATH"),
            Some(_) => matches!(kind, "DBIRTH" | "DDATA" | "DDEATH"),
        };
        (known && levels.next().is_none()).then_some(Self { group, kind, edge, device })
    }

    fn levels(&self) -> impl Iterator<Item = &'a str> + Clone {
        [self.group, self.edge].into_iter().chain(self.device)
    }

    fn topic(&self, name: &str) -> Result<String, &'static str> {
        // Else an edge node's topic may be a device's too.
        if self.levels().any(|level| level.starts_with('_')) {
            return Err("group, edge node and device begin with no _");
        }
        let place = self.levels().collect::<Vec<_>>().join("/");
        let topic = format!("{}{place}/_raw/{name}", uns::PREFIX);
        uns::key(&topic).map(|_| topic)
    }
}

/// Reads a message.
pub fn decode(tables: &mut Tables, message: &Message<'_>) -> Decoded {
    let whole = |rest| Decoded { rest, ..Decoded::default() };
    let Some(sender) = Sender::of(message.topic) else { return whole(Rest::NoData) };
    if sender.levels().any(|level| level.len() > LONGEST_NAME) {
        let why = format!("group, edge node or device has a name longer than {LONGEST_NAME} bytes");
        return whole(Rest::Unresolved(why));
    }
    match (sender.kind, read(message)) {
        ("NDEATH" | "DDEATH", Ok(payload)) if !message.retained => death(tables, &sender, &payload, message.duplicate),
        ("NDEATH" | "DDEATH", _) => whole(Rest::NoData),
        (_, Ok(payload)) => values(tables, &sender, &payload, message),
        (_, Err(why)) => whole(Rest::Unresolved(why)),
    }
}

fn read(message: &Message<'_>) -> Result<Payload, String> {
    if message.payload.len() > LARGEST {
        return Err(format!("larger than {LARGEST} bytes"));
    }
    let malformed = |error: DecodeError| format!("not Sparkplug B: {error}");
    let metrics = Payload::count(message.payload).map_err(malformed)?;
    if metrics > MOST_METRICS {
        return Err(format!("more than {MOST_METRICS} metrics"));
    }
    if metrics * (message.topic.len() + message.beside) > MOST_REPEATED {
        return Err(format!(
            "topic and properties would take more than {MOST_REPEATED} bytes, in each of {metrics} metrics"
        ));
    }
    Payload::decode(message.payload).map_err(malformed)
}

fn death(tables: &mut Tables, sender: &Sender<'_>, payload: &Payload, duplicate: bool) -> Decoded {
    let Sender { group, edge, device, .. } = *sender;
    // A node's death is written before its life, and is in no sequence.
    let counts = device.is_some() && !duplicate;
    let gap = tables.counted(group, edge, payload.seq.filter(|_| counts), false);
    let counts = tables.died(group, edge, device, payload.life());
    let rest = if counts { Rest::NoData } else { Rest::Stale };
    Decoded { rest, wants_birth: gap.is_some(), gap, ..Decoded::default() }
}

/// What a birth or data tell.
fn values(tables: &mut Tables, sender: &Sender<'_>, payload: &Payload, message: &Message<'_>) -> Decoded {
    let Sender { group, edge, device, .. } = *sender;
    let (birth, node) = (matches!(sender.kind, "NBIRTH" | "DBIRTH"), sender.kind == "NBIRTH");
    let mut decoded = Decoded::default();
    if birth && !message.retained {
        if !tables.learn(group, edge, device, learnt(&payload.metrics)) {
            decoded.gap = Some(format!("{group}/{edge} has more metrics than are remembered"));
        }
        if node {
            tables.lives(group, edge, payload.life());
        }
    }
    if !message.duplicate && !message.retained {
        let missing = tables.counted(group, edge, payload.seq, node);
        decoded.wants_birth = missing.is_some();
        decoded.gap = decoded.gap.or(missing);
    }
    for metric in &payload.metrics {
        let known = metric.alias.and_then(|alias| tables.known(group, edge, device, alias));
        let name = metric.name.as_deref().filter(|name| !name.is_empty());
        let Some(name) = name.or(known.map(|known| known.name.as_str())) else {
            let alias = metric.alias.map_or_else(|| "neither name nor alias".into(), |alias| format!("alias {alias}"));
            decoded.wants_birth |= metric.alias.is_some();
            decoded.rest = Rest::Unresolved(format!("a metric has {alias}, which no birth has told"));
            continue;
        };
        let known = known.map(|known| known.datatype).or_else(|| tables.datatype(group, edge, device, name));
        let datatype = metric.datatype.or(known).unwrap_or_default();
        let time = metric.timestamp.or(payload.timestamp);
        let time = time.map_or_else(|| message.received.to_string(), |time| time.to_string());
        match reading(sender, name, metric, datatype, &time) {
            Ok(Some(reading)) => decoded.readings.push(Reading { birth, ..reading }),
            Ok(None) => {}
            Err(why) => decoded.rest = Rest::Unresolved(why),
        }
    }
    decoded
}

fn learnt(metrics: &[Metric]) -> tables::Metrics {
    let mut learnt = tables::Metrics::default();
    for metric in metrics {
        let Some(name) = metric.name.clone().filter(|name| name.len() <= LONGEST_NAME) else { continue };
        match (metric.alias, metric.datatype) {
            (Some(alias), datatype) => {
                learnt.numbers.insert(alias, tables::Known { name, datatype: datatype.unwrap_or_default() });
            }
            (None, Some(datatype)) => {
                learnt.types.insert(name, datatype);
            }
            (None, None) => {}
        }
    }
    learnt
}

/// `None` is for what steers the sender and is no value.
fn reading(
    sender: &Sender<'_>,
    name: &str,
    metric: &Metric,
    datatype: u32,
    time: &str,
) -> Result<Option<Reading>, String> {
    if name == LIFE || name.starts_with("Node Control/") || name.starts_with("Device Control/") {
        return Ok(None);
    }
    if name.len() > LONGEST_NAME {
        return Err(format!("a metric's name is longer than {LONGEST_NAME} bytes"));
    }
    let value = match &metric.value {
        _ if metric.is_null == Some(true) => "null".to_owned(),
        None => return Err(format!("{name} has no value, and does not say that it has none")),
        Some(value) => json(value, datatype)
            .ok_or_else(|| format!("{name} is of type {datatype}, which has no place in the Unified Namespace"))?,
    };
    let topic = sender.topic(name).map_err(|why| format!("{name} has no place in the Unified Namespace: {why}"))?;
    let payload = format!(r#"{{"timestamp_ms":{time},"value":{value}}}"#).into_bytes();
    let (historical, transient) = (metric.is_historical == Some(true), metric.is_transient == Some(true));
    Ok(Some(Reading { topic, payload, birth: false, historical, transient }))
}

/// A value as JSON, where there is a form for its type. What is no number has none: `null`.
fn json(value: &Value, datatype: u32) -> Option<String> {
    // What is narrower than the field may be sign-extended or not: the low bits are the value.
    Some(match (value, datatype) {
        (Value::Int(value), datatype::INT8) => (*value as u8 as i8).to_string(),
        (Value::Int(value), datatype::INT16) => (*value as u16 as i16).to_string(),
        (Value::Int(value), datatype::INT32 | datatype::INT64) => (*value as i32).to_string(),
        (Value::Int(value), _) => value.to_string(),
        (Value::Long(value), datatype::INT8..=datatype::INT32) => json(&Value::Int(*value as u32), datatype)?,
        (Value::Long(value), datatype::INT64) => (*value as i64).to_string(),
        (Value::Long(value), _) => value.to_string(),
        (Value::Float(value), _) => serde_json::to_string(value).ok()?,
        (Value::Double(value), _) => serde_json::to_string(value).ok()?,
        (Value::Boolean(value), _) => value.to_string(),
        (Value::Text(value), _) => serde_json::to_string(value).ok()?,
        (Value::Bytes(value), datatype::BYTES | datatype::FILE) => serde_json::to_string(&BASE64.encode(value)).ok()?,
        (Value::Bytes(_) | Value::DataSet(_) | Value::Template(_) | Value::Extension(_), _) => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn metric(name: &str, alias: u64, datatype: u32, value: Value) -> Metric {
        Metric {
            name: Some(name.to_owned()).filter(|name| !name.is_empty()),
            alias: Some(alias),
            datatype: Some(datatype),
            value: Some(value),
            ..Metric::default()
        }
    }

    fn by_alias(alias: u64, value: Value) -> Metric {
        Metric { alias: Some(alias), value: Some(value), ..Metric::default() }
    }

    fn sent(seq: u64, metrics: Vec<Metric>) -> Vec<u8> {
        Payload { timestamp: Some(1000), metrics, seq: Some(seq) }.encode_to_vec()
    }

    fn told(tables: &mut Tables, topic: &str, payload: &[u8]) -> Decoded {
        decode(tables, &Message { topic, payload, received: 5, ..Message::default() })
    }

    fn shown(decoded: &Decoded) -> Vec<String> {
        let show = |reading: &Reading| format!("{} {}", reading.topic, String::from_utf8_lossy(&reading.payload));
        decoded.readings.iter().map(show).collect()
    }

    #[test]
    fn a_birth_names_what_comes_by_number_and_is_no_news() {
        let mut tables = Tables::in_memory();
        let birth = sent(
            0,
            vec![
                metric("bdSeq", 0, 4, Value::Long(3)),
                metric("Motor/Temp", 1, 9, Value::Float(21.7)),
                metric("count", 2, 1, Value::Int(255)),
            ],
        );
        let born = told(&mut tables, "spBv1.0/acme/NBIRTH/press", &birth);
        assert_eq!(
            shown(&born),
            [
                r#"umh/v1/acme/press/_raw/Motor/Temp {"timestamp_ms":1000,"value":21.7}"#,
                r#"umh/v1/acme/press/_raw/count {"timestamp_ms":1000,"value":-1}"#,
            ]
        );
        assert!(born.readings.iter().all(|reading| reading.birth) && born.gap.is_none() && born.rest == Rest::Nothing);
        let historical =
            Metric { is_historical: Some(true), timestamp: Some(7), ..by_alias(2, Value::Int(0xffff_fffe)) };
        let data = told(
            &mut tables,
            "spBv1.0/acme/NDATA/press",
            &sent(1, vec![historical, by_alias(1, Value::Float(f32::NAN))]),
        );
        assert_eq!(
            shown(&data),
            [
                r#"umh/v1/acme/press/_raw/count {"timestamp_ms":7,"value":-2}"#,
                r#"umh/v1/acme/press/_raw/Motor/Temp {"timestamp_ms":1000,"value":null}"#,
            ]
        );
        assert!(data.readings[0].historical && !data.readings[1].historical && !data.readings[0].birth);
    }

    #[test]
    fn what_no_birth_has_told_goes_on_as_it_came_and_the_rest_is_told() {
        let mut tables = Tables::in_memory();
        let birth = sent(0, vec![metric("a", 1, 11, Value::Boolean(true))]);
        told(&mut tables, "spBv1.0/g/DBIRTH/e/d", &birth);
        let data = sent(1, vec![by_alias(1, Value::Boolean(false)), by_alias(9, Value::Int(1))]);
        let decoded = told(&mut tables, "spBv1.0/g/DDATA/e/d", &data);
        assert_eq!(shown(&decoded), [r#"umh/v1/g/e/d/_raw/a {"timestamp_ms":1000,"value":false}"#]);
        assert_eq!(decoded.rest, Rest::Unresolved("a metric has alias 9, which no birth has told".into()));
        // Another device's numbers, and a node's that is born again, are others.
        assert!(
            told(&mut tables, "spBv1.0/g/DDATA/e/other", &sent(2, vec![by_alias(1, Value::Int(1))]))
                .readings
                .is_empty()
        );
        told(&mut tables, "spBv1.0/g/NBIRTH/e", &sent(0, vec![]));
        assert!(
            told(&mut tables, "spBv1.0/g/DDATA/e/d", &sent(1, vec![by_alias(1, Value::Int(1))])).readings.is_empty()
        );
        for (metric, why) in [
            (metric("t", 3, 19, Value::Template(vec![])), "t is of type 19"),
            (metric("x", 3, 24, Value::Bytes(vec![1])), "x is of type 24"),
            (metric("a//b", 3, 10, Value::Double(1.0)), "empty level"),
        ] {
            let decoded = told(&mut tables, "spBv1.0/g/NDATA/e", &sent(2, vec![metric]));
            assert!(matches!(&decoded.rest, Rest::Unresolved(said) if said.contains(why)), "{decoded:?}");
        }
        let decoded = told(&mut tables, "spBv1.0/g/NDATA/_e", &sent(2, vec![metric("a", 1, 10, Value::Double(1.0))]));
        assert!(matches!(&decoded.rest, Rest::Unresolved(said) if said.contains("begin with no _")), "{decoded:?}");
        let many = sent(3, vec![Metric::default(); MOST_METRICS + 1]);
        for unread in [b"\xff".as_slice(), &[0; LARGEST + 1], &many] {
            assert!(matches!(told(&mut tables, "spBv1.0/g/NDATA/e", unread).rest, Rest::Unresolved(_)));
        }
    }

    #[test]
    fn what_comes_by_name_has_the_type_that_its_birth_told() {
        let mut tables = Tables::in_memory();
        let named =
            |datatype, value| Metric { name: Some("level".into()), datatype, value: Some(value), ..Metric::default() };
        for device in ["", "/d"] {
            let kind = if device.is_empty() { 'N' } else { 'D' };
            let topic = |what: &str| format!("spBv1.0/g/{kind}{what}/e{device}");
            let mut said = |what, metric| shown(&told(&mut tables, &topic(what), &sent(0, vec![metric])));
            said("BIRTH", named(Some(3), Value::Int(5)));
            // Data does not say it again (tck-id-payloads-metric-datatype-not-req).
            let data = said("DATA", named(None, Value::Int(-2i32 as u32)));
            assert!(data[0].ends_with(r#"{"timestamp_ms":1000,"value":-2}"#), "{data:?}");
            // It may, and a birth may change it.
            let data = said("DATA", named(Some(7), Value::Int(u32::MAX)));
            assert!(data[0].ends_with(r#""value":4294967295}"#), "{data:?}");
            said("BIRTH", named(Some(7), Value::Int(5)));
            let data = said("DATA", named(None, Value::Int(u32::MAX)));
            assert!(data[0].ends_with(r#""value":4294967295}"#), "{data:?}");
        }
    }

    #[test]
    fn what_has_no_value_says_so() {
        let mut tables = Tables::in_memory();
        let without = |is_null| Metric { name: Some("a".into()), datatype: Some(3), is_null, ..Metric::default() };
        let decoded = told(&mut tables, "spBv1.0/g/NDATA/e", &sent(0, vec![without(Some(true))]));
        assert_eq!(shown(&decoded), [r#"umh/v1/g/e/_raw/a {"timestamp_ms":1000,"value":null}"#]);
        let decoded = told(&mut tables, "spBv1.0/g/NDATA/e", &sent(1, vec![without(None)]));
        assert!(matches!(&decoded.rest, Rest::Unresolved(why) if why.contains("a has no value")), "{decoded:?}");
    }

    #[test]
    fn gaps_in_the_sequence_are_told() {
        let mut tables = Tables::in_memory();
        let mut gap = |topic: &str, seq| told(&mut tables, topic, &sent(seq, vec![])).gap;
        assert_eq!(gap("spBv1.0/g/NDATA/e", 7), None, "nothing is known of what was before");
        assert_eq!(gap("spBv1.0/g/DBIRTH/e/d", 8), None);
        assert_eq!(gap("spBv1.0/g/DDEATH/e/d", 9), None);
        assert_eq!(gap("spBv1.0/g/NDATA/other", 0), None);
        assert!(
            gap("spBv1.0/g/NDATA/e", 12).is_some_and(|gap| gap == "g/e: messages 10 to 11 of its sequence are missing")
        );
        assert_eq!(gap("spBv1.0/g/NBIRTH/e", 0), None, "a birth begins anew");
        assert_eq!(gap("spBv1.0/g/NDEATH/e", 77), None, "a node's death is in no sequence");
        (1..=255).for_each(|seq| assert_eq!(gap("spBv1.0/g/NDATA/e", seq), None));
        assert_eq!(gap("spBv1.0/g/NDATA/e", 0), None);
        // What comes again is no gap, and nothing is learnt from what may be from another life.
        let again = Message { topic: "spBv1.0/g/NDATA/e", payload: &sent(200, vec![]), ..Message::default() };
        assert_eq!(decode(&mut tables, &Message { duplicate: true, ..again }).gap, None);
        let birth = sent(0, vec![metric("a", 1, 3, Value::Int(1))]);
        let kept = Message { topic: "spBv1.0/g/NBIRTH/e", payload: &birth, retained: true, ..Message::default() };
        assert_eq!(decode(&mut tables, &kept).readings.len(), 1);
        assert!(told(&mut tables, "spBv1.0/g/NDATA/e", &sent(1, vec![by_alias(1, Value::Int(1))])).readings.is_empty());
    }

    #[test]
    fn a_death_ends_what_births_told_unless_it_is_of_another_life() {
        let mut tables = Tables::in_memory();
        let lives = |life: u64| metric("bdSeq", 0, 4, Value::Long(life));
        let birth = |life| sent(0, vec![lives(life), metric("a", 1, 3, Value::Int(1))]);
        let data = |seq| sent(seq, vec![by_alias(1, Value::Int(2))]);
        told(&mut tables, "spBv1.0/g/NBIRTH/e", &birth(255));
        told(&mut tables, "spBv1.0/g/NBIRTH/e", &birth(0));
        told(&mut tables, "spBv1.0/g/DBIRTH/e/d", &sent(1, vec![metric("b", 1, 3, Value::Int(1))]));
        // The broker was late to tell of the life before.
        assert_eq!(told(&mut tables, "spBv1.0/g/NDEATH/e", &sent(0, vec![lives(255)])).rest, Rest::Stale);
        let decoded = told(&mut tables, "spBv1.0/g/NDATA/e", &data(2));
        assert!(decoded.readings.len() == 1 && !decoded.wants_birth, "{decoded:?}");
        // What is retained may be of any life.
        let payload = sent(0, vec![lives(0)]);
        let kept = Message { topic: "spBv1.0/g/NDEATH/e", payload: &payload, retained: true, ..Message::default() };
        assert_eq!(decode(&mut tables, &kept).rest, Rest::NoData);
        assert_eq!(told(&mut tables, "spBv1.0/g/DDATA/e/d", &data(3)).readings.len(), 1);
        assert_eq!(told(&mut tables, "spBv1.0/g/DDEATH/e/d", &sent(4, vec![])).rest, Rest::NoData);
        let decoded = told(&mut tables, "spBv1.0/g/DDATA/e/d", &data(5));
        assert!(decoded.readings.is_empty() && decoded.wants_birth, "{decoded:?}");
        assert_eq!(told(&mut tables, "spBv1.0/g/NDATA/e", &data(6)).readings.len(), 1, "the edge node lives on");
        assert_eq!(told(&mut tables, "spBv1.0/g/NDEATH/e", &payload).rest, Rest::NoData);
        let decoded = told(&mut tables, "spBv1.0/g/NDATA/e", &data(7));
        assert!(decoded.readings.is_empty() && decoded.wants_birth && decoded.gap.is_none(), "{decoded:?}");
        told(&mut tables, "spBv1.0/g/NBIRTH/e", &birth(1));
        let decoded = told(&mut tables, "spBv1.0/g/NDATA/e", &data(3));
        assert!(decoded.readings.len() == 1 && decoded.wants_birth && decoded.gap.is_some(), "{decoded:?}");
    }

    #[test]
    fn a_message_takes_no_more_memory_than_it_may() {
        let mut tables = Tables::in_memory();
        let rest = |tables: &mut Tables, message: Message<'_>| match decode(tables, &message).rest {
            Rest::Unresolved(why) => why,
            rest => panic!("{rest:?}"),
        };
        let many = sent(0, vec![by_alias(1, Value::Int(1)); MOST_METRICS]);
        let message = Message { topic: "spBv1.0/g/NDATA/e", payload: &many, ..Message::default() };
        assert!(rest(&mut tables, message).contains("no birth has told"), "it is read");
        assert!(rest(&mut tables, Message { beside: 1700, ..message }).contains("topic and properties"));
        // A metric of two bytes each, of which half a million fit.
        let tiny = b"\x12\x00".repeat(LARGEST / 2);
        assert!(rest(&mut tables, Message { payload: &tiny, ..message }).contains("more than 10000 metrics"));
        let nested = b"\x7b".repeat(LARGEST);
        assert!(rest(&mut tables, Message { payload: &nested, ..message }).contains("not Sparkplug B"));
        let long = format!("spBv1.0/g/NDATA/{}", "e".repeat(LONGEST_NAME + 1));
        assert!(rest(&mut tables, Message { topic: &long, ..message }).contains("a name longer than"));
    }

    #[test]
    fn what_tells_no_values_goes_on_as_it_came() {
        let mut tables = Tables::in_memory();
        for topic in [
            "spBv1.0/g/NDEATH/e",
            "spBv1.0/g/NDATA/e/d",
            "spBv1.0/g/DCMD/e/d",
            "spBv1.0/STATE/host",
            "spBv1.0/g/NDATA",
            "other",
        ] {
            assert_eq!(told(&mut tables, topic, b"{}").rest, Rest::NoData, "{topic}");
        }
    }

    #[test]
    fn values_have_their_types() {
        for (value, datatype, expected) in [
            (Value::Int(0xffff_ff80), 1, "-128"),
            (Value::Int(0x8000), 2, "-32768"),
            (Value::Int(u32::MAX), 3, "-1"),
            (Value::Int(u32::MAX), 7, "4294967295"),
            (Value::Long(u64::MAX), 4, "-1"),
            (Value::Long(0xffff_fffe), 3, "-2"),
            (Value::Long(u64::MAX - 1), 3, "-2"),
            (Value::Long(0xff80), 1, "-128"),
            (Value::Long(0xffff_fffe), 4, "4294967294"),
            (Value::Long(u64::MAX), 8, "18446744073709551615"),
            (Value::Long(1_700_000_000_000), 13, "1700000000000"),
            (Value::Float(0.1), 9, "0.1"),
            (Value::Double(f64::INFINITY), 10, "null"),
            (Value::Text("a\"b".into()), 12, r#""a\"b""#),
            (Value::Bytes(vec![0, 255]), 17, "\"AP8=\""),
        ] {
            assert_eq!(json(&value, datatype).unwrap(), expected, "{value:?}");
        }
    }

    /// A payload as bytes, written by hand from the specification's numbers.
    #[test]
    fn the_wire_format_is_these_bytes() {
        let bytes = b"\x08\x05\x12\x10\x0a\x01a\x10\x07\x20\x09\x28\x01\x30\x01\x65\0\0\x80\x3f\x18\x02";
        let decoded = told(&mut Tables::in_memory(), "spBv1.0/g/NDATA/e", bytes);
        assert_eq!(shown(&decoded), [r#"umh/v1/g/e/_raw/a {"timestamp_ms":5,"value":1.0}"#]);
        assert!(decoded.readings[0].historical && decoded.readings[0].transient);
    }

    proptest! {
        #[test]
        fn arbitrary_payloads_do_not_panic(payload in prop::collection::vec(any::<u8>(), 0..60), kind in "[ND](BIRTH|DATA|DEATH)") {
            let topic = format!("spBv1.0/g/{kind}/e");
            told(&mut Tables::in_memory(), &topic, &payload);
        }

        /// Two metrics never meet in one topic.
        #[test]
        fn different_metrics_have_different_topics(one in "[a_:]{1,2}/(a|b)(/a)?", other in "[a_:]{1,2}/(a|b)(/a)?", name in "[a_]/?[ab]", another in "[a_]/?[ab]") {
            let of = |place: &str, name: &str| {
                let mut levels = place.split('/');
                let (group, edge) = (levels.next().unwrap(), levels.next().unwrap());
                Sender { group, kind: "", edge, device: levels.next() }.topic(name).ok().map(|topic| uns::key(&topic).unwrap())
            };
            let (first, second) = (of(&one, &name), of(&other, &another));
            if first.is_some() && second.is_some() {
                prop_assert_eq!(first == second, one == other && name == another);
            }
        }
    }
}
