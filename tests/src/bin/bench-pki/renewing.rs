//! Nodes that renew within their sessions, beside CFSSL, which signs over connections that stay as well.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use hyperfactory_tests::report::{Report, Target};
use hyperfactory_tests::rig::Hub;
use node::{Identity, IdentityStore};
use pki::PrivateKey;
use pki::tls::{node_config, system_clock};
use protocol::message::{NodeFacts, SpoolRange, ToNode};
use protocol::session::{NodeOutput, NodeSession};
use protocol::{Timestamp, frame, version};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use transport::{CloseCode, Connection, Endpoint, FrameReader, FrameWriter};

use crate::{cfssl, core};

/// Renewals of each node. The hub gives five certificates that are not used, and no more within an hour.
const ROUNDS: usize = 2;
/// Nodes that connect at once, and nodes that wait for a certificate at once.
const AT_ONCE: usize = 32;

pub(crate) async fn measure(
    report: &mut Report,
    engine: &str,
    hub: &mut Hub,
    stores: &[IdentityStore],
    spend: Duration,
) -> Result<()> {
    let mut sessions = open(hub, stores).await?;
    let process = hub.process()?.id();
    let requests = (0..ROUNDS * sessions.len())
        .map(|_| PrivateKey::generate()?.certificate_request())
        .collect::<Result<Vec<_>, pki::KeyError>>()?;
    let (before, began) = (core::spent(process)?, Instant::now());
    for requests in requests.chunks(sessions.len()) {
        sessions = renew(sessions, requests).await?;
    }
    let (spent, elapsed) = (core::spent(process)? - before, began.elapsed().as_secs_f64());
    for session in sessions {
        session.connection.close(CloseCode::Done, "");
    }
    let (count, theirs) = (requests.len() as f64, cfssl::signed_per_second(spend).await?);
    let name = format!("{engine}: renewals over open sessions");
    report.beside(&name, "1/s of a core", count / spent, "cfssl, recorded in SQLite", theirs, Target::More);
    report.figure(&format!("{engine}: … by the clock"), "1/s", count / elapsed, Target::More);
    Ok(())
}

/// A session that does nothing but renew.
struct Session {
    connection: Connection,
    machine: NodeSession,
    writer: FrameWriter,
    reader: FrameReader,
    sequence: u64,
}

async fn open(hub: &Hub, stores: &[IdentityStore]) -> Result<Vec<Session>> {
    let endpoint = Endpoint::client()?;
    let mut connecting = Bounded::new();
    for store in stores {
        let identity = store.load()?.context("a node without an identity")?;
        let (endpoint, address) = (endpoint.clone(), hub.endpoints().quic);
        connecting.spawn(async move { Session::open(&endpoint, address, &identity).await }).await?;
    }
    connecting.finish().await
}

async fn renew(sessions: Vec<Session>, requests: &[Vec<u8>]) -> Result<Vec<Session>> {
    let mut renewing = Bounded::new();
    for (mut session, request) in sessions.into_iter().zip(requests.iter().cloned()) {
        renewing
            .spawn(async move {
                session.renew(request).await?;
                Ok(session)
            })
            .await?;
    }
    renewing.finish().await
}

impl Session {
    async fn open(endpoint: &Endpoint, hub: std::net::SocketAddr, identity: &Identity) -> Result<Self> {
        let credential = &identity.credential;
        let tls = node_config(credential.chain().to_vec(), credential.key(), &identity.roots, system_clock())?;
        let connection = endpoint.connect(hub, tls).await?;
        let (writer, reader) = connection.open(frame::MAX_CONTROL).await?;
        let spool = SpoolRange { epoch: rand::random(), first: 1, last: 0 };
        let pins = identity.roots.iter().map(pki::trust::pin).collect::<Result<Vec<_>, _>>()?;
        let (machine, hello) = NodeSession::open(version::SPOKEN, NodeFacts::default(), 1, spool, &pins, now());
        let mut session = Self { connection, machine, writer, reader, sequence: credential.sequence() };
        session.writer.send(&hello).await?;
        session.until(|output| matches!(output, NodeOutput::Welcomed(_))).await?;
        Ok(session)
    }

    async fn renew(&mut self, request: Vec<u8>) -> Result<()> {
        let message = self.machine.renew(request, self.sequence, now()).context("the session is over")?;
        self.writer.send(&message).await?;
        self.until(|output| matches!(output, NodeOutput::Renewed { .. })).await
    }

    /// Reads until the hub says what is `wanted`.
    async fn until(&mut self, wanted: impl Fn(&NodeOutput) -> bool) -> Result<()> {
        loop {
            let message: ToNode = self.reader.recv().await?.context("the hub ended the session")?;
            for output in self.machine.receive(message, now())? {
                match output {
                    NodeOutput::Send(answer) => self.writer.send(&answer).await?,
                    NodeOutput::Refused(refusal) | NodeOutput::RenewalRefused(refusal) => bail!("{}", refusal.message),
                    output if wanted(&output) => return Ok(()),
                    _ => {}
                }
            }
        }
    }
}

/// Tasks of which so many run at once.
struct Bounded<T> {
    permits: Arc<Semaphore>,
    tasks: JoinSet<Result<T>>,
}

impl<T: Send + 'static> Bounded<T> {
    fn new() -> Self {
        Self { permits: Arc::new(Semaphore::new(AT_ONCE)), tasks: JoinSet::new() }
    }

    async fn spawn(&mut self, task: impl Future<Output = Result<T>> + Send + 'static) -> Result<()> {
        let permit = Arc::clone(&self.permits).acquire_owned().await?;
        self.tasks.spawn(async move {
            let _permit = permit;
            task.await
        });
        Ok(())
    }

    async fn finish(mut self) -> Result<Vec<T>> {
        let mut results = Vec::new();
        while let Some(result) = self.tasks.join_next().await {
            results.push(result??);
        }
        Ok(results)
    }
}

fn now() -> Timestamp {
    SystemTime::now().into()
}
