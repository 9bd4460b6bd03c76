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

impl Alert {
    /// An alert, with the name of its node.
    pub(crate) fn of(alert: alerts::Alert, node_name: String) -> Self {
        Self {
            id: alert.id,
            rule: alert.rule,
            severity: alert.level.into(),
            tenant: alert.tenant.to_string(),
            node: alert.node.to_string(),
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
