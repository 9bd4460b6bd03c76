//! A bridge whose Kafka certificate comes from a real hub, and brokers that judge it by that hub's roots and lists.

use std::time::Duration;

use hyperfactory_tests::rig::{Front, Hub, free_port, kafka_server, kafka_server_that_trusts};
use pki::{CertificateDer, pem};
use rdkafka::mocking::MockCluster;
use serde_json::{Value, json};

use crate::delivered::Delivered;
use crate::mosquitto::{Mosquitto, Publisher};
use crate::rig::{self, Bridge};
use crate::{ROUTES, tls};

const SETTINGS: &str = "interval = \"200ms\"\nhealth-listen = \"127.0.0.1:0\"";

/// A hub with the tenant `acme`, and one bridge of it.
struct Plant {
    hub: Hub,
    bridge: Bridge,
    node: String,
}

impl Plant {
    /// The bridge is enrolled, and not started yet.
    fn enroll(hub: Hub, bridge: Bridge) -> Self {
        let made =
            hub.api().post("/api/v1/tokens", &json!({ "tenant": "acme", "kind": "bridge" })).unwrap().ok().unwrap();
        let (said, enrolled) = bridge.ask(&["enroll", "--token", made["token"].as_str().unwrap()]);
        assert!(enrolled, "{said}");
        let node = hub.nodes().unwrap().remove(0);
        Self { hub, bridge, node }
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        post(&self.hub, path, body)
    }

    /// Has the certificates renewed now.
    fn renew(&self) {
        let body = json!({ "nodes": [self.node], "within_seconds": 0, "reason": "a test" });
        self.post("/api/v1/renewals", &body);
    }

    /// Takes a step of a rotation from this phase on, as soon as everybody is ready for it.
    fn advance(&self, rotation: &Value, from: &str) {
        let path = format!("/api/v1/rotations/{}/advance", rotation["id"]);
        let body = json!({ "from": from, "brokers_updated": true, "renew_within_seconds": 0 });
        rig::until("a step of the rotation", || self.hub.api().post(&path, &body).unwrap().ok().ok());
    }

    /// The certificates in the bridge's file: its own, and the roots it judges brokers by.
    fn certificates(&self) -> Vec<CertificateDer<'static>> {
        pem::read_certificates(&self.bridge.state("kafka.pem")).unwrap_or_default()
    }

    /// Waits until the bridge delivers by the `count`th credential after its first.
    fn used(&self, count: usize) {
        self.bridge.said_again("the certificate for Kafka was replaced", count);
    }

    /// Waits until the hub says that the bridge stands so with its brokers.
    fn stands(&self, state: &str) {
        rig::until(state, || (self.hub.node(&self.node).unwrap()["bridge"]["kafka"] == state).then_some(()));
    }

    /// Whether an alert of this rule is open.
    fn alarms(&self, rule: &str) -> bool {
        let open = self.hub.api().get("/api/v1/alerts?state=open").unwrap().ok().unwrap();
        open["items"].as_array().unwrap().iter().any(|alert| alert["rule"] == rule)
    }

    fn has_roots(&self, count: usize) {
        rig::until("the roots at the bridge", || (self.certificates().len() == 1 + count).then_some(()));
    }
}

fn post(hub: &Hub, path: &str, body: &Value) -> Value {
    hub.api().post(path, body).unwrap().ok().unwrap()
}

/// A hub with the tenant `acme`.
fn hub() -> Hub {
    let hub = Hub::start().unwrap();
    hub.tenant("acme").unwrap();
    hub
}

/// What a broker shows and asks for by what the hub says now.
fn broker(hub: &Hub) -> rustls::ServerConfig {
    kafka_server(hub, "acme").unwrap()
}

#[test]
fn a_bridge_has_its_certificate_from_the_hub_and_goes_from_one_root_to_the_next_without_a_loss() {
    let (hub, cluster, mosquitto) = (hub(), MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 4, 1).unwrap();
    let front = Front::before(&cluster.bootstrap_servers(), broker(&hub)).unwrap();
    let bridge = Bridge::prepare(&mosquitto, front.address(), ROUTES, SETTINGS);
    let mut plant = Plant::enroll(hub, bridge);
    plant.bridge.start_again();
    plant.bridge.subscribed(1);
    let publisher = Publisher::start(&mosquitto, &["machines/a", "machines/b"], Duration::from_millis(1));
    // One is tried at the broker before it is used; then the sink goes on with it.
    let shown = |count| rig::until("a certificate at the broker", || (front.certificates() >= count).then_some(()));
    shown(1);
    for count in 1..=2 {
        plant.renew();
        plant.used(count);
        shown(1 + count);
    }
    plant.has_roots(1);

    let body = json!({ "kind": "kafka", "tenant": "acme", "reason": "a test" });
    let rotation = plant.post("/api/v1/rotations", &body);
    plant.advance(&rotation, "prepare");
    plant.has_roots(2);
    plant.used(3);
    front.replace(broker(&plant.hub));
    plant.advance(&rotation, "trust");
    front.replace(broker(&plant.hub));
    plant.used(4);
    shown(4);
    plant.advance(&rotation, "issue");
    front.replace(broker(&plant.hub));
    plant.has_roots(1);
    plant.used(5);
    // By the new root alone, the brokers and the bridge know each other.
    plant.renew();
    plant.used(6);
    shown(5);

    let published = publisher.finish();
    let delivered = Delivered::wait(&cluster, &["machines"], &published);
    delivered.assert_complete_and_in_order(&published);
    assert!(delivered.twice().is_empty());
    let (report, whole) = plant.bridge.audit(&["machines"]);
    assert!(whole && report.contains(" 0 doubled"), "{report}");

    plant.post(&format!("/api/v1/nodes/{}/revoke", plant.node), &json!({ "reason": "privilege_withdrawn" }));
    front.replace(broker(&plant.hub));
    front.cut();
    rig::until("a broker that refuses it", || front.refused().iter().any(|why| why.contains("evoked")).then_some(()));
    plant.bridge.stop();
}

