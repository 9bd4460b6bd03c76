//! A tenant's Kafka plane: who gets a certificate, what is recorded, what is trusted.

use std::path::Path;
use std::process::Command;

use hyperfactory_hub::audit::{Actor, action};
use hyperfactory_hub::authorities::{AuthoritiesError, KafkaCertificate};
use hyperfactory_hub::enrollment::Reason;
use hyperfactory_hub::revocation_lists::RevocationLists;
use hyperfactory_hub::rotation::Direction;
use pki::{CertificateDer, NodeIdentity, PrivateKey, RequestError, Role, ServerNames, Summary, kafka_principal, pem};
use protocol::message::{KafkaGrant, RefusalCode, ToNode, to_node};
use protocol::{NodeId, NodeKind, TenantId};
use store::{on_both_engines, sqlx};

use crate::recovery::{Running, Session, State, now};
use crate::setup::{NOW, World, acme, at, identity, key, step};

fn names() -> ServerNames {
    ServerNames::new(&["redpanda".into(), "kafka.acme.example".into()], &[[192, 0, 2, 7].into()]).expect("names")
}

fn other() -> TenantId {
    "other".parse().expect("an id")
}

pub(crate) async fn client(
    world: &World,
    tenant: &TenantId,
    node: NodeId,
    key: &PrivateKey,
) -> Result<KafkaCertificate, AuthoritiesError> {
    let mut transaction = world.database.begin_write().await.expect("a transaction");
    let issued = world.authorities.kafka_client(&mut transaction, tenant, node, &key.public_key(), at(5)).await?;
    transaction.commit().await.expect("committed");
    Ok(issued)
}

pub(crate) async fn bridge(world: &World) -> NodeId {
    let token = world.token(NodeKind::Bridge, None).await;
    let request = protocol::message::EnrollRequest {
        kind: protocol::message::NodeKind::Bridge.into(),
        ..crate::setup::request(&token, &key())
    };
    let enrolled = world.enrollment.enroll(request, crate::setup::HERE, NOW).await.expect("enrolled");
    identity(&enrolled.certificate_chain).node
}

/// What OpenSSL says of `leaf`, with `root` and nothing else trusted, at the time of the test.
fn openssl(root: &CertificateDer<'static>, leaf: &CertificateDer<'static>, more: &[&str]) -> Result<(), String> {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, certificate: &CertificateDer<'_>| {
        let path = directory.path().join(name);
        std::fs::write(&path, pem::certificates([certificate])).expect("written");
        path
    };
    let time = (NOW.seconds() + 60).to_string();
    let output = Command::new("openssl")
        .args(["verify", "-x509_strict", "-attime", &time, "-CAfile"])
        .arg(file("root.pem", root))
        .args(more)
        .arg::<&Path>(&file("leaf.pem", leaf))
        .output()
        .expect("openssl runs");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

