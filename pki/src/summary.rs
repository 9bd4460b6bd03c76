//! What names a certificate and how long it lives: for logs, pages and whoever compares certificates with records.

use protocol::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::certificate::Facts;
use crate::key::sha256;
use crate::trust::TrustError;

/// A certificate in a few fields. Says nothing about whether it is to be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// SHA-256 of the whole certificate in DER.
    pub sha256: [u8; 32],
    /// The serial number as it stands in the certificate.
    pub serial: Vec<u8>,
    /// The issuer's key identifier; of a root, its own.
    pub issuer_key_id: Vec<u8>,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
    /// The subject's common name.
    pub common_name: Option<String>,
    /// Its DNS names, or the names it may issue for.
    pub names: Vec<String>,
    /// Whether it may issue others.
    pub is_ca: bool,
}

impl Summary {
    /// Reads a file of certificates: PEM, one or more, or one in DER.
    ///
    /// # Errors
    /// [`TrustError::Malformed`] when something in it is not a certificate, or nothing is.
    pub fn all(file: &[u8]) -> Result<Vec<Self>, TrustError> {
        let pem = CertificateDer::pem_slice_iter(file).collect::<Result<Vec<_>, _>>();
        match pem.map_err(|_| TrustError::Malformed)?.as_slice() {
            [] => Ok(vec![Self::of(file)?]),
            certificates => certificates.iter().map(|certificate| Self::of(certificate)).collect(),
        }
    }

    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// [`TrustError::Malformed`] when it is not a certificate.
    pub fn of(der: &[u8]) -> Result<Self, TrustError> {
        let facts = Facts::parse(der).ok_or(TrustError::Malformed)?;
        let names = if facts.is_ca { &facts.permitted } else { &facts.names };
        Ok(Self {
            sha256: sha256(der),
            serial: facts.serial.to_vec(),
            issuer_key_id: facts.issuer_key_id.or(facts.key_id).unwrap_or_default().to_vec(),
            spki_sha256: sha256(facts.spki),
            not_before: facts.not_before,
            not_after: facts.not_after,
            common_name: facts.common_name.map(str::to_owned),
            names: names.iter().flatten().map(|name| (*name).to_owned()).collect(),
            is_ca: facts.is_ca,
        })
    }
}
