//! A peer that breaks the rules at a running hub's real door, and the good node that must not notice.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Agent, Hub};
use node::{Applicant, Clock, Identity, IdentityStore};
use pki::tls;
use pki::{CertificateDer, JoinToken, PrivateKey};
use prost::DecodeError;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, skip_field};
use protocol::message::{NodeFacts, SpoolRange, ToHub, ToNode, Welcome, to_node};
use protocol::session::NodeSession;
use protocol::{NodeKind, Sequence, SpoolEpoch, Timestamp, version};
use transport::{Closed, Connection, Endpoint, FrameReader, FrameWriter};

use super::{agent, coverage, delivers, running};

/// The intruder's spool.
pub(super) const EPOCH: u64 = 7;
/// Larger than any limit of the hub, so that this side does not refuse for it.
pub(super) const NO_LIMIT: usize = 3 * 1024 * 1024;
/// How long an intruder tries what must work.
const PATIENCE: Duration = Duration::from_secs(60);

/// A hub with the tenants acme and other, and a node of other's in session.
pub(super) struct Scene {
    pub(super) hub: Hub,
    pub(super) agent: Agent,
    pub(super) node: String,
    session: String,
}

impl Scene {
    pub(super) fn new() -> Result<Self> {
        let hub = Hub::start()?;
        hub.tenant("acme")?;
        hub.tenant("other")?;
        let (agent, node) = running(&hub, agent()?, "other")?;
        let session = session(&hub, &node)?;
        Ok(Self { hub, agent, node, session })
    }

    /// Asserts that the good node still has its session, that its batches go on, and that the hub is whole.
    pub(super) fn undisturbed(&mut self) -> Result<()> {
        delivers(&self.hub, &self.node)?;
        assert_eq!(session(&self.hub, &self.node)?, self.session, "the good node lost its session");
        assert_eq!(coverage(&self.hub, &self.node)?["lost"], 0);
        let hub = self.hub.process()?;
        hub.check()?;
        let log = hub.log();
        assert!(!log.contains("panicked"), "{log}");
        Ok(())
    }

    /// A node of acme's that enrolled as any other.
    pub(super) async fn intruder(&self) -> Result<Intruder> {
        let token: JoinToken = self.hub.join_token("acme")?.parse()?;
        let endpoint = Endpoint::client()?;
        let applicant = Applicant { kind: NodeKind::Agent, name: "intruder".into(), software: "intruder 1".into() };
        let store = IdentityStore::memory();
        let identity = node::enroll(&endpoint, &store, &token, &applicant, &Clock::system(), PATIENCE).await?;
        Ok(Intruder { endpoint, identity })
    }
}

fn session(hub: &Hub, node: &str) -> Result<String> {
    let node = hub.node(node)?;
    Ok(node["session"].as_str().with_context(|| format!("no session: {node}"))?.to_owned())
}

/// An enrolled node that does as it likes.
pub(super) struct Intruder {
    pub(super) endpoint: Endpoint,
    pub(super) identity: Identity,
}

impl Intruder {
    /// Its own id.
    pub(super) fn node(&self) -> String {
        self.identity.node.to_string()
    }

    /// A connection with its own certificate.
    pub(super) async fn connect(&self) -> Result<Connection> {
        let credential = &self.identity.credential;
        self.connect_as(credential.chain().to_vec(), credential.key()).await
    }

    /// A connection with any certificate.
    pub(super) async fn connect_as(&self, chain: Vec<CertificateDer<'static>>, key: &PrivateKey) -> Result<Connection> {
        let config = tls::node_config(chain, key, &self.identity.roots, tls::system_clock())?;
        Ok(self.endpoint.connect(self.identity.hub.parse()?, config).await?)
    }

    /// A connection for a session without any certificate.
    pub(super) async fn connect_without(&self) -> Result<Connection> {
        let credential = &self.identity.credential;
        let (roots, clock) = (&self.identity.roots, tls::system_clock());
        let mut config = (*tls::node_config(credential.chain().to_vec(), credential.key(), roots, clock)?).clone();
        let anonymous = tls::enroll_config(pki::trust::pin(&roots[0])?, tls::system_clock())?;
        config.client_auth_cert_resolver = Arc::clone(&anonymous.client_auth_cert_resolver);
        Ok(self.endpoint.connect(self.identity.hub.parse()?, Arc::new(config)).await?)
    }

    /// A session in order, with an empty spool.
    pub(super) async fn session(&self) -> Result<Session> {
        let connection = self.connect().await?;
        let (mut writer, mut reader) = connection.open(NO_LIMIT).await?;
        writer.send(&hello()).await?;
        let answer: ToNode = reader.recv().await?.context("no answer")?;
        let Some(to_node::Message::Welcome(welcome)) = answer.message else { anyhow::bail!("{answer:?}") };
        Ok(Session { connection, writer, reader, welcome })
    }
}

/// A session that was welcomed.
pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) writer: FrameWriter,
    pub(super) reader: FrameReader,
    pub(super) welcome: Welcome,
}

impl Session {
    /// The answer to something on the control stream.
    pub(super) async fn answer(&mut self) -> Result<to_node::Message> {
        answer(&mut self.reader).await
    }
}

/// A Hello with an empty spool.
pub(super) fn hello() -> ToHub {
    let spool = SpoolRange::new(SpoolEpoch(EPOCH), Sequence(1), Sequence(0));
    let facts = NodeFacts { hostname: "intruder".into(), ..NodeFacts::default() };
    let now: Timestamp = SystemTime::now().into();
    NodeSession::open(version::SPOKEN, facts, 1, spool, &[], now).1
}

/// Waits until the hub has ended the connection, and says how.
pub(super) async fn end(connection: &Connection) -> Result<Closed> {
    let closed = tokio::time::timeout(PATIENCE, connection.closed()).await.context("the hub leaves it open")?;
    ensure!(closed.by_peer, "{closed}");
    Ok(closed)
}

/// A frame of any bytes, under any length.
#[derive(Debug, Default)]
pub(super) struct Raw {
    /// The length that the frame says it has.
    pub(super) announced: usize,
    /// What really comes.
    pub(super) bytes: Vec<u8>,
}

impl Raw {
    /// One whose length is right.
    pub(super) fn of(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self { announced: bytes.len(), bytes }
    }
}

impl prost::Message for Raw {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.bytes);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        skip_field(wire_type, tag, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        self.announced
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The next message of the hub's; the roots it tells a node that named none in its Hello are no answer.
pub(super) async fn answer(reader: &mut FrameReader) -> Result<to_node::Message> {
    loop {
        let answer: ToNode = reader.recv().await?.context("the hub ended the stream")?;
        match answer.message.context("an answer of an unknown kind")? {
            to_node::Message::Trust(_) => {}
            answer => return Ok(answer),
        }
    }
}
