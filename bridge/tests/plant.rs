//! The bridge as a process between a real Mosquitto and brokers, librdkafka's own and a real one, killed and starved.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "plant/broker.rs"]
mod broker;
#[path = "plant/classes.rs"]
mod classes;
#[path = "plant/delivered.rs"]
mod delivered;
#[path = "plant/handshake.rs"]
mod handshake;
#[path = "plant/hub.rs"]
mod hub;
#[path = "plant/mapping.rs"]
mod mapping;
#[path = "plant/mosquitto.rs"]
mod mosquitto;
#[path = "plant/power.rs"]
mod power;
#[path = "plant/promises.rs"]
mod promises;
#[path = "plant/records.rs"]
mod records;
#[path = "plant/refused.rs"]
mod refused;
#[path = "plant/reload.rs"]
mod reload;
#[path = "plant/rig.rs"]
mod rig;
#[path = "plant/secured.rs"]
mod secured;
#[path = "plant/tap.rs"]
mod tap;
#[path = "plant/tls.rs"]
mod tls;
#[path = "plant/versions.rs"]
mod versions;

use std::time::Duration;

use delivered::Delivered;
use hyperfactory_tests::rig::Front;
use mosquitto::{Mosquitto, Publisher};
use protocol::NodeId;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rig::Bridge;
use tls::Plane;

const ROUTES: &str = r#"
[[route]]
preset = "umh"
[[route]]
from = "machines/#"
to = "machines"
[[route]]
from = "forbidden/#"
to = "forbidden"
"#;

#[test]
fn fifty_kills_lose_nothing_and_reorder_nothing() {
    let (cluster, mosquitto) = (MockCluster::new(3).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 4, 3).unwrap();
    let mut bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), ROUTES);
    bridge.subscribed(1);
    let publisher =
        Publisher::start(&mosquitto, &["machines/a", "machines/b", "machines/c"], Duration::from_micros(500));
    for kill in 0..50 {
        // From before it is connected to well into its work.
        std::thread::sleep(Duration::from_millis(kill * 37 % 300));
        bridge.kill();
        bridge.start_again();
    }
    let published = publisher.finish();
    assert!(published.iter().all(|(_, count)| *count > 1000), "{published:?}");

    let delivered = Delivered::wait(&cluster, &["machines"], &published);
    delivered.assert_complete_and_in_order(&published);
    let twice = delivered.twice();
    assert!(
        twice.iter().all(|record| record.duplicate),
        "MQTT alone may bring a message twice, and says so: {twice:?}"
    );
    let (report, whole) = bridge.audit(&["machines"]);
    assert!(whole, "{report}");
}

#[test]
fn brokers_that_go_away_and_come_back_lose_nothing() {
    let (cluster, mut mosquitto) = (MockCluster::new(3).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 4, 3).unwrap();
    let mut bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), ROUTES);
    bridge.subscribed(1);
    let mut published = Publisher::publish(&mosquitto, "machines/a", 1..=300);
    for broker in 1..=3 {
        cluster.broker_down(broker).unwrap();
    }
    published = Publisher::publish(&mosquitto, "machines/a", published + 1..=published + 300);
    // What it has is on disk: it need not live to deliver it.
    bridge.kill();
    bridge.start_again();
    bridge.subscribed(2);
    mosquitto.restart();
    bridge.subscribed(3);
    published = Publisher::publish(&mosquitto, "machines/a", published + 1..=published + 300);
    for broker in 1..=3 {
        cluster.broker_up(broker).unwrap();
    }
    published = Publisher::publish(&mosquitto, "machines/a", published + 1..=published + 300);

    let published = [("machines/a".to_owned(), published)];
    let delivered = Delivered::wait(&cluster, &["machines"], &published);
    delivered.assert_complete_and_in_order(&published);
    bridge.stop();
    let (report, whole) = bridge.audit(&["machines"]);
    assert!(whole, "{report}");
}

#[test]
fn a_full_log_makes_mqtt_wait_and_loses_nothing() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    cluster.broker_down(1).unwrap();
    let bridge = Bridge::with(&mosquitto, &cluster.bootstrap_servers(), ROUTES, "log-size = \"1MiB\"");
    bridge.subscribed(1);
    // Each is a kilobyte: three times what the log takes.
    let published = Publisher::publish_large(&mosquitto, "machines/a", 3000, 1000);
    bridge.said("MQTT messages are not acknowledged for now");
    cluster.broker_up(1).unwrap();
    let published = [("machines/a".to_owned(), published)];
    let delivered = Delivered::wait(&cluster, &["machines"], &published);
    delivered.assert_complete_and_in_order(&published);
}

