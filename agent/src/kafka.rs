//! What bridges may do at the tenant's Kafka brokers: kept as the hub wants it, over the Kafka protocol.

mod wire;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::NodeId;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config::ConfigError;
use wire::{CLUSTER, Entry, IDEMPOTENT_WRITE, Kind, WRITE, WireError};

/// How long a broker has for all that is asked of it.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest answer; a bridge has a handful of rights, each of a hundred bytes.
const LONGEST: u32 = 1 << 20;

/// The table `[kafka]`: the tenant's brokers, where the hub may have this agent say what bridges may do. None, unless somebody
/// names them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct KafkaConfig {
    /// `host:port` of brokers; the first that answers is asked.
    pub brokers: Vec<String>,
    /// Authority of the brokers' certificates, in PEM; with it the connection is TLS.
    pub ca: Option<PathBuf>,
    /// The agent's certificate, in PEM: of a principal that may change access lists.
    pub certificate: Option<PathBuf>,
    /// Its key, in PEM.
    pub key: Option<PathBuf>,
}

/// Access lists that could not be brought to what is wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    /// A file of the configuration.
    #[error("{} can't be used as it is configured in [kafka]: {why}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// None of the brokers could be asked.
    #[error("no broker could be asked: {0}")]
    Unreachable(String),
    /// A broker says no.
    #[error(transparent)]
    Refused(#[from] WireError),
    /// A broker's connection.
    #[error(transparent)]
    Line(#[from] std::io::Error),
    /// It said yes and did otherwise.
    #[error("the broker took the access list and does not show it: does it authorize its clients at all?")]
    NotKept,
}

/// What changed at the brokers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    added: Vec<String>,
    removed: Vec<String>,
}

impl KafkaConfig {
    /// Whether this agent may change access lists.
    pub fn is_on(&self) -> bool {
        !self.brokers.is_empty()
    }

    pub(crate) fn checked(&self) -> Result<(), ConfigError> {
        let wrong = |key, why: String| Err(ConfigError::Value { key, why });
        for broker in &self.brokers {
            let good =
                broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            if !good {
                return wrong("kafka.brokers", format!("{broker:?} is not host:port, like \"redpanda:9092\""));
            }
        }
        if self.certificate.is_some() != self.key.is_some() {
            return wrong("kafka.certificate", "name both kafka.certificate and kafka.key, or neither".into());
        }
        if self.certificate.is_some() && self.ca.is_none() {
            return wrong("kafka.ca", "name the authority of the brokers' certificates too".into());
        }
        Ok(())
    }

    /// Has the brokers allow `bridge` to write to `topics` (a name, or a beginning and `*`), and nothing else. What they forbid
    /// it stays forbidden.
    ///
    /// # Errors
    /// [`AccessError`]: some of it may have been done.
    pub(crate) async fn allow(&self, bridge: NodeId, topics: &[String]) -> Result<Changes, AccessError> {
        let tls = self.tls()?;
        let mut troubles = Vec::new();
        for broker in &self.brokers {
            match timeout(PATIENCE, self.at(broker, tls.as_ref(), bridge, topics)).await {
                Ok(Err(AccessError::Line(error))) => troubles.push(format!("{broker}: {error}")),
                Ok(settled) => return settled,
                Err(_) => troubles.push(format!("{broker} gave no answer within {} s", PATIENCE.as_secs())),
            }
        }
        Err(AccessError::Unreachable(troubles.join("; ")))
    }

    async fn at(
        &self,
        broker: &str,
        tls: Option<&TlsConnector>,
        bridge: NodeId,
        topics: &[String],
    ) -> Result<Changes, AccessError> {
        let mut socket = TcpStream::connect(broker).await?;
        let Some(tls) = tls else { return settle(&mut socket, bridge, topics).await };
        let host = broker.rsplit_once(':').map_or(broker, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
        settle(&mut tls.connect(name, socket).await?, bridge, topics).await
    }

    fn tls(&self) -> Result<Option<TlsConnector>, AccessError> {
        let Some(ca) = &self.ca else { return Ok(None) };
        let mut roots = RootCertStore::empty();
        for root in certificates(ca)? {
            roots.add(root).map_err(|error| unusable(ca, &error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(ca, &error))?
            .with_root_certificates(roots);
        let config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let own = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error))?;
                let shown = certificates(certificate)?;
                config.with_client_auth_cert(shown, own).map_err(|error| unusable(certificate, &error))?
            }
            _ => config.with_no_client_auth(),
        };
        Ok(Some(TlsConnector::from(Arc::new(config))))
    }
}

