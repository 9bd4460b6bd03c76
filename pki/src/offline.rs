//! A root that is kept away from its hub: its key under a passphrase, and the judgement of what it has signed elsewhere.

use protocol::Timestamp;
use rcgen::{Issuer, SubjectPublicKeyInfo};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::authority::{Authority, AuthorityError, Life, Role, authority_params};
use crate::certificate::Facts;
use crate::key::PrivateKey;
use crate::passphrase::{Passphrase, PassphraseError, Stretch};
use crate::request::RequestedKey;
use crate::seal::{DataKey, SealError};
use crate::serial::Serial;
use crate::trust;

/// An authority's private key outside of any database. Who has the passphrase has the key; without it, it is worth nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockedKey {
    /// How the passphrase becomes a master key: see [`Stretch::to_bytes`].
    pub stretch: Vec<u8>,
    /// A data key, wrapped by that master key.
    pub data_key: Vec<u8>,
    /// The private key, sealed with that data key for the authority's owner and purpose.
    pub key: Vec<u8>,
}

impl Authority {
    /// Its private key under a new passphrase.
    ///
    /// # Errors
    /// [`UnlockError::Record`] when the passphrase is too short, and when the operating system has no randomness to give.
    pub fn lock(&self, passphrase: &Passphrase) -> Result<LockedKey, UnlockError> {
        let stretch = Stretch::new()?;
        let master = stretch.key(&passphrase.clone().fit()?)?;
        let data_key = DataKey::generate(self.role().owner()).map_err(AuthorityError::from)?;
        Ok(LockedKey {
            stretch: stretch.to_bytes(),
            data_key: master.wrap(&data_key).map_err(AuthorityError::from)?,
            key: self.seal_key(&data_key)?,
        })
    }

    /// The authority whose certificate this is and whose key was locked.
    ///
    /// # Errors
    /// [`UnlockError::Passphrase`] for another passphrase, and what is wrong with the key or the certificate.
    pub fn unlock(certificate: &[u8], locked: &LockedKey, passphrase: &Passphrase) -> Result<Self, UnlockError> {
        let role = Role::of(certificate).ok_or(AuthorityError::Certificate)?;
        let master = Stretch::from_bytes(&locked.stretch)?.key(passphrase)?;
        let data_key = master.unwrap(role.owner(), &locked.data_key).map_err(|error| match error {
            SealError::OtherMasterKey => UnlockError::Passphrase,
            error => UnlockError::Authority(error.into()),
        })?;
        Ok(Self::open(certificate, &locked.key, &data_key)?)
    }
}

/// A key that can't be locked or unlocked.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// Another passphrase.
    #[error("the passphrase is not the one the key was locked with")]
    Passphrase,
    /// A passphrase that is too short, or a damaged record of how it becomes a key.
    #[error(transparent)]
    Record(#[from] PassphraseError),
    /// What is locked is not the certificate's key, or is damaged.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// Checks that `certificate` is what `root` issues as `role`: signed by it, within its life, and to the last byte what a
/// hub would have had its own root sign, but for serial, validity and signature.
///
/// # Errors
/// [`AnswerError`] says what it is instead.
pub fn check_intermediate(certificate: &[u8], role: &Role, root: &CertificateDer<'_>) -> Result<(), AnswerError> {
    let facts = Facts::parse(certificate).ok_or(AnswerError::Malformed)?;
    let issuer = Facts::parse(root).ok_or(AnswerError::Malformed)?;
    if !trust::signed_by(certificate, root) {
        return Err(AnswerError::Signature);
    }
    let serial = Serial::from_der(facts.serial).ok_or(AnswerError::Content)?;
    if facts.not_before < issuer.not_before || facts.not_after > issuer.not_after {
        return Err(AnswerError::Life);
    }
    let key = RequestedKey::from_trusted_spki(facts.spki.to_vec());
    let life = Life { from: facts.not_before.seconds(), until: facts.not_after.seconds() };
    let expected = || {
        let mut params = authority_params(role, &key, life)?;
        params.serial_number = Some(serial.as_bytes().to_vec().into());
        // Whoever stands in for the root has its name and key identifier; the signature is not compared.
        let stand_in = Issuer::from_ca_cert_der(root, PrivateKey::generate()?).map_err(AuthorityError::Issue)?;
        let public_key = SubjectPublicKeyInfo::from_der(key.spki()).map_err(AuthorityError::Issue)?;
        params.signed_by(&public_key, &stand_in).map_err(AuthorityError::Issue)
    };
    let expected = expected()?;
    let same = to_be_signed(certificate).is_some_and(|signed| Some(signed) == to_be_signed(expected.der()));
    if same { Ok(()) } else { Err(AnswerError::Content) }
}

fn to_be_signed(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(certificate.tbs_certificate.as_ref().to_vec())
}

/// A revocation list that somebody else holds the key of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadList {
    /// When it was made.
    pub made_at: Timestamp,
    /// Until when it is good.
    pub until: Timestamp,
    /// The serials on it.
    pub serials: Vec<Vec<u8>>,
}

