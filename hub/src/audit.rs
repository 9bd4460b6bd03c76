//! Who did what: append-only, written in the same transaction as the act.

use std::fmt;
use std::net::IpAddr;

use protocol::{NodeId, TenantId, Timestamp};
use serde_json::Value;
use store::sqlx::{self, AssertSqlSafe, Row};
use store::{Database, StoreError, Transaction};

/// The words of [`Record::action`].
pub mod action {
    #![expect(missing_docs, reason = "the names say it")]
    pub const KEYS_REWRAPPED: &str = "keys.rewrapped";
    pub const AUTHORITY_CREATED: &str = "authority.created";
    pub const TENANT_CREATED: &str = "tenant.created";
    pub const TOKEN_CREATED: &str = "token.created";
    pub const NODE_ENROLLED: &str = "node.enrolled";
    pub const ENROLLMENT_REFUSED: &str = "enrollment.refused";
    pub const CERTIFICATE_ISSUED: &str = "certificate.issued";
    pub const CERTIFICATE_RENEWED: &str = "certificate.renewed";
    pub const RENEWAL_REFUSED: &str = "renewal.refused";
    pub const CERTIFICATE_RETIRED: &str = "certificate.retired";
    pub const SESSION_DISPLACED: &str = "session.displaced";
    pub const SESSION_REFUSED: &str = "session.refused";
    pub const API_TOKEN_CREATED: &str = "api_token.created";
    pub const API_TOKEN_REVOKED: &str = "api_token.revoked";
    pub const SIGN_IN_LINK_CREATED: &str = "sign_in_link.created";
    pub const SIGNED_IN: &str = "signin";
    pub const SIGN_IN_REFUSED: &str = "signin.refused";
    pub const SIGNED_OUT: &str = "signout";
}

/// Who acted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor(String);

impl Actor {
    /// The hub itself.
    pub fn system() -> Self {
        Self("system".into())
    }

    /// A person or program with a name of their own: a sign-in or an API token.
    pub fn operator(name: &str) -> Self {
        Self(format!("operator:{name}"))
    }

    /// A node, by its certificate.
    pub fn node(node: NodeId) -> Self {
        Self(format!("node:{node}"))
    }

    /// Somebody who has shown nothing.
    pub fn anonymous() -> Self {
        Self("anonymous".into())
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One act, about to be written.
#[derive(Clone, Debug)]
pub struct Record {
    /// Who.
    pub actor: Actor,
    /// What: one of [`action`].
    pub action: &'static str,
    /// Whose tenant it touches.
    pub tenant: Option<TenantId>,
    /// What it was done to: an id or a name.
    pub subject: String,
    /// More, as an object. Never a secret.
    pub detail: Value,
    /// From where.
    pub remote: Option<IpAddr>,
}

/// One act, as written.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Entry {
    /// Its number; there is no hole between 1 and the newest.
    pub id: i64,
    /// When, ms since the Unix epoch.
    #[serde(serialize_with = "as_rfc_3339")]
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// Whose tenant.
    pub tenant: Option<String>,
    /// To what.
    pub subject: String,
    /// More.
    pub detail: Value,
    /// From where.
    pub remote: Option<String>,
}

/// Which entries to list.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Of this tenant alone.
    pub tenant: Option<TenantId>,
    /// Of this action alone; a trailing `.` takes all that start so: `token.`.
    pub action: Option<String>,
    /// Older than this entry, newest first: a page further back.
    pub before: Option<i64>,
    /// Newer than this entry, oldest first: what has come since. Wins over `before`.
    pub after: Option<i64>,
    /// At most so many, and at most 1,000.
    pub limit: u32,
}

impl Default for Filter {
    fn default() -> Self {
        Self { tenant: None, action: None, before: None, after: None, limit: 100 }
    }
}

/// Writes `record` as part of `transaction`, as its last statement: PostgreSQL holds other writers of the audit log
/// until the commit.
///
/// # Errors
/// The transaction is then spoilt, and the act with it.
pub async fn append(transaction: &mut Transaction, now: Timestamp, record: Record) -> Result<i64, StoreError> {
    let id: i64 = sqlx::query_scalar("UPDATE audit_head SET last_id = last_id + 1 WHERE chain = 1 RETURNING last_id")
        .fetch_one(&mut **transaction)
        .await?;
    sqlx::query(
        "INSERT INTO audit (id, at, actor, action, tenant, subject, detail, remote)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(id)
    .bind(now.millis())
    .bind(record.actor.0)
    .bind(record.action)
    .bind(record.tenant.map(|tenant| tenant.to_string()))
    .bind(record.subject)
    .bind(record.detail.to_string())
    .bind(record.remote.map(|remote| remote.to_string()))
    .execute(&mut **transaction)
    .await?;
    Ok(id)
}

/// Writes `record` in a transaction of its own: for an act that changes nothing else, such as a refusal.
///
/// # Errors
/// When it could not be committed.
pub async fn record(database: &Database, now: Timestamp, record: Record) -> Result<i64, StoreError> {
    let mut transaction = database.begin_write().await?;
    let id = append(&mut transaction, now, record).await?;
    transaction.commit().await?;
    Ok(id)
}

/// Entries that match `filter`.
///
/// # Errors
/// When the database does not answer.
pub async fn list(database: &Database, filter: &Filter) -> Result<Vec<Entry>, StoreError> {
    let (prefix, action) = match filter.action.as_deref() {
        Some(action) if action.ends_with('.') => (Some(action.chars().count() as i64), Some(action)),
        action => (None, action),
    };
    let (from, comparison, order) = match (filter.after, filter.before) {
        (Some(after), _) => (after, ">", "ASC"),
        (None, before) => (before.unwrap_or(i64::MAX), "<", "DESC"),
    };
    let sql = format!(
        "SELECT id, at, actor, action, tenant, subject, detail, remote FROM audit
         WHERE id {comparison} $1 AND ($2 = '' OR tenant = $2)
           AND ($3 = '' OR action = $3 OR SUBSTR(action, 1, CAST($4 AS INTEGER)) = $3)
         ORDER BY id {order} LIMIT $5"
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(from)
        .bind(filter.tenant.as_ref().map_or("", TenantId::as_str))
        .bind(action.unwrap_or_default())
        .bind(prefix.unwrap_or(0))
        .bind(i64::from(filter.limit.min(1000)))
        .fetch_all(database.reader())
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Entry {
                id: row.try_get(0)?,
                at: Timestamp::from_millis(row.try_get(1)?),
                actor: row.try_get(2)?,
                action: row.try_get(3)?,
                tenant: row.try_get(4)?,
                subject: row.try_get(5)?,
                detail: serde_json::from_str(row.try_get(6)?).unwrap_or(Value::Null),
                remote: row.try_get(7)?,
            })
        })
        .collect::<Result<_, sqlx::Error>>()
        .map_err(StoreError::from)
}

fn as_rfc_3339<S: serde::Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}
