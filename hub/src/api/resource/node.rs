//! Nodes: what they are, how they are, and what needs somebody.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Bridge, Figures, KafkaAccess, Service, ServiceCounts, Time};

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Runs inside a tenant's stack.
    Agent,
    /// Runs at a customer's plant.
    Bridge,
}

impl Kind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        protocol::NodeKind::from(self).as_str()
    }
}

impl From<protocol::NodeKind> for Kind {
    fn from(kind: protocol::NodeKind) -> Self {
        match kind {
            protocol::NodeKind::Agent => Self::Agent,
            protocol::NodeKind::Bridge => Self::Bridge,
        }
    }
}

impl From<Kind> for protocol::NodeKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Agent => Self::Agent,
            Kind::Bridge => Self::Bridge,
        }
    }
}

/// Whether a node has a live session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PresenceState {
    /// It has one.
    Online,
    /// It had one, and it broke off.
    Lost,
    /// It had one, and said goodbye.
    Left,
    /// It enrolled and never opened one.
    NeverSeen,
}

/// Presence and when it began.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Presence {
    /// Whether it has a session.
    pub state: PresenceState,
    /// Since when it is in this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Address and port the session comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// Why it said goodbye.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How much something needs somebody; greater is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttentionLevel {
    /// Nothing to do.
    Ok,
    /// Worth knowing.
    Notice,
    /// Look today.
    Warning,
    /// Look now.
    Critical,
}

/// How much a node needs somebody, and why.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Attention {
    /// The worst of its reasons.
    pub level: AttentionLevel,
    /// Worst first.
    pub reasons: Vec<Reason>,
}

/// One thing that needs attention.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Reason {
    /// How urgent.
    pub level: AttentionLevel,
    /// The alert rule behind it.
    pub rule: String,
    /// The service, or empty for the node itself.
    pub subject: String,
    /// What it is, in a sentence.
    pub message: String,
}

/// A node, as lists show it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Node {
    /// UUIDv7.
    pub id: String,
    /// Whose it is.
    pub tenant: String,
    /// Agent or bridge.
    pub kind: Kind,
    /// The name it enrolled with.
    pub name: String,
    /// Whether it has a session.
    pub presence: Presence,
    /// How much it needs somebody.
    pub attention: Attention,
    /// When the hub last heard from it.
    pub last_seen: Option<Time>,
    /// When it enrolled.
    pub enrolled_at: Time,
    /// When its trust was taken away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Time>,
    /// What it says about its host.
    pub host: Host,
    /// Its newest figures.
    pub figures: Figures,
    /// Its services, counted.
    pub service_counts: ServiceCounts,
    /// A bridge's way to Kafka.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Bridge>,
    /// What a bridge may do at its tenant's brokers, once it has a Kafka certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka_access: Option<KafkaAccess>,
}

/// What a node says about its host; empty text where it has not said.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Host {
    /// Host name.
    pub hostname: String,
    /// Operating system.
    pub os: String,
    /// Kernel version.
    pub kernel: String,
    /// Processor architecture.
    pub architecture: String,
    /// Processors.
    pub cpus: u32,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// The node's own software and version.
    pub software: String,
    /// When the host started.
    pub booted_at: Option<Time>,
}

/// A node with everything the hub knows now.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NodeDetail {
    /// What lists show.
    #[serde(flatten)]
    pub node: Node,
    /// The container engine.
    pub engine: Engine,
    /// Every service of every stack, by stack, service and number.
    pub services: Vec<Service>,
    /// The certificate it connects with.
    pub certificate: Option<Certificate>,
    /// Its clock against the hub's.
    pub clock: Clock,
    /// Its durable queue.
    pub spool: Spool,
    /// Its live session.
    pub session: Option<String>,
}

/// What is known of the container engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EngineState {
    /// The node has not said.
    Unknown,
    /// Answering.
    Connected,
    /// No engine on this host.
    Absent,
    /// The node may not speak to it.
    PermissionDenied,
    /// It is there and does not answer.
    Unreachable,
}

/// The container engine.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Engine {
    /// Whether it answers.
    pub state: EngineState,
    /// Its version.
    pub version: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// A node's certificate.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Certificate {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// When it ends.
    pub not_after: Time,
}

/// A node's clock against the hub's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClockState {
    /// Not measured.
    Unknown,
    /// Within 2 s of the hub.
    Synchronized,
    /// Ahead of the hub.
    Ahead,
    /// Behind the hub.
    Behind,
}

/// What the session's handshake measured.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Clock {
    /// The named state.
    pub state: ClockState,
    /// Node minus hub, ms.
    pub offset_ms: Option<i64>,
    /// Round trip of the measurement, ms; the offset is true to within half of it.
    pub delay_ms: Option<u64>,
}

/// A node's durable queue.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Spool {
    /// Batches the hub has not acknowledged.
    pub pending_batches: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes it may take.
    pub capacity_bytes: u64,
    /// Batches that were lost, all told.
    pub lost_batches: u64,
    /// What is wrong: `disk_full`, `corrupt`, `io`; absent when all is well.
    pub fault: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}
