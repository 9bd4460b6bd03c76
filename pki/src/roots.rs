//! From one fleet root to the next: a root that is known proves another by a link, which it has signed.
//!
//! A link is a cross certificate (RFC 4210, section 4.4): another root's name and key under this root's signature. Whoever
//! knows this root verifies through it what the other has issued, and may take the other for a root of its own.

use protocol::Timestamp;
use rustls::pki_types::{CertificateDer, UnixTime};
use std::time::Duration;

use crate::anchors::{anchors, by_any};
use crate::certificate::Facts;
use crate::key::sha256;
use crate::trust::{self, TrustError};
use crate::verifier::verify_hub;

/// Most roots that are trusted at a time: two while a fleet goes from one to the next, and room for one that was begun.
pub const MAX_ROOTS: usize = 4;
/// Most links that are looked at.
pub const MAX_LINKS: usize = 16;

/// Checks that whoever knows the roots `known` may trust exactly `wanted` from now on, while it talks to a hub that has
/// shown `hub_chain`: each is known or proved through `links`, and one at least leads to this very hub. A link that proves
/// nothing now is no fault.
///
/// # Errors
/// What is wrong; nothing of the list is to be taken then.
pub fn accept(
    known: &[CertificateDer<'_>],
    wanted: &[CertificateDer<'_>],
    links: &[CertificateDer<'_>],
    hub_chain: &[CertificateDer<'_>],
    now: Timestamp,
) -> Result<(), RootsError> {
    prove(known, wanted, links, now)?;
    if leads_to(wanted, hub_chain, now) { Ok(()) } else { Err(RootsError::NotThisHub) }
}

/// Checks that each of `wanted` is known or proved through `links`.
///
/// # Errors
/// As [`accept`].
pub fn prove(
    known: &[CertificateDer<'_>],
    wanted: &[CertificateDer<'_>],
    links: &[CertificateDer<'_>],
    now: Timestamp,
) -> Result<(), RootsError> {
    if wanted.is_empty() {
        return Err(RootsError::None);
    }
    if wanted.len() > MAX_ROOTS || links.len() > MAX_LINKS {
        return Err(RootsError::TooMany { roots: wanted.len(), links: links.len() });
    }
    let proved = proved(known, links, now);
    for (index, root) in wanted.iter().enumerate() {
        let facts = Facts::parse(root).ok_or(TrustError::Malformed)?;
        trust::check_root(root, &sha256(facts.spki))?;
        if !facts.is_valid_at(now) {
            return Err(TrustError::RootValidity.into());
        }
        if !proved.iter().any(|known| (known.subject, known.spki) == (facts.subject, facts.spki)) {
            return Err(RootsError::Unproved);
        }
        let same_key = |other: &CertificateDer<'_>| Facts::parse(other).is_some_and(|other| other.spki == facts.spki);
        if wanted[..index].iter().any(same_key) {
            return Err(RootsError::Twice);
        }
    }
    Ok(())
}

/// Whether `hub_chain`, leaf first, leads to one of `roots` now.
pub fn leads_to(roots: &[CertificateDer<'_>], hub_chain: &[CertificateDer<'_>], now: Timestamp) -> bool {
    let (Some((leaf, rest)), Ok(anchors)) = (hub_chain.split_first(), anchors(roots)) else { return false };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now.seconds().max(0).unsigned_abs()));
    by_any(&anchors, now, |anchor| verify_hub(anchor, leaf, rest, now)).is_ok()
}

/// The roots and links that are valid now and signed, step by step, by a root that is known.
fn proved<'a>(known: &'a [CertificateDer<'_>], links: &'a [CertificateDer<'_>], now: Timestamp) -> Vec<Facts<'a>> {
    let valid =
        |der: &'a CertificateDer<'_>| Some((der, Facts::parse(der)?)).filter(|(_, facts)| facts.is_valid_at(now));
    let mut proved: Vec<_> = known.iter().filter_map(valid).collect();
    let mut left: Vec<_> = links.iter().filter_map(valid).filter(|(_, facts)| facts.is_link()).collect();
    loop {
        let before = left.len();
        left.retain(|(der, facts)| {
            let signed = proved.iter().any(|(issuer, by)| facts.names_as_issuer(by) && signed_by(der, issuer));
            if signed && let Some(again) = valid(der) {
                proved.push(again);
            }
            !signed
        });
        if left.len() == before {
            return proved.into_iter().map(|(_, facts)| facts).collect();
        }
    }
}

fn signed_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    let parsed = x509_parser::parse_x509_certificate;
    let (Ok((_, certificate)), Ok((_, issuer))) = (parsed(certificate), parsed(issuer)) else { return false };
    certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

/// A list of roots that is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootsError {
    /// An empty list.
    #[error("the list of roots is empty")]
    None,
    /// More than are looked at.
    #[error("the list has {roots} roots and {links} links; at most {MAX_ROOTS} and {MAX_LINKS} are taken")]
    TooMany {
        /// Roots in it.
        roots: usize,
        /// Links with it.
        links: usize,
    },
    /// One is not a root, or not valid now.
    #[error("the list holds what can't be a root now: {0}")]
    NotRoot(#[from] TrustError),
    /// One is neither known nor linked to one that is.
    #[error("the list holds a root that no known root has signed a link to")]
    Unproved,
    /// One key twice.
    #[error("the list holds one root twice")]
    Twice,
    /// None of them leads to the hub that sent the list.
    #[error("no root of the list leads to the hub that sent it")]
    NotThisHub,
}
