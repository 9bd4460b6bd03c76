//! A tenant's Kafka plane: who gets a certificate, what is recorded, what is trusted.

use std::path::Path;
use std::process::Command;

use hyperfactory_hub::audit::{Actor, action};
use hyperfactory_hub::authorities::{AuthoritiesError, KafkaCertificate};
use pki::{CertificateDer, PrivateKey, RequestError, Role, ServerNames, kafka_principal, pem};
use protocol::{NodeId, NodeKind, TenantId};
use store::{on_both_engines, sqlx};

use crate::setup::{NOW, World, acme, at, identity, key};

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
}
