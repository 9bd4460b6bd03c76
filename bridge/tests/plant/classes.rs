//! What may be dropped is dropped as its class says, and told; what may not is neither dropped nor kept waiting by it.

use rdkafka::mocking::MockCluster;

use crate::delivered::Delivered;
use crate::mosquitto::{Mosquitto, Publisher};
use crate::rig::{self, Bridge, SmallDisk};

/// Beside what waits: three classes of a mebibyte, whose topics come by a connection of their own.
fn routes(mosquitto: &Mosquitto) -> String {
    let mut text = format!("[[mqtt]]\nname = \"more\"\naddress = \"127.0.0.1:{}\"\n", mosquitto.port());
    for (name, overflow) in [("trends", "drop-oldest"), ("events", "drop-newest"), ("states", "latest-per-topic")] {
        text += &format!("[[class]]\nname = {name:?}\noverflow = {overflow:?}\nsize = \"1MiB\"\n");
        text += &format!("[[route]]\nfrom = \"{name}/#\"\nto = \"dropped\"\nclass = {name:?}\nmqtt = \"more\"\n");
    }
    text + "[[route]]\nfrom = \"machines/#\"\nto = \"machines\"\nmqtt = \"plant\"\n"
}

fn cluster() -> MockCluster<'static, rdkafka::producer::DefaultProducerContext> {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("machines", 1, 1).unwrap();
    cluster.create_topic("dropped", 4, 1).unwrap();
    cluster.broker_down(1).unwrap();
    cluster
}

#[test]
fn full_classes_drop_what_they_may_and_the_audit_knows_and_nothing_else_is_lost() {
    let (cluster, mosquitto) = (cluster(), Mosquitto::start());
    let mut bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), &routes(&mosquitto));
    bridge.subscribed(2);
    Publisher::publish_large(&mosquitto, "trends/a", 3000, 1000);
    Publisher::publish_large(&mosquitto, "events/a", 3000, 1000);
    Publisher::publish_large(&mosquitto, "states/once", 1, 1000);
    for topic in ["states/a", "states/b", "states/c"] {
        Publisher::publish_large(&mosquitto, topic, 1000, 1000);
    }
    let machines = [("machines/a".to_owned(), Publisher::publish(&mosquitto, "machines/a", 1..=200))];
    bridge.stored_in("classes/states/log", &format!("states/c{:01000}", 1000));
    bridge.stored_in("log", "machines/a200");
    // What is dropped is on record: it is not for the process to remember.
    bridge.kill();
    let (said, whole) = bridge.ask(&["log", "verify"]);
    assert!(whole && said.contains("class trends: ") && !said.contains("trends: 0 dropped"), "{said}");
    cluster.broker_up(1).unwrap();
    bridge.start_again();
    bridge.subscribed(4);
    Delivered::wait(&cluster, &["machines"], &machines).assert_complete_and_in_order(&machines);
    // The newest of a class that keeps the oldest is one that has room again.
    let last = |topic: &str, number| (topic.to_owned(), number);
    let states = [("states/a", 1000), ("states/b", 1000), ("states/c", 1000), ("states/once", 1)];
    let mut lasts: Vec<_> = states.map(|(topic, number)| last(topic, number)).into();
    lasts.push(last("trends/a", 3000));
    Delivered::wait_for(&cluster, &["dropped"], &lasts);
    let mut number = 3000;
    rig::until("an event that there is room for", || {
        number = Publisher::publish(&mosquitto, "events/a", number + 1..=number + 1);
        Delivered::now(&cluster, &["dropped"]).numbers("events/a").contains(&number).then_some(())
    });
    lasts.push(last("events/a", number));
    let delivered = Delivered::wait_for(&cluster, &["dropped"], &lasts);
    delivered.assert_in_order();
    let trends = delivered.numbers("trends/a");
    assert!(trends.len() < 2000 && trends.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{trends:?}");
    let events = delivered.numbers("events/a");
    let kept = (1..).zip(&events).take_while(|(number, event)| number == *event).count();
    assert!((100..2000).contains(&kept) && events[kept..].iter().all(|event| *event > 3000), "{events:?}");
    bridge.stop();
    let (report, whole) = bridge.audit(&["machines", "dropped"]);
    assert!(whole, "{report}");
    for class in ["trends", "events", "states"] {
        let line = report.lines().find(|line| line.contains(&format!("of class {class}"))).unwrap();
        assert!(line.contains(" 0 missing") && line.contains("dropped as configured"), "{report}");
    }
    assert_eq!(report.matches("dropped as configured").count(), 3, "{report}");
}

