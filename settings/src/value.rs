//! The kinds of value that TOML has no type for: a time with its unit, a size with its unit, a secret.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use zeroize::Zeroizing;

/// Name under which a [`Secret`] asks to be deserialized; the key probe knows it by that.
pub(crate) const SECRET: &str = "hyperfactory::Secret";

/// A length of time, written with its unit: `"250ms"`, `"10s"`, `"1h30m"`, `"7d"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(pub Duration);

/// A number of bytes, written with its unit: `"512B"`, `"64KiB"`, `"256MiB"`, `"1GB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Text that is not printed, and is wiped from memory when dropped.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

/// Units of time, in milliseconds.
const TIME_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Units of size, in bytes.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

impl Period {
    /// From whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// As the standard library has it.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Period {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError::Period(shown(text));
        let (mut rest, mut millis, mut smallest) = (text.trim(), 0u64, u64::MAX);
        while !rest.is_empty() {
            let (number, unit, after) = quantity(rest).ok_or_else(wrong)?;
            let scale = scale(&TIME_UNITS, unit).filter(|scale| *scale < smallest).ok_or_else(wrong)?;
            smallest = scale;
            millis = number.checked_mul(scale).and_then(|part| millis.checked_add(part)).ok_or_else(wrong)?;
            rest = after;
        }
        if smallest == u64::MAX { Err(wrong()) } else { Ok(Self(Duration::from_millis(millis))) }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        write_in_largest(f, &TIME_UNITS, millis, "0s")
    }
}

impl Size {
    /// From whole mebibytes.
    pub const fn mebibytes(mebibytes: u64) -> Self {
        Self(mebibytes << 20)
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError::Size(shown(text));
        match quantity(text.trim()) {
            Some((number, unit, "")) => {
                let scale = scale(&SIZE_UNITS, unit).ok_or_else(wrong)?;
                number.checked_mul(scale).map(Self).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_in_largest(f, &SIZE_UNITS[..5], self.0, "0B")
    }
}

impl Secret {
    /// Keeps `text` secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Quoted("a time with its unit, like \"10s\" or \"5m\"", PhantomData))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Quoted("a size with its unit, like \"64KiB\" or \"256MiB\"", PhantomData))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(SECRET, SecretVisitor)
    }
}

/// Parses a quoted value; holds what to say when something else is found.
struct Quoted<T>(&'static str, PhantomData<T>);

impl<T: FromStr<Err = ValueError>> de::Visitor<'_> for Quoted<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

struct SecretVisitor;

impl<'de> de::Visitor<'de> for SecretVisitor {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text in quotes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
        Ok(Secret::new(text))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Secret, E> {
        Ok(Secret::new(text))
    }

    // The usual messages would show the value, also where it lies deeper than this crate's own deserializer goes.
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Secret, E> {
        Err(no_text())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Secret, E> {
        Err(no_text())
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Secret, E> {
        Err(no_text())
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Secret, E> {
        Err(no_text())
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, _: A) -> Result<Secret, A::Error> {
        Err(no_text())
    }

    fn visit_map<A: de::MapAccess<'de>>(self, _: A) -> Result<Secret, A::Error> {
        Err(no_text())
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Secret, D::Error> {
        deserializer.deserialize_string(self)
    }
}

fn no_text<E: de::Error>() -> E {
    E::custom("a secret is text in quotes")
}

/// Splits `12s34` into 12, `s` and `34`.
fn quantity(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, rest) = text.split_at(digits);
    let rest = rest.trim_start();
    let unit = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (unit, after) = rest.split_at(unit);
    Some((number.parse().ok()?, unit, after.trim_start()))
}

fn scale(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale)
}

fn write_in_largest(f: &mut fmt::Formatter<'_>, units: &[(&str, u64)], value: u64, zero: &'static str) -> fmt::Result {
    match units.iter().rev().find(|(_, scale)| value > 0 && value.is_multiple_of(*scale)) {
        Some((unit, scale)) => write!(f, "{}{unit}", value / scale),
        None => f.write_str(zero),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Text that is not a value of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a time.
    #[error("{0:?} is not a time; write a number with its unit (ms, s, m, h or d), like \"10s\" or \"1h30m\"")]
    Period(String),
    /// Not a size.
    #[error("{0:?} is not a size; write a number with its unit (B, KiB, MiB, GiB, kB, MB, GB), like \"256MiB\"")]
    Size(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let cases =
            [("250ms", 250), ("10s", 10_000), ("5 m", 300_000), ("1h30m", 5_400_000), ("7d", 604_800_000), ("0s", 0)];
        for (text, millis) in cases {
            assert_eq!(text.parse(), Ok(Period(Duration::from_millis(millis))), "{text}");
        }
        for bad in
            ["", "10", "s", "10 parsecs", "-1s", "1.5s", "30m1h", "1m1m", "99999999999999999999s", "999999999999999d"]
        {
            assert!(bad.parse::<Period>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("512B", 512), ("64KiB", 65_536), ("256 MiB", 268_435_456), ("1GB", 1_000_000_000)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for bad in ["", "256", "MiB", "1KiB2B", "-1B", "1.5GiB", "1mib", "99999999999999TiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn values_print_as_they_are_written() {
        for text in ["250ms", "10s", "90m", "7d", "0s"] {
            assert_eq!(text.parse::<Period>().expect("good").to_string(), text);
        }
        for text in ["512B", "64KiB", "256MiB", "0B"] {
            assert_eq!(text.parse::<Size>().expect("good").to_string(), text);
        }
    }

    #[test]
    fn a_secret_does_not_show() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(…)");
    }
}
