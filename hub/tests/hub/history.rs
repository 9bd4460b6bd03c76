//! Ranges, rates, compaction and retention.

use hyperfactory_hub::telemetry::history::{History, HistoryError, Selector, Upkeep};
use hyperfactory_hub::telemetry::ingest::Ingest;
use protocol::NodeId;
use protocol::telemetry::{Kind, Unit};
use store::group::Limits;
use store::on_both_engines;
use store::sqlx;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::setup::{NOW, Recorder, World, acme, at, seconds};

/// Stores `count` batches of two rows each, 10 s apart, a key batch every 50; the counter grows by 500 bytes a second,
/// and starts again at row 400. Received as they are measured.
async fn recorded(world: &World, count: u64) -> NodeId {
    let (ingest, task) =
        Ingest::start(world.database.clone(), world.fleet.clone(), Limits::default(), CancellationToken::new())
            .await
            .expect("an intake");
    let mut tasks = JoinSet::new();
    tasks.spawn(task);
    let (node, _) = world.node().await;
    let mut recorder = Recorder::new(3);
    let mut intake = ingest.open(node, &acme(), &recorder.spool()).await.expect("a session");
    for batch in 0..count {
        let rows = [2 * batch, 2 * batch + 1].map(|row| {
            let sent = if row < 400 { 5000 * row } else { 5000 * (row - 400) };
            (at(10 * row), row as i64 % 100, sent as i64)
        });
        let now = rows[1].0;
        intake.receive(recorder.batch(batch % 50 == 0, &rows, Vec::new()), now).expect("in order");
        if intake.is_full() || batch + 1 == count {
            intake.commit(now).await.expect("stored");
        }
    }
    node
}

async fn rows(world: &World, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(world.database.reader()).await.expect("a number")
}

