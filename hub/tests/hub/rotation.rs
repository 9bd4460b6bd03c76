//! Rotations of every authority: the phases, their gates, the way back from each, and what else goes on meanwhile.

use std::time::Duration;

use hyperfactory_hub::audit::{Actor, action};
use hyperfactory_hub::enrollment::Reason;
use hyperfactory_hub::revocation_lists::RevocationLists;
use hyperfactory_hub::rotation::{Direction, Phase, Rotation, RotationError, Wish};
use pki::{CertificateDer, NodeIdentity, Role, ServerNames};
use protocol::message::{RefusalCode, RenewRequest};
use protocol::{NodeKind, TenantId, Timestamp};
use store::testing::TestDatabase;
use store::{Engine, on_both_engines, sqlx};

use crate::audit::{owner, verified};
use crate::recovery::{State, recover};
use crate::setup::{NOW, World, acme, at, first_renewal, identity, key, step};

const DAY: Duration = Duration::from_secs(86_400);
/// From the beginning to the last phase before the end, and back again.
const THERE_AND_BACK: [Phase; 8] = [
    Phase::Prepare,
    Phase::Trust,
    Phase::Issue,
    Phase::Retire,
    Phase::Issue,
    Phase::Trust,
    Phase::Prepare,
    Phase::Aborted,
];

fn ann() -> Actor {
    Actor::operator("ann")
}

async fn begin(world: &World, role: Role) -> Rotation {
    world.rotations.start(role, "a new machine for the root", &ann(), NOW).await.expect("begun")
}

/// A step that leaves nobody behind.
async fn go(world: &World, rotation: &Rotation, direction: Direction) -> Result<Rotation, RotationError> {
    world.rotations.step(rotation.id, Wish::new(direction, rotation.phase), &ann(), NOW).await
}

/// Takes a step whoever is not ready, in the direction that leads to `to`.
async fn to(world: &World, rotation: &Rotation, to: Phase) -> Rotation {
    let direction = [Direction::Forward, Direction::Back].into_iter().find(|way| rotation.phase.step(*way) == Some(to));
    let rotation = step(&world.rotations, rotation, direction.expect("a step"), NOW).await.expect("taken");
    assert_eq!((rotation.phase, rotation.steps.last().map(|step| step.phase)), (to, Some(to)));
    rotation
}

/// The names of those who are not ready for the next phase, and why.
async fn missing(world: &World, rotation: &Rotation, direction: Direction) -> Vec<(String, String)> {
    let gate = world.rotations.gate(rotation, direction, NOW).await.expect("a gate").expect("open");
    gate.missing.into_iter().map(|one| (one.name, one.why)).collect()
}

async fn enrolled(world: &World, name: &str) -> State {
    let token = world.token(NodeKind::Agent, Some(name)).await;
    let key = key();
    let enrolled = world.enroll(&token, &key, NOW).await.expect("enrolled");
    State::new(key, &enrolled.certificate_chain, &enrolled.roots, 1)
}

/// Renews a node's certificate, and uses the new one.
async fn renewed(world: &World, identity: &NodeIdentity, sequence: u64) -> (NodeIdentity, Vec<Vec<u8>>) {
    let request = key().certificate_request().expect("a request");
    let request = RenewRequest { sequence, ..first_renewal(&request) };
    let renewed = world.enrollment.renew(identity, &request, NOW).await.expect("renewed");
    let chain = renewed.certificate_chain;
    let identity = self::identity(&chain);
    world.enrollment.seen(&identity, NOW).await.expect("seen");
    (identity, chain)
}

/// What the hub shows to nodes now, leaf first.
async fn shown(world: &World) -> Vec<CertificateDer<'static>> {
    let server = world.authorities.hub_server(NOW).await.expect("a certificate");
    [server.chain, server.roots.links.clone()].concat()
}

