//! Revocation: denied at once, listed for others, and no way back but a new token.

use std::process::Command;

use hyperfactory_hub::audit::{Actor, action};
use hyperfactory_hub::enrollment::{Reason, RevokeError};
use hyperfactory_hub::revocation_lists::RevocationLists;
use protocol::message::RefusalCode;
use protocol::{NodeId, NodeKind};
use store::sqlx::{self, Connection as _};
use store::testing::TestDatabase;
use store::{Engine, on_both_engines};

use crate::audit::owner;
use crate::setup::{NOW, World, acme, at, first_renewal, identity, key, seconds};

on_both_engines! {
    async fn a_revoked_node_stays_out_with_every_certificate_and_key_it_ever_had(database: TestDatabase) {
        let world = World::new(database).await;
        let (token, first) = (world.token(NodeKind::Agent, None).await, key());
        let enrolled = world.enroll(&token, &first, NOW).await.expect("enrolled");
        let before = identity(&enrolled.certificate_chain);
        let request = key().certificate_request().expect("a request");
        let renewed = world.enrollment.renew(&before, &first_renewal(&request), at(10)).await.expect("renewed");
        let after = identity(&renewed.certificate_chain);
        world.enrollment.seen(&after, at(11)).await.expect("seen");

        let admin = Actor::operator("ann");
        let revoked = world.enrollment.revoke(after.node, Reason::KeyCompromise, "stolen", &admin, at(20)).await;
        let revoked = revoked.expect("revoked");
        assert_eq!((revoked.at, revoked.certificates), (at(20), 2));
        for identity in [&before, &after] {
            let refusal = world.enrollment.authorize(identity).expect_err("out");
            assert_eq!(refusal.code(), RefusalCode::NodeRevoked);
            let refusal = world.enrollment.renew(identity, &first_renewal(&request), at(21)).await.expect_err("out");
            assert_eq!(refusal.code(), RefusalCode::NodeRevoked);
        }
        // Neither by the reply it once had, nor with a new token and the key that is denied.
        world.enroll(&token, &first, at(22)).await.expect_err("out");
        let token = world.token(NodeKind::Agent, None).await;
        let refusal = world.enroll(&token, &first, at(23)).await.expect_err("a denied key");
        assert!(refusal.message.contains("delete the node's state directory"), "{}", refusal.message);

        // A hub that starts again knows it, and revoking again changes nothing.
        let again = World::open(database).await;
        assert_eq!(again.enrollment.authorize(&after).expect_err("out").code(), RefusalCode::NodeRevoked);
        assert_eq!(again.fleet.node(after.node).expect("listed").revoked_at, Some(at(20)));
        let twice = again.enrollment.revoke(after.node, Reason::Superseded, "", &admin, at(30)).await.expect("nothing to do");
        assert_eq!((twice.at, twice.certificates), (at(20), 0));
        let entries = again.audited(action::NODE_REVOKED).await;
        assert_eq!(entries.len(), 1);
        assert_eq!((&*entries[0].actor, entries[0].detail["comment"].as_str()), ("operator:ann", Some("stolen")));
        assert_eq!(entries[0].detail["certificates"].as_array().map(Vec::len), Some(2));
        // With a new token and a new key it is a new node.
        let token = again.token(NodeKind::Agent, None).await;
        again.enroll(&token, &key(), at(40)).await.expect("enrolled");
        again.close().await;
        world.close().await;
    }

    async fn a_removed_node_frees_its_name(database: TestDatabase) {
        let world = World::new(database).await;
        let token = world.token(NodeKind::Agent, Some("plant-7")).await;
        let identity = identity(&world.enroll(&token, &key(), NOW).await.expect("enrolled").certificate_chain);
        world.enrollment.remove(identity.node, &Actor::operator("ann"), at(1)).await.expect("removed");
        assert!(world.fleet.node(identity.node).is_none());
        assert_eq!(world.enrollment.authorize(&identity).expect_err("out").code(), RefusalCode::NodeUnknown);
        let gone = world.enrollment.remove(identity.node, &Actor::operator("ann"), at(2)).await.expect_err("gone");
        assert!(matches!(gone, RevokeError::Unknown(_)));
        let token = world.token(NodeKind::Agent, Some("plant-7")).await;
        let enrolled = world.enroll(&token, &key(), at(3)).await.expect("the name is free");
        assert_eq!(enrolled.name, "plant-7");
        world.close().await;
    }

    async fn what_another_hub_has_revoked_or_removed_is_out_here_once_it_is_asked_for_again(database: TestDatabase) {
        let world = World::new(database).await;
        let ((node, identity), (gone, removed)) = (world.node().await, world.node().await);
        let other = World::open(database).await;
        let admin = Actor::operator("ann");
        other.enrollment.revoke(node, Reason::KeyCompromise, "", &admin, at(20)).await.expect("revoked");
        other.enrollment.remove(gone, &admin, at(20)).await.expect("removed");
        for identity in [&identity, &removed] {
            world.enrollment.authorize(identity).expect("nobody has said so here");
        }
        let again = world.enrollment.revoke(node, Reason::KeyCompromise, "", &admin, at(30)).await.expect("nothing to do");
        assert_eq!((again.at, again.certificates), (at(20), 0));
        assert_eq!(world.enrollment.authorize(&identity).expect_err("out").code(), RefusalCode::NodeRevoked);
        assert_eq!(world.fleet.node(node).expect("listed").revoked_at, Some(at(20)));
        let again = world.enrollment.revoke(gone, Reason::KeyCompromise, "", &admin, at(30)).await.expect_err("gone");
        assert!(matches!(again, RevokeError::Unknown(_)));
        assert_eq!(world.enrollment.authorize(&removed).expect_err("out").code(), RefusalCode::NodeUnknown);
        assert!(world.fleet.node(gone).is_none());
        other.close().await;
        world.close().await;
    }

    async fn a_revocation_that_was_not_committed_leaves_the_node_in(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, identity) = world.node().await;
        fail_commits(database, world.database.engine()).await;
        world.enrollment.revoke(node, Reason::Superseded, "", &Actor::operator("ann"), at(1)).await.expect_err("failed");
        world.enrollment.authorize(&identity).expect("still in");
        assert_eq!(world.fleet.node(node).expect("listed").revoked_at, None);
        world.close().await;
    }

    async fn what_cannot_be_revoked_is_said(database: TestDatabase) {
        let world = World::new(database).await;
        let stranger = NodeId::new(NOW, [3; 10]);
        let (node, identity) = world.node().await;
        let actor = Actor::operator("ann");
        let unknown = world.enrollment.revoke(stranger, Reason::Unspecified, "", &actor, NOW).await.expect_err("unknown");
        assert!(unknown.to_string().contains("hfctl node list"), "{unknown}");
        let comment = world.enrollment.revoke(node, Reason::Unspecified, "two\nlines", &actor, NOW).await;
        assert!(matches!(comment, Err(RevokeError::Comment)));
        let reason = "because".parse::<Reason>().expect_err("no reason").to_string();
        assert!(reason.contains("key_compromise"), "{reason}");
        world.enrollment.authorize(&identity).expect("still in");
        world.close().await;
    }

    async fn openssl_reads_in_the_issuers_list_what_was_revoked(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, identity) = world.node().await;
        let (_, other) = world.node().await;
        let lists = RevocationLists::new(world.database.clone(), world.authorities.clone());
        let (issuer, certificate): (i64, Vec<u8>) =
            sqlx::query_as("SELECT id, certificate FROM authorities WHERE tenant = $1 AND kind = 'nodes'")
                .bind(acme().as_str().to_owned())
                .fetch_one(world.database.reader())
                .await
                .expect("the tenant's authority");
        assert!(lists.get(issuer + 1000, NOW).await.expect("an answer").is_none());
        let empty = lists.get(issuer, at(1)).await.expect("an answer").expect("a list");
        world.enrollment.revoke(node, Reason::KeyCompromise, "", &Actor::system(), at(20)).await.expect("revoked");
        let list = lists.get(issuer, at(21)).await.expect("an answer").expect("a list");
        assert_ne!(empty.der, list.der, "a revocation makes a new list");
        let same = lists.get(issuer, at(22)).await.expect("an answer").expect("a list");
        assert_eq!((same.made_at, &same.der), (at(21), &list.der), "kept while there is no news");
        let old = lists.get(issuer, at(21).plus(seconds(86_400))).await.expect("an answer").expect("a list");
        assert_ne!(old.made_at, list.made_at, "made anew while it is still good");

        let folder = tempfile::tempdir().expect("a folder");
        let (crl, ca) = (folder.path().join("list.crl"), folder.path().join("ca.der"));
        std::fs::write(&crl, &*list.der).expect("written");
        std::fs::write(&ca, certificate).expect("written");
        let pem = folder.path().join("ca.pem");
        openssl(&["x509", "-inform", "DER", "-in", path(&ca), "-out", path(&pem)]);
        let text = openssl(&["crl", "-inform", "DER", "-in", path(&crl), "-CAfile", path(&pem), "-text", "-noout"]);
        let serial = identity.serial.to_string().to_uppercase();
        assert!(text.contains("verify OK"), "{text}");
        assert!(text.contains(&serial) && text.contains("Key Compromise"), "{serial} in {text}");
        assert!(!text.contains(&other.serial.to_string().to_uppercase()), "{text}");
        world.close().await;
    }
}

/// From here on no revocation is committed: the engine finds what is wrong with it at the commit.
async fn fail_commits(test: &TestDatabase, engine: Engine) {
    let table = "CREATE TABLE fails (node TEXT REFERENCES nodes (id) DEFERRABLE INITIALLY DEFERRED)";
    let postgresql = [
        table,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
            'BEGIN INSERT INTO fails VALUES (''nobody''); RETURN NEW; END'",
        "CREATE TRIGGER fail AFTER INSERT ON revocations FOR EACH ROW EXECUTE FUNCTION fail()",
    ];
    let sqlite =
        [table, "CREATE TRIGGER fail AFTER INSERT ON revocations BEGIN INSERT INTO fails VALUES ('nobody'); END"];
    let statements: &[&str] = if engine == Engine::Sqlite { &sqlite } else { &postgresql };
    let mut owner = owner(test).await;
    for statement in statements {
        sqlx::query(*statement).execute(&mut owner).await.expect("done");
    }
    owner.close().await.expect("closed");
}

fn path(path: &std::path::Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// What `openssl` prints, on either output.
fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().expect("openssl");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{text}");
    text
}
