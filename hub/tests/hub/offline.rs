//! A fleet root that is kept offline: what waits for it, what a ceremony brings back, and what is not taken.

use hyperfactory_hub::audit::{Actor, action};
use hyperfactory_hub::authorities::ceremony::{Answers, Request};
use hyperfactory_hub::authorities::{Authorities, AuthoritiesError, Awaited, ImportError, Imported};
use hyperfactory_hub::keys::Keys;
use hyperfactory_hub::revocation_lists::RevocationLists;
use hyperfactory_hub::rotation::{Direction, Phase, Rotation};
use pki::offline::read_list;
use pki::{Authority, Role, pem};
use protocol::message::RefusalCode;
use protocol::{NodeKind, TenantId, Timestamp};
use store::on_both_engines;
use store::sqlx;
use store::testing::TestDatabase;

use crate::audit::{owner, verified};
use crate::setup::{HERE, NOW, World, acme, at, key, master, request, seconds, step};
use hyperfactory_hub::enrollment::NewToken;

fn days(days: u64) -> Timestamp {
    at(days * 86_400)
}

fn ann() -> Actor {
    Actor::operator("ann")
}

fn late() -> TenantId {
    "late".parse().expect("a tenant")
}

/// A hub whose root's key is elsewhere: with whoever calls.
async fn without_root(database: &TestDatabase) -> (World, Authority) {
    let world = World::new(database).await;
    let root = world.authorities.root_key().await.expect("the root");
    world.authorities.take_root_away(&root, &ann(), NOW).await.expect("taken away");
    (world, root)
}

/// What the root signs of what waits.
async fn ceremony(world: &World, root: &Authority, now: Timestamp) -> Answers {
    let requests = world.authorities.requests(now).await.expect("requests");
    let plan = requests.judge(root, now).expect("to be signed");
    plan.sign(root, "0000".into(), now).expect("signed").0
}

async fn kinds(world: &World, now: Timestamp) -> Vec<(&'static str, Option<String>)> {
    let awaited = world.authorities.awaited(None, now).await.expect("awaited");
    awaited.into_iter().map(|one: Awaited| (one.kind, one.tenant)).collect()
}

/// The serials of the tenant's intermediates by state.
async fn states(world: &World, tenant: &str) -> Vec<String> {
    sqlx::query_scalar("SELECT state FROM authorities WHERE kind = 'nodes' AND tenant = $1 ORDER BY generation")
        .bind(tenant.to_owned())
        .fetch_all(world.database.reader())
        .await
        .expect("authorities")
}

