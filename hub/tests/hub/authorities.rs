//! The hub's own authority for HTTPS: one for all hubs of a database, and no part of what nodes trust.

use hyperfactory_hub::audit::action;
use hyperfactory_hub::authorities::Authorities;
use hyperfactory_hub::keys::Keys;
use pki::{WebName, web};
use store::on_both_engines;

use crate::audit::{owner, verified};
use crate::setup::{NOW, World, master, seconds};

fn names(names: &[&str]) -> Vec<WebName> {
    names.iter().map(|name| name.parse().expect("a name")).collect()
}

on_both_engines! {
    async fn the_authority_for_https_stays_until_it_lacks_a_name_or_ends(test: TestDatabase) {
        let world = World::open(test).await;
        let trusted = async |named: &[&str], now| {
            let keys = Keys::open(&world.database, &master(), now).await.expect("keys");
            let authorities = Authorities::open(world.database.clone(), keys, now).await.expect("authorities");
            let authority = authorities.web(&names(named), now).await.expect("an authority");
            (web::fingerprint(authority.certificate_der()), authority.web_names())
        };
        let first = trusted(&["one.example", "127.0.0.1"], NOW).await;
        assert_eq!(trusted(&["127.0.0.1"], NOW.plus(seconds(86_400))).await, first, "a later start");
        // A second hub of the fleet, and then the first again: both go by one authority.
        let second = trusted(&["two.example"], NOW).await;
        assert_ne!(second.0, first.0);
        assert_eq!(second.1, names(&["one.example", "127.0.0.1", "two.example"]));
        assert_eq!(trusted(&["one.example"], NOW).await, second);
        assert_ne!(trusted(&["one.example"], NOW.plus(seconds(3640 * 86_400))).await.0, second.0, "it ends");
        let made = world.audited(action::AUTHORITY_CREATED).await;
        assert_eq!(made.iter().filter(|entry| entry.subject == "web").count(), 3);
        let keys = Keys::open(&world.database, &master(), NOW).await.expect("keys");
        Authorities::check(&world.database, &keys).await.expect("sealed like the others");
        world.close().await;
    }

    async fn a_certificate_for_https_is_in_the_audit_log(test: TestDatabase) {
        let world = World::open(test).await;
        let before = world.audited(action::HUB_CERTIFIED).await.len();
        world.authorities.web_server(&names(&["hub.example"]), NOW).await.expect("a certificate");
        let logged = world.audited(action::HUB_CERTIFIED).await;
        assert_eq!(logged.len(), before + 1);
        assert!(logged.iter().any(|entry| entry.subject == "hub.example"), "{logged:?}");
        world.close().await;
        let report = verified(&mut owner(test).await, &[]).await;
        assert_eq!(report.findings, []);
    }
}
