//! The bytes of every message, as in `golden.txt`. A change there is a protocol break: nodes and hubs in the field
//! speak those bytes. New lines may be added; a line that is there stays as it is.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use protocol::command::Action;
use protocol::message::*;
use protocol::telemetry::{Decoder, Encoder, Kind, Metric, Row, Schema, Unit};
use protocol::{NodeId, Timestamp, frame};

const GOLDEN: &str = include_str!("golden.txt");

#[test]
fn every_message_has_the_bytes_it_always_had() {
    let mut now = String::new();
    for (name, bytes) in messages().into_iter().chain(samples()) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        now += &format!("{name} {hex}\n");
    }
    let golden: String = GOLDEN.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    assert!(now == golden, "the wire format changed; if that is meant, it is a new protocol version:\n{now}");
}

#[test]
fn the_golden_samples_decode_to_what_was_measured() {
    let mut decoder = Decoder::default();
    let mut rows = Vec::new();
    for line in GOLDEN.lines().filter_map(|line| line.strip_prefix("samples-")) {
        let (_, hex) = line.split_once(' ').expect("name and bytes");
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal"))
            .collect();
        decoder.decode(&bytes, |_, at, values| rows.push(Row { at, values: values.to_vec() })).expect("good");
    }
    assert_eq!(rows, golden_rows().concat());
}

/// An action's bytes, seen to be read back.
fn ordered(action: Action) -> Vec<u8> {
    let bytes = action.to_bytes();
    assert_eq!(Action::from_bytes(&bytes), Ok(action));
    bytes
}

fn bytes<M: Message + Default + PartialEq + std::fmt::Debug>(
    name: &'static str,
    message: M,
) -> (&'static str, Vec<u8>) {
    let mut bytes = Vec::new();
    frame::encode(&message, frame::MAX_TELEMETRY, &mut bytes).expect("small");
    let Ok(frame::Head::Frame { start, .. }) = frame::head(&bytes, frame::MAX_TELEMETRY) else { panic!("{name}") };
    assert_eq!(frame::decode::<M>(&bytes[start..]).expect("its own bytes"), message, "{name}");
    (name, bytes)
}

fn to_hub(name: &'static str, message: to_hub::Message) -> (&'static str, Vec<u8>) {
    bytes(name, ToHub { message: Some(message) })
}

fn to_node(name: &'static str, message: to_node::Message) -> (&'static str, Vec<u8>) {
    bytes(name, ToNode { message: Some(message) })
}

fn recover(name: &'static str, reply: recover_reply::Reply) -> (&'static str, Vec<u8>) {
    bytes(name, RecoverReply { reply: Some(reply) })
}

fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let versions = Some(VersionRange { oldest: 1, newest: 2 });
    let refusal = Refusal { code: RefusalCode::TokenExpired.into(), message: "late".into(), retry_after_ms: 1_500 };
    let clock = ClockReport { offset_ms: -2_500, delay_ms: 40 };
    let stored = Acknowledge { epoch: 0x0102_0304_0506_0708, through: 300 };
    let unsupported = || Unsupported { message: "what?".into() };
    let goodbye = || Goodbye { reason: "drain".into(), retry_after_ms: 250 };
    let upload = |message| Upload { message: Some(message) };
    vec![
        bytes(
            "enroll-request",
            EnrollRequest {
                versions,
                secret: vec![7; 4],
                certificate_request: vec![0x30, 0],
                kind: NodeKind::Bridge.into(),
                name: "press-1".into(),
                software: "hyperfactory-bridge 0.1.0".into(),
            },
        ),
        bytes(
            "enroll-reply-enrolled",
            EnrollReply {
                reply: Some(enroll_reply::Reply::Enrolled(Enrolled {
                    node_id: vec![1; 16],
                    tenant: "acme".into(),
                    name: "press-1".into(),
                    kind: NodeKind::Agent.into(),
                    certificate_chain: vec![vec![1], vec![2]],
                    roots: vec![vec![3]],
                    links: vec![],
                })),
            },
        ),
        bytes("enroll-reply-refusal", EnrollReply { reply: Some(enroll_reply::Reply::Refusal(refusal.clone())) }),
        to_hub(
            "to-hub-hello",
            to_hub::Message::Hello(Hello {
                versions,
                facts: Some(NodeFacts {
                    hostname: "h".into(),
                    os: "Debian 12".into(),
                    kernel: "6.1".into(),
                    architecture: "x86_64".into(),
                    cpus: 2,
                    memory_bytes: 1 << 34,
                    software: "hyperfactory-agent 0.1.0".into(),
                    booted_at_ms: 1_790_000_000_000,
                    keeps_kafka_acls: false,
                }),
                process: 0xfeed,
                sent_at_ms: 1_790_000_000_001,
                spool: Some(SpoolRange { epoch: 1, first: 2, last: 3 }),
                roots: vec![],
                logs: None,
            }),
        ),
        to_hub(
            "to-hub-hello-logs",
            to_hub::Message::Hello(Hello {
                spool: Some(SpoolRange { epoch: 1, first: 2, last: 3 }),
                logs: Some(SpoolRange { epoch: 4, first: 5, last: 6 }),
                ..Hello::default()
            }),
        ),
        to_node(
            "to-node-welcome-logs",
            to_node::Message::Welcome(Welcome { logs: Some(Shipping { stored: Some(stored) }), ..Welcome::default() }),
        ),
        bytes(
            "log-batch",
            LogBatch {
                sources: vec![LogSource { stack: "shop".into(), service: "web".into(), number: 2 }],
                lines: vec![
                    LogLine {
                        source: 0,
                        at_ns: 1_790_000_000_001_000_002,
                        error: true,
                        text: b"no pressure".to_vec(),
                        cut: 7,
                        dropped: 0,
                        until_ns: 0,
                    },
                    LogLine { dropped: 300, until_ns: 1_790_000_000_001_000_003, ..LogLine::default() },
                ],
            },
        ),
        to_hub("to-hub-clock", to_hub::Message::Clock(clock)),
        to_hub(
            "to-hub-renew",
            to_hub::Message::Renew(RenewRequest { certificate_request: vec![0x30, 1], sequence: 0 }),
        ),
        to_hub(
            "to-hub-renew-numbered",
            to_hub::Message::Renew(RenewRequest { certificate_request: vec![0x30, 1], sequence: 300 }),
        ),
        to_hub(
            "to-hub-outcome",
            to_hub::Message::Outcome(CommandOutcome {
                command_id: vec![2; 16],
                state: CommandState::Unsupported.into(),
                message: "no".into(),
                ..CommandOutcome::default()
            }),
        ),
        to_hub("to-hub-unsupported", to_hub::Message::Unsupported(unsupported())),
        to_hub(
            "to-hub-trust-report",
            to_hub::Message::Trust(TrustReport { roots: vec![vec![5; 32]], trouble: "no".into() }),
        ),
        to_hub("to-hub-goodbye", to_hub::Message::Goodbye(goodbye())),
        to_node(
            "to-node-welcome",
            to_node::Message::Welcome(Welcome {
                version: 1,
                session_id: vec![3; 16],
                received_at_ms: 1_790_000_000_002,
                sent_at_ms: 1_790_000_000_003,
                stored: Some(stored),
                hub_version: "0.1.0".into(),
                renew_at_ms: 1_790_000_600_000,
                logs: None,
            }),
        ),
        to_node("to-node-refusal", to_node::Message::Refusal(refusal.clone())),
        to_node(
            "to-node-renewed",
            to_node::Message::Renewed(Renewed {
                certificate_chain: vec![vec![1], vec![2]],
                renew_at_ms: 1_790_000_600_000,
                refusal: Some(refusal.clone()),
                sequence: 0,
            }),
        ),
        to_node(
            "to-node-renewed-numbered",
            to_node::Message::Renewed(Renewed {
                certificate_chain: vec![vec![1]],
                sequence: 301,
                ..Renewed::default()
            }),
        ),
        to_node(
            "to-node-command",
            to_node::Message::Command(Command {
                command_id: vec![2; 16],
                action: "restart".into(),
                arguments: vec![9],
                deadline_ms: 1_790_000_000_004,
                ..Command::default()
            }),
        ),
        to_node("to-node-unsupported", to_node::Message::Unsupported(unsupported())),
        to_node("to-node-goodbye", to_node::Message::Goodbye(goodbye())),
        to_node(
            "to-node-trust",
            to_node::Message::Trust(Trust { roots: vec![vec![0x30, 2]], links: vec![vec![0x30, 3]] }),
        ),
        to_node(
            "to-node-renewal-advice",
            to_node::Message::Renewal(RenewalAdvice { renew_at_ms: 1_790_000_600_000, reason: "rotation".into() }),
        ),
        to_node("to-node-pace", to_node::Message::Pace(Pace { live_for_ms: 60_000 })),
        bytes("upload-batch", upload(upload::Message::Batch(Batch { epoch: 1, sequence: 300, body: vec![8, 1] }))),
        bytes(
            "upload-lost",
            upload(upload::Message::Lost(Lost { epoch: 1, first: 4, last: 9, reason: LostReason::Released.into() })),
        ),
        bytes("upload-snapshot", upload(upload::Message::Snapshot(body(clock)))),
        bytes(
            "recover-request",
            RecoverRequest {
                versions,
                node_id: vec![1; 16],
                spki_sha256: vec![2; 32],
                sequence: 300,
                certificate_request: vec![0x30, 0],
            },
        ),
        recover("recover-challenge", recover_reply::Reply::Challenge(Challenge { nonce: vec![3; 32] })),
        bytes("recover-proof", RecoverProof { signature: vec![0x30, 4] }),
        recover(
            "recover-recovered",
            recover_reply::Reply::Recovered(Recovered {
                certificate_chain: vec![vec![1], vec![2]],
                sequence: 301,
                renew_at_ms: 1_790_000_600_000,
                roots: vec![vec![3]],
                links: vec![vec![4]],
            }),
        ),
        recover("recover-refusal", recover_reply::Reply::Refusal(refusal.clone())),
        bytes("acknowledge", stored),
        bytes("batch-body", body(clock)),
        to_hub(
            "to-hub-outcome-with-output",
            to_hub::Message::Outcome(CommandOutcome {
                command_id: vec![2; 16],
                state: CommandState::Cancelled.into(),
                message: "stopped".into(),
                output_bytes: 300,
                output_dropped: 5,
            }),
        ),
        to_hub(
            "to-hub-output",
            to_hub::Message::Output(CommandOutput { command_id: vec![2; 16], offset: 300, data: b"log".to_vec() }),
        ),
        to_node(
            "to-node-command-timed",
            to_node::Message::Command(Command {
                command_id: vec![2; 16],
                action: "service.restart".into(),
                arguments: ordered(Action::ServiceRestart { stack: "shop".into(), service: "web".into() }),
                deadline_ms: 1_790_000_000_004,
                remaining_ms: 60_000,
                priority: 7,
                signature: None,
            }),
        ),
        to_node(
            "to-node-command-signed",
            to_node::Message::Command(Command {
                command_id: vec![2; 16],
                signature: Some(OperatorSignature {
                    public_key: vec![3; 32],
                    signature: vec![4; 64],
                    not_after_ms: 1_790_000_000_005,
                }),
                ..Command::default()
            }),
        ),
        to_node("to-node-cancel", to_node::Message::Cancel(CancelCommand { command_id: vec![2; 16] })),
        to_node("to-node-outcome-stored", to_node::Message::OutcomeStored(OutcomeStored { command_id: vec![2; 16] })),
        to_node(
            "to-node-start-tail",
            to_node::Message::StartTail(StartTail {
                tail_id: vec![3; 16],
                target: Some(ServiceTarget { stack: "shop".into(), service: "web".into() }),
                since_ms: 1_790_000_000_000,
                until_ms: 0,
                grep: "error".into(),
                lines: 100,
                follow: true,
            }),
        ),
        to_node("to-node-stop-tail", to_node::Message::StopTail(StopTail { tail_id: vec![3; 16] })),
        to_hub("to-hub-kafka", to_hub::Message::Kafka(KafkaRequest { certificate_request: vec![4], in_use: false })),
        to_hub(
            "to-hub-kafka-in-use",
            to_hub::Message::Kafka(KafkaRequest { certificate_request: vec![4], in_use: true }),
        ),
        to_node(
            "to-node-kafka",
            to_node::Message::Kafka(KafkaGrant {
                certificate: vec![1],
                roots: vec![vec![2], vec![3]],
                renew_at_ms: 1_790_000_000_005,
                refusal: None,
            }),
        ),
        to_node(
            "to-node-kafka-refused",
            to_node::Message::Kafka(KafkaGrant { refusal: Some(refusal), ..KafkaGrant::default() }),
        ),
        to_node("to-node-kafka-news", to_node::Message::KafkaNews(KafkaNews { reason: "rotation".into() })),
        bytes(
            "bridge-status",
            BridgeStatus {
                kafka: KafkaState::Refused.into(),
                message: "revoked".into(),
                certificate_not_after_ms: 1_790_000_000_005,
                certificate_trouble: "busy".into(),
                routes: vec![RouteStatus { from: "a/#".into(), to: "a".into(), last_ms: 1_790_000_000_006 }],
                classes: Vec::new(),
                mqtt: Vec::new(),
            },
        ),
        bytes(
            "tail-upload-lines",
            TailUpload {
                message: Some(tail_upload::Message::Lines(TailLines {
                    tail_id: vec![3; 16],
                    lines: vec![TailLine {
                        at_ms: 1_790_000_000_001,
                        number: 2,
                        error: true,
                        text: b"no pressure".to_vec(),
                        cut: 7,
                        dropped: 300,
                    }],
                    dropped: 9,
                })),
            },
        ),
        bytes(
            "tail-upload-end",
            TailUpload {
                message: Some(tail_upload::Message::End(TailEnd {
                    tail_id: vec![3; 16],
                    reason: TailEndReason::Refused.into(),
                    message: "no".into(),
                })),
            },
        ),
        ("action-start", ordered(Action::ServiceStart { stack: "shop".into(), service: "web".into() })),
        ("action-stop", ordered(Action::ServiceStop { stack: "shop".into(), service: "web".into() })),
        ("action-logs", ordered(Action::ServiceLogs { stack: "shop".into(), service: "web".into(), lines: 300 })),
        ("action-diagnostics", ordered(Action::Diagnostics)),
        ("action-interval", ordered(Action::TelemetryInterval { interval: Duration::from_secs(1) })),
        ("action-renew", ordered(Action::RenewCertificate)),
        ("action-drain", ordered(Action::Drain)),
        ("action-backup", ordered(Action::Backup { stack: "shop".into() })),
        ("action-script", ordered(Action::Script { name: "rotate".into() })),
        (
            "action-kafka-acl",
            ordered(Action::KafkaAcl {
                bridge: NodeId::from_bytes(&[7; 16]).expect("an id"),
                topics: vec!["cologne.*".into(), "umh.messages".into()],
            }),
        ),
    ]
}

