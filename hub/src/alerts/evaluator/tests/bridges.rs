//! Stories of bridges: what they have on disk, the brokers they write to, and what they may do there.

use protocol::message::{BridgeStatus, ClassStatus, KafkaState};

use super::*;
use crate::kafka_access::{Access, State};

#[test]
fn damage_to_records_that_were_to_stay_is_told_and_what_a_class_may_drop_is_not() {
    let class = |name: &str, overflow: &str, dropped, fault: &str| ClassStatus {
        name: name.into(),
        overflow: overflow.into(),
        dropped,
        first: 3,
        last: 4,
        reason: "damaged on disk".into(),
        fault: fault.into(),
    };
    fn tell(classes: Vec<ClassStatus>) -> impl FnOnce(&mut NodeView) {
        let bridge = BridgeStatus { classes, ..BridgeStatus::default() };
        move |view| {
            let status = Arc::make_mut(&mut view.status);
            (status.bridge, status.spool) = (Some(Box::new(bridge)), Some(SpoolStatus::default()));
        }
    }
    let mut story = Story::new();
    story.change(10, tell(vec![class("trends", "drop-oldest", 10, "")]));
    story.change(20, tell(vec![class("trends", "drop-oldest", 90, "")]));
    story.tells(&[]);
    story
        .change(30, tell(vec![class("trends", "drop-oldest", 90, ""), class("the log", "block", 2, "check the disk")]));
    let attention = story.evaluator.attention(story.view.node);
    let said: Vec<_> = attention.reasons.iter().map(|reason| reason.message.as_str()).collect();
    assert!(attention.level == Level::Warning && said.iter().any(|said| said.contains("2 records")), "{said:?}");
    assert!(said.iter().any(|said| said.contains("3 to 4 of the log (damaged on disk)")), "{said:?}");
    assert!(said.iter().any(|said| said.contains("the log: check the disk")), "{said:?}");
    // It stays lost, and is no news for ever.
    story.change(40, tell(vec![class("the log", "block", 2, "")]));
    story.until(1000);
    story.tells(&[
        (30, "opened", "spool.fault"),
        (30, "opened", "spool.loss"),
        (40, "closed", "spool.fault"),
        (630, "closed", "spool.loss"),
    ]);
}

fn brokers(kafka: KafkaState, trouble: &str) -> impl FnOnce(&mut NodeView) {
    let bridge = BridgeStatus {
        kafka: kafka.into(),
        message: "certificate revoked".into(),
        certificate_trouble: trouble.into(),
        ..BridgeStatus::default()
    };
    move |view| Arc::make_mut(&mut view.status).bridge = Some(Box::new(bridge))
}

#[test]
fn brokers_that_answer_no_bridge_are_told_when_they_were_away_for_a_while() {
    let (mut story, rule) = (Story::new(), "kafka.unreachable");
    story.change(1, brokers(KafkaState::Unreachable, ""));
    story.change(300, brokers(KafkaState::Connected, ""));
    story.change(301, brokers(KafkaState::Unreachable, ""));
    // Nothing is known of a bridge that is away itself: it begins anew.
    story.lost(500);
    story.online(510);
    story.until(1_000);
    story.change(1_001, brokers(KafkaState::Refused, ""));
    story.change(1_002, brokers(KafkaState::Unreachable, ""));
    story.until(1_400);
    story.tells(&[
        (810, "opened", rule),
        (1_001, "opened", "kafka.refused"),
        (1_001, "closed", rule),
        (1_302, "opened", rule),
    ]);
}

