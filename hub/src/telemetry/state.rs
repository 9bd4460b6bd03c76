//! The fleet as last seen: every node's state in memory, what changed, and a copy in the database for the next start.

mod latest;
mod persist;
mod row;
mod services;
mod view;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use protocol::message::{ClockReport, Engine, NodeFacts, NodeStatus, ServiceKey};
use protocol::telemetry::Schemas;
use protocol::{NodeId, NodeKind, SessionId, TenantId, Timestamp};
use tokio::sync::broadcast;

use crate::kafka_access::Access;
use crate::rows;

pub(crate) use latest::scaled;
pub use latest::{Latest, Sample};
pub use services::Services;
pub use view::{Attention, Certificate, Level, LevelError, NodeView, Presence, Reason, service_name};

/// Changes a slow reader may fall behind; beyond it, it is told that it lagged and refreshes all.
const CHANGES: usize = 4096;

/// The state of every node. Clones share it.
#[derive(Clone)]
pub struct Fleet(Arc<Inner>);

struct Inner {
    nodes: RwLock<HashMap<NodeId, Tracked>>,
    changes: broadcast::Sender<NodeId>,
    schemas: Arc<Schemas>,
}

struct Tracked {
    view: Arc<NodeView>,
    dirty: Dirty,
    /// When the copy in the database was written.
    persisted_at: Timestamp,
}

/// How much the copy in the database lags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Dirty {
    No,
    /// Figures moved.
    Figures,
    /// A service, the engine or the presence changed.
    State,
}

/// A node as it enters the fleet.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id.
    pub node: NodeId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What it is.
    pub kind: NodeKind,
    /// Its name, unique in the tenant.
    pub name: String,
    /// When it enrolled.
    pub enrolled_at: Timestamp,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The node said goodbye, with this reason.
    Goodbye(String),
    /// Nobody said anything.
    Lost,
}

/// What one batch or snapshot says, decoded.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// It is about now. A batch that was written before a snapshot that is already in is not: of it, only rows newer
    /// than the newest known count, or those after its clock was set back.
    pub current: bool,
    /// It names every service: those it does not name are gone.
    pub complete: bool,
    /// Services that changed: encoded, for a report may wait for its commit, and those of a whole fleet that comes back do.
    pub services: Services,
    /// Services that are gone.
    pub removed: Vec<ServiceKey>,
    /// The engine, when it changed.
    pub engine: Option<Engine>,
    /// The node's own state, when it changed.
    pub status: Option<NodeStatus>,
    /// The newest rows, oldest first; more than two are of no use.
    pub samples: Vec<Sample>,
    /// Whether they are the newest although older ones are known: the node's clock was set back, or may have been.
    pub set_back: bool,
}

impl Fleet {
    /// An empty fleet.
    pub fn new() -> Self {
        let (changes, _) = broadcast::channel(CHANGES);
        Self(Arc::new(Inner { nodes: RwLock::default(), changes, schemas: Arc::default() }))
    }

    /// All nodes, by tenant and name.
    pub fn all(&self) -> Vec<Arc<NodeView>> {
        let mut all: Vec<_> = self.read().values().map(|tracked| Arc::clone(&tracked.view)).collect();
        all.sort_by(|a, b| (&a.tenant, &a.name, a.node).cmp(&(&b.tenant, &b.name, b.node)));
        all
    }

    /// One node.
    pub fn node(&self, node: NodeId) -> Option<Arc<NodeView>> {
        self.read().get(&node).map(|tracked| Arc::clone(&tracked.view))
    }

    /// The nodes that change from now on. A reader that lagged must read [`Fleet::all`] again.
    pub fn changes(&self) -> broadcast::Receiver<NodeId> {
        self.0.changes.subscribe()
    }

    /// The schemas that decoders of this fleet share.
    pub fn schemas(&self) -> Arc<Schemas> {
        Arc::clone(&self.0.schemas)
    }

