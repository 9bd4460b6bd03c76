//! Entries of the audit log.

use serde::Serialize;
use utoipa::ToSchema;

use super::super::list::Numbered;
use super::Time;
use crate::audit;

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

impl From<audit::Entry> for AuditEntry {
    fn from(entry: audit::Entry) -> Self {
        Self {
            id: entry.id,
            at: Time(entry.at),
            actor: entry.actor,
            credential: entry.credential,
            action: entry.action,
            tenant: entry.tenant,
            subject: entry.subject,
            detail: entry.detail,
            remote: entry.remote,
            hash: entry.hash.to_string(),
        }
    }
}

impl Numbered for AuditEntry {
    fn number(&self) -> i64 {
        self.id
    }
}
