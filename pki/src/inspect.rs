//! A certificate for people: everything in it that decides whether somebody trusts it, in words.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use data_encoding::HEXLOWER;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, KeyUsage, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::summary::Summary;
use crate::trust::TrustError;

/// A certificate's fields, each under its usual name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// What programs compare.
    pub summary: Summary,
    /// Distinguished name of its holder.
    pub subject: String,
    /// Distinguished name of who issued it.
    pub issuer: String,
    /// Subject alternative names, each with its kind: `DNS:…`, `IP:…`, `URI:…`.
    pub alternative_names: Vec<String>,
    /// What its key may do.
    pub key_usage: Vec<&'static str>,
    /// What it may be shown for.
    pub extended_key_usage: Vec<String>,
    /// Of an authority: how many more may stand below it; `None` without a bound.
    pub path_length: Option<u32>,
    /// Of an authority: the names it may and may not issue for.
    pub constraints: Vec<String>,
}

/// Reads a certificate in DER.
///
/// # Errors
/// [`TrustError::Malformed`] when it is not one certificate with readable extensions.
pub fn inspect(der: &[u8]) -> Result<Inspected, TrustError> {
    let summary = Summary::of(der)?;
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| TrustError::Malformed)?;
    let mut found = Inspected {
        summary,
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        alternative_names: Vec::new(),
        key_usage: Vec::new(),
        extended_key_usage: Vec::new(),
        path_length: None,
        constraints: Vec::new(),
    };
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(basic) => found.path_length = basic.path_len_constraint,
            ParsedExtension::SubjectAlternativeName(names) => {
                found.alternative_names = names.general_names.iter().map(name).collect();
            }
            ParsedExtension::KeyUsage(usage) => found.key_usage = key_usage(usage),
            ParsedExtension::ExtendedKeyUsage(usage) => found.extended_key_usage = extended_key_usage(usage),
            ParsedExtension::NameConstraints(constraints) => {
                let subtrees = |word: &str, subtrees: &Option<Vec<_>>| {
                    let subtrees: &[x509_parser::extensions::GeneralSubtree<'_>] =
                        subtrees.as_deref().unwrap_or_default();
                    subtrees.iter().map(|subtree| format!("{word} {}", name(&subtree.base))).collect::<Vec<_>>()
                };
                found.constraints = subtrees("only", &constraints.permitted_subtrees);
                found.constraints.extend(subtrees("no", &constraints.excluded_subtrees));
            }
            _ => {}
        }
    }
    Ok(found)
}

fn name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => format!("DNS:{name}"),
        GeneralName::URI(uri) => format!("URI:{uri}"),
        GeneralName::RFC822Name(address) => format!("email:{address}"),
        GeneralName::DirectoryName(name) => format!("directory:{name}"),
        GeneralName::IPAddress(bytes) => format!("IP:{}", address(bytes)),
        other => format!("{other:?}"),
    }
}

/// An address, or in constraints an address and its mask.
fn address(bytes: &[u8]) -> String {
    let v4 = |bytes: [u8; 4]| Ipv4Addr::from(bytes).to_string();
    let v6 = |bytes: [u8; 16]| Ipv6Addr::from(bytes).to_string();
    let halves = bytes.split_at(bytes.len() / 2);
    match (bytes.len(), halves.0, halves.1) {
        (4, ..) => bytes.try_into().map(v4).unwrap_or_default(),
        (16, ..) => bytes.try_into().map(v6).unwrap_or_default(),
        (8, network, mask) => [network, mask].map(|half| half.try_into().map(v4).unwrap_or_default()).join("/"),
        (32, network, mask) => [network, mask].map(|half| half.try_into().map(v6).unwrap_or_default()).join("/"),
        _ => HEXLOWER.encode(bytes),
    }
}

fn key_usage(usage: &KeyUsage) -> Vec<&'static str> {
    [
        (usage.digital_signature(), "digital signature"),
        (usage.non_repudiation(), "non-repudiation"),
        (usage.key_encipherment(), "key encipherment"),
        (usage.data_encipherment(), "data encipherment"),
        (usage.key_agreement(), "key agreement"),
        (usage.key_cert_sign(), "certificate signing"),
        (usage.crl_sign(), "revocation lists"),
    ]
    .into_iter()
    .filter_map(|(has, word)| has.then_some(word))
    .collect()
}

fn extended_key_usage(usage: &ExtendedKeyUsage<'_>) -> Vec<String> {
    let known = [
        (usage.any, "anything"),
        (usage.server_auth, "TLS server"),
        (usage.client_auth, "TLS client"),
        (usage.code_signing, "code signing"),
        (usage.email_protection, "email protection"),
        (usage.time_stamping, "time stamping"),
        (usage.ocsp_signing, "OCSP signing"),
    ];
    let known = known.into_iter().filter(|(has, _)| *has).map(|(_, word)| word.to_owned());
    known.chain(usage.other.iter().map(ToString::to_string)).collect()
}

/// Hexadecimal, a colon between bytes, as other tools print serials and fingerprints.
pub fn colons(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for (index, byte) in bytes.iter().enumerate() {
        // Writing to a string can't fail.
        let _ = write!(text, "{}{byte:02x}", if index > 0 { ":" } else { "" });
    }
    text
}
