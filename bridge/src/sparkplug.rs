//! Sparkplug B messages as readings of the Unified Namespace.
//!
//! A birth says what an edge node or a device has, with a number for each name; data come by number. The numbers are kept on
//! disk, because nobody here can ask for a birth: the bridge never writes to MQTT. What they do not resolve goes on as it
//! came. `spBv1.0/GROUP/DDATA/EDGE/DEVICE` becomes `umh/v1/GROUP/EDGE/DEVICE/_raw/NAME` with `{"timestamp_ms":…,"value":…}`.

mod payload;
mod tables;

use data_encoding::BASE64;
use prost::Message;

use crate::uns;
use payload::{Metric, Payload, Value};
pub use tables::{Saving, Tables};

/// Longest name that is learnt.
const LONGEST_NAME: usize = 1024;

/// Largest payload that is read, and most metrics of it: so much memory may one message take. A larger one goes on as it came.
const LARGEST: usize = 1 << 20;
const MOST_METRICS: usize = 10_000;

/// Numbers of types (Eclipse Sparkplug 3.0, section 6.4.16).
mod datatype {
    pub(super) const INT8: u32 = 1;
    pub(super) const INT16: u32 = 2;
    pub(super) const INT32: u32 = 3;
    pub(super) const INT64: u32 = 4;
    pub(super) const BYTES: u32 = 17;
    pub(super) const FILE: u32 = 18;
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
}

/// Whether a message goes on as it came.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Rest {
    /// Nothing of it is left.
    #[default]
    Nothing,
    /// It tells no values: a death, a command, a state.
    NoData,
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
}

/// Whom a message is from.
struct Sender<'a> {
    group: &'a str,
    kind: &'a str,
    edge: &'a str,
    device: Option<&'a str>,
}

impl<'a> Sender<'a> {
    fn of(topic: &'a str) -> Option<Self> {
        let mut levels = topic.split('/');
        let ("spBv1.0", group, kind, edge) = (levels.next()?, levels.next()?, levels.next()?, levels.next()?) else {
            return None;
        };
        let device = levels.next();
        levels.next().is_none().then_some(Self { group, kind, edge, device })
    }

    fn topic(&self, name: &str) -> Result<String, &'static str> {
        let levels = [self.group, self.edge].into_iter().chain(self.device);
        // Else an edge node's topic may be a device's too.
        if levels.clone().any(|level| level.starts_with('_')) {
            return Err("group, edge node and device begin with no _");
        }
        let place = levels.collect::<Vec<_>>().join("/");
        let topic = format!("{}{place}/_raw/{name}", uns::PREFIX);
        uns::key(&topic).map(|_| topic)
    }
}

/// Reads a message of `topic` that came at `received`, in milliseconds since the Unix epoch.
///
/// One that is `retained` may be from another life of its sender, so nothing is learnt from it; one that is a `duplicate` may
/// be out of sequence.
pub fn decode(
    tables: &mut Tables,
    topic: &str,
    payload: &[u8],
    received: i64,
    retained: bool,
    duplicate: bool,
) -> Decoded {
    let Some(sender) = Sender::of(topic) else { return Decoded { rest: Rest::NoData, ..Decoded::default() } };
    let birth = match sender.kind {
        "NBIRTH" | "DBIRTH" => true,
        "NDATA" | "DDATA" => false,
        "NDEATH" | "DDEATH" => {
            // A node's death is written before its life, and is in no sequence.
            let payload = Payload::decode(payload.get(..LARGEST).unwrap_or(payload)).ok();
            let payload = payload.filter(|_| sender.kind == "DDEATH" && !duplicate && !retained);
            let gap = payload.and_then(|payload| tables.counted(sender.group, sender.edge, payload.seq, false));
            return Decoded { rest: Rest::NoData, gap, ..Decoded::default() };
        }
        _ => return Decoded { rest: Rest::NoData, ..Decoded::default() },
    };
    let unread = |why| Decoded { rest: Rest::Unresolved(why), ..Decoded::default() };
    if payload.len() > LARGEST {
        return unread(format!("larger than {LARGEST} bytes"));
    }
    let payload = match Payload::decode(payload) {
        Ok(payload) if payload.metrics.len() > MOST_METRICS => {
            return unread(format!("more than {MOST_METRICS} metrics"));
        }
        Ok(payload) => payload,
        Err(error) => return unread(format!("not Sparkplug B: {error}")),
    };
    let node = sender.kind == "NBIRTH";
    let mut decoded = Decoded::default();
    if birth && !retained {
        let known = payload.metrics.iter().filter_map(learnt).collect();
        if !tables.learn(sender.group, sender.edge, sender.device, known) {
            decoded.gap = Some(format!("{}/{} has more metrics than are remembered", sender.group, sender.edge));
        }
    }
    if !duplicate && !retained {
        let counted = tables.counted(sender.group, sender.edge, payload.seq, node);
        decoded.gap = decoded.gap.or(counted);
    }
    for metric in &payload.metrics {
        match reading(tables, &sender, metric, payload.timestamp, received) {
            Ok(Some(reading)) => decoded.readings.push(Reading { birth, ..reading }),
            Ok(None) => {}
            Err(why) => decoded.rest = Rest::Unresolved(why),
        }
    }
    decoded
}

