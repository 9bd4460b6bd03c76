//! The fleet's last state: what moves it, what does not, and what the next start finds.

use hyperfactory_hub::telemetry::ingest::Ingest;
use hyperfactory_hub::telemetry::state::{Ended, Fleet, Presence};
use protocol::message::{ClockReport, NodeFacts, ServiceState, Upload, upload};
use protocol::{SessionId, Timestamp};
use store::group::Limits;
use store::on_both_engines;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::setup::{NOW, Recorder, World, acme, at, seconds, service};

const FIRST: [u8; 10] = [1; 10];
const SECOND: [u8; 10] = [2; 10];

fn session(random: [u8; 10]) -> SessionId {
    SessionId::new(NOW, random)
}

fn open(fleet: &Fleet, node: protocol::NodeId, random: [u8; 10], now: Timestamp) {
    let facts = NodeFacts { hostname: "plant-1".into(), ..NodeFacts::default() };
    fleet.session_opened(node, session(random), "192.0.2.7:4000".parse().expect("an address"), facts, now);
}

async fn ingest(world: &World, tasks: &mut JoinSet<()>) -> Ingest {
    let (ingest, task) =
        Ingest::start(world.database.clone(), world.fleet.clone(), Limits::default(), CancellationToken::new())
            .await
            .expect("an intake");
    tasks.spawn(task);
    ingest
}

