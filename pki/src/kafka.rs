//! A tenant's Kafka plane: what its bridges show its brokers, and its brokers to whoever connects.
//!
//! The rule for names: a client's subject is `CN=bridge:<node-id>` and nothing else. A broker that takes the whole subject
//! as the principal, which Kafka and Redpanda do unless told otherwise, then knows it as `User:CN=bridge:<node-id>`.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use protocol::{NodeId, Timestamp};
use rcgen::{DnType, ExtendedKeyUsagePurpose, SanType};

use crate::authority::{Authority, AuthorityError, Role, dns_name, params};
use crate::request::RequestedKey;

/// Most names in one server certificate.
const NAMES_MAX: usize = 32;
/// The zone of the fleet's own names.
const OWN_ZONE: &str = "hyperfactory.internal";

impl Authority {
    /// Issues the certificate with which a bridge comes to its tenant's brokers; gives it in DER.
    ///
    /// # Errors
    /// [`AuthorityError::NotAllowed`] when this is not a tenant's Kafka root, [`AuthorityError::NotValid`] when it is not
    /// valid at `now`.
    pub fn issue_kafka_client(
        &self,
        key: &RequestedKey,
        bridge: NodeId,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Vec<u8>, AuthorityError> {
        if !matches!(self.role(), Role::Kafka(_)) {
            return Err(self.not_allowed("a Kafka client's certificate"));
        }
        let mut params = params(self.child(now, lifetime)?)?;
        params.distinguished_name.push(DnType::CommonName, kafka_principal(bridge));
        self.issue_leaf(params, Vec::new(), ExtendedKeyUsagePurpose::ClientAuth, key)
    }

    /// Issues the certificate of a tenant's brokers, for all of `names`; gives it in DER.
    ///
    /// # Errors
    /// As [`Authority::issue_kafka_client`].
    pub fn issue_kafka_server(
        &self,
        key: &RequestedKey,
        names: &ServerNames,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Vec<u8>, AuthorityError> {
        let Role::Kafka(tenant) = self.role() else { return Err(self.not_allowed("a Kafka server's certificate")) };
        let mut params = params(self.child(now, lifetime)?)?;
        params.distinguished_name.push(DnType::OrganizationName, tenant.as_str());
        params.distinguished_name.push(DnType::CommonName, "Kafka broker");
        let addresses = names.addresses.iter().map(|address| Ok(SanType::IpAddress(*address)));
        let names = names.dns.iter().map(|name| dns_name(name)).chain(addresses).collect::<Result<_, _>>()?;
        self.issue_leaf(params, names, ExtendedKeyUsagePurpose::ServerAuth, key)
    }
}

/// The common name in a bridge's Kafka certificate. Access lists name it `User:CN=` and this.
pub fn kafka_principal(bridge: NodeId) -> String {
    format!("bridge:{bridge}")
}

/// What a tenant's brokers are reached as: host names and addresses, each seen to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerNames {
    dns: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl ServerNames {
    /// Checks them, and keeps their order.
    ///
    /// # Errors
    /// For the first that is none; wildcards, names of the fleet's own zone and addresses of no one host are refused.
    pub fn new(dns: &[String], addresses: &[IpAddr]) -> Result<Self, ServerNameError> {
        match dns.len() + addresses.len() {
            0 => return Err(ServerNameError::None),
            count if count > NAMES_MAX => return Err(ServerNameError::TooMany(count)),
            _ => {}
        }
        let mut seen = HashSet::new();
        for name in dns {
            check_host(name)?;
            if !seen.insert(name.clone()) {
                return Err(ServerNameError::Twice(name.clone()));
            }
        }
        for address in addresses {
            // An address written as another kind of address would be compared as what it is not.
            let none = address.is_unspecified() || address.is_multicast() || address.to_canonical() != *address;
            if none || *address == IpAddr::from([255; 4]) {
                return Err(ServerNameError::Address(*address));
            }
            if !seen.insert(address.to_string()) {
                return Err(ServerNameError::Twice(address.to_string()));
            }
        }
        Ok(Self { dns: dns.to_vec(), addresses: addresses.to_vec() })
    }

    /// The names and addresses, as text.
    pub fn iter(&self) -> impl Iterator<Item = String> + '_ {
        self.dns.iter().cloned().chain(self.addresses.iter().map(IpAddr::to_string))
    }
}

/// A host name in the preferred syntax (RFC 1034, section 3.5), in lower case, so that it has one spelling.
fn check_host(name: &str) -> Result<(), ServerNameError> {
    let refuse = |why| Err(ServerNameError::Host { name: name.chars().take(80).collect(), why });
    if name.is_empty() || name.len() > 253 {
        return refuse("it has 1 to 253 characters");
    }
    if name.contains('*') {
        return refuse("wildcards are not given: name each host");
    }
    if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.') {
        return refuse("it is written with a-z, 0-9, '-' and '.'; other scripts as xn--…");
    }
    if !name.split('.').all(|label| (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-'))
    {
        return refuse("between dots are 1 to 63 characters, no '-' first or last");
    }
    if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
        return refuse("it looks like an address: give it as one");
    }
    if name == OWN_ZONE || name.strip_suffix(OWN_ZONE).is_some_and(|rest| rest.ends_with('.')) {
        return refuse("names in hyperfactory.internal are the fleet's own");
    }
    Ok(())
}

/// A name that no server certificate is given for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerNameError {
    /// None at all.
    #[error("a server certificate is for at least one host name or address")]
    None,
    /// More than one certificate should carry.
    #[error("a server certificate is for at most {NAMES_MAX} names and addresses, and these are {0}")]
    TooMany(usize),
    /// Not a host's name.
    #[error("{name:?} is not a host name a certificate is given for: {why}")]
    Host {
        /// What was asked for.
        name: String,
        /// The rule.
        why: &'static str,
    },
    /// Not one host's address.
    #[error("{0} is not the address of one host")]
    Address(IpAddr),
    /// Given more than once.
    #[error("{0} is given twice")]
    Twice(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dns: &[&str], addresses: &[&str]) -> Result<ServerNames, ServerNameError> {
        let dns: Vec<String> = dns.iter().map(|name| (*name).to_owned()).collect();
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        ServerNames::new(&dns, &addresses)
    }

