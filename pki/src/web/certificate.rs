//! A certificate with its chain and its key: from files, or just issued.

use std::fmt;
use std::sync::Arc;

use protocol::Timestamp;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::WebName;
use crate::key::PrivateKey;
use crate::tls::provider;

/// A certificate the hub can show, and what it says.
pub struct WebCertificate {
    certified: Arc<CertifiedKey>,
    names: Vec<String>,
    not_before: Timestamp,
    not_after: Timestamp,
    /// Neither signed by itself nor followed by who signed it.
    alone: bool,
}

impl WebCertificate {
    /// Reads a chain, the server's own certificate first, and its private key, both in PEM (RFC 7468).
    ///
    /// # Errors
    /// What is wrong with which of the two. Whether it is valid now is another question: [`WebCertificate::judge`].
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, WebCertificateError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(certificates)
            .collect::<Result<_, _>>()
            .map_err(|_| WebCertificateError::Certificate)?;
        if chain.is_empty() {
            return Err(WebCertificateError::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            pem::Error::NoItemsFound if is_encrypted(key) => WebCertificateError::Encrypted,
            pem::Error::NoItemsFound => WebCertificateError::NoKey,
            _ => WebCertificateError::Key,
        })?;
        Self::new(chain, key)
    }

    /// A chain that was issued for `key`.
    ///
    /// # Errors
    /// [`WebCertificateError::OtherKey`] when it was not.
    pub fn issued(chain: Vec<CertificateDer<'static>>, key: &PrivateKey) -> Result<Self, WebCertificateError> {
        Self::new(chain, key.to_rustls())
    }

    fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, WebCertificateError> {
        let leaf = chain.first().ok_or(WebCertificateError::NoCertificate)?;
        let (rest, leaf) = X509Certificate::from_der(leaf).map_err(|_| WebCertificateError::Certificate)?;
        if !rest.is_empty() {
            return Err(WebCertificateError::Certificate);
        }
        let at = |seconds: i64| Timestamp::from_millis(seconds.saturating_mul(1000));
        let (not_before, not_after) =
            (at(leaf.validity.not_before.timestamp()), at(leaf.validity.not_after.timestamp()));
        let names = match leaf.subject_alternative_name() {
            Ok(Some(names)) => names.value.general_names.iter().filter_map(shown).collect(),
            Ok(None) => Vec::new(),
            Err(_) => return Err(WebCertificateError::Certificate),
        };
        let alone = chain.len() == 1 && leaf.issuer.as_raw() != leaf.subject.as_raw();
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => WebCertificateError::OtherKey,
            Error::InvalidCertificate(_) => WebCertificateError::Certificate,
            _ => WebCertificateError::Key,
        })?;
        Ok(Self { certified: Arc::new(certified), names, not_before, not_after, alone })
    }

    /// Whether it is valid at `now`.
    ///
    /// # Errors
    /// [`WebCertificateError::Expired`], or [`WebCertificateError::NotYet`].
    pub fn judge(&self, now: Timestamp) -> Result<(), WebCertificateError> {
        if now > self.not_after {
            Err(WebCertificateError::Expired { not_after: self.not_after })
        } else if now < self.not_before {
            Err(WebCertificateError::NotYet { not_before: self.not_before, now })
        } else {
            Ok(())
        }
    }

    /// Whether a client that wants `name` finds it, wildcards included (RFC 9525).
    pub fn is_for(&self, name: &WebName) -> bool {
        let leaf = self.certified.cert.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
        leaf.is_some_and(|leaf| verify_server_name(&leaf, name.server_name()).is_ok())
    }

    /// The hosts and addresses it is for, as it says them.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// End of its validity.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Whether it is in the last sixth of its life. ACME clients renew a certificate when a third is left.
    pub fn ends_soon(&self, now: Timestamp) -> bool {
        let life = self.not_after.millis().saturating_sub(self.not_before.millis());
        now.millis() > self.not_after.millis().saturating_sub(life / 6)
    }

    /// Whether the authority between it and the root may be missing: clients would then not trust it.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

impl fmt::Debug for WebCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebCertificate({:?}, until {})", self.names, self.not_after)
    }
}

fn shown(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(|bytes| std::net::Ipv4Addr::from(bytes).to_string());
            v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(|bytes| std::net::Ipv6Addr::from(bytes).to_string())).ok()
        }
        _ => None,
    }
}

fn is_encrypted(pem: &[u8]) -> bool {
    pem.windows(b"BEGIN ENCRYPTED".len()).any(|window| window == b"BEGIN ENCRYPTED")
}

/// A certificate that can't be shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebCertificateError {
    /// No such block.
    #[error("there is no certificate in PEM form (\"BEGIN CERTIFICATE\")")]
    NoCertificate,
    /// Not a readable certificate.
    #[error("the certificate is damaged or cut short")]
    Certificate,
    /// No such block.
    #[error("there is no private key in PEM form (\"BEGIN PRIVATE KEY\")")]
    NoKey,
    /// Under a passphrase.
    #[error("the private key is encrypted: the hub can't ask for a passphrase, so give it the key without one")]
    Encrypted,
    /// Not a key that TLS can use.
    #[error("the private key is damaged, or of a kind that is not supported (RSA, ECDSA P-256 and P-384, Ed25519 are)")]
    Key,
    /// Another certificate's.
    #[error(
        "the private key is not that of the certificate; the server's own certificate comes first in its file, then its authority's"
    )]
    OtherKey,
    /// Too late.
    #[error("the certificate has expired on {not_after}: renew it")]
    Expired {
        /// End of its validity.
        not_after: Timestamp,
    },
    /// Too early.
    #[error("the certificate is valid from {not_before}, and it is {now}: see this machine's clock")]
    NotYet {
        /// Start of its validity.
        not_before: Timestamp,
        /// This machine's time.
        now: Timestamp,
    },
}