#[test]
fn what_kafka_refuses_holds_up_nothing_else() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    cluster.create_topic("umh.messages", 1, 1).unwrap();
    cluster.create_topic("forbidden", 1, 1).unwrap();
    cluster.topic_error("forbidden", RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
    let mut bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), ROUTES);
    bridge.subscribed(1);

    let client = Publisher::connect(&mosquitto);
    client.send("machines/a", b"1", false);
    client.send("forbidden/x", b"secret", false);
    client.send("machines/a", &[b'x'; 1_200_000], false);
    client.send("umh/v1/acme", b"too short", false);
    client.send("umh/v1/acme/_raw/temp", b"1", false);
    client.send("machines/a", b"2", false);
    client.settle();
    let published = [("machines/a".to_owned(), 2), ("umh/v1/acme/_raw/temp".to_owned(), 1)];
    let delivered = Delivered::wait(&cluster, &["machines", "umh.messages"], &published);
    delivered.assert_complete_and_in_order(&published);
    assert_eq!(delivered.keys("umh.messages"), ["umh.v1.acme._raw.temp"]);

    // A batch is refused, a part of it, a part of that, and then one of its records: the others are delivered.
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    cluster.broker_down(1).unwrap();
    Publisher::publish(&mosquitto, "machines/b", 1..=20);
    bridge.stored("machines/b20");
    cluster.request_errors(RDKafkaApiKey::Produce, &[too_large; 4]);
    cluster.broker_up(1).unwrap();
    let published = [("machines/a".to_owned(), 2), ("machines/b".to_owned(), 20)];
    let missing = bridge.dead_letter_of("machines/b");
    let delivered = Delivered::wait_but(&cluster, &["machines"], &published, Some(("machines/b", missing)));
    delivered.assert_in_order();

    bridge.stop();
    let letters = bridge.dead_letters();
    for (topic, reason) in [
        ("forbidden/x", "Kafka's topic forbidden takes none"),
        ("machines/a", "MessageSizeTooLarge"),
        ("umh/v1/acme", "no level is a data contract"),
        ("machines/b", "Kafka's topic machines refuses it"),
    ] {
        assert!(letters.lines().any(|line| line.contains(topic) && line.contains(reason)), "{topic}: {letters}");
    }
    assert_eq!(letters.lines().count(), 4, "{letters}");
    // What went nowhere is a gap for who reads Kafka alone.
    let (report, whole) = bridge.audit(&["machines", "umh.messages"]);
    assert!(!whole && report.contains("4 missing"), "{report}");
}

#[test]
fn errors_that_pass_and_leaders_that_move_refuse_nothing() {
    let (cluster, mosquitto) = (MockCluster::new(3).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 3).unwrap();
    let mut bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), ROUTES);
    bridge.subscribed(1);
    let passing = [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    ];
    // One message at a time: the mock takes what comes after a batch that it refused. No broker does that for an idempotent
    // producer, and librdkafka counts on it: it takes the one before for written.
    for number in 1..=10 {
        let error = passing[number as usize % passing.len()];
        cluster.request_errors(RDKafkaApiKey::Produce, &[error, error]);
        cluster.partition_leader("machines", 0, Some(number % 3 + 1)).unwrap();
        let number = u64::from(number.unsigned_abs());
        Publisher::publish(&mosquitto, "machines/a", number..=number);
        let published = [("machines/a".to_owned(), number)];
        Delivered::wait(&cluster, &["machines"], &published).assert_complete_and_in_order(&published);
    }
    bridge.stop();
    assert_eq!(bridge.dead_letters(), "");
    let (report, whole) = bridge.audit(&["machines"]);
    assert!(whole, "{report}");
}

#[test]
fn what_is_larger_than_the_log_takes_is_a_dead_letter_with_a_number() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    // Its log takes a message of a hundred kilobytes, and the class's one of thirty.
    let routes = "[[class]]\nname = \"small\"\noverflow = \"block\"\nsize = \"1MiB\"\n[[route]]\nfrom = \"small/#\"\n\
                  to = \"machines\"\nclass = \"small\"\n[[route]]\nfrom = \"machines/#\"\nto = \"machines\"\n";
    let mut bridge = Bridge::with(&mosquitto, &cluster.bootstrap_servers(), routes, "log-size = \"4MiB\"");
    bridge.subscribed(1);
    let client = Publisher::connect(&mosquitto);
    for topic in ["machines/a", "small/a"] {
        client.send(topic, b"1", false);
        client.send(topic, &[b'x'; 200_000], false);
        client.send(topic, b"2", false);
    }
    client.settle();
    let published = [("machines/a".to_owned(), 2), ("small/a".to_owned(), 2)];
    Delivered::wait(&cluster, &["machines"], &published).assert_complete_and_in_order(&published);
    bridge.stop();
    let letters = bridge.dead_letters();
    for (line, topic) in letters.lines().zip(["2 ", "small 2 "]) {
        assert!(
            line.starts_with(topic) && line.contains(" of 200000 bytes ") && line.contains("larger than its log"),
            "{line}"
        );
    }
    assert_eq!(letters.lines().count(), 2, "{letters}");
    bridge.said("dead=2 ");
    let (report, whole) = bridge.audit(&["machines"]);
    assert!(!whole && report.matches("missing 2 to 2").count() == 2, "{report}");
    let (said, well) = bridge.ask(&["check"]);
    assert!(well && said.contains("warn  log-size 4MiB") && said.contains("warn  class small: size 1MiB"), "{said}");
}