#[test]
fn how_a_bridge_stands_with_mqtt_brokers_is_told_by_itself_and_by_the_hub() {
    let (hub, cluster, mosquitto) = (hub(), MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    let front = Front::before(&cluster.bootstrap_servers(), broker(&hub)).unwrap();
    let settings = format!("interval = \"200ms\"\nhealth-listen = \"127.0.0.1:{}\"", free_port());
    let routes = format!("[[mqtt]]\nname = \"line\"\naddress = \"127.0.0.1:{}\"\n{ROUTES}", free_port());
    let bridge = Bridge::prepare(&mosquitto, front.address(), &routes, &settings);
    assert!(bridge.refused(&["status"]).contains("not enrolled"));
    assert!(bridge.refused(&["check", "--rotate"]).contains("this bridge is not enrolled"));
    let mut plant = Plant::enroll(hub, bridge);
    assert!(plant.bridge.refused(&["status"]).contains("the bridge does not run"));
    plant.bridge.start_again();
    let connections = || plant.hub.node(&plant.node).unwrap()["bridge"]["mqtt"].clone();
    rig::until("its connections at the hub", || {
        let [first, second] = [0, 1].map(|place| connections()[place].clone());
        let up = (&first["name"], &first["connected"]) == (&"plant".into(), &true.into());
        let down = second["connected"] == false && second["trouble"].as_str().is_some_and(|why| !why.is_empty());
        (up && down).then_some(())
    });
    let (said, well) = plant.bridge.ask(&["status"]);
    assert!(well && said.contains("plant connected") && said.contains("line not connected"), "{said}");
    assert!(said.contains("trouble      mqtt line: "), "{said}");
    let (json, well) = plant.bridge.ask(&["status", "--json"]);
    let report: Value = serde_json::from_str(&json).unwrap();
    assert!(well && report["kafka"]["mqtt"][0]["connected"] == true, "{json}");
    plant.bridge.stop();
}

#[test]
fn a_broker_that_refuses_the_bridge_is_told_and_a_rehearsal_changes_nothing_unless_it_works() {
    let (hub, cluster, mosquitto) = (hub(), MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    let front = Front::before(&cluster.bootstrap_servers(), broker(&hub)).unwrap();
    let bridge = Bridge::prepare(&mosquitto, front.address(), ROUTES, SETTINGS);
    let mut plant = Plant::enroll(hub, bridge);
    let rehearse = |plant: &Plant| plant.bridge.ask(&["check", "--rotate"]);
    // Before the service runs, by a session of its own.
    let (said, well) = rehearse(&plant);
    assert!(well && said.contains("the brokers take a new certificate until"), "{said}");
    let shown = front.certificates();
    assert!(shown >= 1);
    plant.bridge.start_again();
    plant.bridge.subscribed(1);
    plant.stands("connected");
    let (said, well) = rehearse(&plant);
    assert!(well, "{said}");
    plant.used(1);
    assert_eq!(front.certificates(), shown + 1);

    let strangers = tls::Plane::of("other").roots();
    front.replace(kafka_server_that_trusts(&plant.hub, "acme", strangers, Vec::new()).unwrap());
    let before = plant.certificates();
    let (said, well) = rehearse(&plant);
    assert!(!well && said.contains("the brokers don't take it") && said.contains("in use is one until"), "{said}");
    assert_eq!(plant.certificates(), before);
    assert_eq!(front.certificates(), shown + 1);
    front.cut();
    plant.stands("refused");
    rig::until("the alert", || plant.alarms("kafka.refused").then_some(()));
    let published = [("machines/a".to_owned(), Publisher::publish(&mosquitto, "machines/a", 1..=50))];

    front.replace(broker(&plant.hub));
    plant.stands("connected");
    rig::until("the end of the alert", || (!plant.alarms("kafka.refused")).then_some(()));
    Delivered::wait(&cluster, &["machines"], &published).assert_complete_and_in_order(&published);
    let node = plant.hub.node(&plant.node).unwrap();
    assert!(node["bridge"]["certificate_not_after"].is_string(), "{node}");
    rig::until("the last record of its route", || {
        let node = plant.hub.node(&plant.node).unwrap();
        let told = ["filtered", "unmapped", "births_wanted"].iter().all(|figure| node["bridge"][figure] == 0.0);
        (told && node["bridge"]["routes"][1]["last_at"].is_string()).then_some(())
    });
    plant.bridge.stop();
}
