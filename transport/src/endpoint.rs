//! A UDP socket that speaks QUIC: the hub's, which admits connections, and a node's, which dials.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use pki::{Distrust, HUB_SERVER_NAME};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, ConnectionId, ConnectionIdGenerator, EndpointConfig, Runtime as _, TokioRuntime};
use ring::hmac;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::Notify;

use crate::close::{CloseCode, Closed, alert, distrust, explained, readable};
use crate::connection::{Connection, canonical};
use crate::knock::{KNOCK, Listening};
use crate::peer::{Alpn, Peer};
use crate::settings;

/// Asked of the kernel for a socket's buffers. With its default, a thousand nodes that connect at once lose packets
/// by the thousand, and take a minute instead of a second. The kernel caps it at `net.core.rmem_max`.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;
/// How long a hub has to complete a handshake before a node gives up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Packets of connections nobody has accepted yet, of each and of all.
const INCOMING_BUFFER: u64 = 16 * 1024;
const INCOMING_BUFFER_TOTAL: u64 = 16 * 1024 * 1024;
/// TLS alert `no_application_protocol` (RFC 7301, section 3.2).
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// Bounds of a hub's endpoint.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Connection attempts that may wait for [`Endpoint::accept`]. More are not heard: answering them would cost what
    /// the others need, and they try again by themselves.
    pub waiting: usize,
    /// How long a client has to complete its handshake after [`Incoming::accept`].
    pub handshake: Duration,
    /// How long nothing may be heard of a client.
    pub idle: Duration,
    /// The same over all lives of a hub, it lets a restarted hub end the connections of its former life at once.
    pub reset_key: Option<ResetKey>,
}

/// Key of connection ids and stateless resets (RFC 9000, section 10.3). Who has it can end connections, and no more.
#[derive(Clone, Copy)]
pub struct ResetKey(pub [u8; 32]);

impl fmt::Debug for ResetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetKey(…)")
    }
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self { waiting: 4096, handshake: Duration::from_secs(10), idle: settings::IDLE_TIMEOUT, reset_key: None }
    }
}

/// A QUIC endpoint. Clones share the socket.
#[derive(Clone, Debug)]
pub struct Endpoint {
    quic: quinn::Endpoint,
    /// Kept, so that a new TLS configuration does not invalidate the address tokens of the old one.
    server: Option<(quinn::ServerConfig, ServerLimits)>,
    client: Arc<quinn::TransportConfig>,
    receive_buffer: usize,
    /// A second handle of the socket, for knocks.
    knocker: Option<Arc<UdpSocket>>,
    knocked: Arc<Notify>,
}

impl Endpoint {
    /// The hub's endpoint, bound to `address`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`EndpointError::Bind`] when the address is taken or not this machine's.
    pub fn server(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        limits: ServerLimits,
    ) -> Result<Self, EndpointError> {
        let mut config = quinn::ServerConfig::with_crypto(server_crypto(tls)?);
        config
            .transport_config(settings::hub(limits.idle))
            .max_incoming(limits.waiting)
            .incoming_buffer_size(INCOMING_BUFFER)
            .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
        let bound = socket(address).map_err(|source| EndpointError::Bind { address, source })?;
        Self::over(bound, Some((config, limits)))
    }

