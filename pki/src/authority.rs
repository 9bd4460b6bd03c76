//! Authorities of a fleet and what each may issue: the root issues intermediates, the hub's intermediate the hub's
//! server certificate, a tenant's intermediate its nodes. A tenant's Kafka root stands on its own (see `kafka`), and so
//! does the authority for HTTPS (see `web`).

mod web;

use std::fmt;
use std::time::Duration;

use data_encoding::HEXLOWER;
use protocol::{NodeId, NodeKind, TenantId, Timestamp};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyUsagePurpose, NameConstraints, SanType, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;

use crate::certificate::Facts;
use crate::key::{KeyError, PrivateKey, sha256};
use crate::name::{self, HUB_SERVER_NAME, NodeName};
use crate::request::RequestedKey;
use crate::seal::{DataKey, Owner, SealError};
use crate::serial::Serial;

pub use web::WEB_SERVER_LIFETIME;

const DAY: Duration = Duration::from_secs(86_400);

/// Life of a fleet root unless the hub is told otherwise.
pub const ROOT_LIFETIME: Duration = DAY.saturating_mul(3650);
/// Life of an intermediate unless the hub is told otherwise.
pub const INTERMEDIATE_LIFETIME: Duration = DAY.saturating_mul(365);
/// Life of the hub's server certificate.
pub const HUB_SERVER_LIFETIME: Duration = DAY.saturating_mul(30);
/// Life of an agent's certificate unless the hub is told otherwise.
pub const NODE_LIFETIME: Duration = DAY.saturating_mul(7);
/// How far `notBefore` lies in the past, for nodes whose clock is behind.
pub const BACKDATE: Duration = Duration::from_secs(600);

/// 9999-12-31T23:59:59Z, the last second a certificate can name (RFC 5280, section 4.1.2.5).
const LAST_SECOND: i64 = 253_402_300_799;

/// What an authority is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The fleet's anchor; issues intermediates.
    Root,
    /// Issues the hub's server certificate.
    Hub,
    /// Issues the certificates of one tenant's nodes.
    Nodes(TenantId),
    /// One tenant's own root: issues what its bridges and its brokers show each other.
    Kafka(TenantId),
    /// Issues the hub's certificate for HTTPS; signed by itself, and nothing to nodes.
    Web,
}

/// A certificate that may issue others, and its key.
pub struct Authority {
    role: Role,
    certificate: CertificateDer<'static>,
    not_before: Timestamp,
    not_after: Timestamp,
    issuer: Issuer<'static, PrivateKey>,
}

impl Authority {
    /// Makes a fleet's root, valid from `now` for `validity`.
    ///
    /// # Errors
    /// [`AuthorityError::Key`] when the operating system has no randomness to give.
    pub fn create_root(now: Timestamp, validity: Duration) -> Result<Self, AuthorityError> {
        let key = PrivateKey::generate()?;
        let params = authority_params(&Role::Root, &key.public_key(), life(now, validity, None)?)?;
        let certificate = params.self_signed(&key).map_err(AuthorityError::Issue)?;
        Self::with_key(certificate.der().clone(), key)
    }

    /// Makes the root of `tenant`'s Kafka plane, valid from `now` for `validity`. It is no part of the fleet's chain: what
    /// trusts it trusts this tenant's bridges and brokers, and nothing else of the fleet.
    ///
    /// # Errors
    /// [`AuthorityError::Key`] when the operating system has no randomness to give.
    pub fn create_kafka_root(tenant: &TenantId, now: Timestamp, validity: Duration) -> Result<Self, AuthorityError> {
        let (role, key) = (Role::Kafka(tenant.clone()), PrivateKey::generate()?);
        let params = authority_params(&role, &key.public_key(), life(now, validity, None)?)?;
        let certificate = params.self_signed(&key).map_err(AuthorityError::Issue)?;
        Self::with_key(certificate.der().clone(), key)
    }

