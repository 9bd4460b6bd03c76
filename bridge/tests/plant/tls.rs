//! The certificates of a tenant's Kafka plane, and what a broker makes of them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pki::{Authority, CertificateDer, PrivateKey, ServerNames};
use protocol::{NodeId, TenantId};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;

const DAY: Duration = Duration::from_secs(86_400);
const HOST: &str = "127.0.0.1";

/// A tenant's Kafka root, and certificates from it.
pub(crate) struct Plane(Authority);

impl Plane {
    pub(crate) fn of(tenant: &str) -> Self {
        let tenant: TenantId = tenant.parse().unwrap();
        Self(Authority::create_kafka_root(&tenant, SystemTime::now().into(), DAY * 365).unwrap())
    }

    /// Writes what a broker is judged by.
    pub(crate) fn write_authority(&self, file: &Path) {
        std::fs::write(file, pki::pem::certificates([self.0.certificate_der()])).unwrap();
    }

    /// Writes a new key and a certificate for it, one after the other, as programs do.
    pub(crate) fn write_client(&self, bridge: NodeId, certificate: &Path, key: &Path) {
        let private = PrivateKey::generate().unwrap();
        let now = SystemTime::now().into();
        let leaf = CertificateDer::from(self.0.issue_kafka_client(&private.public_key(), bridge, now, DAY).unwrap());
        std::fs::write(key, private.to_pem().as_bytes()).unwrap();
        std::fs::write(certificate, pki::pem::certificates([&leaf, self.0.certificate_der()])).unwrap();
    }

    /// Writes a key and a certificate of a server on loopback.
    pub(crate) fn write_server(&self, certificate: &Path, key: &Path) {
        let private = PrivateKey::generate().unwrap();
        let names = ServerNames::new(&[], &[HOST.parse().unwrap()]).unwrap();
        let leaf = self.0.issue_kafka_server(&private.public_key(), &names, SystemTime::now().into(), DAY).unwrap();
        let leaf = CertificateDer::from(leaf);
        std::fs::write(key, private.to_pem().as_bytes()).unwrap();
        std::fs::write(certificate, pki::pem::certificates([&leaf, self.0.certificate_der()])).unwrap();
    }

    /// The root.
    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.certificate_der().clone()).unwrap();
        roots
    }

    /// What a broker with a certificate of the plane's shows and asks for.
    pub(crate) fn server(&self) -> rustls::ServerConfig {
        let private = PrivateKey::generate().unwrap();
        let names = ServerNames::new(&[], &[HOST.parse().unwrap()]).unwrap();
        let leaf = self.0.issue_kafka_server(&private.public_key(), &names, SystemTime::now().into(), DAY).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()), Arc::clone(&provider)).build().unwrap();
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![leaf.into()], PrivateKeyDer::Pkcs8(private.to_pkcs8().to_vec().into()))
            .unwrap()
    }
}
