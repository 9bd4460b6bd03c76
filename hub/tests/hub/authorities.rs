//! The hub's own authority for HTTPS: one for all hubs of a database, and no part of what nodes trust.

use hyperfactory_hub::authorities::Authorities;
use pki::{MasterKey, WebName, web};
use store::on_both_engines;

use crate::setup::{NOW, World, seconds};

fn names(names: &[&str]) -> Vec<WebName> {
    names.iter().map(|name| name.parse().expect("a name")).collect()
}

on_both_engines! {
    async fn the_authority_for_https_stays_until_it_lacks_a_name_or_ends(test: TestDatabase) {
        let world = World::open(test).await;
        let open = async |now| {
            let master = MasterKey::from_bytes([7; 32]).expect("a key");
            Authorities::open(world.database.clone(), master, now).await.expect("authorities")
        };
        let trusted = async |named: &[&str], now| {
            let authority = open(now).await.web(&names(named), now).await.expect("an authority");
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
        assert_eq!(world.audited("authority.created").await.iter().filter(|entry| entry.subject == "web").count(), 3);
        let master = MasterKey::from_bytes([7; 32]).expect("a key");
        Authorities::check(&world.database, &master).await.expect("sealed like the others");
        world.close().await;
    }
}
