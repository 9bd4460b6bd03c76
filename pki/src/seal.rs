//! Secrets at rest, in two steps: a data key per owner seals what is the owner's, a master key wraps the data keys.
//!
//! AES-256-GCM, bound to owner and purpose. Sealed form: version (1 byte), id of the key it is sealed with (8), length of
//! the secret (4, big-endian), nonce (12), then ciphertext and tag. All of it is authenticated.
//!
//! Who deletes an owner's wrapped data key makes all that it sealed unreadable, in every backup of the rest too.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use protocol::TenantId;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::key::sha256;

const VERSION: u8 = 1;
const KEY_ID: usize = 8;
const NONCE_AT: usize = 1 + KEY_ID + 4;
const HEADER: usize = NONCE_AT + NONCE_LEN;

/// What a data key is wrapped for.
const DATA_KEY: &str = "data-key";

/// Whose secrets a data key seals.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The fleet: its root, the hub's intermediate.
    Fleet,
    /// One customer.
    Tenant(TenantId),
}

impl fmt::Display for Owner {
    /// `fleet` or `tenant/<slug>`: the prefix keeps a tenant called "fleet" apart from the fleet.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fleet => f.write_str("fleet"),
            Self::Tenant(tenant) => write!(f, "tenant/{tenant}"),
        }
    }
}

impl FromStr for Owner {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        let tenant = || text.strip_prefix("tenant/")?.parse().ok().map(Self::Tenant);
        if text == "fleet" { Some(Self::Fleet) } else { tenant() }.ok_or(SealError::Owner)
    }
}

/// The key that wraps data keys. It is never in the database.
pub struct MasterKey(SealKey);

impl MasterKey {
    /// Bytes in a master key.
    pub const LENGTH: usize = 32;

    /// Makes a new key.
    ///
    /// # Errors
    /// [`SealError::Random`] when the operating system has no randomness to give.
    pub fn generate() -> Result<Self, SealError> {
        Self::from_bytes(*random()?)
    }

    /// From 32 random bytes.
    ///
    /// # Errors
    /// None in practice: the length is right by type.
    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Result<Self, SealError> {
        SealKey::new(bytes, b"hyperfactory master key id\0").map(Self)
    }

    /// The text for a key file: 64 hexadecimal digits and a newline.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(HEXLOWER.encode(&*self.0.bytes) + "\n")
    }

    /// The key itself, for a program that keeps keys to wrap.
    pub fn to_bytes(&self) -> Zeroizing<[u8; Self::LENGTH]> {
        self.0.bytes.clone()
    }

    /// Tells this key from others, and nothing else about it: 16 hexadecimal digits.
    pub fn id(&self) -> String {
        HEXLOWER.encode(&self.0.id)
    }

    /// Encrypts a data key, for its owner.
    ///
    /// # Errors
    /// [`SealError::Random`] when the operating system has no randomness to give.
    pub fn wrap(&self, key: &DataKey) -> Result<Vec<u8>, SealError> {
        self.0.seal(&context(&key.owner, DATA_KEY), &*key.key.bytes)
    }

    /// Decrypts what [`MasterKey::wrap`] gave for the same owner.
    ///
    /// # Errors
    /// [`SealError::OtherMasterKey`] when another key wrapped it, [`SealError::Refused`] when it is another owner's or
    /// was altered, and as [`DataKey::open`].
    pub fn unwrap(&self, owner: Owner, wrapped: &[u8]) -> Result<DataKey, SealError> {
        let context = context(&owner, DATA_KEY);
        let bytes = self.0.open(&context, wrapped).map_err(|error| match error {
            SealError::OtherKey => SealError::OtherMasterKey,
            error => error,
        })?;
        let bytes = <[u8; Self::LENGTH]>::try_from(bytes.as_slice()).map_err(|_| SealError::Refused { context })?;
        DataKey::from_bytes(owner, bytes)
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

/// The key that seals one owner's secrets. It is stored wrapped alone.
pub struct DataKey {
    owner: Owner,
    key: SealKey,
}

impl DataKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`SealError::Random`] when the operating system has no randomness to give.
    pub fn generate(owner: Owner) -> Result<Self, SealError> {
        Self::from_bytes(owner, *random()?)
    }

    fn from_bytes(owner: Owner, bytes: [u8; MasterKey::LENGTH]) -> Result<Self, SealError> {
        Ok(Self { owner, key: SealKey::new(bytes, b"hyperfactory data key id\0")? })
    }

    /// Whose secrets it seals.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// A key for another purpose, the same at every call (HMAC-SHA-256 as a PRF, RFC 2104).
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &*self.key.bytes), purpose.as_bytes());
        let mut derived = [0; 32];
        derived.copy_from_slice(tag.as_ref());
        derived
    }

    /// Encrypts `secret` so that only this key opens it, and only for the same `purpose`.
    ///
    /// # Errors
    /// [`SealError::Random`] when the operating system has no randomness to give.
    pub fn seal(&self, purpose: &str, secret: &[u8]) -> Result<Vec<u8>, SealError> {
        self.key.seal(&context(&self.owner, purpose), secret)
    }

    /// Decrypts what [`DataKey::seal`] gave for the same `purpose`.
    ///
    /// # Errors
    /// Which of these it is: another data key, another purpose or altered bytes, cut short, another version.
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        self.key.open(&context(&self.owner, purpose), sealed)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({}, …)", self.owner)
    }
}

