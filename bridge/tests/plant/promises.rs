//! What an acknowledgement promises, and what becomes of it on a broker that hangs and a disk that is full.

use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::types::RDKafkaRespErr;
use rumqttc::QoS;

use super::ROUTES;
use crate::delivered::Delivered;
use crate::mosquitto::{Load, Mosquitto, Publisher};
use crate::rig::{Bridge, SmallDisk, until};
use crate::tap::Tap;

#[test]
fn a_message_that_is_acknowledged_once_delivered_outlives_the_bridges_disk() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    cluster.broker_down(1).unwrap();
    let brokers = cluster.bootstrap_servers();
    let mut bridge = Bridge::with_mqtt("ack = \"delivered\"", &mosquitto, &brokers, ROUTES);
    bridge.subscribed(1);
    let published = [("machines/a".to_owned(), Publisher::publish(&mosquitto, "machines/a", 1..=20))];
    bridge.stored("machines/a20");
    bridge.kill();
    bridge.lose_disk();
    cluster.broker_up(1).unwrap();
    bridge.start_again();
    Delivered::wait(&cluster, &["machines"], &published).assert_complete_and_in_order(&published);
    // What Kafka has is acknowledged: with its disk lost again, nothing comes again.
    bridge.stop();
    bridge.lose_disk();
    bridge.start_again();
    bridge.subscribed(3);
    Publisher::publish(&mosquitto, "machines/a", 21..=21);
    let published = [("machines/a".to_owned(), 21)];
    let delivered = Delivered::wait(&cluster, &["machines"], &published);
    delivered.assert_complete_and_in_order(&published);
    assert!(delivered.twice().is_empty(), "{:?}", delivered.twice());
}

#[test]
fn messages_with_quality_of_service_2_come_through_kills_without_a_storm() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 4, 1).unwrap();
    let mut bridge = Bridge::with_mqtt("qos = 2", &mosquitto, &cluster.bootstrap_servers(), ROUTES);
    bridge.subscribed(1);
    let mut client = Publisher::connect(&mosquitto);
    client.exactly_once();
    for number in 1..=2000u32 {
        client.send("machines/a", number.to_string().as_bytes(), false);
        if number % 200 == 0 {
            bridge.kill();
            bridge.start_again();
        }
    }
    client.settle();
    let published = [("machines/a".to_owned(), 2000)];
    let delivered = Delivered::wait(&cluster, &["machines"], &published);
    delivered.assert_complete_and_in_order(&published);
    assert!(delivered.twice().iter().all(|record| record.duplicate), "{:?}", delivered.twice());
    assert_eq!(bridge.times("the connection is down"), 0);
}

#[test]
fn what_the_bridge_accepted_outlives_a_mosquitto_that_falls_back_to_an_older_snapshot() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("machines", 1, 1).unwrap();
    let mut mosquitto = Mosquitto::start_with(|settings| settings + "autosave_interval 1\n");
    let tap = Tap::before(mosquitto.port());
    let mut bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), &tap.routes("qos = 2"));
    bridge.subscribed(1);
    let load = Load::start(&mosquitto, &[("machines/a", QoS::ExactlyOnce)], Duration::from_micros(200));
    for kill in 1..=6 {
        let before = tap.accepted().len();
        until("a thousand messages and a snapshot", || (tap.accepted().len() > before + 1000).then_some(()));
        std::thread::sleep(Duration::from_millis(1000 + 137 * kill as u64));
        mosquitto.kill();
        mosquitto.start_again();
        bridge.subscribed(1 + kill);
    }
    load.finish();
    bridge.stop();
    // What Mosquitto lost by itself, nobody has; what it sent and the bridge took is there.
    assert!(bridge.times("resumed=true") >= 6, "Mosquitto knew the session each time");
    let accepted: Vec<_> = tap.accepted().into_iter().collect();
    bridge.start_again();
    Delivered::wait_for(&cluster, &["machines"], &accepted);
}

#[test]
fn a_broker_that_hangs_is_left_and_found_again() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    let bridge = Bridge::with_mqtt("keep-alive = \"1s\"", &mosquitto, &cluster.bootstrap_servers(), ROUTES);
    bridge.subscribed(1);
    let publisher = Publisher::start(&mosquitto, &["machines/a"], Duration::from_millis(1));
    mosquitto.hang();
    bridge.said("the broker did not answer a ping");
    mosquitto.go_on();
    bridge.subscribed(2);
    let published = publisher.finish();
    Delivered::wait(&cluster, &["machines"], &published).assert_complete_and_in_order(&published);
}

