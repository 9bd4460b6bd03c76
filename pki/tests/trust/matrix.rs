//! Every kind of leaf that tenant acme can come by, its authorities' stolen keys included, at every door of tenant other.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hyperfactory_pki::authority::NODE_LIFETIME;
use hyperfactory_pki::tls::{FixedClock, HubCertificate, HubChain};
use hyperfactory_pki::{
    Authority, CertificateDer, HUB_SERVER_NAME, PrivateKey, ServerNames, kafka_principal, node_identity, pem, tls,
};
use protocol::NodeKind;
use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, SanType};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore};

use crate::fleet::{DAY, Fleet, NOW, Node, dns, forge_under, node_id, node_name, uri};
use crate::handshake::handshake;

const BROKER: &str = "kafka.other.example";

/// A door of tenant other, or of the fleet that tenant other is in, and who judges there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Door {
    /// The hub, in a handshake for a session, which a renewal needs too: let in as a node of tenant other.
    Session,
    /// The hub, in a handshake for enrollment.
    Enroll,
    /// Whoever trusts other's nodes alone: rustls-webpki, OpenSSL.
    NodesWebpki,
    NodesOpenssl,
    /// Other's brokers: rustls-webpki, OpenSSL.
    BrokersWebpki,
    BrokersOpenssl,
    /// Other's bridges, who look for a broker: rustls-webpki, OpenSSL.
    BridgesWebpki,
    BridgesOpenssl,
    /// Other's nodes, who look for the hub: ours in a handshake, OpenSSL.
    Hub,
    HubOpenssl,
}

const DOORS: [Door; 10] = [
    Door::Session,
    Door::Enroll,
    Door::NodesWebpki,
    Door::NodesOpenssl,
    Door::BrokersWebpki,
    Door::BrokersOpenssl,
    Door::BridgesWebpki,
    Door::BridgesOpenssl,
    Door::Hub,
    Door::HubOpenssl,
];

#[test]
fn nothing_of_one_tenant_opens_a_door_of_another() {
    let site = Site::new();
    let leaves = leaves(&site.fleet);
    let mut judged = 0;
    let mut open = Vec::new();
    for (name, node) in &leaves {
        for door in DOORS {
            judged += 1;
            if site.lets_in(door, node) {
                open.push(format!("{name} at {door:?}"));
            }
        }
    }
    assert_eq!(open, [] as [String; 0]);
    assert!(judged >= 450, "{judged} cases");
}

/// The same doors, for those they are meant for: a door that is never open proves nothing.
#[test]
fn every_door_opens_for_its_own() {
    let site = Site::new();
    let fleet = &site.fleet;
    let identity = |kind| {
        let key = PrivateKey::generate().expect("a key");
        let leaf = fleet.other.issue_node(&key.public_key(), node_id(2), kind, NOW, NODE_LIFETIME).expect("issued");
        Node { key, chain: vec![leaf.into(), fleet.other.certificate_der().clone()] }
    };
    let (client, server) = (kafka_client(&fleet.other_kafka), kafka_server(&fleet.other_kafka, BROKER));
    let hub = hub_server(fleet);
    for (door, node) in [
        (Door::Session, &identity(NodeKind::Agent)),
        (Door::Session, &identity(NodeKind::Bridge)),
        (Door::Enroll, &identity(NodeKind::Agent)),
        (Door::NodesWebpki, &identity(NodeKind::Agent)),
        (Door::NodesOpenssl, &identity(NodeKind::Bridge)),
        (Door::BrokersWebpki, &client),
        (Door::BrokersOpenssl, &client),
        (Door::BridgesWebpki, &server),
        (Door::BridgesOpenssl, &server),
        (Door::Hub, &hub),
        (Door::HubOpenssl, &hub),
    ] {
        assert!(site.lets_in(door, node), "{door:?} is shut for its own");
    }
}

