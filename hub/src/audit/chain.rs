//! The chain: how an entry is encoded and hashed, so that none can be altered, added or taken away unseen.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use store::sqlx::any::AnyRow;
use store::sqlx::{self, Row};

/// Says what is hashed, and in which version of the encoding; a new encoding gets a new one.
const DOMAIN: &str = "hyperfactory audit v1";

/// SHA-256 over an entry and the hash before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// What the first entry has before it.
    pub const NONE: Self = Self([0; 32]);

    /// `None` when it has not 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| HashError)?;
        Self::from_bytes(&bytes).ok_or(HashError)
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Text that is not a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a hash has 64 lower-case hexadecimal digits")]
pub struct HashError;

/// The newest entry's number and hash: it stands for the whole log up to there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Number of the newest entry; 0 when there is none.
    pub id: i64,
    /// Its hash.
    pub hash: Hash,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.id, self.hash)
    }
}

impl FromStr for Head {
    type Err = HeadError;

    fn from_str(text: &str) -> Result<Self, HeadError> {
        let (id, hash) = text.trim().split_once(':').ok_or(HeadError)?;
        let id = id.parse().ok().filter(|id| *id >= 0).ok_or(HeadError)?;
        Ok(Self { id, hash: hash.parse().map_err(|_| HeadError)? })
    }
}

/// Text that is not a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a head is the number of an entry and its hash: 123:9f86d0…, with 64 hexadecimal digits")]
pub struct HeadError;

/// An entry exactly as it is stored, hashed and exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Its number: the one before it plus one.
    pub id: i64,
    /// When, ms since the Unix epoch.
    pub at: i64,
    /// Who.
    pub actor: String,
    /// With which credential: the id of an API token.
    pub credential: Option<String>,
    /// What.
    pub action: String,
    /// Whose tenant.
    pub tenant: Option<String>,
    /// To what.
    pub subject: String,
    /// More: a JSON object, as text.
    pub detail: String,
    /// From which address.
    pub remote: Option<String>,
    /// Hash of the entry before it.
    pub previous: Hash,
    /// Its own hash.
    pub hash: Hash,
}

impl Link {
    /// The columns [`Link::read`] takes.
    pub(crate) const COLUMNS: &str =
        "id, at, actor, credential, action, tenant, subject, detail, remote, previous, hash";

    /// Reads a row of [`Link::COLUMNS`].
    pub(crate) fn read(row: &AnyRow) -> Result<Self, sqlx::Error> {
        let hash = |column: usize| -> Result<Hash, sqlx::Error> {
            let bytes: Vec<u8> = row.try_get(column)?;
            Hash::from_bytes(&bytes).ok_or_else(|| sqlx::Error::Decode("a hash of another length than 32".into()))
        };
        Ok(Self {
            id: row.try_get(0)?,
            at: row.try_get(1)?,
            actor: row.try_get(2)?,
            credential: row.try_get(3)?,
            action: row.try_get(4)?,
            tenant: row.try_get(5)?,
            subject: row.try_get(6)?,
            detail: row.try_get(7)?,
            remote: row.try_get(8)?,
            previous: hash(9)?,
            hash: hash(10)?,
        })
    }

    /// What is hashed: every field but the hash, each with a byte that says whether it is there and, if so, its
    /// length; so no two entries have the same encoding.
    pub fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(160 + self.subject.len() + self.detail.len());
        field(&mut out, Some(DOMAIN.as_bytes()));
        field(&mut out, Some(&self.previous.0));
        field(&mut out, Some(&self.id.to_be_bytes()));
        field(&mut out, Some(&self.at.to_be_bytes()));
        field(&mut out, Some(self.actor.as_bytes()));
        field(&mut out, self.credential.as_deref().map(str::as_bytes));
        field(&mut out, Some(self.action.as_bytes()));
        field(&mut out, self.tenant.as_deref().map(str::as_bytes));
        field(&mut out, Some(self.subject.as_bytes()));
        field(&mut out, Some(self.detail.as_bytes()));
        field(&mut out, self.remote.as_deref().map(str::as_bytes));
        out
    }

    /// The hash that its fields and the hash before it give.
    pub fn computed(&self) -> Hash {
        let mut context = Context::new(&SHA256);
        context.update(&self.encoded());
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        Hash(hash)
    }

    /// Whether the hash is that of the fields.
    pub fn is_intact(&self) -> bool {
        self.hash == self.computed()
    }
}