fn body(clock: ClockReport) -> BatchBody {
    let key = || ServiceKey { stack: "shop".into(), service: "web".into(), number: 1 };
    BatchBody {
        key: true,
        samples: vec![1, 2, 3],
        services: vec![Service {
            key: Some(key()),
            container_id: "c0ffee".into(),
            state: ServiceState::Restarting.into(),
            health: ServiceHealth::Unhealthy.into(),
            restart_count: 5,
            exit_code: Some(-1),
            oom_killed: true,
            image: "web:1".into(),
            image_digest: "sha256:00".into(),
            started_at_ms: 1_790_000_000_005,
            finished_at_ms: 1_790_000_000_006,
            changed_at_ms: 1_790_000_000_007,
            health_output: "503".into(),
        }],
        removed: vec![key()],
        engine: Some(Engine {
            state: EngineState::PermissionDenied.into(),
            version: "20.10".into(),
            message: "add the agent to the group docker".into(),
        }),
        status: Some(NodeStatus {
            clock: Some(clock),
            clock_state: ClockState::Behind.into(),
            spool: Some(SpoolStatus {
                pending_batches: 1,
                bytes: 2,
                capacity_bytes: 3,
                lost_batches: 4,
                fault: SpoolFault::DiskFull.into(),
                message: "free some space".into(),
            }),
            bridge: None,
        }),
    }
}

