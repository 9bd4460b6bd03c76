//! One node as a page shows it.

use std::net::SocketAddr;
use std::sync::Arc;

use pki::NodeIdentity;
use pki::authority::BACKDATE;
use protocol::message::{Engine, NodeFacts, NodeStatus, ServiceKey};
use protocol::{NodeId, NodeKind, SessionId, TenantId, Timestamp};

use crate::kafka_access::Access;
use crate::words::words;

use super::{Latest, Member, Report, Services};

/// A node, as last seen. Cheap to copy: its large parts are shared.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Its id.
    pub node: NodeId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What it is.
    pub kind: NodeKind,
    /// Its name, unique in the tenant.
    pub name: Arc<str>,
    /// When it enrolled.
    pub enrolled_at: Timestamp,
    /// When its trust was taken away.
    pub revoked_at: Option<Timestamp>,
    /// Why it is frozen, and may not connect until an operator has looked.
    pub frozen: Option<Arc<str>>,
    /// Whether it is there.
    pub presence: Presence,
    /// Its session, while it is there.
    pub session: Option<SessionId>,
    /// When the hub last heard of it.
    pub last_seen: Option<Timestamp>,
    /// What kind of machine it is.
    pub facts: Arc<NodeFacts>,
    /// Its clock and its spool.
    pub status: Arc<NodeStatus>,
    /// Its container engine.
    pub engine: Arc<Engine>,
    /// Its services.
    pub services: Arc<Services>,
    /// The certificate it uses.
    pub certificate: Option<Certificate>,
    /// Its newest figures.
    pub latest: Option<Latest>,
    /// What a bridge may do at its brokers.
    pub kafka_access: Option<Arc<Access>>,
    /// What of it needs attention.
    pub attention: Arc<Attention>,
}

/// Whether a node is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It has enrolled, and no session came yet.
    NeverSeen,
    /// It holds a session.
    Online {
        /// Since when.
        since: Timestamp,
        /// From where.
        remote: SocketAddr,
    },
    /// Its session broke off.
    Lost {
        /// Since when.
        since: Timestamp,
    },
    /// It said goodbye.
    Left {
        /// Since when.
        since: Timestamp,
        /// Why, in its words.
        reason: String,
    },
}

impl Presence {
    /// Whether it holds a session.
    pub fn is_online(&self) -> bool {
        matches!(self, Self::Online { .. })
    }
}

/// The certificate a node uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Its serial.
    pub serial: pki::Serial,
    /// When it was issued: its life begins then, however far back its validity reaches.
    pub issued_at: Timestamp,
    /// When it ends.
    pub not_after: Timestamp,
}

impl From<&NodeIdentity> for Certificate {
    fn from(identity: &NodeIdentity) -> Self {
        let NodeIdentity { serial, not_before, not_after, .. } = *identity;
        Self { serial, issued_at: not_before.plus(BACKDATE).min(not_after), not_after }
    }
}

/// How urgent something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// All is well.
    #[default]
    Ok,
    /// Worth knowing.
    Notice,
    /// Somebody should look.
    Warning,
    /// Somebody should look now.
    Critical,
}

words! {
    Level { Ok = "ok", Notice = "notice", Warning = "warning", Critical = "critical" }
    or LevelError = |_| LevelError
}

/// Not a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("levels are ok, notice, warning and critical")]
pub struct LevelError;

/// What needs attention at a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attention {
    /// The worst of the reasons.
    pub level: Level,
    /// The worst first.
    pub reasons: Vec<Reason>,
}

/// One thing that needs attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// How urgent.
    pub level: Level,
    /// The alert rule behind it.
    pub rule: &'static str,
    /// The service, or empty for the node itself.
    pub subject: String,
    /// A sentence.
    pub message: String,
}

/// `stack/service/number`: a service's name, and the target of its series.
pub fn service_name(key: &ServiceKey) -> String {
    format!("{}/{}/{}", key.stack, key.service, key.number)
}

impl NodeView {
    pub(crate) fn new(member: Member) -> Self {
        Self {
            node: member.node,
            tenant: member.tenant,
            kind: member.kind,
            name: member.name.into(),
            enrolled_at: member.enrolled_at,
            revoked_at: None,
            frozen: None,
            presence: Presence::NeverSeen,
            session: None,
            last_seen: None,
            facts: Arc::default(),
            status: Arc::default(),
            engine: Arc::default(),
            services: Arc::default(),
            certificate: None,
            latest: None,
            kafka_access: None,
            attention: Arc::default(),
        }
    }

    /// The newest value of a gauge, or rate of a counter.
    pub fn current(&self, metric: &str, target: &str) -> Option<f64> {
        let latest = self.latest.as_ref()?;
        latest.current(latest.sample.schema.index(metric, target)?)
    }

    /// Takes over what a report says.
    pub(super) fn apply(&mut self, report: Report) {
        for sample in report.samples {
            match &mut self.latest {
                Some(latest) => latest.advance(sample, report.set_back),
                None => self.latest = Some(Latest { sample, previous: None }),
            }
        }
        if !report.current {
            return;
        }
        if let Some(engine) = report.engine {
            self.engine = Arc::new(engine);
        }
        if let Some(mut status) = report.status {
            // The clock comes on the control stream, too; a report without it does not unset it.
            status.clock = status.clock.or(self.status.clock);
            self.status = Arc::new(status);
        }
        if report.complete {
            self.services = Arc::new(report.services);
        } else if !report.services.is_empty() || !report.removed.is_empty() {
            self.services = Arc::new(self.services.with(&report.services, &report.removed));
        }
    }
}
