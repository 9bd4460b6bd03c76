//! What routes declare to be done with messages, and what it leaves behind.

use rdkafka::mocking::MockCluster;

use crate::mosquitto::{Mosquitto, Publisher};
use crate::records;
use crate::rig::{self, Bridge};

const STEPS: &str = r#"
[[route]]
from = "machines/#"
to = "machines"
[[route.step]]
filter = { field = "state", equals = "run" }
[[route.step]]
pick = ["temp_f", "id"]
[[route.step]]
rename = { temp_f = "temp" }
[[route.step]]
scale = { field = "temp", from = "°F", to = "°C" }
[[route.step]]
dead-band = { field = "temp", band = 1 }
"#;

#[test]
fn what_steps_leave_is_delivered_and_numbers_have_no_gap() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    let mut bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), STEPS);
    bridge.subscribed(1);
    let client = Publisher::connect(&mosquitto);
    let send = |payload: &str| client.send("machines/a", payload.as_bytes(), false);
    send(r#"{"state":"run","temp_f":212,"id":9007199254740993,"x":1}"#);
    send(r#"{"state":"stop","temp_f":500}"#);
    send(r#"{"state":"run","temp_f":213}"#);
    send("not JSON");
    send(r#"{"state":"run","temp_f":"hot"}"#);
    send(r#"{"state":"run","temp_f":32}"#);
    send(r#"{"state":"stop"}"#);
    client.settle();
    let records = records::read(&cluster, "machines", 4);
    let texts: Vec<&str> = records.iter().map(records::Full::text).collect();
    assert_eq!(
        texts,
        [r#"{"id":9007199254740993,"temp":100.0}"#, "not JSON", r#"{"state":"run","temp_f":"hot"}"#, r#"{"temp":0.0}"#]
    );
    let unmapped: Vec<Option<&str>> = records.iter().map(|record| record.header("hf-unmapped")).collect();
    assert!(unmapped[0].is_none() && unmapped[3].is_none(), "{unmapped:?}");
    assert!(unmapped[1].unwrap().contains("step 1: it is not JSON"), "{unmapped:?}");
    assert_eq!(unmapped[2].unwrap(), "step 4: temp is no number");
    let numbers: Vec<&str> = records.iter().map(|record| record.header("hf-sequence").unwrap()).collect();
    assert_eq!(numbers, ["1", "2", "3", "4"]);
    bridge.stop();
    let (report, whole) = bridge.audit(&["machines"]);
    assert!(whole, "{report}");
    bridge.said("filtered=3 unmapped=2");
    // What was filtered is acknowledged: it does not come again.
    bridge.start_again();
    bridge.subscribed(2);
    send(r#"{"state":"run","temp_f":32}"#);
    client.settle();
    let records = records::read(&cluster, "machines", 5);
    assert_eq!(records.len(), 5, "a start lets one more of a topic pass");
    bridge.stop();
    bridge.said("received=1 ");
}

const SPARKPLUG: &str = r#"
[[route]]
from = "spBv1.0/#"
decode = "sparkplug-b"
to = "sparkplug"
"#;

/// A payload with these metrics and this number in its sequence.
fn sparkplug(seq: u8, metrics: &[Vec<u8>]) -> Vec<u8> {
    let mut payload = vec![0x08, 100];
    payload.extend(metrics.iter().flat_map(|metric| field(0x12, metric)));
    payload.extend([0x18, seq]);
    // Above 127 a number takes two bytes.
    payload.extend((seq > 127).then_some(1));
    payload
}

/// A field of bytes.
fn field(key: u8, bytes: &[u8]) -> Vec<u8> {
    let (mut field, mut length) = (vec![key], bytes.len());
    while length > 0x7f {
        field.push(0x80 | u8::try_from(length & 0x7f).unwrap());
        length >>= 7;
    }
    field.push(u8::try_from(length).unwrap());
    field.extend(bytes);
    field
}

/// Text under an alias.
fn text(alias: u8, text: &str) -> Vec<u8> {
    [vec![0x10, alias, 0x20, 12], field(0x7a, text.as_bytes())].concat()
}

/// A whole number under its name and alias, or under the alias alone.
fn metric(name: Option<&str>, alias: u8, value: u8) -> Vec<u8> {
    let mut metric = Vec::new();
    if let Some(name) = name {
        metric.extend(field(0x0a, name.as_bytes()));
        metric.extend([0x20, 3]);
    }
    metric.extend([0x10, alias, 0x50, value]);
    metric
}

#[test]
fn sparkplug_becomes_readings_of_the_namespace_also_after_a_kill() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    for topic in ["umh.messages", "sparkplug"] {
        cluster.create_topic(topic, 1, 1).unwrap();
    }
    let mut bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), SPARKPLUG);
    bridge.subscribed(1);
    let client = Publisher::connect(&mosquitto);
    let send = |topic: &str, payload: &[u8]| client.send(&format!("spBv1.0/acme/{topic}"), payload, false);
    send("NBIRTH/press", &sparkplug(0, &[metric(Some("bdSeq"), 0, 1), metric(Some("Motor/Temp"), 1, 20)]));
    send("DBIRTH/press/arm", &sparkplug(1, &[metric(Some("angle"), 2, 90)]));
    client.settle();
    records::read(&cluster, "umh.messages", 2);
    bridge.kill();
    bridge.start_again();
    bridge.subscribed(2);
    // A death of the life before the one that began with the birth is no death.
    let death = |life| sparkplug(0, &[metric(Some("bdSeq"), 0, life)]);
    send("NDEATH/press", &death(0));
    send("NDATA/press", &sparkplug(2, &[metric(None, 1, 21), metric(None, 9, 1)]));
    send("DDATA/press/arm", &sparkplug(4, &[metric(None, 2, 91)]));
    send("NDEATH/press", &death(1));
    send("DDATA/press/arm", &sparkplug(5, &[metric(None, 2, 92)]));
    client.settle();
    let records = records::read(&cluster, "umh.messages", 4);
    let told: Vec<String> = records.iter().map(|record| format!("{} {}", record.key, record.text())).collect();
    assert_eq!(
        told,
        [
            r#"umh.v1.acme.press._raw.Motor.Temp {"timestamp_ms":100,"value":20}"#,
            r#"umh.v1.acme.press.arm._raw.angle {"timestamp_ms":100,"value":90}"#,
            r#"umh.v1.acme.press._raw.Motor.Temp {"timestamp_ms":100,"value":21}"#,
            r#"umh.v1.acme.press.arm._raw.angle {"timestamp_ms":100,"value":91}"#,
        ]
    );
    let births: Vec<bool> = records.iter().map(|record| record.header("hf-birth").is_some()).collect();
    assert_eq!(births, [true, true, false, false], "what a birth tells is no news");
    assert_eq!(records[2].header("hf-uns"), Some("umh/v1/acme/press/_raw/Motor/Temp"));
    assert_eq!(records[2].header("hf-topic"), Some("spBv1.0/acme/NDATA/press"));
    let rest = records::read(&cluster, "sparkplug", 4);
    assert_eq!(rest[1].payload, sparkplug(2, &[metric(None, 1, 21), metric(None, 9, 1)]), "it is as it came");
    let headers = |name| rest.iter().map(|record| record.header(name)).collect::<Vec<_>>();
    let unborn = ["a metric has alias 9, which no birth has told", "a metric has alias 2, which no birth has told"];
    assert_eq!(headers("hf-unmapped"), [None, Some(unborn[0]), None, Some(unborn[1])]);
    assert_eq!(headers("hf-stale"), [Some("true"), None, None, None]);
    assert_eq!(
        (rest[0].key.as_str(), rest[2].key.as_str()),
        ("spBv1.0/acme/NDEATH/press", "spBv1.0/acme/NDEATH/press")
    );
    bridge.said("acme/press: messages 3 to 3 of its sequence are missing");
    bridge.said("a host application has to ask for it");
    bridge.stop();
    bridge.said("births_wanted=3 ");
    let (report, whole) = bridge.audit(&["umh.messages", "sparkplug"]);
    assert!(whole, "{report}");
}

#[test]
fn of_a_class_that_keeps_the_latest_each_metric_counts_as_a_topic() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    for topic in ["umh.messages", "sparkplug"] {
        cluster.create_topic(topic, 1, 1).unwrap();
    }
    cluster.broker_down(1).unwrap();
    let class = "[[class]]\nname = \"states\"\noverflow = \"latest-per-topic\"\nsize = \"1MiB\"\n";
    let routes = format!("{class}{SPARKPLUG}class = \"states\"\n");
    let mut bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), &routes);
    bridge.subscribed(1);
    let client = Publisher::connect(&mosquitto);
    let send = |topic: &str, payload: &[u8]| client.send(&format!("spBv1.0/acme/{topic}"), payload, false);
    // All by one message, and the first never again.
    send("NBIRTH/press", &sparkplug(0, &[metric(Some("once"), 1, 5), metric(Some("often"), 2, 0)]));
    for number in 1..=3000u64 {
        let seq = u8::try_from(number % 256).unwrap();
        send("NDATA/press", &sparkplug(seq, &[text(2, &format!("{number:01000}"))]));
    }
    client.settle();
    bridge.stored_in("classes/states/log", &format!("{:01000}", 3000));
    // What its producer had in its hands is gone with it.
    bridge.kill();
    cluster.broker_up(1).unwrap();
    bridge.start_again();
    let number = |record: &records::Full| record.text().split('"').nth(5).and_then(|text| text.parse::<u64>().ok());
    let records = rig::until("the last value", || {
        let records = records::read(&cluster, "umh.messages", 1);
        records.iter().any(|record| number(record) == Some(3000)).then_some(records)
    });
    let once: Vec<_> =
        records.iter().filter(|record| record.key.ends_with(".once")).map(|record| record.text()).collect();
    assert!(!once.is_empty() && once.iter().all(|text| text.ends_with(r#""value":5}"#)), "{once:?}");
    let often: Vec<u64> = records.iter().filter_map(number).collect();
    assert!(often.len() < 2000 && often.is_sorted() && often.last() == Some(&3000), "{often:?}");
    bridge.stop();
    let (report, whole) = bridge.audit(&["umh.messages", "sparkplug"]);
    assert!(whole && report.contains("dropped as configured"), "{report}");
}