fn is_under(chain: &[Vec<u8>], roots: &[CertificateDer<'_>]) -> bool {
    roots.iter().any(|root| pki::trust::signed_by(&chain[1], root))
}

on_both_engines! {
    async fn a_root_is_followed_when_every_node_is_ready_and_who_is_not_is_named(database: TestDatabase) {
        let world = World::new(database).await;
        let (one, two) = (enrolled(&world, "one").await, enrolled(&world, "two").await);
        let first = world.authorities.roots();
        for state in [&one, &two] {
            world.enrollment.seen(&state.identity, NOW).await.expect("seen");
            world.enrollment.trusting(state.identity.node, &first.pins, "").await.expect("kept");
        }
        let old_tokens = [world.token(NodeKind::Agent, Some("a")).await, world.token(NodeKind::Agent, Some("b")).await];
        let rotation = begin(&world, Role::Root).await;
        assert_eq!((&world.authorities.roots().trusted, world.authorities.roots().links.len()), (&first.trusted, 0), "nobody is told");

        let rotation = go(&world, &rotation, Direction::Forward).await.expect("nobody has to be ready for it");
        let both = world.authorities.roots();
        assert_eq!((rotation.phase, both.trusted.len(), both.links.len(), &both.trusted[0]), (Phase::Trust, 2, 1, &first.trusted[0]));
        pki::roots::prove(&first.trusted, &both.trusted, &both.links, NOW).expect("linked");
        world.enrollment.trusting(one.identity.node, &both.pins, "").await.expect("kept");
        world.enrollment.trusting(two.identity.node, &first.pins, "no room on the disk").await.expect("kept");
        let refused = go(&world, &rotation, Direction::Forward).await.expect_err("one is not ready");
        let RotationError::NotReady { gate } = &refused else { panic!("{refused}") };
        assert_eq!((gate.missing.len(), gate.to), (1, Phase::Issue));
        for part in ["1 not ready", "two of acme", "never seen", "did not take", "no room on the disk", "--leave 1", "recovery"] {
            assert!(refused.to_string().contains(part), "{part}: {refused}");
        }
        world.enrollment.trusting(two.identity.node, &[both.pins[1], both.pins[0]], "").await.expect("kept");

        let rotation = go(&world, &rotation, Direction::Forward).await.expect("all are ready");
        let now = world.authorities.roots();
        assert_eq!((&now.trusted[0], world.authorities.root_pin()), (&both.trusted[1], both.pins[1]));
        let chain = shown(&world).await;
        for roots in [&first.trusted[..], &now.trusted[..1]] {
            assert!(pki::roots::leads_to(roots, &chain, NOW), "whoever trusts either finds the hub");
        }
        let late = world.enroll(&old_tokens[0], &key(), NOW).await.expect("a token of before");
        assert_eq!(late.roots.len(), 2);
        world.enrollment.seen(&identity(&late.certificate_chain), NOW).await.expect("seen");
        assert!(is_under(&late.certificate_chain, &now.trusted[..1]) && !is_under(&late.certificate_chain, &first.trusted));
        let named = missing(&world, &rotation, Direction::Forward).await;
        assert_eq!(named.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["one", "two"]);
        let (one_now, _) = renewed(&world, &one.identity, 1).await;
        let request = first_renewal(&key().certificate_request().expect("a request"));
        world.enrollment.renew(&two.identity, &request, NOW).await.expect("renewed");
        let named = missing(&world, &rotation, Direction::Forward).await;
        assert_eq!(named.len(), 1);
        assert!(named[0].0 == "two" && named[0].1.contains("has not used it"), "{named:?}");
        let gate = world.rotations.gate(&rotation, Direction::Forward, NOW).await.expect("a gate").expect("open");
        assert_eq!(gate.tokens, 1, "the other one of before");

        let leave = |leave| Wish { leave, ..Wish::new(Direction::Forward, Phase::Issue) };
        world.rotations.step(rotation.id, leave(0), &ann(), NOW).await.expect_err("one would be left behind");
        let rotation = world.rotations.step(rotation.id, leave(1), &ann(), NOW).await.expect("left behind");
        let alone = world.authorities.roots();
        assert_eq!((&*alone.trusted, alone.links.len()), (&now.trusted[..1], 1));
        let entry = &world.audited(action::ROTATION_ADVANCED).await[0];
        assert_eq!((entry.detail["left_behind"].as_i64(), entry.detail["left"][0]["name"].as_str()), (Some(1), Some("two")));
        let named = missing(&world, &rotation, Direction::Forward).await;
        assert!(named.iter().any(|(name, why)| name == "one" && why.contains("still trusts the old root")), "{named:?}");
        world.enrollment.trusting(one_now.node, &alone.pins, "").await.expect("kept");
        assert!(missing(&world, &rotation, Direction::Forward).await.iter().all(|(name, _)| name != "one"));

        let rotation = to(&world, &rotation, Phase::Done).await;
        assert_eq!(rotation.steps.iter().map(|step| step.phase).collect::<Vec<_>>(),
            [Phase::Prepare, Phase::Trust, Phase::Issue, Phase::Retire, Phase::Done]);
        for direction in [Direction::Forward, Direction::Back] {
            let over = go(&world, &rotation, direction).await.expect_err("over");
            assert!(matches!(over, RotationError::Over { .. }), "{over}");
        }
        let again = World::open(database).await;
        assert_eq!(again.authorities.roots().trusted, alone.trusted);
        assert_eq!(again.rotations.get(rotation.id).await.expect("kept"), rotation);
        // A rotation that goes straight on never has the new root stand for the old one.
        assert_eq!(world.audited(action::ROOT_LINKED).await.len(), 1);
        again.close().await;
        world.close().await;
        assert_eq!(verified(&mut owner(database).await, &[]).await.findings, []);
    }

    async fn whatever_a_node_trusts_it_finds_the_hub_in_every_phase_and_on_every_way_back(database: TestDatabase) {
        let world = World::new(database).await;
        let before = world.authorities.roots().trusted.clone();
        let issued_before = enrolled(&world, "before").await.chain[1].clone();
        let mut rotation = begin(&world, Role::Root).await;
        let mut new: Option<CertificateDer<'static>> = None;
        let mut retired = false;
        for (place, phase) in THERE_AND_BACK.into_iter().enumerate() {
            if place > 0 {
                rotation = to(&world, &rotation, phase).await;
            }
            retired |= phase == Phase::Retire;
            let roots = world.authorities.roots();
            new = new.or_else(|| roots.trusted.iter().find(|root| !before.contains(root)).cloned());
            let chain = shown(&world).await;
            let knows = |trusted: &[CertificateDer<'_>]| pki::roots::leads_to(trusted, &chain, NOW);
            assert!(knows(&before), "{phase} (step {place}): a node that knows the old root alone");
            // Who trusts the new root alone was told so in the phase retire, or was given a token then.
            if let Some(new) = new.as_ref().filter(|_| retired || phase == Phase::Issue) {
                assert!(knows(std::slice::from_ref(new)), "{phase} (step {place}): a node that knows the new root alone");
                let (known, pin) = ([new.clone()], pki::trust::pin(new).expect("a root"));
                let told = !roots.are(&[pin]);
                let taken = pki::roots::accept(&known, &roots.trusted, &roots.links, &chain, NOW);
                assert!(!told || taken.is_ok(), "{phase} (step {place}): and can take what it is told: {taken:?}");
            }
            pki::roots::accept(&before, &roots.trusted, &roots.links, &chain, NOW).expect("so can one that knows the old");
            let state = enrolled(&world, &format!("node-{place}")).await;
            let chain: Vec<Vec<u8>> = state.chain.iter().map(|der| der.to_vec()).collect();
            assert!(is_under(&chain, &roots.trusted[..1]), "{phase}: issued under the root that issues");
        }
        assert_eq!(world.authorities.roots().trusted, before);
        assert_eq!(enrolled(&world, "after").await.chain[1], issued_before, "what issued before issues again");
        assert_eq!(world.audited(action::ROTATION_WENT_BACK).await.len(), 3);
        assert_eq!(world.audited(action::ROTATION_ABORTED).await.len(), 1);
        // Another one can begin, and goes through.
        let next = crate::setup::rotate_root(&world.rotations, NOW).await;
        assert_eq!(next.phase, Phase::Done);
        world.close().await;
        assert_eq!(verified(&mut owner(database).await, &[]).await.findings, []);
    }

    async fn going_back_waits_for_those_who_would_be_left_with_the_new_one(database: TestDatabase) {
        let world = World::new(database).await;
        let state = enrolled(&world, "plant").await;
        world.enrollment.seen(&state.identity, NOW).await.expect("seen");
        let rotation = begin(&world, Role::Root).await;
        let rotation = to(&world, &to(&world, &rotation, Phase::Trust).await, Phase::Issue).await;
        let (new, _) = renewed(&world, &state.identity, 1).await;
        let rotation = go(&world, &rotation, Direction::Back).await.expect("both are trusted there");
        let refused = go(&world, &rotation, Direction::Back).await.expect_err("it would be locked out");
        assert!(refused.to_string().contains("plant of acme"), "{refused}");
        renewed(&world, &new, 2).await;
        let rotation = go(&world, &rotation, Direction::Back).await.expect("it has come back");
        assert_eq!(go(&world, &rotation, Direction::Back).await.expect("given up").phase, Phase::Aborted);
        world.close().await;
    }

    async fn everything_else_goes_on_in_every_phase(database: TestDatabase) {
        let world = World::new(database).await;
        let lists = RevocationLists::new(world.database.clone(), world.authorities.clone());
        let mut rotation = begin(&world, Role::Root).await;
        let mut of_before = enrolled(&world, "of-before").await;
        world.enrollment.seen(&of_before.identity, NOW).await.expect("seen");
        let forward = [Phase::Prepare, Phase::Trust, Phase::Issue, Phase::Retire, Phase::Done];
        let mut steps = THERE_AND_BACK.to_vec();
        steps.extend(forward);
        for (place, phase) in steps.into_iter().enumerate() {
            if place > 0 {
                rotation = match phase {
                    Phase::Prepare if !rotation.phase.is_open() => begin(&world, Role::Root).await,
                    phase => to(&world, &rotation, phase).await,
                };
            }
            let trusted = world.authorities.roots().trusted.clone();
            // A tenant comes, with all its authorities, and a node of it.
            let tenant: TenantId = format!("t{place}").parse().expect("a tenant");
            world.tenants.create(&tenant, "Another", &ann(), NOW).await.expect("a tenant");
            let nodes = world.authorities.trusted(&Role::Nodes(tenant.clone()), NOW).await.expect("a bundle");
            assert!(nodes.iter().all(|one| trusted.iter().any(|root| pki::trust::signed_by(one, root))), "{phase}");
            // One enrolls, renews, and is revoked; its issuer's list says so.
            let state = enrolled(&world, &format!("node-{place}")).await;
            let (renewed, chain) = renewed(&world, &state.identity, 1).await;
            assert!(is_under(&chain, &trusted[..1]), "{phase}");
            world.enrollment.authorize(&renewed).expect("it is in");
            world.enrollment.revoke(renewed.node, Reason::KeyCompromise, "", &ann(), NOW).await.expect("revoked");
            assert_eq!(world.enrollment.authorize(&renewed).expect_err("out").code(), RefusalCode::NodeRevoked);
            for authority in world.authorities.list(None, NOW).await.expect("a list") {
                if authority.kind == "nodes" && authority.certificates > 0 {
                    let list = lists.get(authority.id, NOW).await.expect("a key").expect("a list");
                    assert!(!list.der.is_empty(), "{phase}: authority {} of generation {}", authority.id, authority.generation);
                }
            }
            // One whose certificate has ended comes back, and is told the roots of now.
            let late = at(86_400 * 12 * (place as u64 + 1));
            let new = key();
            let recovered = recover(&world, &of_before, &new, late).await.expect("recovered");
            assert!(is_under(&recovered.certificate_chain, &trusted[..1]), "{phase}");
            let ders: Vec<CertificateDer<'_>> = recovered.roots.iter().map(|der| der.clone().into()).collect();
            let links: Vec<CertificateDer<'_>> = recovered.links.iter().map(|der| der.clone().into()).collect();
            pki::roots::accept(&of_before.roots, &ders, &links, &shown(&world).await, NOW).expect("linked to what it knows");
            let roots: Vec<Vec<u8>> = recovered.roots.clone();
            of_before = State::new(new, &recovered.certificate_chain, &roots, recovered.sequence);
            world.enrollment.seen(&of_before.identity, late).await.expect("seen");
        }
        // An intermediate that ends soon is followed by itself, whatever rotation is open.
        let rotation = begin(&world, Role::Nodes(acme())).await;
        let rotation = to(&world, &rotation, Phase::Trust).await;
        let late = NOW.plus(DAY * 320);
        let token = world.token_at(NodeKind::Agent, None, late).await;
        let enrolled = world.enroll(&token, &key(), late).await.expect("enrolled");
        assert!(identity(&enrolled.certificate_chain).not_after > late);
        step(&world.rotations, &rotation, Direction::Forward, late).await.expect("a step");
        world.close().await;
        assert_eq!(verified(&mut owner(database).await, &[]).await.findings, []);
    }

    async fn an_intermediate_goes_the_same_way_and_who_stays_with_the_old_one_recovers(database: TestDatabase) {
        let world = World::new(database).await;
        let (one, two) = (enrolled(&world, "one").await, enrolled(&world, "two").await);
        for state in [&one, &two] {
            world.enrollment.seen(&state.identity, NOW).await.expect("seen");
        }
        let rotation = begin(&world, Role::Nodes(acme())).await;
        let bundle = async || world.authorities.trusted(&Role::Nodes(acme()), NOW).await.expect("a bundle").len();
        assert_eq!(bundle().await, 1);
        // Nobody has to trust an intermediate: these steps wait for none.
        let rotation = go(&world, &rotation, Direction::Forward).await.expect("trust");
        assert_eq!(bundle().await, 2);
        let rotation = go(&world, &rotation, Direction::Forward).await.expect("issue");
        let refused = go(&world, &rotation, Direction::Forward).await.expect_err("two use the old one");
        assert!(refused.to_string().starts_with("2 not ready"), "{refused}");
        let (one, _) = renewed(&world, &one.identity, 1).await;
        let rotation = to(&world, &rotation, Phase::Retire).await;
        assert_eq!(bundle().await, 1);
        world.enrollment.authorize(&one).expect("it is with the new one");
        let refusal = world.enrollment.authorize(&two.identity).expect_err("retired");
        assert_eq!(refusal.code(), RefusalCode::CertificateReplaced);
        assert!(refusal.message.contains("rotated away"), "{}", refusal.message);
        let again = World::open(database).await;
        again.enrollment.authorize(&two.identity).expect_err("also for a hub that starts");
        again.close().await;
        let recovered = recover(&world, &two, &key(), NOW).await.expect("recovered");
        world.enrollment.authorize(&identity(&recovered.certificate_chain)).expect("in again");
        // One that still has a session gets the next certificate by it.
        let rotation = to(&world, &rotation, Phase::Issue).await;
        world.enrollment.authorize(&two.identity).expect("called back");
        let rotation = to(&world, &rotation, Phase::Retire).await;
        renewed(&world, &two.identity, 1).await;
        let rotation = go(&world, &rotation, Direction::Forward).await.expect("done");
        assert_eq!(rotation.phase, Phase::Done);
        world.close().await;
        assert_eq!(verified(&mut owner(database).await, &[]).await.findings, []);
    }

    async fn the_hubs_intermediate_is_shown_as_soon_as_it_issues(database: TestDatabase) {
        let world = World::new(database).await;
        let mut rotation = begin(&world, Role::Hub).await;
        let first = shown(&world).await;
        for (phase, new) in [(Phase::Trust, false), (Phase::Issue, true), (Phase::Trust, false), (Phase::Issue, true), (Phase::Retire, true), (Phase::Done, true)] {
            rotation = if rotation.phase == Phase::Issue && phase == Phase::Trust {
                go(&world, &rotation, Direction::Back).await.expect("back")
            } else {
                go(&world, &rotation, Direction::Forward).await.expect("on")
            };
            assert_eq!(rotation.phase, phase);
            assert_eq!(shown(&world).await[1] != first[1], new, "{phase}");
        }
        world.close().await;
    }

    async fn a_kafka_root_waits_for_bridges_brokers_and_somebody_who_has_looked(database: TestDatabase) {
        let world = World::new(database).await;
        let bridge = crate::kafka::bridge(&world).await;
        crate::kafka::client(&world, &acme(), bridge, &key()).await.expect("issued");
        let request = key().certificate_request().expect("a request");
        let names = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            ServerNames::new(&names, &[]).expect("names")
        };
        world.authorities.kafka_server(&acme(), &request, &names(&["redpanda"]), &ann(), NOW).await.expect("issued");
        let role = Role::Kafka(acme());
        let rotation = begin(&world, role.clone()).await;
        let bundle = async || world.authorities.trusted(&role, NOW).await.expect("a bundle").len();
        assert_eq!(bundle().await, 1);
        let rotation = go(&world, &rotation, Direction::Forward).await.expect("trust");
        assert_eq!(bundle().await, 2, "what brokers are to trust now");
        let refused = go(&world, &rotation, Direction::Forward).await.expect_err("nobody has looked");
        assert!(matches!(refused, RotationError::Brokers { to: Phase::Issue }), "{refused}");
        assert!(refused.to_string().contains("--brokers-updated"), "{refused}");
        let looked = |from| Wish { brokers_updated: true, ..Wish::new(Direction::Forward, from) };
        let rotation = world.rotations.step(rotation.id, looked(Phase::Trust), &ann(), NOW).await.expect("issue");

        let named = missing(&world, &rotation, Direction::Forward).await;
        assert_eq!(named.iter().map(|(name, _)| &**name).filter(|name| *name == "redpanda").count(), 1, "{named:?}");
        assert_eq!(named.len(), 2, "{named:?}");
        let refused = world.rotations.step(rotation.id, looked(Phase::Issue), &ann(), NOW).await.expect_err("two are of the old");
        assert!(matches!(refused, RotationError::NotReady { .. }), "{refused}");
        crate::kafka::client(&world, &acme(), bridge, &key()).await.expect("issued");
        world.authorities.kafka_server(&acme(), &request, &names(&["other"]), &ann(), NOW).await.expect("issued");
        assert_eq!(missing(&world, &rotation, Direction::Forward).await.len(), 1, "for other names is not in its place");
        world.authorities.kafka_server(&acme(), &request, &names(&["redpanda", "more"]), &ann(), NOW).await.expect("issued");
        assert_eq!(missing(&world, &rotation, Direction::Forward).await, []);
        let rotation = world.rotations.step(rotation.id, looked(Phase::Issue), &ann(), NOW).await.expect("retire");
        assert_eq!(bundle().await, 1);
        let rotation = to(&world, &rotation, Phase::Issue).await;
        assert_eq!(bundle().await, 2, "called back");
        let rotation = to(&world, &to(&world, &rotation, Phase::Retire).await, Phase::Done).await;
        assert_eq!(rotation.role, role);
        world.close().await;
        assert_eq!(verified(&mut owner(database).await, &[]).await.findings, []);
    }

    async fn what_can_not_be_is_refused_and_changes_nothing(database: TestDatabase) {
        let world = World::new(database).await;
        let start = async |role: Role, reason: &str| world.rotations.start(role, reason, &ann(), NOW).await;
        let nobody: TenantId = "nobody".parse().expect("a tenant");
        for (role, reason) in [
            (Role::Root, ""), (Role::Root, "two\nlines"), (Role::Root, &*"x".repeat(201)), (Role::Web, "it can't"),
            (Role::Nodes(nobody.clone()), "no tenant"), (Role::Kafka(nobody), "no tenant"),
        ] {
            start(role, reason).await.expect_err("refused");
        }
        assert_eq!(world.rotations.list(false, None, 10).await.expect("a list"), []);
        assert_eq!(world.audited(action::ROTATION_STARTED).await.len(), 0);

        let root = begin(&world, Role::Root).await;
        for role in [Role::Root, Role::Hub, Role::Nodes(acme())] {
            let refused = start(role, "at once").await.expect_err("one is under way");
            assert!(matches!(refused, RotationError::UnderWay { id, .. } if id == root.id), "{refused}");
        }
        let kafka = start(Role::Kafka(acme()), "it stands on its own").await.expect("begun");
        start(Role::Kafka(acme()), "again").await.expect_err("one is under way");
        // Two who click at once take one step.
        let moved = go(&world, &root, Direction::Forward).await.expect("a step");
        let refused = go(&world, &root, Direction::Forward).await.expect_err("somebody was faster");
        assert!(matches!(refused, RotationError::Elsewhere { phase: Phase::Trust, from: Phase::Prepare, .. }), "{refused}");
        assert_eq!(world.rotations.get(root.id).await.expect("there"), moved);
        world.rotations.get(99).await.expect_err("none");
        go(&world, &Rotation { id: 99, ..root.clone() }, Direction::Forward).await.expect_err("none");
        let wish = Wish { renew_within: DAY * 91, ..Wish::new(Direction::Forward, Phase::Trust) };
        assert!(matches!(world.rotations.step(root.id, wish, &ann(), NOW).await, Err(RotationError::Within)));
        // A root that has ended issues no more.
        let ended: Timestamp = NOW.plus(DAY * 3651);
        let refused = step(&world.rotations, &moved, Direction::Forward, ended).await.expect_err("it has ended");
        assert!(matches!(refused, RotationError::Ended(_)), "{refused}");

        let open = world.rotations.list(true, None, 10).await.expect("a list");
        assert_eq!(open.iter().map(|one| one.id).collect::<Vec<_>>(), [kafka.id, root.id]);
        let bound = world.rotations.within(Some(&acme()));
        assert_eq!(bound.list(false, None, 10).await.expect("a list").len(), 1);
        bound.get(kafka.id).await.expect("its own");
        bound.get(root.id).await.expect_err("the fleet's");
        world.close().await;
    }

    async fn who_stands_before_a_step_that_was_half_followed_is_advised_once(database: TestDatabase) {
        let world = World::new(database).await;
        let state = enrolled(&world, "plant").await;
        world.enrollment.seen(&state.identity, NOW).await.expect("seen");
        let rotation = begin(&world, Role::Root).await;
        to(&world, &to(&world, &rotation, Phase::Trust).await, Phase::Issue).await;
        // The hub ends between the step and what follows from it; the next one goes on there.
        let again = World::open(database).await;
        let regular = again.enrollment.renew_at(&state.identity);
        again.rotations.advise(&again.enrollment, NOW).await.expect("advised");
        let advised = again.enrollment.renew_at(&state.identity);
        assert!(advised < regular && advised <= NOW.plus(Duration::from_secs(3600)), "{advised} {regular}");
        again.rotations.advise(&again.enrollment, NOW).await.expect("nothing to do");
        assert_eq!(again.audited(action::RENEWAL_ADVISED).await.len(), 1);
        again.close().await;
        world.close().await;
    }
}

/// Numbers are given out before commits: of two steps at once, the one with the lower may be seen later.
#[tokio::test]
async fn a_step_that_is_committed_after_a_later_one_is_seen_too() {
    let database = TestDatabase::create(Engine::Postgres).await;
    let world = World::new(&database).await;
    let state = enrolled(&world, "plant").await;
    let other: TenantId = "other".parse().expect("a tenant");
    world.tenants.create(&other, "Other", &ann(), NOW).await.expect("a tenant");
    let (first, second) = (begin(&world, Role::Nodes(acme())).await, begin(&world, Role::Nodes(other)).await);
    let mut slow = world.database.begin_write().await.expect("a transaction");
    let step = "INSERT INTO rotation_steps (rotation, tenant, phase, at, by_whom, left_behind)
        VALUES ($1, 'acme', 'retire', 0, 'ann', 0)";
    sqlx::query(step).bind(first.id).execute(&mut *slow).await.expect("a step");
    let retired =
        "UPDATE authorities SET state = 'retired' WHERE kind = 'nodes' AND tenant = 'acme' AND state = 'active'";
    sqlx::query(retired).execute(&mut *slow).await.expect("retired");
    to(&world, &second, Phase::Trust).await;
    world.enrollment.authorize(&state.identity).expect("not retired yet");
    slow.commit().await.expect("committed");
    world.authorities.look(NOW).await.expect("a look");
    let refusal = world.enrollment.authorize(&state.identity).expect_err("retired");
    assert_eq!(refusal.code(), RefusalCode::CertificateReplaced);
    world.close().await;
    database.remove().await;
}
