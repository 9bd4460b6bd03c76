use protocol::message::ClassStatus;
use protocol::session::ClockReading;
use protocol::{SessionId, Timestamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::*;
use crate::link::{LinkState, Trouble, TroubleKind};

struct Probed {
    address: SocketAddr,
    pulse: Arc<Pulse>,
    interval: watch::Sender<Duration>,
    link: watch::Sender<LinkStatus>,
    spool: watch::Sender<SpoolStatus>,
    logs: watch::Sender<SpoolStatus>,
    bridge: watch::Sender<BridgeStatus>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

impl Probed {
    async fn start() -> Self {
        Self::of(false).await
    }

    /// An agent, or a bridge.
    async fn of(bridge: bool) -> Self {
        let (pulse, counters) = (Arc::<Pulse>::default(), Arc::<Counters>::default());
        counters.session();
        counters.sent(100, false);
        let (link, spool) = (watch::Sender::new(up()), watch::Sender::new(SpoolStatus::default()));
        let logs = watch::Sender::new(SpoolStatus::default());
        let brokers = watch::Sender::new(BridgeStatus::default());
        let interval = watch::Sender::new(Duration::from_secs(10));
        let vitals = Vitals {
            software: "hyperfactory-agent test".into(),
            interval: interval.subscribe(),
            pulse: Arc::clone(&pulse),
            link: link.subscribe(),
            counters,
            spool: spool.subscribe(),
            logs: Some(logs.subscribe()),
            bridge: bridge.then(|| brokers.subscribe()),
        };
        let server = Server::bind(ANY_PORT, vitals).await.expect("a free port");
        let (address, tasks, shutdown) =
            (server.local_addr().expect("bound"), TaskTracker::new(), CancellationToken::new());
        tasks.spawn(server.serve(shutdown.clone()));
        tasks.close();
        Self { address, pulse, interval, link, spool, logs, bridge: brokers, tasks, shutdown }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.expect("listening");
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, body.to_owned())
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.wait().await;
    }
}

fn up() -> LinkStatus {
    LinkStatus {
        state: LinkState::Up {
            session: SessionId::new(Timestamp::from_millis(1), [1; 10]),
            remote: ANY_PORT,
            hub_version: "0.1.0".into(),
        },
        since: Timestamp::from_millis(0),
        last_up: None,
        clock: Some(ClockReading { offset_ms: -2_500, delay_ms: 10 }),
        certificate_not_after: Timestamp::from_millis(1_800_000_000_000),
        renew_at: Timestamp::from_millis(1_799_000_000_000),
        renewal_trouble: None,
    }
}

fn waiting(last_up: Option<Instant>) -> LinkStatus {
    let trouble = Trouble { kind: TroubleKind::Unreachable, message: "no answer over UDP".into() };
    LinkStatus { state: LinkState::Waiting { trouble, until: Timestamp::from_millis(0) }, last_up, ..up() }
}

#[tokio::test]
async fn a_frozen_sampling_loop_shows_although_the_process_answers() {
    let probed = Probed::start().await;
    assert_eq!(probed.get("/healthz").await, (200, "ok\n".into()));
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    let (status, reason) = probed.get("/healthz").await;
    assert_eq!(status, 503);
    assert!(reason.contains("31 s old") && reason.contains("restart"), "{reason}");
    assert_eq!(probed.get("/readyz").await.0, 503);
    // The hub has it measure less often.
    probed.interval.send_replace(Duration::from_secs(60));
    assert_eq!(probed.get("/healthz").await.0, 200);
    probed.interval.send_replace(Duration::from_secs(10));
    assert_eq!(probed.get("/healthz").await.0, 503);
    probed.pulse.beat();
    assert_eq!(probed.get("/healthz").await.0, 200);
    probed.stop().await;
}

#[tokio::test]
async fn a_bridge_tells_what_it_drops_of_each_class() {
    let probed = Probed::of(true).await;
    let class = |name: &str, first| ClassStatus {
        name: name.into(),
        overflow: "drop-oldest".into(),
        dropped: 40,
        first,
        last: first + 9,
        reason: "too old".into(),
        fault: if first > 0 { String::new() } else { "the disk is full".into() },
    };
    let classes = vec![class("trends", 31), class("events", 0)];
    probed.bridge.send_replace(BridgeStatus { classes, ..BridgeStatus::default() });
    let (_, metrics) = probed.get("/metrics").await;
    for name in ["trends", "events"] {
        let sample = format!("hyperfactory_class_dropped_total{{class=\"{name}\",overflow=\"drop-oldest\"}} 40\n");
        assert!(metrics.contains(&sample), "{metrics}");
    }
    let report: Report = serde_json::from_str(&probed.get("/status").await.1).expect("a report");
    let classes = report.kafka.expect("a bridge").classes;
    let told: Vec<_> = classes.into_iter().map(|class| (class.name, class.last, class.trouble)).collect();
    let (last, trouble) = (Some("31–40 (too old)".into()), Some("the disk is full".into()));
    assert_eq!(told, [("trends".into(), last, None), ("events".into(), None, trouble)]);
    probed.stop().await;
}

#[tokio::test]
async fn ready_means_a_session_or_a_short_gap_in_it_and_a_spool_that_takes_writes() {
    let probed = Probed::start().await;
    assert_eq!(probed.get("/readyz").await.0, 200);
    probed.link.send_replace(waiting(Some(Instant::now())));
    assert_eq!(probed.get("/readyz").await.0, 200, "a reconnect is no outage");
    probed.link.send_replace(waiting(None));
    let (status, reason) = probed.get("/readyz").await;
    assert!(status == 503 && reason.contains("no answer over UDP"), "{reason}");

    probed.link.send_replace(up());
    let full = SpoolStatus {
        fault: SpoolFault::DiskFull.into(),
        message: "the disk is full: free some space".into(),
        ..SpoolStatus::default()
    };
    probed.spool.send_replace(full);
    let (status, reason) = probed.get("/readyz").await;
    assert!(status == 503 && reason.contains("free some space"), "{reason}");
    assert_eq!(probed.get("/healthz").await.0, 200);
    probed.stop().await;
}

#[tokio::test]
async fn metrics_tell_session_spool_clock_and_certificate() {
    let probed = Probed::start().await;
    probed.spool.send_replace(SpoolStatus { pending_batches: 7, lost_batches: 2, ..SpoolStatus::default() });
    probed.logs.send_replace(SpoolStatus { pending_batches: 3, lost_batches: 4, bytes: 5, ..SpoolStatus::default() });
    let (status, text) = probed.get("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "hyperfactory_session_up 1",
        "hyperfactory_sessions_total 1",
        "hyperfactory_reconnects_total 0",
        "hyperfactory_batches_sent_total 1",
        "hyperfactory_batch_bytes_sent_total 100",
        "hyperfactory_batches_pending 7",
        "hyperfactory_batches_lost_total 2",
        "hyperfactory_log_batches_pending 3",
        "hyperfactory_log_batches_lost_total 4",
        "hyperfactory_log_spool_bytes 5",
        "hyperfactory_clock_offset_seconds -2.5",
        "hyperfactory_certificate_not_after_seconds 1800000000",
        "hyperfactory_build_info{software=\"hyperfactory-agent test\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    probed.stop().await;
}

#[tokio::test]
async fn another_process_can_ask_for_the_state() {
    let probed = Probed::start().await;
    let full =
        SpoolStatus { fault: SpoolFault::DiskFull.into(), message: "free some space".into(), ..SpoolStatus::default() };
    probed.logs.send_replace(SpoolStatus { lost_batches: 4, ..full });
    let report = ask(probed.address).await.expect("a report");
    assert!(report.session_up);
    assert_eq!((report.log_batches_lost, report.log_spool_trouble.as_deref()), (Some(4), Some("free some space")));
    assert_eq!((report.batches_lost, report.spool_trouble), (0, None));
    assert_eq!((report.clock.as_str(), report.clock_offset_seconds), ("behind", Some(-2.5)));
    let address = probed.address;
    probed.stop().await;
    assert!(matches!(ask(address).await, Err(ProbeError::NotRunning { .. })));
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_that_names_the_key_to_change() {
    let taken = TcpListener::bind(ANY_PORT).await.expect("a free port");
    let address = taken.local_addr().expect("bound");
    let probed = Probed::start().await;
    let vitals = Vitals {
        software: String::new(),
        interval: probed.interval.subscribe(),
        pulse: Arc::default(),
        link: probed.link.subscribe(),
        counters: Arc::default(),
        spool: probed.spool.subscribe(),
        logs: None,
        bridge: None,
    };
    let error = Server::bind(address, vitals).await.err().expect("taken");
    assert!(
        error.to_string().contains(&address.to_string()) && error.to_string().contains("`health-listen`"),
        "{error}"
    );
    probed.stop().await;
}
