//! HTTPS of the hub: the certificate it shows to browsers and `hfctl`, from whatever authority, and the TLS for it.
//!
//! None of this has a part in what nodes trust.

mod certificate;
mod name;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use data_encoding::HEXUPPER;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::key::sha256;
use crate::tls::{TlsError, provider};

pub use certificate::{WebCertificate, WebCertificateError};
pub use name::{WebName, WebNameError};

/// The one protocol spoken over it (RFC 7301).
const ALPN_HTTP: &[u8] = b"http/1.1";

/// The certificate that is shown, replaceable while connections are open and being made. Clones share it.
#[derive(Clone)]
pub struct Shown(Arc<RwLock<Arc<WebCertificate>>>);

impl Shown {
    /// Shows `certificate`.
    pub fn new(certificate: WebCertificate) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(certificate))))
    }

    /// Shows another certificate from the next handshake on.
    pub fn replace(&self, certificate: WebCertificate) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificate);
    }

    /// What is shown now.
    pub fn current(&self) -> Arc<WebCertificate> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Shown {
    /// One certificate whatever name is asked for: a client that does not find the name it wanted says so itself.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current().certified())
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shown").field(&self.current()).finish()
    }
}

/// TLS 1.2 and 1.3 for HTTP/1.1, without sessions to resume and without client certificates.
///
/// # Errors
/// None in practice: the provider has both versions.
pub fn server_config(shown: Shown) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Config)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = vec![ALPN_HTTP.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// SHA-256 of a certificate, written as browsers and OpenSSL show it: `AB:CD:…`.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    sha256(certificate).map(|byte| HEXUPPER.encode(&[byte])).join(":")
}
