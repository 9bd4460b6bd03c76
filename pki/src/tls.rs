//! TLS 1.3 for QUIC: configurations of hub and node that never resume a session and never take early data.
//!
//! A resumed session would skip the check of the client's certificate, and a revoked node would be back in.

use std::fmt;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use std::time::Duration;

use protocol::Timestamp;
use protocol::version::{ALPN_ENROLL, ALPN_RECOVER, ALPN_SESSION};
use rustls::client::{Resumption, WantsClientCert};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::DefaultTimeProvider;
use rustls::{ClientConfig, ConfigBuilder, ServerConfig};

pub use rustls::pki_types::UnixTime;
pub use rustls::time_provider::TimeProvider;

use crate::key::PrivateKey;
use crate::trust::NodeIdentity;
use crate::verifier::{HubVerifier, Known, NodeVerifier};

pub use crate::anchors::TrustedRoots;
use crate::anchors::anchors;

/// What a hub's TLS needs.
pub struct HubTls {
    /// The fleet's roots: the only anchors; replaced through the same handle.
    pub roots: TrustedRoots,
    /// The hub's own certificate; replaced through the same handle.
    pub certificate: HubCertificate,
    /// Whether a certificate is revoked. Asked in every handshake; must not block.
    pub denied: Arc<Denied>,
    /// The time certificates are judged at.
    pub clock: Arc<dyn TimeProvider>,
}

/// A denylist's question.
pub type Denied = dyn Fn(&NodeIdentity) -> bool + Send + Sync;

/// The hub's configuration: sessions, enrollment and recovery by ALPN, client certificates verified where one is sent.
///
/// A client without a certificate completes the handshake on each ALPN; a session may not go on from there, and
/// `transport` closes it.
///
/// # Errors
/// None in practice: the provider has the one version asked for.
pub fn server_config(hub: HubTls) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = NodeVerifier::new(hub.roots, hub.denied);
    let mut config = ServerConfig::builder_with_details(provider(), hub.clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(hub.certificate));
    config.alpn_protocols = vec![ALPN_SESSION.to_vec(), ALPN_ENROLL.to_vec(), ALPN_RECOVER.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// An enrolled node's configuration for sessions. `chain` is its certificate and its tenant's intermediate.
///
/// # Errors
/// [`TlsError::Root`] when there is no root or one is no fleet's root, [`TlsError::KeyPair`] when the key is not the
/// chain's.
pub fn node_config(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKey,
    roots: &[CertificateDer<'_>],
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let config = client(Known::Roots(anchors(roots)?), clock)?
        .with_client_auth_cert(chain, key.to_rustls())
        .map_err(TlsError::KeyPair)?;
    Ok(finish(config, ALPN_SESSION))
}

/// A configuration for enrollment: no certificate of one's own, and a hub with a root that has the pinned key.
///
/// # Errors
/// None in practice: the provider has the one version asked for.
pub fn enroll_config(root_pin: [u8; 32], clock: Arc<dyn TimeProvider>) -> Result<Arc<ClientConfig>, TlsError> {
    Ok(finish(client(Known::Pin(root_pin), clock)?.with_no_client_auth(), ALPN_ENROLL))
}

/// A configuration for recovery: no certificate, since the one there is is taken no more, and a hub of these roots.
///
/// # Errors
/// [`TlsError::Root`] when there is no root or one is no fleet's root.
pub fn recover_config(
    roots: &[CertificateDer<'_>],
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, TlsError> {
    Ok(finish(client(Known::Roots(anchors(roots)?), clock)?.with_no_client_auth(), ALPN_RECOVER))
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

/// What a hub shows of itself besides the proof that it has the key.
#[derive(Clone, Debug)]
pub struct HubChain {
    /// The server certificate.
    pub leaf: CertificateDer<'static>,
    /// The intermediate that issued it.
    pub intermediate: CertificateDer<'static>,
    /// Links between roots, for nodes that do not know the root the intermediate is of.
    pub links: Vec<CertificateDer<'static>>,
    /// The fleet's roots, any of which a join token may pin.
    pub roots: Vec<CertificateDer<'static>>,
}

/// One key, two chains: a node that enrolls knows only a root's pin and needs the root itself.
struct Served {
    session: Arc<CertifiedKey>,
    enroll: Arc<CertifiedKey>,
}

impl HubCertificate {
    /// From the chain and the server certificate's key.
    ///
    /// # Errors
    /// [`TlsError::KeyPair`] when the key is not the certificate's.
    pub fn new(chain: HubChain, key: &PrivateKey) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(RwLock::new(Served::new(chain, key)?))))
    }

    /// Shows another certificate from the next handshake on.
    ///
    /// # Errors
    /// [`TlsError::KeyPair`] when the key is not the certificate's; the old certificate then stays.
    pub fn replace(&self, chain: HubChain, key: &PrivateKey) -> Result<(), TlsError> {
        let served = Served::new(chain, key)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = served;
        Ok(())
    }
}

impl Served {
    fn new(chain: HubChain, key: &PrivateKey) -> Result<Self, TlsError> {
        let provider = provider();
        let certified = |chain| CertifiedKey::from_der(chain, key.to_rustls(), &provider).map_err(TlsError::KeyPair);
        let HubChain { leaf, intermediate, links, roots } = chain;
        let session: Vec<_> = [leaf, intermediate].into_iter().chain(links).collect();
        let enroll = [session.clone(), roots].concat();
        Ok(Self { session: Arc::new(certified(session)?), enroll: Arc::new(certified(enroll)?) })
    }
}

impl ResolvesServerCert for HubCertificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offers = |wanted| hello.alpn().is_some_and(|mut offered| offered.any(|alpn| alpn == wanted));
        let enrolls = offers(ALPN_ENROLL) && !offers(ALPN_SESSION);
        let served = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(if enrolls { &served.enroll } else { &served.session }))
    }
}

impl fmt::Debug for HubCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubCertificate(…)")
    }
}

fn client(
    known: Known,
    clock: Arc<dyn TimeProvider>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let verifier = HubVerifier::new(known);
    Ok(ClientConfig::builder_with_details(provider(), clock)
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
    /// There is no root, or one is not a fleet's root.
    #[error("a fleet root is missing, or a certificate in its place is no root; restore it from its backup")]
    Root,
    /// Certificate and key don't belong together.
    #[error("a certificate and its private key do not belong together")]
    KeyPair(#[source] rustls::Error),
    /// The provider cannot speak TLS 1.3.
    #[error("TLS 1.3 cannot be configured")]
    Config(#[source] rustls::Error),
}
