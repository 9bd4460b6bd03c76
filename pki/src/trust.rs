//! Judges certificates beyond what webpki does: whose a node is, whether the chain may say so, and the root's pin.

use protocol::{NodeId, NodeKind, TenantId, Timestamp};
use rustls::pki_types::CertificateDer;

use crate::certificate::Facts;
use crate::key::sha256;
use crate::name::{self, NodeName};
use crate::serial::Serial;

/// Who a verified certificate says its holder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// The node.
    pub node: NodeId,
    /// What the node is.
    pub kind: NodeKind,
    /// Whose it is, confirmed by the intermediate that issued the certificate.
    pub tenant: TenantId,
    /// With `issuer_sha256`, names the certificate. A fingerprint would not do: whoever holds a certificate can
    /// change the encoding of its ECDSA signature, and so its fingerprint, and it stays valid.
    pub serial: Serial,
    /// SHA-256 of the leaf's SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
    /// SHA-256 of the issuing intermediate's subject and SubjectPublicKeyInfo, both in DER.
    pub issuer_sha256: [u8; 32],
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
}

/// Reads a node's identity from a chain that webpki has verified against the fleet root for client authentication.
///
/// webpki's name constraints don't isolate tenants by themselves: a leaf without a DNS name, or with a URI, passes
/// them; and it takes a leaf that is for more than one purpose, or for none in particular. So the chain must be exactly the leaf and the intermediate that issued it, the leaf must carry exactly one
/// name, a DNS name of the only form the hub gives, and the tenant in it must be the intermediate's.
///
/// # Errors
/// Why the chain is not a node's.
pub fn node_identity(chain: &[CertificateDer<'_>]) -> Result<NodeIdentity, TrustError> {
    let [leaf, intermediate] = chain else { return Err(TrustError::ChainLength(chain.len())) };
    let leaf = Facts::parse(leaf).ok_or(TrustError::Malformed)?;
    let issuer = Facts::parse(intermediate).ok_or(TrustError::Malformed)?;
    if leaf.is_ca || !issuer.is_ca || !leaf.names_as_issuer(&issuer) {
        return Err(TrustError::NotIssuer);
    }
    if !leaf.client_only {
        return Err(TrustError::Purpose);
    }
    let [Some(only)] = leaf.names.as_slice() else { return Err(TrustError::Names) };
    let name: NodeName = only.parse().map_err(|_| TrustError::Names)?;
    let [Some(subtree)] = issuer.permitted.as_slice() else { return Err(TrustError::NotTenantIssuer) };
    let tenant = name::subtree_tenant(subtree).ok_or(TrustError::NotTenantIssuer)?;
    if name.tenant != tenant {
        return Err(TrustError::OtherTenant { claimed: name.tenant, issuer: tenant });
    }
    Ok(NodeIdentity {
        node: name.node,
        kind: name.kind,
        tenant,
        serial: Serial::from_der(leaf.serial).ok_or(TrustError::Serial)?,
        spki_sha256: sha256(leaf.spki),
        issuer_sha256: sha256(&[issuer.subject, issuer.spki].concat()),
        not_before: leaf.not_before,
        not_after: leaf.not_after,
    })
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo: the pin of a root.
///
/// # Errors
/// [`TrustError::Malformed`] when it is not a certificate.
pub fn pin(certificate: &CertificateDer<'_>) -> Result<[u8; 32], TrustError> {
    Facts::parse(certificate).map(|facts| sha256(facts.spki)).ok_or(TrustError::Malformed)
}

/// Checks that `root` is a self-signed authority whose key is the pinned one.
///
/// # Errors
/// [`TrustError::WrongPin`] when the key is another, [`TrustError::NotRoot`] when it does not sign itself.
pub fn check_root(root: &CertificateDer<'_>, pinned: &[u8; 32]) -> Result<(), TrustError> {
    let facts = Facts::parse(root).ok_or(TrustError::Malformed)?;
    if sha256(facts.spki) != *pinned {
        return Err(TrustError::WrongPin);
    }
    let (_, certificate) = x509_parser::parse_x509_certificate(root).map_err(|_| TrustError::Malformed)?;
    let self_signed = facts.is_ca && facts.issuer == facts.subject && certificate.verify_signature(None).is_ok();
    if self_signed { Ok(()) } else { Err(TrustError::NotRoot) }
}

/// Whether `issuer` signed `certificate`, by name, key identifier and signature. Says nothing else about either.
pub fn signed_by(certificate: &[u8], issuer: &[u8]) -> bool {
    let named = || Some(Facts::parse(certificate)?.names_as_issuer(&Facts::parse(issuer)?));
    let signed = || {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let (_, issuer) = x509_parser::parse_x509_certificate(issuer).ok()?;
        Some(certificate.verify_signature(Some(issuer.public_key())).is_ok())
    };
    named() == Some(true) && signed() == Some(true)
}

/// The root with the pinned key among the certificates a hub has shown.
///
/// # Errors
/// [`TrustError::WrongPin`] when no certificate has the key, [`TrustError::NotRoot`] when none that has it signs itself.
pub fn find_root<'a, 'b>(
    shown: &'a [CertificateDer<'b>],
    pinned: &[u8; 32],
) -> Result<&'a CertificateDer<'b>, TrustError> {
    let mut refusal = TrustError::WrongPin;
    // A link to the root has its key, too.
    for certificate in shown.iter().rev() {
        match check_root(certificate, pinned) {
            Ok(()) => return Ok(certificate),
            Err(TrustError::NotRoot) => refusal = TrustError::NotRoot,
            Err(_) => {}
        }
    }
    Err(refusal)
}

/// When a certificate is valid: from, until.
///
/// # Errors
/// [`TrustError::Malformed`] when it is not a certificate.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(Timestamp, Timestamp), TrustError> {
    Facts::parse(certificate).map(|facts| (facts.not_before, facts.not_after)).ok_or(TrustError::Malformed)
}

