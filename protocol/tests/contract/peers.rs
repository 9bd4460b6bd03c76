//! A peer two minor versions newer or older: what it adds is tolerated and answered, what it lacks is not missed.

use prost::Message;
use protocol::message::{
    BatchBody, Hello, NodeFacts, SpoolRange, ToHub, Unsupported, Upload, VersionRange, Welcome, to_hub, to_node,
};
use protocol::session::{HubOutput, HubSession, NodeOutput, NodeSession};
use protocol::{Timestamp, frame, version};

/// What a later version may send: fields and cases that this one has no numbers for.
mod later {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ToHub {
        #[prost(message, optional, tag = "1")]
        pub(super) hello: Option<Hello>,
        #[prost(message, optional, tag = "60")]
        pub(super) question: Option<Question>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Hello {
        #[prost(message, optional, tag = "1")]
        pub(super) versions: Option<super::VersionRange>,
        #[prost(message, optional, tag = "5")]
        pub(super) spool: Option<super::SpoolRange>,
        #[prost(string, tag = "70")]
        pub(super) region: String,
        #[prost(fixed64, repeated, tag = "71")]
        pub(super) features: Vec<u64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Question {
        #[prost(string, tag = "1")]
        pub(super) text: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ToNode {
        #[prost(message, optional, tag = "60")]
        pub(super) question: Option<Question>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Upload {
        #[prost(message, optional, tag = "60")]
        pub(super) question: Option<Question>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct BatchBody {
        #[prost(bool, tag = "1")]
        pub(super) key: bool,
        #[prost(message, repeated, tag = "3")]
        pub(super) services: Vec<Service>,
        #[prost(message, repeated, tag = "60")]
        pub(super) volumes: Vec<Question>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Service {
        #[prost(int32, tag = "3")]
        pub(super) state: i32,
        #[prost(double, tag = "60")]
        pub(super) score: f64,
    }
}

const SPOOL: SpoolRange = SpoolRange { epoch: 1, first: 1, last: 0 };

fn question() -> Option<later::Question> {
    Some(later::Question { text: "why?".into() })
}

fn now() -> Timestamp {
    Timestamp::from_millis(1_790_000_000_000)
}

fn seen<M: Message + Default>(later: &impl Message) -> M {
    frame::decode(&later.encode_to_vec()).expect("what is unknown is skipped")
}

#[test]
fn a_node_two_minor_versions_newer_is_welcomed_and_its_news_answered() {
    let newer = VersionRange { oldest: 1, newest: 3 };
    let hello = later::Hello { versions: Some(newer), spool: Some(SPOOL), region: "eu".into(), features: vec![1, 2] };
    let mut hub = HubSession::open(version::SPOKEN, now());
    let outputs = hub.receive(seen(&later::ToHub { hello: Some(hello), question: None }), now()).expect("good");
    assert!(matches!(&outputs[..], [HubOutput::Hello(hello)] if hello.version == 1));
    hub.welcome(protocol::SessionId::new(now(), [0; 10]), None, "hub", None, now()).expect("waits");

    let outputs = hub.receive(seen(&later::ToHub { hello: None, question: question() }), now()).expect("tolerated");
    let [HubOutput::Send(answer)] = &outputs[..] else { panic!("{outputs:?}") };
    assert!(matches!(answer.message, Some(to_node::Message::Unsupported(_))));
    assert!(hub.is_running());
}

#[test]
fn a_hub_two_minor_versions_newer_is_understood_and_its_news_answered() {
    let (mut node, hello) = NodeSession::open(version::SPOKEN, NodeFacts::default(), 1, SPOOL, &[], now());
    let mut hub = HubSession::open(VersionRange { oldest: 1, newest: 3 }, now());
    hub.receive(hello, now()).expect("good");
    let welcome = hub.welcome(protocol::SessionId::new(now(), [0; 10]), None, "hub", None, now()).expect("waits");
    let mut bytes = welcome.encode_to_vec();
    bytes.extend([0xa2, 0x06, 2, b'h', b'i']); // field 100 of the envelope
    node.receive(frame::decode(&bytes).expect("skipped"), now()).expect("good");

    let outputs = node.receive(seen(&later::ToNode { question: question() }), now()).expect("tolerated");
    let [NodeOutput::Send(answer)] = &outputs[..] else { panic!("{outputs:?}") };
    assert!(matches!(answer.message, Some(to_hub::Message::Unsupported(_))));
    assert!(node.is_running());
}

#[test]
fn an_older_peer_that_lacks_optional_fields_is_understood() {
    // The oldest Hello that may be: versions and spool, nothing else.
    let hello = Hello { versions: Some(version::SPOKEN), spool: Some(SPOOL), ..Hello::default() };
    let mut hub = HubSession::open(VersionRange { oldest: 1, newest: 3 }, now());
    assert!(hub.receive(to_hub::Message::Hello(hello).into(), now()).is_ok());

    let (mut node, _) =
        NodeSession::open(VersionRange { oldest: 1, newest: 3 }, NodeFacts::default(), 1, SPOOL, &[], now());
    let welcome = Welcome { version: 1, session_id: vec![0; 16], ..Welcome::default() };
    assert!(node.receive(to_node::Message::Welcome(welcome).into(), now()).is_ok());
    assert!(node.is_running());
}

#[test]
fn telemetry_of_a_newer_node_is_read_as_far_as_it_is_known() {
    let upload: Upload = seen(&later::Upload { question: question() });
    assert_eq!(upload.message, None);
    let body: BatchBody = seen(&later::BatchBody {
        key: true,
        services: vec![later::Service { state: 99, score: 0.5 }],
        volumes: question().into_iter().collect(),
    });
    assert!(body.key);
    assert_eq!(body.services[0].state, 99, "the number is kept");
    assert_eq!(body.services[0].state(), protocol::message::ServiceState::Unspecified);
}

#[test]
fn unsupported_is_never_answered() {
    let unsupported = || Unsupported { message: "?".into() };
    let (mut node, _) = NodeSession::open(version::SPOKEN, NodeFacts::default(), 1, SPOOL, &[], now());
    let outputs = node.receive(to_node::Message::Unsupported(unsupported()).into(), now()).expect("tolerated");
    assert_eq!(outputs, [NodeOutput::Unsupported("?".into())]);
    let mut hub = HubSession::open(version::SPOKEN, now());
    let message: ToHub = to_hub::Message::Unsupported(unsupported()).into();
    assert_eq!(hub.receive(message, now()), Ok(vec![HubOutput::Unsupported("?".into())]));
}
