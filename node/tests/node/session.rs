use std::sync::Arc;
use std::time::Duration;

use hyperfactory_node as node;
use node::link::{Counted, LinkStatus, TroubleKind};
use node::{Backlog, Change, Clock, Identity, IdentityStore, Link, LinkOptions, LinkState, Recorder, enroll};
use pki::{JoinToken, Serial};
use protocol::message::{
    ClockState, CommandState, NodeFacts, Pace, Refusal, RefusalCode, RenewalAdvice, Service, ServiceKey, ToNode,
    to_node,
};
use protocol::telemetry::{Decoder, Row, Schema};
use protocol::{SpoolEpoch, Timestamp, metrics};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::{CloseCode, Endpoint};

use crate::enroll::applicant;
use crate::hub::{DAY, Order, Seen, TestHub, command, now};

pub(crate) struct TestNode {
    _directory: tempfile::TempDir,
    pub(crate) store: IdentityStore,
    recorder: Recorder,
    link: Link,
    status: watch::Receiver<LinkStatus>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    schema: Arc<Schema>,
}

impl TestNode {
    pub(crate) async fn start(hub: &TestHub) -> Self {
        Self::start_with(hub, Clock::system(), |_| {}).await
    }

    /// A node that enrolled, and whose process starts after `before`.
    pub(crate) async fn start_with(hub: &TestHub, clock: Clock, before: impl FnOnce(&Identity)) -> Self {
        let recorder = Recorder::new(Backlog::in_memory(SpoolEpoch(42), 1 << 20), 4);
        Self::start_as(&hub.token(), recorder, |options| {
            before(&options.identity);
            options.clock = clock;
        })
        .await
    }

    /// A node that enrolled with `token`, and whose process starts with what `change` makes of its options.
    pub(crate) async fn start_as(token: &JoinToken, recorder: Recorder, change: impl FnOnce(&mut LinkOptions)) -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let store = IdentityStore::directory(directory.path());
        let endpoint = Endpoint::client().expect("a socket");
        let patience = Duration::from_secs(30);
        let identity = enroll(&endpoint, &store, token, &applicant(), &Clock::system(), patience).await;
        let identity = identity.expect("enrolled");
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let mut options = LinkOptions {
            endpoint,
            store: store.clone(),
            identity,
            facts: NodeFacts { hostname: "plant-1".into(), ..NodeFacts::default() },
            process: 1,
            recorder: recorder.clone(),
            commands: None,
            tails: None,
            kafka: None,
            logs: None,
            renew: Arc::default(),
            clock: Clock::system(),
        };
        change(&mut options);
        let link = Link::start(options, &tasks, shutdown.clone());
        let status = link.status();
        tasks.close();
        let targets = vec![Box::from("eth0")];
        let schema = Schema::new(vec![(metrics::NETWORK_SENT.into(), targets)]).expect("a schema");
        Self { _directory: directory, store, recorder, link, status, tasks, shutdown, schema: Arc::new(schema) }
    }

    pub(crate) async fn until(&mut self, what: &str, reached: impl FnMut(&LinkStatus) -> bool) -> LinkStatus {
        let waited = tokio::time::timeout(Duration::from_secs(30), self.status.wait_for(reached)).await;
        let status = waited.map(|status| status.expect("a link").clone());
        status.unwrap_or_else(|_| panic!("never {what}: {:?}", self.status.borrow()))
    }

    pub(crate) async fn until_trouble(&mut self, wanted: TroubleKind) -> (String, Timestamp) {
        let status = self
            .until(
                &format!("{wanted:?}"),
                |status| matches!(&status.state, LinkState::Waiting { trouble, .. } if trouble.kind == wanted),
            )
            .await;
        match status.state {
            LinkState::Waiting { trouble, until } => (trouble.message, until),
            other => panic!("{other:?}"),
        }
    }

    async fn sample(&self, at: i64) {
        self.recorder.record(&self.schema, row(at)).await;
    }

    fn serial(&self) -> Serial {
        self.store.load().expect("readable").expect("there").credential.subject().serial
    }

    fn counted(&self) -> Counted {
        self.link.counters().read()
    }

    pub(crate) async fn stop(&mut self) -> LinkStatus {
        self.shutdown.cancel();
        self.tasks.wait().await;
        self.until("stopped", |status| status.state == LinkState::Stopped).await
    }
}

fn row(at: i64) -> Row {
    Row { at: Timestamp::from_millis(at), values: vec![Some(at * 3)] }
}

