//! A master key from a passphrase: Argon2id (RFC 9106), with salt and costs stored beside what the key wraps.

use std::fmt;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::seal::{MasterKey, SealError};

/// The second recommended choice of RFC 9106, section 4: 64 MiB, three passes, four lanes.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// What a stored record may ask of this machine: somebody else may have written it.
const MEMORY_KIB_MAX: u32 = 1024 * 1024;
const PASSES_MAX: u32 = 32;
const LANES_MAX: u32 = 64;

const VERSION: u8 = 1;
const SALT: usize = 16;

/// Text that only people know. Never printed, wiped from memory when dropped.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// Fewest characters of a new one.
    pub const SHORTEST: usize = 16;

    /// As typed, or as it stands in a file: a line's end is not part of it.
    pub fn new(text: Zeroizing<String>) -> Self {
        Self(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
    }

    /// Refuses what is too short to be guarded by. For new ones: one in use is as long as it is.
    ///
    /// # Errors
    /// [`PassphraseError::Short`].
    pub fn fit(self) -> Result<Self, PassphraseError> {
        let length = self.0.chars().count();
        if length < Self::SHORTEST { Err(PassphraseError::Short(length)) } else { Ok(self) }
    }

    /// Whether both are the same: typed twice.
    pub fn matches(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// How a passphrase becomes a key: costs and salt. No secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: [u8; SALT],
}

impl Stretch {
    /// With a new salt, at the cost that is right today.
    ///
    /// # Errors
    /// [`PassphraseError::Random`] when the operating system has no randomness to give.
    pub fn new() -> Result<Self, PassphraseError> {
        let mut salt = [0; SALT];
        SystemRandom::new().fill(&mut salt).map_err(|_| PassphraseError::Random)?;
        Ok(Self { memory_kib: MEMORY_KIB, passes: PASSES, lanes: LANES, salt })
    }

    /// For storage: version (1 byte), memory in KiB, passes, lanes (4 each, big-endian), salt (16).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        for cost in [self.memory_kib, self.passes, self.lanes] {
            bytes.extend_from_slice(&cost.to_be_bytes());
        }
        bytes.extend_from_slice(&self.salt);
        bytes
    }

    /// From storage.
    ///
    /// # Errors
    /// [`PassphraseError::Record`] when it is damaged, or asks for more than 1 GiB, 32 passes or 64 lanes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PassphraseError> {
        let costs = |[a, b, c, d]: [u8; 4]| u32::from_be_bytes([a, b, c, d]);
        let bytes: [u8; 1 + 12 + SALT] = bytes.try_into().map_err(|_| PassphraseError::Record)?;
        let [version, a, b, c, d, e, f, g, h, i, j, k, l, salt @ ..] = bytes;
        let stretch =
            Self { memory_kib: costs([a, b, c, d]), passes: costs([e, f, g, h]), lanes: costs([i, j, k, l]), salt };
        let bearable =
            stretch.memory_kib <= MEMORY_KIB_MAX && stretch.passes <= PASSES_MAX && stretch.lanes <= LANES_MAX;
        if version == VERSION && bearable { Ok(stretch) } else { Err(PassphraseError::Record) }
    }

    /// The key. Takes about 0.2 s and 64 MiB, by intent.
    ///
    /// # Errors
    /// [`PassphraseError::Record`] when the costs are none that Argon2 takes.
    pub fn key(&self, passphrase: &Passphrase) -> Result<MasterKey, PassphraseError> {
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(MasterKey::LENGTH))
            .map_err(|_| PassphraseError::Record)?;
        let mut memory = Zeroizing::new(vec![Block::new(); params.block_count()]);
        let mut bytes = Zeroizing::new([0; MasterKey::LENGTH]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(passphrase.0.as_bytes(), &self.salt, &mut *bytes, memory.as_mut_slice())
            .map_err(|_| PassphraseError::Record)?;
        Ok(MasterKey::from_bytes(*bytes)?)
    }
}

/// A passphrase that gives no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassphraseError {
    /// The operating system gave no randomness.
    #[error("the operating system has no randomness for a salt")]
    Random,
    /// Too short to guard anything.
    #[error("the passphrase has {0} characters: take {least} or more, best several random words", least = Passphrase::SHORTEST)]
    Short(usize),
    /// The stored costs or salt can't be used.
    #[error("the record of how the passphrase becomes a key is damaged; restore it from its backup")]
    Record,
    /// The derived key can't be used.
    #[error(transparent)]
    Seal(#[from] SealError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(Zeroizing::new(text.to_owned()))
    }

    /// The same salt and costs give the same key, which `argon2` (Debian's reference implementation) gives too:
    /// `printf 'correct horse battery staple' | argon2 0123456789abcdef -id -t 3 -k 65536 -p 4 -l 32 -r`
    #[test]
    fn the_reference_implementation_gives_the_same_key() {
        let stretch = Stretch { memory_kib: MEMORY_KIB, passes: PASSES, lanes: LANES, salt: *b"0123456789abcdef" };
        let key = stretch.key(&passphrase("correct horse battery staple\n")).expect("a key");
        assert_eq!(key.to_text().trim(), "efb51f9a76584f6dd6a4f7942a1a2f6ae5a6e4ec5142ff674dfd5d27eb45e446");
    }

    #[test]
    fn another_passphrase_or_salt_gives_another_key() {
        let quick = || Stretch { memory_kib: 64, passes: 1, lanes: 1, ..Stretch::new().expect("a salt") };
        let (one, two) = (quick(), quick());
        assert_ne!(one.salt, two.salt);
        let id = |stretch: &Stretch, text| stretch.key(&passphrase(text)).expect("a key").id();
        assert_eq!(id(&one, "a passphrase"), id(&one, "a passphrase\r\n"));
        assert_ne!(id(&one, "a passphrase"), id(&one, "a passphrase "));
        assert_ne!(id(&one, "a passphrase"), id(&two, "a passphrase"));
    }

    #[test]
    fn a_record_reads_back_and_one_that_would_eat_the_machine_is_refused() {
        let stretch = Stretch::new().expect("a salt");
        let bytes = stretch.to_bytes();
        assert_eq!(Stretch::from_bytes(&bytes), Ok(stretch));
        for (at, byte) in [(0, 2), (1, 0xff), (5, 0xff), (9, 0xff)] {
            let mut greedy = bytes.clone();
            greedy[at] = byte;
            assert_eq!(Stretch::from_bytes(&greedy), Err(PassphraseError::Record), "{at}");
        }
        assert_eq!(Stretch::from_bytes(&bytes[1..]), Err(PassphraseError::Record));
        let none = Stretch { lanes: 0, ..Stretch::new().expect("a salt") };
        assert_eq!(none.key(&passphrase("x")).err(), Some(PassphraseError::Record));
    }

    #[test]
    fn a_short_one_is_refused_when_it_is_new_and_none_is_ever_printed() {
        assert!(matches!(passphrase("fifteen letters").fit(), Err(PassphraseError::Short(15))));
        let fit = passphrase("sixteen letters!").fit().expect("long enough");
        assert_eq!(format!("{fit:?}"), "Passphrase(…)");
    }
}
