//! Why a connection ended, as the peer is told and as this side sees it.

use std::fmt;

use pki::Distrust;
use quinn::{ConnectionError, Side, TransportErrorCode, VarInt};

/// QUIC's application error code (RFC 9000, section 20.2). The numbers are part of the published contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// 0: nothing is wrong; the sender is finished.
    Done,
    /// 1: a frame was over the stream's limit.
    FrameTooLarge,
    /// 2: a frame was cut short, or not the expected message.
    Malformed,
    /// 3: the node opened another session, which took this one's place.
    Displaced,
    /// 4: the node's certificate is revoked.
    Revoked,
    /// 5: the hub is shutting down; connect again.
    Draining,
    /// 6: the peer may not do this.
    Refused,
    /// 7: nothing was heard, or an answer did not come, in time.
    Timeout,
    /// 8: the sender failed.
    Internal,
    /// 9: the peer has restarted and no longer knows the connection. Never sent.
    Lost,
    /// A code of a newer peer.
    Other(u32),
}

impl CloseCode {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::FrameTooLarge => 1,
            Self::Malformed => 2,
            Self::Displaced => 3,
            Self::Revoked => 4,
            Self::Draining => 5,
            Self::Refused => 6,
            Self::Timeout => 7,
            Self::Internal => 8,
            Self::Lost => 9,
            Self::Other(number) => number,
        }
    }

    /// The code of a number; numbers over 32 bits are not told apart.
    pub fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Done,
            1 => Self::FrameTooLarge,
            2 => Self::Malformed,
            3 => Self::Displaced,
            4 => Self::Revoked,
            5 => Self::Draining,
            6 => Self::Refused,
            7 => Self::Timeout,
            8 => Self::Internal,
            9 => Self::Lost,
            other => Self::Other(u32::try_from(other).unwrap_or(u32::MAX)),
        }
    }

    pub(crate) fn to_wire(self) -> VarInt {
        VarInt::from_u32(self.number())
    }
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The kind of end.
    pub code: CloseCode,
    /// What happened, for a person; at most 512 bytes of it come from the peer.
    pub reason: String,
    /// Whether the peer ended it.
    pub by_peer: bool,
    /// What it has against this side's certificate, when that is why.
    pub distrust: Option<Distrust>,
}

impl Closed {
    /// `local`: what this side gave as the reason, if it closed; `side`: which side this is.
    pub(crate) fn new(error: &ConnectionError, side: Side, local: Option<&(CloseCode, String)>) -> Self {
        let closed = |code, reason: &str, by_peer| Self { code, reason: reason.to_owned(), by_peer, distrust: None };
        match error {
            ConnectionError::ApplicationClosed(close) => {
                closed(CloseCode::from_number(close.error_code.into_inner()), &readable(&close.reason), true)
            }
            ConnectionError::LocallyClosed => {
                local.map_or_else(|| closed(CloseCode::Done, "", false), |(code, reason)| closed(*code, reason, false))
            }
            ConnectionError::TimedOut => {
                closed(CloseCode::Timeout, "nothing was heard from the peer in time; the way to it may be cut", false)
            }
            ConnectionError::Reset => closed(CloseCode::Lost, "the peer restarted and lost the connection", true),
            ConnectionError::ConnectionClosed(close) => {
                let detail = readable(&close.reason);
                match distrust(close.error_code) {
                    Some(why) => Self {
                        code: if why == Distrust::Revoked { CloseCode::Revoked } else { CloseCode::Refused },
                        reason: explained(why, side.is_server(), &detail),
                        by_peer: true,
                        distrust: Some(why),
                    },
                    None => closed(CloseCode::Internal, &format!("{}: {detail}", close.error_code), true),
                }
            }
            other => closed(CloseCode::Internal, &other.to_string(), false),
        }
    }
}

impl Closed {
    /// Never seen: a connection whose handshake is done has keys to export from.
    pub(crate) fn without_keys() -> Self {
        Self { code: CloseCode::Internal, reason: "TLS exports no keys".into(), by_peer: false, distrust: None }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = if self.by_peer { "the peer closed the connection" } else { "the connection is closed" };
        match self.reason.as_str() {
            "" => write!(f, "{who} ({:?})", self.code),
            reason => write!(f, "{who} ({:?}): {reason}", self.code),
        }
    }
}

impl std::error::Error for Closed {}

/// What a TLS alert says about a certificate.
pub(crate) fn distrust(code: TransportErrorCode) -> Option<Distrust> {
    Distrust::from_alert(alert(code)?)
}

/// The TLS alert in a QUIC error code (RFC 9001, section 4.8).
pub(crate) fn alert(code: TransportErrorCode) -> Option<u8> {
    let code = u64::from(code);
    (0x100..0x200).contains(&code).then_some((code & 0xff) as u8)
}

pub(crate) fn explained(why: Distrust, about_hub: bool, detail: &str) -> String {
    let advice = if about_hub { why.of_hub().to_string() } else { why.of_node().to_string() };
    if detail.is_empty() { advice } else { format!("{advice} ({detail})") }
}

/// A reason from the wire, for logs and pages: at most 512 bytes, no control characters.
pub(crate) fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.get(..512).unwrap_or(bytes));
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_codes_are_one_to_one() {
        for number in 0..20 {
            assert_eq!(u64::from(CloseCode::from_number(number).number()), number);
        }
        assert_eq!(CloseCode::from_number(u64::MAX), CloseCode::Other(u32::MAX));
    }

    #[test]
    fn a_peers_reason_is_made_harmless() {
        assert_eq!(readable(b"a\x1b[31mb\n\xff"), "a [31mb \u{fffd}");
        assert_eq!(readable(&[b'x'; 4000]).len(), 512);
    }
}