on_both_engines! {
    async fn brokers_and_bridges_of_a_tenant_trust_its_root_and_nothing_else(database: TestDatabase) {
        let world = World::new(database).await;
        world.tenants.create(&other(), "Other", &Actor::system(), NOW).await.expect("a tenant");
        let request = key().certificate_request().expect("a request");
        let server = world.authorities.kafka_server(&acme(), &request, &names(), &Actor::operator("ann"), NOW).await;
        let server = server.expect("issued");
        let node = bridge(&world).await;
        let client = client(&world, &acme(), node, &key()).await.expect("issued");

        let roots = world.authorities.trusted(&Role::Kafka(acme()), NOW).await.expect("roots");
        assert_eq!(roots, std::slice::from_ref(&server.root));
        for name in ["redpanda", "kafka.acme.example"] {
            let more = ["-purpose", "sslserver", "-verify_hostname", name];
            assert_eq!(openssl(&roots[0], &server.certificate, &more), Ok(()));
        }
        assert_eq!(openssl(&roots[0], &server.certificate, &["-verify_ip", "192.0.2.7"]), Ok(()));
        assert_eq!(openssl(&roots[0], &client.certificate, &["-purpose", "sslclient"]), Ok(()));
        openssl(&roots[0], &server.certificate, &["-verify_hostname", "kafka.other.example"]).expect_err("its name");
        openssl(&roots[0], &client.certificate, &["-purpose", "sslserver"]).expect_err("a client");

        let others = world.authorities.trusted(&Role::Kafka(other()), NOW).await.expect("roots");
        for leaf in [&server.certificate, &client.certificate] {
            openssl(&others[0], leaf, &[]).expect_err("another tenant's root");
            openssl(&world.authorities.roots().trusted[0], leaf, &[]).expect_err("the fleet's root");
        }
        world.close().await;
    }

    async fn every_kafka_certificate_is_recorded_and_audited(database: TestDatabase) {
        let world = World::new(database).await;
        let request = key().certificate_request().expect("a request");
        let server = world.authorities.kafka_server(&acme(), &request, &names(), &Actor::operator("ann"), NOW).await;
        let node = bridge(&world).await;
        let client = client(&world, &acme(), node, &key()).await.expect("issued");
        let recorded: Vec<(String, Vec<u8>, Vec<u8>)> = sqlx::query_as(
            "SELECT c.kind, c.serial, c.certificate FROM certificates c JOIN authorities a ON a.id = c.authority
             WHERE a.kind = 'kafka' AND c.tenant = 'acme' ORDER BY c.kind",
        ).fetch_all(world.database.reader()).await.expect("certificates");
        let expected = [("kafka-client", &client), ("kafka-server", server.as_ref().expect("issued"))]
            .map(|(kind, issued)| {
                (kind.to_owned(), issued.summary.serial.clone(), issued.certificate.to_vec())
            });
        assert_eq!(recorded, expected);
        let log = world.audited(action::CERTIFICATE_ISSUED).await;
        let [of_client, of_server] = log.as_slice() else { panic!("{log:?}") };
        let principal = format!("User:CN={}", kafka_principal(node));
        assert_eq!((of_client.detail["principal"].as_str(), of_client.subject.clone()), (Some(&*principal), node.to_string()));
        assert_eq!((of_server.actor.as_str(), of_server.detail["names"][2].as_str()), ("operator:ann", Some("192.0.2.7")));
        world.close().await;
    }

    async fn bridges_of_the_tenant_alone_get_a_client_certificate(database: TestDatabase) {
        let world = World::new(database).await;
        world.tenants.create(&other(), "Other", &Actor::system(), NOW).await.expect("a tenant");
        let (agent, _) = world.node().await;
        let bridge = bridge(&world).await;
        let stranger = NodeId::new(NOW, [9; 10]);
        for (tenant, node) in [(acme(), agent), (other(), bridge), (acme(), stranger)] {
            let refused = client(&world, &tenant, node, &key()).await.expect_err("no bridge of theirs");
            assert!(matches!(refused, AuthoritiesError::NotABridge { .. }), "{refused}");
        }
        assert!(world.audited(action::CERTIFICATE_ISSUED).await.is_empty());
        world.close().await;
    }

    async fn a_kafka_certificate_opens_no_session_and_retires_none(database: TestDatabase) {
        let world = World::new(database).await;
        let node = bridge(&world).await;
        let before = world.fleet.node(node).expect("in the fleet").certificate;
        let shared = key();
        client(&world, &acme(), node, &shared).await.expect("issued");
        // A hub that starts again takes it for no identity either; nor does a renewal with the same key give it again.
        let again = World::open(database).await;
        assert_eq!(again.fleet.node(node).expect("in the fleet").certificate, before);
        world.close().await;
        again.close().await;
    }

    async fn a_request_without_proof_or_for_nobody_gets_nothing(database: TestDatabase) {
        let world = World::new(database).await;
        let mut garbled = key().certificate_request().expect("a request");
        let last = garbled.len() - 1;
        garbled[last] ^= 1;
        let ann = Actor::operator("ann");
        let refused = world.authorities.kafka_server(&acme(), &garbled, &names(), &ann, NOW).await;
        assert!(matches!(refused, Err(AuthoritiesError::Request(RequestError::Signature | RequestError::Malformed))));
        let good = key().certificate_request().expect("a request");
        let refused = world.authorities.kafka_server(&other(), &good, &names(), &ann, NOW).await;
        assert!(matches!(refused, Err(AuthoritiesError::Missing(_))));
        assert!(world.authorities.trusted(&Role::Kafka(other()), NOW).await.expect("none").is_empty());
        // An expired root is given out no more.
        let after = at(3651 * 86_400);
        assert!(world.authorities.trusted(&Role::Kafka(acme()), after).await.expect("none").is_empty());
        world.close().await;
    }

    async fn a_bridge_is_given_its_certificate_and_the_same_key_gives_it_again(database: TestDatabase) {
        let world = World::new(database).await;
        let (_, enrolled) = world.enrolled_as(NodeKind::Bridge, NOW).await;
        let bridge = identity(&enrolled.certificate_chain);
        let ask = async |key: &PrivateKey, now| {
            let request = key.certificate_request().expect("a request");
            world.enrollment.kafka(&bridge, &request, false, now).await
        };
        let (first, second) = (key(), key());
        let granted = ask(&first, at(5)).await.expect("granted");
        let summary = Summary::of(&granted.certificate).expect("a certificate");
        assert_eq!(summary.common_name, Some(kafka_principal(bridge.node)));
        assert_eq!(summary.spki_sha256, first.spki_sha256());
        assert_eq!(summary.not_after, at(5 + 90 * 86_400));
        let roots = world.authorities.trusted(&Role::Kafka(acme()), NOW).await.expect("roots");
        assert_eq!(granted.roots, [roots[0].to_vec()]);
        assert_eq!(openssl(&roots[0], &granted.certificate.clone().into(), &["-purpose", "sslclient"]), Ok(()));
        let day = |days: u64| at(5 + days * 86_400).millis();
        assert!((day(51)..day(70)).contains(&granted.renew_at_ms), "{}", granted.renew_at_ms);

        // The answer may be lost: it is recorded by then, and not another time.
        assert_eq!(ask(&first, at(60)).await, Ok(granted.clone()));
        assert_eq!(world.audited(action::CERTIFICATE_ISSUED).await.len(), 1);
        let next = ask(&second, at(61)).await.expect("granted");
        assert_ne!(next.certificate, granted.certificate);
        assert_eq!(ask(&first, at(62)).await.expect("it still holds").certificate, granted.certificate);
        let log = world.audited(action::CERTIFICATE_ISSUED).await;
        assert_eq!((log.len(), log[0].actor.clone()), (2, format!("node:{}", bridge.node)));
        // One that has ended is no answer.
        let after = ask(&first, at(5 + 91 * 86_400)).await.expect("granted");
        assert_ne!(after.certificate, granted.certificate);
        world.close().await;
    }

    async fn who_is_no_bridge_has_anothers_key_or_asks_too_often_gets_no_kafka_certificate(database: TestDatabase) {
        let world = World::new(database).await;
        let (agents, enrolled) = world.enrolled_as(NodeKind::Agent, NOW).await;
        let agent = identity(&enrolled.certificate_chain);
        let (_, enrolled) = world.enrolled_as(NodeKind::Bridge, NOW).await;
        let bridge = identity(&enrolled.certificate_chain);
        let ask = async |who: &NodeIdentity, key: &PrivateKey, now| {
            let request = key.certificate_request().expect("a request");
            world.enrollment.kafka(who, &request, false, now).await
        };
        let refused = ask(&agent, &key(), NOW).await.expect_err("an agent");
        assert!(refused.message.contains("is no bridge"), "{}", refused.message);
        let refused = ask(&bridge, &agents, NOW).await.expect_err("the agent's key");
        assert!(refused.message.contains("another node has this key"), "{}", refused.message);
        world.enrollment.kafka(&bridge, b"no request", false, NOW).await.expect_err("malformed");
        assert_eq!(world.audited(action::CERTIFICATE_REFUSED).await.len(), 3);
        assert!(world.audited(action::CERTIFICATE_ISSUED).await.is_empty());

        let keys: Vec<PrivateKey> = (0..11).map(|_| key()).collect();
        for (number, key) in keys[..10].iter().enumerate() {
            ask(&bridge, key, at(number as u64)).await.expect("granted");
        }
        let busy = ask(&bridge, &keys[10], at(60)).await.expect_err("too many");
        assert_eq!(busy.code(), RefusalCode::Busy);
        ask(&bridge, &keys[0], at(61)).await.expect("asking how one stands costs nothing");
        ask(&bridge, &keys[10], at(3_700)).await.expect("an hour later");
        world.close().await;
    }

    async fn a_revoked_bridge_is_on_the_kafka_roots_list_and_gets_no_other(database: TestDatabase) {
        let world = World::new(database).await;
        let (_, enrolled) = world.enrolled_as(NodeKind::Bridge, NOW).await;
        let bridge = identity(&enrolled.certificate_chain);
        let ask = async |key: &PrivateKey| {
            let request = key.certificate_request().expect("a request");
            world.enrollment.kafka(&bridge, &request, false, at(5)).await
        };
        let key = key();
        let granted = ask(&key).await.expect("granted");
        let root: i64 = sqlx::query_scalar("SELECT id FROM authorities WHERE kind = 'kafka' AND tenant = 'acme'")
            .fetch_one(world.database.reader()).await.expect("a root");
        let lists = RevocationLists::new(world.database.clone(), world.authorities.clone());
        let listed = async || {
            let list = lists.get(root, at(20)).await.expect("a list").expect("an authority");
            let serial = Summary::of(&granted.certificate).expect("a certificate").serial;
            list.der.windows(serial.len()).any(|window| window == serial)
        };
        assert!(!listed().await);
        let admin = Actor::operator("ann");
        let revoked = world.enrollment.revoke(bridge.node, Reason::KeyCompromise, "", &admin, at(10)).await;
        assert_eq!(revoked.expect("revoked").certificates, 2, "its identity, and what it shows the brokers");
        assert!(listed().await);
        for key in [&key, &crate::setup::key()] {
            assert_eq!(ask(key).await.expect_err("revoked").code(), RefusalCode::NodeRevoked);
        }
        assert_eq!(world.audited(action::CERTIFICATE_ISSUED).await.len(), 1);
        world.close().await;
    }

    async fn a_rotation_of_the_kafka_root_leads_bridges_from_one_root_to_the_next(database: TestDatabase) {
        let world = World::new(database).await;
        let (_, enrolled) = world.enrolled_as(NodeKind::Bridge, NOW).await;
        let bridge = identity(&enrolled.certificate_chain);
        let (first, second) = (key(), key());
        let ask = async |key: &PrivateKey, now| {
            let request = key.certificate_request().expect("a request");
            world.enrollment.kafka(&bridge, &request, false, now).await.expect("granted")
        };
        let before = ask(&first, NOW).await;
        let role = Role::Kafka(acme());
        let ann = Actor::operator("ann");
        let mut rotation = world.rotations.start(role.clone(), "a test", &ann, NOW).await.expect("begun");
        rotation = step(&world.rotations, &rotation, Direction::Forward, at(1)).await.expect("both are trusted");
        let both = ask(&first, at(2)).await;
        assert_eq!((both.certificate.clone(), both.roots.len()), (before.certificate.clone(), 2));
        assert_eq!(both.renew_at_ms, before.renew_at_ms);

        rotation = step(&world.rotations, &rotation, Direction::Forward, at(3)).await.expect("the new one issues");
        world.rotations.advise(&world.enrollment, at(4)).await.expect("advised");
        let due = ask(&first, at(5)).await;
        assert_eq!(due.certificate, before.certificate);
        assert!(due.renew_at_ms <= at(4 + 3600).millis() && due.renew_at_ms >= at(4).millis(), "{}", due.renew_at_ms);
        assert!(world.enrollment.renew_at(&bridge) > at(3 * 86_400), "its identity is not meant");
        let after = ask(&second, at(6)).await;
        let [new, old] = both.roots.as_slice() else { panic!("two roots") };
        assert_eq!(openssl(&new.clone().into(), &after.certificate.clone().into(), &[]), Ok(()));
        assert_eq!(openssl(&old.clone().into(), &before.certificate.clone().into(), &[]), Ok(()));
        assert!(after.renew_at_ms > at(30 * 86_400).millis(), "it is not due again");

        // What it was given is not what it uses.
        let in_use = async |key: &PrivateKey| {
            let request = key.certificate_request().expect("a request");
            world.enrollment.kafka(&bridge, &request, true, at(6)).await.expect("it stands")
        };
        assert_eq!(in_use(&first).await.certificate, before.certificate);
        let gate = async || {
            let gate = world.rotations.gate(&rotation, Direction::Forward, at(6)).await.expect("a gate");
            gate.expect("open").missing
        };
        let missing = gate().await;
        assert!(missing.len() == 1 && missing[0].why.contains("has not used the one it was given since"), "{missing:?}");
        assert_eq!(world.audited(action::CERTIFICATE_RETIRED).await.len(), 0);
        assert_eq!(in_use(&second).await.certificate, after.certificate);
        assert_eq!(in_use(&second).await.renew_at_ms, after.renew_at_ms);
        assert_eq!(gate().await, []);
        let retired = world.audited(action::CERTIFICATE_RETIRED).await;
        assert_eq!((retired.len(), retired[0].detail["retired"].as_u64()), (1, Some(1)));

        step(&world.rotations, &rotation, Direction::Forward, at(7)).await.expect("the old one is retired");
        let retired = ask(&second, at(8)).await;
        assert_eq!((&retired.certificate, retired.roots.as_slice()), (&after.certificate, std::slice::from_ref(new)));
        // Who was away meanwhile gets one that holds, for whatever key.
        assert_ne!(ask(&first, at(9)).await.certificate, before.certificate);
        world.close().await;
    }

    async fn a_bridge_in_session_is_told_to_look_again(database: TestDatabase) {
        let world = World::new_at(database, now()).await;
        let state = State::enrolled_as(&world, NodeKind::Bridge, now()).await;
        world.close().await;
        let hub = Running::start(database).await;
        let mut session = hub.session(&state).await.expect("a session");
        let request = key().certificate_request().expect("a request");
        let granted = granted(&mut session, &request).await;
        assert_eq!(Summary::of(&granted.certificate).expect("one").common_name, Some(kafka_principal(state.identity.node)));

        let rotation = hub.rotations.start(Role::Kafka(acme()), "a test", &Actor::system(), now()).await.expect("begun");
        step(&hub.rotations, &rotation, Direction::Forward, now()).await.expect("both are trusted");
        loop {
            let message: ToNode = session.reader.recv().await.expect("a message").expect("a message");
            if matches!(message.message, Some(to_node::Message::KafkaNews(_))) {
                break;
            }
        }
        let both = self::granted(&mut session, &request).await;
        assert_eq!((both.certificate, both.roots.len()), (granted.certificate, 2));
        hub.stop().await;
    }
}

/// What a bridge gets for this request, over its session.
async fn granted(session: &mut Session, request: &[u8]) -> KafkaGrant {
    let asked = session.machine.kafka(request.to_vec(), false, now()).expect("one at a time");
    session.writer.send(&asked).await.expect("sent");
    loop {
        let message: ToNode = session.reader.recv().await.expect("a message").expect("a message");
        session.machine.receive(message.clone(), now()).expect("in order");
        if let Some(to_node::Message::Kafka(grant)) = message.message {
            assert_eq!(grant.refusal, None);
            break grant;
        }
    }
}