#[test]
fn what_was_dropped_as_configured_stays_so_when_the_class_is_changed_or_removed() {
    let (cluster, mosquitto) = (cluster(), Mosquitto::start());
    let (brokers, routes) = (cluster.bootstrap_servers(), routes(&mosquitto));
    let mut bridge = Bridge::start(&mosquitto, &brokers, &routes);
    bridge.subscribed(2);
    Publisher::publish_large(&mosquitto, "trends/a", 3000, 1000);
    Publisher::publish_large(&mosquitto, "states/a", 3000, 1000);
    bridge.stored_in("classes/trends/log", &format!("trends/a{:01000}", 3000));
    bridge.stored_in("classes/states/log", &format!("states/a{:01000}", 3000));
    bridge.kill();
    let states = "[[class]]\nname = \"states\"\noverflow = \"latest-per-topic\"\nsize = \"1MiB\"\n";
    let now = routes.replace("\"drop-oldest\"", "\"block\"").replace(states, "").replace("class = \"states\"\n", "");
    assert!(
        now.contains("\"block\"") && now.contains("from = \"states/#\"") && !now.contains("latest-per-topic"),
        "{now}"
    );
    bridge.configure(&mosquitto, &brokers, &now, "");
    let (said, whole) = bridge.ask(&["log", "verify"]);
    for class in ["trends", "states"] {
        let line = said.lines().find(|line| line.starts_with(&format!("class {class}: "))).unwrap();
        assert!(whole && !line.contains(": 0 dropped"), "{said}");
    }
    cluster.broker_up(1).unwrap();
    bridge.start_again();
    Delivered::wait_for(&cluster, &["dropped"], &[("trends/a".into(), 3000), ("states/a".into(), 3000)]);
    bridge.stop();
    let (report, whole) = bridge.audit(&["dropped"]);
    assert!(whole && report.matches("dropped as configured").count() == 2, "{report}");
}

#[test]
fn what_waits_does_not_keep_what_may_be_dropped_waiting() {
    let (cluster, mosquitto) = (cluster(), Mosquitto::start());
    let (brokers, routes) = (cluster.bootstrap_servers(), routes(&mosquitto));
    let bridge = Bridge::with(&mosquitto, &brokers, &routes, "log-size = \"1MiB\"");
    bridge.subscribed(2);
    let machines = [("machines/a".to_owned(), Publisher::publish_large(&mosquitto, "machines/a", 3000, 1000))];
    bridge.said("MQTT messages are not acknowledged for now");
    Publisher::publish(&mosquitto, "trends/a", 1..=20);
    bridge.stored_in("classes/trends/log", "trends/a20");
    cluster.broker_up(1).unwrap();
    Delivered::wait(&cluster, &["machines"], &machines).assert_complete_and_in_order(&machines);
}

