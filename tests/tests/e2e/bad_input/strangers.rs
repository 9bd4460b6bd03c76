//! Certificates that are good somewhere else, or were made by a thief: none of them is a way in.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use data_encoding::{BASE64, HEXLOWER};
use pki::{Authority, CertificateDer, MasterKey, PrivateKey, authority};
use protocol::message::{RefusalCode, ToNode, to_node};
use protocol::{NodeId, NodeKind, Timestamp};
use serde_json::Value;
use store::sqlx::{self, Row};
use transport::{CloseCode, Connection};

use super::audit;
use super::intruder::{Intruder, NO_LIMIT, Scene, answer, end, hello};

/// Asserts that the hub ends the connection because of its certificate, saying `why`.
async fn assert_distrusted(connection: &Connection, why: &str) -> Result<()> {
    let closed = end(connection).await?;
    assert_eq!(closed.code, CloseCode::Refused, "{closed}");
    assert!(closed.reason.contains(why), "{closed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_fleets_certificate_is_no_way_in() -> Result<()> {
    let mut scene = Scene::new()?;
    let intruder = scene.intruder().await?;
    let now: Timestamp = SystemTime::now().into();
    let root = Authority::create_root(now, authority::ROOT_LIFETIME)?;
    let tenant = root.issue_tenant_intermediate(&"other".parse()?, now, authority::INTERMEDIATE_LIFETIME)?;
    let key = PrivateKey::generate()?;
    // The good node's own id, in a fleet that anybody can make.
    let leaf =
        tenant.issue_node(&key.public_key(), scene.node.parse()?, NodeKind::Agent, now, authority::NODE_LIFETIME)?;
    let connection = intruder.connect_as(vec![leaf.into(), tenant.certificate_der().clone()], &key).await?;
    assert_distrusted(&connection, "as another fleet's: ").await?;
    scene.undisturbed()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_there_is_no_session() -> Result<()> {
    let mut scene = Scene::new()?;
    let intruder = scene.intruder().await?;
    let connection = intruder.connect_without().await?;
    if let Ok((mut writer, _)) = connection.open(NO_LIMIT).await {
        let _ = writer.send(&hello()).await;
    }
    assert_distrusted(&connection, "requires a certificate and this node sent none: enroll it").await?;
    scene.undisturbed()
}

/// The keys of acme's authority, as they would be stolen from a hub's disk, and the good node's certificates.
struct Loot {
    folder: tempfile::TempDir,
    intermediate: CertificateDer<'static>,
    victim: Vec<CertificateDer<'static>>,
    serial: String,
}

impl Loot {
    async fn of(scene: &Scene) -> Result<Self> {
        let state = scene.hub.state_dir();
        let master: MasterKey = fs::read_to_string(state.join("master.key"))?.parse()?;
        let database = store::Database::open(&format!("sqlite://{}", state.join("hub.db").display())).await?;
        let row = sqlx::query(
            "SELECT a.certificate, a.sealed_key, k.wrapped FROM authorities a JOIN data_keys k ON k.tenant = a.tenant
             WHERE a.tenant = 'acme' AND a.kind = 'nodes'",
        )
        .fetch_one(database.reader())
        .await?;
        let (certificate, sealed): (Vec<u8>, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        let wrapped: Vec<u8> = row.try_get(2)?;
        database.close().await;
        let key = master.unwrap("tenant/acme".parse()?, &wrapped)?.open("nodes", &sealed)?;
        let folder = tempfile::tempdir()?;
        write_pem(&folder.path().join("authority.pem"), "CERTIFICATE", &certificate)?;
        write_pem(&folder.path().join("authority.key"), "PRIVATE KEY", &key)?;

        let identity: Value = serde_json::from_slice(&fs::read(scene.agent.state_dir().join("identity.json"))?)?;
        let chain = identity["credential"]["chain"].as_array().context("no chain")?;
        let der = |text: &Value| Ok(BASE64.decode(text.as_str().context("no text")?.as_bytes())?.into());
        let victim = chain.iter().map(der).collect::<Result<Vec<CertificateDer<'static>>>>()?;
        let serial = pki::node_identity(&victim)?.serial.to_string();
        Ok(Self { folder, intermediate: certificate.into(), victim, serial })
    }

    /// A leaf for `key` with any name and serial, signed by acme's authority.
    fn forge(&self, key: &PrivateKey, name: &str, serial: &str) -> Result<Vec<CertificateDer<'static>>> {
        let file = |name: &str| self.folder.path().join(name);
        fs::write(file("request.der"), key.certificate_request()?)?;
        fs::write(
            file("extensions"),
            format!(
                "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth\n\
                 authorityKeyIdentifier=keyid:always\nsubjectAltName=critical,DNS:{name}\n"
            ),
        )?;
        let output = Command::new("openssl")
            .args(["x509", "-req", "-inform", "DER", "-in", "request.der", "-CA", "authority.pem"])
            .args(["-CAkey", "authority.key", "-set_serial", &format!("0x{serial}"), "-days", "1", "-sha256"])
            .args(["-extfile", "extensions", "-outform", "DER", "-out", "leaf.der"])
            .current_dir(self.folder.path())
            .output()
            .context("running openssl")?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        Ok(vec![fs::read(file("leaf.der"))?.into(), self.intermediate.clone()])
    }
}

fn write_pem(path: &Path, label: &str, der: &[u8]) -> Result<()> {
    Ok(fs::write(path, format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64.encode(der)))?)
}

/// What the hub answers to the Hello of a node whose certificate its TLS has taken.
async fn refused(connection: &Connection) -> Result<RefusalCode> {
    let (mut writer, mut reader) = connection.open(NO_LIMIT).await?;
    writer.send(&hello()).await?;
    let answer: ToNode = reader.recv().await?.context("no answer")?;
    let Some(to_node::Message::Refusal(refusal)) = answer.message else { anyhow::bail!("let in: {answer:?}") };
    assert!(refusal.message.contains("enroll"), "{refusal:?}");
    assert_eq!(end(connection).await?.code, CloseCode::Refused);
    Ok(refusal.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_authority_makes_no_node_of_another_tenant() -> Result<()> {
    let mut scene = Scene::new()?;
    let intruder = scene.intruder().await?;
    let loot = Loot::of(&scene).await?;
    let (node, key) = (&scene.node, PrivateKey::generate()?);
    let name = |tenant: &str| format!("{node}.agent.{tenant}.nodes.hyperfactory.internal");
    let another = HEXLOWER.encode(&[0x42; 16]);

    // The forger's tools work: a leaf in the tenant's own name passes TLS.
    let own = NodeId::new(SystemTime::now().into(), [9; 10]);
    let honest = loot.forge(&key, &format!("{own}.agent.acme.nodes.hyperfactory.internal"), &another)?;
    assert_eq!(refused(&intruder.connect_as(honest, &key).await?).await?, RefusalCode::NodeUnknown);

    // The victim's whole name.
    let forged = loot.forge(&key, &name("other"), &loot.serial)?;
    assert_distrusted(&intruder.connect_as(forged.clone(), &key).await?, "enroll").await?;
    // The same, presented as issued by the victim's authority.
    let mixed = vec![forged[0].clone(), loot.victim[1].clone()];
    assert_distrusted(&intruder.connect_as(mixed, &key).await?, "enroll").await?;
    // The victim's id and serial under the forger's own tenant.
    let forged = loot.forge(&key, &name("acme"), &loot.serial)?;
    assert_eq!(refused(&intruder.connect_as(forged, &key).await?).await?, RefusalCode::NodeUnknown);
    // The intruder's own certificate with the victim's authority behind it.
    let credential = &intruder.identity.credential;
    let mixed = vec![credential.chain()[0].clone(), loot.victim[1].clone()];
    assert_distrusted(&intruder.connect_as(mixed, credential.key()).await?, "enroll").await?;

    scene.undisturbed()?;
    let refusals = audit(&scene.hub, "session.refused")?;
    assert_eq!(refusals.len(), 2, "{refusals:?}");
    assert!(refusals.iter().all(|record| record["tenant"] == "acme"), "{refusals:?}");
    Ok(())
}

/// Within a tenant, too, its authority's thief is not a node that is there already.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_this_hub_did_not_issue_is_not_its_nodes() -> Result<()> {
    let mut scene = Scene::new()?;
    let intruder = scene.intruder().await?;
    let loot = Loot::of(&scene).await?;
    let Intruder { identity, .. } = &intruder;
    let name = format!("{}.agent.acme.nodes.hyperfactory.internal", identity.node);
    let key = PrivateKey::generate()?;
    let forged = loot.forge(&key, &name, &identity.credential.subject().serial.to_string())?;
    // Not as one of a node that was revoked: told by a message, the node whose it is would try to recover.
    let connection = intruder.connect_as(forged, &key).await?;
    let (mut writer, mut reader) = connection.open(NO_LIMIT).await?;
    writer.send(&hello()).await?;
    let refused = answer(&mut reader).await?;
    let to_node::Message::Refusal(refusal) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.code(), RefusalCode::CertificateReplaced, "{refusal:?}");
    assert_eq!(end(&connection).await?.code, CloseCode::Refused);
    intruder.session().await?;
    scene.undisturbed()
}