    /// A node has enrolled.
    pub fn enrolled(&self, member: Member) {
        let node = member.node;
        let mut nodes = self.0.nodes.write().unwrap_or_else(PoisonError::into_inner);
        nodes.entry(node).or_insert_with(|| Tracked {
            view: Arc::new(NodeView::new(member)),
            dirty: Dirty::No,
            persisted_at: Timestamp::default(),
        });
        drop(nodes);
        self.announce(node);
    }

    /// A node's session has begun. The one before it, if any, is forgotten.
    pub fn session_opened(
        &self,
        node: NodeId,
        session: SessionId,
        remote: SocketAddr,
        facts: NodeFacts,
        now: Timestamp,
    ) {
        self.update(node, Dirty::State, |view| {
            view.presence = Presence::Online { since: now, remote };
            view.session = Some(session);
            view.last_seen = Some(now);
            view.facts = Arc::new(facts);
        });
    }

    /// A session has ended. Says nothing about the node when another session has taken over.
    pub fn session_closed(&self, node: NodeId, session: SessionId, ended: Ended, now: Timestamp) {
        self.update(node, Dirty::State, |view| {
            if view.session != Some(session) {
                return;
            }
            view.session = None;
            view.last_seen = Some(now);
            view.presence = match ended {
                Ended::Goodbye(reason) => Presence::Left { since: now, reason: rows::text(&reason) },
                Ended::Lost => Presence::Lost { since: now },
            };
        });
    }

    /// The node has measured its clock against the hub's.
    pub fn clock(&self, node: NodeId, clock: ClockReport) {
        self.update(node, Dirty::Figures, |view| Arc::make_mut(&mut view.status).clock = Some(clock));
    }

    /// A node's certificate is now this one.
    pub fn certificate(&self, node: NodeId, certificate: Certificate) {
        self.update(node, Dirty::No, |view| view.certificate = Some(certificate));
    }

    /// A node has been revoked.
    pub fn revoked(&self, node: NodeId, at: Timestamp) {
        self.update(node, Dirty::No, |view| view.revoked_at = Some(at));
    }

    /// A node is no longer part of the fleet.
    pub fn removed(&self, node: NodeId) {
        self.0.nodes.write().unwrap_or_else(PoisonError::into_inner).remove(&node);
        self.announce(node);
    }

    /// A node is frozen for this reason, or no more.
    pub fn frozen(&self, node: NodeId, reason: Option<Arc<str>>) {
        self.update(node, Dirty::No, |view| view.frozen = reason);
    }

    /// What a bridge may do at its brokers.
    pub fn kafka_access(&self, node: NodeId, access: Arc<Access>) {
        let same = self.read().get(&node).is_some_and(|tracked| tracked.view.kafka_access.as_ref() == Some(&access));
        if !same {
            self.update(node, Dirty::No, |view| view.kafka_access = Some(access));
        }
    }

    /// What needs attention at a node.
    pub fn attention(&self, node: NodeId, attention: Attention) {
        self.update(node, Dirty::No, |view| view.attention = Arc::new(attention));
    }

    /// A node has reported.
    pub fn report(&self, node: NodeId, reports: Vec<Report>, now: Timestamp) {
        let dirty = if reports.iter().any(Report::changes_state) { Dirty::State } else { Dirty::Figures };
        self.update(node, dirty, |view| {
            view.last_seen = Some(now);
            for report in reports {
                view.apply(report);
            }
        });
    }

    fn update(&self, node: NodeId, dirty: Dirty, change: impl FnOnce(&mut NodeView)) {
        let mut nodes = self.0.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let Some(tracked) = nodes.get_mut(&node) else { return };
        // Copies the view only when a reader holds it: its large parts are shared.
        change(Arc::make_mut(&mut tracked.view));
        tracked.dirty = tracked.dirty.max(dirty);
        drop(nodes);
        self.announce(node);
    }

    fn announce(&self, node: NodeId) {
        // Nobody listening is fine.
        drop(self.0.changes.send(node));
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<NodeId, Tracked>> {
        self.0.nodes.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

impl Report {
    /// Whether it says anything but figures.
    fn changes_state(&self) -> bool {
        self.current && (!self.services.is_empty() || !self.removed.is_empty() || self.engine.is_some())
    }
}
