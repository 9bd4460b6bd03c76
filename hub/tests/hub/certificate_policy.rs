//! How long certificates live: by default, as it is set for the fleet and for a tenant, and within bounds.

use std::time::Duration;

use hyperfactory_hub::audit::{Actor, action};
use hyperfactory_hub::certificate_policy::{Kind, PolicyError, Source, Stated, Terms};
use pki::NodeIdentity;
use protocol::{NodeKind, TenantId, Timestamp};
use store::{on_both_engines, sqlx};

use crate::setup::{NOW, World, acme, at, first_renewal, identity, key};

const DAY: Duration = Duration::from_secs(86_400);

fn terms(days: u32, renew_from: u8, renew_until: u8) -> Option<Terms> {
    Some(Terms { lifetime: DAY * days, renew_from, renew_until })
}

async fn set(
    world: &World,
    tenant: Option<&TenantId>,
    kind: Kind,
    terms: Option<Terms>,
) -> Result<Stated, PolicyError> {
    let ann = Actor::operator("ann");
    world.authorities.policies().set(&world.database, tenant, kind, terms, &ann, NOW).await
}

async fn refused(world: &World, tenant: Option<&TenantId>, kind: Kind, terms: Option<Terms>, says: &str) {
    let error = set(world, tenant, kind, terms).await.expect_err(says).to_string();
    assert!(error.contains(says), "{error}");
}

async fn issued(world: &World, kind: NodeKind, now: Timestamp) -> NodeIdentity {
    identity(&world.enrolled_as(kind, now).await.1.certificate_chain)
}

