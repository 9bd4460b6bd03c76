//! The authority of the hub's own HTTPS certificate.
//!
//! It stands beside the fleet root, not under it: people import it into browsers, and what they import must not be able to
//! speak for anything but this hub. So it signs itself, and is constrained to the hub's names.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, NameConstraints};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Authority, AuthorityError, DAY, ROOT_LIFETIME, Role, authority_params, life, params};
use crate::key::PrivateKey;
use crate::request::RequestedKey;
use crate::web::WebName;
use protocol::Timestamp;

/// Life of a certificate that it issues; browsers take no more than 825 days.
pub const WEB_SERVER_LIFETIME: Duration = DAY.saturating_mul(90);

impl Authority {
    /// Makes the authority of the hub's own HTTPS certificate, which can speak for `names` alone.
    ///
    /// # Errors
    /// [`AuthorityError::Key`] when the operating system has no randomness to give.
    pub fn create_web(names: &[WebName], now: Timestamp) -> Result<Self, AuthorityError> {
        let key = PrivateKey::generate()?;
        let mut params = authority_params(&Role::Web, &key.public_key(), life(now, ROOT_LIFETIME, None)?)?;
        params.name_constraints = Some(only(names));
        let certificate = params.self_signed(&key).map_err(AuthorityError::Issue)?;
        Self::with_key(certificate.der().clone(), key)
    }

    /// Issues a certificate for the hub's HTTPS, for [`WEB_SERVER_LIFETIME`]; gives it in DER.
    ///
    /// # Errors
    /// [`AuthorityError::NotAllowed`] when this is another authority, or not one for all of `names`;
    /// [`AuthorityError::NotValid`] when it is not valid at `now`.
    pub fn issue_web_server(
        &self,
        key: &RequestedKey,
        names: &[WebName],
        now: Timestamp,
    ) -> Result<Vec<u8>, AuthorityError> {
        self.must_be(&Role::Web, "a certificate for HTTPS")?;
        let own = self.web_names();
        if names.is_empty() || !names.iter().all(|name| own.contains(name)) {
            return Err(self.not_allowed("a certificate for such names"));
        }
        let mut params = params(self.child(now, WEB_SERVER_LIFETIME)?)?;
        params.distinguished_name.push(DnType::CommonName, "Hyperfactory hub");
        let subjects = names.iter().filter_map(WebName::subject).collect();
        self.issue_leaf(params, subjects, ExtendedKeyUsagePurpose::ServerAuth, key)
    }

    /// The names that an authority for HTTPS can speak for; none of any other.
    pub fn web_names(&self) -> Vec<WebName> {
        let Ok((_, certificate)) = X509Certificate::from_der(&self.certificate) else { return Vec::new() };
        let permitted = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::NameConstraints(constraints) => constraints.permitted_subtrees.as_ref(),
            _ => None,
        });
        let named = permitted.into_iter().flatten().filter_map(|subtree| match &subtree.base {
            GeneralName::DNSName(name) => name.parse().ok(),
            GeneralName::IPAddress(bytes) => host(bytes).map(WebName::from),
            _ => None,
        });
        if self.role == Role::Web { named.collect() } else { Vec::new() }
    }
}

/// The address of a subnet of one.
fn host(subnet: &[u8]) -> Option<IpAddr> {
    let (address, mask) = subnet.split_at_checked(subnet.len() / 2)?;
    if !mask.iter().all(|byte| *byte == 0xff) {
        return None;
    }
    let v4 = <[u8; 4]>::try_from(address).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(address).map(IpAddr::from)).ok()
}

/// Permits `names`. A kind of name of which none is permitted would be free, so it is excluded.
fn only(names: &[WebName]) -> NameConstraints {
    let permitted: Vec<_> = names.iter().map(WebName::subtree).collect();
    let mut excluded = Vec::new();
    if !permitted.iter().any(|subtree| matches!(subtree, GeneralSubtree::DnsName(_))) {
        excluded.push(GeneralSubtree::DnsName(String::new()));
    }
    if !permitted.iter().any(|subtree| matches!(subtree, GeneralSubtree::IpAddress(_))) {
        excluded.push(GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])));
        excluded.push(GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])));
    }
    NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded }
}
