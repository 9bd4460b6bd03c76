//! The control stream: both ends against each other, and each against a peer that breaks the rules.

use std::time::Duration;

use protocol::message::{
    Acknowledge, Command, CommandState, Goodbye, Hello, KafkaGrant, Pace, Refusal, RefusalCode, RenewRequest,
    RenewalAdvice, Renewed, Shipping, SpoolRange, StartTail, ToHub, ToNode, Trust, TrustReport, Unsupported,
    VersionRange, Welcome, to_hub, to_node,
};
use protocol::session::{
    ClockReading, Granted, HELLO_DEADLINE, Held, HubOutput, HubSession, MAX_LIVE, NodeOutput, NodeSession,
    RENEW_DEADLINE, SessionError,
};
use protocol::tail::Tail;
use protocol::{SessionId, TailId, Timestamp};

const V1: VersionRange = VersionRange { oldest: 1, newest: 1 };
const SPOOL: SpoolRange = SpoolRange { epoch: 7, first: 3, last: 9 };

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(1_790_000_000_000 + millis)
}

fn id() -> SessionId {
    SessionId::new(at(0), [5; 10])
}

fn node(versions: VersionRange) -> (NodeSession, ToHub) {
    NodeSession::open(versions, Default::default(), 42, SPOOL, &[], at(0))
}

fn hello(node_versions: VersionRange, hub_versions: VersionRange) -> (HubSession, Vec<HubOutput>) {
    let mut hub = HubSession::open(hub_versions, at(0));
    let outputs = hub.receive(node(node_versions).1, at(100)).expect("a good Hello");
    (hub, outputs)
}

fn running() -> (NodeSession, HubSession) {
    let (mut node, _) = node(V1);
    let (mut hub, _) = hello(V1, V1);
    let welcome = hub.welcome(id(), None, "hub 1", None, at(110)).expect("a Hello waits");
    node.receive(welcome, at(200)).expect("a good Welcome");
    (node, hub)
}

