//! The fleet as operators see it: the plain values that the API serves and the dashboard shows.

use crate::access;
use protocol::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, schema::SchemaFormat, schema::Type};
use utoipa::{PartialSchema, ToSchema};

/// A point in time; RFC 3339 in UTC with milliseconds on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl PartialSchema for Time {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::Custom("date-time".into())))
            .description(Some("RFC 3339, UTC"))
            .into()
    }
}

impl ToSchema for Time {
    fn name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }
}

impl From<Timestamp> for Time {
    fn from(at: Timestamp) -> Self {
        Self(at)
    }
}

/// One page of a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Page<T: ToSchema> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// Pass as `cursor` for the page after this one; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// A customer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Tenant {
    /// The slug that never changes.
    pub id: String,
    /// The name people read.
    pub name: String,
    /// When it was created.
    pub created_at: Time,
    /// Nodes by how much they need somebody.
    pub nodes: NodeCounts,
}

/// How many nodes are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct NodeCounts {
    /// All of them.
    pub total: u32,
    /// With a live session.
    pub online: u32,
    /// Without one, after it broke off.
    pub lost: u32,
    /// Without one, after saying goodbye.
    pub left: u32,
    /// Enrolled, but never connected.
    pub never_seen: u32,
    /// Attention critical.
    pub critical: u32,
    /// Attention warning.
    pub warning: u32,
    /// Attention notice.
    pub notice: u32,
}

impl NodeCounts {
    /// Counts one more node.
    pub fn add(&mut self, node: &Node) {
        self.total += 1;
        match node.presence.state {
            PresenceState::Online => self.online += 1,
            PresenceState::Lost => self.lost += 1,
            PresenceState::Left => self.left += 1,
            PresenceState::NeverSeen => self.never_seen += 1,
        }
        match node.attention.level {
            AttentionLevel::Critical => self.critical += 1,
            AttentionLevel::Warning => self.warning += 1,
            AttentionLevel::Notice => self.notice += 1,
            AttentionLevel::Ok => {}
        }
    }

    /// Counts all of `nodes`.
    pub fn of<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Self {
        let mut counts = Self::default();
        nodes.into_iter().for_each(|node| counts.add(node));
        counts
    }
}

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

/// An amount of something bounded, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Used {
    /// Bytes in use.
    pub used: f64,
    /// Bytes there are.
    pub total: f64,
}

impl Used {
    /// The share in use, from 0 to 1.
    pub fn ratio(self) -> f64 {
        if self.total > 0.0 { (self.used / self.total).clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// One file system.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Disk {
    /// Where it is mounted.
    pub mount: String,
    /// How full it is.
    #[serde(flatten)]
    pub space: Used,
}

/// The newest figures of a node's host; absent ones were not measured.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Figures {
    /// When they were measured, by the node's clock.
    pub at: Option<Time>,
    /// Share of all CPUs that is busy, from 0 to 1.
    pub cpu: Option<f64>,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: Option<[f64; 3]>,
    /// Memory.
    pub memory: Option<Used>,
    /// Swap, when there is any.
    pub swap: Option<Used>,
    /// File systems, fullest first.
    pub disks: Vec<Disk>,
    /// Seconds since the host started.
    pub uptime_seconds: Option<f64>,
    /// The agent's own memory, bytes.
    pub agent_memory: Option<f64>,
}

/// How many of a node's services are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct ServiceCounts {
    /// All of them.
    pub total: u32,
    /// Running and not failing a health check.
    pub running: u32,
    /// Failing a health check.
    pub unhealthy: u32,
    /// Being restarted by the engine.
    pub restarting: u32,
    /// Created, paused, exited or dead.
    pub stopped: u32,
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

/// What a service's container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Not one this hub knows.
    Unknown,
    /// Never started.
    Created,
    /// Running.
    Running,
    /// Paused.
    Paused,
    /// Waiting to be started again after it failed.
    Restarting,
    /// Being removed.
    Removing,
    /// Ended.
    Exited,
    /// Could not be ended properly.
    Dead,
}

/// What a service's health check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceHealth {
    /// It has no health check.
    None,
    /// Not decided.
    Starting,
    /// Passing.
    Healthy,
    /// Failing.
    Unhealthy,
}

/// One container of a Compose service.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Service {
    /// Compose project.
    pub stack: String,
    /// Compose service.
    pub service: String,
    /// Container number.
    pub number: u32,
    /// What it is doing.
    pub state: ServiceState,
    /// What its health check says.
    pub health: ServiceHealth,
    /// Last output of a failing health check.
    pub health_output: String,
    /// How much it needs somebody.
    pub attention: AttentionLevel,
    /// Restarts by the engine.
    pub restart_count: u32,
    /// Exit code of the last run that ended.
    pub exit_code: Option<i32>,
    /// The kernel ended the last run for want of memory.
    pub oom_killed: bool,
    /// Image reference.
    pub image: String,
    /// Image digest.
    pub image_digest: String,
    /// When the run began.
    pub started_at: Option<Time>,
    /// When the last run ended.
    pub finished_at: Option<Time>,
    /// When the engine reported the last change.
    pub changed_at: Option<Time>,
    /// CPUs in use (1 is one whole CPU).
    pub cpu: Option<f64>,
    /// Memory in use, bytes.
    pub memory: Option<f64>,
    /// Memory it may use, bytes.
    pub memory_limit: Option<f64>,
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

