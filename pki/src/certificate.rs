//! What this crate reads from a certificate, in one pass.

use protocol::Timestamp;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, NameConstraints, ParsedExtension};
use x509_parser::prelude::FromDer;

/// A certificate in DER and the fields of it that decide anything.
pub(crate) struct Facts<'a> {
    pub(crate) serial: &'a [u8],
    /// Distinguished names and SubjectPublicKeyInfo, each in DER as it stands in the certificate.
    pub(crate) issuer: &'a [u8],
    pub(crate) subject: &'a [u8],
    pub(crate) spki: &'a [u8],
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    pub(crate) is_ca: bool,
    /// Whether it is for TLS clients and for nothing else.
    pub(crate) client_only: bool,
    /// How many authorities may follow it in a chain; `None`: any number.
    pub(crate) path_length: Option<u32>,
    /// The subject's organization.
    pub(crate) organization: Option<&'a str>,
    pub(crate) common_name: Option<&'a str>,
    /// Every subject alternative name; `None` for one that is not a DNS name.
    pub(crate) names: Vec<Option<&'a str>>,
    /// Every permitted subtree of the name constraints, likewise.
    pub(crate) permitted: Vec<Option<&'a str>>,
    pub(crate) key_id: Option<&'a [u8]>,
    pub(crate) issuer_key_id: Option<&'a [u8]>,
    /// Serial number of the issuer's certificate, where the key identifier names it.
    issuer_serial: Option<&'a [u8]>,
}

impl<'a> Facts<'a> {
    /// `None` when it is not one certificate in DER with readable extensions, each at most once.
    pub(crate) fn parse(der: &'a [u8]) -> Option<Self> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        let tbs = &certificate.tbs_certificate;
        let mut facts = Self {
            serial: tbs.raw_serial(),
            issuer: tbs.issuer.as_raw(),
            subject: tbs.subject.as_raw(),
            spki: tbs.subject_pki.raw,
            not_before: at(tbs.validity.not_before.timestamp()),
            not_after: at(tbs.validity.not_after.timestamp()),
            is_ca: false,
            client_only: false,
            path_length: None,
            organization: None,
            common_name: None,
            names: Vec::new(),
            permitted: Vec::new(),
            key_id: None,
            issuer_key_id: None,
            issuer_serial: None,
        };
        facts.organization = tbs.subject.iter_organization().next().and_then(|name| name.as_str().ok());
        facts.common_name = tbs.subject.iter_common_name().next().and_then(|name| name.as_str().ok());
        let extensions = tbs.extensions();
        for (index, extension) in extensions.iter().enumerate() {
            if extensions[..index].iter().any(|earlier| earlier.oid == extension.oid) {
                return None;
            }
            match extension.parsed_extension() {
                ParsedExtension::ParseError { .. } => return None,
                ParsedExtension::BasicConstraints(constraints) => {
                    (facts.is_ca, facts.path_length) = (constraints.ca, constraints.path_len_constraint);
                }
                ParsedExtension::SubjectAlternativeName(names) => {
                    facts.names = names.general_names.iter().map(dns_name).collect();
                }
                ParsedExtension::NameConstraints(NameConstraints { permitted_subtrees: Some(subtrees), .. }) => {
                    facts.permitted = subtrees.iter().map(|subtree| dns_name(&subtree.base)).collect();
                }
                ParsedExtension::ExtendedKeyUsage(usage) => facts.client_only = is_client_only(usage),
                ParsedExtension::SubjectKeyIdentifier(id) => facts.key_id = Some(id.0),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    facts.issuer_key_id = id.key_identifier.as_ref().map(|id| id.0);
                    facts.issuer_serial = id.authority_cert_serial;
                }
                _ => {}
            }
        }
        rest.is_empty().then_some(facts)
    }

    pub(crate) fn is_valid_at(&self, now: Timestamp) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// Whether it introduces another root: an authority without limits that did not sign itself.
    pub(crate) fn is_link(&self) -> bool {
        self.is_ca && self.path_length.is_none() && self.permitted.is_empty() && self.issuer != self.subject
    }

    /// Whether `issuer` is, by name and key identifier, the certificate that signed this one. The signature itself
    /// is the verifier's business.
    pub(crate) fn names_as_issuer(&self, issuer: &Facts<'_>) -> bool {
        let serial_fits = self.issuer_serial.is_none_or(|serial| serial == issuer.serial);
        let key_fits = self.issuer_key_id.is_some() && self.issuer_key_id == issuer.key_id;
        self.issuer == issuer.subject && key_fits && serial_fits
    }
}

fn is_client_only(usage: &ExtendedKeyUsage<'_>) -> bool {
    let others = usage.any
        || usage.server_auth
        || usage.code_signing
        || usage.email_protection
        || usage.time_stamping
        || usage.ocsp_signing;
    usage.client_auth && !others && usage.other.is_empty()
}

fn dns_name<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds.saturating_mul(1000))
}