/// A key batch and two delta batches: gauges and counters, appearing and vanishing, coarse and extreme.
fn golden_rows() -> [Vec<Row>; 3] {
    let row = |at: i64, values: [Option<i64>; 5]| Row {
        at: Timestamp::from_millis(1_790_000_000_000 + at),
        values: values.to_vec(),
    };
    [
        vec![row(0, [Some(2_500), Some(4_096), None, Some(1 << 40), Some(7)])],
        vec![
            row(10_000, [Some(2_600), Some(8_192), Some(i64::MIN), Some((1 << 40) + 1_500), Some(7)]),
            row(20_003, [Some(2_450), Some(8_192), Some(i64::MAX), Some((1 << 40) + 3_100), Some(7)]),
            row(30_000, [Some(2_500), None, Some(0), Some((1 << 40) + 4_500), Some(8)]),
        ],
        vec![row(40_000, [Some(-2_500), Some(12_288), Some(0), Some(12), Some(8)])],
    ]
}

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let metric = |name: &str, unit, kind, decimals| Metric { name: name.into(), unit, kind, decimals };
    let metrics = vec![
        (metric("cpu.busy", Unit::Ratio, Kind::Gauge, 4), vec!["".into()]),
        (metric("disk.used", Unit::Kibibytes, Kind::Gauge, 0), vec!["/".into(), "/var".into()]),
        (metric("network.sent", Unit::Bytes, Kind::Counter, 0), vec!["eth0".into()]),
        (metric("network.errors", Unit::Count, Kind::Counter, 0), vec!["eth0".into()]),
    ];
    let schema = Arc::new(Schema::new(metrics).expect("good"));
    let mut encoder = Encoder::new();
    let names = ["samples-key", "samples-delta-1", "samples-delta-2"];
    names
        .into_iter()
        .zip(golden_rows())
        .map(|(name, rows)| (name, encoder.encode(&schema, &rows, false).bytes))
        .collect()
}
