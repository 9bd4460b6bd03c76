//! The credentials' own shape: a prefix that says what it is, and 32 random bytes. Stored as a hash alone.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;

/// What a secret opens. A secret for one purpose opens no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    ApiToken,
    Link,
    Session,
}

impl Purpose {
    fn prefix(self) -> &'static str {
        match self {
            Self::ApiToken => "hft_",
            Self::Link => "hfl_",
            Self::Session => "hfs_",
        }
    }
}

/// 256 random bits need no slow hash: nobody can search them.
pub(super) struct Secret {
    purpose: Purpose,
    bytes: [u8; 32],
}

impl Secret {
    pub(super) fn generate(purpose: Purpose) -> Self {
        Self { purpose, bytes: rand::random() }
    }

    pub(super) fn parse(purpose: Purpose, text: &str) -> Option<Self> {
        let decoded = BASE64URL_NOPAD.decode(text.strip_prefix(purpose.prefix())?.as_bytes()).ok()?;
        Some(Self { purpose, bytes: decoded.try_into().ok()? })
    }

    /// What the database holds. It is looked up by this, so that timing tells about hashes only.
    pub(super) fn hash(&self) -> Vec<u8> {
        digest(&SHA256, &self.bytes).as_ref().to_vec()
    }

    /// A second value that only the holder of this one can know, and that does not give this one away.
    pub(super) fn csrf(&self) -> String {
        let mut input = b"csrf\0".to_vec();
        input.extend_from_slice(&self.bytes);
        BASE64URL_NOPAD.encode(digest(&SHA256, &input).as_ref())
    }
}

/// The text to hand out.
impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.purpose.prefix(), BASE64URL_NOPAD.encode(&self.bytes))
    }
}

/// Whether both are the same, in a time that depends on their lengths alone.
pub(super) fn equal(left: &[u8], right: &[u8]) -> bool {
    left.ct_eq(right).into()
}