/// A chain that is not trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Not DER, or with an extension twice or unreadable.
    #[error("a certificate is malformed")]
    Malformed,
    /// A rule of RFC 5280 is broken.
    #[error("a certificate of the chain is not as RFC 5280 has it: {0}")]
    Profile(&'static str),
    /// Not leaf and intermediate.
    #[error("the chain has {0} certificates; a node sends two: its own and its tenant's intermediate")]
    ChainLength(usize),
    /// A certificate did not issue the one before it.
    #[error("a certificate of the chain was not issued by the one that follows it")]
    NotIssuer,
    /// The leaf is for more than client authentication, or says nothing of what it is for.
    #[error("the certificate is not for client authentication alone")]
    Purpose,
    /// The leaf does not have exactly one name, a node's.
    #[error("the certificate does not carry exactly one name, a node's DNS name")]
    Names,
    /// The intermediate is not constrained to one tenant.
    #[error("the certificate was not issued by a tenant's intermediate")]
    NotTenantIssuer,
    /// The leaf names a tenant its issuer is not.
    #[error("the certificate claims tenant {claimed} and was issued by the intermediate of tenant {issuer}")]
    OtherTenant {
        /// Tenant in the leaf's name.
        claimed: TenantId,
        /// Tenant of the intermediate.
        issuer: TenantId,
    },
    /// The serial is not one this fleet gives.
    #[error("the certificate's serial number is not one this fleet gives")]
    Serial,
    /// The certificate is on the denylist.
    #[error("the certificate is revoked")]
    Revoked,
    /// The root's key is not the pinned one.
    #[error("the hub's root is not the one the join token pins")]
    WrongPin,
    /// The root does not sign itself.
    #[error("the root is not a self-signed authority")]
    NotRoot,
    /// The root's own validity.
    #[error("the fleet root is not valid at this time")]
    RootValidity,
}