#[test]
fn retained_messages_are_marked_and_the_routes_are_explained() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    let client = Publisher::connect(&mosquitto);
    client.send("machines/a", b"1", true);
    client.settle();
    let bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), ROUTES);
    bridge.subscribed(1);
    client.send("machines/a", b"2", false);
    client.settle();
    let published = [("machines/a".to_owned(), 2)];
    let delivered = Delivered::wait(&cluster, &["machines"], &published);
    assert_eq!(delivered.retained(), [true, false]);

    assert_eq!(
        bridge.ask(&["explain", "machines/a/b"]).0,
        "by plant: route 2 to Kafka topic machines, key machines/a/b\n"
    );
    assert_eq!(bridge.ask(&["explain", "other"]), ("by plant: nowhere: no route matches\n".into(), false));
    let (said, well) = bridge.ask(&["check"]);
    assert!(well && said.contains("subscribes to umh/v1/#, machines/#, forbidden/#"), "{said}");
}

#[test]
fn certificates_change_while_messages_flow_and_none_is_lost_doubled_or_reordered() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 4, 1).unwrap();
    let (plane, foreign) = (Plane::of("acme"), Plane::of("other"));
    let front = Front::before(&cluster.bootstrap_servers(), plane.server()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [ca, certificate, key] = ["ca.pem", "kafka.pem", "kafka.key"].map(|name| folder.path().join(name));
    let node = NodeId::new(std::time::SystemTime::now().into(), [7; 10]);
    plane.write_authority(&ca);
    plane.write_client(node, &certificate, &key);
    let routes = format!("ca = {ca:?}\ncertificate = {certificate:?}\nkey = {key:?}\n{ROUTES}");
    let mut bridge = Bridge::start(&mosquitto, front.address(), &routes);
    bridge.subscribed(1);
    let publisher = Publisher::start(&mosquitto, &["machines/a", "machines/b"], Duration::from_millis(1));
    for rotation in 1..=3 {
        rig::until("the certificate at the broker", || (front.certificates() >= rotation).then_some(()));
        plane.write_client(node, &certificate, &key);
    }
    rig::until("the last certificate", || (front.certificates() >= 4).then_some(()));
    // Another tenant's is refused, and what is published meanwhile waits.
    foreign.write_client(node, &certificate, &key);
    bridge.said("sink: Kafka: ");
    plane.write_client(node, &certificate, &key);
    rig::until("a good certificate again", || (front.certificates() >= 5).then_some(()));

    let published = publisher.finish();
    let delivered = Delivered::wait(&cluster, &["machines"], &published);
    delivered.assert_complete_and_in_order(&published);
    assert!(delivered.twice().is_empty());
    let (report, whole) = bridge.audit(&["machines"]);
    assert!(whole && report.contains(" 0 doubled"), "{report}");
    bridge.stop();
}

#[test]
fn a_filter_that_is_no_longer_configured_is_given_up() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    let mut bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), ROUTES);
    bridge.subscribed(1);
    bridge.stop();
    let routes = ROUTES.replace("forbidden/#", "other/#");
    bridge.configure(&mosquitto, &cluster.bootstrap_servers(), &routes, "");
    bridge.start_again();
    bridge.said("no longer subscribed to");
    bridge.subscribed(2);
    let client = Publisher::connect(&mosquitto);
    client.send("forbidden/a", b"1", false);
    client.send("machines/a", b"1", false);
    client.settle();
    let published = [("machines/a".to_owned(), 1)];
    Delivered::wait(&cluster, &["machines"], &published).assert_complete_and_in_order(&published);
    bridge.stop();
    // It would be one if it had come.
    assert_eq!(bridge.dead_letters(), "");
}

#[test]
fn nothing_comes_from_kafka_to_mqtt() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    let bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), ROUTES);
    bridge.subscribed(1);
    let listener = mosquitto::Listener::start(&mosquitto);
    delivered::produce(&cluster, "machines", "machines/stop", "now");
    let published = Publisher::publish(&mosquitto, "machines/a", 1..=50);
    let published = [("machines/a".to_owned(), published)];
    Delivered::wait(&cluster, &["machines"], &published).assert_complete_and_in_order(&published);
    let heard = listener.until_heard("machines/a", 50);
    assert!(heard.iter().all(|topic| topic == "machines/a"), "{heard:?}");
}
