//! Commands beside sessions: what a courier waits for, and what is given up beside what a session still has.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use protocol::command::{Action, State};
use protocol::{CommandId, NodeId, SessionId, Timestamp};
use serde_json::json;
use store::sqlx;
use store::testing::TestDatabase;
use store::{Database, Engine, on_both_engines};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Courier;
use crate::audit::Actor;
use crate::commands::{Commands, Filter, NewRequest, SteadyClock};
use crate::gateway::{Directive, Registry};
use crate::schema::MIGRATIONS;

const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

fn open(database: &Database, sessions: Arc<Registry>) -> Commands {
    let clock = SteadyClock::new(|| NOW);
    // Its task would only do by itself what these tests ask for.
    Commands::start(database.clone(), sessions, clock, || NOW, CancellationToken::new()).0
}

fn drain(node: NodeId) -> NewRequest {
    NewRequest {
        nodes: vec![(node, "acme".parse().unwrap())],
        target: json!({}),
        action: Action::Drain,
        priority: 0,
        valid_for: Duration::from_secs(60),
        reason: "it is late".parse().unwrap(),
        scope: None,
        caller: "ann".into(),
        key: None,
        fingerprint: Vec::new(),
        signed: None,
    }
}

/// Rows of nodes of the tenant acme.
async fn enroll(database: &Database, nodes: &[NodeId]) {
    let mut transaction = database.begin_write().await.unwrap();
    let tenant = "INSERT INTO tenants (id, name, created_at) VALUES ('acme', 'Acme', 0)";
    sqlx::query(tenant).execute(&mut *transaction).await.unwrap();
    for node in nodes {
        sqlx::query(
            "INSERT INTO nodes (id, tenant, kind, name, software, enrolled_at) VALUES ($1, 'acme', 'agent', $1, '', 0)",
        )
        .bind(node.to_string())
        .execute(&mut *transaction)
        .await
        .unwrap();
    }
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn after_a_failure_more_commands_wait_for_a_while() {
    let file = TestDatabase::create(Engine::Sqlite).await;
    let commands = open(&file.open().await, Arc::default());
    let (node, changed) = (NodeId::new(NOW, [1; 10]), Notify::new());
    let mut courier = Courier::new(&commands, node);
    courier.more = true;
    assert!(courier.due(&changed).now_or_never().is_some(), "there is more, and room for it");
    courier.later(&commands.due(node, 1, NOW).await.unwrap_err());
    assert!(courier.due(&changed).now_or_never().is_none(), "at once again");
    changed.notify_one();
    assert!(courier.due(&changed).now_or_never().is_some(), "something has changed");
}

on_both_engines! {
    async fn what_a_node_that_is_away_has_is_given_up_however_much_others_work_on(database: TestDatabase) {
        let database = database.open().await;
        database.migrate(MIGRATIONS).await.unwrap();
        let sessions = Arc::<Registry>::default();
        let (busy, away) = (NodeId::new(NOW, [1; 10]), NodeId::new(NOW, [2; 10]));
        let _registered = sessions.register(busy, SessionId::new(NOW, [3; 10]));
        enroll(&database, &[busy, away]).await;
        let mut transaction = database.begin_write().await.unwrap();
        let asked = "INSERT INTO command_requests (id, caller, fingerprint, created_at) VALUES ('r', 'ann', '', 0)";
        sqlx::query(asked).execute(&mut *transaction).await.unwrap();
        // The busy one's deadlines come first, and are more than are read at once.
        for number in 0..2_500_u16 {
            let node = if number < 2_499 { busy } else { away };
            let mut random = [0; 10];
            random[..2].copy_from_slice(&number.to_be_bytes());
            sqlx::query(
                "INSERT INTO commands (id, request, tenant, node, action, arguments, priority, reason, requested_by, state,
                   created_at, deadline) VALUES ($1, 'r', 'acme', $2, 'drain', '', 0, '', 'ann', 'running', 0, $3)",
            )
            .bind(CommandId::new(NOW, random).to_string())
            .bind(node.to_string())
            // Many have the same.
            .bind(i64::from(number / 900))
            .execute(&mut *transaction)
            .await
            .unwrap();
        }
        transaction.commit().await.unwrap();
        open(&database, sessions).judge(NOW, true).await.unwrap();
        let rows = sqlx::query_as::<_, (String, i64)>("SELECT node, COUNT(*) FROM commands WHERE state = 'unknown' GROUP BY node")
            .fetch_all(database.reader())
            .await
            .unwrap();
        assert_eq!(rows, [(away.to_string(), 1)]);
        database.close().await;
    }

    async fn what_is_asked_for_is_handed_over_although_the_caller_goes_away(database: TestDatabase) {
        let database = database.open().await;
        database.migrate(MIGRATIONS).await.unwrap();
        let sessions = Arc::<Registry>::default();
        let node = NodeId::new(NOW, [1; 10]);
        let mut registered = sessions.register(node, SessionId::new(NOW, [2; 10]));
        enroll(&database, &[node]).await;
        let commands = open(&database, sessions);
        let new = drain(node);
        // The second is one statement on PostgreSQL.
        for _ in 0..2 {
            assert!(commands.request(new.clone(), &Actor::operator("ann"), NOW).now_or_never().is_none(), "stored already");
            let handed = tokio::time::timeout(Duration::from_secs(60), registered.directives.recv()).await;
            assert!(matches!(handed, Ok(Some(Directive::Command(_)))), "{handed:?}");
        }
        let filter = Filter { limit: 10, ..Filter::default() };
        let states = commands.list(&filter, NOW).await.unwrap().into_iter().map(|command| command.state);
        assert_eq!(states.collect::<Vec<_>>(), [State::Delivered; 2]);
        database.close().await;
    }

    async fn what_is_taken_back_is_told_although_the_caller_goes_away_and_when_it_is_taken_back_again(database: TestDatabase) {
        let database = database.open().await;
        database.migrate(MIGRATIONS).await.unwrap();
        let sessions = Arc::<Registry>::default();
        let node = NodeId::new(NOW, [1; 10]);
        let registered = sessions.register(node, SessionId::new(NOW, [2; 10]));
        enroll(&database, &[node]).await;
        let (commands, ann, why) = (open(&database, sessions), Actor::operator("ann"), "too late".parse().unwrap());
        let id = commands.request(drain(node), &ann, NOW).await.unwrap().commands[0].0;
        assert!(registered.commands.notified().now_or_never().is_none(), "it was handed over");
        let mut micros = 0;
        while commands.one(id, None, NOW).await.unwrap().unwrap().cancelled_by.is_none() {
            // A future that is dropped goes no further.
            drop(tokio::time::timeout(Duration::from_micros(micros % 6_000), commands.cancel(id, None, &why, &ann, NOW)).await);
            micros += 100;
        }
        let looks = async || tokio::time::timeout(Duration::from_secs(60), registered.commands.notified()).await;
        looks().await.expect("its session looks");
        // Those that were dropped may be under way.
        commands.cancel(id, None, &why, &ann, NOW).await.unwrap();
        looks().await.expect("its session looks");
        database.close().await;
    }

    async fn all_of_a_request_is_taken_back_although_the_caller_goes_away(database: TestDatabase) {
        let database = database.open().await;
        database.migrate(MIGRATIONS).await.unwrap();
        let sessions = Arc::<Registry>::default();
        let (there, away) = (NodeId::new(NOW, [1; 10]), NodeId::new(NOW, [3; 10]));
        let registered = sessions.register(there, SessionId::new(NOW, [2; 10]));
        enroll(&database, &[there, away]).await;
        let (commands, ann, why) = (open(&database, sessions), Actor::operator("ann"), "too late".parse().unwrap());
        let nodes = [there, away].map(|node| (node, "acme".parse().unwrap())).to_vec();
        let request = commands.request(NewRequest { nodes, ..drain(there) }, &ann, NOW).await.unwrap().id;
        assert!(registered.commands.notified().now_or_never().is_none(), "it was handed over");
        assert!(commands.cancel_request(&request, None, &why, &ann, NOW).now_or_never().is_none(), "stored already");
        let looks = tokio::time::timeout(Duration::from_secs(60), registered.commands.notified()).await;
        looks.expect("its session looks");
        let filter = Filter { request: Some(request), limit: 10, ..Filter::default() };
        let stand = commands.list(&filter, NOW).await.unwrap().into_iter();
        let mut stand: Vec<_> = stand.map(|one| (one.node, one.state, one.message, one.cancelled_by)).collect();
        stand.sort_by_key(|(node, ..)| *node);
        let (said, by) = (|| "taken back: too late".to_owned(), || Some("operator:ann".to_owned()));
        let expected = [(there, State::Delivered, said(), by()), (away, State::Cancelled, said(), by())];
        assert_eq!(stand, expected);
        database.close().await;
    }

    async fn a_session_hears_of_rows_that_were_stored_and_not_announced(database: TestDatabase) {
        let database = database.open().await;
        database.migrate(MIGRATIONS).await.unwrap();
        let sessions = Arc::<Registry>::default();
        let node = NodeId::new(NOW, [1; 10]);
        let registered = sessions.register(node, SessionId::new(NOW, [2; 10]));
        enroll(&database, &[node]).await;
        // What is stored by another hub is announced to nobody here.
        let (commands, other) = (open(&database, sessions), open(&database, Arc::default()));
        let (ann, why) = (Actor::operator("ann"), "too late".parse().unwrap());
        let looks = async || {
            assert!(registered.commands.notified().now_or_never().is_none(), "nobody has told it");
            commands.remind().await.unwrap();
            registered.commands.notified().now_or_never().is_some()
        };
        assert!(!looks().await, "there is nothing");
        let id = other.request(drain(node), &ann, NOW).await.unwrap().commands[0].0;
        assert!(looks().await, "it is queued");
        for (state, may_have_missed_it) in [("delivered", true), ("running", false)] {
            let mut transaction = database.begin_write().await.unwrap();
            sqlx::query("UPDATE commands SET state = $1").bind(state).execute(&mut *transaction).await.unwrap();
            transaction.commit().await.unwrap();
            assert_eq!(looks().await, may_have_missed_it, "{state}");
        }
        other.cancel(id, None, &why, &ann, NOW).await.unwrap();
        assert!(looks().await, "it is taken back");
        // A commit that the database did not confirm may be one.
        database.close().await;
        assert!(commands.request(drain(node), &ann, NOW).await.is_err());
        assert!(registered.commands.notified().now_or_never().is_some(), "it looks as soon as it can");
    }
}
