//! One verified connection: who the peer is, streams of frames, and the reason of its end.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pki::CertificateDer;
use quinn::{ConnectionError, Side};

use crate::close::{CloseCode, Closed};
use crate::peer::{Alpn, Peer};
use crate::stream::{FrameReader, FrameWriter};

/// A connection whose handshake is done. Clones are the same connection; it closes with the last of them and of its
/// streams.
#[derive(Clone, Debug)]
pub struct Connection {
    quic: quinn::Connection,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    peer: Peer,
    alpn: Alpn,
    /// What this side closed with, which quinn does not remember.
    closed: OnceLock<(CloseCode, String)>,
}

/// Figures of a connection since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// UDP payload bytes sent.
    pub sent_bytes: u64,
    /// UDP payload bytes received.
    pub received_bytes: u64,
    /// Datagrams sent.
    pub sent_datagrams: u64,
    /// Datagrams received.
    pub received_datagrams: u64,
    /// Packets taken for lost.
    pub lost_packets: u64,
}

impl Connection {
    pub(crate) fn new(quic: quinn::Connection, peer: Peer, alpn: Alpn) -> Self {
        Self { quic, shared: Arc::new(Shared { peer, alpn, closed: OnceLock::new() }) }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.shared.peer
    }

    /// What the connection is for.
    pub fn alpn(&self) -> Alpn {
        self.shared.alpn
    }

    /// The certificates the peer has shown, leaf first; none when it has shown none.
    pub fn peer_chain(&self) -> Vec<CertificateDer<'static>> {
        let shown = self.quic.peer_identity().and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok());
        shown.map(|chain| *chain).unwrap_or_default()
    }

    /// 32 bytes that only the two ends of this connection know, the same at both (RFC 8446, section 7.5).
    ///
    /// # Errors
    /// [`Closed`] when the connection ended.
    pub fn export(&self, label: &[u8]) -> Result<[u8; 32], Closed> {
        let mut value = [0; 32];
        match self.quic.export_keying_material(&mut value, label, b"") {
            Ok(()) => Ok(value),
            Err(_) => Err(self.close_reason().unwrap_or_else(Closed::without_keys)),
        }
    }

    /// Where the peer is now; it may move. An IPv4 address is given as one, whatever the socket.
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.quic.remote_address())
    }

    /// Opens a stream whose frames are at most `limit` bytes long, both ways. The peer sees it with the first frame.
    /// Only nodes may open streams; waits while as many are open as the hub allows.
    ///
    /// # Errors
    /// [`Closed`] when the connection ended.
    pub async fn open(&self, limit: usize) -> Result<(FrameWriter, FrameReader), Closed> {
        let (send, receive) = self.quic.open_bi().await.map_err(|error| self.ended(&error))?;
        Ok((FrameWriter::new(send, self.clone(), limit), FrameReader::new(receive, self.clone(), limit)))
    }

    /// Waits for a stream that the peer opens; its frames are at most `limit` bytes long, both ways.
    ///
    /// # Errors
    /// [`Closed`] when the connection ended.
    pub async fn accept(&self, limit: usize) -> Result<(FrameWriter, FrameReader), Closed> {
        let (send, receive) = self.quic.accept_bi().await.map_err(|error| self.ended(&error))?;
        Ok((FrameWriter::new(send, self.clone(), limit), FrameReader::new(receive, self.clone(), limit)))
    }

    /// Ends the connection at once, and tells the peer why. What was sent and not yet read there may be lost. The
    /// first reason given stays.
    pub fn close(&self, code: CloseCode, reason: &str) {
        if self.quic.close_reason().is_none() && self.shared.closed.set((code, reason.to_owned())).is_ok() {
            self.quic.close(code.to_wire(), reason.as_bytes());
        }
    }

    /// Waits for the end.
    pub async fn closed(&self) -> Closed {
        let error = self.quic.closed().await;
        self.ended(&error)
    }

    /// How it ended, if it has.
    pub fn close_reason(&self) -> Option<Closed> {
        self.quic.close_reason().map(|error| self.ended(&error))
    }

    /// Smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        self.quic.rtt()
    }

    /// Figures since the connection's start.
    pub fn stats(&self) -> Statistics {
        let stats = self.quic.stats();
        Statistics {
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            sent_datagrams: stats.udp_tx.datagrams,
            received_datagrams: stats.udp_rx.datagrams,
            lost_packets: stats.path.lost_packets,
        }
    }

    pub(crate) fn ended(&self, error: &ConnectionError) -> Closed {
        let side = if self.shared.peer == Peer::Hub { Side::Client } else { Side::Server };
        Closed::new(error, side, self.shared.closed.get())
    }
}

/// A socket for both families shows IPv4 peers as `::ffff:a.b.c.d`, which no log, limit or rule expects.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
