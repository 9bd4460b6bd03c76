//! A real broker behind TLS that asks for certificates, and a real Mosquitto: both killed, hanging, slow and cut off.

use std::time::Duration;

use hyperfactory_tests::rig::{Front, Tansu};
use protocol::NodeId;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tempfile::TempDir;

use crate::ROUTES;
use crate::delivered::Delivered;
use crate::mosquitto::{Mosquitto, Publisher};
use crate::rig::Bridge;
use crate::tls::Plane;

/// Kills of the bridge, and as many of the Kafka broker.
const KILLS: u64 = 15;

/// Between messages: tansu looks at every record of a partition for each answer, so that a few thousand are many.
const PACE: Duration = Duration::from_millis(10);

/// The bridge between its two brokers.
struct Plant {
    bridge: Bridge,
    tansu: Tansu,
    front: Front,
    mosquitto: Mosquitto,
    plane: Plane,
    certificates: TempDir,
}

impl Plant {
    fn start() -> Self {
        let (tansu, mosquitto, plane) = (Tansu::start().unwrap(), Mosquitto::start(), Plane::of("acme"));
        tansu.create_topic("machines", 4).unwrap();
        let front = Front::before(tansu.address(), plane.server()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let [ca, certificate, key] = ["ca.pem", "kafka.pem", "kafka.key"].map(|name| folder.path().join(name));
        plane.write_authority(&ca);
        plane.write_client(NodeId::new(std::time::SystemTime::now().into(), [7; 10]), &certificate, &key);
        let routes = format!("ca = {ca:?}\ncertificate = {certificate:?}\nkey = {key:?}\n{ROUTES}");
        let bridge = Bridge::with_mqtt("keep-alive = \"1s\"", &mosquitto, front.address(), &routes);
        bridge.subscribed(1);
        Self { bridge, tansu, front, mosquitto, plane, certificates: folder }
    }

    /// Everything is there, in order, and nothing twice that the bridge could have told.
    fn ends_well(&mut self, published: &[(String, u64)]) {
        let delivered = Delivered::wait(&self.tansu, &["machines"], published);
        delivered.assert_complete_and_in_order(published);
        let twice = delivered.twice();
        assert!(twice.iter().all(|record| record.duplicate), "MQTT alone may bring a message twice: {twice:?}");
        assert_eq!(self.front.certificates(), 1, "all came by way of TLS");
        self.bridge.stop();
        let (report, whole) = self.bridge.audit(&["machines"]);
        assert!(whole, "{report}");
        assert_eq!(self.bridge.dead_letters(), "");
    }
}

#[test]
fn kills_of_bridge_and_broker_lose_nothing_and_reorder_nothing() {
    let mut plant = Plant::start();
    let topics = ["machines/a", "machines/b", "machines/c"];
    let publisher = Publisher::start(&plant.mosquitto, &topics, PACE);
    for kill in 0..KILLS {
        std::thread::sleep(Duration::from_millis(kill * 37 % 300));
        plant.bridge.kill();
        plant.bridge.start_again();
        std::thread::sleep(Duration::from_millis(kill * 61 % 500));
        plant.tansu.kill().unwrap();
        plant.tansu.start_again().unwrap();
    }
    plant.ends_well(&publisher.finish());
}

#[test]
fn what_was_acknowledged_outlives_a_power_cut_of_all_three() {
    let mut plant = Plant::start();
    let publish = |plant: &Plant, numbers| Publisher::publish(&plant.mosquitto, "machines/a", numbers);
    publish(&plant, 1..=300);
    plant.tansu.kill().unwrap();
    publish(&plant, 301..=600);
    // What Mosquitto has not saved, it loses: all of it is the bridge's by now.
    plant.bridge.stored("machines/a600");
    plant.mosquitto.kill();
    plant.bridge.kill();
    plant.tansu.start_again().unwrap();
    plant.mosquitto.start_again();
    plant.bridge.start_again();
    plant.bridge.subscribed(2);
    let published = publish(&plant, 601..=900);
    plant.ends_well(&[("machines/a".to_owned(), published)]);
}

#[test]
fn a_broker_that_hangs_and_a_line_that_is_slow_and_cut_lose_nothing() {
    let mut plant = Plant::start();
    let publisher = Publisher::start(&plant.mosquitto, &["machines/a", "machines/b"], PACE);
    plant.tansu.hang().unwrap();
    // Beyond what a producer waits for an answer.
    plant.bridge.said("sink: Kafka: ");
    plant.tansu.go_on().unwrap();
    plant.front.slow(Duration::from_millis(100));
    for cut in 0..10 {
        std::thread::sleep(Duration::from_millis(cut * 97 % 400));
        plant.front.cut();
    }
    plant.mosquitto.hang();
    plant.bridge.said("the broker did not answer a ping");
    plant.mosquitto.go_on();
    plant.bridge.subscribed(2);
    plant.front.slow(Duration::ZERO);
    plant.ends_well(&publisher.finish());
}

#[test]
fn the_audit_reads_by_the_certificate_of_a_consumer() {
    let mut plant = Plant::start();
    let published = [("machines/a".to_owned(), Publisher::publish(&plant.mosquitto, "machines/a", 1..=50))];
    Delivered::wait(&plant.tansu, &["machines"], &published);
    plant.bridge.stop();
    let files = ["reader.pem", "reader.key"].map(|name| plant.certificates.path().join(name));
    let [certificate, key] = &files;
    let consumer = NodeId::new(std::time::SystemTime::now().into(), [8; 10]);
    plant.plane.write_client(consumer, certificate, key);
    let shown = pki::pem::read_certificates(&std::fs::read_to_string(certificate).unwrap()).unwrap().remove(0);
    let [certificate, key] = files.each_ref().map(|file| file.to_str().unwrap());
    // The bridge's own is of no use any more.
    let bridges = NodeId::new(std::time::SystemTime::now().into(), [7; 10]);
    let [own, its_key] = ["kafka.pem", "kafka.key"].map(|name| plant.certificates.path().join(name));
    Plane::of("other").write_client(bridges, &own, &its_key);
    let refused = plant.bridge.refused(&["audit", "machines"]);
    assert!(
        refused.contains("Kafka does not let machines be read") && refused.contains("let the bridge in"),
        "{refused}"
    );
    let (report, whole) = plant.bridge.ask(&["audit", "machines", "--certificate", certificate, "--key", key]);
    assert!(whole && report.contains("50 records"), "{report}");
    assert!(plant.front.has_seen(&shown));
    assert!(plant.bridge.refused(&["audit", "machines", "--key", key]).contains("--certificate <FILE>"));
    let missing = ["audit", "machines", "--certificate", "/nowhere", "--key", key];
    assert!(plant.bridge.refused(&missing).contains("cannot read /nowhere"));
}

#[test]
fn a_broker_that_lets_the_bridge_write_alone_has_the_audit_say_what_to_do() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    let mut bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), ROUTES);
    bridge.subscribed(1);
    let published = [("machines/a".to_owned(), Publisher::publish(&mosquitto, "machines/a", 1..=5))];
    Delivered::wait(&cluster, &["machines"], &published);
    bridge.stop();
    let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    let advice = "name one of a consumer that may READ, with --certificate FILE --key FILE";
    cluster.request_errors(RDKafkaApiKey::Fetch, &[denied; 20]);
    let refused = bridge.refused(&["audit", "machines"]);
    assert!(refused.contains("machines") && refused.contains(advice), "{refused}");
    cluster.clear_request_errors(RDKafkaApiKey::Fetch);
    cluster.topic_error("machines", denied).unwrap();
    let refused = bridge.refused(&["audit", "machines"]);
    assert!(refused.contains(advice), "{refused}");
}

