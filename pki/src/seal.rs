//! Secrets at rest: AES-256-GCM under the hub's master key, bound to what they belong to.
//!
//! Sealed form: version (1 byte), id of the master key (8), length of the secret (4, big-endian), nonce (12), then
//! ciphertext and tag. Everything before the ciphertext and the context are authenticated.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::{Zeroize, Zeroizing};

use crate::key::sha256;

const VERSION: u8 = 1;
const KEY_ID: usize = 8;
const NONCE_AT: usize = 1 + KEY_ID + 4;
const HEADER: usize = NONCE_AT + NONCE_LEN;

/// The key under which a hub keeps its authorities' private keys. It is not in the database.
pub struct MasterKey {
    bytes: [u8; MasterKey::LENGTH],
    key: LessSafeKey,
    id: [u8; KEY_ID],
}

impl MasterKey {
    /// Bytes in a master key.
    pub const LENGTH: usize = 32;

    /// Makes a new key.
    ///
    /// # Errors
    /// [`SealError::Random`] when the operating system has no randomness to give.
    pub fn generate() -> Result<Self, SealError> {
        let mut bytes = [0; Self::LENGTH];
        SystemRandom::new().fill(&mut bytes).map_err(|_| SealError::Random)?;
        Self::from_bytes(bytes)
    }

    /// From 32 random bytes.
    ///
    /// # Errors
    /// None in practice: the length is right by type.
    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| SealError::Key)?;
        let mut labelled = b"hyperfactory master key id\0".to_vec();
        labelled.extend_from_slice(&bytes);
        let digest = sha256(&labelled);
        labelled.zeroize();
        let mut id = [0; KEY_ID];
        id.copy_from_slice(&digest[..KEY_ID]);
        Ok(Self { bytes, key: LessSafeKey::new(key), id })
    }

    /// The text for a key file: 64 hexadecimal digits and a newline.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(HEXLOWER.encode(&self.bytes) + "\n")
    }

    /// A key for another purpose, the same at every call (HMAC-SHA-256 as a PRF, RFC 2104).
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.bytes), purpose.as_bytes());
        let mut derived = [0; 32];
        derived.copy_from_slice(tag.as_ref());
        derived
    }

    /// Encrypts `secret` so that only this key opens it, and only for the same `context`.
    ///
    /// # Errors
    /// [`SealError::Random`] when the operating system has no randomness to give.
    pub fn seal(&self, context: &str, secret: &[u8]) -> Result<Vec<u8>, SealError> {
        let length = u32::try_from(secret.len()).map_err(|_| SealError::Key)?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| SealError::Random)?;
        let mut sealed = Vec::with_capacity(HEADER + secret.len() + AES_256_GCM.tag_len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&self.id);
        sealed.extend_from_slice(&length.to_be_bytes());
        sealed.extend_from_slice(&nonce);
        let mut body = secret.to_vec();
        let aad = Aad::from(associated(&sealed, context));
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut body)
            .map_err(|_| SealError::Key)?;
        sealed.append(&mut body);
        Ok(sealed)
    }

    /// Decrypts what [`MasterKey::seal`] gave for the same `context`.
    ///
    /// # Errors
    /// Which of these it is: another master key, another context or altered bytes, cut short, another version.
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let header = sealed.get(..HEADER).ok_or(SealError::Truncated)?;
        if header[0] != VERSION {
            return Err(SealError::Version(header[0]));
        }
        if header[1..=KEY_ID] != self.id {
            return Err(SealError::OtherMasterKey);
        }
        let (mut length, mut nonce) = ([0; 4], [0; NONCE_LEN]);
        length.copy_from_slice(&header[1 + KEY_ID..NONCE_AT]);
        nonce.copy_from_slice(&header[NONCE_AT..]);
        let whole = (u32::from_be_bytes(length) as usize).saturating_add(HEADER + AES_256_GCM.tag_len());
        if sealed.len() < whole {
            return Err(SealError::Truncated);
        }
        let mut body = Zeroizing::new(sealed[HEADER..].to_vec());
        let aad = Aad::from(associated(header, context));
        let refused = |_| SealError::Refused { context: context.to_owned() };
        let opened =
            self.key.open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut body).map_err(refused)?.len();
        body.truncate(opened);
        Ok(body)
    }
}

