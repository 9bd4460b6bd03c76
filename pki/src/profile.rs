//! What RFC 5280 asks of the certificates of a chain and webpki does not look at. None that this crate issues is without it;
//! `openssl verify -x509_strict` asks for the same.

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, KeyUsage, NameConstraints, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use crate::authority::Role;
use crate::certificate::Facts;
use crate::trust::TrustError;

/// Longest serial number, in bytes (section 4.1.2.2).
const SERIAL_MAX: usize = 20;
/// From this second on, a time is written with four digits of the year (section 4.1.2.5): 2050-01-01T00:00:00Z.
const FOUR_DIGITS_FROM: i64 = 2_524_608_000;

/// Checks what a peer has shown, its own certificate first, once webpki has led it to the anchor `root`. Which of the others
/// webpki went through it does not say: all of them are to be authorities.
///
/// # Errors
/// [`TrustError::Profile`] with the first rule that is broken, [`TrustError::NotIssuer`] when by their key identifiers they
/// do not lead from the first to `root`.
pub(crate) fn check(shown: &[CertificateDer<'_>], root: &CertificateDer<'_>) -> Result<(), TrustError> {
    for (index, der) in shown.iter().enumerate() {
        let fields = Fields::parse(der)?;
        if index == 0 { fields.leaf()? } else { fields.authority()? }
    }
    let root = read(root)?;
    let mut left = shown.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let mut at = 0;
    while !left.is_empty() {
        let current = left.remove(at);
        if current.names_as_issuer(&root) {
            return Ok(());
        }
        at = left.iter().position(|issuer| current.names_as_issuer(issuer)).ok_or(TrustError::NotIssuer)?;
    }
    Err(TrustError::NotIssuer)
}

/// Checks that `root` is a fleet's root. webpki takes any certificate for an anchor, and reads no more of it than name and
/// key.
///
/// # Errors
/// [`TrustError::Profile`] with the rule that is broken, [`TrustError::NotRoot`] when it is none of a fleet's roots or does
/// not sign itself.
pub(crate) fn check_root(root: &CertificateDer<'_>) -> Result<(), TrustError> {
    let fields = Fields::parse(root)?;
    fields.authority()?;
    let purpose = fields.certificate.extended_key_usage().map_err(|_| TrustError::Malformed)?.is_some();
    let signed = fields.certificate.verify_signature(None).is_ok();
    if Role::of(root) == Some(Role::Root) && !purpose && signed { Ok(()) } else { Err(TrustError::NotRoot) }
}

/// A certificate and its extensions about which there are rules.
struct Fields<'a> {
    certificate: X509Certificate<'a>,
    /// Of the basic constraints: whether it is an authority, whether a path length is there, and whether it is critical.
    basic: Option<(bool, bool, bool)>,
    usage: Option<KeyUsage>,
    has_key_id: bool,
    names_critical: bool,
}