/// The rows in the numbered batches, decoded as they were accepted.
fn rows(seen: &Seen) -> Vec<Row> {
    let (mut decoder, mut rows) = (Decoder::default(), Vec::new());
    for (_, body) in seen.batches.iter().filter(|(_, body)| !body.samples.is_empty()) {
        let on_row = |_: &Schema, at, values: &[Option<i64>]| rows.push(Row { at, values: values.to_vec() });
        decoder.decode(&body.samples, on_row).expect("in order");
    }
    rows
}

fn numbers(seen: &Seen) -> Vec<u64> {
    seen.batches.iter().map(|(sequence, _)| *sequence).collect()
}

fn service(name: &str) -> Change {
    let key = ServiceKey { stack: "shop".into(), service: name.into(), number: 1 };
    Change { services: vec![Service { key: Some(key), ..Service::default() }], ..Change::default() }
}

#[tokio::test]
async fn samples_reach_the_hub_once_and_in_order_and_the_backlog_empties() {
    let hub = TestHub::start();
    let mut node = TestNode::start(&hub).await;
    node.until("up", LinkStatus::is_up).await;
    for at in 0..40 {
        node.sample(at).await;
    }
    node.recorder.flush().await;
    let seen = hub.until("all rows", |seen| rows(seen).len() == 40).await;
    assert_eq!(rows(&seen), (0..40).map(row).collect::<Vec<_>>());
    let count = seen.batches.len() as u64;
    assert!((10..=11).contains(&count));
    assert_eq!(numbers(&seen), (1..=count).collect::<Vec<_>>());
    let mut backlog = node.recorder.backlog().watch();
    backlog.wait_for(|status| status.pending_batches == 0).await.expect("stored");
    assert_eq!(node.counted().acknowledged, count);
    assert_eq!(node.counted().resent, 0);
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn the_newest_state_comes_first_and_then_the_backlog() {
    let hub = TestHub::start();
    let mut node = TestNode::start(&hub).await;
    node.until("up", LinkStatus::is_up).await;
    hub.order(Order::Goodbye(Duration::from_millis(1)));
    node.until("down", |status| !status.is_up()).await;
    node.recorder.change(service("web")).await;
    for at in 0..10 {
        node.sample(at).await;
    }
    let seen = hub.until("all rows", |seen| rows(seen).len() == 10).await;
    assert_eq!(seen.snapshot_first, [true, true]);
    let snapshot = seen.snapshots.last().expect("a snapshot");
    let mut newest = None;
    let decoded = Decoder::default().decode(&snapshot.samples, |_, at, _| newest = Some(at));
    assert_eq!((decoded, newest), (Ok(()), Some(Timestamp::from_millis(9))));
    assert_eq!(snapshot.services, service("web").services);
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn what_was_not_stored_is_sent_again_from_the_last_key_batch_and_counted_once() {
    let hub = TestHub::start();
    let mut node = TestNode::start(&hub).await;
    node.until("up", LinkStatus::is_up).await;
    for round in 0..3 {
        hub.script(|script| script.break_after = Some(7));
        for at in 0..40 {
            node.sample(round * 100 + at).await;
        }
        node.recorder.flush().await;
        let expected = (round + 1) as usize * 40;
        hub.until("the rows of a round", |seen| rows(seen).len() >= expected).await;
    }
    let seen = hub.seen();
    assert_eq!(numbers(&seen), (1..=seen.batches.len() as u64).collect::<Vec<_>>());
    assert_eq!(rows(&seen).len(), 120);
    assert!(seen.duplicates > 0, "deltas need what was before them");
    assert_eq!(seen.sessions.len(), 4);
    assert!(node.counted().resent > 0);
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_shutdown_delivers_what_is_gathered_and_says_goodbye() {
    let hub = TestHub::start();
    let mut node = TestNode::start(&hub).await;
    node.until("up", LinkStatus::is_up).await;
    node.sample(1).await;
    node.sample(2).await;
    node.stop().await;
    let seen = hub.until("goodbye", |seen| !seen.goodbyes.is_empty()).await;
    assert_eq!(rows(&seen), [row(1), row(2)]);
    assert_eq!(seen.goodbyes, ["shutting down"]);
    hub.stop().await;
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_hub_that_stores_nothing() {
    let hub = TestHub::start();
    hub.script(|script| script.hold = true);
    let mut node = TestNode::start(&hub).await;
    node.until("up", LinkStatus::is_up).await;
    node.sample(1).await;
    let pending = node.recorder.backlog().watch();
    let stopped = tokio::time::timeout(Duration::from_secs(20), node.stop()).await;
    assert!(stopped.is_ok());
    assert_eq!(pending.borrow().pending_batches, 1);
    hub.stop().await;
}

#[tokio::test]
async fn a_displaced_node_does_not_fight() {
    let hub = TestHub::start();
    let mut node = TestNode::start(&hub).await;
    node.until("up", LinkStatus::is_up).await;
    hub.order(Order::Close(CloseCode::Displaced, "another session of this node"));
    let (message, until) = node.until_trouble(TroubleKind::Displaced).await;
    assert!(message.contains("another process"), "{message}");
    assert!(until >= now().plus(Duration::from_secs(50)));
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_hub_that_says_when_to_come_back_is_heeded() {
    let hub = TestHub::start();
    let mut node = TestNode::start(&hub).await;
    node.until("up", LinkStatus::is_up).await;
    hub.order(Order::Goodbye(Duration::from_secs(90)));
    let (message, until) = node.until_trouble(TroubleKind::Goodbye).await;
    assert!(message.contains("restarting"), "{message}");
    assert!(until >= now().plus(Duration::from_secs(80)));
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_revoked_node_says_so_and_asks_rarely() {
    let hub = TestHub::start();
    let refusal = Refusal {
        code: RefusalCode::NodeRevoked.into(),
        message: "this node was revoked; enroll it again with a new join token".into(),
        retry_after_ms: 0,
    };
    hub.script(|script| script.refuse_session = Some(refusal));
    let mut node = TestNode::start(&hub).await;
    let (message, until) = node.until_trouble(TroubleKind::Revoked).await;
    assert!(message.contains("enroll it again"), "{message}");
    assert!(until >= now().plus(Duration::from_secs(200)));
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_certificate_on_the_denylist_is_refused_in_the_handshake() {
    let hub = TestHub::start();
    let denied = |identity: &Identity| hub.script(|script| script.denied = vec![identity.credential.subject().serial]);
    let mut node = TestNode::start_with(&hub, Clock::system(), denied).await;
    let (message, _) = node.until_trouble(TroubleKind::Revoked).await;
    assert!(message.contains("revoked"), "{message}");
    assert!(hub.seen().sessions.is_empty());
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_due_certificate_is_renewed_and_used_and_the_one_before_is_kept() {
    let hub = TestHub::start();
    hub.script(|script| script.renew_now = true);
    let mut node = TestNode::start(&hub).await;
    let first = node.serial();
    let seen = hub.until("a second session", |seen| seen.sessions.len() == 2).await;
    assert_eq!(seen.sessions[0].serial, first);
    assert_ne!(seen.sessions[1].serial, first);
    assert_ne!(seen.sessions[1].spki_sha256, seen.sessions[0].spki_sha256, "a new key");
    node.until("up again", LinkStatus::is_up).await;
    assert_eq!(node.serial(), seen.sessions[1].serial);
    assert_eq!(seen.renew_requests, 1);
    node.sample(1).await;
    assert_eq!(node.stop().await.renewal_trouble, None);
    let saved = node.store.load().expect("readable").expect("there");
    assert_eq!(saved.previous.expect("kept").subject().serial, first);
    hub.stop().await;
}

#[tokio::test]
async fn a_node_that_is_advised_to_renew_does_so_in_its_session() {
    let hub = TestHub::start();
    let mut node = TestNode::start(&hub).await;
    let status = node.until("up", LinkStatus::is_up).await;
    assert!(status.renew_at > now().plus(DAY), "not due by itself: {status:?}");
    let advise = |renew_at: Timestamp| {
        let advice = RenewalAdvice { renew_at_ms: renew_at.millis(), reason: "the tenant's authority rotates".into() };
        hub.order(Order::Send(ToNode { message: Some(to_node::Message::Renewal(advice)) }));
    };
    // A moment by which the certificate would have ended moves it no further than is safe.
    advise(now().plus(DAY * 4000));
    let later = node.until("later", |later| later.renew_at > status.renew_at).await;
    assert!(later.renew_at < later.certificate_not_after);
    advise(now().minus(Duration::from_millis(5)));
    let seen = hub.until("the renewed session", |seen| seen.sessions.len() == 2).await;
    assert_eq!(seen.renew_requests, 1);
    assert_ne!(seen.sessions[1].serial, seen.sessions[0].serial);
    node.until("up again", LinkStatus::is_up).await;
    assert_eq!(node.stop().await.renewal_trouble, None);
    hub.stop().await;
}

#[tokio::test]
async fn a_hub_that_calls_every_certificate_due_does_not_make_a_node_renew_without_end() {
    let hub = TestHub::start();
    hub.script(|script| {
        script.renew_now = true;
        script.always_due = true;
    });
    let mut node = TestNode::start(&hub).await;
    hub.until("the renewed session", |seen| seen.sessions.len() == 2).await;
    let status = node.until("up", LinkStatus::is_up).await;
    // The session goes on working with the new certificate.
    node.sample(1).await;
    node.recorder.flush().await;
    let seen = hub.until("a batch", |seen| !seen.batches.is_empty()).await;
    assert_eq!((seen.renew_requests, seen.sessions.len()), (1, 2), "{status:?}");
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_lost_renewal_is_asked_for_again_with_the_same_key() {
    let hub = TestHub::start();
    hub.script(|script| {
        script.renew_now = true;
        script.lose_renew_replies = 2;
    });
    let mut node = TestNode::start(&hub).await;
    let seen = hub.until("the renewed session", |seen| seen.sessions.len() == 4).await;
    assert_eq!(seen.renew_requests, 3);
    assert_eq!(seen.issued.len(), 2, "one certificate by the token, one by three requests");
    assert_eq!(seen.sessions[2].serial, seen.sessions[0].serial);
    assert_ne!(seen.sessions[3].serial, seen.sessions[0].serial);
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_renewed_certificate_that_the_hub_has_forgotten_gives_way_to_the_one_before() {
    let hub = TestHub::start();
    hub.script(|script| {
        script.renew_now = true;
        script.forget_renewed = true;
    });
    let mut node = TestNode::start(&hub).await;
    let seen = hub.until("a second session", |seen| seen.sessions.len() == 2).await;
    assert_eq!((seen.issued.len(), seen.recoveries.len()), (2, 1));
    assert_eq!(seen.sessions[1], seen.sessions[0]);
    assert_eq!(node.serial(), seen.sessions[0].serial);
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn commands_are_answered_as_unsupported() {
    let hub = TestHub::start();
    let mut node = TestNode::start(&hub).await;
    node.until("up", LinkStatus::is_up).await;
    hub.order(Order::Send(command()));
    let seen = hub.until("an outcome", |seen| !seen.outcomes.is_empty()).await;
    assert_eq!(seen.outcomes[0].state(), CommandState::Unsupported);
    assert_eq!(seen.outcomes[0].command_id, vec![7; 16]);
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn while_somebody_looks_every_sample_goes_at_once() {
    let hub = TestHub::start();
    let mut node = TestNode::start(&hub).await;
    node.until("up", LinkStatus::is_up).await;
    let pace = to_node::Message::Pace(Pace { live_for_ms: 60_000 });
    hub.order(Order::Send(ToNode { message: Some(pace) }));
    while !node.recorder.is_live() {
        tokio::task::yield_now().await;
    }
    hub.until("the newest state", |seen| seen.snapshots.len() == 2).await;
    node.sample(1).await;
    let seen = hub.until("one sample", |seen| !seen.batches.is_empty()).await;
    assert_eq!(rows(&seen), [row(1)]);
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn a_clock_that_is_ahead_is_measured_and_reported() {
    let hub = TestHub::start();
    let ahead = Clock::new(|| now().plus(Duration::from_secs(60)));
    let mut node = TestNode::start_with(&hub, ahead, |_| {}).await;
    let status = node.until("up", LinkStatus::is_up).await;
    assert_eq!(status.clock_state(), ClockState::Ahead);
    node.recorder.change(service("web")).await;
    let seen = hub.until("a batch", |seen| !seen.batches.is_empty()).await;
    assert!((59_000..61_000).contains(&seen.clocks[0].offset_ms), "{:?}", seen.clocks);
    let told = seen.batches[0].1.status.clone().expect("a status");
    assert_eq!(told.clock_state(), ClockState::Ahead);
    node.stop().await;
    hub.stop().await;
}

#[tokio::test]
async fn an_overflow_is_reported_as_lost_and_the_rest_arrives() {
    let hub = TestHub::start();
    hub.script(|script| script.hold = true);
    let mut node = TestNode::start(&hub).await;
    node.until("up", LinkStatus::is_up).await;
    hub.order(Order::Goodbye(Duration::from_millis(1)));
    node.until("down", |status| !status.is_up()).await;
    hub.script(|script| script.hold = false);
    // Some 1.5 MiB against a bound of 1 MiB.
    for turn in 0..1500u32 {
        let mut change = service("web");
        change.services[0].health_output = format!("{turn:0>1000}");
        node.recorder.change(change).await;
    }
    let last = 1500;
    let seen = hub.until("the newest batch", |seen| seen.batches.iter().any(|(number, _)| *number == last)).await;
    let (first, through) = *seen.lost.first().expect("a loss");
    assert_eq!(first, 1);
    assert_eq!(numbers(&seen), (through + 1..=last).collect::<Vec<_>>());
    node.stop().await;
    hub.stop().await;
}