/// Under the fleet's root, where the tenants' chains meet: what rustls-webpki and OpenSSL say of acme's leaves for client
/// authentication, and what the hub makes of them. Where the two let in what they should not, or disagree, the hub's own
/// check decides, and it takes the two honest ones alone.
#[test]
fn where_the_judges_let_in_too_much_the_hubs_own_check_refuses() {
    let site = Site::new();
    let mut verdicts: BTreeMap<String, [bool; 3]> = BTreeMap::new();
    for (name, node) in leaves(&site.fleet) {
        let webpki = webpki_client(&site.fleet.root_der(), &node.chain);
        let openssl = site.openssl(&site.fleet.root_der(), &node.chain, &["-purpose", "sslclient"]);
        verdicts.insert(name.to_owned(), [webpki, openssl, site.session(&node).is_some()]);
    }
    let of = |expected: [bool; 3]| -> Vec<&str> {
        verdicts.iter().filter(|(_, verdict)| **verdict == expected).map(|(name, _)| name.as_str()).collect()
    };
    // The last is acme's, to the hub as to the judges: the name that counts is the DNS name.
    assert_eq!(of([true, true, true]), ["agent", "bridge", "common name of other's beside its own name"]);
    assert_eq!(of([false, false, true]).len() + of([true, false, true]).len() + of([false, true, true]).len(), 0);
    assert_eq!(of([true, true, false]), BOTH_JUDGES_TAKE, "both judges take, the hub refuses");
    assert_eq!(of([true, false, false]), WEBPKI_ALONE_TAKES, "webpki alone takes, the hub refuses");
    assert_eq!(of([false, true, false]), OPENSSL_ALONE_TAKES, "OpenSSL alone takes, the hub refuses");
}

/// Names outside of the kinds that are constrained, names within the constraint that are no node's, and loose purposes.
const BOTH_JUDGES_TAKE: [&str; 11] = [
    "URI only",
    "both purposes",
    "e-mail only",
    "no name at all",
    "no purpose",
    "other's principal under acme's nodes",
    "own name and a URI",
    "own name twice over",
    "serial of 17 bytes",
    "upper case",
    "wildcard in acme",
];
/// OpenSSL holds a common name that looks like a host against the name constraints; webpki does not read it.
const WEBPKI_ALONE_TAKES: [&str; 1] = ["common name only"];
/// OpenSSL counts no leaf against the path length; webpki takes no authority for a leaf.
const OPENSSL_ALONE_TAKES: [&str; 1] = ["asks for CA:TRUE"];

