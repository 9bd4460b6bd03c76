//! Each number once, in order, acknowledged after its commit; and the proof of it.

use std::time::Duration;

use hyperfactory_hub::telemetry::ingest::{Coverage, Ingest, IngestError, Intake};
use protocol::delivery::DeliveryError;
use protocol::message::{Acknowledge, Lost, LostReason, Upload, upload};
use protocol::{NodeId, SpoolEpoch};
use store::group::Limits;
use store::testing::TestDatabase;
use store::{Engine, on_both_engines, sqlx};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::setup::{NOW, Recorder, World, acme, at};

const EPOCH: u64 = u64::MAX - 7;

/// A hub's intake; its task ends with it.
struct Intakes {
    ingest: Ingest,
    _tasks: JoinSet<()>,
}

impl Intakes {
    async fn start(world: &World) -> Self {
        let limits = Limits { linger: Duration::from_millis(1), ..Limits::default() };
        let (ingest, task) =
            Ingest::start(world.database.clone(), world.fleet.clone(), limits, CancellationToken::new())
                .await
                .expect("an intake");
        let mut tasks = JoinSet::new();
        tasks.spawn(task);
        Self { ingest, _tasks: tasks }
    }

    async fn open(&self, node: NodeId, recorder: &Recorder) -> Intake {
        self.ingest.open(node, &acme(), &recorder.spool()).await.expect("a session")
    }

    async fn coverage(&self, node: NodeId) -> Vec<Coverage> {
        self.ingest.coverage(&acme(), node).await.expect("coverage")
    }
}

/// A hub that takes in, and one node with a spool.
async fn one_node(database: &TestDatabase) -> (World, Intakes, NodeId, Recorder) {
    let world = World::new(database).await;
    let intakes = Intakes::start(&world).await;
    let (node, _) = world.node().await;
    (world, intakes, node, Recorder::new(EPOCH))
}

/// Batches 1 to `count`, a key batch every third.
fn batches(recorder: &mut Recorder, count: u64) -> Vec<Upload> {
    (0..count).map(|n| recorder.batch(n % 3 == 0, &[(at(n * 10), 100, n as i64 * 1000)], Vec::new())).collect()
}

async fn deliver(intake: &mut Intake, uploads: &[Upload]) -> Result<Option<Acknowledge>, IngestError> {
    for upload in uploads {
        intake.receive(upload.clone(), NOW)?;
    }
    intake.commit(NOW).await
}

fn lost(first: u64, last: u64) -> Upload {
    let lost = Lost { epoch: EPOCH, first, last, reason: LostReason::Overflow.into() };
    Upload { message: Some(upload::Message::Lost(lost)) }
}

async fn count(world: &World, table: &'static str) -> i64 {
    sqlx::query_scalar(table).fetch_one(world.database.reader()).await.expect("a count")
}

