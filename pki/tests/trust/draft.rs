//! Chains on the drawing board: the hub's own, taken apart, to be changed anywhere and signed again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use hyperfactory_pki::CertificateDer;
use protocol::Timestamp;
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use ring::digest::{SHA256, digest};
use rustls::SignatureAlgorithm;
use rustls::SignatureScheme;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::der::{self, bits, explicit, octets, oid, sequence, tlv};

pub(crate) const SUBJECT_KEY_ID: &str = "2.5.29.14";
pub(crate) const KEY_USAGE: &str = "2.5.29.15";
pub(crate) const ALTERNATIVE_NAMES: &str = "2.5.29.17";
pub(crate) const BASIC_CONSTRAINTS: &str = "2.5.29.19";
pub(crate) const NAME_CONSTRAINTS: &str = "2.5.29.30";
pub(crate) const AUTHORITY_KEY_ID: &str = "2.5.29.35";
pub(crate) const EXTENDED_KEY_USAGE: &str = "2.5.29.37";

/// A chain as it will be signed, root first, and what is done to it afterwards.
pub(crate) struct Draft {
    pub(crate) path: Vec<Certificate>,
    pub(crate) afterwards: Vec<Box<dyn Fn(&mut Shown)>>,
}

/// A chain as a judge gets it.
pub(crate) struct Shown {
    /// What the judge trusts.
    pub(crate) anchors: Vec<CertificateDer<'static>>,
    /// What it is shown, the holder's certificate first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// The holder's.
    pub(crate) key: Arc<Key>,
}

impl Draft {
    pub(crate) fn root(&mut self) -> &mut Certificate {
        &mut self.path[0]
    }

    pub(crate) fn issuer(&mut self) -> &mut Certificate {
        &mut self.path[1]
    }

    pub(crate) fn leaf(&mut self) -> &mut Certificate {
        self.path.last_mut().expect("a leaf")
    }

    pub(crate) fn afterwards(&mut self, change: impl Fn(&mut Shown) + 'static) {
        self.afterwards.push(Box::new(change));
    }

    /// Signs everything, each by the one before.
    pub(crate) fn mint(&self) -> Shown {
        let mut by = &self.path[0];
        let mut chain = Vec::new();
        for certificate in &self.path {
            chain.insert(0, CertificateDer::from(certificate.signed_by(by)));
            by = certificate;
        }
        let anchors = vec![chain.pop().expect("a root")];
        let mut shown = Shown { anchors, chain, key: Arc::clone(&by.key) };
        for change in &self.afterwards {
            change(&mut shown);
        }
        shown
    }
}

/// A certificate before it is signed, in DER by its fields.
#[derive(Clone)]
pub(crate) struct Certificate {
    /// The version's number, one less than its name; `None` leaves the field out, which says version 1.
    pub(crate) version: Option<u8>,
    /// Content of the integer.
    pub(crate) serial: Vec<u8>,
    /// The algorithm's identifier among the signed fields and beside the signature, where it is not the signer's.
    pub(crate) algorithm: Option<Vec<u8>>,
    pub(crate) outer_algorithm: Option<Vec<u8>>,
    /// The issuer's name, where it is not the signer's.
    pub(crate) issuer: Option<Vec<u8>>,
    pub(crate) not_before: Vec<u8>,
    pub(crate) not_after: Vec<u8>,
    pub(crate) subject: Vec<u8>,
    pub(crate) spki: Vec<u8>,
    /// What stands between key and extensions.
    pub(crate) unique_ids: Vec<u8>,
    pub(crate) extensions: Vec<Extension>,
    /// Whether the authority's key identifier is left as it is, not made the signer's.
    pub(crate) keeps_authority_key_id: bool,
    pub(crate) key: Arc<Key>,
    /// Who signs it, where it is not the one before, and with which hash.
    pub(crate) signer: Option<Arc<Key>>,
    pub(crate) hash: Hash,
    /// What is done to the signed fields' encoding before it is signed, to the signature, and to the whole.
    pub(crate) distort: Option<fn(&mut Vec<u8>)>,
    pub(crate) forge: Option<fn(&mut Vec<u8>)>,
    pub(crate) damage: Option<fn(&mut Vec<u8>)>,
}

