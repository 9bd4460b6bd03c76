//! Certificate serial numbers: 16 random bytes, positive (RFC 5280, section 4.1.2.2).

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use ring::rand::{SecureRandom, SystemRandom};

/// A serial number as it stands in the certificate. Unique for each certificate, also of one key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial([u8; Serial::LENGTH]);

impl Serial {
    /// Bytes in a serial.
    pub const LENGTH: usize = 16;

    /// The bytes, most significant first.
    pub fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    pub(crate) fn random() -> Result<Self, ring::error::Unspecified> {
        let mut bytes = [0; Self::LENGTH];
        SystemRandom::new().fill(&mut bytes)?;
        // The top bit clear makes it positive; the next one set keeps all 16 bytes in the minimal encoding.
        bytes[0] = bytes[0] & 0x7f | 0x40;
        Ok(Self(bytes))
    }

    /// `None` when it is not one of ours: 16 bytes, positive.
    pub(crate) fn from_der(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; Self::LENGTH] = bytes.try_into().ok()?;
        (bytes[0] & 0x80 == 0).then_some(Self(bytes))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Serial {
    type Err = SerialError;

    fn from_str(text: &str) -> Result<Self, SerialError> {
        HEXLOWER
            .decode(text.as_bytes())
            .ok()
            .and_then(|bytes| Self::from_der(&bytes))
            .ok_or_else(|| SerialError(text.chars().take(64).collect()))
    }
}

/// Text that is not a serial number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a certificate's serial number: it has 32 lower-case hexadecimal digits")]
pub struct SerialError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_are_random_positive_and_always_16_bytes() {
        let (a, b) = (Serial::random().expect("random"), Serial::random().expect("random"));
        assert_ne!(a, b);
        for _ in 0..200 {
            let first = Serial::random().expect("random").as_bytes()[0];
            assert!((0x40..0x80).contains(&first), "{first:#x}");
        }
        assert_eq!(a.to_string().parse(), Ok(a));
        assert!("zz".parse::<Serial>().is_err());
        assert!(Serial::from_der(&[0x80; 16]).is_none());
        assert!(Serial::from_der(&[1; 17]).is_none());
    }
}