fn learnt(metric: &Metric) -> Option<(u64, tables::Known)> {
    let name = metric.name.clone().filter(|name| name.len() <= LONGEST_NAME)?;
    Some((metric.alias?, tables::Known { name, datatype: metric.datatype.unwrap_or_default() }))
}

/// `None` is for what steers the sender and is no value.
fn reading(
    tables: &Tables,
    sender: &Sender<'_>,
    metric: &Metric,
    sent: Option<u64>,
    received: i64,
) -> Result<Option<Reading>, String> {
    let known = metric.alias.and_then(|alias| tables.known(sender.group, sender.edge, sender.device, alias));
    let name = metric.name.as_deref().filter(|name| !name.is_empty()).or(known.map(|known| known.name.as_str()));
    let Some(name) = name else {
        let alias = metric.alias.map_or_else(|| "neither name nor alias".into(), |alias| format!("alias {alias}"));
        return Err(format!("a metric has {alias}, which no birth has told"));
    };
    if name == "bdSeq" || name.starts_with("Node Control/") || name.starts_with("Device Control/") {
        return Ok(None);
    }
    if name.len() > LONGEST_NAME {
        return Err(format!("a metric's name is longer than {LONGEST_NAME} bytes"));
    }
    let datatype = metric.datatype.or(known.map(|known| known.datatype)).unwrap_or_default();
    let value = if metric.is_null == Some(true) {
        Some("null".to_owned())
    } else {
        metric.value.as_ref().and_then(|value| json(value, datatype))
    };
    let value =
        value.ok_or_else(|| format!("{name} is of type {datatype}, which has no place in the Unified Namespace"))?;
    let topic = sender.topic(name).map_err(|why| format!("{name} has no place in the Unified Namespace: {why}"))?;
    let time = metric.timestamp.or(sent).map_or_else(|| received.to_string(), |time| time.to_string());
    let payload = format!(r#"{{"timestamp_ms":{time},"value":{value}}}"#).into_bytes();
    Ok(Some(Reading { topic, payload, birth: false, historical: metric.is_historical == Some(true) }))
}

/// A value as JSON, where there is a form for its type. What is no number has none: `null`.
fn json(value: &Value, datatype: u32) -> Option<String> {
    // What is narrower than the field may be sign-extended or not: the low bits are the value.
    Some(match (value, datatype) {
        (Value::Int(value), datatype::INT8) => (*value as u8 as i8).to_string(),
        (Value::Int(value), datatype::INT16) => (*value as u16 as i16).to_string(),
        (Value::Int(value), datatype::INT32 | datatype::INT64) => (*value as i32).to_string(),
        (Value::Int(value), _) => value.to_string(),
        (Value::Long(value), datatype::INT8..=datatype::INT64) => (*value as i64).to_string(),
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
        decode(tables, topic, payload, 5, false, false)
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
        assert_eq!(decode(&mut tables, "spBv1.0/g/NDATA/e", &sent(200, vec![]), 0, false, true).gap, None);
        let retained = sent(0, vec![metric("a", 1, 3, Value::Int(1))]);
        assert_eq!(decode(&mut tables, "spBv1.0/g/NBIRTH/e", &retained, 0, true, false).readings.len(), 1);
        assert!(told(&mut tables, "spBv1.0/g/NDATA/e", &sent(1, vec![by_alias(1, Value::Int(1))])).readings.is_empty());
    }

    #[test]
    fn what_tells_no_values_goes_on_as_it_came() {
        let mut tables = Tables::in_memory();
        for topic in ["spBv1.0/g/NDEATH/e", "spBv1.0/g/DCMD/e/d", "spBv1.0/STATE/host", "spBv1.0/g/NDATA", "other"] {
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
        let bytes = b"\x08\x05\x12\x0e\x0a\x01a\x10\x07\x20\x09\x28\x01\x65\0\0\x80\x3f\x18\x02";
        let decoded = told(&mut Tables::in_memory(), "spBv1.0/g/NDATA/e", bytes);
        assert_eq!(shown(&decoded), [r#"umh/v1/g/e/_raw/a {"timestamp_ms":5,"value":1.0}"#]);
        assert!(decoded.readings[0].historical);
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
