//! TLS 1.3 for QUIC: configurations of hub and node that never resume a session and never take early data.
//!
//! A resumed session would skip the check of the client's certificate, and a revoked node would be back in.

use std::fmt;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use std::time::Duration;

use protocol::Timestamp;
use protocol::version::{ALPN_ENROLL, ALPN_SESSION};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::time_provider::DefaultTimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible,
    RootCertStore, ServerConfig, SignatureScheme,
};

pub use rustls::time_provider::TimeProvider;

use crate::key::PrivateKey;
use crate::trust::{self, NodeIdentity, TrustError, node_identity};

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

/// Verifies nodes at the hub: webpki first, then what webpki does not know.
struct NodeVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
    root: TrustedRoot,
    denied: Arc<Denied>,
}

impl NodeVerifier {
    fn new(
        root: CertificateDer<'static>,
        denied: Arc<Denied>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let root = TrustedRoot::new(root)?;
        let webpki = WebPkiClientVerifier::builder_with_provider(Arc::clone(&root.store), Arc::clone(provider))
            .allow_unauthenticated()
            .clear_root_hint_subjects()
            .build()
            .map_err(|_| TlsError::Root)?;
        Ok(Self { webpki, root, denied })
    }
}

impl ClientCertVerifier for NodeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.webpki.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.root.check(now)?;
        let verified = self.webpki.verify_client_cert(leaf, intermediates, now)?;
        let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
        let identity = node_identity(&chain).map_err(refused)?;
        if (self.denied)(&identity) {
            return Err(CertificateError::Revoked.into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

impl fmt::Debug for NodeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeVerifier(…)")
    }
}

/// Verifies the hub at a node.
#[derive(Debug)]
struct HubVerifier {
    anchor: Anchor,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Anchor {
    Root(TrustedRoot),
    /// Before enrollment: the root comes last in the hub's chain and its key must have this hash.
    Pin([u8; 32]),
}

impl ServerCertVerifier for HubVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.anchor {
            Anchor::Root(root) => self.verify(leaf, intermediates, root, name, now),
            Anchor::Pin(pin) => {
                let (last, intermediates) = intermediates.split_last().ok_or_else(|| refused(TrustError::WrongPin))?;
                trust::check_root(last, pin).map_err(refused)?;
                let root = TrustedRoot::new(last.clone().into_owned()).map_err(|_| refused(TrustError::NotRoot))?;
                self.verify(leaf, intermediates, &root, name, now)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl HubVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        root: &TrustedRoot,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        root.check(now)?;
        let leaf = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, &root.store, intermediates, now, algorithms)?;
        verify_server_name(&leaf, name)?;
        Ok(ServerCertVerified::assertion())
    }
}

/// An anchor with its validity, which webpki does not look at.
#[derive(Debug)]
struct TrustedRoot {
    store: Arc<RootCertStore>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl TrustedRoot {
    fn new(certificate: CertificateDer<'static>) -> Result<Self, TlsError> {
        let (not_before, not_after) = trust::validity(&certificate).map_err(|_| TlsError::Root)?;
        let mut store = RootCertStore::empty();
        store.add(certificate).map_err(|_| TlsError::Root)?;
        Ok(Self { store: Arc::new(store), not_before, not_after })
    }

    fn check(&self, now: UnixTime) -> Result<(), CertificateError> {
        let unix =
            |time: Timestamp| UnixTime::since_unix_epoch(Duration::from_secs(time.seconds().max(0).unsigned_abs()));
        let (not_before, not_after) = (unix(self.not_before), unix(self.not_after));
        if now < not_before {
            return Err(CertificateError::NotValidYetContext { time: now, not_before });
        }
        if now > not_after {
            return Err(CertificateError::ExpiredContext { time: now, not_after });
        }
        Ok(())
    }
}

/// Chooses the error by the alert it becomes, because the alert is what [`Distrust`](crate::Distrust) is read from.
fn refused(error: TrustError) -> rustls::Error {
    let error = match error {
        TrustError::WrongPin => CertificateError::ApplicationVerificationFailure,
        TrustError::Revoked => CertificateError::Revoked,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    };
    error.into()
}

fn client(
    anchor: Anchor,
    clock: Arc<dyn TimeProvider>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TlsError> {
    let provider = provider();
    let verifier = HubVerifier { anchor, provider: Arc::clone(&provider) };
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
fn provider() -> Arc<CryptoProvider> {
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