/// What tenant acme can come by: what it is given, and what it can forge with the keys of its own authorities.
fn leaves(fleet: &Fleet) -> Vec<(&'static str, Node)> {
    let others = || node_name("other");
    let forge = |alter: &dyn Fn(&mut CertificateParams)| fleet.forge(alter);
    let kafka = |alter: &dyn Fn(&mut CertificateParams)| {
        forge_under(&fleet.acme_kafka, |params| {
            params.subject_alt_names.clear();
            alter(params);
        })
    };
    let identity = |kind| {
        let key = PrivateKey::generate().expect("a key");
        let leaf = fleet.acme.issue_node(&key.public_key(), node_id(1), kind, NOW, NODE_LIFETIME).expect("issued");
        Node { key, chain: vec![leaf.into(), fleet.acme.certificate_der().clone()] }
    };
    let with_chain = |chain: &[&CertificateDer<'static>]| {
        let mut node = forge(&|params| params.subject_alt_names = vec![dns(&others())]);
        node.chain.truncate(1);
        node.chain.extend(chain.iter().map(|certificate| (*certificate).clone()));
        node
    };
    let as_leaf = |authority: &Authority| Node {
        key: PrivateKey::generate().expect("a key"),
        chain: vec![authority.certificate_der().clone()],
    };
    let (acme, other, root) =
        (fleet.acme.certificate_der(), fleet.other.certificate_der(), fleet.root.certificate_der());
    let (acme_kafka, other_kafka) = (fleet.acme_kafka.certificate_der(), fleet.other_kafka.certificate_der());
    let client =
        |params: &mut CertificateParams| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let server =
        |params: &mut CertificateParams| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let both = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    };
    vec![
        ("agent", identity(NodeKind::Agent)),
        ("bridge", identity(NodeKind::Bridge)),
        ("expired", forge(&|params| params.not_after = rcgen::date_time_ymd(2026, 9, 15))),
        ("not yet valid", forge(&|params| params.not_before = rcgen::date_time_ymd(2026, 10, 15))),
        ("other's name", forge(&|params| params.subject_alt_names = vec![dns(&others())])),
        ("own and other's name", forge(&|params| params.subject_alt_names.push(dns(&others())))),
        (
            "own name twice over",
            forge(&|params| params.subject_alt_names.push(dns(&format!("x.{}", node_name("acme"))))),
        ),
        (
            "wildcard in acme",
            forge(&|params| params.subject_alt_names = vec![dns("*.agent.acme.nodes.hyperfactory.internal")]),
        ),
        (
            "wildcard in other",
            forge(&|params| params.subject_alt_names = vec![dns("*.agent.other.nodes.hyperfactory.internal")]),
        ),
        ("wildcard over all", forge(&|params| params.subject_alt_names = vec![dns("*.nodes.hyperfactory.internal")])),
        ("upper case", forge(&|params| params.subject_alt_names = vec![dns(&node_name("acme").to_uppercase())])),
        ("URI only", forge(&|params| params.subject_alt_names = vec![uri(&format!("spiffe://fleet/{}", others()))])),
        (
            "own name and a URI",
            forge(&|params| params.subject_alt_names.push(uri(&format!("spiffe://fleet/{}", others())))),
        ),
        (
            "address only",
            forge(&|params| params.subject_alt_names = vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())]),
        ),
        (
            "own name and an address",
            forge(&|params| params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()))),
        ),
        (
            "e-mail only",
            forge(&|params| {
                params.subject_alt_names =
                    vec![SanType::Rfc822Name(Ia5String::try_from(format!("x@{}", others())).expect("ASCII"))];
            }),
        ),
        (
            "common name only",
            forge(&|params| {
                params.subject_alt_names.clear();
                params.distinguished_name = subject(&others());
            }),
        ),
        ("common name of other's beside its own name", forge(&|params| params.distinguished_name = subject(&others()))),
        ("no name at all", forge(&|params| params.subject_alt_names.clear())),
        (
            "other's principal under acme's nodes",
            forge(&|params| {
                params.subject_alt_names.clear();
                params.distinguished_name = subject(&kafka_principal(node_id(2)));
            }),
        ),
        ("asks for CA:TRUE", forge(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("below a sub-authority, other's name", below_a_sub_authority(&fleet.acme, &others())),
        ("below a sub-authority, own name", below_a_sub_authority(&fleet.acme, &node_name("acme"))),
        ("below a leaf", below_a_leaf(fleet)),
        ("serves", forge(&server)),
        (
            "serves as the hub",
            forge(&|params| {
                server(params);
                params.subject_alt_names = vec![dns(HUB_SERVER_NAME)];
            }),
        ),
        ("both purposes", forge(&both)),
        ("any purpose", forge(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any])),
        ("no purpose", forge(&|params| params.extended_key_usages.clear())),
        ("serial of 17 bytes", forge(&|params| params.serial_number = Some(vec![0xff; 16].into()))),
        ("other's intermediate in the chain", with_chain(&[other])),
        ("both intermediates in the chain", with_chain(&[acme, other])),
        ("other's intermediate first", with_chain(&[other, acme])),
        ("the fleet's root in the chain", with_chain(&[acme, root])),
        ("other's Kafka root in the chain", with_chain(&[other_kafka])),
        ("no intermediate in the chain", with_chain(&[])),
        ("self-signed, other's name", self_signed(&others())),
        ("self-signed, called like other's Kafka root", self_signed_like(other_kafka)),
        ("the intermediate itself", as_leaf(&fleet.acme)),
        ("the Kafka root itself", as_leaf(&fleet.acme_kafka)),
        ("Kafka client", kafka_client(&fleet.acme_kafka)),
        ("broker", kafka_server(&fleet.acme_kafka, "kafka.acme.example")),
        ("broker of other's name", kafka_server(&fleet.acme_kafka, BROKER)),
        (
            "Kafka client, other's principal",
            kafka(&|params| params.distinguished_name = subject(&kafka_principal(node_id(2)))),
        ),
        ("Kafka client, other's root in the chain", {
            let mut node = kafka(&|params| params.distinguished_name = subject(&kafka_principal(node_id(2))));
            node.chain = vec![node.chain[0].clone(), other_kafka.clone(), acme_kafka.clone()];
            node
        }),
        ("node's name under the Kafka root", kafka(&|params| params.subject_alt_names = vec![dns(&others())])),
        (
            "hub's name under the Kafka root",
            kafka(&|params| {
                server(params);
                params.subject_alt_names = vec![dns(HUB_SERVER_NAME)];
            }),
        ),
        (
            "Kafka, both purposes, other's broker",
            kafka(&|params| {
                both(params);
                params.subject_alt_names = vec![dns(BROKER)];
            }),
        ),
        ("Kafka, below a sub-authority", below_a_sub_authority(&fleet.acme_kafka, BROKER)),
        (
            "Kafka client, expired",
            kafka(&|params| {
                client(params);
                params.not_after = rcgen::date_time_ymd(2026, 9, 15);
            }),
        ),
    ]
}

