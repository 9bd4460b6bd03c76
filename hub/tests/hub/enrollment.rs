//! Tokens, certificates, renewal, and who may hold a session.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use hyperfactory_hub::audit::{Actor, action};
use hyperfactory_hub::enrollment::{NewToken, TokenError};
use hyperfactory_hub::tenants::TenantError;
use pki::JoinToken;
use protocol::NodeKind;
use protocol::message::{RefusalCode, RenewRequest, VersionRange};
use store::{on_both_engines, sqlx};
use tokio::task::JoinSet;

use crate::audit::{owner, verified};
use crate::setup::{HERE, NOW, World, acme, at, first_renewal, identity, key, request, seconds};

on_both_engines! {
    async fn a_token_enrolls_one_node(database: TestDatabase) {
        let world = World::new(database).await;
        let token = world.token(NodeKind::Agent, None).await;
        let key = key();
        let enrolled = world.enroll(&token, &key, NOW).await.expect("enrolled");
        let identity = identity(&enrolled.certificate_chain);
        assert_eq!(identity.node.to_bytes().to_vec(), enrolled.node_id);
        assert_eq!((identity.tenant.as_str(), identity.kind), ("acme", NodeKind::Agent));
        assert_eq!(identity.spki_sha256, key.spki_sha256());
        assert_eq!(enrolled.name, "plant-1.example");
        pki::trust::check_root(&enrolled.roots[0].clone().into(), &token.root_pin).expect("the pinned root");
        world.enrollment.authorize(&identity).expect("may hold a session");
        assert_eq!(&*world.fleet.node(identity.node).expect("in the fleet").name, "plant-1.example");

        let info = &world.enrollment.list_tokens(Some(&acme())).await.expect("tokens")[0];
        assert_eq!((info.used_at, info.node), (Some(NOW), Some(identity.node)));
        let entry = &world.audited(action::NODE_ENROLLED).await[0];
        assert_eq!((entry.subject.clone(), entry.remote.clone()), (identity.node.to_string(), Some(HERE.to_string())));
        world.close().await;
    }

    async fn a_lost_reply_is_given_again_to_the_same_key(database: TestDatabase) {
        let world = World::new(database).await;
        let token = world.token(NodeKind::Agent, None).await;
        let key = key();
        let first = world.enroll(&token, &key, NOW).await.expect("enrolled");
        // Also after the token's own end, and from a hub that has started again.
        let again = World::open(database).await;
        assert_eq!(again.enroll(&token, &key, at(7200)).await.expect("the same"), first);
        assert_eq!(world.audited(action::NODE_ENROLLED).await.len(), 1);
        again.close().await;
        world.close().await;
    }

    async fn a_used_token_with_another_key_is_refused_and_audited(database: TestDatabase) {
        let world = World::new(database).await;
        let token = world.token(NodeKind::Agent, None).await;
        world.enroll(&token, &key(), NOW).await.expect("enrolled");
        let refusal = world.enroll(&token, &key(), NOW).await.expect_err("used");
        assert_eq!(refusal.code(), RefusalCode::TokenUsed);
        let entry = &world.audited(action::ENROLLMENT_REFUSED).await[0];
        assert_eq!((entry.tenant.as_deref(), entry.detail["reason"].as_str()), (Some("acme"), Some(&*refusal.message)));
        world.close().await;
    }

    async fn of_two_nodes_with_one_token_one_gets_in(database: TestDatabase) {
        let world = World::new(database).await;
        let token = world.token(NodeKind::Agent, None).await;
        let (one, two) = (key(), key());
        let (one, two) = tokio::join!(world.enroll(&token, &one, NOW), world.enroll(&token, &two, NOW));
        assert_eq!(u8::from(one.is_ok()) + u8::from(two.is_ok()), 1);
        let refusal = one.err().or(two.err()).expect("one is refused");
        assert_eq!(refusal.code(), RefusalCode::TokenUsed);
        world.close().await;
    }

    async fn a_key_that_another_node_has_or_had_is_refused_and_audited(database: TestDatabase) {
        let world = World::new(database).await;
        let (first, second) = (key(), key());
        let enrolled = world.enroll(&world.token(NodeKind::Agent, None).await, &first, NOW).await.expect("enrolled");
        let owner = identity(&enrolled.certificate_chain);
        let renewed = second.certificate_request().expect("a request");
        let renewed = world.enrollment.renew(&owner, &first_renewal(&renewed), at(60)).await.expect("renewed");
        world.enrollment.seen(&identity(&renewed.certificate_chain), at(61)).await.expect("a session with the new one");

        // The key it has, and the key it had.
        let (other_token, (_, other)) = (world.token(NodeKind::Agent, None).await, world.node().await);
        for taken in [&first, &second] {
            let refusal = world.enroll(&other_token, taken, at(70)).await.expect_err("another node's");
            assert_eq!(refusal.code(), RefusalCode::Malformed);
            assert!(refusal.message.contains("Delete this node's state directory"), "{}", refusal.message);
            let request = taken.certificate_request().expect("a request");
            let refusal = world.enrollment.renew(&other, &first_renewal(&request), at(70)).await.expect_err("another's");
            assert!(refusal.message.contains("Delete this node's state directory"), "{}", refusal.message);
        }
        assert_eq!(world.audited(action::ENROLLMENT_REFUSED).await.len(), 2);
        assert_eq!(world.audited(action::RENEWAL_REFUSED).await.len(), 2);
        // The token is still good for a key of the node's own.
        world.enroll(&other_token, &key(), at(71)).await.expect("enrolled");
        world.close().await;
    }

    async fn of_two_nodes_with_one_key_one_gets_in(database: TestDatabase) {
        let world = World::new(database).await;
        let (one, two) = (world.token(NodeKind::Agent, None).await, world.token(NodeKind::Agent, None).await);
        let key = key();
        let (one, two) = tokio::join!(world.enroll(&one, &key, NOW), world.enroll(&two, &key, NOW));
        assert_eq!(u8::from(one.is_ok()) + u8::from(two.is_ok()), 1, "{one:?} {two:?}");
        world.close().await;
    }

    async fn many_that_come_at_once_get_what_each_would_get_alone(database: TestDatabase) {
        let world = Arc::new(World::new(database).await);
        let (_, renewing) = world.node().await;
        let renewal = key().certificate_request().expect("a request");
        let unknown = JoinToken::new("hub.example:7443", world.authorities.root_pin(), [9; 32]).expect("a token");
        let mut asking = JoinSet::new();
        for number in 0..60 {
            let (world, unknown) = (Arc::clone(&world), unknown.clone());
            let (renewing, renewal) = (renewing.clone(), first_renewal(&renewal));
            let token = world.token(NodeKind::Agent, None).await;
            asking.spawn(async move {
                match number % 6 {
                    0 => world.enroll(&unknown, &key(), NOW).await.map(|_| None),
                    1 => world.enrollment.renew(&renewing, &renewal, NOW).await.map(|renewed| Some(renewed.certificate_chain)),
                    _ => world.enroll(&token, &key(), NOW).await.map(|enrolled| Some(enrolled.certificate_chain)),
                }
            });
        }
        let (mut chains, mut refused) = (HashMap::<_, usize>::new(), 0);
        while let Some(asked) = asking.join_next().await {
            match asked.expect("no panic") {
                Ok(chain) => *chains.entry(chain.expect("a chain")).or_default() += 1,
                Err(refusal) => {
                    assert_eq!(refusal.code(), RefusalCode::TokenUnknown, "{}", refusal.message);
                    refused += 1;
                }
            }
        }
        // All renewals are with one key: they get one certificate, as after a lost reply.
        let mut times: Vec<usize> = chains.values().copied().collect();
        times.sort_unstable();
        assert_eq!((times.len(), times.last(), times.iter().sum::<usize>(), refused), (41, Some(&10), 50, 10));
        let again = World::open(database).await;
        let (mut nodes, mut names) = (HashSet::new(), HashSet::new());
        for chain in chains.keys() {
            let identity = identity(chain);
            again.enrollment.authorize(&identity).expect("committed");
            world.enrollment.authorize(&identity).expect("known without another look at the database");
            nodes.insert(identity.node);
            names.insert(world.fleet.node(identity.node).expect("in the fleet").name.clone());
        }
        assert_eq!((nodes.len(), names.len()), (41, 41));
        // Each certificate has its own entry, and the chain holds.
        let entries = world.audited(action::NODE_ENROLLED).await;
        let serials: HashSet<&str> = entries.iter().filter_map(|entry| entry.detail["certificate"]["serial"].as_str()).collect();
        assert_eq!((entries.len(), serials.len()), (41, 41));
        assert_eq!(world.audited(action::CERTIFICATE_RENEWED).await.len(), 1);
        assert_eq!(verified(&mut owner(database).await, &[]).await.findings, []);
        again.close().await;
        world.database.close().await;
    }

    async fn an_answer_that_nobody_waits_for_takes_effect_all_the_same(database: TestDatabase) {
        let world = World::new(database).await;
        let token = world.token(NodeKind::Agent, None).await;
        let key = key();
        let asked = world.enroll(&token, &key, NOW).now_or_never();
        assert!(asked.is_none(), "handed in, and not waited for");
        let effect = tokio::time::timeout(seconds(20), async {
            while world.audited(action::NODE_ENROLLED).await.is_empty() {
                tokio::task::yield_now().await;
            }
        });
        effect.await.expect("it is in the log");
        let enrolled = world.enroll(&token, &key, at(1)).await.expect("the same");
        world.enrollment.authorize(&identity(&enrolled.certificate_chain)).expect("may hold a session");
        assert_eq!(world.audited(action::NODE_ENROLLED).await.len(), 1);
        world.close().await;
    }

    async fn tokens_that_are_not_good_are_refused_without_their_secret_in_the_log(database: TestDatabase) {
        let world = World::new(database).await;
        let token = world.token(NodeKind::Agent, None).await;
        let bridge = world.token(NodeKind::Bridge, None).await;
        let unknown = JoinToken::new("hub.example:7443", token.root_pin, [9; 32]).expect("a token");
        let old = VersionRange { oldest: 7, newest: 9 };
        let mut garbled = request(&token, &key());
        garbled.certificate_request[40] ^= 1;
        let cases = [
            (request(&unknown, &key()), NOW, RefusalCode::TokenUnknown),
            (request(&token, &key()), at(3600), RefusalCode::TokenExpired),
            (request(&bridge, &key()), NOW, RefusalCode::TokenKind),
            (protocol::message::EnrollRequest { versions: Some(old), ..request(&token, &key()) }, NOW, RefusalCode::Version),
            (garbled, NOW, RefusalCode::Malformed),
        ];
        let count = cases.len();
        for (request, now, code) in cases {
            let refusal = world.enrollment.enroll(request, HERE, now).await.expect_err("refused");
            assert_eq!(refusal.code(), code, "{}", refusal.message);
            assert!(refusal.message.contains(':'), "says what to do: {}", refusal.message);
        }
        let log = world.audited(action::ENROLLMENT_REFUSED).await;
        assert_eq!(log.len(), count);
        let secret = data_encoding::BASE64URL_NOPAD.encode(&token.secret);
        let log = serde_json::to_string(&log).expect("json");
        assert!(!log.contains(&secret) && !log.contains(&data_encoding::HEXLOWER.encode(&token.secret)));
        // None of it used the token up.
        world.enroll(&token, &key(), NOW).await.expect("still good");
        world.close().await;
    }

    async fn what_a_node_says_of_itself_may_have_any_character(database: TestDatabase) {
        let world = World::new(database).await;
        let token = world.token(NodeKind::Agent, None).await;
        let strange = "a\0b".to_owned();
        let request = protocol::message::EnrollRequest { name: strange.clone(), software: strange, ..request(&token, &key()) };
        let enrolled = world.enrollment.enroll(request, HERE, NOW).await.expect("enrolled");
        let identity = identity(&enrolled.certificate_chain);
        world.enrollment.trusting(identity.node, &[], "a\0b").await.expect("stored");
        let said = sqlx::query_as::<_, (String, String, String)>("SELECT name, software, roots_trouble FROM nodes");
        let (name, software, trouble) = said.fetch_one(world.database.reader()).await.expect("the node");
        assert_eq!((&*name, &*software, &*trouble), ("a-b", "a\u{fffd}b", "a\u{fffd}b"));
        world.close().await;
    }

    async fn strangers_do_not_fill_the_audit_log(database: TestDatabase) {
        let world = World::new(database).await;
        let token = world.token(NodeKind::Agent, None).await;
        let stranger = HERE;
        let neighbour = "192.0.2.8".parse().expect("an address");
        for number in 0..50u8 {
            let unknown = JoinToken::new("hub.example:7443", token.root_pin, [number; 32]).expect("a token");
            let refusal = world.enrollment.enroll(request(&unknown, &key()), stranger, NOW).await.expect_err("refused");
            assert_eq!(refusal.code(), RefusalCode::TokenUnknown);
        }
        assert_eq!(world.audited(action::ENROLLMENT_REFUSED).await.len(), 10);
        assert_eq!(world.metrics.refusals_unaudited.get(), 40);
        // Whoever has a token that is one is on record, and so is whoever comes from elsewhere, or later.
        world.enroll(&token, &key(), at(3600)).await.expect_err("expired");
        let unknown = JoinToken::new("hub.example:7443", token.root_pin, [99; 32]).expect("a token");
        for (remote, now) in [(neighbour, NOW), (stranger, at(300))] {
            world.enrollment.enroll(request(&unknown, &key()), remote, now).await.expect_err("refused");
        }
        assert_eq!(world.audited(action::ENROLLMENT_REFUSED).await.len(), 13);
        world.close().await;
    }

    async fn names_come_from_the_token_or_the_host_and_are_unique(database: TestDatabase) {
        let world = World::new(database).await;
        let mut names = Vec::new();
        for name in [None, None, Some("press"), Some("press"), None] {
            let token = world.token(NodeKind::Agent, name).await;
            names.push(world.enroll(&token, &key(), NOW).await.expect("enrolled").name);
        }
        assert_eq!(names, ["plant-1.example", "plant-1.example-2", "press", "press-2", "plant-1.example-3"]);
        world.close().await;
    }

    async fn tokens_are_made_within_bounds(database: TestDatabase) {
        let world = World::new(database).await;
        let new = |tenant: &str, name: Option<&str>, valid_for| NewToken {
            tenant: tenant.parse().expect("an id"),
            kind: NodeKind::Agent,
            name: name.map(str::to_owned),
            valid_for,
        };
        let create = async |new| world.enrollment.create_token(new, &Actor::system(), NOW).await.map(drop);
        assert!(matches!(create(new("nobody", None, seconds(600))).await, Err(TokenError::Tenant(_))));
        assert!(matches!(create(new("acme", Some("a b"), seconds(600))).await, Err(TokenError::Name)));
        assert!(matches!(create(new("acme", None, seconds(1))).await, Err(TokenError::Lifetime)));
        assert!(matches!(create(new("acme", None, seconds(31 * 86_400))).await, Err(TokenError::Lifetime)));
        assert!(world.audited(action::TOKEN_CREATED).await.is_empty());
        world.close().await;
    }

    async fn renewal_gives_the_same_key_the_same_certificate(database: TestDatabase) {
        let world = World::new(database).await;
        let (_, old) = world.node().await;
        let next = key();
        let request = next.certificate_request().expect("a request");
        let renewed = world.enrollment.renew(&old, &first_renewal(&request), at(3600)).await.expect("renewed");
        let again = world.enrollment.renew(&old, &first_renewal(&request), at(3700)).await.expect("the same");
        assert_eq!(renewed.certificate_chain, again.certificate_chain);
        assert_eq!(world.audited(action::CERTIFICATE_RENEWED).await.len(), 1);
        let new = identity(&renewed.certificate_chain);
        assert_eq!((new.node, new.spki_sha256), (old.node, next.spki_sha256()));
        assert_ne!(new.serial, old.serial);
        // When its life is half over, the same key gets a new one.
        let later = world.enrollment.renew(&old, &first_renewal(&request), at(5 * 86_400)).await.expect("a new one");
        assert_ne!(later.certificate_chain, renewed.certificate_chain);
        world.close().await;
    }

    async fn a_node_that_uses_none_of_its_certificates_gets_no_more(database: TestDatabase) {
        let world = World::new(database).await;
        let (_, identity) = world.node().await;
        world.enrollment.seen(&identity, NOW).await.expect("a session");
        let renew = async |now| {
            let request = key().certificate_request().expect("a request");
            world.enrollment.renew(&identity, &first_renewal(&request), now).await.map(drop).map_err(|refusal| refusal.code())
        };
        for second in 0..5 {
            renew(at(second)).await.expect("renewed");
        }
        assert_eq!(renew(at(6)).await, Err(RefusalCode::Busy));
        renew(at(3700)).await.expect("an hour later");
        world.close().await;
    }

    async fn a_node_that_asks_wrongly_again_and_again_does_not_fill_the_log_and_is_heard_later(database: TestDatabase) {
        let world = World::new(database).await;
        let (_, agent) = world.node().await;
        let (_, bridge) = world.enrolled_as(NodeKind::Bridge, NOW).await;
        let bridge = identity(&bridge.certificate_chain);
        let right = first_renewal(&key().certificate_request().expect("a request"));
        let wrong = RenewRequest { sequence: 7, ..right.clone() };
        let mut heard = Vec::new();
        for _ in 0..30 {
            heard.push(world.enrollment.renew(&agent, &wrong, NOW).await.expect_err("a wrong number").code());
            heard.push(world.enrollment.kafka(&bridge, b"no request", false, NOW).await.expect_err("malformed").code());
        }
        assert_eq!(heard, [[RefusalCode::Malformed; 40].as_slice(), [RefusalCode::Busy; 20].as_slice()].concat());
        assert_eq!(world.audited(action::RENEWAL_REFUSED).await.len(), 20);
        assert_eq!(world.audited(action::CERTIFICATE_REFUSED).await.len(), 20);
        assert_eq!(world.metrics.refusals_unaudited.get(), 20);
        let refusal = world.enrollment.renew(&agent, &right, NOW).await.expect_err("as the others");
        let later = NOW.plus(Duration::from_millis(refusal.retry_after_ms));
        assert!(later > NOW);
        world.enrollment.renew(&agent, &right, later).await.expect("renewed");
        world.close().await;
    }

    async fn the_old_certificate_is_retired_when_the_new_one_is_used(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, old) = world.node().await;
        world.enrollment.seen(&old, NOW).await.expect("the first session");
        let request = key().certificate_request().expect("a request");
        let renewed = world.enrollment.renew(&old, &first_renewal(&request), at(60)).await.expect("renewed");
        let new = identity(&renewed.certificate_chain);
        // Issued, not yet used: the node may have never got it.
        world.enrollment.authorize(&old).expect("still good");
        world.enrollment.authorize(&new).expect("good already");
        world.enrollment.seen(&old, at(61)).await.expect("a session with the old one");
        world.enrollment.authorize(&new).expect("the new one stays good");

        world.enrollment.seen(&new, at(62)).await.expect("a session with the new one");
        let refusal = world.enrollment.authorize(&old).expect_err("retired");
        assert_eq!(refusal.code(), RefusalCode::CertificateReplaced);
        let entry = &world.audited(action::CERTIFICATE_RETIRED).await[0];
        assert_eq!(entry.subject, node.to_string());
        assert_eq!(world.fleet.node(node).and_then(|view| view.certificate).map(|c| c.serial), Some(new.serial));
        // A hub that starts again knows it, too.
        let again = World::open(database).await;
        again.enrollment.authorize(&old).expect_err("retired");
        again.enrollment.authorize(&new).expect("good");
        again.close().await;
        world.close().await;
    }

    async fn a_node_of_another_database_is_unknown(database: TestDatabase) {
        let world = World::new(database).await;
        let (_, mut stranger) = world.node().await;
        stranger.node = protocol::NodeId::new(NOW, [3; 10]);
        let refusal = world.enrollment.authorize(&stranger).expect_err("unknown");
        assert_eq!(refusal.code(), RefusalCode::NodeUnknown);
        let request = key().certificate_request().expect("a request");
        let refusal = world.enrollment.renew(&stranger, &first_renewal(&request), NOW).await.expect_err("unknown");
        assert_eq!(refusal.code(), RefusalCode::NodeUnknown);
        assert_eq!(world.audited(action::RENEWAL_REFUSED).await.len(), 1);
        world.close().await;
    }

    async fn tenants_are_made_once_with_an_authority(database: TestDatabase) {
        let world = World::new(database).await;
        let again = world.tenants.create(&acme(), "Acme again", &Actor::system(), NOW).await;
        assert!(matches!(again, Err(TenantError::Exists(_))));
        assert!(matches!(world.tenants.create(&"x".parse().expect("an id"), " ", &Actor::system(), NOW).await,
            Err(TenantError::Name)));
        assert_eq!(world.tenants.list().await.expect("tenants").len(), 1);
        assert_eq!(world.tenants.get(&acme()).await.expect("acme").name, "Acme Ltd");
        // Root, hub, and two for the tenant; the numbers of the log have no hole.
        assert_eq!(world.audited(action::AUTHORITY_CREATED).await.len(), 4);
        let mut ids: Vec<i64> = world.audited("").await.iter().map(|entry| entry.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, (1..=ids.len() as i64).collect::<Vec<_>>());
        world.close().await;
    }
}
