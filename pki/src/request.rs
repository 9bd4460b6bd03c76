//! Certificate requests (PKCS#10, RFC 2986): proof of possession, and the public key. Nothing else is taken.

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::key::sha256;

/// Longest request that is looked at, in bytes.
pub const MAX_REQUEST: usize = 8 * 1024;

/// The kinds of key a certificate is issued for, by the bytes their SubjectPublicKeyInfo starts with. Comparing
/// bytes leaves no room for explicit curves, compressed points or odd parameters.
const KINDS: [(&[u8], usize, &dyn VerificationAlgorithm); 3] = [
    (
        // id-ecPublicKey, secp256r1, uncompressed point
        &[
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
            0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ],
        65,
        &ECDSA_P256_SHA256_ASN1,
    ),
    (
        // id-ecPublicKey, secp384r1, uncompressed point
        &[
            0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04,
            0x00, 0x22, 0x03, 0x62, 0x00,
        ],
        97,
        &ECDSA_P384_SHA384_ASN1,
    ),
    (
        // id-Ed25519
        &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00],
        32,
        &ED25519,
    ),
];

/// A public key whose holder has proved possession of the private one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedKey {
    spki: Vec<u8>,
}

impl RequestedKey {
    /// SHA-256 of the SubjectPublicKeyInfo in DER: tells whether two requests are for the same key.
    pub fn spki_sha256(&self) -> [u8; 32] {
        sha256(&self.spki)
    }

    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// Whether `signature` over `message` is this key's.
    pub(crate) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let kind = kind(&self.spki);
        kind.is_some_and(|(prefix, algorithm)| {
            UnparsedPublicKey::new(algorithm, &self.spki[prefix..]).verify(message, signature).is_ok()
        })
    }

    /// From a key pair in hand, which needs no proof.
    pub(crate) fn from_trusted_spki(spki: Vec<u8>) -> Self {
        Self { spki }
    }
}

/// Checks a PKCS#10 request in DER and takes the public key from it. Names, extensions and attributes that it asks
/// for are ignored.
///
/// # Errors
/// What is wrong with the request, for the one who made it.
pub fn verify_request(der: &[u8]) -> Result<RequestedKey, RequestError> {
    if der.len() > MAX_REQUEST {
        return Err(RequestError::TooLong(der.len()));
    }
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| RequestError::Malformed)?;
    if !rest.is_empty() {
        return Err(RequestError::Malformed);
    }
    let key = RequestedKey { spki: request.certification_request_info.subject_pki.raw.to_vec() };
    if kind(&key.spki).is_none() {
        return Err(RequestError::KeyKind);
    }
    let signed = key.verify(request.certification_request_info.raw, &request.signature_value.data);
    if signed { Ok(key) } else { Err(RequestError::Signature) }
}

/// Where the key proper begins, and what verifies with it; `None` for a kind that is not issued for.
fn kind(spki: &[u8]) -> Option<(usize, &'static dyn VerificationAlgorithm)> {
    let fits = |(prefix, length): (&[u8], usize)| spki.starts_with(prefix) && spki.len() == prefix.len() + length;
    let (prefix, _, algorithm) = KINDS.iter().find(|(prefix, length, _)| fits((prefix, *length)))?;
    Some((prefix.len(), *algorithm))
}

/// A certificate request that gets no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Over [`MAX_REQUEST`].
    #[error("the certificate request is {0} bytes long; at most {MAX_REQUEST} are read")]
    TooLong(usize),
    /// Not PEM.
    #[error("there is no \"BEGIN CERTIFICATE REQUEST\" block, or it is damaged")]
    Pem,
    /// Not PKCS#10.
    #[error("the certificate request is not PKCS#10 in DER")]
    Malformed,
    /// Not P-256, P-384 or Ed25519.
    #[error("the certificate request's key is of a kind that is not issued for: use P-256, P-384 or Ed25519")]
    KeyKind,
    /// Not signed by the key it names.
    #[error("the certificate request is not signed by the key it names")]
    Signature,
}