#[derive(Clone)]
pub(crate) struct Extension {
    /// In DER.
    pub(crate) oid: Vec<u8>,
    /// The field in DER: empty for one that is not critical.
    pub(crate) critical: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

pub(crate) fn extension(kind: &str, critical: bool, value: Vec<u8>) -> Extension {
    let critical = if critical { vec![1, 1, 0xff] } else { Vec::new() };
    Extension { oid: oid(kind), critical, value }
}

impl Certificate {
    /// Takes one apart that was issued.
    pub(crate) fn of(certificate: &[u8], key: Arc<Key>) -> Self {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).expect("a certificate");
        let tbs = &parsed.tbs_certificate;
        let at = |time: x509_parser::time::ASN1Time| der::time(Timestamp::from_millis(time.timestamp() * 1000));
        let extensions = tbs.extensions().iter();
        Self {
            version: Some(2),
            serial: tbs.raw_serial().to_vec(),
            algorithm: None,
            outer_algorithm: None,
            issuer: None,
            not_before: at(tbs.validity.not_before),
            not_after: at(tbs.validity.not_after),
            subject: tbs.subject.as_raw().to_vec(),
            spki: tbs.subject_pki.raw.to_vec(),
            unique_ids: Vec::new(),
            extensions: extensions
                .map(|found| extension(&found.oid.to_id_string(), found.critical, found.value.to_vec()))
                .collect(),
            keeps_authority_key_id: false,
            key,
            signer: None,
            hash: Hash::Sha256,
            distort: None,
            forge: None,
            damage: None,
        }
    }

    /// Adds an extension, or puts it in the place of the one there is.
    pub(crate) fn set(&mut self, kind: &str, critical: bool, value: Vec<u8>) {
        let new = extension(kind, critical, value);
        match self.extensions.iter_mut().find(|extension| extension.oid == new.oid) {
            Some(old) => *old = new,
            None => self.extensions.push(new),
        }
    }

    pub(crate) fn extension(&mut self, kind: &str) -> &mut Extension {
        self.extensions.iter_mut().find(|extension| extension.oid == oid(kind)).expect("there")
    }

    pub(crate) fn remove(&mut self, kind: &str) {
        self.extensions.retain(|extension| extension.oid != oid(kind));
    }

    /// For another key, with its identifier.
    pub(crate) fn give(&mut self, key: &Arc<Key>) {
        self.spki = key.spki();
        self.key = Arc::clone(key);
        let id = digest(&SHA256, &self.spki).as_ref()[..20].to_vec();
        self.set(SUBJECT_KEY_ID, false, octets(&id));
    }

    pub(crate) fn signed_by(&self, by: &Self) -> Vec<u8> {
        let signer = self.signer.as_ref().unwrap_or(&by.key);
        let own = signer.algorithm(self.hash);
        let mut copy = self.clone();
        let id = by.extensions.iter().find(|extension| extension.oid == oid(SUBJECT_KEY_ID));
        let has_id = copy.extensions.iter().any(|extension| extension.oid == oid(AUTHORITY_KEY_ID));
        if let Some(id) = id.filter(|_| has_id && !self.keeps_authority_key_id) {
            copy.set(AUTHORITY_KEY_ID, false, authority_key_id(&id.value));
        }
        let mut tbs = copy.tbs(&own, &by.subject);
        if let Some(distort) = self.distort {
            distort(&mut tbs);
        }
        let mut signature = signer.sign(self.hash, &tbs);
        if let Some(forge) = self.forge {
            forge(&mut signature);
        }
        let mut whole = sequence(&[&tbs, self.outer_algorithm.as_ref().unwrap_or(&own), &bits(0, &signature)]);
        if let Some(damage) = self.damage {
            damage(&mut whole);
        }
        whole
    }

    fn tbs(&self, algorithm: &[u8], issuer: &[u8]) -> Vec<u8> {
        let version = self.version.map(|version| explicit(0, &der::integer(&[version]))).unwrap_or_default();
        let extensions: Vec<_> = self.extensions.iter().map(Extension::encoded).collect();
        let extensions = match extensions.as_slice() {
            [] => Vec::new(),
            some => explicit(3, &tlv(der::SEQUENCE, &some.concat())),
        };
        sequence(&[
            &version,
            &der::integer(&self.serial),
            self.algorithm.as_deref().unwrap_or(algorithm),
            self.issuer.as_deref().unwrap_or(issuer),
            &sequence(&[&self.not_before, &self.not_after]),
            &self.subject,
            &self.spki,
            &self.unique_ids,
            &extensions,
        ])
    }
}

impl Extension {
    fn encoded(&self) -> Vec<u8> {
        sequence(&[&self.oid, &self.critical, &octets(&self.value)])
    }
}

/// Value of an authority key identifier, from that of a subject key identifier.
pub(crate) fn authority_key_id(subject_key_id: &[u8]) -> Vec<u8> {
    let mut id = subject_key_id.to_vec();
    id[0] = 0x80;
    tlv(der::SEQUENCE, &id)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha256,
    Sha384,
    Sha1,
}

/// A private key: of a kind that `ring` signs with, or kept in a file and used by `openssl`.
#[derive(Debug)]
pub(crate) enum Key {
    Ring(KeyPair),
    File { path: PathBuf, rsa: bool, spki: Vec<u8> },
}

impl Key {
    pub(crate) fn generate(kind: &'static rcgen::SignatureAlgorithm) -> Arc<Self> {
        Arc::new(Self::Ring(KeyPair::generate_for(kind).expect("a key")))
    }

