//! Operators' keys: Ed25519 (RFC 8032), made and kept by people, so that a hub alone can't order what takes a person.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use zeroize::Zeroizing;

/// What a private key's text begins with.
const PRIVATE: &str = "hfok_";
/// What a public key's text begins with.
const PUBLIC: &str = "hfop_";

/// An operator's private key.
pub struct OperatorKey {
    pair: Ed25519KeyPair,
    document: Zeroizing<Vec<u8>>,
}

/// An operator's public key, as hubs register and agents pin it: `hfop_…`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperatorPublicKey([u8; 32]);

/// Not an operator's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperatorKeyError {
    /// The private key's text.
    #[error(
        "this is no operator's private key: it is one line that starts with {PRIVATE}, as hfctl operator-key create writes it"
    )]
    Private,
    /// The public key's text.
    #[error("this is no operator's public key: it starts with {PUBLIC}, as hfctl operator-key show prints it")]
    Public,
    /// The system gives no randomness.
    #[error("the system gives no random bytes")]
    Random,
}

impl OperatorKey {
    /// Makes a key.
    ///
    /// # Errors
    /// [`OperatorKeyError::Random`].
    pub fn generate() -> Result<Self, OperatorKeyError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| OperatorKeyError::Random)?;
        Self::from_document(Zeroizing::new(document.as_ref().to_vec()))
    }

    fn from_document(document: Zeroizing<Vec<u8>>) -> Result<Self, OperatorKeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(&document).map_err(|_| OperatorKeyError::Private)?;
        Ok(Self { pair, document })
    }

    /// Its public half.
    pub fn public(&self) -> OperatorPublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        OperatorPublicKey(bytes)
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(self.pair.sign(message).as_ref());
        bytes
    }

    /// The line to keep in a file that nobody else may read: PKCS#8 (RFC 8410) in base64url.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{PRIVATE}{}", BASE64URL_NOPAD.encode(&self.document)))
    }
}

impl FromStr for OperatorKey {
    type Err = OperatorKeyError;

    fn from_str(text: &str) -> Result<Self, OperatorKeyError> {
        let encoded = text.trim().strip_prefix(PRIVATE).ok_or(OperatorKeyError::Private)?;
        let document = BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|_| OperatorKeyError::Private)?;
        Self::from_document(Zeroizing::new(document))
    }
}

/// Never the key itself.
impl fmt::Debug for OperatorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OperatorKey({})", self.public())
    }
}

impl OperatorPublicKey {
    /// From the 32 bytes of the wire.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the wire.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// Whether `signature` over `message` is by this key.
    pub fn verifies(self, message: &[u8], signature: &[u8; 64]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

impl FromStr for OperatorPublicKey {
    type Err = OperatorKeyError;

    fn from_str(text: &str) -> Result<Self, OperatorKeyError> {
        let encoded = text.trim().strip_prefix(PUBLIC).ok_or(OperatorKeyError::Public)?;
        let bytes = BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|_| OperatorKeyError::Public)?;
        bytes.try_into().map(Self).map_err(|_| OperatorKeyError::Public)
    }
}

impl fmt::Display for OperatorPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC}{}", BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for OperatorPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file_and_signs_what_its_public_half_verifies() {
        let key = OperatorKey::generate().expect("a key");
        let again: OperatorKey = key.to_text().parse().expect("the same");
        let public: OperatorPublicKey = again.public().to_string().parse().expect("the same");
        assert_eq!(public, key.public());
        let signature = key.sign(b"restart");
        assert!(public.verifies(b"restart", &signature));
        assert!(!public.verifies(b"restarT", &signature));
        let mut wrong = signature;
        wrong[7] ^= 1;
        assert!(!public.verifies(b"restart", &wrong));
        assert!(!OperatorKey::generate().expect("a key").public().verifies(b"restart", &signature));
    }

    #[test]
    fn what_is_no_key_is_refused_and_a_private_one_is_not_shown() {
        let key = OperatorKey::generate().expect("a key");
        assert_eq!(key.to_text().parse::<OperatorPublicKey>(), Err(OperatorKeyError::Public));
        assert!(key.public().to_string().parse::<OperatorKey>().is_err());
        assert!("hfop_AAAA".parse::<OperatorPublicKey>().is_err() && "".parse::<OperatorKey>().is_err());
        assert!(!format!("{key:?}").contains(&key.to_text()[PRIVATE.len()..]));
    }

    /// RFC 8032, section 7.1, test 2.
    #[test]
    fn a_signature_is_that_of_the_standard() {
        let hex = |text: &str| data_encoding::HEXLOWER.decode(text.as_bytes()).expect("hexadecimal");
        let public = hex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        let signature = hex(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        );
        let public = OperatorPublicKey::from_bytes(public.try_into().expect("32 bytes"));
        assert!(public.verifies(&[0x72], &signature.try_into().expect("64 bytes")));
    }
}