/// The fleet, and other's trust stores as files.
struct Site {
    fleet: Fleet,
    directory: tempfile::TempDir,
    session: Arc<rustls::ServerConfig>,
    other_node: Node,
}

impl Site {
    fn new() -> Self {
        let fleet = Fleet::new();
        let key = PrivateKey::generate().expect("a key");
        let leaf = fleet.other.issue_node(&key.public_key(), node_id(9), NodeKind::Agent, NOW, NODE_LIFETIME);
        let chain = vec![leaf.expect("issued").into(), fleet.other.certificate_der().clone()];
        let session = fleet.server_config(NOW);
        let other_node = Node { key, chain };
        Self { fleet, directory: tempfile::tempdir().expect("a directory"), session, other_node }
    }

    fn lets_in(&self, door: Door, node: &Node) -> bool {
        let (nodes, kafka) = (self.fleet.other.certificate_der(), self.fleet.other_kafka.certificate_der());
        match door {
            Door::Session => self.session(node).as_deref() == Some("other"),
            Door::Enroll => self.enroll(node).as_deref() == Some("other"),
            Door::NodesWebpki => webpki_client(nodes, &node.chain),
            Door::NodesOpenssl => self.openssl(nodes, &node.chain, &["-partial_chain", "-purpose", "sslclient"]),
            Door::BrokersWebpki => webpki_client(kafka, &node.chain),
            Door::BrokersOpenssl => self.openssl(kafka, &node.chain, &["-purpose", "sslclient"]),
            Door::BridgesWebpki => webpki_server(kafka, &node.chain, BROKER),
            Door::BridgesOpenssl => {
                self.openssl(kafka, &node.chain, &["-purpose", "sslserver", "-verify_hostname", BROKER])
            }
            Door::Hub => self.hub(node),
            Door::HubOpenssl => {
                let more = ["-purpose", "sslserver", "-verify_hostname", HUB_SERVER_NAME];
                self.openssl(&self.fleet.root_der(), &node.chain, &more)
            }
        }
    }

    /// Whose node the hub takes this for, in a handshake for a session.
    fn session(&self, node: &Node) -> Option<String> {
        self.taken_for(tls::node_config(
            node.chain.clone(),
            &node.key,
            &[self.fleet.root_der()],
            Arc::new(FixedClock(NOW)),
        ))
    }

    /// The same with the ALPN of enrollment, where a certificate is not asked for but judged all the same.
    fn enroll(&self, node: &Node) -> Option<String> {
        let config =
            tls::node_config(node.chain.clone(), &node.key, &[self.fleet.root_der()], Arc::new(FixedClock(NOW)));
        self.taken_for(config.map(|config| {
            let mut config = ClientConfig::clone(&config);
            config.alpn_protocols = vec![protocol::version::ALPN_ENROLL.to_vec()];
            Arc::new(config)
        }))
    }

    /// `None` for one whose key is not its certificate's: it can't even begin.
    fn taken_for(&self, config: Result<Arc<ClientConfig>, tls::TlsError>) -> Option<String> {
        let done = handshake(&config.ok()?, &self.session).ok()?;
        let chain = done.server.peer_certificates()?;
        Some(node_identity(chain).expect("the handshake has judged it").tenant.to_string())
    }

    /// Whether a node of tenant other takes this for the hub.
    fn hub(&self, node: &Node) -> bool {
        let leaf = node.chain[0].clone();
        let intermediate = node.chain.get(1).unwrap_or(&leaf).clone();
        let Ok(certificate) = HubCertificate::new(HubChain { intermediate, ..self.fleet.hub_chain(leaf) }, &node.key)
        else {
            return false;
        };
        let server = self.fleet.server_config_with(certificate, NOW, |_| false);
        handshake(&self.fleet.node_config(&self.other_node, NOW), &server).is_ok()
    }

