//! A fleet to test with: root, hub, two tenants, and a forger who holds tenant acme's key.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyperfactory_pki::authority::{INTERMEDIATE_LIFETIME, NODE_LIFETIME, ROOT_LIFETIME};
use hyperfactory_pki::tls::{self, FixedClock, HubCertificate, HubChain, HubTls, TrustedRoots};
use hyperfactory_pki::{Authority, CertificateDer, DataKey, NodeIdentity, PrivateKey};
use protocol::{NodeId, NodeKind, TenantId, Timestamp};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::PrivatePkcs8KeyDer;

pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

pub(crate) struct Fleet {
    pub(crate) root: Authority,
    pub(crate) hub: Authority,
    pub(crate) acme: Authority,
    pub(crate) other: Authority,
    /// The Kafka roots of the two tenants.
    pub(crate) acme_kafka: Authority,
    pub(crate) other_kafka: Authority,
}

pub(crate) struct Node {
    pub(crate) key: PrivateKey,
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        Self::at(NOW)
    }

    pub(crate) fn at(now: Timestamp) -> Self {
        let root = Authority::create_root(now, ROOT_LIFETIME).expect("a root");
        let hub = root.issue_hub_intermediate(now, INTERMEDIATE_LIFETIME).expect("a hub intermediate");
        let acme =
            root.issue_tenant_intermediate(&tenant("acme"), now, INTERMEDIATE_LIFETIME).expect("an intermediate");
        let other =
            root.issue_tenant_intermediate(&tenant("other"), now, INTERMEDIATE_LIFETIME).expect("an intermediate");
        let kafka = |slug| Authority::create_kafka_root(&tenant(slug), now, ROOT_LIFETIME).expect("a Kafka root");
        Self { root, hub, acme, other, acme_kafka: kafka("acme"), other_kafka: kafka("other") }
    }

    pub(crate) fn node(&self, now: Timestamp) -> Node {
        let key = PrivateKey::generate().expect("a key");
        let leaf = self
            .acme
            .issue_node(&key.public_key(), node_id(1), NodeKind::Agent, now, NODE_LIFETIME)
            .expect("a certificate");
        Node { key, chain: vec![leaf.into(), self.acme.certificate_der().clone()] }
    }

    pub(crate) fn hub_certificate(&self, now: Timestamp) -> (HubCertificate, CertificateDer<'static>) {
        let (key, leaf) = self.hub_server(now);
        let certificate = HubCertificate::new(self.hub_chain(leaf.clone()), &key).expect("a pair");
        (certificate, leaf)
    }

    pub(crate) fn hub_chain(&self, leaf: CertificateDer<'static>) -> HubChain {
        HubChain { leaf, intermediate: self.hub_der(), links: Vec::new(), roots: vec![self.root_der()] }
    }

    pub(crate) fn hub_server(&self, now: Timestamp) -> (PrivateKey, CertificateDer<'static>) {
        let key = PrivateKey::generate().expect("a key");
        let leaf = self.hub.issue_hub_server(&key.public_key(), now).expect("a certificate");
        (key, leaf.into())
    }

    pub(crate) fn server_config(&self, now: Timestamp) -> Arc<rustls::ServerConfig> {
        self.server_config_with(self.hub_certificate(now).0, now, |_| false)
    }

    pub(crate) fn server_config_with(
        &self,
        certificate: HubCertificate,
        now: Timestamp,
        denied: impl Fn(&NodeIdentity) -> bool + Send + Sync + 'static,
    ) -> Arc<rustls::ServerConfig> {
        let clock = Arc::new(FixedClock(now));
        let roots = TrustedRoots::new(&[self.root_der()]).expect("a root");
        tls::server_config(HubTls { roots, certificate, denied: Arc::new(denied), clock }).expect("a configuration")
    }

    pub(crate) fn node_config(&self, node: &Node, now: Timestamp) -> Arc<rustls::ClientConfig> {
        tls::node_config(node.chain.clone(), &node.key, &[self.root_der()], Arc::new(FixedClock(now)))
            .expect("a configuration")
    }

    pub(crate) fn root_der(&self) -> CertificateDer<'static> {
        self.root.certificate_der().clone()
    }

    pub(crate) fn hub_der(&self) -> CertificateDer<'static> {
        self.hub.certificate_der().clone()
    }

    /// A leaf signed with tenant acme's real key, and whatever else the forger likes.
    pub(crate) fn forge(&self, alter: impl FnOnce(&mut CertificateParams)) -> Node {
        forge_under(&self.acme, alter)
    }
}

pub(crate) fn forge_under(authority: &Authority, alter: impl FnOnce(&mut CertificateParams)) -> Node {
    let issuer_key = stolen_key(authority);
    let issuer = Issuer::from_ca_cert_der(authority.certificate_der(), issuer_key).expect("an issuer");
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2026, 9, 1);
    params.not_after = rcgen::date_time_ymd(2026, 12, 1);
    params.serial_number = Some(vec![0x42; 16].into());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = vec![dns(&node_name("acme"))];
    alter(&mut params);
    let key = PrivateKey::generate().expect("a key");
    let leaf = params.signed_by(&key, &issuer).expect("a certificate");
    Node { key, chain: vec![leaf.der().clone(), authority.certificate_der().clone()] }
}

/// What an authority's key looks like to one who has its owner's data key too.
pub(crate) fn stolen_key(authority: &Authority) -> KeyPair {
    let key = DataKey::generate(authority.role().owner()).expect("a key");
    let sealed = authority.seal_key(&key).expect("sealed");
    let purpose = match authority.role() {
        hyperfactory_pki::Role::Root => "root",
        hyperfactory_pki::Role::Hub => "hub",
        hyperfactory_pki::Role::Nodes(_) => "nodes",
        hyperfactory_pki::Role::Kafka(_) => "kafka",
        hyperfactory_pki::Role::Web => "web",
    };
    let pkcs8 = key.open(purpose, &sealed).expect("opened");
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()), &rcgen::PKCS_ECDSA_P256_SHA256)
        .expect("a key")
}

pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ASCII"))
}

pub(crate) fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().expect("ASCII"))
}

pub(crate) fn node_name(tenant: &str) -> String {
    format!("{}.agent.{tenant}.nodes.hyperfactory.internal", node_id(1))
}

/// A node's id; the same for the same number.
pub(crate) fn node_id(number: u8) -> NodeId {
    NodeId::new(NOW, [number; 10])
}

/// A node's id that no other call gives.
pub(crate) fn next_node_id() -> NodeId {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mut random = [0; 10];
    random[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    NodeId::new(NOW, random)
}

pub(crate) fn tenant(slug: &str) -> TenantId {
    slug.parse().expect("a slug")
}
