//! A name people reach the hub by: of a host, or an address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rcgen::string::Ia5String;
use rcgen::{CidrSubnet, GeneralSubtree, SanType};
use rustls::pki_types::ServerName;

/// A DNS name in lower case, or an IP address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WebName(ServerName<'static>);

impl WebName {
    pub(crate) fn server_name(&self) -> &ServerName<'static> {
        &self.0
    }

    pub(crate) fn subject(&self) -> Option<SanType> {
        match &self.0 {
            ServerName::IpAddress(address) => Some(SanType::IpAddress((*address).into())),
            name => Ia5String::try_from(name.to_str().as_ref()).ok().map(SanType::DnsName),
        }
    }

    /// What permits this name; of a DNS name also those below it, which is how such constraints are (RFC 5280, section 4.2.1.10).
    pub(crate) fn subtree(&self) -> GeneralSubtree {
        match &self.0 {
            ServerName::IpAddress(address) => {
                let address = IpAddr::from(*address);
                let bits = if address.is_ipv4() { 32 } else { 128 };
                GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, bits))
            }
            name => GeneralSubtree::DnsName(name.to_str().into_owned()),
        }
    }
}

impl FromStr for WebName {
    type Err = WebNameError;

    /// Reads the host of an address: `hub.example`, `192.0.2.7`, `::1` or `[::1]`.
    fn from_str(text: &str) -> Result<Self, WebNameError> {
        let host = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let name = ServerName::try_from(host.trim_end_matches('.').to_ascii_lowercase());
        name.map(Self).map_err(|_| WebNameError(text.chars().take(128).collect()))
    }
}

impl From<IpAddr> for WebName {
    fn from(address: IpAddr) -> Self {
        Self(ServerName::IpAddress(address.into()))
    }
}

impl fmt::Display for WebName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_str())
    }
}

/// Text that is no host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither the name of a host nor an IP address")]
pub struct WebNameError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address() {
        for (text, read) in [
            ("Hub.Example", "hub.example"),
            ("hub.example.", "hub.example"),
            ("localhost", "localhost"),
            ("192.0.2.7", "192.0.2.7"),
            ("[2001:DB8::1]", "2001:db8::1"),
            ("::1", "::1"),
        ] {
            assert_eq!(text.parse::<WebName>().map(|name| name.to_string()), Ok(read.to_owned()), "{text}");
        }
        for bad in ["", "hub:7080", "*.example", "a b", "hub/", "[hub"] {
            assert!(bad.parse::<WebName>().is_err(), "{bad:?}");
        }
    }
}
