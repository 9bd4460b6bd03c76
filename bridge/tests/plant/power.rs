//! A machine whose power is cut: of what the bridge wrote there is what it has synced.

use std::time::Duration;

use hyperfactory_tests::rig::CutDisk;
use rdkafka::mocking::MockCluster;
use rumqttc::QoS;

use crate::delivered::Delivered;
use crate::mosquitto::{Load, Mosquitto, Publisher};
use crate::rig::{Bridge, until};
use crate::tap::Tap;

const MEBIBYTES: u64 = 256;

#[test]
fn what_is_acknowledged_outlives_power_cuts() {
    const TOPICS: [(&str, QoS); 2] = [("machines/a", QoS::AtLeastOnce), ("machines/b", QoS::ExactlyOnce)];
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    let tap = Tap::before(mosquitto.port());
    let routes = tap.routes("qos = 2");
    let mut bridge = Bridge::prepare(&mosquitto, &cluster.bootstrap_servers(), &routes, "log-size = \"64MiB\"");
    let mut disk = CutDisk::over(&bridge.state_dir(), MEBIBYTES).unwrap();
    bridge.start_again();
    bridge.subscribed(1);
    let load = Load::start(&mosquitto, &TOPICS, Duration::from_micros(500));
    for cut in 0..10 {
        // Every other time, what is acknowledged is on that disk alone.
        if cut % 2 == 0 {
            cluster.broker_down(1).unwrap();
        }
        let before = tap.accepted().len();
        until("messages that are acknowledged", || (tap.accepted().len() > before + 300).then_some(()));
        bridge.kill();
        disk.cut().unwrap();
        bridge.start_again();
        cluster.broker_up(1).unwrap();
    }
    load.finish();
    let accepted: Vec<_> = tap.accepted().into_iter().collect();
    let delivered = Delivered::wait_for(&cluster, &["machines"], &accepted);
    delivered.assert_in_order();
    assert!(delivered.twice().iter().all(|record| record.duplicate), "{:?}", delivered.twice());
    bridge.stop();
    let (report, whole) = bridge.audit(&["machines"]);
    assert!(whole, "{report}");
}

#[test]
fn what_the_bridge_has_subscribed_to_is_known_after_a_power_cut() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    let brokers = cluster.bootstrap_servers();
    let route = |filter: &str| format!("[[route]]\nfrom = \"{filter}\"\nto = \"machines\"\n");
    let both = format!("{}{}", route("machines/#"), route("former/#"));
    let mut bridge = Bridge::prepare(&mosquitto, &brokers, &both, "log-size = \"64MiB\"");
    let mut disk = CutDisk::over(&bridge.state_dir(), MEBIBYTES).unwrap();
    bridge.start_again();
    bridge.subscribed(1);
    bridge.kill();
    disk.cut().unwrap();
    // The broker remembers both.
    bridge.configure(&mosquitto, &brokers, &route("machines/#"), "log-size = \"64MiB\"");
    bridge.start_again();
    bridge.said("no longer subscribed to");
    bridge.subscribed(2);
    Publisher::publish(&mosquitto, "former/a", 1..=1);
    let published = [("machines/a".to_owned(), Publisher::publish(&mosquitto, "machines/a", 1..=1))];
    Delivered::wait(&cluster, &["machines"], &published).assert_complete_and_in_order(&published);
    bridge.stop();
    // It would be one if it had come.
    assert_eq!(bridge.dead_letters(), "");
}