on_both_engines! {
    async fn gauges_are_levels_and_counters_are_rates(database: TestDatabase) {
        let world = World::new(database).await;
        let node = recorded(&world, 300).await;
        let history = History::new(world.database.clone());
        let selectors = [Selector::all("cpu.busy"), Selector::one("network.sent", "eth0"), Selector::all("nonsense")];
        let range = history.range(node, &selectors, at(1000), at(2000), 1000).await.expect("a range");
        assert_eq!(range.series.len(), 2);
        let [cpu, sent] = &range.series[..] else { panic!("two") };
        assert_eq!((&*cpu.metric, &*cpu.target, cpu.unit, cpu.kind), ("cpu.busy", "", Unit::Ratio, Kind::Gauge));
        assert_eq!(cpu.points.len(), 100, "one row in 10 s");
        assert_eq!((cpu.points[0].at, cpu.points[0].mean), (at(1000), 0.0));
        assert!((cpu.points[7].mean - 0.0007).abs() < 1e-9, "{:?}", cpu.points[7]);
        assert_eq!((&*sent.target, sent.unit, sent.kind), ("eth0", Unit::Bytes, Kind::Counter));
        assert_eq!(sent.points.len(), 100, "the first has a rate from the row before the range");
        assert!(sent.points.iter().all(|point| (point.mean - 500.0).abs() < 1e-6), "{:?}", sent.points);
        world.close().await;
    }

    async fn a_counter_that_starts_again_leaves_a_gap(database: TestDatabase) {
        let world = World::new(database).await;
        let node = recorded(&world, 300).await;
        let history = History::new(world.database.clone());
        let selectors = [Selector::one("network.sent", "eth0")];
        let range = history.range(node, &selectors, at(3900), at(4100), 20).await.expect("a range");
        let times: Vec<_> = range.series[0].points.iter().map(|point| point.at).collect();
        assert_eq!(times.len(), 19);
        assert!(!times.contains(&at(4000)));
        assert!(range.series[0].points.iter().all(|point| (point.mean - 500.0).abs() < 1e-6));
        world.close().await;
    }

    async fn a_clock_that_is_set_back_costs_a_counter_one_rate(database: TestDatabase) {
        let world = World::new(database).await;
        let (ingest, task) =
            Ingest::start(world.database.clone(), world.fleet.clone(), Limits::default(), CancellationToken::new())
                .await
                .expect("an intake");
        let mut tasks = JoinSet::new();
        tasks.spawn(task);
        let (node, _) = world.node().await;
        let mut recorder = Recorder::new(3);
        let mut intake = ingest.open(node, &acme(), &recorder.spool()).await.expect("a session");
        let ahead = (0..10).map(|row| (at(3600 + 10 * row), 0, 5000 * row as i64));
        let right = (10..20).map(|row| (at(10 * row), 0, 5000 * row as i64));
        let rows: Vec<_> = ahead.chain(right).collect();
        intake.receive(recorder.batch(true, &rows, Vec::new()), at(100)).expect("in order");
        intake.commit(at(100)).await.expect("stored");
        let history = History::new(world.database.clone());
        let range = history.range(node, &[Selector::all("network.sent")], at(100), at(200), 10).await.expect("a range");
        let points: Vec<_> = range.series[0].points.iter().map(|point| (point.at, point.mean)).collect();
        assert_eq!(points, (11..20).map(|row| (at(10 * row), 500.0)).collect::<Vec<_>>());
        world.close().await;
    }

    async fn many_samples_become_one_point(database: TestDatabase) {
        let world = World::new(database).await;
        let node = recorded(&world, 300).await;
        let history = History::new(world.database.clone());
        let range = history.range(node, &[Selector::all("cpu.busy")], NOW, at(6000), 6).await.expect("a range");
        assert_eq!(range.step, seconds(1000));
        let points = &range.series[0].points;
        assert_eq!(points.len(), 6);
        for point in points {
            assert!((point.mean - 0.00495).abs() < 1e-9, "{point:?}");
            assert_eq!((point.min, point.max), (0.0, 0.0099));
        }
        world.close().await;
    }

    async fn compaction_changes_no_answer_and_no_account(database: TestDatabase) {
        let world = World::new(database).await;
        let node = recorded(&world, 2000).await;
        let history = History::new(world.database.clone());
        let selectors = [Selector::all("cpu.busy"), Selector::all("network.sent")];
        let before = history.range(node, &selectors, NOW, at(40_000), 500).await.expect("a range");
        let coverage_before = hyperfactory_hub::telemetry::ingest::coverage(&world.database, node).await.expect("coverage");
        assert_eq!(rows(&world, "SELECT COUNT(*) FROM batches").await, 2000);

        let upkeep = Upkeep::new(world.database.clone(), seconds(86_400));
        upkeep.run_once(at(40_000)).await.expect("compacted");
        assert!(rows(&world, "SELECT COUNT(*) FROM batches").await < 1024, "what is young or small stays");
        assert!(rows(&world, "SELECT COUNT(*) FROM chunks").await >= 1);
        let after = history.range(node, &selectors, NOW, at(40_000), 500).await.expect("a range");
        assert_eq!(after, before);
        let narrow = history.range(node, &selectors, at(5000), at(5100), 10).await.expect("a range");
        assert_eq!(narrow.series[0].points.len(), 10, "out of the middle of a chunk");
        let coverage = hyperfactory_hub::telemetry::ingest::coverage(&world.database, node).await.expect("coverage");
        assert_eq!(coverage, coverage_before);
        world.close().await;
    }

    async fn what_is_too_old_goes_and_stays_accounted_for(database: TestDatabase) {
        let world = World::new(database).await;
        let node = recorded(&world, 2000).await;
        let upkeep = Upkeep::new(world.database.clone(), seconds(10_000));
        upkeep.run_once(at(40_000)).await.expect("done");
        let coverage =
            &hyperfactory_hub::telemetry::ingest::coverage(&world.database, node).await.expect("coverage")[0];
        assert!(coverage.first > 1 && coverage.through == 2000 && coverage.is_complete(), "{coverage:?}");
        assert_eq!(coverage.stored, coverage.through - coverage.first + 1);
        let history = History::new(world.database.clone());
        let all = [Selector::all("cpu.busy")];
        let gone = history.range(node, &all, NOW, at(10_000), 100).await.expect("a range");
        assert!(gone.series.is_empty());
        let kept = history.range(node, &all, at(31_000), at(40_000), 900).await.expect("a range");
        assert_eq!(kept.series[0].points.len(), 900, "what is young enough is all there");
        // All of it, much later: the account stays true.
        upkeep.run_once(at(90_000)).await.expect("done");
        let coverage =
            &hyperfactory_hub::telemetry::ingest::coverage(&world.database, node).await.expect("coverage")[0];
        assert_eq!((coverage.first, coverage.through, coverage.stored), (2001, 2000, 0));
        assert!(coverage.is_complete());
        world.close().await;
    }

    async fn upkeep_ends_in_the_middle_of_its_work(database: TestDatabase) {
        let world = World::new(database).await;
        recorded(&world, 2000).await;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        // It looks at the clock when it begins with a node.
        let clock = move || {
            stopped.cancel();
            at(90_000)
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(Upkeep::new(world.database.clone(), seconds(86_400)).keep(clock, stop));
        while tasks.try_join_next().is_none() {
            // On to the node's moment in the round.
            tokio::time::pause();
            tokio::time::advance(seconds(30 * 60)).await;
            tokio::time::resume();
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert_eq!(rows(&world, "SELECT COUNT(*) FROM batches").await, 2000);
        world.close().await;
    }

    async fn ranges_have_bounds(database: TestDatabase) {
        let world = World::new(database).await;
        let history = History::new(world.database.clone());
        let (node, _) = world.node().await;
        assert!(matches!(history.range(node, &[], at(1), NOW, 10).await, Err(HistoryError::Range)));
        assert!(matches!(history.range(node, &[], NOW, at(32 * 86_400), 10).await, Err(HistoryError::Range)));
        let empty = history.range(node, &[Selector::all("cpu.busy")], NOW, at(60), 0).await.expect("a range");
        assert!(empty.series.is_empty());
        world.close().await;
    }
}
