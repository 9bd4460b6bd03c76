//! A connection to an MQTT broker, in packets that are the same for versions 3.1.1 and 5.
//!
//! `rumqttc` knows the bytes of both. Its event loops take ten packets at a time and write each acknowledgement by itself;
//! here as much is read and written at once as there is.

mod codec;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::codec::Framed;

use crate::config::{MqttConfig, Version};
use codec::Codec;

/// Largest packet that is read. One that is larger ends the connection, and a broker of 3.1.1 would send it again for ever:
/// this is above what brokers take, and what the log does not take becomes a dead letter.
const LARGEST_PACKET: u32 = 64 << 20;
/// How long a broker may take to answer until the connection is up.
const CONNECT: Duration = Duration::from_secs(10);

/// What a connection is made with.
pub struct Dialer {
    version: Version,
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
    client_id: String,
    /// User name and password.
    login: Option<(String, String)>,
    keep_alive: Duration,
    session_expiry: Option<Duration>,
    receive_maximum: u16,
}

/// A connection that is up.
pub struct Wire(Framed<Box<dyn Stream>, Codec>);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What a broker said when the connection came up.
#[derive(Clone, Copy, Debug)]
pub struct Welcome {
    /// It knows the session.
    pub resumed: bool,
    /// Time without traffic after which it takes the connection for dead.
    pub keep_alive: Duration,
}

/// What comes from a broker.
#[derive(Debug)]
pub enum Incoming {
    /// A message.
    Publish(Publish),
    /// The packet id of a message with quality of service 2 is free again.
    Release(u16),
    /// The answer to a ping.
    Pong,
    /// The answer to a subscription: for each filter, why it is refused.
    Subscribed(Vec<Option<String>>),
    /// The answer to the end of a subscription.
    Unsubscribed,
    /// Nothing that is of use here.
    Other,
}

/// A message.
#[derive(Debug)]
pub struct Publish {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
    /// Quality of service it comes with.
    pub qos: u8,
    /// The broker had kept it.
    pub retained: bool,
    /// It may have come before.
    pub duplicate: bool,
    /// What its acknowledgement names; 0 for quality of service 0.
    pub packet_id: u16,
    /// Its content type (version 5).
    pub content_type: Option<String>,
    /// Its user properties (version 5).
    pub properties: Vec<(String, String)>,
}

/// What goes to a broker. There is no message among it.
#[derive(Clone, Debug)]
pub enum Outgoing {
    /// A message with quality of service 1 is here.
    Acknowledge(u16),
    /// A message with quality of service 2 is here.
    Receive(u16),
    /// Its release is, too.
    Complete(u16),
    /// Nothing but a sign of life.
    Ping,
    /// Asks for messages.
    Subscribe {
        /// What the answer names.
        packet_id: u16,
        /// By which filters.
        filters: Vec<String>,
        /// Highest quality of service.
        qos: u8,
    },
    /// Asks for no more messages.
    Unsubscribe {
        /// What the answer names.
        packet_id: u16,
        /// By which filter.
        filter: String,
    },
    /// Farewell; the session stays.
    Disconnect,
}

/// Why a connection is down, or does not come up.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The network.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No TLS with the broker.
    #[error(
        "no TLS with the broker: {0}; see that mqtt.ca is the authority of its certificate, that the certificate names the host \
         in mqtt.address, and that TLS is spoken there"
    )]
    Tls(io::Error),
    /// Bytes that are no packet of version 3.1.1.
    #[error("the broker sent what is not MQTT 3.1.1: {0}")]
    Three(rumqttc::mqttbytes::Error),
    /// Bytes that are no packet of version 5.
    #[error("the broker sent what is not MQTT 5: {0}")]
    Five(rumqttc::v5::mqttbytes::Error),
    /// A message whose topic is no text.
    #[error("the broker sent a topic that is not UTF-8")]
    Topic,
    /// The broker does not want the connection.
    #[error("the broker refuses the connection: {0}")]
    Refused(String),
    /// The broker does not want this client.
    #[error("the broker refuses the connection: {0}; see that it knows mqtt.username, mqtt.password and the client id")]
    Unknown(String),
    /// The broker ends the connection.
    #[error("the broker ended the connection: {0}")]
    Ended(String),
    /// Nothing came any more.
    #[error("the broker closed the connection")]
    Closed,
    /// No answer in time.
    #[error("the broker did not answer within {} s", CONNECT.as_secs())]
    Late,
}

impl Dialer {
    /// Reads what a connection needs from its configuration.
    ///
    /// # Errors
    /// When the authority's certificate can't be used.
    pub fn new(config: &MqttConfig, bridge: &str) -> anyhow::Result<Self> {
        let (host, port) = config.host_and_port().context("the address is not host:port")?;
        let password = || config.password.as_ref().map(settings::Secret::expose).unwrap_or_default().to_owned();
        Ok(Self {
            version: config.version,
            host: host.to_owned(),
            port,
            tls: config.ca.as_deref().map(tls).transpose()?,
            client_id: config.client_id.clone().unwrap_or_else(|| format!("hyperfactory-{bridge}-{}", config.name)),
            login: config.username.clone().map(|username| (username, password())),
            keep_alive: config.keep_alive.get(),
            session_expiry: config.session_expiry.map(settings::Period::get),
            receive_maximum: config.receive_maximum(),
        })
    }

    /// Connects, with a session that outlives the connection.
    ///
    /// # Errors
    /// [`WireError`].
    pub async fn connect(&self) -> Result<(Wire, Welcome), WireError> {
        tokio::time::timeout(CONNECT, self.connect_in_time()).await.map_err(|_| WireError::Late)?
    }