    #[test]
    fn hosts_as_brokers_have_them_are_taken() {
        let long = format!("{}.example.com", "a".repeat(63));
        let taken =
            ["redpanda", "redpanda-0", "kafka.acme.example.com", "xn--mnchen-3ya.example", "1st.example", &long];
        let names = names(&taken, &["192.0.2.7", "127.0.0.1", "2001:db8::1"]).expect("good names");
        assert_eq!(names.iter().collect::<Vec<_>>()[6..], ["192.0.2.7", "127.0.0.1", "2001:db8::1"]);
    }

    #[test]
    fn what_is_no_host_or_not_one_host_is_refused() {
        let too_long = [&"a".repeat(60); 5].map(String::as_str).join(".");
        let label = "a".repeat(64);
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "*",
            "*.example.com",
            "f*.example.com",
            "Kafka.example.com",
            "a_b.example.com",
            "-a.example",
            "a-.example",
            "a b",
            "münchen.example",
            "192.0.2.7",
            "1.2.3",
            "7",
            "user@example.com",
            "https://example.com",
            "example.com:9092",
            "a\0b",
            "hyperfactory.internal",
            "x.hyperfactory.internal",
            "hub.hyperfactory.internal",
            &too_long,
            &label,
        ] {
            assert!(matches!(names(&[bad], &[]), Err(ServerNameError::Host { .. })), "{bad:?}");
        }
        for bad in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:192.0.2.7"] {
            assert!(matches!(names(&[], &[bad]), Err(ServerNameError::Address(_))), "{bad}");
        }
        assert_eq!(names(&[], &[]), Err(ServerNameError::None));
        assert!(matches!(names(&["a", "a"], &[]), Err(ServerNameError::Twice(_))));
        assert!(matches!(names(&[], &["192.0.2.7", "192.0.2.7"]), Err(ServerNameError::Twice(_))));
        let many: Vec<String> = (0..33).map(|number| format!("broker-{number}")).collect();
        assert_eq!(ServerNames::new(&many, &[]), Err(ServerNameError::TooMany(33)));
        assert!(names(&["nothyperfactory.internal"], &[]).is_ok());
    }
}