on_both_engines! {
    async fn a_tenant_that_is_made_meanwhile_waits_and_its_nodes_are_put_off(database: TestDatabase) {
        let (world, root) = without_root(database).await;
        let made = world.tenants.create(&late(), "Late", &ann(), at(1)).await.expect("a tenant");
        assert!(made.awaits_signature);
        assert!(world.tenants.get(&late()).await.expect("a tenant").awaits_signature);
        assert!(!world.tenants.get(&acme()).await.expect("a tenant").awaits_signature);
        assert_eq!(kinds(&world, at(2)).await, [("nodes", Some("late".to_owned()))]);

        let new = NewToken { tenant: late(), kind: NodeKind::Agent, name: None, valid_for: seconds(86_400) };
        let token = world.enrollment.create_token(new, &ann(), at(3)).await.expect("a token").1;
        let (key, refused) = (key(), world.audited(action::ENROLLMENT_REFUSED).await.len());
        for second in 4..7 {
            let refusal = world.enrollment.enroll(request(&token, &key), HERE, at(second)).await.expect_err("put off");
            assert_eq!((refusal.code(), refusal.retry_after_ms), (RefusalCode::Busy, 20_000));
            assert!(refusal.message.contains("tenant late waits for its authority"), "{}", refusal.message);
        }
        assert_eq!(world.audited(action::ENROLLMENT_REFUSED).await.len(), refused, "putting off is no denial");
        // Others go on.
        world.node().await;

        let answers = ceremony(&world, &root, at(10)).await;
        let imported = world.authorities.import(&answers, &ann(), at(20)).await.expect("imported");
        assert_eq!(imported, Imported { intermediates: 1, links: 0, list: true, known: 0 });
        assert!(!world.tenants.get(&late()).await.expect("a tenant").awaits_signature);
        assert_eq!(kinds(&world, at(21)).await, []);
        world.enrollment.enroll(request(&token, &key), HERE, at(22)).await.expect("enrolled, with the same token");

        // Once more, it is all known; nobody else than the operator did it, and nothing is unlogged.
        let again = world.authorities.import(&answers, &ann(), at(30)).await.expect("imported");
        assert_eq!(again, Imported { intermediates: 0, links: 0, list: false, known: 2 });
        let created = world.audited(action::AUTHORITY_CREATED).await;
        assert_eq!((&*created[0].actor, created[0].tenant.as_deref()), ("operator:ann", Some("late")));
        assert_eq!(world.audited(action::AUTHORITY_REQUESTED).await.len(), 1);
        assert_eq!(world.audited(action::ROOT_LIST_SIGNED).await.len(), 1);
        let keys = Keys::open(&world.database, &master(), NOW).await.expect("keys");
        Authorities::check(&world.database, &keys).await.expect("all that is here opens");
        world.close().await;
        assert_eq!(verified(&mut owner(database).await, &[]).await.findings, []);
    }

    async fn what_another_root_signed_or_nobody_asked_for_is_refused_as_a_whole(database: TestDatabase) {
        let (world, root) = without_root(database).await;
        for tenant in ["late", "later"] {
            world.tenants.create(&tenant.parse().expect("a tenant"), tenant, &ann(), at(1)).await.expect("a tenant");
        }
        let good = ceremony(&world, &root, at(2)).await;
        let import = async |answers: &Answers| world.authorities.import(answers, &ann(), at(3)).await;
        let foreign = Authority::create_root(NOW, seconds(86_400 * 3650)).expect("a root");

        let mut other = good.clone();
        other.root = pem::certificates([foreign.certificate_der()]);
        let error = import(&other).await.expect_err("another root");
        assert!(error.to_string().ends_with("it is for another hub"), "{error}");

        // The root's own signature, for a key that no row here has: another database of the same fleet.
        let never = root.issue_tenant_intermediate(&late(), at(2), seconds(86_400)).expect("signed");
        let mut unasked = good.clone();
        unasked.intermediates.push(pem::certificates([never.certificate_der()]));
        let error = import(&unasked).await.expect_err("never asked for");
        assert!(matches!(error, ImportError::NotRequested { .. }), "{error}");

        // The keys that were asked for, in the other tenant's name, and signed by somebody else.
        let requests = world.authorities.requests(at(2)).await.expect("requests");
        let mut swapped = requests.clone();
        let mut tenants = ["late", "later"].into_iter().rev();
        for asked in &mut swapped.requests {
            if let Request::Intermediate { tenant, .. } = asked {
                *tenant = tenants.next().map(str::to_owned);
            }
        }
        let swapped = swapped.judge(&root, at(2)).expect("it looks good").sign(&root, String::new(), at(2)).expect("signed").0;
        let error = import(&swapped).await.expect_err("for another tenant");
        assert!(matches!(error, ImportError::Refused { .. }) && error.to_string().contains("something else"), "{error}");
        let mut forged = requests;
        forged.root = pem::certificates([foreign.certificate_der()]);
        let forged = forged.judge(&foreign, at(2)).expect("it looks good").sign(&foreign, String::new(), at(2)).expect("signed").0;
        let forged = Answers { root: good.root.clone(), ..forged };
        let error = import(&forged).await.expect_err("by somebody else");
        assert!(error.to_string().contains("the fleet's root has not signed it"), "{error}");
        let mut list = good.clone();
        list.revocation_list = forged.revocation_list;
        let error = import(&list).await.expect_err("by somebody else");
        assert!(error.to_string().starts_with("the revocation list can't be taken"), "{error}");

        let early = world.authorities.import(&good, &ann(), NOW.minus(seconds(86_400))).await.expect_err("too early");
        assert!(matches!(early, ImportError::NotValid { .. }) && early.to_string().contains("clocks"), "{early}");

        // Of all that, nothing was taken. A part of an answer is.
        assert_eq!(kinds(&world, at(3)).await.len(), 2);
        let part = Answers { intermediates: good.intermediates[..1].to_vec(), revocation_list: None, ..good.clone() };
        assert_eq!(import(&part).await.expect("a part").intermediates, 1);
        assert_eq!(kinds(&world, at(4)).await.len(), 1);
        // Signed twice, the first stays.
        let twice = ceremony(&world, &root, at(4)).await;
        assert_eq!(import(&good).await.expect("the rest").intermediates, 1);
        let known = import(&twice).await.expect("nothing to do");
        assert_eq!((known.intermediates, known.known), (0, 1));
        assert_eq!(states(&world, "later").await, ["active"]);
        world.close().await;
        assert_eq!(verified(&mut owner(database).await, &[]).await.findings, []);
    }

    async fn successors_are_asked_for_in_time_and_the_hub_goes_on_until_they_come(database: TestDatabase) {
        let (world, root) = without_root(database).await;
        let before = world.authorities.hub_server(NOW).await.expect("a certificate");
        world.authorities.ask_ahead(days(200)).await.expect("asked");
        assert_eq!(kinds(&world, days(200)).await, []);
        for _ in 0..2 {
            world.authorities.ask_ahead(days(280)).await.expect("asked");
            assert_eq!(kinds(&world, days(280)).await, [("hub", None), ("nodes", Some("acme".to_owned()))]);
        }
        let awaited = world.authorities.awaited(Some(&acme()), days(280)).await.expect("awaited");
        assert_eq!(awaited.len(), 1, "a tenant sees its own");
        assert_eq!(awaited[0].ends, Some(days(365)));

        // In the last days, what there is still issues, and the hub starts.
        let last = days(364);
        let keys = Keys::open(&world.database, &master(), last).await.expect("keys");
        let started = Authorities::open(world.database.clone(), keys, last).await.expect("it starts");
        let shown = started.hub_server(last).await.expect("a certificate");
        assert_eq!(shown.not_after, days(365), "no longer than its authority");
        let again = started.hub_server(last.plus(seconds(3600))).await.expect("a certificate");
        assert_eq!(again.chain, shown.chain, "nothing lasts longer, so it is not issued again and again");
        let token = world.token_at(NodeKind::Agent, None, last).await;
        world.enroll(&token, &key(), last).await.expect("enrolled");

        // After the end, the hub starts for people, and nodes are put off.
        let ended = days(366);
        let shown = started.hub_server(ended).await.expect("the last one");
        assert_eq!(shown.chain, again.chain);
        let token = world.token_at(NodeKind::Agent, None, ended).await;
        let refusal = world.enroll(&token, &key(), ended).await.expect_err("put off");
        assert_eq!(refusal.code(), RefusalCode::Busy);

        let answers = ceremony(&world, &root, ended).await;
        let imported = world.authorities.import(&answers, &ann(), ended).await.expect("imported");
        assert_eq!((imported.intermediates, imported.list), (2, true));
        assert_eq!(states(&world, "acme").await, ["trusted", "active"]);
        let shown = started.hub_server(ended).await.expect("a new one");
        assert_eq!(shown.not_after, ended.plus(seconds(30 * 86_400)));
        assert_ne!(shown.chain[1], before.chain[1]);
        world.enroll(&token, &key(), ended).await.expect("enrolled");
        world.close().await;
    }

    async fn the_root_comes_back_and_signs_what_waited(database: TestDatabase) {
        let (world, root) = without_root(database).await;
        let twice = world.authorities.take_root_away(&root, &ann(), at(1)).await.expect_err("it is gone");
        assert!(matches!(twice, AuthoritiesError::RootOffline), "{twice}");
        assert!(world.authorities.root_is_offline().await.expect("an answer"));
        world.tenants.create(&late(), "Late", &ann(), at(2)).await.expect("a tenant");
        let foreign = Authority::create_root(NOW, seconds(86_400)).expect("a root");
        let error = world.authorities.bring_root_back(&foreign, &ann(), at(3)).await.expect_err("another root");
        assert!(matches!(error, AuthoritiesError::OtherRoot { .. }), "{error}");
        assert_eq!(world.authorities.bring_root_back(&root, &ann(), at(4)).await.expect("back"), Some(1));
        assert_eq!(world.authorities.bring_root_back(&root, &ann(), at(5)).await.expect("here"), None);
        assert_eq!(states(&world, "late").await, ["active"]);
        assert_eq!(kinds(&world, at(6)).await, []);
        let error = world.authorities.requests(at(6)).await.expect_err("online");
        assert!(matches!(error, AuthoritiesError::RootOnline), "{error}");
        let other: TenantId = "other".parse().expect("a tenant");
        let made = world.tenants.create(&other, "Other", &ann(), at(7)).await.expect("a tenant");
        assert!(!made.awaits_signature);
        for (action, times) in [(action::ROOT_EXPORTED, 1), (action::ROOT_RESTORED, 1)] {
            assert_eq!(world.audited(action).await.len(), times, "{action}");
        }
        world.close().await;
        assert_eq!(verified(&mut owner(database).await, &[]).await.findings, []);
    }

    async fn its_revocation_list_is_signed_ahead_and_asked_for_again_in_time(database: TestDatabase) {
        let (world, root) = without_root(database).await;
        let id: i64 = sqlx::query_scalar("SELECT id FROM authorities WHERE kind = 'root'")
            .fetch_one(world.database.reader())
            .await
            .expect("the root");
        let lists = RevocationLists::new(world.database.clone(), world.authorities.clone());
        let served = async |now| {
            let list = lists.get(id, now).await.expect("an answer").expect("a list");
            read_list(&list.der, root.certificate_der()).expect("the root's")
        };
        assert_eq!((served(days(100)).await.made_at, served(days(100)).await.until), (NOW, days(400)));
        assert_eq!(kinds(&world, days(309)).await, []);
        assert_eq!(kinds(&world, days(311)).await, [("revocation-list", None)]);
        let answers = ceremony(&world, &root, days(311)).await;
        let imported = world.authorities.import(&answers, &ann(), days(311)).await.expect("imported");
        assert_eq!(imported, Imported { list: true, ..Imported::default() });
        assert_eq!(served(days(312)).await.until, days(711));
        assert_eq!(kinds(&world, days(312)).await, []);
        world.close().await;
    }

    async fn an_intermediate_is_rotated_when_the_root_has_signed_its_successor(database: TestDatabase) {
        let (world, root) = without_root(database).await;
        let gate = async |rotation: &Rotation| {
            let gate = world.rotations.gate(rotation, Direction::Forward, at(2)).await.expect("known");
            gate.expect("a gate").unsigned
        };
        let given_up = world.rotations.start(Role::Nodes(acme()), "a leak", &ann(), at(1)).await.expect("begun");
        assert_eq!(kinds(&world, at(2)).await, [("nodes", Some("acme".to_owned()))]);
        assert_eq!(states(&world, "acme").await, ["active", "awaiting-signature"]);
        assert!(gate(&given_up).await);
        let refused = step(&world.rotations, &given_up, Direction::Forward, at(2)).await.expect_err("not signed");
        assert!(refused.to_string().contains("hyperfactory-hub ca root requests"), "{refused}");
        let late = ceremony(&world, &root, at(2)).await;
        step(&world.rotations, &given_up, Direction::Back, at(3)).await.expect("aborted");
        assert_eq!((kinds(&world, at(3)).await, states(&world, "acme").await), (vec![], vec!["active".into(), "retired".into()]));
        let imported = world.authorities.import(&late, &ann(), at(3)).await.expect("too late");
        assert_eq!((imported.intermediates, imported.known), (0, 1), "what was given up is not taken up again");

        // The root's way back into the hub, and a ceremony: either signs the successor, and nobody is told of it yet.
        let mut rotation = world.rotations.start(Role::Nodes(acme()), "a leak", &ann(), at(4)).await.expect("begun");
        let hubs = world.rotations.start(Role::Hub, "a leak", &ann(), at(4)).await.expect("begun");
        let answers = ceremony(&world, &root, at(5)).await;
        let only = Answers { intermediates: answers.intermediates[1..].to_vec(), ..answers };
        assert_eq!(world.authorities.import(&only, &ann(), at(6)).await.expect("imported").intermediates, 1);
        assert_eq!(states(&world, "acme").await, ["active", "retired", "pending"]);
        assert!(!gate(&rotation).await && gate(&hubs).await);
        assert_eq!(world.authorities.bring_root_back(&root, &ann(), at(7)).await.expect("back"), Some(1));
        assert!(!gate(&hubs).await);
        assert_eq!(kinds(&world, at(7)).await, []);

        for (direction, expected) in [
            (Direction::Forward, ["active", "retired", "trusted"]),
            (Direction::Forward, ["trusted", "retired", "active"]),
            (Direction::Back, ["active", "retired", "trusted"]),
            (Direction::Forward, ["trusted", "retired", "active"]),
            (Direction::Forward, ["retired", "retired", "active"]),
            (Direction::Forward, ["retired", "retired", "active"]),
        ] {
            rotation = step(&world.rotations, &rotation, direction, at(8)).await.expect("a step");
            assert_eq!(states(&world, "acme").await, expected);
        }
        assert_eq!(rotation.phase, Phase::Done);
        world.node().await;
        world.close().await;
        assert_eq!(verified(&mut owner(database).await, &[]).await.findings, []);
    }

    async fn a_next_root_waits_for_its_introduction(database: TestDatabase) {
        let (world, root) = without_root(database).await;
        let mut rotation = world.rotations.start(Role::Root, "a new root", &ann(), at(1)).await.expect("begun");
        assert_eq!(kinds(&world, at(2)).await, [("link", None)]);
        let refused = step(&world.rotations, &rotation, Direction::Forward, at(2)).await.expect_err("not introduced");
        assert!(refused.to_string().contains("hyperfactory-hub ca root requests"), "{refused}");
        let answers = ceremony(&world, &root, at(3)).await;
        let mut foreign = answers.clone();
        let another = Authority::create_root(at(1), seconds(86_400 * 3650)).expect("a root");
        foreign.links = vec![pem::certificates([&another.link(root.certificate_der(), at(3)).expect("a link")])];
        world.authorities.import(&foreign, &ann(), at(4)).await.map(|known| assert_eq!(known.links, 0)).expect("known");
        let imported = world.authorities.import(&answers, &ann(), at(4)).await.expect("imported");
        assert_eq!(imported.links, 1);
        assert_eq!(kinds(&world, at(5)).await, []);
        assert_eq!(world.authorities.roots().links.len(), 0, "nobody is told of it yet");

        rotation = step(&world.rotations, &rotation, Direction::Forward, at(6)).await.expect("introduced");
        let roots = world.authorities.roots();
        let known = [root.certificate_der().clone()];
        pki::roots::prove(&known, &roots.trusted, &roots.links, at(7)).expect("whoever knows the old one knows the next");
        assert_eq!(world.audited(action::ROOT_LINKED).await.len(), 1);
        // The new root's key is here: it issues by itself, and the old one, which is away, can be called back all the same.
        for direction in [Direction::Forward, Direction::Back, Direction::Forward, Direction::Forward, Direction::Forward] {
            rotation = step(&world.rotations, &rotation, direction, at(8)).await.expect("a step");
        }
        assert_eq!(rotation.phase, Phase::Done);
        assert!(!world.authorities.root_is_offline().await.expect("known"));
        world.node().await;
        world.close().await;
        assert_eq!(verified(&mut owner(database).await, &[]).await.findings, []);
    }
}