#[test]
fn a_full_disk_makes_mqtt_wait_and_loses_nothing() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    cluster.broker_down(1).unwrap();
    let mut bridge = Bridge::with(
        &mosquitto,
        &cluster.bootstrap_servers(),
        ROUTES,
        "log-size = \"16MiB\"\ndead-letter-size = \"1MiB\"",
    );
    bridge.subscribed(1);
    bridge.stop();
    bridge.lose_disk();
    // The log may take more than there is.
    let disk = SmallDisk::over(bridge.state_dir(), 6 << 10);
    bridge.start_again();
    bridge.subscribed(2);
    let published = Publisher::publish_large(&mosquitto, "machines/a", 8000, 1000);
    bridge.said("is full: free some space");
    // Nor does it need room to start, and to deliver what it has.
    disk.fill();
    bridge.kill();
    bridge.start_again();
    cluster.broker_up(1).unwrap();
    let published = [("machines/a".to_owned(), published)];
    Delivered::wait(&cluster, &["machines"], &published).assert_complete_and_in_order(&published);
    drop((bridge, disk));
}

/// Brokers that are away, and will refuse what goes to one topic.
fn refusing() -> MockCluster<'static, rdkafka::producer::DefaultProducerContext> {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("machines", 1, 1).unwrap();
    cluster.create_topic("forbidden", 1, 1).unwrap();
    cluster.topic_error("forbidden", RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
    cluster.broker_down(1).unwrap();
    cluster
}

#[test]
fn what_is_refused_waits_in_the_log_while_a_full_disk_takes_no_dead_letters() {
    let (cluster, mosquitto) = (refusing(), Mosquitto::start());
    let sizes = "log-size = \"8MiB\"\ndead-letter-size = \"8MiB\"";
    let mut bridge = Bridge::prepare(&mosquitto, &cluster.bootstrap_servers(), ROUTES, sizes);
    let disk = SmallDisk::over(bridge.state_dir(), 14 << 10);
    bridge.start_again();
    bridge.subscribed(1);
    let refused = Publisher::publish_large(&mosquitto, "forbidden/x", 4000, 1000);
    let published = [("machines/a".to_owned(), Publisher::publish(&mosquitto, "machines/a", 1..=10))];
    bridge.stored("machines/a10");
    disk.fill();
    cluster.broker_up(1).unwrap();
    bridge.said("records wait, for a dead letter can't be kept");
    disk.free();
    bridge.said("dead letters are kept again");
    Delivered::wait(&cluster, &["machines"], &published).assert_complete_and_in_order(&published);
    for told in ["records wait, for a dead letter can't be kept", "what Kafka has confirmed can't be noted"] {
        assert_eq!(bridge.times(told), 1, "{told}");
    }
    bridge.stop();
    let letters = bridge.dead_letters();
    let sequences: Vec<u64> = letters.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(sequences, (1..=refused).collect::<Vec<_>>());
    let (report, whole) = bridge.audit(&["machines"]);
    assert!(!whole && report.contains("4000 missing"), "{report}");
    drop((bridge, disk));
}

#[test]
fn dead_letters_that_give_way_are_told_with_their_numbers() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    let mut bridge = Bridge::with(&mosquitto, &cluster.bootstrap_servers(), ROUTES, "dead-letter-size = \"1MiB\"");
    bridge.subscribed(1);
    // No route takes these.
    let refused = Publisher::publish_large(&mosquitto, "umh/v1/acme", 3000, 1000);
    bridge.said("dead letters gave way to newer ones, the last of them 1–");
    let published = [("machines/a".to_owned(), Publisher::publish(&mosquitto, "machines/a", 1..=1))];
    Delivered::wait(&cluster, &["machines"], &published);
    bridge.stop();
    let letters = bridge.dead_letters();
    let (first, rest) = letters.split_once('\n').unwrap();
    let gone = refused - rest.lines().count() as u64;
    assert_eq!(first, format!("gone: dead letters 1–{gone} (the spool was full)"));
    let (said, well) = bridge.ask(&["log", "verify"]);
    assert!(well && said.contains(&format!("; {gone} gave way to newer ones, the last of them 1–{gone} (")), "{said}");
}
