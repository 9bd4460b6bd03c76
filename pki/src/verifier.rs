//! The two verifiers of a handshake: of nodes at the hub, of the hub at a node. webpki first, then what it leaves out.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible, SignatureScheme,
};

use crate::anchors::{Anchor, TrustedRoots, by_any};
use crate::name::HUB_SERVER_NAME;
use crate::tls::{Denied, provider};
use crate::trust::{self, TrustError, node_identity};

/// Verifies nodes at the hub.
pub(crate) struct NodeVerifier {
    roots: TrustedRoots,
    denied: Arc<Denied>,
    provider: Arc<CryptoProvider>,
}

impl NodeVerifier {
    pub(crate) fn new(roots: TrustedRoots, denied: Arc<Denied>) -> Self {
        Self { roots, denied, provider: provider() }
    }
}

impl ClientCertVerifier for NodeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
        let verified = by_any(&self.roots.now(), now, |root| {
            let verified = root.webpki.verify_client_cert(leaf, intermediates, now)?;
            root.anchor.check_profile(&chain).map_err(refused)?;
            Ok(verified)
        })?;
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
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
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
    known: Known,
    provider: Arc<CryptoProvider>,
}

/// What a node knows of its hub.
#[derive(Debug)]
pub(crate) enum Known {
    Roots(Vec<Anchor>),
    /// Before enrollment: a root whose key has this hash comes with the hub's chain.
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
        let pinned;
        let anchors = match &self.known {
            Known::Roots(anchors) => anchors,
            Known::Pin(pin) => {
                let root = trust::find_root(intermediates, pin).map_err(refused)?;
                let root = Anchor::new(root.clone().into_owned()).map_err(|_| refused(TrustError::NotRoot))?;
                pinned = vec![root];
                &pinned
            }
        };
        by_any(anchors, now, |anchor| verify_hub(anchor, leaf, intermediates, now))?;
        verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
        Ok(ServerCertVerified::assertion())
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
    pub(crate) fn new(known: Known) -> Self {
        Self { known, provider: provider() }
    }
}

/// Whether a chain is a hub's and leads to this anchor.
pub(crate) fn verify_hub(
    anchor: &Anchor,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let shown: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
    let leaf = ParsedCertificate::try_from(leaf)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&leaf, &anchor.store, intermediates, now, algorithms)?;
    let name = ServerName::try_from(HUB_SERVER_NAME).map_err(|_| CertificateError::NotValidForName)?;
    verify_server_name(&leaf, &name)?;
    anchor.check_profile(&shown).map_err(refused)
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