/// Reads a revocation list in DER that `issuer` has signed.
///
/// # Errors
/// [`AnswerError::Malformed`] when it is none or never ends, [`AnswerError::Signature`] when it is another's.
pub fn read_list(list: &[u8], issuer: &CertificateDer<'_>) -> Result<ReadList, AnswerError> {
    let (rest, list) = CertificateRevocationList::from_der(list).map_err(|_| AnswerError::Malformed)?;
    let (_, issuer) = x509_parser::parse_x509_certificate(issuer).map_err(|_| AnswerError::Malformed)?;
    let until = list.next_update().filter(|_| rest.is_empty()).ok_or(AnswerError::Malformed)?;
    if list.issuer().as_raw() != issuer.subject().as_raw() || list.verify_signature(issuer.public_key()).is_err() {
        return Err(AnswerError::Signature);
    }
    let at = |seconds: i64| Timestamp::from_millis(seconds.saturating_mul(1000));
    Ok(ReadList {
        made_at: at(list.last_update().timestamp()),
        until: at(until.timestamp()),
        serials: list.iter_revoked_certificates().map(|line| line.raw_serial().to_vec()).collect(),
    })
}

/// What a root is said to have signed, and has not, or not so.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Neither a certificate nor a list.
    #[error("it is damaged")]
    Malformed,
    /// Another signed it.
    #[error("the fleet's root has not signed it")]
    Signature,
    /// It would outlive the root.
    #[error("it is valid before or after the fleet's root is")]
    Life,
    /// Another name, constraint, purpose, key usage or extension than its role has.
    #[error("it says something else than was asked for; sign with the same release of this program that asked")]
    Content,
    /// What it should be could not be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, IsCa};

    use super::*;
    use crate::authority::{INTERMEDIATE_LIFETIME, ROOT_LIFETIME};
    use crate::revocation::{Revocation, RevocationReason};

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn root() -> Authority {
        Authority::create_root(NOW, ROOT_LIFETIME).expect("a root")
    }

    fn nodes(tenant: &str) -> Role {
        Role::Nodes(tenant.parse().expect("a tenant"))
    }

    fn key() -> RequestedKey {
        PrivateKey::generate().expect("a key").public_key()
    }

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text.to_owned().into())
    }

    #[test]
    fn a_locked_key_opens_with_its_passphrase_and_its_certificate_only() {
        let root = root();
        let locked = root.lock(&passphrase("correct horse battery staple")).expect("locked");
        let again = Authority::unlock(root.certificate_der(), &locked, &passphrase("correct horse battery staple\n"));
        assert_eq!(again.expect("unlocked").spki_sha256(), root.spki_sha256());
        let wrong = Authority::unlock(root.certificate_der(), &locked, &passphrase("correct horse battery stable"));
        assert!(matches!(wrong, Err(UnlockError::Passphrase)), "{wrong:?}");
        let right = passphrase("correct horse battery staple");
        let other = Authority::unlock(self::root().certificate_der(), &locked, &right);
        assert!(matches!(other, Err(UnlockError::Authority(AuthorityError::KeyMismatch))), "{other:?}");
        let mut altered = locked.clone();
        *altered.key.last_mut().expect("bytes") ^= 1;
        let altered = Authority::unlock(root.certificate_der(), &altered, &right);
        assert!(matches!(altered, Err(UnlockError::Authority(AuthorityError::Seal(_)))), "{altered:?}");
        assert!(matches!(root.lock(&passphrase("short")), Err(UnlockError::Record(PassphraseError::Short(5)))));
    }

    #[test]
    fn what_a_root_has_signed_for_a_role_is_that_and_nothing_else() {
        let (root, other) = (root(), root());
        let sign = |by: &Authority, role: &Role| {
            by.sign_intermediate(role, &key(), NOW, INTERMEDIATE_LIFETIME).expect("signed")
        };
        for role in [Role::Hub, nodes("acme")] {
            let certificate = sign(&root, &role);
            check_intermediate(&certificate, &role, root.certificate_der()).expect("as asked for");
            let foreign = check_intermediate(&sign(&other, &role), &role, root.certificate_der());
            assert!(matches!(foreign, Err(AnswerError::Signature)), "{foreign:?}");
            let mut altered = certificate.clone();
            let place = altered.len() / 2;
            altered[place] ^= 1;
            check_intermediate(&altered, &role, root.certificate_der()).expect_err("altered");
            check_intermediate(&certificate, &nodes("evil"), root.certificate_der()).expect_err("another's");
        }
        assert!(matches!(check_intermediate(b"", &Role::Hub, root.certificate_der()), Err(AnswerError::Malformed)));
        let link = root.link(other.certificate_der(), NOW).expect("a link");
        check_intermediate(&link, &nodes("acme"), root.certificate_der()).expect_err("a link is no intermediate");
    }

    /// Each would pass for the tenant's: by its name constraint.
    #[test]
    fn a_certificate_that_may_more_than_its_role_is_found() {
        let root = root();
        let role = nodes("acme");
        let widened = |widen: &dyn Fn(&mut rcgen::CertificateParams)| {
            let key = key();
            let life = Life { from: NOW.seconds(), until: NOW.seconds() + 1000 };
            let mut params = authority_params(&role, &key, life).expect("params");
            widen(&mut params);
            let public_key = SubjectPublicKeyInfo::from_der(key.spki()).expect("a key");
            params.signed_by(&public_key, root.issuer()).expect("signed").der().to_vec()
        };
        check_intermediate(&widened(&|_| {}), &role, root.certificate_der()).expect("nothing more");
        let deeper = widened(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)));
        let purposeless = widened(&|params| params.extended_key_usages.clear());
        let addressed = widened(&|params| {
            if let Some(constraints) = &mut params.name_constraints {
                constraints.excluded_subtrees.clear();
            }
        });
        let usage = widened(&|params| params.key_usages.push(rcgen::KeyUsagePurpose::DigitalSignature));
        let numbered = widened(&|params| params.serial_number = Some(vec![1, 2, 3].into()));
        for certificate in [deeper, purposeless, addressed, usage, numbered] {
            assert_eq!(Role::of(&certificate), Some(role.clone()), "it passes for the role");
            let found = check_intermediate(&certificate, &role, root.certificate_der());
            assert!(matches!(found, Err(AnswerError::Content)), "{found:?}");
        }
    }

    #[test]
    fn a_list_is_read_back_and_anothers_is_not_taken() {
        let (root, other) = (root(), root());
        let serial = Serial::random().expect("a serial");
        let line = Revocation { serial, at: NOW, reason: RevocationReason::KeyCompromise };
        let days = Duration::from_secs(400 * 86_400);
        let list = root.revocation_list([line], NOW, days).expect("a list");
        let read = read_list(&list, root.certificate_der()).expect("read");
        assert_eq!((read.made_at, read.until), (NOW, NOW.plus(days)));
        assert_eq!(read.serials, [serial.as_bytes().to_vec()]);
        assert!(matches!(read_list(&list, other.certificate_der()), Err(AnswerError::Signature)));
        assert!(matches!(read_list(&list[1..], root.certificate_der()), Err(AnswerError::Malformed)));
    }
}