fn field(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        None => out.push(0),
        Some(bytes) => {
            out.push(1);
            out.extend((bytes.len() as u64).to_be_bytes());
            out.extend(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link() -> Link {
        Link {
            id: 7,
            at: 1_790_000_000_000,
            actor: "operator:ann".into(),
            credential: None,
            action: "tenant.created".into(),
            tenant: Some("acme".into()),
            subject: "acme".into(),
            detail: r#"{"name":"Acme Ltd"}"#.into(),
            remote: Some("192.0.2.7".into()),
            previous: Hash([0xab; 32]),
            hash: Hash::NONE,
        }
    }

    /// Whoever writes a verifier of their own starts here: these bytes never change under this domain.
    #[test]
    fn the_encoding_is_this_to_the_byte() {
        assert_eq!(HEXLOWER.encode(&link().encoded()), GOLDEN.replace([' ', '\n'], ""));
        assert_eq!(link().computed().to_string(), GOLDEN_HASH);
    }

    const GOLDEN: &str = "
        01 0000000000000015 6879706572666163746f7279206175646974207631
        01 0000000000000020 abababababababababababababababababababababababababababababababab
        01 0000000000000008 0000000000000007
        01 0000000000000008 000001a0c4506c00
        01 000000000000000c 6f70657261746f723a616e6e
        00
        01 000000000000000e 74656e616e742e63726561746564
        01 0000000000000004 61636d65
        01 0000000000000004 61636d65
        01 0000000000000013 7b226e616d65223a2241636d65204c7464227d
        01 0000000000000009 3139322e302e322e37";
    const GOLDEN_HASH: &str = "272183970030d6262a377fdf85a5819530baf8bde3fc609b2fb899aa941938b9";

    #[test]
    fn heads_are_read_as_they_are_written() {
        let head = Head { id: 12, hash: Hash([0x5a; 32]) };
        assert_eq!(head.to_string().parse(), Ok(head));
        for bad in ["", "12", "12:", ":5a", "-1:5a", "x:5a"] {
            assert!(bad.parse::<Head>().is_err(), "{bad:?}");
        }
    }

    /// Few different words, so that the same ones meet in other places.
    fn words() -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), "[ab\\x00\\x01\"]{1,4}", any::<String>()]
    }

    prop_compose! {
        fn links()(
            numbers in (0i64..3, 0i64..3, any::<bool>()),
            texts in (words(), words(), words(), words()),
            maybes in (proptest::option::of(words()), proptest::option::of(words()), proptest::option::of(words())),
        ) -> Link {
            Link {
                id: numbers.0,
                at: numbers.1,
                actor: texts.0,
                credential: maybes.0,
                action: texts.1,
                tenant: maybes.1,
                subject: texts.2,
                detail: texts.3,
                remote: maybes.2,
                previous: if numbers.2 { Hash::NONE } else { Hash([1; 32]) },
                hash: Hash::NONE,
            }
        }
    }

    /// Another reader of the same bytes: what it gives back must be what went in, so nothing else encodes so.
    fn decoded(mut bytes: &[u8]) -> Vec<Option<Vec<u8>>> {
        let mut fields = Vec::new();
        while let [present, rest @ ..] = bytes {
            if *present == 0 {
                (bytes, _) = (rest, fields.push(None));
                continue;
            }
            let (length, rest) = rest.split_at(8);
            let (value, rest) = rest.split_at(u64::from_be_bytes(length.try_into().expect("8 bytes")) as usize);
            fields.push(Some(value.to_vec()));
            bytes = rest;
        }
        fields
    }

    proptest! {
        #[test]
        fn two_different_entries_never_encode_alike(one in links(), other in links()) {
            prop_assert_eq!(one == other, one.encoded() == other.encoded());
            prop_assert_eq!(one == other, one.computed() == other.computed());
        }

        #[test]
        fn text_moved_from_one_field_to_the_next_changes_the_encoding(link in links(), at in 0usize..4) {
            let mut moved = link.clone();
            let cut = moved.subject.char_indices().map(|(place, _)| place).nth(at).unwrap_or(moved.subject.len());
            moved.detail = moved.subject.split_off(cut) + &moved.detail;
            prop_assert_eq!(moved == link, moved.encoded() == link.encoded());
        }

        #[test]
        fn the_encoding_can_be_read_back(link in links()) {
            let text = |text: &str| Some(text.as_bytes().to_vec());
            let maybe = |maybe: &Option<String>| maybe.as_deref().map(|text| text.as_bytes().to_vec());
            let expected = vec![
                text(DOMAIN), Some(link.previous.0.to_vec()), Some(link.id.to_be_bytes().to_vec()),
                Some(link.at.to_be_bytes().to_vec()), text(&link.actor), maybe(&link.credential), text(&link.action),
                maybe(&link.tenant), text(&link.subject), text(&link.detail), maybe(&link.remote),
            ];
            prop_assert_eq!(decoded(&link.encoded()), expected);
        }
    }
}
