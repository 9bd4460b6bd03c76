//! The two verifiers of a handshake: of nodes at the hub, of the hub at a node. webpki first, then what it leaves out.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use protocol::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible, RootCertStore,
    SignatureScheme,
};

use crate::tls::{Denied, TlsError};
use crate::trust::{self, TrustError, node_identity};

/// Verifies nodes at the hub.
pub(crate) struct NodeVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
    root: TrustedRoot,
    denied: Arc<Denied>,
}

impl NodeVerifier {
    pub(crate) fn new(
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
pub(crate) struct HubVerifier {
    anchor: Anchor,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
pub(crate) enum Anchor {
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
    pub(crate) fn new(anchor: Anchor, provider: Arc<CryptoProvider>) -> Self {
        Self { anchor, provider }
    }

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
pub(crate) struct TrustedRoot {
    store: Arc<RootCertStore>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl TrustedRoot {
    pub(crate) fn new(certificate: CertificateDer<'static>) -> Result<Self, TlsError> {
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