#[test]
fn a_class_that_is_behind_leaves_the_rate_to_what_is_live() {
    let (tansu, mosquitto) = (Tansu::start().unwrap(), Mosquitto::start());
    // In one partition it is seen what went first.
    tansu.create_topic("machines", 1).unwrap();
    let class = |name: &str| {
        let class = format!("[[class]]\nname = {name:?}\noverflow = \"block\"\n");
        class + &*format!("[[route]]\nfrom = \"{name}/#\"\nto = \"machines\"\nclass = {name:?}\n")
    };
    let routes = format!("max-rate = \"20KiB\"\ncatch-up = \"live-first\"\n{}{}", class("trends"), class("alarms"));
    let mut bridge = Bridge::start(&mosquitto, tansu.address(), &routes);
    bridge.subscribed(1);
    // At this rate they take half a minute, and after a few seconds the next of them is old.
    let trends = Publisher::publish_large(&mosquitto, "trends/a", 500, 1000);
    bridge.said("behind: what is live goes first");
    let alarms = Publisher::publish_large(&mosquitto, "alarms/a", 40, 1000);
    let published = [("trends/a".to_owned(), trends), ("alarms/a".to_owned(), alarms)];
    let delivered = Delivered::wait(&tansu, &["machines"], &published);
    delivered.assert_complete_and_in_order(&published);
    let keys = delivered.keys("machines");
    let alarm = |key: &&str| *key == "alarms/a";
    let (first, last) = (keys.iter().position(alarm).unwrap(), keys.iter().rposition(alarm).unwrap());
    let between = keys[first..last].iter().filter(|key| !alarm(key)).count();
    assert!(between < 10 && last + 100 < keys.len(), "{between} of the other class between {first} and {last}");
    bridge.stop();
    assert!(bridge.audit(&["machines"]).1);
}