    /// Issues the intermediate that signs the hub's server certificate, and nothing but the hub's name.
    ///
    /// # Errors
    /// As [`Authority::sign_intermediate`].
    pub fn issue_hub_intermediate(&self, now: Timestamp, lifetime: Duration) -> Result<Self, AuthorityError> {
        self.issue_intermediate(&Role::Hub, now, lifetime)
    }

    /// Issues the intermediate that signs the certificates of `tenant`'s nodes, and no other tenant's.
    ///
    /// # Errors
    /// As [`Authority::sign_intermediate`].
    pub fn issue_tenant_intermediate(
        &self,
        tenant: &TenantId,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Self, AuthorityError> {
        self.issue_intermediate(&Role::Nodes(tenant.clone()), now, lifetime)
    }

    fn issue_intermediate(&self, role: &Role, now: Timestamp, lifetime: Duration) -> Result<Self, AuthorityError> {
        let key = PrivateKey::generate()?;
        let certificate = self.sign_intermediate(role, &key.public_key(), now, lifetime)?;
        Self::with_key(certificate.into(), key)
    }

    /// Issues an intermediate for a key that is elsewhere; gives it in DER. Its name and constraints are those of `role`.
    ///
    /// # Errors
    /// [`AuthorityError::NotAllowed`] when this is not a root or `role` is not an intermediate's,
    /// [`AuthorityError::NotValid`] when this is not valid at `now`.
    pub fn sign_intermediate(
        &self,
        role: &Role,
        key: &RequestedKey,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Vec<u8>, AuthorityError> {
        self.must_be(&Role::Root, "an intermediate")?;
        if !matches!(role, Role::Hub | Role::Nodes(_)) {
            return Err(self.not_allowed("another root"));
        }
        self.sign(&authority_params(role, key, self.child(now, lifetime)?)?, key)
    }

    /// Introduces another root to those who know this one: `other`'s name and key, signed by this root. The link ends with
    /// the first of the two roots. See [`crate::roots`].
    ///
    /// # Errors
    /// [`AuthorityError::NotAllowed`] when this is not a root, [`AuthorityError::Certificate`] when `other` is none or is
    /// this one, [`AuthorityError::NotValid`] when one of them is not valid at `now`.
    pub fn link(&self, other: &CertificateDer<'_>, now: Timestamp) -> Result<CertificateDer<'static>, AuthorityError> {
        self.link_for(other, now, Duration::MAX)
    }

    /// As [`Authority::link`], for no longer than `lifetime`.
    ///
    /// # Errors
    /// As there.
    pub fn link_for(
        &self,
        other: &CertificateDer<'_>,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        self.must_be(&Role::Root, "a link to another root")?;
        let facts = Facts::parse(other)
            .filter(|facts| role_of(facts) == Some(Role::Root) && self.spki_sha256() != sha256(facts.spki));
        let facts = facts.ok_or(AuthorityError::Certificate)?;
        let within = (self.not_before.max(facts.not_before), self.not_after.min(facts.not_after));
        let life = life(now, lifetime.min(within.1.since(now)), Some(within))?;
        let key = RequestedKey::from_trusted_spki(facts.spki.to_vec());
        let link = self.sign(&authority_params(&Role::Root, &key, life)?, &key)?;
        let introduces = Facts::parse(&link)
            .is_some_and(|link| link.is_link() && (link.subject, link.key_id) == (facts.subject, facts.key_id));
        if introduces { Ok(link.into()) } else { Err(AuthorityError::Certificate) }
    }

    /// Issues the hub's server certificate for [`HUB_SERVER_LIFETIME`]; gives it in DER.
    ///
    /// # Errors
    /// [`AuthorityError::NotAllowed`] when this is not the hub's intermediate, [`AuthorityError::NotValid`] when it is
    /// not valid at `now`.
    pub fn issue_hub_server(&self, key: &RequestedKey, now: Timestamp) -> Result<Vec<u8>, AuthorityError> {
        self.must_be(&Role::Hub, "the hub's server certificate")?;
        let mut params = params(self.child(now, HUB_SERVER_LIFETIME)?)?;
        params.distinguished_name.push(DnType::CommonName, "Hyperfactory hub");
        self.issue_leaf(params, vec![dns_name(HUB_SERVER_NAME)?], ExtendedKeyUsagePurpose::ServerAuth, key)
    }

    /// Issues a node's certificate; gives it in DER. It never outlives this authority.
    ///
    /// # Errors
    /// [`AuthorityError::NotAllowed`] when this is not a tenant's intermediate, [`AuthorityError::NotValid`] when it is
    /// not valid at `now`.
    pub fn issue_node(
        &self,
        key: &RequestedKey,
        node: NodeId,
        kind: NodeKind,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Vec<u8>, AuthorityError> {
        let Role::Nodes(tenant) = &self.role else { return Err(self.not_allowed("a node's certificate")) };
        let mut params = params(self.child(now, lifetime)?)?;
        params.distinguished_name.push(DnType::OrganizationName, tenant.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, kind.as_str());
        params.distinguished_name.push(DnType::CommonName, node.to_string());
        let name = NodeName { node, kind, tenant: tenant.clone() };
        self.issue_leaf(params, vec![dns_name(&name.to_string())?], ExtendedKeyUsagePurpose::ClientAuth, key)
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, PrivateKey> {
        &self.issuer
    }

    /// What this authority is for.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// Its certificate.
    pub fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Start of its validity.
    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// End of its validity; nothing it issues lives longer.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// SHA-256 of its SubjectPublicKeyInfo; of a root, the pin in join tokens.
    pub fn spki_sha256(&self) -> [u8; 32] {
        self.issuer.key().spki_sha256()
    }

    /// Its private key, sealed for storage beside the certificate with its owner's key, and bound to what it is for.
    ///
    /// # Errors
    /// [`AuthorityError::Owner`] when the key is not its owner's, [`AuthorityError::Seal`] when the operating system
    /// has no randomness to give.
    pub fn seal_key(&self, key: &DataKey) -> Result<Vec<u8>, AuthorityError> {
        self.role.seal_key(self.issuer.key(), key)
    }

    /// Restores an authority from storage.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`] when the certificate is not one of a fleet's authorities,
    /// [`AuthorityError::Seal`] when the key was sealed for another authority or with another key than `key`, or is
    /// damaged, [`AuthorityError::KeyMismatch`] when it is not the certificate's.
    pub fn open(certificate: &[u8], sealed_key: &[u8], key: &DataKey) -> Result<Self, AuthorityError> {
        let role = Role::of(certificate).ok_or(AuthorityError::Certificate)?;
        Self::with_key(CertificateDer::from(certificate.to_vec()), role.open_key(sealed_key, key)?)
    }

    /// Puts together a certificate that was issued elsewhere and the key it was issued for.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`] when it is not one of a fleet's authorities, [`AuthorityError::KeyMismatch`] when
    /// the key is not its.
    pub fn with_key(certificate: CertificateDer<'static>, key: PrivateKey) -> Result<Self, AuthorityError> {
        let facts = Facts::parse(&certificate).ok_or(AuthorityError::Certificate)?;
        let role = role_of(&facts).ok_or(AuthorityError::Certificate)?;
        if sha256(facts.spki) != key.spki_sha256() {
            return Err(AuthorityError::KeyMismatch);
        }
        let (not_before, not_after) = (facts.not_before, facts.not_after);
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(AuthorityError::Issue)?;
        Ok(Self { role, certificate, not_before, not_after, issuer })
    }

    pub(crate) fn issue_leaf(
        &self,
        mut params: CertificateParams,
        names: Vec<SanType>,
        purpose: ExtendedKeyUsagePurpose,
        key: &RequestedKey,
    ) -> Result<Vec<u8>, AuthorityError> {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        params.subject_alt_names = names;
        self.sign(&params, key)
    }

    fn sign(&self, params: &CertificateParams, key: &RequestedKey) -> Result<Vec<u8>, AuthorityError> {
        let public_key = SubjectPublicKeyInfo::from_der(key.spki()).map_err(AuthorityError::Issue)?;
        Ok(params.signed_by(&public_key, &self.issuer).map_err(AuthorityError::Issue)?.der().to_vec())
    }

    pub(crate) fn child(&self, now: Timestamp, lifetime: Duration) -> Result<Life, AuthorityError> {
        life(now, lifetime, Some((self.not_before, self.not_after)))
    }

    fn must_be(&self, role: &Role, what: &'static str) -> Result<(), AuthorityError> {
        if self.role == *role { Ok(()) } else { Err(self.not_allowed(what)) }
    }

    pub(crate) fn not_allowed(&self, what: &'static str) -> AuthorityError {
        AuthorityError::NotAllowed { role: self.role.clone(), what }
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({:?}, until {})", self.role, self.not_after)
    }
}

impl Role {
    /// What the authority is for whose certificate this is; `None` when it is none of a fleet's authorities.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        Facts::parse(certificate).as_ref().and_then(role_of)
    }

    /// Whose data key seals its private key.
    pub fn owner(&self) -> Owner {
        match self {
            Self::Root | Self::Hub | Self::Web => Owner::Fleet,
            Self::Nodes(tenant) | Self::Kafka(tenant) => Owner::Tenant(tenant.clone()),
        }
    }

    /// Seals the private key of an authority that is to be this, whether it has its certificate yet or not. As
    /// [`Authority::seal_key`].
    ///
    /// # Errors
    /// As there.
    pub fn seal_key(&self, private: &PrivateKey, key: &DataKey) -> Result<Vec<u8>, AuthorityError> {
        self.must_own(key)?;
        Ok(key.seal(self.purpose(), &private.to_pkcs8())?)
    }

    /// Opens what [`Role::seal_key`] sealed.
    ///
    /// # Errors
    /// [`AuthorityError::Owner`] and [`AuthorityError::Seal`] when it was sealed for another authority or with another key
    /// than `key`, or is damaged.
    pub fn open_key(&self, sealed: &[u8], key: &DataKey) -> Result<PrivateKey, AuthorityError> {
        self.must_own(key)?;
        Ok(PrivateKey::from_pkcs8(&key.open(self.purpose(), sealed)?)?)
    }

    fn must_own(&self, key: &DataKey) -> Result<(), AuthorityError> {
        if *key.owner() == self.owner() {
            return Ok(());
        }
        Err(AuthorityError::Owner { role: self.clone(), owner: key.owner().clone() })
    }

    /// What its sealed private key is bound to, beside the owner.
    fn purpose(&self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Hub => "hub",
            Self::Nodes(_) => "nodes",
            Self::Kafka(_) => "kafka",
            Self::Web => "web",
        }
    }
}

fn role_of(facts: &Facts<'_>) -> Option<Role> {
    if !facts.is_ca {
        return None;
    }
    match facts.permitted.as_slice() {
        [] if facts.issuer == facts.subject => match (facts.path_length, facts.organization) {
            (None, None) => Some(Role::Root),
            (Some(0), Some(tenant)) => tenant.parse().ok().map(Role::Kafka),
            _ => None,
        },
        _ if facts.issuer == facts.subject => Some(Role::Web),
        [Some(HUB_SERVER_NAME)] => Some(Role::Hub),
        [Some(subtree)] => name::subtree_tenant(subtree).map(Role::Nodes),
        _ => None,
    }
}

/// Validity in whole seconds since the Unix epoch.
pub(crate) struct Life {
    pub(crate) from: i64,
    pub(crate) until: i64,
}

fn life(now: Timestamp, lifetime: Duration, issuer: Option<(Timestamp, Timestamp)>) -> Result<Life, AuthorityError> {
    let mut life = Life { from: now.minus(BACKDATE).seconds(), until: now.plus(lifetime).seconds() };
    if let Some((not_before, not_after)) = issuer {
        if now < not_before || now > not_after {
            return Err(AuthorityError::NotValid { now, not_before, not_after });
        }
        life.from = life.from.max(not_before.seconds());
        life.until = life.until.min(not_after.seconds());
    }
    if life.from < 0 || life.until > LAST_SECOND || life.until <= life.from {
        return Err(AuthorityError::Lifetime);
    }
    Ok(life)
}

/// What every certificate here has: a random serial, both ends of its validity, its issuer's key identifier.
pub(crate) fn params(life: Life) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(life.from.unsigned_abs());
    params.not_after = epoch + Duration::from_secs(life.until.unsigned_abs());
    params.serial_number = Some(Serial::random().map_err(|_| KeyError::Random)?.as_bytes().to_vec().into());
    params.distinguished_name = DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// What an authority's certificate says besides the key. Its name ends in a part of the key's hash: were all fleets' roots
/// called alike, a certificate of another fleet would look like one of this fleet with a bad signature, and the advice
/// would be wrong.
pub(crate) fn authority_params(
    role: &Role,
    key: &RequestedKey,
    life: Life,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = params(life)?;
    let name = match role {
        Role::Root => "Hyperfactory fleet root",
        Role::Hub => "Hyperfactory hub authority",
        Role::Nodes(_) => "Hyperfactory node authority",
        Role::Kafka(_) => "Hyperfactory Kafka root",
        Role::Web => "Hyperfactory hub HTTPS",
    };
    if let Owner::Tenant(tenant) = role.owner() {
        params.distinguished_name.push(DnType::OrganizationName, tenant.as_str());
    }
    let id = HEXLOWER.encode(&key.spki_sha256()[..4]);
    params.distinguished_name.push(DnType::CommonName, format!("{name} {id}"));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.is_ca = IsCa::Ca(match role {
        // A later root may be signed by this one, to be introduced to nodes that know only this one.
        Role::Root => BasicConstraints::Unconstrained,
        _ => BasicConstraints::Constrained(0),
    });
    match role {
        // Roots have no purpose of their own: a Kafka root issues clients and servers.
        Role::Root | Role::Kafka(_) => {}
        Role::Hub => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.name_constraints = Some(only_dns(HUB_SERVER_NAME));
        }
        Role::Nodes(tenant) => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.name_constraints = Some(only_dns(&name::tenant_subtree(tenant)));
        }
        // Its names are not its role's: see `web`.
        Role::Web => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
    }
    Ok(params)
}

/// Permits one DNS subtree and no IP address. webpki knows no other constraint that OpenSSL reads alike.
fn only_dns(subtree: &str) -> NameConstraints {
    NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(subtree.to_owned())],
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    }
}

