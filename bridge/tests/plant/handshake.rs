//! Messages with quality of service 2 whose connection ends in the middle of their handshake, wherever in it.

use rdkafka::mocking::MockCluster;

use crate::delivered::{Cluster, Delivered};
use crate::mosquitto::{Mosquitto, Publisher};
use crate::rig::Bridge;
use crate::tap::{PUBCOMP, PUBLISH, PUBREC, PUBREL, Tap};

/// What the bridge says of each connection by way of the tap that came up.
const CONNECTED: &str = " connected mqtt=\"tapped\"";

/// The bridge by way of a tap.
struct Plant {
    cluster: Cluster,
    mosquitto: Mosquitto,
    tap: Tap,
    bridge: Bridge,
}

impl Plant {
    fn start(version: &str) -> Self {
        let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
        cluster.create_topic("machines", 1, 1).unwrap();
        let tap = Tap::before(mosquitto.port());
        let routes = tap.routes(&format!("{version}\nqos = 2"));
        let bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), &routes);
        bridge.subscribed(1);
        Self { cluster, mosquitto, tap, bridge }
    }

    fn publish(&self, numbers: std::ops::RangeInclusive<u32>) {
        let mut client = Publisher::connect(&self.mosquitto);
        client.exactly_once();
        numbers.for_each(|number| client.send("machines/a", number.to_string().as_bytes(), false));
        client.settle();
    }

    /// Waits for the last of these numbers, and says which records there are.
    fn numbers(&self, last: u64) -> Vec<u64> {
        let last = [("machines/a".to_owned(), last)];
        Delivered::wait_for(&self.cluster, &["machines"], &last).numbers("machines/a")
    }

    /// It was connected so often, and no more: each connection but the last was ended by the tap.
    fn connected(&mut self, times: usize, case: &str) {
        self.bridge.stop();
        assert_eq!(self.bridge.times(CONNECTED), times, "{case}");
    }
}

/// Versions of MQTT, and kinds of packets at which a connection ends.
fn cases(kinds: &[u8]) -> impl Iterator<Item = (&'static str, u8, String)> {
    let versions = ["version = 3", "version = 5"].into_iter();
    versions.flat_map(|version| kinds.iter().map(move |kind| (version, *kind, format!("{version}, packet {kind}"))))
}

#[test]
fn a_message_is_one_record_wherever_in_its_handshake_the_connection_ends() {
    const CUTS: usize = 3;
    for (version, kind, case) in cases(&[PUBLISH, PUBREC, PUBREL, PUBCOMP]) {
        let mut plant = Plant::start(version);
        plant.tap.cut_at(kind);
        plant.publish(1..=50);
        for cut in 1..=CUTS {
            plant.tap.until_cut();
            // What the broker resumes ends there again.
            if cut < CUTS {
                plant.tap.cut_at(kind);
            }
            plant.tap.mend();
        }
        plant.bridge.said_again(CONNECTED, 1 + CUTS);
        plant.publish(51..=51);
        assert_eq!(plant.numbers(51), (1..=51).collect::<Vec<_>>(), "{case}");
        plant.connected(1 + CUTS, &case);
    }
}

#[test]
fn a_broker_that_forgets_the_session_within_a_handshake_loses_no_message_under_the_same_packet_ids() {
    for (version, kind, case) in cases(&[PUBREC, PUBREL, PUBCOMP]) {
        let mut plant = Plant::start(version);
        plant.tap.cut_at(kind);
        plant.publish(1..=1);
        plant.tap.until_cut();
        plant.mosquitto.kill();
        plant.mosquitto.lose_disk();
        plant.mosquitto.start_again();
        plant.tap.mend();
        plant.bridge.subscribed(2);
        // The same packet id and content as before; and what says that it may have come before is new, too.
        plant.tap.cut_at(PUBLISH);
        plant.publish(1..=20);
        plant.tap.until_cut();
        plant.tap.mend();
        assert_eq!(plant.numbers(20), [1].into_iter().chain(1..=20).collect::<Vec<_>>(), "{case}");
        plant.connected(3, &case);
    }
}
