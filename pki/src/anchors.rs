//! The roots one side of a handshake trusts: several while a fleet goes from one root to the next.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use protocol::Timestamp;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, Error, RootCertStore};

use crate::profile;
use crate::tls::{TlsError, provider};
use crate::trust::{self, TrustError};

/// A fleet's root as an anchor. webpki looks neither at its validity nor at whether it is a root at all.
#[derive(Clone, Debug)]
pub(crate) struct Anchor {
    pub(crate) store: Arc<RootCertStore>,
    certificate: CertificateDer<'static>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Anchor {
    pub(crate) fn new(certificate: CertificateDer<'static>) -> Result<Self, TlsError> {
        profile::check_root(&certificate).map_err(|_| TlsError::Root)?;
        let (not_before, not_after) = trust::validity(&certificate).map_err(|_| TlsError::Root)?;
        let mut store = RootCertStore::empty();
        store.add(certificate.clone()).map_err(|_| TlsError::Root)?;
        Ok(Self { store: Arc::new(store), certificate, not_before, not_after })
    }

    /// Checks what webpki leaves out of a chain that it has led here.
    pub(crate) fn check_profile(&self, shown: &[CertificateDer<'_>]) -> Result<(), TrustError> {
        profile::check(shown, &self.certificate)
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

/// The roots a hub judges nodes by, replaceable while it serves. Clones share them.
#[derive(Clone)]
pub struct TrustedRoots(Arc<RwLock<Arc<[NodeAnchor]>>>);

/// A root and webpki's verifier of clients under it.
pub(crate) struct NodeAnchor {
    pub(crate) anchor: Anchor,
    pub(crate) webpki: Arc<dyn ClientCertVerifier>,
}

impl AsRef<Anchor> for NodeAnchor {
    fn as_ref(&self) -> &Anchor {
        &self.anchor
    }
}

impl AsRef<Anchor> for Anchor {
    fn as_ref(&self) -> &Anchor {
        self
    }
}

impl TrustedRoots {
    /// # Errors
    /// [`TlsError::Root`] when there is none, or one is no fleet's root.
    pub fn new(roots: &[CertificateDer<'_>]) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(RwLock::new(node_anchors(roots)?))))
    }

    /// Trusts these, and no others, from the next handshake on.
    ///
    /// # Errors
    /// As [`TrustedRoots::new`]; what was trusted before then stays.
    pub fn replace(&self, roots: &[CertificateDer<'_>]) -> Result<(), TlsError> {
        let anchors = node_anchors(roots)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = anchors;
        Ok(())
    }

    pub(crate) fn now(&self) -> Arc<[NodeAnchor]> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for TrustedRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustedRoots({})", self.now().len())
    }
}

/// Anchors for a list of roots, which may not be empty.
pub(crate) fn anchors(roots: &[CertificateDer<'_>]) -> Result<Vec<Anchor>, TlsError> {
    if roots.is_empty() {
        return Err(TlsError::Root);
    }
    roots.iter().map(|root| Anchor::new(root.clone().into_owned())).collect()
}

fn node_anchors(roots: &[CertificateDer<'_>]) -> Result<Arc<[NodeAnchor]>, TlsError> {
    let with_verifier = |anchor: Anchor| {
        let webpki = WebPkiClientVerifier::builder_with_provider(Arc::clone(&anchor.store), provider())
            .allow_unauthenticated()
            .clear_root_hint_subjects()
            .build()
            .map_err(|_| TlsError::Root)?;
        Ok(NodeAnchor { anchor, webpki })
    };
    anchors(roots)?.into_iter().map(with_verifier).collect()
}

/// Judges by each anchor that is valid now until one will do. Of several refusals the one that says most is given:
/// another fleet's certificate is what is left when no anchor knows the issuer.
pub(crate) fn by_any<A: AsRef<Anchor>, T>(
    anchors: &[A],
    now: UnixTime,
    judge: impl Fn(&A) -> Result<T, Error>,
) -> Result<T, Error> {
    let (mut refusal, mut out_of_time) = (None, None);
    for anchor in anchors {
        match anchor.as_ref().check(now) {
            Ok(()) => match judge(anchor) {
                Ok(judged) => return Ok(judged),
                Err(error) if refusal.as_ref().is_none_or(is_foreign) => refusal = Some(error),
                Err(_) => {}
            },
            Err(error) => out_of_time = Some((anchor, error)),
        }
    }
    match (refusal, out_of_time) {
        (None, Some((_, error))) => Err(error.into()),
        // It is this fleet's, of a root whose time is over or yet to come.
        (Some(refusal), Some((anchor, error))) if is_foreign(&refusal) => match judge(anchor) {
            Err(still) if is_foreign(&still) => Err(refusal),
            _ => Err(error.into()),
        },
        (refusal, _) => Err(refusal.unwrap_or_else(|| CertificateError::UnknownIssuer.into())),
    }
}

fn is_foreign(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::UnknownIssuer))
}
