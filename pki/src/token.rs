//! Join tokens: one string to paste that tells a node where its hub is, how to know it, and that it may enroll.
//!
//! `hfj_` and base64url (RFC 4648, section 5, no padding) of: version (1 byte), length of the address (1), the
//! root's pin (32), the secret (32), the address, and the first 4 bytes of SHA-256 over all of that.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::{Zeroize, Zeroizing};

use crate::key::sha256;

const PREFIX: &str = "hfj_";
const VERSION: u8 = 1;
const ADDRESS_AT: usize = 2 + 32 + 32;
const CHECK: usize = 4;
/// Longest text that is looked at.
const MAX_TEXT: usize = 1024;

/// What a node enrolls with, once.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The hub's address, `host:port`; an IPv6 host stands in brackets.
    pub hub: String,
    /// SHA-256 of the fleet root's SubjectPublicKeyInfo.
    pub root_pin: [u8; 32],
    /// Proves the right to enroll. Only its hash is stored at the hub.
    pub secret: [u8; 32],
}

impl JoinToken {
    /// A token with a new secret.
    ///
    /// # Errors
    /// [`TokenError::Hub`] when `hub` is not `host:port`, [`TokenError::Random`] when the operating system has no
    /// randomness to give.
    pub fn generate(hub: &str, root_pin: [u8; 32]) -> Result<Self, TokenError> {
        let mut secret = [0; 32];
        SystemRandom::new().fill(&mut secret).map_err(|_| TokenError::Random)?;
        Self::new(hub, root_pin, secret)
    }

    /// A token of these parts.
    ///
    /// # Errors
    /// [`TokenError::Hub`] when `hub` is not `host:port` of at most 255 bytes.
    pub fn new(hub: &str, root_pin: [u8; 32], secret: [u8; 32]) -> Result<Self, TokenError> {
        if !is_address(hub) {
            return Err(TokenError::Hub(hub.chars().take(64).collect()));
        }
        Ok(Self { hub: hub.to_owned(), root_pin, secret })
    }

    /// What the hub stores instead of the secret. A plain hash does: the secret has 256 random bits.
    pub fn secret_hash(&self) -> [u8; 32] {
        secret_hash(&self.secret)
    }
}

/// Hash of a secret as it comes with an enrollment request.
pub fn secret_hash(secret: &[u8]) -> [u8; 32] {
    sha256(secret)
}

impl fmt::Display for JoinToken {
    /// The whole token, secret included: show it once, to the one who will paste it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hub = self.hub.as_bytes();
        let length = u8::try_from(hub.len()).map_err(|_| fmt::Error)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(ADDRESS_AT + hub.len() + CHECK));
        bytes.extend_from_slice(&[VERSION, length]);
        bytes.extend_from_slice(&self.root_pin);
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(hub);
        let check = sha256(&bytes);
        bytes.extend_from_slice(&check[..CHECK]);
        f.write_str(PREFIX)?;
        f.write_str(&Zeroizing::new(BASE64URL_NOPAD.encode(&bytes)))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, …)", self.hub)
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    /// Whitespace is ignored, also within: terminals wrap and mail breaks lines.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        if text.len() > MAX_TEXT {
            return Err(TokenError::TooLong);
        }
        let text: Zeroizing<String> = Zeroizing::new(text.chars().filter(|c| !c.is_whitespace()).collect());
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        let Some(body) = text.strip_prefix(PREFIX) else {
            return Err(if PREFIX.starts_with(text.as_str()) { TokenError::Truncated } else { TokenError::Prefix });
        };
        if let Some(stray) = body.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_')) {
            return Err(TokenError::Character(stray));
        }
        // The first two bytes tell the length; a cut may have left the last characters undecodable.
        let head = body.get(..4).ok_or(TokenError::Truncated)?;
        let head = BASE64URL_NOPAD.decode(head.as_bytes()).map_err(|_| TokenError::Altered)?;
        let (version, length) = (head[0], head[1]);
        if version != VERSION {
            return Err(TokenError::Version(version));
        }
        let checked = ADDRESS_AT + usize::from(length);
        match body.len().cmp(&BASE64URL_NOPAD.encode_len(checked + CHECK)) {
            Ordering::Less => return Err(TokenError::Truncated),
            Ordering::Greater => return Err(TokenError::TooLong),
            Ordering::Equal => {}
        }
        let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| TokenError::Altered)?);
        if sha256(&bytes[..checked])[..CHECK] != bytes[checked..] {
            return Err(TokenError::Altered);
        }
        let (mut root_pin, mut secret) = ([0; 32], [0; 32]);
        root_pin.copy_from_slice(&bytes[2..34]);
        secret.copy_from_slice(&bytes[34..ADDRESS_AT]);
        let hub = std::str::from_utf8(&bytes[ADDRESS_AT..checked]).map_err(|_| TokenError::Altered)?;
        Self::new(hub, root_pin, secret)
    }
}

impl Drop for JoinToken {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

/// `host:port`, with a host that is a DNS name, an IPv4 address or a bracketed IPv6 address.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let port_fits = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    let host_fits = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        }
    };
    port_fits && host_fits && text.len() <= 255
}