on_both_engines! {
    async fn batches_are_stored_once_and_then_acknowledged(database: TestDatabase) {
        let (world, intakes, node, mut recorder) = one_node(database).await;
        let uploads = batches(&mut recorder, 9);
        let mut intake = intakes.open(node, &recorder).await;
        assert_eq!(intake.stored(), None);
        let acknowledged = deliver(&mut intake, &uploads[..5]).await.expect("stored");
        assert_eq!(acknowledged, Some(Acknowledge { epoch: EPOCH, through: 5 }));
        assert_eq!(intake.commit(NOW).await.expect("nothing to do"), None);

        // The reply was lost: the next session starts at the last key batch, as a node does.
        let mut intake = intakes.open(node, &recorder).await;
        assert_eq!(intake.stored(), Some(Acknowledge { epoch: EPOCH, through: 5 }));
        let acknowledged = deliver(&mut intake, &uploads[3..]).await.expect("stored");
        assert_eq!(acknowledged, Some(Acknowledge { epoch: EPOCH, through: 9 }));
        assert_eq!(count(&world, "SELECT COUNT(*) FROM batches").await, 9);

        let coverage = intakes.coverage(node).await;
        assert_eq!((coverage[0].first, coverage[0].through, coverage[0].stored), (1, 9, 9));
        assert_eq!(coverage[0].epoch, SpoolEpoch(EPOCH));
        assert!(coverage[0].is_complete(), "{coverage:?}");
        world.close().await;
    }

    async fn a_hub_that_starts_again_knows_how_far_it_was(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let mut recorder = Recorder::new(EPOCH);
        let uploads = batches(&mut recorder, 4);
        let intakes = Intakes::start(&world).await;
        deliver(&mut intakes.open(node, &recorder).await, &uploads).await.expect("stored");
        // Killed between its commit and its reply.
        let world = World::open(database).await;
        let intakes = Intakes::start(&world).await;
        let mut intake = intakes.open(node, &recorder).await;
        assert_eq!(intake.stored(), Some(Acknowledge { epoch: EPOCH, through: 4 }));
        assert_eq!(deliver(&mut intake, &uploads).await.expect("all known"), None);
        assert_eq!(count(&world, "SELECT COUNT(*) FROM batches").await, 4);
        assert!(intakes.coverage(node).await[0].is_complete());
        world.close().await;
    }

    async fn a_gap_ends_the_session(database: TestDatabase) {
        let (world, intakes, node, mut recorder) = one_node(database).await;
        let uploads = batches(&mut recorder, 7);
        let mut intake = intakes.open(node, &recorder).await;
        intake.receive(uploads[0].clone(), NOW).expect("the first");
        let error = intake.receive(uploads[3].clone(), NOW).expect_err("a gap");
        assert!(matches!(error, IngestError::Delivery(DeliveryError::Gap { .. })), "{error}");
        intake.commit(NOW).await.expect("what came before it is good");
        assert_eq!(intakes.coverage(node).await[0].through, 1);
        world.close().await;
    }

    async fn lost_numbers_are_accounted_for(database: TestDatabase) {
        let (world, intakes, node, mut recorder) = one_node(database).await;
        let uploads = batches(&mut recorder, 9);
        let mut intake = intakes.open(node, &recorder).await;
        deliver(&mut intake, &uploads[..3]).await.expect("stored");
        let acknowledged = deliver(&mut intake, &[lost(4, 6), uploads[6].clone()]).await.expect("stored");
        assert_eq!(acknowledged.map(|a| a.through), Some(7));
        let coverage = &intakes.coverage(node).await[0];
        assert_eq!((coverage.stored, coverage.lost.len(), coverage.is_complete()), (4, 1, true), "{coverage:?}");
        assert_eq!((coverage.lost[0].first, coverage.lost[0].last, &*coverage.lost[0].reason), (4, 6, "overflow"));
        // Told again, in a session of its own.
        let mut intake = intakes.open(node, &recorder).await;
        deliver(&mut intake, &[lost(4, 6), uploads[6].clone(), uploads[7].clone()]).await.expect("stored");
        let coverage = &intakes.coverage(node).await[0];
        assert_eq!((coverage.through, coverage.stored, coverage.is_complete()), (8, 5, true), "{coverage:?}");
        world.close().await;
    }

    async fn a_new_epoch_counts_from_one_again(database: TestDatabase) {
        let world = World::new(database).await;
        let intakes = Intakes::start(&world).await;
        let (node, _) = world.node().await;
        for epoch in [EPOCH, 5] {
            let mut recorder = Recorder::new(epoch);
            let uploads = batches(&mut recorder, 3);
            let mut intake = intakes.open(node, &recorder).await;
            assert_eq!(intake.stored(), None, "nothing of epoch {epoch}");
            deliver(&mut intake, &uploads).await.expect("stored");
        }
        let coverage = intakes.coverage(node).await;
        assert_eq!(coverage.iter().map(|c| (c.epoch.0, c.through)).collect::<Vec<_>>(), [(EPOCH, 3), (5, 3)]);
        assert!(coverage.iter().all(Coverage::is_complete));
        // Back to the old one, as a restored disk would: it is found again.
        let mut recorder = Recorder::new(EPOCH);
        recorder.last = 3;
        assert_eq!(intakes.open(node, &recorder).await.stored().map(|stored| stored.through), Some(3));
        world.close().await;
    }

    async fn two_sessions_of_one_node_store_each_number_once(database: TestDatabase) {
        let (world, intakes, node, mut recorder) = one_node(database).await;
        let uploads = batches(&mut recorder, 6);
        let (mut one, mut two) = (intakes.open(node, &recorder).await, intakes.open(node, &recorder).await);
        let (first, second) = tokio::join!(deliver(&mut one, &uploads[..4]), deliver(&mut two, &uploads));
        first.expect("stored");
        second.expect("stored");
        assert_eq!(count(&world, "SELECT COUNT(*) FROM batches").await, 6);
        let coverage = &intakes.coverage(node).await[0];
        assert_eq!((coverage.through, coverage.is_complete()), (6, true));
        world.close().await;
    }

    async fn what_is_in_a_chunk_or_stored_by_a_sister_is_not_stored_again(database: TestDatabase) {
        let (world, intakes, node, mut recorder) = one_node(database).await;
        let uploads = batches(&mut recorder, 6);
        let (mut one, mut two) = (intakes.open(node, &recorder).await, intakes.open(node, &recorder).await);
        let mut three = intakes.open(node, &recorder).await;
        deliver(&mut one, &uploads[..3]).await.expect("stored");
        let mut transaction = world.database.begin_write().await.expect("the writer");
        for statement in [
            "INSERT INTO chunks SELECT stream, 1, 3, tenant, 0, 0, 0, body FROM batches WHERE sequence = 1",
            "DELETE FROM batches",
        ] {
            sqlx::query(statement).execute(&mut *transaction).await.expect("compacted");
        }
        transaction.commit().await.expect("done");
        deliver(&mut two, &uploads[..3]).await.expect("known");
        // The third has begun before any of it, and reports a loss that reaches into what the first has stored.
        let mut recorder = Recorder { last: 5, ..recorder };
        let key = recorder.batch(true, &[(at(60), 1, 1)], Vec::new());
        deliver(&mut three, &[lost(1, 5), key]).await.expect("stored");
        let coverage = &intakes.coverage(node).await[0];
        assert_eq!((coverage.stored, coverage.through, coverage.is_complete()), (4, 6, true), "{coverage:?}");
        assert_eq!((coverage.lost[0].first, coverage.lost[0].last), (4, 5));
        world.close().await;
    }

    async fn many_sessions_share_their_commits(database: TestDatabase) {
        let world = World::new(database).await;
        let intakes = Intakes::start(&world).await;
        let mut sessions = JoinSet::new();
        let mut nodes = Vec::new();
        for _ in 0..20 {
            let (node, _) = world.node().await;
            nodes.push(node);
            let mut recorder = Recorder::new(EPOCH);
            let uploads = batches(&mut recorder, 30);
            let mut intake = intakes.open(node, &recorder).await;
            sessions.spawn(async move {
                for part in uploads.chunks(7) {
                    deliver(&mut intake, part).await.expect("stored");
                }
            });
        }
        while let Some(done) = sessions.join_next().await {
            done.expect("no panic");
        }
        assert_eq!(count(&world, "SELECT COUNT(*) FROM batches").await, 600);
        for node in nodes {
            let coverage = &intakes.coverage(node).await[0];
            assert_eq!((coverage.stored, coverage.through, coverage.is_complete()), (30, 30, true));
        }
        world.close().await;
    }

    async fn what_is_missing_or_doubled_is_shown(database: TestDatabase) {
        let (world, intakes, node, mut recorder) = one_node(database).await;
        let uploads = batches(&mut recorder, 9);
        deliver(&mut intakes.open(node, &recorder).await, &uploads).await.expect("stored");
        let mut transaction = world.database.begin_write().await.expect("the writer");
        for statement in [
            "DELETE FROM batches WHERE sequence IN (2, 5, 6)",
            "INSERT INTO chunks SELECT stream, 8, 9, tenant, 0, 0, 0, body FROM batches WHERE sequence = 9",
        ] {
            sqlx::query(statement).execute(&mut *transaction).await.expect("a vandal");
        }
        transaction.commit().await.expect("done");
        let coverage = &intakes.coverage(node).await[0];
        assert_eq!(coverage.missing, [(2, 2), (5, 6)]);
        assert_eq!(coverage.doubled, [(8, 9)]);
        assert!(!coverage.is_complete());
        world.close().await;
    }

    async fn what_is_not_a_batch_is_refused(database: TestDatabase) {
        let (world, intakes, node, mut recorder) = one_node(database).await;
        let good = batches(&mut recorder, 1);
        let batch = |epoch, sequence, body: &[u8]| Upload {
            message: Some(upload::Message::Batch(protocol::message::Batch { epoch, sequence, body: body.to_vec() })),
        };
        let bad = [
            batch(EPOCH, 1, b"\xff\xff\xff"),
            batch(EPOCH, 0, b""),
            batch(EPOCH, 1 << 63, b""),
            batch(1, 1, b""),
            lost(1, u64::MAX - 1),
        ];
        for upload in bad {
            let mut intake = intakes.open(node, &recorder).await;
            assert!(intake.receive(upload.clone(), NOW).is_err(), "{upload:?}");
        }
        // Samples that can't be read are kept all the same: the numbers go on.
        let unread = protocol::message::BatchBody { key: true, samples: vec![9; 40], ..Default::default() };
        let unread = prost::Message::encode_to_vec(&unread);
        let mut intake = intakes.open(node, &recorder).await;
        deliver(&mut intake, &[good[0].clone(), batch(EPOCH, 2, &unread)]).await.expect("stored");
        assert_eq!(intakes.coverage(node).await[0].through, 2);
        // A newer node's message is skipped.
        intake.receive(Upload { message: None }, NOW).expect("skipped");
        world.close().await;
    }
}