pub(crate) fn dns_name(name: &str) -> Result<SanType, AuthorityError> {
    Ok(SanType::DnsName(Ia5String::try_from(name).map_err(AuthorityError::Issue)?))
}

/// A certificate that is not issued, or an authority that cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// An authority was asked for what it is not for.
    #[error("{role:?} does not issue {what}")]
    NotAllowed {
        /// The authority asked.
        role: Role,
        /// What it was asked for.
        what: &'static str,
    },
    /// The authority is expired, or the clock is wrong.
    #[error(
        "the authority is valid from {not_before} to {not_after}, and it is {now}; check this machine's clock, or renew the authority"
    )]
    NotValid {
        /// The time it was asked at.
        now: Timestamp,
        /// Start of its validity.
        not_before: Timestamp,
        /// End of its validity.
        not_after: Timestamp,
    },
    /// The data key is another's.
    #[error("the key of {role:?} is not sealed with the data key of {owner}; restore the database from its backup")]
    Owner {
        /// The authority.
        role: Role,
        /// Whose data key it was.
        owner: Owner,
    },
    /// A validity that a certificate cannot say.
    #[error("the certificate would have no life: its end is not after its start, or not within the years 1970 to 9999")]
    Lifetime,
    /// The stored certificate is not an authority's.
    #[error("a stored certificate is not one of a fleet's authorities; restore the database from its backup")]
    Certificate,
    /// The stored key is another authority's.
    #[error("a stored key is not the one of its certificate; restore the database from its backup")]
    KeyMismatch,
    /// The key could not be made or read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The key could not be sealed or opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The certificate could not be encoded or signed.
    #[error("a certificate could not be made")]
    Issue(#[source] rcgen::Error),
}
