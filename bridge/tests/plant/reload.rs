//! A configuration that changes while messages flow.

use std::time::Duration;

use rdkafka::mocking::MockCluster;

use crate::delivered::Delivered;
use crate::mosquitto::{Mosquitto, Publisher};
use crate::records;
use crate::rig::{Bridge, until};

/// Two classes with room enough.
const CLASSES: &str = "[[class]]\nname = \"trends\"\noverflow = \"drop-oldest\"\n\
                       [[class]]\nname = \"events\"\noverflow = \"block\"\n";

fn routes(filters: &[(&str, &str)]) -> String {
    let route = |(from, to): &(&str, &str)| format!("[[route]]\nfrom = {from:?}\nto = {to:?}\n");
    filters.iter().map(route).collect()
}

#[test]
fn routes_change_without_a_loss_and_a_bad_file_is_refused() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    for topic in ["machines", "others", "late"] {
        cluster.create_topic(topic, 1, 1).unwrap();
    }
    let brokers = cluster.bootstrap_servers();
    let mut bridge = Bridge::start(&mosquitto, &brokers, &routes(&[("m/#", "machines"), ("old/#", "others")]));
    bridge.subscribed(1);
    let publisher = Publisher::start(&mosquitto, &["m/a", "m/b"], Duration::from_millis(1));
    // Ones of which nobody knows but the file that is there at the reload.
    bridge.configure(&mosquitto, &brokers, &routes(&[("m/#", "machines"), ("new/#", "others")]), "");
    bridge.reload();
    bridge.said("going on with the configuration as it is now");
    bridge.subscribed(2);
    bridge.said("no longer subscribed to");
    let client = Publisher::connect(&mosquitto);
    client.send("new/a", b"1", false);
    client.settle();
    assert_eq!(records::read(&cluster, "others", 1)[0].key, "new/a");

    bridge.configure(&mosquitto, &brokers, "[[route]]\nform = \"x\"\n", "");
    bridge.reload();
    bridge.said("the configuration of before goes on");
    bridge.configure(&mosquitto, &brokers, &routes(&[("m/#", "machines")]), "log-size = \"2GiB\"");
    bridge.reload();
    bridge.said("log-size is read at a start alone");
    let published = publisher.finish();
    let delivered = Delivered::wait(&cluster, &["machines"], &published);
    delivered.assert_complete_and_in_order(&published);
    assert!(delivered.twice().is_empty(), "{:?}", delivered.twice());
    assert_eq!(bridge.times(" connected"), 1, "the session stays");
    bridge.stop();
    let (report, whole) = bridge.audit(&["machines", "others"]);
    assert!(whole && report.contains(" 0 doubled"), "{report}");
    assert_eq!(bridge.dead_letters(), "");
}

#[test]
fn routes_of_a_connection_that_does_not_run_yet_are_refused_and_take_no_topics_away() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    let brokers = cluster.bootstrap_servers();
    let mut bridge =
        Bridge::start(&mosquitto, &brokers, "[[route]]\nfrom = \"m/#\"\nto = \"machines\"\nmqtt = \"plant\"\n");
    bridge.subscribed(1);
    // Renamed, as far as the routes go.
    let renamed = format!(
        "[[mqtt]]\nname = \"line\"\naddress = \"127.0.0.1:{}\"\n\
         [[route]]\nfrom = \"m/#\"\nto = \"machines\"\nmqtt = \"line\"\n",
        mosquitto.port()
    );
    bridge.configure(&mosquitto, &brokers, &renamed, "");
    bridge.reload();
    bridge.said("the configuration of before goes on: route 1 is for the connection \"line\"");
    Publisher::publish(&mosquitto, "m/a", 1..=20);
    let published = [("m/a".to_owned(), 20)];
    Delivered::wait(&cluster, &["machines"], &published).assert_complete_and_in_order(&published);
    bridge.stop();
    assert_eq!(bridge.times("no longer subscribed to"), 0);
    // A start makes the connection.
    bridge.start_again();
    bridge.subscribed(2);
    bridge.said("mqtt=\"line\"");
    Publisher::publish(&mosquitto, "m/a", 21..=40);
    let published = [("m/a".to_owned(), 40)];
    Delivered::wait(&cluster, &["machines"], &published).assert_complete_and_in_order(&published);
    bridge.stop();
}

#[test]
fn what_waits_goes_by_the_routes_it_was_accepted_for_and_at_the_new_rate() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    for topic in ["machines", "late"] {
        cluster.create_topic(topic, 1, 1).unwrap();
    }
    let brokers = cluster.bootstrap_servers();
    // At this rate it would take hours.
    let slow = format!("max-rate = \"1KiB\"\n{}", routes(&[("m/#", "machines"), ("gone/#", "machines")]));
    let mut bridge = Bridge::start(&mosquitto, &brokers, &slow);
    bridge.subscribed(1);
    let count = Publisher::publish_large(&mosquitto, "gone/a", 200, 10_000);
    bridge.stored(&format!("gone/a{count:010000}"));
    bridge.configure(&mosquitto, &brokers, &routes(&[("m/#", "late")]), "");
    bridge.reload();
    bridge.said("no longer subscribed to");
    Publisher::publish(&mosquitto, "m/a", 1..=20);
    let (before, after) = ([("gone/a".to_owned(), count)], [("m/a".to_owned(), 20)]);
    Delivered::wait(&cluster, &["machines"], &before).assert_complete_and_in_order(&before);
    Delivered::wait(&cluster, &["late"], &after).assert_complete_and_in_order(&after);
    bridge.stop();
    assert_eq!(bridge.dead_letters(), "");
}