on_both_engines! {
    async fn a_batch_is_seen_after_its_commit(database: TestDatabase) {
        let world = World::new(database).await;
        let mut tasks = JoinSet::new();
        let ingest = ingest(&world, &mut tasks).await;
        let (node, _) = world.node().await;
        let mut changes = world.fleet.changes();
        let mut recorder = Recorder::new(1);
        let mut intake = ingest.open(node, &acme(), &recorder.spool()).await.expect("a session");
        let running = vec![service("web", ServiceState::Running), service("db", ServiceState::Running)];
        let rows = [(at(0), 1000, 0), (at(10), 2500, 20_000)];
        intake.receive(recorder.batch(true, &rows, running), at(10)).expect("taken in");
        assert!(world.fleet.node(node).expect("the node").latest.is_none(), "not before the commit");
        intake.commit(at(10)).await.expect("stored");
        let view = world.fleet.node(node).expect("the node");
        assert_eq!(view.current("cpu.busy", ""), Some(0.25));
        assert_eq!(view.current("network.sent", "eth0"), Some(2000.0));
        let latest = view.latest.as_ref().expect("figures");
        assert_eq!(latest.targets("network.sent"), [("eth0", Some(2000.0))]);
        assert_eq!(latest.value("network.sent", "eth0"), Some(20_000.0));
        let names: Vec<_> = view.services.iter().map(|s| s.key.as_ref().expect("a key").service.clone()).collect();
        assert_eq!(names, ["db", "web"]);
        assert_eq!(changes.recv().await.expect("a change"), node);

        // A delta names what changed and what is gone.
        let body = protocol::message::BatchBody {
            removed: vec![service("web", ServiceState::Running).key.expect("a key")],
            ..recorder.body(false, &[(at(20), 100, 40_000)], vec![service("db", ServiceState::Exited)])
        };
        recorder.last += 1;
        let batch = protocol::message::Batch {
            epoch: 1,
            sequence: recorder.last,
            body: prost::Message::encode_to_vec(&body),
        };
        intake.receive(Upload { message: Some(upload::Message::Batch(batch)) }, at(20)).expect("taken in");
        intake.commit(at(20)).await.expect("stored");
        let view = world.fleet.node(node).expect("the node");
        assert_eq!(view.services.len(), 1);
        assert_eq!(view.services.iter().next().expect("a service").state(), ServiceState::Exited);
        world.close().await;
    }

    async fn a_backlog_does_not_undo_the_snapshot(database: TestDatabase) {
        let world = World::new(database).await;
        let mut tasks = JoinSet::new();
        let ingest = ingest(&world, &mut tasks).await;
        let (node, _) = world.node().await;
        let mut recorder = Recorder::new(1);
        let old = recorder.batch(true, &[(at(0), 100, 0)], vec![service("web", ServiceState::Exited)]);
        let mut intake = ingest.open(node, &acme(), &recorder.spool()).await.expect("a session");
        let now = vec![service("web", ServiceState::Running)];
        let snapshot = Recorder::new(1).body(true, &[(at(3600), 9000, 7)], now);
        intake.receive(Upload { message: Some(upload::Message::Snapshot(snapshot)) }, at(3600)).expect("shown");
        assert_eq!(world.fleet.node(node).expect("the node").current("cpu.busy", ""), Some(0.9), "at once");
        intake.receive(old, at(3601)).expect("taken in");
        let newer = recorder.batch(true, &[(at(3610), 5000, 9)], vec![service("web", ServiceState::Paused)]);
        intake.commit(at(3601)).await.expect("stored");
        let view = world.fleet.node(node).expect("the node");
        assert_eq!(view.current("cpu.busy", ""), Some(0.9));
        assert_eq!(view.services.iter().next().expect("a service").state(), ServiceState::Running);
        // What was written after the session began is news again.
        intake.receive(newer, at(3610)).expect("taken in");
        intake.commit(at(3610)).await.expect("stored");
        let view = world.fleet.node(node).expect("the node");
        assert_eq!((view.current("cpu.busy", ""), view.services.iter().next().expect("a service").state()), (Some(0.5), ServiceState::Paused));
        world.close().await;
    }

    async fn figures_go_on_when_a_clock_is_set_back(database: TestDatabase) {
        let world = World::new(database).await;
        let mut tasks = JoinSet::new();
        let ingest = ingest(&world, &mut tasks).await;
        let (node, _) = world.node().await;
        let shown = || {
            let view = world.fleet.node(node).expect("the node");
            (view.latest.as_ref().expect("figures").at(), view.current("network.sent", "eth0"))
        };
        let mut recorder = Recorder::new(1);
        let mut intake = ingest.open(node, &acme(), &recorder.spool()).await.expect("a session");
        intake.receive(recorder.batch(true, &[(at(3600), 1, 0)], Vec::new()), at(0)).expect("taken in");
        // In a session: the next batch, and one that has both.
        for (time, rows) in [(10, &[(at(10), 1, 10_000)][..]), (20, &[(at(20), 1, 20_000), (at(5), 1, 30_000)])] {
            intake.receive(recorder.batch(false, rows, Vec::new()), at(time)).expect("taken in");
            intake.commit(at(time)).await.expect("stored");
            assert_eq!(shown(), (rows[rows.len() - 1].0, None));
        }
        intake.receive(recorder.batch(false, &[(at(15), 1, 40_000)], Vec::new()), at(30)).expect("taken in");
        intake.commit(at(30)).await.expect("stored");
        assert_eq!(shown(), (at(15), Some(1000.0)));
        // A snapshot may be ahead of batches that are on their way.
        let snapshot = Recorder::new(1).body(true, &[(at(60), 1, 0)], Vec::new());
        intake.receive(Upload { message: Some(upload::Message::Snapshot(snapshot)) }, at(60)).expect("shown");
        intake.receive(recorder.batch(false, &[(at(25), 1, 50_000)], Vec::new()), at(61)).expect("taken in");
        intake.commit(at(61)).await.expect("stored");
        assert_eq!(shown().0, at(60));

        // Between sessions, by what comes first: a snapshot, or the first batch of a node that has just started.
        let snapshot = Recorder::new(1).body(true, &[(at(40), 1, 0)], Vec::new());
        let mut intake = ingest.open(node, &acme(), &recorder.spool()).await.expect("a session");
        intake.receive(Upload { message: Some(upload::Message::Snapshot(snapshot)) }, at(70)).expect("shown");
        assert_eq!(shown().0, at(40));
        let mut intake = ingest.open(node, &acme(), &recorder.spool()).await.expect("a session");
        let nothing = Recorder::new(1).body(true, &[], Vec::new());
        intake.receive(Upload { message: Some(upload::Message::Snapshot(nothing)) }, at(80)).expect("shown");
        intake.receive(recorder.batch(true, &[(at(30), 1, 0)], Vec::new()), at(80)).expect("taken in");
        intake.commit(at(80)).await.expect("stored");
        assert_eq!(shown().0, at(30));
        world.close().await;
    }

    async fn the_end_of_a_displaced_session_says_nothing(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        assert_eq!(world.fleet.node(node).expect("the node").presence, Presence::NeverSeen);
        open(&world.fleet, node, FIRST, at(0));
        open(&world.fleet, node, SECOND, at(5));
        world.fleet.session_closed(node, session(FIRST), Ended::Lost, at(6));
        let view = world.fleet.node(node).expect("the node");
        assert!(view.presence.is_online() && view.session == Some(session(SECOND)));
        world.fleet.session_closed(node, session(SECOND), Ended::Goodbye("update".into()), at(7));
        let view = world.fleet.node(node).expect("the node");
        assert_eq!(view.presence, Presence::Left { since: at(7), reason: "update".into() });
        assert_eq!(view.last_seen, Some(at(7)));
        world.close().await;
    }

    async fn the_next_start_finds_the_last_state(database: TestDatabase) {
        let world = World::new(database).await;
        let mut tasks = JoinSet::new();
        let ingest = ingest(&world, &mut tasks).await;
        let (online, _) = world.node().await;
        let (left, _) = world.node().await;
        let (never, _) = world.node().await;
        open(&world.fleet, online, FIRST, at(0));
        open(&world.fleet, left, SECOND, at(0));
        let mut recorder = Recorder::new(1);
        let mut intake = ingest.open(online, &acme(), &recorder.spool()).await.expect("a session");
        let rows = [(at(0), 1000, 0), (at(10), 2500, 20_000)];
        let upload = recorder.batch(true, &rows, vec![service("web", ServiceState::Running)]);
        intake.receive(upload, at(10)).expect("taken in");
        intake.commit(at(10)).await.expect("stored");
        world.fleet.clock(online, ClockReport { offset_ms: -70, delay_ms: 4 });
        world.fleet.session_closed(left, session(SECOND), Ended::Goodbye("stopped".into()), at(11));
        world.fleet.persist(&world.database, at(11), false).await.expect("written");

        let again = Fleet::load(&world.database, at(100)).await.expect("read");
        let view = again.node(online).expect("the node");
        assert_eq!(view.presence, Presence::Lost { since: at(10) });
        assert_eq!(view.facts.hostname, "plant-1");
        assert_eq!(view.current("cpu.busy", ""), Some(0.25));
        assert_eq!(view.current("network.sent", "eth0"), Some(2000.0));
        assert_eq!(view.services.iter().next().expect("a service").state(), ServiceState::Running);
        assert_eq!(view.status.clock, Some(ClockReport { offset_ms: -70, delay_ms: 4 }));
        let gone = again.node(left).expect("the node");
        assert_eq!(gone.presence, Presence::Left { since: at(11), reason: "stopped".into() });
        assert_eq!(again.node(never).expect("the node").presence, Presence::NeverSeen);
        assert_eq!(again.all().len(), 3);
        world.close().await;
    }

    async fn a_goodbye_with_a_character_that_no_text_has_keeps_no_state_from_being_copied(database: TestDatabase) {
        let world = World::new(database).await;
        let ((strange, _), (other, _)) = (world.node().await, world.node().await);
        open(&world.fleet, strange, FIRST, at(0));
        open(&world.fleet, other, SECOND, at(0));
        world.fleet.session_closed(strange, session(FIRST), Ended::Goodbye("a\0b".into()), at(1));
        world.fleet.persist(&world.database, at(2), true).await.expect("written");
        let again = Fleet::load(&world.database, at(3)).await.expect("read");
        let left = Presence::Left { since: at(1), reason: "a\u{fffd}b".into() };
        assert_eq!(again.node(strange).expect("the node").presence, left);
        assert_eq!(again.node(other).expect("the node").presence, Presence::Lost { since: at(0) });
        world.close().await;
    }

    async fn figures_alone_are_copied_lazily(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        open(&world.fleet, node, FIRST, at(0));
        world.fleet.persist(&world.database, at(1), false).await.expect("written");
        world.fleet.clock(node, ClockReport { offset_ms: 9, delay_ms: 1 });
        let stored = async || {
            let again = Fleet::load(&world.database, at(2)).await.expect("read");
            again.node(node).expect("the node").status.clock.map(|clock| clock.offset_ms)
        };
        world.fleet.persist(&world.database, at(2), false).await.expect("nothing due");
        assert_eq!(stored().await, None);
        world.fleet.persist(&world.database, at(1).plus(seconds(60)), false).await.expect("written");
        assert_eq!(stored().await, Some(9));
        world.fleet.clock(node, ClockReport { offset_ms: 11, delay_ms: 1 });
        world.fleet.persist(&world.database, at(62), true).await.expect("all, at the end");
        assert_eq!(stored().await, Some(11));
        world.close().await;
    }
}
