//! Who is at the other end of a connection, and what it came for.

use pki::{CertificateDer, NodeIdentity, TrustError, node_identity};
use protocol::version::{ALPN_ENROLL, ALPN_RECOVER, ALPN_SESSION};
use quinn::crypto::rustls::HandshakeData;

/// The verified peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A hub: its chain led to the fleet's root, or to the pinned one.
    Hub,
    /// A client without a certificate. It may enroll or recover, and nothing else.
    Anonymous,
    /// A node whose certificate is good and not revoked.
    Node(NodeIdentity),
}

impl Peer {
    /// The node, where it is one.
    pub fn node(&self) -> Option<&NodeIdentity> {
        match self {
            Self::Node(identity) => Some(identity),
            Self::Hub | Self::Anonymous => None,
        }
    }

    /// The client at a hub's end of a connection.
    pub(crate) fn of_client(connection: &quinn::Connection) -> Result<Self, TrustError> {
        let Some(identity) = connection.peer_identity() else { return Ok(Self::Anonymous) };
        let chain = identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| TrustError::Malformed)?;
        node_identity(&chain).map(Self::Node)
    }
}

/// What was agreed on in the handshake (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// `hyperfactory/1`
    Session,
    /// `hyperfactory-enroll/1`
    Enroll,
    /// `hyperfactory-recover/1`
    Recover,
}

impl Alpn {
    /// `None` never happens with our configurations: rustls refuses a handshake without a common protocol.
    pub(crate) fn of(connection: &quinn::Connection) -> Option<Self> {
        let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
        match data.protocol?.as_slice() {
            ALPN_SESSION => Some(Self::Session),
            ALPN_ENROLL => Some(Self::Enroll),
            ALPN_RECOVER => Some(Self::Recover),
            _ => None,
        }
    }
}
