//! Operators' keys: whose they are, and where it is found what became of them.

use std::sync::Arc;

use hyperfactory_hub::audit::{self, Actor, Filter};
use hyperfactory_hub::commands::{Commands, SteadyClock};
use hyperfactory_hub::operators;
use pki::OperatorKey;
use serde_json::json;
use store::on_both_engines;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::setup::{NOW, World, acme, at};

on_both_engines! {
    async fn a_tenant_finds_that_its_key_was_revoked_whoever_has_done_it(database: TestDatabase) {
        let world = World::new(database).await;
        let clock = SteadyClock::new(|| NOW);
        let (commands, task) =
            Commands::start(world.database.clone(), Arc::default(), clock, || NOW, CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(task);
        let (ann, bob) = (Actor::operator("ann"), Actor::operator("bob"));
        let (key, why) = (OperatorKey::generate().expect("a key").public(), "on call".parse().expect("a reason"));
        let key = operators::register(&world.database, "ann", key, Some(&acme()), &why, &ann, NOW).await.expect("taken");
        // By somebody of the fleet.
        let why = "ann has left".parse().expect("a reason");
        operators::revoke(&world.database, &commands, &key.id, None, &why, &bob, at(1)).await.expect("revoked");
        let filter = Filter { tenant: Some(acme()), action: Some("operator_key.".into()), ..Filter::default() };
        let found = audit::list(&world.database, &filter).await.expect("the audit log");
        let found: Vec<_> = found.iter().map(|entry| (&*entry.action, &*entry.actor, &entry.detail["reason"])).collect();
        let revoked = ("operator_key.revoked", "operator:bob", &json!("ann has left"));
        assert_eq!(found, [revoked, ("operator_key.registered", "operator:ann", &json!("on call"))]);
        world.close().await;
    }
}
