//! TLS 1.3 for QUIC: configurations of hub and node that never resume a session and never take early data.
//!
//! A resumed session would skip the check of the client's certificate, and a revoked node would be back in.

use std::fmt;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use std::time::Duration;

use protocol::Timestamp;
use protocol::version::{ALPN_ENROLL, ALPN_SESSION};
use rustls::client::{Resumption, WantsClientCert};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::DefaultTimeProvider;
use rustls::{ClientConfig, ConfigBuilder, ServerConfig};

pub use rustls::time_provider::TimeProvider;

use crate::key::PrivateKey;
use crate::trust::NodeIdentity;
use crate::verifier::{Anchor, HubVerifier, NodeVerifier, TrustedRoot};

/// What a hub's TLS needs.
pub struct HubTls {
    /// The fleet root: the only anchor.
    pub root: CertificateDer<'static>,
    /// The hub's own certificate; replaced through the same handle.
    pub certificate: HubCertificate,
    /// Whether a certificate is revoked. Asked in every handshake; must not block.
    pub denied: Arc<Denied>,
    /// The time certificates are judged at.
    pub clock: Arc<dyn TimeProvider>,
}

/// A denylist's question.
pub type Denied = dyn Fn(&NodeIdentity) -> bool + Send + Sync;

/// The hub's configuration: sessions and enrollment by ALPN, client certificates verified where one is sent.
///
/// A client without a certificate completes the handshake on either ALPN; only enrollment may go on from there.
/// `transport` closes the others.
///
/// # Errors
/// [`TlsError::Root`] when the root is not a certificate.
pub fn server_config(hub: HubTls) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let verifier = NodeVerifier::new(hub.root, hub.denied, &provider)?;
    let mut config = ServerConfig::builder_with_details(provider, hub.clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(hub.certificate));
    config.alpn_protocols = vec![ALPN_SESSION.to_vec(), ALPN_ENROLL.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// An enrolled node's configuration for sessions. `chain` is its certificate and its tenant's intermediate.
///
/// # Errors
/// [`TlsError::Root`] when the root is not a certificate, [`TlsError::KeyPair`] when the key is not the chain's.
pub fn node_config(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKey,
    root: &CertificateDer<'_>,
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let anchor = Anchor::Root(TrustedRoot::new(root.clone().into_owned())?);
    let config = client(anchor, clock)?.with_client_auth_cert(chain, key.to_rustls()).map_err(TlsError::KeyPair)?;
    Ok(finish(config, ALPN_SESSION))
}

/// A configuration for enrollment: no certificate of one's own, and a hub whose root has the pinned key.
///
/// # Errors
/// None in practice: the provider has the one version asked for.
pub fn enroll_config(root_pin: [u8; 32], clock: Arc<dyn TimeProvider>) -> Result<Arc<ClientConfig>, TlsError> {
    Ok(finish(client(Anchor::Pin(root_pin), clock)?.with_no_client_auth(), ALPN_ENROLL))
}

/// The machine's clock.
pub fn system_clock() -> Arc<dyn TimeProvider> {
    Arc::new(DefaultTimeProvider)
}

/// A clock that stands still.
#[derive(Debug)]
pub struct FixedClock(pub Timestamp);

impl TimeProvider for FixedClock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.seconds()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// The certificate the hub shows, replaceable while connections are open and being made. Clones share it.
#[derive(Clone)]
pub struct HubCertificate(Arc<RwLock<Served>>);

/// One key, two chains: a node that enrolls knows only the root's pin and needs the root itself.
struct Served {
    session: Arc<CertifiedKey>,
    enroll: Arc<CertifiedKey>,
}

impl HubCertificate {
    /// From the server certificate, the intermediate that issued it, the root, and the server certificate's key.
    ///
    /// # Errors
    /// [`TlsError::KeyPair`] when the key is not the certificate's.
    pub fn new(
        leaf: CertificateDer<'static>,
        intermediate: CertificateDer<'static>,
        root: CertificateDer<'static>,
        key: &PrivateKey,
    ) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(RwLock::new(Served::new(leaf, intermediate, root, key)?))))
    }

    /// Shows another certificate from the next handshake on.
    ///
    /// # Errors
    /// [`TlsError::KeyPair`] when the key is not the certificate's; the old certificate then stays.
    pub fn replace(
        &self,
        leaf: CertificateDer<'static>,
        intermediate: CertificateDer<'static>,
        root: CertificateDer<'static>,
        key: &PrivateKey,
    ) -> Result<(), TlsError> {
        let served = Served::new(leaf, intermediate, root, key)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = served;
        Ok(())
    }
}

impl Served {
    fn new(
        leaf: CertificateDer<'static>,
        intermediate: CertificateDer<'static>,
        root: CertificateDer<'static>,
        key: &PrivateKey,
    ) -> Result<Self, TlsError> {
        let provider = provider();
        let certified = |chain| CertifiedKey::from_der(chain, key.to_rustls(), &provider).map_err(TlsError::KeyPair);
        Ok(Self {
            session: Arc::new(certified(vec![leaf.clone(), intermediate.clone()])?),
            enroll: Arc::new(certified(vec![leaf, intermediate, root])?),
        })
    }
}

impl ResolvesServerCert for HubCertificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let session = hello.alpn().is_some_and(|mut offered| offered.any(|alpn| alpn == ALPN_SESSION));
        let served = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(if session { &served.session } else { &served.enroll }))
    }
}

impl fmt::Debug for HubCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubCertificate(…)")
    }
}

fn client(
    anchor: Anchor,
    clock: Arc<dyn TimeProvider>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let provider = provider();
    let verifier = HubVerifier::new(anchor, Arc::clone(&provider));
    Ok(ClientConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

fn finish(mut config: ClientConfig, alpn: &[u8]) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Arc::new(config)
}

/// One for the process: a simulator holds thousands of configurations.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));
    Arc::clone(&PROVIDER)
}

/// A TLS configuration that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The root is not a certificate.
    #[error("the fleet root is not a readable certificate; restore it from its backup")]
    Root,
    /// Certificate and key don't belong together.
    #[error("a certificate and its private key do not belong together")]
    KeyPair(#[source] rustls::Error),
    /// The provider cannot speak TLS 1.3.
    #[error("TLS 1.3 cannot be configured")]
    Config(#[source] rustls::Error),
}
