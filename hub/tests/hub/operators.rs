//! Operators' keys: whose they are, and where it is found what became of them.

use std::sync::Arc;

use hyperfactory_hub::audit::{self, Actor, Filter};
use hyperfactory_hub::commands::{Commands, SteadyClock};
use hyperfactory_hub::operators;
use pki::OperatorKey;
use store::on_both_engines;
use tokio_util::sync::CancellationToken;

use crate::setup::{NOW, World, acme, at};

on_both_engines! {
    async fn a_tenant_finds_that_its_key_was_revoked_whoever_has_done_it(database: TestDatabase) {
        let world = World::new(database).await;
        let clock = SteadyClock::new(|| NOW);
        let (commands, task) =
            Commands::start(world.database.clone(), Arc::default(), clock, || NOW, CancellationToken::new());
        let task = tokio::spawn(task);
        let (ann, bob) = (Actor::operator("ann"), Actor::operator("bob"));
        let key = OperatorKey::generate().expect("a key").public();
        let key = operators::register(&world.database, "ann", key, Some(&acme()), &ann, NOW).await.expect("taken");
        // By somebody of the fleet.
        operators::revoke(&world.database, &commands, &key.id, None, &bob, at(1)).await.expect("revoked");
        let filter = Filter { tenant: Some(acme()), action: Some("operator_key.".into()), ..Filter::default() };
        let found = audit::list(&world.database, &filter).await.expect("the audit log");
        let found: Vec<_> = found.iter().map(|entry| (&*entry.action, &*entry.actor)).collect();
        assert_eq!(found, [("operator_key.revoked", "operator:bob"), ("operator_key.registered", "operator:ann")]);
        task.abort();
        world.close().await;
    }
}