on_both_engines! {
    async fn agents_have_7_days_and_bridges_90_and_each_its_moment_to_renew(database: TestDatabase) {
        let world = World::new(database).await;
        for (kind, life) in [(NodeKind::Agent, DAY * 7), (NodeKind::Bridge, DAY * 90)] {
            let node = issued(&world, kind, NOW).await;
            assert_eq!(node.not_after, NOW.plus(life), "{kind}");
            let share = world.enrollment.renew_at(&node).since(NOW).as_secs_f64() / life.as_secs_f64();
            assert!((0.57..=0.77).contains(&share), "{kind} renews at {share}");
            assert_eq!(world.enrollment.renew_at(&node), world.enrollment.renew_at(&node), "the same at every session");
            let request = key().certificate_request().expect("a request");
            let renewed = world.enrollment.renew(&node, &first_renewal(&request), at(60)).await.expect("renewed");
            assert_eq!(identity(&renewed.certificate_chain).not_after, at(60).plus(life), "{kind}, renewed");
        }
        world.close().await;
    }

    async fn whenever_a_bridge_is_enrolled_its_certificate_has_its_whole_life(database: TestDatabase) {
        let world = World::new(database).await;
        let mut issuers = std::collections::BTreeSet::new();
        for day in [0, 200, 254, 256, 276, 300, 330, 364, 366] {
            let now = NOW.plus(DAY * day);
            let (_, enrolled) = world.enrolled_as(NodeKind::Bridge, now).await;
            assert_eq!(identity(&enrolled.certificate_chain).not_after, now.plus(DAY * 90), "on day {day}");
            issuers.insert(enrolled.certificate_chain[1].clone());
        }
        assert_eq!(issuers.len(), 2, "one intermediate, and the one that followed it in its window");
        world.close().await;
    }

    async fn a_tenants_terms_win_over_the_fleets_and_those_over_the_defaults(database: TestDatabase) {
        let world = World::new(database).await;
        let (acme, kind) = (acme(), Kind::Agent);
        assert_eq!(set(&world, None, kind, terms(3, 50, 60)).await.expect("set").source, Source::Fleet);
        assert_eq!(issued(&world, NodeKind::Agent, NOW).await.not_after, NOW.plus(DAY * 3));
        set(&world, Some(&acme), kind, terms(1, 20, 40)).await.expect("set");
        let node = issued(&world, NodeKind::Agent, NOW).await;
        assert_eq!(node.not_after, NOW.plus(DAY));
        let share = world.enrollment.renew_at(&node).since(NOW).as_secs_f64() / DAY.as_secs_f64();
        assert!((0.2..=0.4).contains(&share), "{share}");

        // The next start knows it, and so does another hub when it looks.
        let again = World::open(database).await;
        let of_acme = |world: &World| world.authorities.policies().terms(Some(&acme), kind);
        assert_eq!((Some(of_acme(&again)), of_acme(&again).lifetime), (terms(1, 20, 40), DAY));
        let reset = set(&world, Some(&acme), kind, None).await.expect("reset");
        assert_eq!((reset.source, Some(reset.terms)), (Source::Fleet, terms(3, 50, 60)));
        again.authorities.look(NOW).await.expect("read");
        assert_eq!(Some(of_acme(&again)), terms(3, 50, 60));
        set(&world, None, kind, None).await.expect("reset");
        let listed = world.authorities.policies().list(Some(&acme));
        assert_eq!(listed.len(), 6, "root and the hub's intermediate are the fleet's");
        assert!(listed.iter().all(|one| one.source == Source::Default && one.terms == one.kind.default_terms()));

        let log = world.audited(action::CERTIFICATE_POLICY_CHANGED).await;
        assert_eq!(log.len(), 4);
        let told = |index: usize| {
            let detail = |side: &str| log[index].detail[side]["lifetime_seconds"].as_u64().expect("seconds") / 86_400;
            (log[index].tenant.as_deref(), log[index].subject.as_str(), detail("before"), detail("after"))
        };
        let newest_first = [(None, "agent", 3, 7), (Some("acme"), "agent", 1, 3), (Some("acme"), "agent", 3, 1), (None, "agent", 7, 3)];
        assert_eq!([0, 1, 2, 3].map(told), newest_first);
        again.close().await;
        world.close().await;
    }

    async fn what_does_not_fit_is_refused_and_changes_nothing(database: TestDatabase) {
        let world = World::new(database).await;
        let acme = acme();
        refused(&world, None, Kind::Agent, terms(2000, 57, 77), "from 1h to 1095d").await;
        refused(&world, None, Kind::Agent, terms(7, 57, 95), "between 10 and 85 percent").await;
        refused(&world, None, Kind::Bridge, terms(110, 57, 77), "may have no more than").await;
        refused(&world, Some(&acme), Kind::Root, terms(3650, 70, 80), "root is the fleet's own").await;
        let nobody = "nobody".parse().expect("an id");
        refused(&world, Some(&nobody), Kind::Agent, terms(3, 57, 77), "no tenant nobody").await;
        // A tenant's own terms must still fit when the fleet's change.
        set(&world, Some(&acme), Kind::Bridge, terms(100, 57, 77)).await.expect("it fits");
        refused(&world, None, Kind::NodesIntermediate, terms(310, 60, 70), "tenant acme has terms of its own").await;
        set(&world, Some(&acme), Kind::NodesIntermediate, terms(400, 60, 70)).await.expect("longer first");
        set(&world, None, Kind::NodesIntermediate, terms(310, 60, 70)).await.expect("then it fits");
        assert_eq!(world.audited(action::CERTIFICATE_POLICY_CHANGED).await.len(), 3);
        assert_eq!(world.authorities.policies().terms(None, Kind::Agent), Kind::Agent.default_terms());
        world.close().await;
    }

    async fn new_authorities_live_as_long_as_the_policy_says(database: TestDatabase) {
        let world = World::new(database).await;
        set(&world, None, Kind::Bridge, terms(20, 57, 77)).await.expect("set");
        set(&world, None, Kind::NodesIntermediate, terms(100, 60, 70)).await.expect("set");
        set(&world, None, Kind::KafkaRoot, terms(2000, 70, 80)).await.expect("set");
        let other: TenantId = "other".parse().expect("an id");
        world.tenants.create(&other, "Other Ltd", &Actor::system(), NOW).await.expect("a tenant");
        let listed = world.authorities.list(Some(&other), NOW).await.expect("a list");
        let ends = |kind: &str| listed.iter().find(|one| one.kind == kind).and_then(|one| one.not_after);
        assert_eq!((ends("nodes"), ends("kafka")), (Some(NOW.plus(DAY * 100)), Some(NOW.plus(DAY * 2000))));
        let followed = listed.iter().find(|one| one.kind == "nodes").and_then(|one| one.followed_at).expect("a moment");
        assert!((NOW.plus(DAY * 59)..NOW.plus(DAY * 71)).contains(&followed), "{followed}");
        world.close().await;
    }

    async fn certificates_that_end_later_than_a_shorter_policy_allows_are_found(database: TestDatabase) {
        let world = World::new(database).await;
        let (long, bridge) = (issued(&world, NodeKind::Agent, NOW).await, issued(&world, NodeKind::Bridge, NOW).await);
        let outliving = |kind| world.enrollment.outliving(Some(&acme()), kind, at(60));
        assert_eq!(outliving(Kind::Agent), []);
        set(&world, None, Kind::Agent, terms(2, 57, 77)).await.expect("set");
        issued(&world, NodeKind::Agent, NOW).await;
        assert_eq!((outliving(Kind::Agent), outliving(Kind::Bridge)), (vec![long.node], vec![]));
        set(&world, Some(&acme()), Kind::Bridge, terms(30, 57, 77)).await.expect("set");
        assert_eq!(outliving(Kind::Bridge), [bridge.node]);
        assert_eq!(world.enrollment.outliving(Some(&"other".parse().expect("an id")), Kind::Agent, at(60)), []);
        world.close().await;
    }

    async fn rows_that_no_operator_could_set_do_no_harm(database: TestDatabase) {
        let world = World::new(database).await;
        let mut transaction = world.database.begin_write().await.expect("a transaction");
        let rows = "INSERT INTO certificate_policies (tenant, kind, lifetime_seconds, renew_from, renew_until, changed_at, changed_by)
            VALUES (NULL, 'agent', 60, 40, 50, 0, 'x'), (NULL, 'bridge', 86400, -7, 900, 0, 'x'), (NULL, 'leaf', 1, 1, 1, 1, 'x')";
        sqlx::query(rows).execute(&mut *transaction).await.expect("rows");
        transaction.commit().await.expect("committed");
        world.authorities.look(NOW).await.expect("read");
        // As the drills have it: a life of a minute, renewed half-way.
        let agent = issued(&world, NodeKind::Agent, NOW).await;
        assert_eq!(agent.not_after, at(60));
        assert!((at(24)..=at(30)).contains(&world.enrollment.renew_at(&agent)));
        let bridge = issued(&world, NodeKind::Bridge, NOW).await;
        assert!((NOW..=bridge.not_after).contains(&world.enrollment.renew_at(&bridge)));
        world.close().await;
    }
}