    /// A node's endpoint, on any free port, over IPv6 and IPv4 where the machine has both. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`EndpointError::Bind`] when no port can be had.
    pub fn client() -> Result<Self, EndpointError> {
        let (v6, v4) = (SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        let bound = socket(v6).or_else(|_| socket(v4)).map_err(|source| EndpointError::Bind { address: v4, source })?;
        Self::over(bound, None)
    }

    fn over(socket: Socket, server: Option<(quinn::ServerConfig, ServerLimits)>) -> Result<Self, EndpointError> {
        let receive_buffer = socket.recv_buffer_size().map_err(EndpointError::Socket)?;
        let knocked = Arc::<Notify>::default();
        let open = |socket: Socket| {
            let socket = UdpSocket::from(socket);
            let (mut endpoint, mut knocker) = (EndpointConfig::default(), None);
            if let Some((_, limits)) = &server {
                knocker = Some(Arc::new(socket.try_clone()?));
                // Resets are smaller than what they answer and cost less; a thousand nodes may need one at once.
                endpoint.min_reset_interval(Duration::ZERO);
                if let Some(ResetKey(key)) = limits.reset_key {
                    endpoint.cid_generator(|| Box::new(AnyId));
                    endpoint.reset_key(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &key)));
                }
            }
            let mut socket = TokioRuntime.wrap_udp_socket(socket)?;
            if server.is_none() {
                socket = Arc::new(Listening::new(socket, Arc::clone(&knocked)));
            }
            let config = server.as_ref().map(|(config, _)| config.clone());
            let quic = quinn::Endpoint::new_with_abstract_socket(endpoint, config, socket, Arc::new(TokioRuntime))?;
            io::Result::Ok((quic, knocker))
        };
        let (quic, knocker) = open(socket).map_err(EndpointError::Socket)?;
        Ok(Self { quic, server, client: settings::node(), receive_buffer, knocker, knocked })
    }

    /// Makes the node at `address` look after its connection; see [`Self::knocked`]. Nothing comes of a knock that
    /// does not arrive.
    pub fn knock(&self, address: SocketAddr) {
        let Some(socket) = &self.knocker else { return };
        let mapped = self.quic.local_addr().is_ok_and(|local| local.is_ipv6());
        let address = match address {
            // The only way to name an IPv4 node to an IPv6 socket.
            SocketAddr::V4(v4) if mapped => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
            address => address,
        };
        if let Err(error) = socket.send_to(KNOCK, address) {
            tracing::debug!(%address, %error, "could not knock");
        }
    }

    /// Completes when the hub has knocked: it may have restarted, and whoever holds a connection should send something.
    pub async fn knocked(&self) {
        self.knocked.notified().await;
    }

    /// The address bound to, with the port that port 0 became.
    ///
    /// # Errors
    /// [`EndpointError::Socket`] when the operating system does not say.
    pub fn local_addr(&self) -> Result<SocketAddr, EndpointError> {
        self.quic.local_addr().map_err(EndpointError::Socket)
    }

    /// Bytes of the kernel's receive buffer. Well under 4 MiB, a storm of connections loses packets:
    /// raise `net.core.rmem_max`.
    pub fn receive_buffer(&self) -> usize {
        self.receive_buffer
    }

    /// Connections that are open or in their handshake.
    pub fn open_connections(&self) -> usize {
        self.quic.open_connections()
    }

    /// Uses another TLS configuration from the next connection attempt on; open connections stay. Does nothing on a
    /// node's endpoint.
    ///
    /// # Errors
    /// [`EndpointError::Tls`] when it is not for QUIC.
    pub fn set_server_config(&self, tls: Arc<rustls::ServerConfig>) -> Result<(), EndpointError> {
        if let Some((config, _)) = &self.server {
            let mut config = config.clone();
            config.crypto = server_crypto(tls)?;
            self.quic.set_server_config(Some(config));
        }
        Ok(())
    }

    /// The next connection attempt; `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<Incoming> {
        let quic = self.quic.accept().await?;
        let handshake = self.server.as_ref().map_or(CONNECT_TIMEOUT, |(_, limits)| limits.handshake);
        Some(Incoming { quic, handshake })
    }

    /// Dials a hub at an address that the caller has resolved.
    ///
    /// With TLS 1.3 the hub judges a node's certificate after this has succeeded: a refusal of it comes as [`Closed`]
    /// from the first stream.
    ///
    /// # Errors
    /// Why there is no connection, and what to do.
    pub async fn connect(
        &self,
        address: SocketAddr,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Connection, ConnectError> {
        let mut config = quinn::ClientConfig::new(Arc::new(client_crypto(tls)?));
        config.transport_config(Arc::clone(&self.client));
        config.token_store(Arc::new(quinn::NoneTokenStore));
        let connecting = self
            .quic
            .connect_with(config, address, HUB_SERVER_NAME)
            .map_err(|source| ConnectError::Address { address, source: Box::new(source) })?;
        let quic = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| ConnectError::NoAnswer { address })?
            .map_err(|error| ConnectError::of_hub(error, address))?;
        let alpn = Alpn::of(&quic).ok_or(ConnectError::OtherProtocol)?;
        Ok(Connection::new(quic, Peer::Hub, alpn))
    }

    /// Ends every connection and accepts no more.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.quic.close(code.to_wire(), reason.as_bytes());
    }

    /// Waits until every peer was told that its connection ended.
    pub async fn wait_idle(&self) {
        self.quic.wait_idle().await;
    }
}

/// A client that would like to connect. Dropping it refuses it.
#[derive(Debug)]
pub struct Incoming {
    quic: quinn::Incoming,
    handshake: Duration,
}

impl Incoming {
    /// Where it says it is; an IPv4 address is given as one, whatever the socket.
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.quic.remote_address())
    }

    /// Whether it has proved to be there, by answering a Retry.
    pub fn validated(&self) -> bool {
        self.quic.remote_address_validated()
    }

    /// Makes the client prove its address before the hub spends anything on it (RFC 9000, section 8.1.2). One that is
    /// [`Incoming::validated`] already cannot be asked again, and is refused.
    pub fn retry(self) {
        if let Err(error) = self.quic.retry() {
            error.into_incoming().refuse();
        }
    }

    /// Tells the client that there is no room; it comes back after its back-off.
    pub fn refuse(self) {
        self.quic.refuse();
    }

    /// Does the handshake, within the endpoint's deadline for it.
    ///
    /// # Errors
    /// Why there is no connection, for the hub's log. A client without a certificate that wants a session is refused
    /// here.
    pub async fn accept(self) -> Result<Connection, ConnectError> {
        let address = self.remote_address();
        let connecting = self.quic.accept().map_err(|error| ConnectError::of_node(error, address))?;
        let quic = tokio::time::timeout(self.handshake, connecting)
            .await
            .map_err(|_| ConnectError::NoAnswer { address })?
            .map_err(|error| ConnectError::of_node(error, address))?;
        let refuse = |error: ConnectError| {
            quic.close(CloseCode::Refused.to_wire(), error.to_string().as_bytes());
            error
        };
        let alpn = Alpn::of(&quic).ok_or_else(|| refuse(ConnectError::OtherProtocol))?;
        let peer = Peer::of_client(&quic).map_err(|error| {
            refuse(ConnectError::NodeDistrusted { why: Distrust::Unacceptable, detail: error.to_string() })
        })?;
        if alpn == Alpn::Session && peer == Peer::Anonymous {
            return Err(refuse(ConnectError::NodeDistrusted { why: Distrust::Missing, detail: String::new() }));
        }
        Ok(Connection::new(quic, peer, alpn))
    }
}

