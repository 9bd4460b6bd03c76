//! A real broker behind TLS that asks for certificates, and a real Mosquitto: both killed, hanging, slow and cut off.

use std::time::Duration;

use hyperfactory_tests::rig::{Front, Tansu};
use protocol::NodeId;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tempfile::TempDir;

use rumqttc::QoS;

use crate::ROUTES;
use crate::delivered::Delivered;
use crate::mosquitto::{Load, Mosquitto, Publisher};
use crate::rig::{Bridge, until};
use crate::tap::Tap;
use crate::tls::Plane;

/// Kills of the bridge that one Kafka broker sees.
const PART: u64 = 25;

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
        Self::with(Mosquitto::start(), ROUTES)
    }

    fn with(mosquitto: Mosquitto, routes: &str) -> Self {
        let (tansu, plane) = (Tansu::start().unwrap(), Plane::of("acme"));
        tansu.create_topic("machines", 4).unwrap();
        let front = Front::before(tansu.address(), plane.server()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let [ca, certificate, key] = ["ca.pem", "kafka.pem", "kafka.key"].map(|name| folder.path().join(name));
        plane.write_authority(&ca);
        plane.write_client(NodeId::new(std::time::SystemTime::now().into(), [7; 10]), &certificate, &key);
        let routes = format!("ca = {ca:?}\ncertificate = {certificate:?}\nkey = {key:?}\n{routes}");
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
        self.is_whole();
    }

    /// The bridge's own account of it is so, too; gives the audit's report.
    fn is_whole(&mut self) -> String {
        assert_eq!(self.front.certificates(), 1, "all came by way of TLS");
        self.bridge.stop();
        let (report, whole) = self.bridge.audit(&["machines"]);
        assert!(whole, "{report}");
        assert_eq!(self.bridge.dead_letters(), "");
        report
    }
}

#[test]
fn kills_of_the_bridge_and_both_brokers_lose_nothing_and_reorder_nothing() {
    kills(15);
}

#[test]
#[ignore = "takes a quarter of an hour: cargo nextest run --workspace --run-ignored only -E 'test(thousand_kills)'; fewer kills by \
            HYPERFACTORY_TEST_KILLS=100"]
fn a_thousand_kills_of_the_bridge_and_hundreds_of_both_brokers_lose_nothing_and_reorder_nothing() {
    let count = std::env::var("HYPERFACTORY_TEST_KILLS").map_or(1000, |count| count.parse().unwrap());
    (0..count).step_by(PART as usize).for_each(|done| kills(PART.min(count - done)));
}

/// Kills the bridge so often in the middle of its work, and each time also the one or the other broker, or both.
fn kills(count: u64) {
    const TOPICS: [(&str, QoS); 3] =
        [("machines/a", QoS::AtLeastOnce), ("machines/b", QoS::ExactlyOnce), ("machines/c", QoS::AtLeastOnce)];
    // What it has not saved, it loses when it is killed.
    let mosquitto = Mosquitto::start_with(|settings| settings + "autosave_interval 1\n");
    let tap = Tap::before(mosquitto.port());
    let mut plant = Plant::with(mosquitto, &tap.routes("qos = 2"));
    let load = Load::start(&plant.mosquitto, &TOPICS, PACE);
    let mut brokers = [0, 0];
    for kill in 0..count {
        if kill % 5 == 0 {
            let before = tap.accepted().len();
            until("messages that are accepted", || (tap.accepted().len() > before + 50).then_some(()));
        }
        // From before it is connected to well into its work.
        std::thread::sleep(Duration::from_millis(kill * 37 % 300));
        let [kafka, mqtt] = [kill % 3 != 1, kill % 3 != 0];
        if kafka {
            plant.tansu.kill().unwrap();
        }
        if mqtt {
            plant.mosquitto.kill();
        }
        std::thread::sleep(Duration::from_millis(kill * 61 % 200));
        plant.bridge.kill();
        if mqtt {
            plant.mosquitto.start_again();
        }
        plant.bridge.start_again();
        std::thread::sleep(Duration::from_millis(kill * 83 % 200));
        if kafka {
            plant.tansu.start_again().unwrap();
        }
        brokers = [brokers[0] + u64::from(kafka), brokers[1] + u64::from(mqtt)];
    }
    load.finish();
    let accepted: Vec<_> = tap.accepted().into_iter().collect();
    let delivered = Delivered::wait_for(&plant.tansu, &["machines"], &accepted);
    delivered.assert_in_order();
    // MQTT alone may bring a message twice: as it says, or when Mosquitto has lost that it sent it.
    let (times, sent) = (delivered.times(), tap.sent());
    let doubled: Vec<_> = times.iter().filter(|(message, times)| Some(*times) > sent.get(message)).collect();
    assert!(doubled.is_empty(), "{doubled:?}");
    let report = plant.is_whole();
    let [kafka, mqtt] = brokers;
    #[expect(clippy::print_stderr, reason = "how much was tried is what a long test is read for")]
    {
        eprint!(
            "{count} kills of the bridge, {kafka} of Kafka's broker, {mqtt} of Mosquitto; {} messages acknowledged, {} of them \
             twice by MQTT; {report}",
            accepted.len(),
            delivered.twice().len()
        );
    }
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
fn records_go_on_while_another_certificate_is_not_let_in() {
    let mut plant = Plant::start();
    let publish = |plant: &Plant, numbers| Publisher::publish(&plant.mosquitto, "machines/a", numbers);
    let published = [("machines/a".to_owned(), publish(&plant, 1..=20))];
    Delivered::wait(&plant.tansu, &["machines"], &published);
    let bridge = NodeId::new(std::time::SystemTime::now().into(), [7; 10]);
    let [certificate, key] = ["kafka.pem", "kafka.key"].map(|name| plant.certificates.path().join(name));
    Plane::of("other").write_client(bridge, &certificate, &key);
    until("a certificate that is turned away", || (!plant.front.refused().is_empty()).then_some(()));
    // By the connection that there is.
    let published = [("machines/a".to_owned(), publish(&plant, 21..=40))];
    Delivered::wait(&plant.tansu, &["machines"], &published);
    plant.plane.write_client(bridge, &certificate, &key);
    until("a certificate that is taken", || (plant.front.certificates() == 2).then_some(()));
    let published = [("machines/a".to_owned(), publish(&plant, 41..=60))];
    Delivered::wait(&plant.tansu, &["machines"], &published).assert_complete_and_in_order(&published);
    plant.bridge.stop();
    assert_eq!(plant.bridge.dead_letters(), "");
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
