use std::sync::Arc;

use protocol::message::{TailEndReason, TailLine, TailLines};
use protocol::tail::{AT_ONCE, Tail};
use protocol::{NodeId, SessionId, TailId, TenantId, Timestamp};
use store::on_both_engines;
use store::testing::TestDatabase;

use crate::audit::{self, Actor};
use crate::gateway::Registry;
use crate::gateway::registry::Registered;
use crate::metrics::Metrics;
use crate::schema::MIGRATIONS;
use crate::tails::{EndReason, News, Reading, Tails, TailsError};

const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

/// A hub with one node in session.
struct Hub {
    database: store::Database,
    registry: Arc<Registry>,
    tails: Tails,
    node: NodeId,
    session: SessionId,
    registered: Registered,
    metrics: Arc<Metrics>,
}

impl Hub {
    async fn open(database: &TestDatabase) -> Self {
        let database = database.open().await;
        database.migrate(MIGRATIONS).await.unwrap();
        let registry = Arc::<Registry>::default();
        let (node, session) = (NodeId::new(NOW, [1; 10]), SessionId::new(NOW, [2; 10]));
        let registered = registry.register(node, session);
        let metrics = Arc::new(Metrics::new().unwrap());
        let tails = Tails::new(database.clone(), Arc::clone(&registry), Arc::clone(&metrics));
        Self { database, registry, tails, node, session, registered, metrics }
    }

    async fn read(&self, number: u8) -> Result<Reading, TailsError> {
        let of = (self.node, "acme".parse::<TenantId>().unwrap());
        self.tails.start(tail(number), of, Some(&"a test".parse().unwrap()), &Actor::operator("ann"), NOW).await
    }

    fn told(&self) -> Vec<TailId> {
        self.tails.of(self.node, self.session).into_iter().map(|tail| tail.id).collect()
    }
}

fn tail(number: u8) -> Tail {
    Tail {
        id: TailId::new(NOW, [number; 10]),
        stack: "shop".into(),
        service: "web".into(),
        since: None,
        until: None,
        grep: None,
        lines: 10,
        follow: true,
    }
}

fn lines(count: usize) -> TailLines {
    TailLines { lines: vec![TailLine::default(); count], ..TailLines::default() }
}

on_both_engines! {
    async fn a_reading_is_in_the_audit_log_before_the_node_hears_of_it_and_ends_with_its_reader(database: TestDatabase) {
        let hub = Hub::open(database).await;
        let reading = hub.read(1).await.unwrap();
        hub.registered.tails.notified().await;
        assert_eq!(hub.told(), [tail(1).id]);
        let entries = audit::list(&hub.database, &audit::Filter::default()).await.unwrap();
        assert_eq!((entries[0].action.as_str(), entries[0].actor.as_str()), ("tail.started", "operator:ann"));
        assert_eq!(entries[0].detail["reason"], "a test");
        drop(reading);
        hub.registered.tails.notified().await;
        assert!(hub.told().is_empty() && hub.tails.is_empty());
    }

    async fn a_reader_that_is_too_slow_is_told_what_it_missed_in_its_place_and_nothing_more_is_held(database: TestDatabase) {
        let hub = Hub::open(database).await;
        let mut reading = hub.read(1).await.unwrap();
        let id = hub.told()[0];
        for _ in 0..1_000 {
            hub.tails.relay(hub.session, id, lines(3));
        }
        let (mut held, mut count) = (0, 0);
        while count < 3_000 {
            let Some(News::Lines(lines)) = reading.next().await else { panic!("an end after {count}") };
            held += lines.lines.len();
            count += lines.count();
        }
        assert!(held < 100, "{held} lines were held");
        // What comes next says nothing of it again.
        hub.tails.relay(hub.session, id, lines(1));
        assert_eq!(reading.next().await, Some(News::Lines(lines(1))));
        // An end stands behind what is missing before it.
        for _ in 0..100 {
            hub.tails.relay(hub.session, id, lines(1));
        }
        hub.tails.ended(hub.session, id, TailEndReason::Complete, "");
        let mut count = 0;
        loop {
            match reading.next().await.unwrap() {
                News::Lines(lines) => count += lines.count(),
                News::End(end) => {
                    assert_eq!((end.reason, count + end.dropped), (EndReason::Complete, 100));
                    break;
                }
            }
        }
        assert_eq!(reading.next().await, None);
        let (passed, dropped) = (hub.metrics.tail_lines.get(), hub.metrics.tail_lines_dropped.get());
        assert_eq!(passed + dropped, 3_101, "every line is counted once: {passed} and {dropped}");
        assert!(passed > 0 && dropped > 2_900, "{passed} and {dropped}");
    }

    async fn only_so_many_are_read_at_once_and_none_of_a_node_that_is_away(database: TestDatabase) {
        let hub = Hub::open(database).await;
        let mut readings = Vec::new();
        for number in 0..AT_ONCE {
            readings.push(hub.read(number as u8).await.unwrap());
        }
        assert!(matches!(hub.read(9).await, Err(TailsError::Busy)));
        readings.pop();
        readings.push(hub.read(9).await.unwrap());
        // Another session of the node has told it nothing of these.
        assert_eq!(hub.told().len(), AT_ONCE);
        assert_eq!(hub.metrics.tails.get(), AT_ONCE as i64);
        assert!(hub.tails.of(hub.node, SessionId::new(NOW, [3; 10])).is_empty());
        hub.registry.remove(hub.node, hub.session);
        hub.tails.session_ended(hub.node, hub.session, "it is over");
        for mut reading in readings {
            let Some(News::End(end)) = reading.next().await else { panic!("it goes on") };
            assert_eq!((end.reason, end.message.as_str()), (EndReason::Gone, "it is over"));
        }
        assert!(matches!(hub.read(1).await, Err(TailsError::Offline)));
        assert!(hub.tails.is_empty());
        assert_eq!(hub.metrics.tails.get(), 0);
    }

    async fn an_agent_that_knows_no_tails_ends_those_it_has_said_nothing_of(database: TestDatabase) {
        let hub = Hub::open(database).await;
        let (mut first, mut second) = (hub.read(1).await.unwrap(), hub.read(2).await.unwrap());
        hub.told();
        hub.tails.relay(hub.session, tail(1).id, lines(0));
        hub.tails.unsupported(hub.session);
        let Some(News::End(end)) = second.next().await else { panic!("it goes on") };
        assert!(end.message.contains("update it"), "{}", end.message);
        hub.tails.relay(hub.session, tail(1).id, lines(2));
        assert_eq!(first.next().await, Some(News::Lines(lines(2))));
    }
}
