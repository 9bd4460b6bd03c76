//! Alerts as rows: opened, listed, taken over by the next start, closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use hyperfactory_hub::alerts::{Alert, Alerts, Change, Filter, Policy, Rule, Upkeep};
use hyperfactory_hub::telemetry::state::{Ended, Level, Member, Report, Services};
use protocol::message::{NodeFacts, Service, ServiceHealth, ServiceKey, ServiceState};
use protocol::{NodeId, NodeKind, SessionId, Timestamp};
use store::on_both_engines;
use store::sqlx::{self, Row};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::audit::owner;
use crate::setup::{NOW, World, acme, at, seconds, service};

/// A clock that stands until it is set.
#[derive(Clone)]
pub(crate) struct Clock(Arc<AtomicI64>);

impl Clock {
    pub(crate) fn at(now: Timestamp) -> Self {
        Self(Arc::new(AtomicI64::new(now.millis())))
    }

    fn set(&self, now: Timestamp) {
        self.0.store(now.millis(), Ordering::Relaxed);
    }

    fn read(&self) -> impl Fn() -> Timestamp + Send + 'static + use<> {
        let clock = self.clone();
        move || Timestamp::from_millis(clock.0.load(Ordering::Relaxed))
    }
}

pub(crate) async fn start(world: &World, clock: &Clock, policy: Policy) -> (Alerts, CancellationToken, JoinSet<()>) {
    let stop = CancellationToken::new();
    let (database, fleet, authorities) = (world.database.clone(), world.fleet.clone(), world.authorities.clone());
    let started = Alerts::start(database, fleet, authorities, policy, clock.read(), stop.clone()).await;
    let (alerts, task) = started.expect("alerts");
    let mut tasks = JoinSet::new();
    tasks.spawn(task);
    (alerts, stop, tasks)
}

fn session(number: u8) -> SessionId {
    SessionId::new(NOW, [number; 10])
}

fn connect(world: &World, node: NodeId, number: u8) {
    let remote = "192.0.2.7:4000".parse().expect("an address");
    world.fleet.session_opened(node, session(number), remote, NodeFacts::default(), NOW);
}

async fn short() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// The alerts, once there are so many.
async fn listed(alerts: &Alerts, count: usize) -> Vec<Alert> {
    let listed = tokio::time::timeout(seconds(30), async {
        loop {
            match alerts.list(&Filter::default()).await.expect("a list") {
                listed if listed.len() == count => break listed,
                _ => short().await,
            }
        }
    });
    listed.await.expect("as many as there should be")
}