impl std::fmt::Display for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&*self.added, &*self.removed) {
            ([], []) => f.write_str("the access list was as it should be"),
            (added, []) => write!(f, "allowed {}", added.join(", ")),
            ([], removed) => write!(f, "took away {}", removed.join(", ")),
            (added, removed) => write!(f, "allowed {}; took away {}", added.join(", "), removed.join(", ")),
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    let read = CertificateDer::pem_file_iter(path).and_then(|read| read.collect::<Result<Vec<_>, _>>());
    read.map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, why: &dyn std::fmt::Display) -> AccessError {
    AccessError::File { path: path.to_owned(), why: why.to_string() }
}

/// What brokers call the bridge by its certificate, unless they map names otherwise.
fn principal(bridge: NodeId) -> String {
    format!("User:CN={}", pki::kafka_principal(bridge))
}

/// The rights that make a bridge able to write to these topics.
fn wanted(bridge: NodeId, topics: &[String]) -> BTreeSet<Entry> {
    let principal = principal(bridge);
    let right = |kind, name: &str, prefixed, operation| Entry {
        kind,
        name: name.to_owned(),
        prefixed,
        principal: principal.clone(),
        host: "*".into(),
        operation,
        allows: true,
    };
    let topic = |topic: &String| match topic.strip_suffix('*') {
        Some(prefix) => right(Kind::Topic, prefix, true, WRITE),
        None => right(Kind::Topic, topic, false, WRITE),
    };
    let mut rights: BTreeSet<Entry> = topics.iter().map(topic).collect();
    if !rights.is_empty() {
        rights.insert(right(Kind::Cluster, CLUSTER, false, IDEMPOTENT_WRITE));
    }
    rights
}

async fn settle(
    line: &mut (impl AsyncRead + AsyncWrite + Unpin),
    bridge: NodeId,
    topics: &[String],
) -> Result<Changes, AccessError> {
    let (wanted, principal) = (wanted(bridge, topics), principal(bridge));
    let have = allowed(line, 1, &principal).await?;
    let missing: Vec<&Entry> = wanted.difference(&have).collect();
    let more: Vec<&Entry> = have.difference(&wanted).collect();
    if missing.is_empty() && more.is_empty() {
        return Ok(Changes::default());
    }
    // What is to stay goes on without a gap.
    if !missing.is_empty() {
        wire::created(&ask(line, &wire::create(2, &missing)).await?, 2)?;
    }
    if !more.is_empty() {
        wire::deleted(&ask(line, &wire::delete(3, &more)).await?, 3)?;
    }
    if allowed(line, 4, &principal).await? != wanted {
        return Err(AccessError::NotKept);
    }
    let named = |entries: &[&Entry]| entries.iter().map(ToString::to_string).collect();
    Ok(Changes { added: named(&missing), removed: named(&more) })
}

/// What the broker allows a principal.
async fn allowed(
    line: &mut (impl AsyncRead + AsyncWrite + Unpin),
    id: i32,
    principal: &str,
) -> Result<BTreeSet<Entry>, AccessError> {
    let mut entries = wire::described(&ask(line, &wire::describe(id, principal)).await?, id)?;
    entries.retain(|entry| entry.allows);
    Ok(entries)
}

async fn ask(line: &mut (impl AsyncRead + AsyncWrite + Unpin), frame: &[u8]) -> std::io::Result<Vec<u8>> {
    line.write_all(frame).await?;
    line.flush().await?;
    let length = line.read_u32().await?;
    if length > LONGEST {
        return Err(std::io::Error::other("its answer is too long for one of Kafka"));
    }
    let mut answer = vec![0; length as usize];
    line.read_exact(&mut answer).await?;
    Ok(answer)
}