impl<'a> Fields<'a> {
    /// Reads it, and checks what holds for every certificate.
    fn parse(der: &'a [u8]) -> Result<Self, TrustError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| TrustError::Malformed)?;
        let mut fields = Self { certificate, basic: None, usage: None, has_key_id: false, names_critical: false };
        for extension in fields.certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(basic) => {
                    fields.basic = Some((basic.ca, basic.path_len_constraint.is_some(), extension.critical));
                }
                ParsedExtension::KeyUsage(usage) => fields.usage = Some(*usage),
                ParsedExtension::SubjectKeyIdentifier(_) => fields.has_key_id = true,
                ParsedExtension::SubjectAlternativeName(_) => fields.names_critical = extension.critical,
                ParsedExtension::NameConstraints(constraints) => {
                    rule(extension.critical, "name constraints are critical (section 4.2.1.10)")?;
                    check_constraints(constraints)?;
                }
                ParsedExtension::UnsupportedExtension { .. } => {
                    rule(!extension.critical, "an unknown critical extension is a reason to refuse (section 4.2)")?;
                }
                _ => {}
            }
        }
        let tbs = &fields.certificate.tbs_certificate;
        rule(is_serial(tbs.raw_serial()), "serial numbers are positive and of 20 bytes at most (section 4.1.2.2)")?;
        let times = [tbs.validity.not_before, tbs.validity.not_after];
        rule(times.iter().all(is_time), "years up to 2049 are written with two digits (section 4.1.2.5)")?;
        Ok(fields)
    }

    fn leaf(&self) -> Result<(), TrustError> {
        let (is_ca, has_path_length) = self.basic.map_or((false, false), |(is_ca, length, _)| (is_ca, length));
        rule(!is_ca && !has_path_length, "only an authority has a path length (section 4.2.1.9)")?;
        let signs = self.usage.is_none_or(|usage| usage.digital_signature() && !usage.key_cert_sign());
        rule(signs, "a key that is shown in a handshake is for signatures, and not those of an authority")?;
        let named = !is_empty(self.certificate.subject().as_raw()) || self.names_critical;
        rule(named, "names are critical where there is no subject (section 4.1.2.6)")
    }

    fn authority(&self) -> Result<(), TrustError> {
        let marked = matches!(self.basic, Some((true, _, true)));
        rule(marked, "an authority says that it is one, in critical basic constraints (section 4.2.1.9)")?;
        let issues = self.usage.is_some_and(|usage| usage.key_cert_sign());
        rule(issues, "an authority's key is for signing certificates (section 4.2.1.3)")?;
        rule(self.has_key_id, "an authority has a subject key identifier (section 4.2.1.2)")
    }
}

fn read<'a>(der: &'a CertificateDer<'_>) -> Result<Facts<'a>, TrustError> {
    Facts::parse(der).ok_or(TrustError::Malformed)
}

fn rule(kept: bool, rule: &'static str) -> Result<(), TrustError> {
    if kept { Ok(()) } else { Err(TrustError::Profile(rule)) }
}

fn is_serial(bytes: &[u8]) -> bool {
    let minimal = !matches!(bytes, [0, next, ..] if next & 0x80 == 0);
    let positive = bytes.first().is_some_and(|first| first & 0x80 == 0) && bytes != [0];
    minimal && positive && bytes.len() <= SERIAL_MAX
}

fn is_time(time: &ASN1Time) -> bool {
    time.is_utctime() || time.timestamp() >= FOUR_DIGITS_FROM
}

fn is_empty(name: &[u8]) -> bool {
    name == [0x30, 0]
}

/// There is something in them, and addresses come with their masks.
fn check_constraints(constraints: &NameConstraints<'_>) -> Result<(), TrustError> {
    let mut subtrees = constraints.permitted_subtrees.iter().chain(&constraints.excluded_subtrees).flatten().peekable();
    rule(subtrees.peek().is_some(), "name constraints are not empty (section 4.2.1.10)")?;
    let whole = subtrees
        .all(|subtree| !matches!(&subtree.base, GeneralName::IPAddress(bytes) if !matches!(bytes.len(), 8 | 32)));
    rule(whole, "an address in name constraints has a mask as long (section 4.2.1.10)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_is_positive_short_and_has_one_spelling() {
        for good in [&[1][..], &[0x7f; 20], &[0, 0x80]] {
            assert!(is_serial(good), "{good:?}");
        }
        for bad in [&[][..], &[0], &[0x80], &[0, 1], &[0, 0], &[0x7f; 21], &[0xff; 16]] {
            assert!(!is_serial(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_year_2050_is_the_first_with_four_digits() {
        let at = |text: &[u8]| ASN1Time::from_der(text).expect("a time").1;
        assert!(is_time(&at(b"\x17\x0d491231235959Z")) && is_time(&at(b"\x18\x0f20500101000000Z")));
        assert!(!is_time(&at(b"\x18\x0f20491231235959Z")));
    }
}