/// The proof that no batch of one spool epoch is missing.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Coverage {
    /// The spool's life, hexadecimal.
    pub epoch: String,
    /// When its first batch came.
    pub opened_at: Time,
    /// First number that counts; those before it were stored, and deleted when their time was over.
    pub first: u64,
    /// The last number the hub has acknowledged.
    pub through: u64,
    /// Batches stored, each once.
    pub stored: u64,
    /// Batches the node reported lost.
    pub lost: u64,
    /// Every number from `first` to `through` is stored or reported lost, and none is there twice.
    pub complete: bool,
    /// Numbers that are neither stored nor reported lost: first and last of each gap.
    pub missing: Vec<(u64, u64)>,
    /// Numbers that are there twice: first and last of each run.
    pub doubled: Vec<(u64, u64)>,
    /// Which numbers were lost, and why.
    pub lost_ranges: Vec<LostRange>,
}

/// Numbers a node could not deliver.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LostRange {
    /// First number lost.
    pub first: u64,
    /// Last number lost.
    pub last: u64,
    /// Why: `overflow`, `corrupt`, `disk_full`, …
    pub reason: String,
}

/// Points of one series.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Series {
    /// Metric name.
    pub metric: String,
    /// What of: "" for the host itself, an interface, a mount point, `stack/service/number`.
    pub target: String,
    /// Unit of the values: `ratio`, `count`, `bytes`, `seconds`; of counters, that per second: `bytes/s`, `cpus`.
    pub unit: String,
    /// In order of time.
    pub points: Vec<Point>,
}

/// What was measured in one step of time.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Point {
    /// When the last of it was measured, ms since the Unix epoch.
    pub at: i64,
    /// The mean.
    pub mean: f64,
    /// The smallest.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

/// Points of one or more series of a node.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct History {
    /// Start of the range.
    pub from: Time,
    /// End of the range.
    pub to: Time,
    /// The time one point stands for, ms.
    pub step_ms: u64,
    /// The series, by metric and target.
    pub series: Vec<Series>,
}

/// Something that went wrong, until it ended.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Alert {
    /// Number.
    pub id: i64,
    /// Which rule: `node.lost`, `service.unhealthy`, …
    pub rule: String,
    /// How bad.
    pub severity: AttentionLevel,
    /// Whose.
    pub tenant: String,
    /// Which node.
    pub node: String,
    /// That node's name.
    pub node_name: String,
    /// What of the node: a service, or empty.
    pub subject: String,
    /// What is wrong and what to do.
    pub message: String,
    /// When it began.
    pub opened_at: Time,
    /// When it ended.
    pub closed_at: Option<Time>,
}

/// Who did what.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AuditEntry {
    /// Number; grows.
    pub id: i64,
    /// When.
    pub at: Time,
    /// Who.
    pub actor: String,
    /// With which credential: the id of an API token.
    pub credential: Option<String>,
    /// What, e.g. `token.created`.
    pub action: String,
    /// In which tenant.
    pub tenant: Option<String>,
    /// To what.
    pub subject: String,
    /// More about it.
    #[schema(value_type = Object)]
    pub detail: serde_json::Value,
    /// From where.
    pub remote: Option<String>,
    /// SHA-256 over all of it and the hash of the entry before it, in hexadecimal.
    pub hash: String,
}

/// The audit log's newest entry: it stands for the whole log up to there.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AuditHead {
    /// Its number.
    pub id: i64,
    /// Its hash, in hexadecimal.
    pub hash: String,
    /// When it was the newest, ms since the Unix epoch.
    pub at_ms: i64,
}

/// What became of a join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenState {
    /// Can be used once.
    Open,
    /// Was used.
    Used,
    /// Was not used in time.
    Expired,
}

/// A join token, without its secret.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Token {
    /// Its id.
    pub id: String,
    /// For which tenant.
    pub tenant: String,
    /// For which kind of node.
    pub kind: Kind,
    /// The node's name, where the token fixes it.
    pub name: Option<String>,
    /// What became of it.
    pub state: TokenState,
    /// When it was made.
    pub created_at: Time,
    /// Until when it can be used.
    pub expires_at: Time,
    /// Who made it.
    pub created_by: String,
    /// Which node used it.
    pub node: Option<String>,
}

/// A fresh join token: the only time its secret is shown.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NewToken {
    /// What it is for.
    #[serde(flatten)]
    pub info: Token,
    /// The one-time string, `hfj_…`.
    pub token: String,
    /// The exact command to run on the new node's host.
    pub command: String,
}

/// What a person or program may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Read.
    Viewer,
    /// Read, and make join tokens.
    Operator,
    /// Everything.
    Admin,
}

/// An API token, without its secret.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ApiToken {
    /// Its id.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The only tenant it may see, when it is bound to one.
    pub tenant: Option<String>,
    /// When it was made.
    pub created_at: Time,
    /// By whom.
    pub created_by: String,
    /// When it ends by itself.
    pub expires_at: Option<Time>,
    /// When it was revoked.
    pub revoked_at: Option<Time>,
}

/// A fresh API token: the only time its secret is shown.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NewApiToken {
    /// What it may do.
    #[serde(flatten)]
    pub info: ApiToken,
    /// The secret, `hft_…`.
    pub token: String,
}

impl Role {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        access::Role::from(self).as_str()
    }
}

impl From<access::Role> for Role {
    fn from(role: access::Role) -> Self {
        match role {
            access::Role::Viewer => Self::Viewer,
            access::Role::Operator => Self::Operator,
            access::Role::Admin => Self::Admin,
        }
    }
}

impl From<Role> for access::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Viewer => Self::Viewer,
            Role::Operator => Self::Operator,
            Role::Admin => Self::Admin,
        }
    }
}
