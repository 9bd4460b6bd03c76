//! What two hubs do to the same commands at once.

use std::time::Duration;

use hyperfactory_hub::audit::{self, Actor, Record};
use hyperfactory_hub::commands::NewRequest;
use hyperfactory_hub::operators;
use pki::OperatorKey;
use protocol::command::State;
use serde_json::json;
use store::{Engine, Transaction, on_both_engines, sqlx};

use super::{Desk, new, signed};
use crate::setup::{NOW, World, acme, at, seconds};

on_both_engines! {
    async fn a_nodes_last_word_stands_although_it_comes_while_the_command_is_given_up(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let desk = Desk::open(&world, 0);
        let id = desk.ask(node).await;
        desk.deliver(node).await;
        desk.pass(seconds(61));
        // Its node is back, at another hub.
        let mut other = world.database.begin_write().await.expect("a transaction");
        sqlx::query("UPDATE commands SET state = 'succeeded', message = 'web restarted', told_at = $1, ended_at = $1")
            .bind(at(61).millis())
            .execute(&mut *other)
            .await
            .expect("its word");
        let mut changes = desk.commands.changes();
        let back = async {
            waited_for(&mut other, world.database.engine()).await;
            other.commit().await.expect("told");
        };
        let (judged, ()) = tokio::join!(desk.commands.judge(at(62), true), back);
        judged.expect("judged");
        let command = desk.one(id).await;
        assert_eq!((command.state, &*command.message, command.told), (State::Succeeded, "web restarted", true));
        assert_eq!(command.ended_at, Some(at(61)));
        assert!(changes.try_recv().is_err(), "nothing was given up");
        world.close().await;
    }

    async fn a_key_is_revoked_although_a_command_that_it_signed_is_taken_back_meanwhile(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let desk = Desk::open(&world, 0);
        let (key, bob) = (OperatorKey::generate().expect("a key"), Actor::operator("bob"));
        let why = "ann has left".parse().expect("a reason");
        let registered = operators::register(&world.database, "ann", key.public(), None, &why, &bob, NOW).await.expect("taken");
        let id = desk.commands.propose();
        desk.request(signed(node, &key, id, &new(node).action, at(600)), NOW).await.expect("taken");
        // It is taken back at another hub: first its row, and last its audit record.
        let mut other = world.database.begin_write().await.expect("a transaction");
        sqlx::query("UPDATE commands SET cancelled_by = 'operator:bob', state = 'cancelled'")
            .execute(&mut *other)
            .await
            .expect("its row");
        let record = Record {
            actor: bob.clone(),
            action: "command.cancelled",
            tenant: Some(acme()),
            subject: id.to_string(),
            detail: json!({}),
            remote: None,
        };
        let taking = async {
            waited_for(&mut other, world.database.engine()).await;
            audit::append(&mut other, at(1), record).await.expect("its record");
            other.commit().await.expect("taken back");
        };
        let revoking = operators::revoke(&world.database, &desk.commands, &registered.id, None, &why, &bob, at(1));
        let (revoked, ()) = tokio::join!(revoking, taking);
        revoked.expect("revoked");
        let keys = operators::list(&world.database, None).await.expect("keys");
        assert_eq!((&keys[0].id, keys[0].revoked_at), (&registered.id, Some(at(1))));
        assert_eq!(world.audited("operator_key.revoked").await.len(), 1);
        assert_eq!(world.audited("command.cancelled").await.len(), 1, "by one of the two");
        world.close().await;
    }

    async fn commands_are_handed_over_although_they_are_taken_back_meanwhile(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let desk = Desk::open(&world, 0);
        let first = desk.ask(node).await;
        desk.pass(seconds(1));
        // It is told first, and comes last by its id.
        let urgent = desk.request(NewRequest { priority: 9, ..new(node) }, NOW).await.expect("taken").commands[0].0;
        let due = desk.commands.due(node, 32, NOW).await.expect("an answer");
        assert_eq!(due.iter().map(|due| due.id).collect::<Vec<_>>(), [urgent, first]);
        // They are taken back at another hub, one after the other.
        let mut other = world.database.begin_write().await.expect("a transaction");
        let take = "UPDATE commands SET cancelled_by = 'operator:bob', state = 'cancelled' WHERE id = $1";
        sqlx::query(take).bind(first.to_string()).execute(&mut *other).await.expect("the first");
        let taking = async {
            waited_for(&mut other, world.database.engine()).await;
            sqlx::query(take).bind(urgent.to_string()).execute(&mut *other).await.expect("the second");
            other.commit().await.expect("taken back");
        };
        let (handed, ()) = tokio::join!(desk.commands.deliver(node, due, NOW), taking);
        let handed = handed.expect("stored");
        assert!(handed.is_empty(), "nobody is told any more: {handed:?}");
        assert_eq!((desk.state(first).await, desk.state(urgent).await), (State::Cancelled, State::Cancelled));
        world.close().await;
    }
}

/// Until somebody waits for a row that `holder` has. With SQLite, whoever comes after its one writer waits.
async fn waited_for(holder: &mut Transaction, engine: Engine) {
    if engine == Engine::Sqlite {
        return;
    }
    // `pg_stat_activity` tells the hub's role nothing of it.
    let waiting = "SELECT COUNT(*) FROM pg_locks WHERE relation = 'commands'::regclass AND locktype = 'tuple'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let waited = async {
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut **holder).await.expect("a count") == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited).await.expect("somebody waits");
}