#[tokio::test]
async fn a_full_disk_costs_the_session_and_no_number() {
    let database = TestDatabase::create(Engine::Sqlite).await;
    let (world, intakes, node, mut recorder) = one_node(&database).await;
    let mut uploads = batches(&mut recorder, 3);
    let mut large = crate::setup::service("web", protocol::message::ServiceState::Running);
    large.health_output = "x".repeat(200_000);
    uploads.push(recorder.batch(true, &[(at(30), 1, 1)], vec![large]));
    uploads.push(recorder.batch(true, &[(at(40), 1, 1)], Vec::new()));
    let mut intake = intakes.open(node, &recorder).await;
    deliver(&mut intake, &uploads[..3]).await.expect("stored");
    let mut transaction = world.database.begin_write().await.expect("the writer");
    sqlx::query("PRAGMA max_page_count = 1").execute(&mut *transaction).await.expect("set");
    transaction.commit().await.expect("done");

    let error = deliver(&mut intake, &uploads[3..4]).await.expect_err("no room");
    assert!(error.to_string().contains("free space on its disk"), "{error}");
    assert_eq!(intakes.coverage(node).await[0].through, 3, "nothing was acknowledged that is not there");
    // The connection that found the disk full is replaced, and with it the limit of this test. What the session has
    // behind the batch that failed would leave a hole.
    let error = deliver(&mut intake, &uploads[4..]).await.expect_err("a hole");
    assert!(matches!(error, IngestError::OutOfOrder), "{error}");
    assert_eq!(intakes.coverage(node).await[0].through, 3);
    let mut intake = intakes.open(node, &recorder).await;
    assert_eq!(intake.stored().map(|stored| stored.through), Some(3));
    deliver(&mut intake, &uploads[3..]).await.expect("stored, without a restart");
    let coverage = &intakes.coverage(node).await[0];
    assert_eq!((coverage.through, coverage.is_complete()), (5, true));
}