    async fn connect_in_time(&self) -> Result<(Wire, Welcome), WireError> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(tcp),
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone());
                let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
                Box::new(tls.connect(name, tcp).await.map_err(WireError::Tls)?)
            }
        };
        match self.version {
            Version::Three => self.greet_three(stream).await,
            Version::Five => self.greet_five(stream).await,
        }
    }

    async fn greet_three(&self, stream: Box<dyn Stream>) -> Result<(Wire, Welcome), WireError> {
        let limit = usize::try_from(LARGEST_PACKET).unwrap_or(usize::MAX);
        let mut framed = Framed::new(stream, v4::Codec { max_incoming_size: limit, max_outgoing_size: usize::MAX });
        let mut connect = v4::Connect::new(&self.client_id);
        connect.keep_alive = seconds(self.keep_alive);
        connect.clean_session = false;
        if let Some((username, password)) = &self.login {
            connect.set_login(username, password);
        }
        framed.send(v4::Packet::Connect(connect)).await.map_err(WireError::Three)?;
        match framed.next().await.ok_or(WireError::Closed)?.map_err(WireError::Three)? {
            v4::Packet::ConnAck(v4::ConnAck { code: v4::ConnectReturnCode::Success, session_present }) => {
                let welcome = Welcome { resumed: session_present, keep_alive: self.keep_alive };
                Ok((Wire(framed.map_codec(Codec::Three)), welcome))
            }
            v4::Packet::ConnAck(refused) => {
                use v4::ConnectReturnCode::{BadClientId, BadUserNamePassword, NotAuthorized};
                let unknown = matches!(refused.code, BadClientId | BadUserNamePassword | NotAuthorized);
                let refusal = if unknown { WireError::Unknown } else { WireError::Refused };
                Err(refusal(format!("{:?}", refused.code)))
            }
            _ => Err(WireError::Ended("its first packet is no CONNACK".into())),
        }
    }

    async fn greet_five(&self, stream: Box<dyn Stream>) -> Result<(Wire, Welcome), WireError> {
        let codec = v5::Codec { max_incoming_size: Some(LARGEST_PACKET), max_outgoing_size: None };
        let mut framed = Framed::new(stream, codec);
        let mut properties = v5::ConnectProperties::new();
        // Without it a session would end with its connection; this value is for ever.
        properties.session_expiry_interval =
            Some(self.session_expiry.map_or(u32::MAX, |expiry| u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX)));
        properties.receive_maximum = Some(self.receive_maximum);
        properties.max_packet_size = Some(LARGEST_PACKET);
        let connect = v5::Connect {
            keep_alive: seconds(self.keep_alive),
            client_id: self.client_id.clone(),
            clean_start: false,
            properties: Some(properties),
        };
        let login = self.login.as_ref().map(|(username, password)| v5::Login::new(username, password));
        framed.send(v5::Packet::Connect(connect, None, login)).await.map_err(WireError::Five)?;
        match framed.next().await.ok_or(WireError::Closed)?.map_err(WireError::Five)? {
            v5::Packet::ConnAck(v5::ConnAck { code: v5::ConnectReturnCode::Success, session_present, properties }) => {
                let told = properties.and_then(|told| told.server_keep_alive).filter(|told| *told > 0);
                let keep_alive = told.map_or(self.keep_alive, |told| Duration::from_secs(told.into()));
                let welcome = Welcome { resumed: session_present, keep_alive: keep_alive.min(self.keep_alive) };
                Ok((Wire(framed.map_codec(Codec::Five)), welcome))
            }
            v5::Packet::ConnAck(refused) => {
                let more = refused.properties.and_then(|told| told.reason_string);
                let more = more.map(|more| format!(", {more}")).unwrap_or_default();
                use v5::ConnectReturnCode::{BadUserNamePassword, ClientIdentifierNotValid, NotAuthorized};
                let unknown = matches!(refused.code, BadUserNamePassword | ClientIdentifierNotValid | NotAuthorized);
                let refusal = if unknown { WireError::Unknown } else { WireError::Refused };
                Err(refusal(format!("{:?}{more}", refused.code)))
            }
            _ => Err(WireError::Ended("its first packet is no CONNACK".into())),
        }
    }
}

fn seconds(time: Duration) -> u16 {
    u16::try_from(time.as_secs()).unwrap_or(u16::MAX)
}

fn tls(ca: &Path) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    let read = CertificateDer::pem_file_iter(ca).with_context(|| format!("cannot read {}", ca.display()))?;
    for certificate in read {
        roots.add(certificate.with_context(|| format!("{} is not a certificate in PEM", ca.display()))?)?;
    }
    anyhow::ensure!(!roots.is_empty(), "{} holds no certificate in PEM", ca.display());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(TlsConnector::from(Arc::new(tls.with_root_certificates(roots).with_no_client_auth())))
}

impl Wire {
    /// Waits for the next packet. Given up before it is there, it loses nothing.
    ///
    /// # Errors
    /// [`WireError`]; the connection is of no use any more.
    pub async fn read(&mut self) -> Result<Incoming, WireError> {
        self.0.next().await.ok_or(WireError::Closed)?
    }

    /// The next packet, if it is there.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_now(&mut self) -> Result<Option<Incoming>, WireError> {
        self.read().now_or_never().transpose()
    }

    /// Writes packets together.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn write(&mut self, packets: impl IntoIterator<Item = Outgoing>) -> Result<(), WireError> {
        for packet in packets {
            self.0.feed(packet).await?;
        }
        self.0.flush().await
    }
}
