//! Which authorities a hub's certificate may come from: the system's, those of a file, or the hub's own, known by its
//! fingerprint.

use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use data_encoding::BASE64;
use ring::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use ureq::http::Uri;
use ureq::tls::{Certificate, PemItem, parse_pem};

use crate::client::insecure;
use crate::failure::Failure;

/// Where systems keep the authorities they trust: Debian, Fedora, Alpine.
const SYSTEM_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// How long the hub may take for a step of the handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whose certificates are believed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trust<'a> {
    /// Those that this system believes.
    System,
    /// Those in a file.
    File(&'a Path),
    /// One in PEM.
    Authority(&'a str),
}

impl Trust<'_> {
    pub(crate) fn certificates(&self) -> Result<Vec<Certificate<'static>>, Failure> {
        let path = match self {
            Self::Authority(pem) => return Ok(certificates(pem.as_bytes())),
            Self::File(path) => *path,
            Self::System => SYSTEM_AUTHORITIES.iter().map(Path::new).find(|path| path.exists()).ok_or_else(|| {
                Failure::Usage(
                    "this system has no list of trusted authorities: install ca-certificates, or set ca-file".into(),
                )
            })?,
        };
        let pem = std::fs::read(path)
            .map_err(|error| Failure::Usage(format!("cannot read the authorities in {}: {error}", path.display())))?;
        match certificates(&pem) {
            none if none.is_empty() => {
                Err(Failure::Usage(format!("{} holds no certificate in PEM form", path.display())))
            }
            some => Ok(some),
        }
    }
}

fn certificates(pem: &[u8]) -> Vec<Certificate<'static>> {
    let items = parse_pem(pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    items.collect()
}

/// SHA-256 of a certificate, as browsers, OpenSSL and the hub write it: `AB:CD:…`, with or without the colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; 32]);

impl std::str::FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits: String = text.chars().filter(|char| *char != ':').collect();
        let bytes = data_encoding::HEXUPPER_PERMISSIVE.decode(digits.trim().as_bytes()).unwrap_or_default();
        bytes.try_into().map(Self).map_err(|_| {
            "a fingerprint is the SHA-256 of a certificate, 64 hexadecimal digits: hyperfactory-hub http-authority prints it"
                .to_owned()
        })
    }
}

/// Fetches the hub's authority, in PEM: the certificate with this fingerprint, which has signed the one the hub shows.
pub(crate) fn authority(url: &str, fingerprint: Fingerprint) -> Result<String, Failure> {
    let wrong =
        || Failure::Usage(format!("{url:?} is not the https address of a hub: a fingerprint is of no use there"));
    let uri: Uri = url.trim().trim_end_matches('/').parse().map_err(|_| wrong())?;
    let host = uri.host().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(wrong)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned()).map_err(|_| wrong())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(ByFingerprint { fingerprint, provider: Arc::clone(&provider), found: Mutex::default() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::Failed(insecure(url, &error)))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let mut session = ClientConnection::new(Arc::new(config), name).map_err(|_| wrong())?;
    let shaken = connect(bare, uri.port_u16().unwrap_or(443)).and_then(|mut stream| {
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        Ok(())
    });
    shaken.map_err(|error| {
        Failure::Failed(match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => format!(
                "{url} shows no authority with this fingerprint: compare it with what hyperfactory-hub http-authority \
                 prints; if it is right, something on the way speaks in the hub's place"
            ),
            Some(error) => insecure(url, error),
            None => format!("{url} can't be reached: {error}"),
        })
    })?;
    let found = verifier.found.lock().unwrap_or_else(PoisonError::into_inner).take();
    found.ok_or_else(|| Failure::Failed(format!("{url} shows no certificate")))
}

fn connect(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Trusts what the authority with the fingerprint has signed, and keeps that authority.
#[derive(Debug)]
struct ByFingerprint {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
    found: Mutex<Option<String>>,
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = chain
            .iter()
            .find(|certificate| digest(&SHA256, certificate).as_ref() == self.fingerprint.0)
            .ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|_| CertificateError::UnknownIssuer)?;
        let verified = verifier.verify_server_cert(leaf, chain, name, ocsp, now)?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(pem(authority));
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A certificate as a file (RFC 7468).
fn pem(certificate: &CertificateDer<'_>) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in BASE64.encode(certificate).as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_people_copy_it() {
        let plain = "ab".repeat(32);
        let colons = ["AB"; 32].join(":");
        assert_eq!(plain.parse::<Fingerprint>(), Ok(Fingerprint([0xab; 32])));
        assert_eq!(format!("{colons}\n").parse::<Fingerprint>(), Ok(Fingerprint([0xab; 32])));
        for bad in ["", "ab", &plain[2..], &format!("{plain}00"), &plain.replace('a', "x")] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad:?}");
        }
    }
}
