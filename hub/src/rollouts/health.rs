//! How a node is, as far as a rollout cares: whether it is there, and whether its services are well.

use protocol::NodeId;
use protocol::message::EngineState;

use super::plan::Health;
use crate::alerts::{Rule, ails};
use crate::telemetry::state::{Fleet, Presence};

/// How a node is now.
pub(super) fn of(fleet: &Fleet, node: NodeId) -> Health {
    let Some(view) = fleet.node(node).filter(|view| view.revoked_at.is_none()) else { return Health::Gone };
    match view.presence {
        Presence::Lost { .. } => return Health::Lost,
        Presence::Left { .. } | Presence::NeverSeen => return Health::Away,
        Presence::Online { .. } => {}
    }
    // One that ends again and again runs at most looks, and is on its way at the others; an engine may only be restarted.
    let rules = [Rule::ServiceRestarting, Rule::EngineUnreachable];
    if view.attention.reasons.iter().any(|reason| rules.iter().any(|rule| reason.rule == rule.as_str())) {
        return Health::Unwell;
    }
    // Without it, services are as they were told last.
    let mut health = match view.engine.state() {
        EngineState::Unreachable | EngineState::PermissionDenied => Health::Blind,
        _ => Health::Well,
    };
    for service in view.services.iter() {
        match ails(&service) {
            Some(true) => return Health::Unwell,
            None if health == Health::Well => health = Health::Unclear,
            None | Some(false) => {}
        }
    }
    health
}
