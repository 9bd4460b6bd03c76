//! A real broker behind TLS that asks for certificates, and a real Mosquitto: both killed, hanging, slow and cut off.

use std::time::Duration;

use hyperfactory_tests::rig::{Front, Tansu};
use protocol::NodeId;
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
    _certificates: TempDir,
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
        Self { bridge, tansu, front, mosquitto, _certificates: folder }
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
