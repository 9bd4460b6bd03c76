//! Commands beside sessions: what a courier waits for, and what is given up beside what a session still has.

use std::sync::Arc;

use futures_util::FutureExt;
use protocol::{CommandId, NodeId, SessionId, Timestamp};
use store::sqlx;
use store::testing::TestDatabase;
use store::{Database, Engine, on_both_engines};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Courier;
use crate::commands::{Commands, SteadyClock};
use crate::gateway::Registry;
use crate::schema::MIGRATIONS;

const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

fn open(database: &Database, sessions: Arc<Registry>) -> Commands {
    let clock = SteadyClock::new(|| NOW);
    // Its task would only do by itself what these tests ask for.
    Commands::start(database.clone(), sessions, clock, || NOW, CancellationToken::new()).0
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
        let mut transaction = database.begin_write().await.unwrap();
        for sql in [
            "INSERT INTO tenants (id, name, created_at) VALUES ('acme', 'Acme', 0)",
            "INSERT INTO command_requests (id, caller, fingerprint, created_at) VALUES ('r', 'ann', '', 0)",
        ] {
            sqlx::query(sql).execute(&mut *transaction).await.unwrap();
        }
        for node in [busy, away] {
            let node = node.to_string();
            sqlx::query(
                "INSERT INTO nodes (id, tenant, kind, name, software, enrolled_at) VALUES ($1, 'acme', 'agent', $1, '', 0)",
            )
            .bind(node)
            .execute(&mut *transaction)
            .await
            .unwrap();
        }
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
}