#[test]
fn what_waits_goes_by_the_routes_it_was_accepted_for_also_after_a_kill_and_a_restart_with_others() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    for topic in ["machines", "late", "later"] {
        cluster.create_topic(topic, 1, 1).unwrap();
    }
    cluster.broker_down(1).unwrap();
    let brokers = cluster.bootstrap_servers();
    let mut bridge = Bridge::start(&mosquitto, &brokers, &routes(&[("m/#", "machines"), ("gone/#", "machines")]));
    bridge.subscribed(1);
    let publish = |bridge: &Bridge, topic: &str, numbers: std::ops::RangeInclusive<u64>| {
        let last = Publisher::publish(&mosquitto, topic, numbers);
        bridge.stored(&format!("{topic}{last}"));
    };
    publish(&bridge, "gone/a", 1..=200);
    publish(&bridge, "m/a", 1..=100);
    bridge.configure(&mosquitto, &brokers, &routes(&[("m/#", "late")]), "");
    bridge.reload();
    bridge.said("no longer subscribed to");
    publish(&bridge, "m/a", 101..=150);
    bridge.kill();
    bridge.start_again();
    publish(&bridge, "m/a", 151..=170);
    // And others while it does not run.
    bridge.kill();
    bridge.configure(&mosquitto, &brokers, &routes(&[("m/#", "later")]), "");
    bridge.start_again();
    publish(&bridge, "m/a", 171..=180);
    bridge.kill();
    bridge.start_again();
    cluster.broker_up(1).unwrap();
    let gone = [("gone/a".to_owned(), 200)];
    Delivered::wait(&cluster, &["machines"], &gone).assert_in_order();
    for (topic, numbers) in [("machines", 1..=100), ("late", 101..=170), ("later", 171..=180)] {
        let messages: Vec<_> = numbers.clone().map(|number| ("m/a".to_owned(), number)).collect();
        let delivered = Delivered::wait_for(&cluster, &[topic], &messages);
        assert_eq!(delivered.numbers("m/a"), numbers.collect::<Vec<_>>(), "{topic}");
    }
    bridge.stop();
    assert_eq!(bridge.dead_letters(), "");
    let (report, whole) = bridge.audit(&["machines", "late", "later"]);
    assert!(whole, "{report}");
    // Nothing waits any more.
    bridge.start_again();
    until("routes of before that are forgotten", || {
        bridge.state("routes.json").ends_with("\"former\":[]}").then_some(())
    });
}

#[test]
fn topics_that_change_their_class_stay_in_order_whatever_waits_in_the_former_one() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    for topic in ["machines", "others"] {
        cluster.create_topic(topic, 1, 1).unwrap();
    }
    cluster.broker_down(1).unwrap();
    let brokers = cluster.bootstrap_servers();
    let routes = |machines: &str, others: &str| {
        let route = |from: &str, to: &str, class: &str| format!("[[route]]\nfrom = {from:?}\nto = {to:?}\n{class}\n");
        format!("{CLASSES}{}{}", route("m/#", "machines", machines), route("o/#", "others", others))
    };
    let (trends, events) = ("class = \"trends\"", "class = \"events\"");
    let mut bridge = Bridge::start(&mosquitto, &brokers, &routes(trends, events));
    bridge.subscribed(1);
    let publish = |bridge: &Bridge, from: u64, to: u64, logs: [&str; 2]| {
        for (topic, log) in ["m/a", "o/a"].into_iter().zip(logs) {
            Publisher::publish(&mosquitto, topic, from..=to);
            bridge.stored_in(log, &format!("{topic}{to}"));
        }
    };
    let reload = |bridge: &Bridge, times: usize, text: &str| {
        bridge.configure(&mosquitto, &brokers, text, "");
        bridge.reload();
        bridge.said_again("going on with the configuration as it is now", times);
    };
    let before = ["classes/trends/log", "classes/events/log"];
    publish(&bridge, 1, 200, before);
    // To the other class, to none, and to one that there was not when it started.
    reload(&bridge, 1, &routes(events, ""));
    publish(&bridge, 201, 400, before);
    bridge.said("topics keep their former class");
    let later = routes(events, trends).replace("\"events\"", "\"later\"");
    reload(&bridge, 2, &later);
    bridge.said("class is read at a start alone");
    publish(&bridge, 401, 600, before);
    // The class of before is configured no longer at the next start, but what waits of it is there.
    bridge.kill();
    bridge.start_again();
    bridge.subscribed(2);
    publish(&bridge, 601, 800, before);
    cluster.broker_up(1).unwrap();
    let mut last = 800;
    until("the classes that are configured now", || {
        last += 1;
        publish_one(&mosquitto, last);
        (bridge.times("topics are of the classes that are configured now") == 1).then_some(())
    });
    publish(&bridge, last + 1, last + 200, ["classes/later/log", "classes/trends/log"]);
    let published = [("m/a".to_owned(), last + 200), ("o/a".to_owned(), last + 200)];
    Delivered::wait(&cluster, &["machines", "others"], &published).assert_complete_and_in_order(&published);
    bridge.stop();
    let (report, whole) = bridge.audit(&["machines", "others"]);
    assert!(whole && report.matches(" 0 missing").count() == 3, "{report}");
    assert_eq!(bridge.dead_letters(), "");
}

fn publish_one(mosquitto: &Mosquitto, number: u64) {
    for topic in ["m/a", "o/a"] {
        Publisher::publish(mosquitto, topic, number..=number);
    }
}