    fn openssl(&self, anchor: &CertificateDer<'_>, chain: &[CertificateDer<'static>], more: &[&str]) -> bool {
        let (anchor, untrusted) = (self.write("anchor.pem", [anchor]), self.write("untrusted.pem", &chain[1..]));
        let leaf = self.write("leaf.pem", &chain[..1]);
        let mut command = Command::new("openssl");
        command.args(["verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-attime", &NOW.seconds().to_string()]);
        command.arg("-CAfile").arg(anchor);
        if chain.len() > 1 {
            command.arg("-untrusted").arg(untrusted);
        }
        let output = command.args(more).arg::<&Path>(&leaf).output().expect("openssl is installed: it is a judge here");
        output.status.success()
    }

    fn write<'a>(&self, name: &str, certificates: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, pem::certificates(certificates)).expect("written");
        path
    }
}

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(NOW.seconds().unsigned_abs()))
}

fn store(anchor: &CertificateDer<'static>) -> Arc<RootCertStore> {
    let mut store = RootCertStore::empty();
    store.add(anchor.clone()).expect("an anchor");
    Arc::new(store)
}

fn webpki_client(anchor: &CertificateDer<'static>, chain: &[CertificateDer<'static>]) -> bool {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(store(anchor), provider).build().expect("a verifier");
    verifier.verify_client_cert(&chain[0], &chain[1..], now()).is_ok()
}

fn webpki_server(anchor: &CertificateDer<'static>, chain: &[CertificateDer<'static>], name: &str) -> bool {
    let Ok(leaf) = ParsedCertificate::try_from(&chain[0]) else { return false };
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    let name = ServerName::try_from(name).expect("a name");
    verify_server_cert_signed_by_trust_anchor(&leaf, &store(anchor), &chain[1..], now(), algorithms).is_ok()
        && verify_server_name(&leaf, &name).is_ok()
}

fn kafka_client(root: &Authority) -> Node {
    let key = PrivateKey::generate().expect("a key");
    let leaf = root.issue_kafka_client(&key.public_key(), node_id(1), NOW, DAY).expect("issued");
    Node { key, chain: vec![leaf.into(), root.certificate_der().clone()] }
}

fn kafka_server(root: &Authority, name: &str) -> Node {
    let key = PrivateKey::generate().expect("a key");
    let names = ServerNames::new(&[name.into()], &[]).expect("names");
    let leaf = root.issue_kafka_server(&key.public_key(), &names, NOW, DAY).expect("issued");
    Node { key, chain: vec![leaf.into(), root.certificate_der().clone()] }
}

fn hub_server(fleet: &Fleet) -> Node {
    let (key, leaf) = fleet.hub_server(NOW);
    Node { key, chain: vec![leaf, fleet.hub_der()] }
}

fn subject(common_name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    subject
}

/// A leaf that serves and connects, below an authority that the tenant made under its own.
fn below_a_sub_authority(authority: &Authority, name: &str) -> Node {
    let middle = forge_under(authority, |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params.distinguished_name = subject("a sub-authority");
        params.subject_alt_names.clear();
        params.extended_key_usages.clear();
    });
    let mut node = signed_with(&middle, name);
    node.chain.extend(middle.chain);
    node
}

/// A leaf signed with the key of an honest agent.
fn below_a_leaf(fleet: &Fleet) -> Node {
    let agent = fleet.node(NOW);
    let mut node = signed_with(&agent, &node_name("other"));
    node.chain.extend(agent.chain);
    node
}

fn signed_with(issuer: &Node, name: &str) -> Node {
    let issuer = rcgen::Issuer::from_ca_cert_der(&issuer.chain[0], &issuer.key).expect("an issuer");
    let key = PrivateKey::generate().expect("a key");
    let leaf = wish(name).signed_by(&key, &issuer).expect("signed");
    Node { key, chain: vec![leaf.der().clone()] }
}

fn self_signed(name: &str) -> Node {
    let key = PrivateKey::generate().expect("a key");
    let leaf = wish(name).self_signed(&key).expect("signed");
    Node { key, chain: vec![leaf.der().clone()] }
}

/// A root of one's own under another's name, and a leaf for other's broker below it.
fn self_signed_like(root: &CertificateDer<'static>) -> Node {
    let key = PrivateKey::generate().expect("a key");
    let issuer = rcgen::Issuer::from_ca_cert_der(root, key).expect("an issuer");
    let key = PrivateKey::generate().expect("a key");
    let leaf = wish(BROKER).signed_by(&key, &issuer).expect("signed");
    Node { key, chain: vec![leaf.der().clone(), root.clone()] }
}

fn wish(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2026, 9, 1);
    params.not_after = rcgen::date_time_ymd(2026, 12, 1);
    params.serial_number = Some(vec![0x43; 16].into());
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![dns(name)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params
}