#[test]
fn a_broker_that_refuses_a_bridge_is_told_at_once_and_until_one_lets_it_in() {
    let mut story = Story::new();
    story.change(1, brokers(KafkaState::Unreachable, ""));
    story.change(2, brokers(KafkaState::Refused, ""));
    let reason = story.evaluator.attention(story.view.node).reasons.remove(0);
    assert!(reason.level == Level::Critical && reason.message.contains("certificate revoked"), "{reason:?}");
    // That it does not even answer any more is no better.
    story.change(3, brokers(KafkaState::Unreachable, ""));
    story.tells(&[(2, "opened", "kafka.refused")]);
    story.change(4, brokers(KafkaState::Connected, ""));
    story.change(5, brokers(KafkaState::Connected, "the brokers don't take it"));
    story.until(300);
    let attention = story.evaluator.attention(story.view.node);
    assert!(attention.level == Level::Warning && attention.reasons[0].message.contains("don't take it"));
    story.change(301, brokers(KafkaState::Connected, ""));
    let log: Vec<_> = story.log.iter().map(|(_, what, rule, _)| (*what, *rule)).collect();
    let certificate = "kafka.certificate";
    let refused = "kafka.refused";
    assert_eq!(log, [("opened", refused), ("closed", refused), ("opened", certificate), ("closed", certificate)]);
}

fn access(state: State, tries: u32, topics: &[&str]) -> impl FnOnce(&mut NodeView) {
    let topics = topics.iter().map(|&topic| topic.to_owned()).collect();
    let access = Access { topics, state, message: "no superuser".into(), tries };
    move |view| view.kafka_access = Some(Arc::new(access))
}

#[test]
fn access_that_stays_refused_is_told_also_of_a_revoked_bridge() {
    let (mut story, rule) = (Story::new(), "kafka.access");
    story.change(1, access(State::Asked, 0, &["a.*"]));
    story.change(2, access(State::Refused, 1, &["a.*"]));
    story.change(10, access(State::Placed, 0, &["a.*"]));
    story.change(20, access(State::Refused, 1, &["a.*"]));
    // Another attempt is no sign that it is better.
    story.change(35, access(State::Asked, 1, &["a.*"]));
    story.change(40, access(State::Refused, 2, &["a.*"]));
    story.until(60);
    story.tells(&[(50, "opened", rule)]);
    // What an admin says meanwhile may be refused as well.
    story.change(70, access(State::Waiting, 0, &["b.*"]));
    story.change(80, access(State::Placed, 0, &["b.*"]));
    story.change(90, |view| view.revoked_at = Some(at(90)));
    story.change(91, access(State::Refused, 1, &[]));
    story.until(130);
    assert_eq!(story.evaluator.attention(story.view.node).level, Level::Critical);
    story.change(140, access(State::Placed, 0, &[]));
    story.tells(&[(50, "opened", rule), (80, "closed", rule), (121, "opened", rule), (140, "closed", rule)]);
}

#[test]
fn access_that_is_refused_is_critical_as_soon_as_the_bridge_may_do_nothing_any_more() {
    let (mut story, rule) = (Story::new(), "kafka.access");
    let attention = |story: &Story| story.evaluator.attention(story.view.node).reasons.remove(0);
    story.change(1, access(State::Refused, 1, &["a.*"]));
    story.until(40);
    assert_eq!(attention(&story).level, Level::Warning);
    // Revoked: what it was allowed is to be taken away, and nobody has tried that yet, or is there to try it.
    story.change(50, |view| view.revoked_at = Some(at(50)));
    story.change(51, access(State::Waiting, 0, &[]));
    let reason = attention(&story);
    assert!(reason.level == Level::Critical && reason.message.contains("not taken away yet"), "{reason:?}");
    story.change(52, access(State::Asked, 0, &[]));
    story.change(60, access(State::Refused, 1, &[]));
    story.until(200);
    story.change(200, access(State::Placed, 0, &[]));
    story.tells(&[(31, "opened", rule), (51, "closed", rule), (51, "opened", rule), (200, "closed", rule)]);
    // One that nobody has refused anything is not an alert for that it was revoked.
    let mut story = Story::new();
    story.change(1, access(State::Waiting, 0, &["a.*"]));
    story.change(2, access(State::Waiting, 0, &[]));
    story.until(100);
    story.tells(&[]);
}