on_both_engines! {
    async fn a_lost_node_is_an_alert_until_it_is_back(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let clock = Clock::at(NOW);
        let (alerts, stop, mut tasks) = start(&world, &clock, Policy::default()).await;
        let mut changes = alerts.changes();
        let session = session(1);
        let remote = "192.0.2.7:4000".parse().expect("an address");
        world.fleet.session_opened(node, session, remote, NodeFacts::default(), at(0));
        world.fleet.session_closed(node, session, Ended::Lost, at(10));
        clock.set(at(40));
        let Change::Opened(opened) = changes.recv().await.expect("a change") else { panic!("opened") };
        assert_eq!((opened.rule, opened.node, opened.level), (Rule::NodeLost, Some(node), Level::Critical));
        let open = Filter { open: Some(true), tenant: Some(acme()), ..Filter::default() };
        let listed = alerts.list(&open).await.expect("a list");
        assert_eq!((listed.len(), &*listed[0].rule, listed[0].opened_at), (1, "node.lost", at(40)));
        assert_eq!(world.fleet.node(node).expect("the node").attention.level, Level::Critical);
        let other = Filter { tenant: Some("other".parse().expect("an id")), ..Filter::default() };
        assert!(alerts.list(&other).await.expect("a list").is_empty());
        let count = async |alerts: &Alerts| {
            let mut counts = Vec::new();
            for tenant in [None, open.tenant.as_ref(), other.tenant.as_ref()] {
                counts.push(alerts.open(tenant).await.expect("a count"));
            }
            counts
        };
        assert_eq!(count(&alerts).await, [1, 1, 0]);

        // The hub starts again: it is the same alert, not a second one.
        stop.cancel();
        tasks.join_next().await;
        let impatient = Policy { back_for: std::time::Duration::ZERO, ..Policy::default() };
        let (alerts, _stop, _tasks) = start(&world, &clock, impatient).await;
        let mut changes = alerts.changes();
        world.fleet.session_opened(node, session, remote, NodeFacts::default(), at(50));
        clock.set(at(70));
        let Change::Closed(closed) = changes.recv().await.expect("a change") else { panic!("closed") };
        assert_eq!((closed.rule, closed.at), (Rule::NodeLost, at(70)));
        assert!(alerts.list(&open).await.expect("a list").is_empty());
        assert_eq!(count(&alerts).await, [0, 0, 0]);
        let all = alerts.list(&Filter { node: Some(node), ..Filter::default() }).await.expect("a list");
        assert_eq!((all.len(), all[0].opened_at, all[0].closed_at), (1, at(40), Some(at(70))));
        world.close().await;
    }

    async fn an_alert_goes_90_days_after_its_end_and_stays_while_it_is_open(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let mut transaction = world.database.begin_write().await.expect("a transaction");
        for (subject, closed_at) in (0..1_200).map(|number| (number.to_string(), Some(at(number)))).chain([("open".into(), None)]) {
            sqlx::query(
                "INSERT INTO alerts (tenant, node, rule, subject, severity, message, opened_at, closed_at)
                 VALUES ('acme', $1, 'node.lost', $2, 'critical', '', $3, $4)",
            )
            .bind(node.to_string())
            .bind(subject)
            .bind(NOW.millis())
            .bind(closed_at.map(Timestamp::millis))
            .execute(&mut *transaction)
            .await
            .expect("an alert");
        }
        transaction.commit().await.expect("committed");
        let left = async |after: u64| {
            Upkeep::new(world.database.clone()).run_once(at(90 * 86_400 + after)).await.expect("kept up");
            let rows = sqlx::query("SELECT subject FROM alerts ORDER BY id").fetch_all(world.database.reader()).await;
            rows.expect("alerts").iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>()
        };
        assert_eq!(left(0).await.len(), 1_201);
        assert_eq!(left(1_199).await, ["1199", "open"]);
        assert_eq!(left(1_200).await, ["open"]);
        world.close().await;
    }

    async fn what_a_node_says_holds_up_no_alert(database: TestDatabase) {
        let world = World::new(database).await;
        let ((ill, _), (lost, _)) = (world.node().await, world.node().await);
        let clock = Clock::at(NOW);
        let (alerts, _stop, _tasks) = start(&world, &clock, Policy::default()).await;
        connect(&world, ill, 1);
        connect(&world, lost, 2);
        let service = Service {
            key: Some(ServiceKey { stack: "shop".into(), service: "a\0b".into(), number: 1 }),
            health: ServiceHealth::Unhealthy.into(),
            health_output: "a\0b".into(),
            ..service("web", ServiceState::Running)
        };
        let report = Report { current: true, complete: true, services: Services::new(vec![service]), ..Report::default() };
        world.fleet.report(ill, vec![report], NOW);
        world.fleet.session_closed(lost, session(2), Ended::Lost, at(10));
        clock.set(at(40));
        let lost = async { while alerts.list(&Filter::default()).await.expect("a list").is_empty() { short().await } };
        tokio::time::timeout(seconds(30), lost).await.expect("the lost node is an alert");
        // The service may have been looked at only now.
        clock.set(at(80));
        let both = listed(&alerts, 2).await;
        let ill = both.iter().find(|alert| alert.rule == "service.unhealthy").expect("the ill one");
        assert_eq!((&*ill.subject, &*ill.message), ("shop/a\u{fffd}b/1", "its health check fails: a\u{fffd}b"));
        world.close().await;
    }

    async fn an_alert_that_can_not_be_written_holds_up_no_other(database: TestDatabase) {
        let world = World::new(database).await;
        let clock = Clock::at(NOW);
        let (alerts, _stop, _tasks) = start(&world, &clock, Policy::default()).await;
        let mut nodes = Vec::new();
        for number in 0..3 {
            nodes.push(match number {
                // The database knows of no such node.
                1 => {
                    let node = NodeId::new(NOW, [9; 10]);
                    let name = "nobody".to_owned();
                    world.fleet.enrolled(Member { node, tenant: acme(), kind: NodeKind::Agent, name, enrolled_at: NOW });
                    node
                }
                _ => world.node().await.0,
            });
        }
        for (node, number) in nodes.iter().zip(1..) {
            connect(&world, *node, number);
            world.fleet.session_closed(*node, session(number), Ended::Lost, at(10));
        }
        clock.set(at(40));
        let written = listed(&alerts, 2).await;
        assert!(written.iter().all(|alert| alert.rule == "node.lost" && alert.node != Some(nodes[1])), "{written:?}");
        world.close().await;
    }

    async fn an_alert_is_written_as_soon_as_the_database_takes_statements_again(database: TestDatabase) {
        let world = World::new(database).await;
        let nodes = [world.node().await.0, world.node().await.0];
        let clock = Clock::at(NOW);
        let (alerts, _stop, _tasks) = start(&world, &clock, Policy::default()).await;
        let mut owner = owner(database).await;
        sqlx::query("ALTER TABLE alerts RENAME TO mended").execute(&mut owner).await.expect("gone");
        for (node, second) in nodes.into_iter().zip([10, 50]) {
            connect(&world, node, 1);
            world.fleet.session_closed(node, session(1), Ended::Lost, at(second));
            clock.set(at(second + 30));
            // What is seen of the second comes after the first could not be written.
            let judged = async { while world.fleet.node(node).expect("a node").attention.level == Level::Ok { short().await } };
            tokio::time::timeout(seconds(30), judged).await.expect("it is seen to be lost");
        }
        sqlx::query("ALTER TABLE mended RENAME TO alerts").execute(&mut owner).await.expect("back");
        listed(&alerts, 2).await;
        world.close().await;
    }

    async fn an_authority_that_nothing_follows_is_an_alert_until_something_does(database: TestDatabase) {
        let world = World::new(database).await;
        let day = |day: u64| at(day * 86_400);
        let clock = Clock::at(day(254));
        let open = |tenant: Option<&str>| Filter {
            open: Some(true), tenant: tenant.map(|id| id.parse().expect("an id")), ..Filter::default()
        };
        let subjects = async |alerts: &Alerts, filter: &Filter, count: usize| {
            let listed = tokio::time::timeout(std::time::Duration::from_secs(30), async {
                loop {
                    match alerts.list(filter).await.expect("a list") {
                        listed if listed.len() == count => break listed,
                        _ => tokio::task::yield_now().await,
                    }
                }
            });
            let listed = listed.await.expect("as many as there should be");
            let mut said: Vec<_> = listed.iter().map(|one| (one.tenant.as_ref().map(ToString::to_string), one.subject.clone())).collect();
            said.sort();
            assert!(listed.iter().all(|one| one.rule == "authority.ending" && one.node.is_none()), "{listed:?}");
            said
        };
        // In its window, the hub follows it; that it could not is told when the window is over.
        clock.set(day(256));
        let (alerts, stop, mut tasks) = start(&world, &clock, Policy::default()).await;
        let expected = [(None, "hub/1".to_owned()), (Some("acme".to_owned()), "nodes/1".to_owned())];
        assert_eq!(subjects(&alerts, &open(None), 2).await, expected);
        assert_eq!(subjects(&alerts, &open(Some("acme")), 1).await, expected[1..]);
        stop.cancel();
        tasks.join_next().await;

        world.authorities.follow(day(256)).await.expect("followed");
        world.authorities.follow(day(256)).await.expect("once");
        let (alerts, stop, mut tasks) = start(&world, &clock, Policy::default()).await;
        subjects(&alerts, &open(None), 0).await;
        assert_eq!(world.authorities.list(None, day(256)).await.expect("a list").len(), 6);
        stop.cancel();
        tasks.join_next().await;
        // Roots are rotated by people.
        clock.set(day(2_930));
        world.authorities.follow(day(2_930)).await.expect("followed");
        let (alerts, _stop, _tasks) = start(&world, &clock, Policy::default()).await;
        let expected = [(None, "root/1".to_owned()), (Some("acme".to_owned()), "kafka/1".to_owned())];
        assert_eq!(subjects(&alerts, &open(None), 2).await, expected);
        world.close().await;
    }
}
