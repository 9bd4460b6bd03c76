//! Tenants, with their nodes counted.

use serde::Serialize;
use utoipa::ToSchema;

use super::{AttentionLevel, Node, PresenceState, Time};
use crate::tenants;

/// A customer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Tenant {
    /// The slug that never changes.
    pub id: String,
    /// The name people read.
    pub name: String,
    /// When it was created.
    pub created_at: Time,
    /// Whether its authority waits for the signature of a fleet root that is kept offline: no node can enroll before.
    pub awaits_signature: bool,
    /// Nodes by how much they need somebody.
    pub nodes: NodeCounts,
}

impl Tenant {
    /// A tenant and its nodes.
    pub(crate) fn of(tenant: tenants::Tenant, nodes: NodeCounts) -> Self {
        Self {
            id: tenant.id.to_string(),
            name: tenant.name,
            created_at: Time(tenant.created_at),
            awaits_signature: tenant.awaits_signature,
            nodes,
        }
    }
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
