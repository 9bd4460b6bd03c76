//! What a bridge may do at its tenant's brokers, from the hub through a real agent to what a broker is told. The broker's end is a
//! stand-in that keeps access lists; it enforces none.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{AccessEntry, AccessLists, Agent, Bridge, Front, Hub, SOON, until};
use pki::{Authority, CertificateDer, PrivateKey, ServerNames, pem};
use protocol::NodeId;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;

const DAY: Duration = Duration::from_secs(86_400);
/// Kafka's numbers.
const TOPIC: i8 = 2;
const CLUSTER: i8 = 4;
const LITERAL: i8 = 3;
const PREFIXED: i8 = 4;
const READ: i8 = 3;
const WRITE: i8 = 4;
const IDEMPOTENT_WRITE: i8 = 12;
const DENY: i8 = 2;
const ALLOW: i8 = 3;

#[test]
fn a_bridges_rights_are_placed_by_the_agent_changed_by_an_admin_and_taken_away_with_its_trust() -> Result<()> {
    let (hub, lists, folder) = (Hub::start()?, AccessLists::start()?, tempfile::tempdir()?);
    hub.tenant("acme")?;
    let front = Front::before(lists.address(), brokers(folder.path())?)?;
    let file = |name: &str| folder.path().join(name).display().to_string();
    let mut agent = Agent::create()?
        .set("kafka-brokers", front.address())
        .set("kafka-ca", file("ca.pem"))
        .set("kafka-certificate", file("agent.pem"))
        .set("kafka-key", file("agent.key"));
    agent.enroll(&hub.join_token("acme")?)?;

    let program = Bridge::nowhere()?;
    let enrolled = program.enroll(&hub.bridge_token("acme", "cologne")?)?;
    ensure!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    let agent_id = agent.node()?;
    let bridge = hub.nodes()?.into_iter().find(|id| *id != agent_id).context("no bridge")?;

    let right = |kind, name: &str, pattern, operation, permission| -> AccessEntry {
        let principal = format!("User:CN=bridge:{bridge}");
        (kind, name.into(), pattern, principal, "*".into(), operation, permission)
    };
    let idempotent = right(CLUSTER, "kafka-cluster", LITERAL, IDEMPOTENT_WRITE, ALLOW);
    // What others have there, and what is forbidden, is nobody's business here; what this bridge has too much is.
    let (forbidden, excess) = (right(TOPIC, "secret", LITERAL, READ, DENY), right(TOPIC, "a", LITERAL, READ, ALLOW));
    let foreign = (TOPIC, "a".into(), LITERAL, "User:CN=somebody".into(), "*".into(), READ, ALLOW);
    let kept = [forbidden, foreign];
    kept.iter().cloned().chain([excess]).for_each(|entry| lists.put(entry));

    let mut process = program.launch()?;
    let mut stands = |state: &str, message: &str| {
        until(&format!("access that is {state}: {message}"), SOON, || {
            process.check()?;
            let access = hub.node(&bridge)?["kafka_access"].clone();
            let said = access["message"].as_str().unwrap_or_default();
            Ok((access["state"] == state && said.contains(message)).then_some(()))
        })
    };
    stands("waiting", "[kafka] in agent.toml")?;
    agent.run()?;
    stands("placed", "took away operation 3 on a")?;
    let rights = |more: &[AccessEntry]| kept.iter().cloned().chain(more.iter().cloned()).collect();
    // What it shares with other bridges, its route to the Unified Namespace too, an admin allows it.
    let own = right(TOPIC, "cologne.", PREFIXED, WRITE, ALLOW);
    assert_eq!(lists.entries(), rights(&[own.clone(), idempotent.clone()]));
    assert_eq!(front.certificates(), 1, "the agent shows its certificate");

    let allow = |topics: &[&str]| {
        hub.api().put(&format!("/api/v1/nodes/{bridge}/kafka-access"), &json!({ "topics": topics }))?.ok()
    };
    allow(&["cologne.*", "umh.messages"])?;
    stands("placed", "allowed WRITE on umh.messages")?;
    let shared = right(TOPIC, "umh.messages", LITERAL, WRITE, ALLOW);
    assert_eq!(lists.entries(), rights(&[own, shared, idempotent.clone()]));
    allow(&["machines"])?;
    stands("placed", "allowed WRITE on machines; took away WRITE on cologne.*, WRITE on umh.messages")?;
    assert_eq!(lists.entries(), rights(&[right(TOPIC, "machines", LITERAL, WRITE, ALLOW), idempotent]));

    lists.refuse(true);
    allow(&["machines", "more"])?;
    stands("refused", "its certificate has to be of a superuser")?;
    lists.refuse(false);
    hub.api().post(&format!("/api/v1/nodes/{bridge}/revoke"), &json!({ "reason": "key_compromise" }))?.ok()?;
    until("the end of its rights", SOON, || Ok((lists.entries() == rights(&[])).then_some(())))?;
    // A revoked bridge ends by itself.
    drop(process);
    until("what became of it", SOON, || {
        let access = hub.node(&bridge)?["kafka_access"].clone();
        Ok((access["state"] == "placed" && access["topics"] == json!([])).then_some(()))
    })?;
    let audit = hub.api().get("/api/v1/audit?action=kafka_access.placed")?.ok()?;
    assert_eq!(audit["items"].as_array().map(Vec::len), Some(4), "{audit}");
    Ok(())
}

/// What brokers show and ask for; the files of a client that they take are in `folder`.
fn brokers(folder: &Path) -> Result<ServerConfig> {
    let now = SystemTime::now().into();
    let plane = Authority::create_kafka_root(&"acme".parse()?, now, DAY * 365)?;
    std::fs::write(folder.join("ca.pem"), pem::certificates([plane.certificate_der()]))?;
    let key = PrivateKey::generate()?;
    let id = NodeId::new(now, [7; 10]);
    let client = CertificateDer::from(plane.issue_kafka_client(&key.public_key(), id, now, DAY)?);
    std::fs::write(folder.join("agent.pem"), pem::certificates([&client]))?;
    std::fs::write(folder.join("agent.key"), key.to_pem().as_bytes())?;

    let key = PrivateKey::generate()?;
    let names = ServerNames::new(&[], &["127.0.0.1".parse()?])?;
    let leaf = plane.issue_kafka_server(&key.public_key(), &names, now, DAY)?;
    let mut roots = RootCertStore::empty();
    roots.add(plane.certificate_der().clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    Ok(ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![leaf.into()], PrivateKeyDer::Pkcs8(key.to_pkcs8().to_vec().into()))?)
}