    /// The same key as another.
    pub(crate) fn copy(pkcs8: &[u8]) -> Arc<Self> {
        let pkcs8 = PrivatePkcs8KeyDer::from(pkcs8);
        Arc::new(Self::Ring(
            KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_ECDSA_P256_SHA256).expect("a key"),
        ))
    }

    /// Makes one in `folder` with `openssl genpkey`.
    pub(crate) fn by_openssl(folder: &Path, name: &str, algorithm: &str, option: &str) -> Arc<Self> {
        let path = folder.join(name);
        openssl(&["genpkey", "-algorithm", algorithm, "-pkeyopt", option, "-out"], &path);
        let spki = openssl(&["pkey", "-pubout", "-outform", "DER", "-in"], &path);
        Arc::new(Self::File { path, rsa: algorithm == "RSA", spki })
    }

    pub(crate) fn spki(&self) -> Vec<u8> {
        match self {
            Self::Ring(pair) => pair.subject_public_key_info(),
            Self::File { spki, .. } => spki.clone(),
        }
    }

    /// Identifier of what it signs certificates with.
    pub(crate) fn algorithm(&self, hash: Hash) -> Vec<u8> {
        let rsa = match self {
            Self::Ring(pair) if pair.is_compatible(&rcgen::PKCS_ED25519) => return sequence(&[&oid("1.3.101.112")]),
            Self::Ring(_) => false,
            Self::File { rsa, .. } => *rsa,
        };
        match (rsa, hash) {
            (true, Hash::Sha1) => sequence(&[&oid("1.2.840.113549.1.1.5"), &tlv(5, &[])]),
            (true, Hash::Sha256) => sequence(&[&oid("1.2.840.113549.1.1.11"), &tlv(5, &[])]),
            (true, Hash::Sha384) => sequence(&[&oid("1.2.840.113549.1.1.12"), &tlv(5, &[])]),
            (false, Hash::Sha1) => sequence(&[&oid("1.2.840.10045.4.1")]),
            (false, Hash::Sha256) => sequence(&[&oid("1.2.840.10045.4.3.2")]),
            (false, Hash::Sha384) => sequence(&[&oid("1.2.840.10045.4.3.3")]),
        }
    }

    fn sign(&self, hash: Hash, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Ring(pair) if hash == own_hash(pair) => pair.sign(message).expect("signed"),
            Self::Ring(pair) => {
                let folder = tempfile::tempdir().expect("a folder");
                let path = folder.path().join("key.pem");
                std::fs::write(&path, pair.serialize_pem()).expect("written");
                sign_by_openssl(&path, hash, &[], message)
            }
            Self::File { path, .. } => sign_by_openssl(path, hash, &[], message),
        }
    }

    /// For a handshake.
    pub(crate) fn to_rustls(self: &Arc<Self>) -> Arc<dyn rustls::sign::SigningKey> {
        match &**self {
            Self::Ring(pair) => {
                let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
                rustls::crypto::ring::sign::any_supported_type(&der).expect("a kind that ring signs with")
            }
            Self::File { .. } => Arc::new(ByOpenssl(Arc::clone(self))),
        }
    }
}

fn own_hash(pair: &KeyPair) -> Hash {
    match pair.is_compatible(&rcgen::PKCS_ECDSA_P384_SHA384) {
        true => Hash::Sha384,
        false => Hash::Sha256,
    }
}

/// Proves possession in a handshake of keys that `ring` would not sign with.
#[derive(Debug)]
struct ByOpenssl(Arc<Key>);

impl rustls::sign::SigningKey for ByOpenssl {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        let scheme = rustls::sign::Signer::scheme(self);
        offered.contains(&scheme).then(|| Box::new(Self(Arc::clone(&self.0))) as Box<dyn rustls::sign::Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match &*self.0 {
            Key::File { rsa: true, .. } => SignatureAlgorithm::RSA,
            _ => SignatureAlgorithm::ECDSA,
        }
    }
}

impl rustls::sign::Signer for ByOpenssl {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let Key::File { path, rsa, .. } = &*self.0 else { return Err(rustls::Error::General("no file".into())) };
        let padding: &[&str] = match rsa {
            true => &["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"],
            false => &[],
        };
        Ok(sign_by_openssl(path, Hash::Sha256, padding, message))
    }

    fn scheme(&self) -> SignatureScheme {
        match &*self.0 {
            Key::File { rsa: true, .. } => SignatureScheme::RSA_PSS_SHA256,
            _ => SignatureScheme::ECDSA_NISTP521_SHA512,
        }
    }
}

fn sign_by_openssl(key: &Path, hash: Hash, options: &[&str], message: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("message");
    std::fs::write(&path, message).expect("written");
    let hash = match hash {
        Hash::Sha1 => "-sha1",
        Hash::Sha256 => "-sha256",
        Hash::Sha384 => "-sha384",
    };
    let key = key.to_str().expect("UTF-8");
    openssl(&[&["dgst", hash, "-sign", key], options].concat(), &path)
}

/// What `openssl` writes to its output; the last argument is a path.
fn openssl(arguments: &[&str], path: &Path) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).arg(path).output().expect("openssl is installed");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