#[test]
fn a_node_is_welcomed_and_learns_its_clocks_offset() {
    let (mut node, hello) = node(V1);
    let mut hub = HubSession::open(V1, at(3_000));
    // The hub's clock is 3 s behind the node's in this test's time, and each way takes 40 ms.
    let outputs = hub.receive(hello, at(-2_960)).expect("good");
    let [HubOutput::Hello(said)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((said.version, said.process, said.spool), (1, 42, SPOOL));
    assert!(!hub.is_running());
    let stored = Some(Acknowledge { epoch: 7, through: 5 });
    let welcome = hub.welcome(id(), stored, "hub 1", Some(at(9)), at(-2_950)).expect("a Hello waits");
    assert!(hub.is_running());
    assert!(hub.welcome(id(), None, "hub 1", None, at(0)).is_none(), "welcomed once");

    let outputs = node.receive(welcome, at(90)).expect("good");
    let clock = ClockReading { offset_ms: 3_000, delay_ms: 80 };
    let [NodeOutput::Send(report), NodeOutput::Welcomed(welcomed)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((welcomed.session, welcomed.stored, welcomed.clock), (id(), stored, clock));
    assert_eq!(welcomed.renew_at, Some(at(9)));
    assert_eq!(hub.receive(report.clone(), at(0)), Ok(vec![HubOutput::Clock(clock)]));
}

#[test]
fn logs_are_shipped_where_both_speak_of_them() {
    let logs = SpoolRange { epoch: 8, first: 2, last: 4 };
    let stored = Some(Acknowledge { epoch: 8, through: 1 });
    for (shipped, taken) in [(Some(logs), true), (Some(logs), false), (None, false)] {
        let held = Held { telemetry: SPOOL, logs: shipped };
        let (mut node, hello) = NodeSession::open(V1, Default::default(), 42, held, &[], at(0));
        let mut hub = HubSession::open(V1, at(0));
        let outputs = hub.receive(hello, at(1)).expect("good");
        let [HubOutput::Hello(said)] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!(said.logs, shipped);
        if taken {
            hub.take_logs(stored);
        }
        let welcome = hub.welcome(id(), None, "hub 1", None, at(2)).expect("a Hello waits");
        let outputs = node.receive(welcome, at(3)).expect("good");
        let [_, NodeOutput::Welcomed(welcomed)] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!(welcomed.logs, taken.then_some(Shipping { stored }));
    }
}

#[test]
fn peers_choose_the_newest_version_both_speak() {
    let (_, outputs) = hello(VersionRange { oldest: 1, newest: 3 }, VersionRange { oldest: 2, newest: 5 });
    let [HubOutput::Hello(said)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(said.version, 3);
}

#[test]
fn a_node_too_old_or_too_new_is_told_what_to_update() {
    let cases = [((1, 2), (3, 4), "update the node"), ((5, 6), (3, 4), "update the hub")];
    for (node, hub, advice) in cases {
        let range = |(oldest, newest)| VersionRange { oldest, newest };
        let (session, outputs) = hello(range(node), range(hub));
        let [HubOutput::Send(answer), HubOutput::Over(_)] = &outputs[..] else { panic!("{outputs:?}") };
        let Some(to_node::Message::Refusal(refusal)) = &answer.message else { panic!("{answer:?}") };
        assert_eq!(refusal.code(), RefusalCode::Version);
        assert!(refusal.message.ends_with(advice), "{}", refusal.message);
        assert!(!session.is_running());

        let (mut node, _) = self::node(range(node));
        assert_eq!(node.receive(answer.clone(), at(9)), Ok(vec![NodeOutput::Refused(refusal.clone())]));
        assert_eq!(node.deadline(), None);
    }
}

#[test]
fn a_welcome_in_a_version_not_offered_is_refused() {
    let (mut node, _) = node(V1);
    let welcome = Welcome { version: 2, session_id: vec![0; 16], ..Welcome::default() };
    let error = node.receive(to_node::Message::Welcome(welcome).into(), at(1)).expect_err("not offered");
    assert!(matches!(error, SessionError::Malformed { message: "Welcome", .. }));
    assert!(!node.is_running());
}

#[test]
fn silence_ends_at_the_hello_deadline() {
    let deadline = at(0).plus(HELLO_DEADLINE);
    let mut hub = HubSession::open(V1, at(0));
    assert_eq!(hub.deadline(), Some(deadline));
    assert_eq!(hub.tick(deadline.minus(Duration::from_millis(1))), Ok(()));
    assert!(matches!(hub.tick(deadline), Err(SessionError::Deadline { awaited: "Hello", .. })));
    assert_eq!((hub.deadline(), hub.tick(deadline)), (None, Ok(())));

    let (mut node, _) = node(V1);
    assert_eq!(node.deadline(), Some(deadline));
    assert_eq!(node.tick(at(0)), Ok(None));
    assert!(matches!(node.tick(deadline), Err(SessionError::Deadline { .. })));
    assert_eq!(node.deadline(), None);
}

#[test]
fn anything_before_hello_ends_the_session() {
    let mut hub = HubSession::open(V1, at(0));
    let renew = to_hub::Message::Renew(RenewRequest::default());
    assert_eq!(
        hub.receive(renew.into(), at(1)),
        Err(SessionError::Unexpected { found: "RenewRequest", expected: "Hello" })
    );
    assert_eq!(hub.receive(node(V1).1, at(2)), Ok(vec![]), "over is over");
}

#[test]
fn a_hello_comes_once_and_whole() {
    let (_, mut hub) = running();
    assert!(matches!(hub.receive(node(V1).1, at(2)), Err(SessionError::Unexpected { found: "Hello", .. })));
    let whole = Hello { versions: Some(V1), spool: Some(SPOOL), ..Hello::default() };
    let bad = |first, last| Some(SpoolRange { epoch: 1, first, last });
    for hello in [
        Hello { versions: None, ..whole.clone() },
        Hello { spool: None, ..whole.clone() },
        Hello { spool: bad(0, 0), ..whole.clone() },
        Hello { spool: bad(9, 7), ..whole.clone() },
        Hello { logs: bad(9, 7), ..whole.clone() },
    ] {
        let mut hub = HubSession::open(V1, at(0));
        let result = hub.receive(to_hub::Message::Hello(hello).into(), at(1));
        assert!(matches!(result, Err(SessionError::Malformed { .. })), "{result:?}");
    }
    let empty = Hello { spool: bad(8, 7), ..whole };
    assert!(HubSession::open(V1, at(0)).receive(to_hub::Message::Hello(empty).into(), at(1)).is_ok());
}

#[test]
fn a_node_that_does_not_wait_for_its_welcome_is_cut_off() {
    let (mut hub, _) = hello(V1, V1);
    let result = hub.receive(to_hub::Message::Renew(RenewRequest::default()).into(), at(1));
    assert!(matches!(result, Err(SessionError::Unexpected { .. })));
}

#[test]
fn a_renewal_is_asked_for_answered_and_asked_for_again() {
    let (mut node, mut hub) = running();
    let ask = node.renew(vec![1, 2], 3, at(300)).expect("running");
    assert!(node.renew(vec![1, 2], 3, at(301)).is_none(), "one at a time");
    assert_eq!(
        hub.receive(ask.clone(), at(310)),
        Ok(vec![HubOutput::Renew { certificate_request: vec![1, 2], sequence: 3 }])
    );
    let busy = hub.receive(ask, at(311)).expect("tolerated");
    let [HubOutput::Send(ToNode { message: Some(to_node::Message::Renewed(busy)) })] = &busy[..] else {
        panic!("{busy:?}")
    };
    assert_eq!(busy.refusal.as_ref().map(Refusal::code), Some(RefusalCode::Busy));

    let answer = hub.renewed(Renewed { certificate_chain: vec![vec![3]], sequence: 4, ..Renewed::default() });
    let renewed = NodeOutput::Renewed { certificate_chain: vec![vec![3]], sequence: 4, renew_at: None };
    assert_eq!(node.receive(answer, at(320)), Ok(vec![renewed]));
    assert_eq!(node.deadline(), None);

    let ask = node.renew(vec![4], 4, at(400)).expect("the last one is answered");
    assert!(hub.receive(ask, at(410)).is_ok_and(|outputs| matches!(outputs[..], [HubOutput::Renew { .. }])));
    let deadline = at(400).plus(RENEW_DEADLINE);
    assert_eq!(node.deadline(), Some(deadline));
    assert_eq!(node.tick(deadline), Ok(Some(NodeOutput::RenewalUnanswered)));
    assert!(node.renew(vec![4], 4, deadline).is_some());

    let refusal = Refusal { code: RefusalCode::NodeRevoked.into(), ..Refusal::default() };
    let answer = hub.renewed(Renewed { refusal: Some(refusal.clone()), ..Renewed::default() });
    assert_eq!(node.receive(answer, deadline), Ok(vec![NodeOutput::RenewalRefused(refusal)]));
}

#[test]
fn an_unknown_command_gets_its_outcome() {
    let (mut node, mut hub) = running();
    let command = Command { command_id: vec![9; 16], action: "fly".repeat(50), ..Command::default() };
    let outputs = node.receive(to_node::Message::Command(command).into(), at(1)).expect("answered");
    let [NodeOutput::Send(answer)] = &outputs[..] else { panic!("{outputs:?}") };
    let outputs = hub.receive(answer.clone(), at(2)).expect("good");
    let [HubOutput::Outcome(outcome)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((outcome.state(), &outcome.command_id[..]), (CommandState::Unsupported, &[9; 16][..]));
    assert!(outcome.message.len() < 160, "an action is not echoed at length: {}", outcome.message);
}

#[test]
fn a_tail_is_begun_and_ended_and_one_that_makes_no_sense_is_answered() {
    let (mut node, hub) = running();
    let tail = Tail {
        id: TailId::new(at(0), [7; 10]),
        stack: "shop".into(),
        service: "web".into(),
        since: None,
        until: None,
        grep: None,
        lines: 10,
        follow: true,
    };
    let start = hub.start_tail(&tail).expect("running");
    assert_eq!(node.receive(start, at(1)), Ok(vec![NodeOutput::StartTail(tail.clone())]));
    let stop = hub.stop_tail(tail.id).expect("running");
    assert_eq!(node.receive(stop, at(2)), Ok(vec![NodeOutput::StopTail(tail.id)]));

    let wrong = Tail { stack: "../shop".into(), ..tail };
    let answer = node.receive(hub.start_tail(&wrong).expect("running"), at(3)).expect("tolerated");
    let [NodeOutput::Send(ToHub { message: Some(to_hub::Message::Unsupported(why)) })] = &answer[..] else {
        panic!("{answer:?}")
    };
    assert!(why.message.contains("stack"), "{}", why.message);
    let unread = StartTail { tail_id: vec![1; 3], ..StartTail::default() };
    assert!(node.receive(to_node::Message::StartTail(unread).into(), at(4)).is_err());
}

#[test]
fn an_unknown_message_is_answered_and_the_answer_is_not() {
    let (mut node, mut hub) = running();
    let answer = hub.receive(ToHub { message: None }, at(1)).expect("tolerated");
    let [HubOutput::Send(unsupported)] = &answer[..] else { panic!("{answer:?}") };
    let heard = node.receive(unsupported.clone(), at(2)).expect("tolerated");
    assert!(matches!(&heard[..], [NodeOutput::Unsupported(_)]));

    let answer = node.receive(ToNode { message: None }, at(3)).expect("tolerated");
    let [NodeOutput::Send(unsupported)] = &answer[..] else { panic!("{answer:?}") };
    let heard = hub.receive(unsupported.clone(), at(4)).expect("tolerated");
    assert!(matches!(&heard[..], [HubOutput::Unsupported(_)]));
    assert!(node.is_running() && hub.is_running());
}

#[test]
fn an_unknown_message_before_the_hello_is_answered_too() {
    let mut hub = HubSession::open(V1, at(0));
    let answer = hub.receive(ToHub { message: None }, at(1)).expect("tolerated");
    assert!(matches!(&answer[..], [HubOutput::Send(ToNode { message: Some(to_node::Message::Unsupported(_)) })]));
    let unsupported = to_hub::Message::Unsupported(Unsupported::default());
    assert!(hub.receive(unsupported.into(), at(1)).is_ok());
    assert_eq!(hub.deadline(), Some(at(0).plus(HELLO_DEADLINE)), "it does not stand for a Hello");
}

#[test]
fn goodbye_ends_both_sides_with_its_reason() {
    let (mut node, mut hub) = running();
    let bye = hub.goodbye("upgrade", Some(Duration::from_secs(3)));
    let heard = NodeOutput::Goodbye { reason: "upgrade".into(), retry_after: Some(Duration::from_secs(3)) };
    assert_eq!(node.receive(bye, at(1)), Ok(vec![heard]));
    assert!(!node.is_running() && !hub.is_running());
    assert!(node.renew(vec![], 4, at(2)).is_none() && hub.live(MAX_LIVE).is_none());
    let late = to_node::Message::Pace(Pace { live_for_ms: 1 });
    assert_eq!(node.receive(late.into(), at(3)), Ok(vec![]));

    let (mut node, mut hub) = running();
    assert_eq!(hub.receive(node.goodbye("stopped"), at(1)), Ok(vec![HubOutput::Over("stopped".into())]));
    let soon = hub.goodbye("", Some(Duration::from_nanos(1)));
    assert_eq!(soon, to_node::Message::Goodbye(Goodbye { reason: String::new(), retry_after_ms: 1 }).into());
}

#[test]
fn live_view_is_bounded() {
    let (mut node, hub) = running();
    let mut live = |duration| node.receive(hub.live(duration).expect("running"), at(0)).expect("good");
    assert_eq!(live(Duration::from_secs(5)), [NodeOutput::LiveUntil(at(5_000))]);
    assert_eq!(live(Duration::MAX), [NodeOutput::LiveUntil(at(0).plus(MAX_LIVE))]);
}

#[test]
fn a_second_welcome_ends_the_session() {
    let (mut node, _) = running();
    let welcome = to_node::Message::Welcome(Welcome::default());
    assert!(matches!(node.receive(welcome.into(), at(1)), Err(SessionError::Unexpected { found: "Welcome", .. })));
    assert!(!node.is_running());
}

#[test]
fn a_list_of_roots_reaches_the_node_and_its_report_the_hub_within_bounds() {
    let (mut node, mut hub) = running();
    let wanted = Trust { roots: vec![vec![1]], links: vec![vec![2]] };
    let message = hub.trust(wanted.clone()).expect("running");
    assert_eq!(node.receive(message, at(300)), Ok(vec![NodeOutput::Trust(wanted)]));
    let report = node.trusts(&[[7; 32]], String::new());
    let trusts = HubOutput::Trusts { roots: vec![[7; 32]], trouble: String::new() };
    assert_eq!(hub.receive(report, at(310)), Ok(vec![trusts]));

    let roots = [vec![vec![1; 31], vec![2; 33]], vec![vec![3; 32]; 100]].concat();
    let report = to_hub::Message::Trust(TrustReport { roots, trouble: "x".repeat(10_000) });
    let outputs = hub.receive(report.into(), at(320)).expect("a bad report is no break of the rules");
    let [HubOutput::Trusts { roots, trouble }] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((roots.as_slice(), trouble.len()), (&[[3; 32]; 8][..], 300));
    assert!(HubSession::open(V1, at(0)).trust(Trust::default()).is_none(), "not before the Welcome");
}

#[test]
fn advice_to_renew_reaches_the_node_with_a_reason_within_bounds() {
    let (mut node, hub) = running();
    let message = hub.advise(at(5_000), "rotation").expect("running");
    let advised = NodeOutput::RenewalAdvised { renew_at: Some(at(5_000)), reason: "rotation".into() };
    assert_eq!(node.receive(message, at(300)), Ok(vec![advised]));

    let wordy = RenewalAdvice { renew_at_ms: 0, reason: "x".repeat(10_000) };
    let outputs = node.receive(to_node::Message::Renewal(wordy).into(), at(310)).expect("good");
    let [NodeOutput::RenewalAdvised { renew_at: None, reason }] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(reason.len(), 300);

    assert!(HubSession::open(V1, at(0)).advise(at(0), "").is_none(), "not before the Welcome");
    let (mut greeting, _) = self::node(V1);
    let early = to_node::Message::Renewal(RenewalAdvice::default());
    let error = greeting.receive(early.into(), at(1)).expect_err("not before the Welcome");
    assert!(matches!(error, SessionError::Unexpected { found: "RenewalAdvice", .. }));
}

#[test]
fn a_kafka_certificate_is_asked_for_beside_a_renewal_and_answered_once() {
    let (mut node, mut hub) = running();
    let asked = node.kafka(vec![1], true, at(300)).expect("running");
    assert!(node.kafka(vec![1], true, at(300)).is_none(), "one at a time");
    let renewal = node.renew(vec![2], 1, at(301)).expect("a renewal goes on beside it");
    let request = HubOutput::Kafka { certificate_request: vec![1], in_use: true };
    assert_eq!(hub.receive(asked.clone(), at(310)), Ok(vec![request]));
    assert!(matches!(&hub.receive(renewal, at(310)).expect("good")[..], [HubOutput::Renew { .. }]));
    let busy = hub.receive(asked, at(311)).expect("good");
    let [HubOutput::Send(busy)] = &busy[..] else { panic!("{busy:?}") };
    let outputs = node.receive(busy.clone(), at(312)).expect("good");
    assert!(matches!(&outputs[..], [NodeOutput::KafkaRefused(refusal)] if refusal.code() == RefusalCode::Busy));

    let grant =
        KafkaGrant { certificate: vec![3], roots: vec![vec![4]; 9], renew_at_ms: at(500).millis(), refusal: None };
    let granted = Granted { certificate: vec![3], roots: vec![vec![4]; 4], renew_at: Some(at(500)) };
    assert_eq!(node.receive(hub.kafka(grant), at(320)), Ok(vec![NodeOutput::Kafka(granted)]));
    let again = node.kafka(vec![5], false, at(330)).expect("the first was answered");
    assert!(matches!(&hub.receive(again, at(331)).expect("good")[..], [HubOutput::Kafka { .. }]));

    // Of two that are not answered, each is told.
    assert_eq!(node.deadline(), Some(at(301).plus(RENEW_DEADLINE)));
    let late = at(330).plus(RENEW_DEADLINE);
    assert_eq!(node.tick(late), Ok(Some(NodeOutput::RenewalUnanswered)));
    assert_eq!(node.tick(late), Ok(Some(NodeOutput::KafkaUnanswered)));
    assert_eq!(node.deadline(), None);

    let news = hub.kafka_news("rotation").expect("running");
    assert_eq!(node.receive(news, at(340)), Ok(vec![NodeOutput::KafkaNews("rotation".into())]));
    assert!(HubSession::open(V1, at(0)).kafka_news("").is_none(), "not before the Welcome");
}