impl FromStr for MasterKey {
    type Err = SealError;

    /// Reads the text of a key file: 64 hexadecimal digits, whitespace around them ignored.
    fn from_str(text: &str) -> Result<Self, SealError> {
        let digits = Zeroizing::new(text.trim().to_ascii_lowercase());
        let decoded = Zeroizing::new(HEXLOWER.decode(digits.as_bytes()).map_err(|_| SealError::Text)?);
        Self::from_bytes(decoded.as_slice().try_into().map_err(|_| SealError::Text)?)
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(…)")
    }
}

impl Drop for MasterKey {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

/// Header, then context: the header's length is fixed, so that no two pairs give the same bytes.
fn associated(header: &[u8], context: &str) -> Vec<u8> {
    [header, context.as_bytes()].concat()
}

/// A secret that cannot be sealed or opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The operating system gave no randomness.
    #[error("the operating system has no randomness to seal with")]
    Random,
    /// The key file's text is not a key.
    #[error("the master key is not 64 hexadecimal digits; restore the key file from its backup")]
    Text,
    /// The cipher refused the key or the length.
    #[error("the secret cannot be sealed with this key")]
    Key,
    /// Shorter than it says it is.
    #[error("a sealed key is cut short; restore the database from its backup")]
    Truncated,
    /// Sealed by another release.
    #[error("a sealed key has format version {0}, which this release does not read; run the release that wrote it")]
    Version(u8),
    /// Sealed under another master key.
    #[error(
        "a sealed key was sealed under another master key; give the hub the master key this database was made with"
    )]
    OtherMasterKey,
    /// The context differs, or a byte does.
    #[error("a sealed key does not belong to {context:?}, or was altered; restore the database from its backup")]
    Refused {
        /// What it was opened for.
        context: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> MasterKey {
        MasterKey::from_bytes([byte; 32]).expect("a key")
    }

    #[test]
    fn a_secret_opens_with_its_key_and_context_only() {
        let sealed = key(1).seal("tenant/acme", b"secret").expect("sealed");
        assert_eq!(key(1).open("tenant/acme", &sealed).expect("opened").as_slice(), b"secret");
        assert_eq!(key(2).open("tenant/acme", &sealed).err(), Some(SealError::OtherMasterKey));
        assert_eq!(
            key(1).open("tenant/evil", &sealed).err(),
            Some(SealError::Refused { context: "tenant/evil".into() })
        );
    }

    #[test]
    fn a_cut_is_told_from_an_alteration() {
        let sealed = key(1).seal("fleet/root", b"secret").expect("sealed");
        for length in 0..sealed.len() {
            assert_eq!(key(1).open("fleet/root", &sealed[..length]).err(), Some(SealError::Truncated), "{length}");
        }
        for index in 1 + KEY_ID + 4..sealed.len() {
            let mut altered = sealed.clone();
            altered[index] ^= 1;
            assert!(matches!(key(1).open("fleet/root", &altered), Err(SealError::Refused { .. })), "{index}");
        }
        let mut newer = sealed.clone();
        newer[0] = 2;
        assert_eq!(key(1).open("fleet/root", &newer).err(), Some(SealError::Version(2)));
        let longer = [sealed.as_slice(), b"x"].concat();
        assert!(matches!(key(1).open("fleet/root", &longer), Err(SealError::Refused { .. })));
    }

    #[test]
    fn equal_secrets_do_not_look_equal_and_the_key_is_never_printed() {
        let a = key(1).seal("x", b"secret").expect("sealed");
        let b = key(1).seal("x", b"secret").expect("sealed");
        assert_ne!(a, b);
        assert_eq!(format!("{:?}", key(1)), "MasterKey(…)");
    }

    #[test]
    fn a_key_file_is_read_back_and_a_damaged_one_refused() {
        let made = MasterKey::generate().expect("a key");
        let read: MasterKey = made.to_text().parse().expect("the same key");
        assert_eq!(read.bytes, made.bytes);
        for bad in ["", "0123", &made.to_text()[..63], "zz".repeat(32).as_str()] {
            assert_eq!(bad.parse::<MasterKey>().err(), Some(SealError::Text), "{bad:?}");
        }
    }
}
