//! Alerts.

use serde::Serialize;
use utoipa::ToSchema;

use super::super::list::Numbered;
use super::{AttentionLevel, Time};
use crate::alerts;

/// Something that went wrong, until it ended.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Alert {
    /// Number.
    pub id: i64,
    /// Which rule: `node.lost`, `service.unhealthy`, …
    pub rule: String,
    /// How bad.
    pub severity: AttentionLevel,
    /// Whose; absent: the fleet's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Which node; absent: it is about an authority, a rollout, or a bridge that was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// That node's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// What of the node: a service, or empty. Of an authority: its kind and generation, as `nodes/3`. Of a
    /// rollout: `rollout/7`. Of a bridge that was removed: `bridge/` and its id.
    pub subject: String,
    /// What is wrong and what to do.
    pub message: String,
    /// When it began.
    pub opened_at: Time,
    /// When it ended.
    pub closed_at: Option<Time>,
}

impl Alert {
    /// An alert, with the name of its node.
    pub(crate) fn of(alert: alerts::Alert, node_name: Option<String>) -> Self {
        Self {
            id: alert.id,
            rule: alert.rule,
            severity: alert.level.into(),
            tenant: alert.tenant.map(|tenant| tenant.to_string()),
            node: alert.node.map(|node| node.to_string()),
            node_name,
            subject: alert.subject,
            message: alert.message,
            opened_at: Time(alert.opened_at),
            closed_at: alert.closed_at.map(Time),
        }
    }
}

impl Numbered for Alert {
    fn number(&self) -> i64 {
        self.id
    }
}