/// Text that is not a whole join token, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing there.
    #[error("the join token is empty; copy it from the hub's token page or from `hfctl token create`")]
    Empty,
    /// Something else was pasted.
    #[error("this is not a join token: a join token starts with {PREFIX:?}; copy it from the hub's token page")]
    Prefix,
    /// The end is missing.
    #[error("the join token is cut short; copy it again, all of it, to its last character")]
    Truncated,
    /// There is more after the end.
    #[error("there is more text than one join token; copy the token alone")]
    TooLong,
    /// A character that no token has.
    #[error("the join token holds {0:?}, which no token does; copy it again, without quotes or brackets")]
    Character(char),
    /// The checksum does not match.
    #[error("the join token was altered on its way: its checksum is wrong; copy it again instead of typing it")]
    Altered,
    /// Made by a newer hub.
    #[error("the join token has format version {0}, which this release does not read; install the hub's release here")]
    Version(u8),
    /// The address in it cannot be dialed.
    #[error("{0:?} is not a hub address: use host:port, for example hub.example.com:7443")]
    Hub(String),
    /// The operating system gave no randomness.
    #[error("the operating system has no randomness for a join token")]
    Random,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> JoinToken {
        JoinToken::new("hub.example.com:7443", [1; 32], [0xfe; 32]).expect("a token")
    }

    #[test]
    fn a_token_is_one_word_that_reads_back() {
        let text = token().to_string();
        assert!(text.starts_with("hfj_AR"), "{text}");
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(token().secret_hash(), secret_hash(&[0xfe; 32]));
    }

    #[test]
    fn whitespace_of_the_paste_is_ignored() {
        let text = token().to_string();
        assert_eq!(format!(" \t{text}\r\n").parse(), Ok(token()));
        let (start, end) = text.split_at(40);
        assert_eq!(format!("{start}\n  {end}").parse(), Ok(token()));
    }

    #[test]
    fn a_cut_anywhere_is_called_a_cut() {
        let text = token().to_string();
        assert_eq!("".parse::<JoinToken>(), Err(TokenError::Empty));
        for length in 1..text.len() {
            assert_eq!(text[..length].parse::<JoinToken>(), Err(TokenError::Truncated), "{length}");
        }
    }

    #[test]
    fn one_wrong_character_anywhere_is_caught() {
        let text = token().to_string();
        for index in PREFIX.len()..text.len() {
            for other in ["A", "9", "_"] {
                if &text[index..=index] != other {
                    let mut altered = text.clone();
                    altered.replace_range(index..=index, other);
                    assert!(altered.parse::<JoinToken>().is_err(), "{index} {other}");
                }
            }
        }
        let mut typed = text.clone();
        typed.replace_range(60..61, if &text[60..61] == "A" { "B" } else { "A" });
        assert_eq!(typed.parse::<JoinToken>(), Err(TokenError::Altered));
    }

    #[test]
    fn each_mistake_says_what_to_do() {
        let text = token().to_string();
        let cases = [
            ("hft_abc".to_owned(), TokenError::Prefix, "starts with \"hfj_\""),
            (text[4..].to_owned(), TokenError::Prefix, "copy it from the hub"),
            (format!("\"{text}\""), TokenError::Prefix, "copy it"),
            (format!("{text}\""), TokenError::Character('"'), "without quotes"),
            (format!("{text}ü"), TokenError::Character('ü'), "copy it again"),
            (format!("{text}AAAA"), TokenError::TooLong, "the token alone"),
            (format!("{text}{text}"), TokenError::TooLong, "the token alone"),
            ("hfj_".to_owned() + &"A".repeat(2000), TokenError::TooLong, "the token alone"),
            (text.replacen("hfj_A", "hfj_C", 1), TokenError::Version(9), "install the hub's release"),
        ];
        for (pasted, expected, advice) in cases {
            let error = pasted.parse::<JoinToken>().expect_err(&pasted);
            assert_eq!(error, expected, "{pasted}");
            assert!(error.to_string().contains(advice), "{error}");
        }
    }

    #[test]
    fn the_hub_must_be_an_address_that_can_be_dialed() {
        for good in ["h:1", "10.0.0.1:7443", "[::1]:7443", "hub-1.example.com:65535"] {
            assert!(JoinToken::generate(good, [0; 32]).is_ok(), "{good}");
        }
        for bad in ["", "hub", "hub:", ":7443", "hub:0", "hub:+1", "hub:65536", "::1:7443", "a b:1", "http://hub:1"] {
            assert_eq!(JoinToken::generate(bad, [0; 32]).err(), Some(TokenError::Hub(bad.into())), "{bad}");
        }
    }

    #[test]
    fn the_secret_is_never_printed() {
        let shown = format!("{:?} {:#?}", token(), token());
        assert!(!shown.contains("254") && !shown.contains("fe"), "{shown}");
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_never_a_panic(text in "\\PC*", tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = text.parse::<JoinToken>();
            let _ = format!("{PREFIX}{text}").parse::<JoinToken>();
            let _ = format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&tail)).parse::<JoinToken>();
        }

        #[test]
        fn every_token_reads_back(pin: [u8; 32], secret: [u8; 32], host in "[a-z0-9.-]{1,200}", port in 1u16..) {
            let token = JoinToken::new(&format!("{host}:{port}"), pin, secret).expect("a token");
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }
    }
}
