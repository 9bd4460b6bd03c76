//! PEM (RFC 7468), where people and other programs exchange what this crate reads and writes in DER.

use data_encoding::BASE64;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

use crate::request::{MAX_REQUEST, RequestError};

/// Certificates, one block each, in the order given.
pub fn certificates<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> String {
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in BASE64.encode(certificate).as_bytes().chunks(64) {
            text.extend(line.iter().copied().map(char::from));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

/// The first certificate request in `text`, in DER; what stands around it is ignored.
///
/// # Errors
/// [`RequestError::TooLong`] and [`RequestError::Pem`].
pub fn request(text: &str) -> Result<Vec<u8>, RequestError> {
    if text.len() > 2 * MAX_REQUEST {
        return Err(RequestError::TooLong(text.len()));
    }
    // What older tools call it.
    let text = text.replace(" NEW CERTIFICATE REQUEST-----", " CERTIFICATE REQUEST-----");
    CertificateSigningRequestDer::from_pem_slice(text.as_bytes())
        .map(|request| request.to_vec())
        .map_err(|_| RequestError::Pem)
}

/// The certificates in `text`, in its order; what stands around them is ignored.
///
/// # Errors
/// [`RequestError::Pem`] when a block is damaged.
pub fn read_certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, RequestError> {
    CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().map_err(|_| RequestError::Pem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;

    #[test]
    fn certificates_read_back_in_order() {
        let given: Vec<CertificateDer<'_>> = vec![vec![7; 100].into(), vec![1, 2, 3].into()];
        let text = format!("a comment\n{}", certificates(&given));
        assert!(text.lines().all(|line| line.len() <= 64), "{text}");
        assert_eq!(read_certificates(&text), Ok(given));
        assert_eq!(read_certificates(""), Ok(Vec::new()));
        assert_eq!(
            read_certificates("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"),
            Err(RequestError::Pem)
        );
    }

    #[test]
    fn a_request_is_read_under_both_its_names() {
        let der = PrivateKey::generate().expect("a key").certificate_request().expect("a request");
        for name in ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"] {
            let text = format!("-----BEGIN {name}-----\n{}\n-----END {name}-----\n", BASE64.encode(&der));
            assert_eq!(request(&text).as_deref(), Ok(der.as_slice()), "{name}");
        }
        assert_eq!(request("no PEM"), Err(RequestError::Pem));
        assert!(matches!(request(&"x".repeat(20_000)), Err(RequestError::TooLong(20_000))));
    }
}
