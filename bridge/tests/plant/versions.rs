//! Both versions of MQTT, by the same tests.

use std::time::Duration;

use rdkafka::mocking::MockCluster;

use crate::ROUTES;
use crate::delivered::Delivered;
use crate::mosquitto::{Mosquitto, Publisher};
use crate::records;
use crate::rig::Bridge;

const VERSIONS: [&str; 2] = ["version = 3", "version = 5"];

#[test]
fn each_version_comes_through_kills_and_restarts_of_both_sides() {
    for version in VERSIONS {
        let (cluster, mut mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
        cluster.create_topic("machines", 4, 1).unwrap();
        let mut bridge = Bridge::with_mqtt(version, &mosquitto, &cluster.bootstrap_servers(), ROUTES);
        bridge.subscribed(1);
        let publisher = Publisher::start(&mosquitto, &["machines/a", "machines/b"], Duration::from_micros(500));
        for _ in 0..5 {
            bridge.kill();
            bridge.start_again();
            std::thread::sleep(Duration::from_millis(100));
        }
        let mut published = publisher.finish();
        bridge.kill();
        // The session is the broker's: what is published while nobody is there waits.
        published[0].1 = Publisher::publish(&mosquitto, "machines/a", published[0].1 + 1..=published[0].1 + 50);
        mosquitto.restart();
        bridge.start_again();
        let delivered = Delivered::wait(&cluster, &["machines"], &published);
        delivered.assert_complete_and_in_order(&published);
        assert!(delivered.twice().iter().all(|record| record.duplicate), "{version}: {:?}", delivered.twice());
        let (report, whole) = bridge.audit(&["machines"]);
        assert!(whole, "{version}: {report}");
    }
}

#[test]
fn exactly_once_and_a_shared_subscription_work_with_each_version() {
    const SHARED: &str = "[[route]]\nfrom = \"$share/bridges/machines/#\"\nto = \"machines\"\n";
    for version in VERSIONS {
        let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
        cluster.create_topic("machines", 4, 1).unwrap();
        let mqtt = format!("{version}\nqos = 2");
        let mut bridge = Bridge::with_mqtt(&mqtt, &mosquitto, &cluster.bootstrap_servers(), SHARED);
        bridge.subscribed(1);
        let mut client = Publisher::connect(&mosquitto);
        client.exactly_once();
        for number in 1..=300u32 {
            client.send("machines/a", number.to_string().as_bytes(), false);
            if number % 100 == 0 {
                bridge.kill();
                bridge.start_again();
            }
        }
        client.settle();
        let published = [("machines/a".to_owned(), 300)];
        Delivered::wait(&cluster, &["machines"], &published).assert_complete_and_in_order(&published);
        assert_eq!(bridge.times("the connection is down"), 0, "{version}");
    }
}

#[test]
fn version_5_brings_properties_and_tells_what_is_kept_once() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    mosquitto.publish_five(&["-t", "machines/a", "-m", "kept", "-r"]);
    let mut bridge = Bridge::with_mqtt("version = 5", &mosquitto, &cluster.bootstrap_servers(), ROUTES);
    bridge.subscribed(1);
    let content = ["-D", "publish", "content-type", "application/json"];
    let user = ["-D", "publish", "user-property", "traceparent", "00-1", "-D", "publish", "user-property"];
    let spoof = ["hf-sequence", "7"];
    mosquitto.publish_five(&[&["-t", "machines/a", "-m", "{}"], &content[..], &user, &spoof].concat());
    records::read(&cluster, "machines", 2);
    // The subscription is not new any more.
    bridge.stop();
    bridge.start_again();
    bridge.subscribed(2);
    mosquitto.publish_five(&["-t", "machines/a", "-m", "live"]);
    let records = records::read(&cluster, "machines", 3);
    let texts: Vec<&str> = records.iter().map(records::Full::text).collect();
    assert_eq!(texts, ["kept", "{}", "live"]);
    let retained: Vec<Option<&str>> = records.iter().map(|record| record.header("hf-retained")).collect();
    assert_eq!(retained, [Some("true"), None, None]);
    let [content, trace, own, foreign] =
        ["hf-content-type", "traceparent", "hf-sequence", "user.hf-sequence"].map(|name| records[1].header(name));
    assert_eq!((content, trace, own, foreign), (Some("application/json"), Some("00-1"), Some("2"), Some("7")));
}

#[test]
fn with_version_5_a_broker_sends_as_many_as_the_bridge_wants() {
    for (version, expected) in [("version = 3", 5), ("version = 5\nreceive-maximum = 200", 200)] {
        let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::with_inflight(5));
        cluster.create_topic("machines", 1, 1).unwrap();
        cluster.broker_down(1).unwrap();
        let mqtt = format!("{version}\nack = \"delivered\"");
        let mut bridge = Bridge::with_mqtt(&mqtt, &mosquitto, &cluster.bootstrap_servers(), ROUTES);
        bridge.subscribed(1);
        // Nothing is acknowledged, so no more than these come.
        Publisher::publish(&mosquitto, "machines/a", 1..=400);
        bridge.stored(&format!("machines/a{expected}"));
        bridge.stop();
        bridge.said(&format!("received={expected} "));
    }
}

#[test]
fn a_session_expires_with_version_5_when_that_is_configured() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    let mqtt = "version = 5\nsession-expiry = \"1s\"";
    let mut bridge = Bridge::with_mqtt(mqtt, &mosquitto, &cluster.bootstrap_servers(), ROUTES);
    bridge.subscribed(1);
    bridge.stop();
    bridge.start_again();
    bridge.said("resumed=true");
    bridge.stop();
    let mut starts = 2;
    crate::rig::until("the end of the session", || {
        std::thread::sleep(Duration::from_secs(2));
        bridge.start_again();
        starts += 1;
        bridge.subscribed(starts);
        let ended = bridge.times("resumed=false") >= 2;
        bridge.stop();
        ended.then_some(())
    });
}
