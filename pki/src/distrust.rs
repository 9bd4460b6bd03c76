//! Why one side refused the other's certificate, as the TLS alert tells it (RFC 8446, section 6.2), and what to do.

use std::fmt;

/// The refusal of a certificate in a handshake. The alert is all that travels, so it is all that can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// Expired or not yet valid by the clock of the one who judged it.
    NotValidNow,
    /// Does not lead to the root the other side knows.
    ForeignRoot,
    /// The root's key is not the one the join token pins.
    WrongPin,
    /// Names somebody else, or is not for this use.
    WrongName,
    /// On the hub's denylist.
    Revoked,
    /// None arrived where one is required.
    Missing,
    /// Anything else: damaged, badly signed, another tenant's.
    Unacceptable,
}

impl Distrust {
    /// Reads a TLS alert; `None` when it is not about a certificate.
    pub fn from_alert(alert: u8) -> Option<Self> {
        match alert {
            45 => Some(Self::NotValidNow),
            48 => Some(Self::ForeignRoot),
            49 => Some(Self::WrongPin),
            42 | 43 => Some(Self::WrongName),
            44 => Some(Self::Revoked),
            116 => Some(Self::Missing),
            46 | 51 => Some(Self::Unacceptable),
            _ => None,
        }
    }

    /// What a node says when it refuses the hub's certificate.
    pub fn of_hub(self) -> impl fmt::Display {
        match self {
            Self::NotValidNow => {
                "the hub's certificate is not valid at this machine's time: \
                 set this machine's clock, and if it is right, the hub's"
            }
            Self::ForeignRoot => {
                "this is the hub of another fleet: its certificate does not lead to the root this node was enrolled \
                 with; check the hub's address, and enroll again if the fleet was set up anew"
            }
            Self::WrongPin => {
                "this is not the hub the join token was made for, or the fleet's root has been rotated since: no root has \
                 the key that the token pins; check the hub's address, and make a new token there"
            }
            Self::WrongName => {
                "what answers at the hub's address does not show a hub's certificate; check the address and the port"
            }
            Self::Revoked | Self::Missing | Self::Unacceptable => {
                "the hub's certificate is damaged or not made for a hub; check the address and the port"
            }
        }
    }

    /// What a node says when the hub refuses its certificate.
    pub fn of_node(self) -> impl fmt::Display {
        match self {
            Self::NotValidNow => {
                "the hub refused this node's certificate as expired or not yet valid: the node asks for a new one by \
                 itself; should that fail, set the clocks of this machine and the hub"
            }
            Self::ForeignRoot => {
                "the hub refused this node's certificate as another fleet's: if the fleet has a new root, the node asks for \
                 a new one by itself; else check the hub's address, and enroll again if the fleet was set up anew"
            }
            Self::Revoked => {
                "the hub refused this node's certificate as revoked: enroll again with a new join token if it should \
                 be part of the fleet"
            }
            Self::Missing => "the hub requires a certificate and this node sent none: enroll it with a join token",
            Self::WrongPin | Self::WrongName | Self::Unacceptable => {
                "the hub refused this node's certificate; enroll again with a new join token"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_to_do() {
        for alert in 0..=u8::MAX {
            if let Some(why) = Distrust::from_alert(alert) {
                for text in [why.of_hub().to_string(), why.of_node().to_string()] {
                    assert!(text.contains("check") || text.contains("set") || text.contains("enroll"), "{text}");
                }
            }
        }
        assert_eq!(Distrust::from_alert(40), None);
    }
}
