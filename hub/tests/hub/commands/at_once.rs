//! What two hubs do to the same commands at once.

use std::time::Duration;

use protocol::command::State;
use store::{Engine, Transaction, on_both_engines, sqlx};

use super::Desk;
use crate::setup::{World, at, seconds};

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
        let (commands, mut changes) = (desk.commands.clone(), desk.commands.changes());
        let judging = tokio::spawn(async move { commands.judge(at(62), true).await });
        waited_for(&mut other, world.database.engine()).await;
        other.commit().await.expect("told");
        judging.await.expect("an end").expect("judged");
        let command = desk.one(id).await;
        assert_eq!((command.state, &*command.message, command.told), (State::Succeeded, "web restarted", true));
        assert_eq!(command.ended_at, Some(at(61)));
        assert!(changes.try_recv().is_err(), "nothing was given up");
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
