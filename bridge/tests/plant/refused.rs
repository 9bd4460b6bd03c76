//! What Kafka refuses: records in batches with others, and topics that take none.

use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::ROUTES;
use crate::delivered::Delivered;
use crate::mosquitto::{Mosquitto, Publisher};
use crate::rig::{Bridge, until};

#[test]
fn what_kafka_has_is_not_sent_again_and_no_dead_letter_is_written_twice_while_a_refused_record_is_looked_for() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 4, 1).unwrap();
    cluster.broker_down(1).unwrap();
    let mut bridge = Bridge::start(&mosquitto, &cluster.bootstrap_servers(), ROUTES);
    bridge.subscribed(1);
    // Of many partitions, one after the other, and one in between that no route takes.
    let client = Publisher::connect(&mosquitto);
    for number in 1..=20 {
        for machine in 1..=8 {
            client.send(&format!("machines/{machine}"), number.to_string().as_bytes(), false);
        }
        if number == 10 {
            client.send("umh/v1/acme", b"too short", false);
        }
    }
    client.settle();
    bridge.stored("machines/820");
    // A partition's batch is refused, those of the three others are not; then the first of its parts is, and the first of that.
    let (taken, refused) =
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR, RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE);
    cluster.request_errors(RDKafkaApiKey::Produce, &[refused, taken, taken, taken, refused, refused, refused]);
    cluster.broker_up(1).unwrap();
    let delivered = until("all but one", || {
        let delivered = Delivered::now(&cluster, &["machines"]);
        (delivered.records() == 159).then_some(delivered)
    });
    delivered.assert_in_order();
    assert_eq!(delivered.again(), 0, "records came again under their numbers");
    bridge.stop();
    bridge.said("dead=2 ");
    let letters = bridge.dead_letters();
    assert_eq!(letters.lines().count(), 2, "{letters}");
}

#[test]
fn a_topic_that_takes_none_displaces_no_dead_letter_and_is_written_to_once_it_may_be() {
    let (cluster, mosquitto) = (MockCluster::new(1).unwrap(), Mosquitto::start());
    cluster.create_topic("machines", 1, 1).unwrap();
    cluster.create_topic("forbidden", 1, 1).unwrap();
    cluster.topic_error("forbidden", RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
    let mut bridge = Bridge::with(&mosquitto, &cluster.bootstrap_servers(), ROUTES, "dead-letter-size = \"1MiB\"");
    bridge.subscribed(1);
    // While there is room for dead letters it holds up nothing.
    let first = Publisher::publish_large(&mosquitto, "forbidden/x", 100, 1000);
    let before = [("machines/a".to_owned(), Publisher::publish(&mosquitto, "machines/a", 1..=1))];
    Delivered::wait(&cluster, &["machines"], &before);
    Publisher::publish_large(&mosquitto, "forbidden/y", 3000, 1000);
    bridge.said("records wait, for dead-letter-size is used up");
    let published = [("machines/a".to_owned(), Publisher::publish(&mosquitto, "machines/a", 2..=20))];
    cluster.topic_error("forbidden", RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
    Delivered::wait(&cluster, &["machines"], &published).assert_complete_and_in_order(&published);
    bridge.stop();
    let letters = bridge.dead_letters();
    assert!(!letters.contains("gone: "), "{letters}");
    let mut numbers: Vec<u64> = letters.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    numbers.sort_unstable();
    // The record of the other topic has a number, too.
    let kept = numbers.len() as u64 - first;
    let expected: Vec<u64> = (1..=first).chain(first + 2..=first + 1 + kept).collect();
    assert!(kept < 3000 && numbers == expected, "{letters}");
    let delivered = Delivered::now(&cluster, &["forbidden"]).sequences();
    assert_eq!(delivered, (first + 2 + kept..=first + 1 + 3000).collect::<Vec<_>>());
}
