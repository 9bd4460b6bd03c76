//! Private keys: ECDSA on P-256, made where they are used, never printed.

use std::fmt;

use rcgen::{CertificateParams, KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use ring::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::request::RequestedKey;

/// A private key, wiped from memory when dropped.
pub struct PrivateKey(Zeroizing<KeyPair>);

impl PrivateKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`KeyError::Random`] when the operating system has no randomness to give.
    pub fn generate() -> Result<Self, KeyError> {
        KeyPair::generate().map(|key| Self(Zeroizing::new(key))).map_err(|_| KeyError::Random)
    }

    /// Reads PKCS#8 (RFC 5958) in PEM.
    ///
    /// # Errors
    /// [`KeyError::Pem`] when there is no such block, [`KeyError::Unusable`] when it is not a P-256 key.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| KeyError::Pem)?;
        Self::from_pkcs8(der.secret_pkcs8_der())
    }

    /// Reads PKCS#8 (RFC 5958) in DER.
    ///
    /// # Errors
    /// [`KeyError::Unusable`] when it is not a P-256 key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &rcgen::PKCS_ECDSA_P256_SHA256)
            .map(|key| Self(Zeroizing::new(key)))
            .map_err(|_| KeyError::Unusable)
    }

    /// PKCS#8 in PEM, for a file only its owner may read.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// PKCS#8 in DER.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }

    /// The public half, as if it had come in a request.
    pub fn public_key(&self) -> RequestedKey {
        RequestedKey::from_trusted_spki(self.0.subject_public_key_info())
    }

    /// SHA-256 of the SubjectPublicKeyInfo in DER (RFC 5280, section 4.1.2.7).
    pub fn spki_sha256(&self) -> [u8; 32] {
        sha256(&self.0.subject_public_key_info())
    }

    /// A PKCS#10 request in DER (RFC 2986) that proves possession of this key and asks for nothing: the hub would
    /// ignore it.
    ///
    /// # Errors
    /// [`KeyError::Random`] when the operating system has no randomness to sign with.
    pub fn certificate_request(&self) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(self).map_err(|_| KeyError::Random)?;
        Ok(request.der().to_vec())
    }

    pub(crate) fn sign_bytes(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.0.sign(message).map_err(|_| KeyError::Random)
    }

    pub(crate) fn to_rustls(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

impl PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&*self.0)
    }
}

impl SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// A private key that cannot be made or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The operating system gave no randomness.
    #[error("the operating system has no randomness for a key")]
    Random,
    /// No PKCS#8 block.
    #[error("no \"BEGIN PRIVATE KEY\" block found; the key file is empty, cut short or of another format")]
    Pem,
    /// Not a P-256 key.
    #[error("the private key is damaged or is not a P-256 key in PKCS#8")]
    Unusable,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file_and_is_never_printed() {
        let key = PrivateKey::generate().expect("a key");
        let pem = key.to_pem();
        let again = PrivateKey::from_pem(&pem).expect("the same key");
        assert_eq!(again.spki_sha256(), key.spki_sha256());
        assert_eq!(format!("{key:?}"), "PrivateKey(…)");
    }

    #[test]
    fn damaged_key_files_are_refused_with_the_reason() {
        let pem = PrivateKey::generate().expect("a key").to_pem();
        assert_eq!(PrivateKey::from_pem("").err(), Some(KeyError::Pem));
        assert_eq!(PrivateKey::from_pem(&pem[..pem.len() / 2]).err(), Some(KeyError::Pem));
        let der = PrivateKey::generate().expect("a key").to_pkcs8();
        assert_eq!(PrivateKey::from_pkcs8(&der[..der.len() - 1]).err(), Some(KeyError::Unusable));
    }
}