/// 256 bits, the cipher under them, and a name for them.
struct SealKey {
    bytes: Zeroizing<[u8; MasterKey::LENGTH]>,
    key: LessSafeKey,
    id: [u8; KEY_ID],
}

impl SealKey {
    fn new(bytes: [u8; MasterKey::LENGTH], label: &[u8]) -> Result<Self, SealError> {
        let bytes = Zeroizing::new(bytes);
        let key = UnboundKey::new(&AES_256_GCM, &*bytes).map_err(|_| SealError::Key)?;
        let labelled = Zeroizing::new([label, &*bytes].concat());
        let mut id = [0; KEY_ID];
        id.copy_from_slice(&sha256(&labelled)[..KEY_ID]);
        Ok(Self { bytes, key: LessSafeKey::new(key), id })
    }

    fn seal(&self, context: &str, secret: &[u8]) -> Result<Vec<u8>, SealError> {
        let length = u32::try_from(secret.len()).map_err(|_| SealError::Key)?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| SealError::Random)?;
        let mut sealed = Vec::with_capacity(HEADER + secret.len() + AES_256_GCM.tag_len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&self.id);
        sealed.extend_from_slice(&length.to_be_bytes());
        sealed.extend_from_slice(&nonce);
        let aad = Aad::from(associated(&sealed, context));
        sealed.extend_from_slice(secret);
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed[HEADER..])
            .map_err(|_| SealError::Key)?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    fn open(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let header = sealed.get(..HEADER).ok_or(SealError::Truncated)?;
        if header[0] != VERSION {
            return Err(SealError::Version(header[0]));
        }
        if header[1..=KEY_ID] != self.id {
            return Err(SealError::OtherKey);
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

fn random() -> Result<Zeroizing<[u8; MasterKey::LENGTH]>, SealError> {
    let mut bytes = Zeroizing::new([0; MasterKey::LENGTH]);
    SystemRandom::new().fill(&mut *bytes).map_err(|_| SealError::Random)?;
    Ok(bytes)
}

/// What a sealed secret is bound to.
fn context(owner: &Owner, purpose: &str) -> String {
    format!("{owner}/{purpose}")
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
    /// Neither the fleet nor a tenant.
    #[error("a data key has an owner that is neither the fleet nor a tenant; restore the database from its backup")]
    Owner,
    /// Shorter than it says it is.
    #[error("a sealed key is cut short; restore the database from its backup")]
    Truncated,
    /// Sealed by another release.
    #[error("a sealed key has format version {0}, which this release does not read; run the release that wrote it")]
    Version(u8),
    /// Wrapped under another master key.
    #[error("a data key was wrapped under another master key; give the hub the master key this database is under")]
    OtherMasterKey,
    /// Sealed with another data key.
    #[error("a sealed key was sealed with another data key than its owner's; restore the database from its backup")]
    OtherKey,
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

    fn acme() -> Owner {
        "tenant/acme".parse().expect("an owner")
    }

    fn key(byte: u8) -> DataKey {
        DataKey::from_bytes(acme(), [byte; 32]).expect("a key")
    }

    fn master(byte: u8) -> MasterKey {
        MasterKey::from_bytes([byte; 32]).expect("a key")
    }

    fn refused(context: &str) -> Option<SealError> {
        Some(SealError::Refused { context: context.into() })
    }

    #[test]
    fn a_secret_opens_with_its_key_owner_and_purpose_only() {
        let sealed = key(1).seal("nodes", b"secret").expect("sealed");
        assert_eq!(key(1).open("nodes", &sealed).expect("opened").as_slice(), b"secret");
        assert_eq!(key(2).open("nodes", &sealed).err(), Some(SealError::OtherKey));
        assert_eq!(key(1).open("kafka", &sealed).err(), refused("tenant/acme/kafka"));
        let another = DataKey::from_bytes("tenant/evil".parse().expect("an owner"), [1; 32]).expect("a key");
        assert_eq!(another.open("nodes", &sealed).err(), refused("tenant/evil/nodes"));
    }

    #[test]
    fn a_data_key_is_unwrapped_by_its_master_key_for_its_owner_only() {
        let wrapped = master(1).wrap(&key(7)).expect("wrapped");
        let sealed = key(7).seal("nodes", b"secret").expect("sealed");
        let unwrapped = master(1).unwrap(acme(), &wrapped).expect("unwrapped");
        assert_eq!(unwrapped.open("nodes", &sealed).expect("opened").as_slice(), b"secret");
        assert_eq!(master(2).unwrap(acme(), &wrapped).err(), Some(SealError::OtherMasterKey));
        assert_eq!(master(1).unwrap(Owner::Fleet, &wrapped).err(), refused("fleet/data-key"));
    }

    #[test]
    fn a_tenant_is_never_taken_for_the_fleet() {
        let named: Owner = "tenant/fleet".parse().expect("an owner");
        assert_ne!(named, Owner::Fleet);
        for owner in [named, Owner::Fleet, acme()] {
            assert_eq!(owner.to_string().parse(), Ok(owner));
        }
        for bad in ["", "acme", "tenant/", "tenant/a/b", "Fleet"] {
            assert_eq!(bad.parse::<Owner>(), Err(SealError::Owner), "{bad:?}");
        }
    }

    #[test]
    fn a_cut_is_told_from_an_alteration() {
        let sealed = key(1).seal("nodes", b"secret").expect("sealed");
        for length in 0..sealed.len() {
            assert_eq!(key(1).open("nodes", &sealed[..length]).err(), Some(SealError::Truncated), "{length}");
        }
        for index in 1 + KEY_ID + 4..sealed.len() {
            let mut altered = sealed.clone();
            altered[index] ^= 1;
            assert_eq!(key(1).open("nodes", &altered).err(), refused("tenant/acme/nodes"), "{index}");
        }
        let mut newer = sealed.clone();
        newer[0] = 2;
        assert_eq!(key(1).open("nodes", &newer).err(), Some(SealError::Version(2)));
        let longer = [sealed.as_slice(), b"x"].concat();
        assert_eq!(key(1).open("nodes", &longer).err(), refused("tenant/acme/nodes"));
    }

    #[test]
    fn equal_secrets_do_not_look_equal_and_keys_are_never_printed() {
        let a = key(1).seal("x", b"secret").expect("sealed");
        let b = key(1).seal("x", b"secret").expect("sealed");
        assert_ne!(a, b);
        assert_eq!(format!("{:?} {:?}", master(1), key(1)), "MasterKey(…) DataKey(tenant/acme, …)");
    }

    #[test]
    fn a_key_file_is_read_back_and_a_damaged_one_refused() {
        let made = MasterKey::generate().expect("a key");
        let read: MasterKey = made.to_text().parse().expect("the same key");
        assert_eq!((read.to_bytes(), read.id()), (made.to_bytes(), made.id()));
        for bad in ["", "0123", &made.to_text()[..63], "zz".repeat(32).as_str()] {
            assert_eq!(bad.parse::<MasterKey>().err(), Some(SealError::Text), "{bad:?}");
        }
    }
}