/// Random connection ids of which none is known to be wrong: quinn's own are tied to a key of one life, and it would
/// not answer those of a former one.
struct AnyId;

impl ConnectionIdGenerator for AnyId {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; 8]>())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // Both families through one socket; where the system has no IPv4 this changes nothing.
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

fn server_crypto(tls: Arc<rustls::ServerConfig>) -> Result<Arc<QuicServerConfig>, EndpointError> {
    QuicServerConfig::try_from(tls).map(Arc::new).map_err(|_| EndpointError::Tls)
}

fn client_crypto(tls: Arc<rustls::ClientConfig>) -> Result<QuicClientConfig, ConnectError> {
    QuicClientConfig::try_from(tls).map_err(|_| ConnectError::Tls)
}

/// An endpoint that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address cannot be bound.
    #[error("cannot listen on UDP {address}; see who has the port with `ss -ulnp`, or configure another address")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The socket failed.
    #[error("the UDP socket failed")]
    Socket(#[source] io::Error),
    /// The TLS configuration has no cipher suite that QUIC requires.
    #[error("the TLS configuration is not for QUIC")]
    Tls,
}

/// A connection that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be dialed.
    #[error("{address} cannot be dialed")]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing came back in time.
    #[error(
        "{address} does not answer over UDP; check that the hub runs there and that no firewall drops UDP to this port"
    )]
    NoAnswer {
        /// The address.
        address: SocketAddr,
    },
    /// The hub has no room now.
    #[error("the hub takes no connections right now; trying again is right")]
    Busy,
    /// This node does not trust the hub.
    #[error("{}", explained(*.why, true, .detail))]
    HubDistrusted {
        /// The kind of distrust.
        why: Distrust,
        /// What the verifier said.
        detail: String,
    },
    /// Seen by the hub: it does not trust the node.
    #[error("{}", explained(*.why, false, .detail))]
    NodeDistrusted {
        /// The kind of distrust.
        why: Distrust,
        /// What the verifier said.
        detail: String,
    },
    /// Seen by the hub: the node does not trust it.
    #[error("the client did not accept this hub's certificate ({why:?}): {detail}")]
    DistrustedByNode {
        /// The kind of distrust.
        why: Distrust,
        /// What the client's verifier said.
        detail: String,
    },
    /// The peer speaks QUIC and not this protocol.
    #[error(
        "the peer does not speak this protocol; check the address and port, and that hub and node are of releases that go together"
    )]
    OtherProtocol,
    /// The peer closed during the handshake.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The TLS configuration has no cipher suite that QUIC requires.
    #[error("the TLS configuration is not for QUIC")]
    Tls,
}

impl ConnectError {
    /// What a node saw of a hub.
    fn of_hub(error: ConnectionError, address: SocketAddr) -> Self {
        if let ConnectionError::TransportError(error) = &error
            && let Some(why) = distrust(error.code)
        {
            return Self::HubDistrusted { why, detail: error.reason.clone() };
        }
        Self::shared(error, address, quinn::Side::Client)
    }

    /// What a hub saw of a node.
    fn of_node(error: ConnectionError, address: SocketAddr) -> Self {
        match &error {
            ConnectionError::TransportError(error) => {
                if let Some(why) = distrust(error.code) {
                    return Self::NodeDistrusted { why, detail: error.reason.clone() };
                }
            }
            ConnectionError::ConnectionClosed(close) => {
                if let Some(why) = distrust(close.error_code) {
                    return Self::DistrustedByNode { why, detail: readable(&close.reason) };
                }
            }
            _ => {}
        }
        Self::shared(error, address, quinn::Side::Server)
    }

    fn shared(error: ConnectionError, address: SocketAddr, side: quinn::Side) -> Self {
        let code = match &error {
            ConnectionError::TransportError(error) => Some(error.code),
            ConnectionError::ConnectionClosed(close) => Some(close.error_code),
            ConnectionError::TimedOut => return Self::NoAnswer { address },
            ConnectionError::VersionMismatch => return Self::OtherProtocol,
            _ => None,
        };
        match code {
            Some(quinn::TransportErrorCode::CONNECTION_REFUSED) => Self::Busy,
            Some(code) if alert(code) == Some(NO_APPLICATION_PROTOCOL) => Self::OtherProtocol,
            _ => Self::Closed(Closed::new(&error, side, None)),
        }
    }
}