#[test]
fn a_class_leaves_room_on_a_small_disk_to_what_may_not_be_dropped() {
    let (cluster, mosquitto) = (cluster(), Mosquitto::start());
    let routes = routes(&mosquitto).replace("\"1MiB\"", "\"16MiB\"");
    let more = "log-size = \"16MiB\"\ndead-letter-size = \"1MiB\"";
    let bridge = Bridge::prepare(&mosquitto, &cluster.bootstrap_servers(), &routes, more);
    let disk = SmallDisk::over(bridge.state_dir(), 14 << 10);
    let mut bridge = bridge;
    bridge.start_again();
    bridge.subscribed(2);
    // More than the sink takes into memory: what it has is not dropped yet.
    Publisher::publish_large(&mosquitto, "trends/a", 30_000, 1000);
    bridge.said("records are dropped");
    let machines = [("machines/a".to_owned(), Publisher::publish_large(&mosquitto, "machines/a", 2500, 1000))];
    bridge.stored_in("log", &format!("machines/a{:01000}", 2500));
    assert_eq!(bridge.times("MQTT messages are not acknowledged"), 0);
    cluster.broker_up(1).unwrap();
    Delivered::wait(&cluster, &["machines"], &machines).assert_complete_and_in_order(&machines);
    drop((bridge, disk));
}

#[test]
fn what_is_too_old_is_dropped_and_acknowledged() {
    let (cluster, mosquitto) = (cluster(), Mosquitto::start());
    let routes = routes(&mosquitto).replace("size =", "max-age = \"1s\"\nsize =");
    let mut bridge = Bridge::with_mqtt("ack = \"delivered\"", &mosquitto, &cluster.bootstrap_servers(), &routes);
    bridge.subscribed(2);
    let mut number = 0;
    rig::until("a record that is too old", || {
        number = Publisher::publish(&mosquitto, "trends/a", number + 1..=number + 1);
        (bridge.times("(too old)") > 0).then_some(())
    });
    cluster.broker_up(1).unwrap();
    rig::until("a record that is young enough", || {
        number = Publisher::publish(&mosquitto, "trends/a", number + 1..=number + 1);
        Delivered::now(&cluster, &["dropped"]).numbers("trends/a").contains(&number).then_some(())
    });
    bridge.stop();
    let (report, whole) = bridge.audit(&["dropped"]);
    assert!(whole && report.contains("dropped as configured"), "{report}");
}

#[test]
fn a_damaged_log_is_repaired_when_told_to_and_not_before() {
    let (cluster, mosquitto) = (cluster(), Mosquitto::start());
    let mut bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), &routes(&mosquitto));
    bridge.subscribed(2);
    Publisher::publish(&mosquitto, "machines/a", 1..=200);
    bridge.stored_in("log", "machines/a200");
    assert!(bridge.refused(&["log", "repair", "--yes"]).contains("another process has the spool directory"));
    bridge.stop();
    assert_eq!(bridge.ask(&["log", "repair"]).0.matches("nothing to repair; ").count(), 8);

    // A record in the middle, and what a power cut may leave after the last.
    let path = rig::files(&bridge.state_dir().join("log"), ".seg").pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let find = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).position(|window| window == text).unwrap();
    let (middle, last) = (find(&bytes, b"machines/a77"), find(&bytes, b"machines/a200"));
    bytes[middle] ^= 1;
    bytes[last + 100..last + 150].fill(7);
    std::fs::write(&path, &bytes).unwrap();
    assert!(!bridge.ask(&["log", "verify"]).1);
    let (said, done) = bridge.ask(&["log", "repair"]);
    assert!(!done && said.contains("to do log of records: give up numbers 77 to 77"), "{said}");
    assert!(said.contains("to do log of records: cut off ") && said.contains("repair with --yes"), "{said}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "looking changes nothing");
    let (said, done) = bridge.ask(&["log", "repair", "--yes"]);
    assert!(done && said.contains("done  log of records: give up numbers 77 to 77"), "{said}");
    let (said, done) = bridge.ask(&["log", "repair"]);
    assert!(done && said.matches("nothing to repair; ").count() == 8, "{said}");

    cluster.broker_up(1).unwrap();
    bridge.start_again();
    let machines = [("machines/a".to_owned(), 200)];
    let delivered = Delivered::wait_but(&cluster, &["machines"], &machines, Some(("machines/a", 77)));
    delivered.assert_in_order();
    bridge.stop();
    // It may not be dropped: for the audit it is a loss, as it is.
    let (report, whole) = bridge.audit(&["machines"]);
    assert!(!whole && report.contains("missing 77 to 77"), "{report}");
}
