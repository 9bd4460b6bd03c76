//! Who did what: a hash chain, append-only, written in the same transaction as the act.

mod chain;
mod command;
mod export;
pub mod ocsf;
pub mod publish;
pub mod verify;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use data_encoding::HEXLOWER;
use protocol::{NodeId, TenantId, Timestamp};
use serde_json::{Value, json};
use store::sqlx::any::AnyRow;
use store::sqlx::{self, AssertSqlSafe, Row};
use store::{Database, StoreError, Transaction};

use crate::rows::{self, Bound, Insert};

pub use chain::{Hash, HashError, Head, HeadError, Link};
pub use command::{Audit, Verify};
pub use export::Export;

/// The words of [`Record::action`].
pub mod action {
    #![expect(missing_docs, reason = "the names say it")]
    pub const KEYS_REWRAPPED: &str = "keys.rewrapped";
    pub const AUTHORITY_CREATED: &str = "authority.created";
    pub const AUTHORITY_REQUESTED: &str = "authority.requested";
    pub const ROOT_EXPORTED: &str = "root.exported";
    pub const ROOT_RESTORED: &str = "root.restored";
    pub const ROOT_LIST_SIGNED: &str = "root.list_signed";
    pub const ROOT_LINKED: &str = "root.linked";
    pub const ROTATION_STARTED: &str = "rotation.started";
    pub const ROTATION_ADVANCED: &str = "rotation.advanced";
    pub const ROTATION_WENT_BACK: &str = "rotation.went_back";
    pub const ROTATION_ENDED: &str = "rotation.ended";
    pub const ROTATION_ABORTED: &str = "rotation.aborted";
    pub const NODE_RECOVERED: &str = "node.recovered";
    pub const RECOVERY_REFUSED: &str = "recovery.refused";
    pub const NODE_FROZEN: &str = "node.frozen";
    pub const NODE_UNFROZEN: &str = "node.unfrozen";
    pub const HUB_CERTIFIED: &str = "hub.certified";
    pub const TENANT_CREATED: &str = "tenant.created";
    pub const TOKEN_CREATED: &str = "token.created";
    pub const NODE_ENROLLED: &str = "node.enrolled";
    pub const ENROLLMENT_REFUSED: &str = "enrollment.refused";
    pub const CERTIFICATE_ISSUED: &str = "certificate.issued";
    pub const CERTIFICATE_REFUSED: &str = "certificate.refused";
    pub const CERTIFICATE_RENEWED: &str = "certificate.renewed";
    pub const RENEWAL_REFUSED: &str = "renewal.refused";
    pub const CERTIFICATE_POLICY_CHANGED: &str = "certificate_policy.changed";
    pub const RENEWAL_ADVISED: &str = "renewal.advised";
    pub const CERTIFICATE_RETIRED: &str = "certificate.retired";
    pub const NODE_REVOKED: &str = "node.revoked";
    pub const NODE_LABELLED: &str = "node.labelled";
    pub const NODE_REMOVED: &str = "node.removed";
    pub const OPERATOR_KEY_REGISTERED: &str = "operator_key.registered";
    pub const OPERATOR_KEY_REVOKED: &str = "operator_key.revoked";
    pub const COMMAND_REQUESTED: &str = "command.requested";
    pub const COMMAND_CANCELLED: &str = "command.cancelled";
    pub const COMMAND_REFUSED: &str = "command.refused";
    pub const ROLLOUT_STARTED: &str = "rollout.started";
    pub const ROLLOUT_LEFT_OUT: &str = "rollout.left_out";
    pub const ROLLOUT_WATCHED: &str = "rollout.watched";
    pub const ROLLOUT_ADVANCED: &str = "rollout.advanced";
    pub const ROLLOUT_HALTED: &str = "rollout.halted";
    pub const ROLLOUT_PAUSED: &str = "rollout.paused";
    pub const ROLLOUT_RESUMED: &str = "rollout.resumed";
    pub const ROLLOUT_ABORTED: &str = "rollout.aborted";
    pub const ROLLOUT_ENDED: &str = "rollout.ended";
    pub const KAFKA_ACCESS_SET: &str = "kafka_access.set";
    pub const KAFKA_ACCESS_PLACED: &str = "kafka_access.placed";
    pub const TAIL_STARTED: &str = "tail.started";
    pub const TAIL_REFUSED: &str = "tail.refused";
    pub const LOGS_SEARCHED: &str = "logs.searched";
    pub const SESSION_DISPLACED: &str = "session.displaced";
    pub const SESSION_REFUSED: &str = "session.refused";
    pub const API_TOKEN_CREATED: &str = "api_token.created";
    pub const API_TOKEN_REVOKED: &str = "api_token.revoked";
    pub const SIGN_IN_LINK_CREATED: &str = "sign_in_link.created";
    pub const SIGNED_IN: &str = "signin";
    pub const SIGN_IN_REFUSED: &str = "signin.refused";
    pub const SIGNED_OUT: &str = "signout";
    pub const ACCESS_REFUSED: &str = "access.refused";
}

/// Who acted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    name: String,
    credential: Option<String>,
    remote: Option<IpAddr>,
}

impl Actor {
    fn named(name: String) -> Self {
        Self { name, credential: None, remote: None }
    }

    /// The hub itself.
    pub fn system() -> Self {
        Self::named("system".into())
    }

    /// A person or program with a name of their own: a sign-in or an API token.
    pub fn operator(name: &str) -> Self {
        Self::named(format!("operator:{name}"))
    }

    /// A node, by its certificate.
    pub fn node(node: NodeId) -> Self {
        Self::named(format!("node:{node}"))
    }

    /// Whoever a row names: on their behalf, the hub goes on with what they began.
    pub(crate) fn again(name: &str) -> Self {
        Self::named(name.to_owned())
    }

    /// Somebody who has shown nothing.
    pub fn anonymous() -> Self {
        Self::named("anonymous".into())
    }

    /// Whether it is the same one, wherever they are.
    pub(crate) fn is(&self, other: &Self) -> bool {
        (&self.name, &self.credential) == (&other.name, &other.credential)
    }

    /// The same, with the credential they came with (an API token's id: two may have one name) and from where.
    #[must_use]
    pub fn by(self, credential: Option<&str>, remote: Option<IpAddr>) -> Self {
        Self { credential: credential.map(str::to_owned), remote, ..self }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
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
    /// From where; `None`: from where the actor came.
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
    /// With which credential: the id of an API token.
    pub credential: Option<String>,
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
    /// Its hash, which covers all of it and the hash of the entry before it.
    pub hash: Hash,
}

impl From<Link> for Entry {
    fn from(link: Link) -> Self {
        Self {
            id: link.id,
            at: Timestamp::from_millis(link.at),
            actor: link.actor,
            credential: link.credential,
            action: link.action,
            tenant: link.tenant,
            subject: link.subject,
            detail: serde_json::from_str(&link.detail).unwrap_or(Value::Null),
            remote: link.remote,
            hash: link.hash,
        }
    }
}

/// Most entries of one list.
const MOST: u32 = 1_000;

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
    Ok(append_all(transaction, now, vec![record]).await?.id)
}

/// As [`append`], with many records at the cost of one. Gives the new head.
///
/// # Errors
/// The transaction is then spoilt, and the acts with it.
pub async fn append_all(
    transaction: &mut Transaction,
    now: Timestamp,
    records: Vec<Record>,
) -> Result<Head, StoreError> {
    if let [record] = &*records
        && let Some(link) = guessed(now, record)
        && follow(transaction, &link).await?
    {
        return Ok(right(&link));
    }
    let mut head = held_head(transaction).await?;
    let mut links = Vec::with_capacity(records.len());
    for record in records {
        let link = Link::after(head, now, record);
        head = link.head();
        links.push(link);
    }
    // The table's trigger moves the head along, and refuses what does not follow it.
    rows::write(transaction, LINKS, &links, bind).await?;
    *newest() = Some(head);
    Ok(head)
}

/// The head, which stays until the transaction ends. SQLite has one writer, who holds the file by now.
async fn held_head(transaction: &mut Transaction) -> Result<Head, StoreError> {
    let sql = format!("SELECT last_id, hash FROM audit_head WHERE chain = 1{}", rows::for_update(transaction));
    Ok(read_head(&sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut **transaction).await?)?)
}

/// Writes `link` if what it follows is the newest entry still; says whether it was.
async fn follow(transaction: &mut Transaction, link: &Link) -> Result<bool, StoreError> {
    let (values, is_newest) = (rows::placeholders_from(1, LINKS.columns), is_newest(1));
    let lock = rows::for_update(transaction);
    let sql = format!("INSERT INTO {} SELECT {values} WHERE EXISTS ({is_newest}{lock})", LINKS.into);
    let written = bind(sqlx::query(AssertSqlSafe(sql)), link).execute(&mut **transaction).await?;
    Ok(written.rows_affected() == 1)
}

/// Gives a row if the entry whose values are `$first` and so on follows the newest.
pub(crate) fn is_newest(first: usize) -> String {
    let previous = first + 9;
    format!("SELECT 1 FROM audit_head WHERE chain = 1 AND last_id = ${first} - 1 AND hash = ${previous}")
}

/// The entry for a single record, if what this process has written last is the newest still: a statement that writes it must
/// see to that ([`is_newest`]), and what it has written is [`right`].
pub(crate) fn guessed(now: Timestamp, record: &Record) -> Option<Link> {
    let head = (*newest())?;
    Some(Link::after(head, now, record.clone()))
}

/// This one was written; gives the new head.
pub(crate) fn right(link: &Link) -> Head {
    *newest() = Some(link.head());
    link.head()
}

/// Keeps other writers of the audit log until the transaction ends; SQLite's one writer does so by itself.
pub(crate) async fn lock(transaction: &mut Transaction) -> Result<(), StoreError> {
    if rows::for_update(transaction).is_empty() {
        return Ok(());
    }
    held_head(transaction).await.map(drop)
}

/// Binds what [`LINKS`] takes.
pub(crate) fn bind<'q>(query: Bound<'q>, link: &Link) -> Bound<'q> {
    query
        .bind(link.id)
        .bind(link.at)
        .bind(link.actor.clone())
        .bind(link.credential.clone())
        .bind(link.action.clone())
        .bind(link.tenant.clone())
        .bind(link.subject.clone())
        .bind(link.detail.clone())
        .bind(link.remote.clone())
        .bind(link.previous.0.to_vec())
        .bind(link.hash.0.to_vec())
}

/// The newest entry that this process has written, perhaps in a transaction that came to nothing, or to another database: a
/// guess that saves asking for the head where it is right, and is found out where it is not.
fn newest() -> MutexGuard<'static, Option<Head>> {
    static NEWEST: Mutex<Option<Head>> = Mutex::new(None);
    NEWEST.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// The entry for `record` that follows `head`.
    fn after(head: Head, now: Timestamp, record: Record) -> Self {
        let mut link = Self {
            id: head.id + 1,
            at: now.millis(),
            actor: record.actor.name,
            credential: record.actor.credential,
            action: record.action.to_owned(),
            tenant: record.tenant.map(|tenant| tenant.to_string()),
            subject: record.subject,
            detail: record.detail.to_string(),
            remote: record.remote.or(record.actor.remote).map(|remote| remote.to_string()),
            previous: head.hash,
            hash: Hash::NONE,
        };
        link.hash = link.computed();
        link
    }

    fn head(&self) -> Head {
        Head { id: self.id, hash: self.hash }
    }
}

/// An entry's row.
pub(crate) const LINKS: Insert = Insert {
    into: "audit (id, at, actor, credential, action, tenant, subject, detail, remote, previous, hash)",
    columns: 11,
    on_conflict: "",
};

/// The newest entry's number and hash, as the database has it.
///
/// # Errors
/// When the database does not answer.
pub async fn head(database: &Database) -> Result<Head, StoreError> {
    let row = sqlx::query("SELECT last_id, hash FROM audit_head WHERE chain = 1").fetch_one(database.reader()).await?;
    Ok(read_head(&row)?)
}

fn read_head(row: &AnyRow) -> Result<Head, sqlx::Error> {
    let hash: Vec<u8> = row.try_get(1)?;
    let hash = Hash::from_bytes(&hash).ok_or_else(|| sqlx::Error::Decode("the audit head's hash is damaged".into()))?;
    Ok(Head { id: row.try_get(0)?, hash })
}

/// What the record of an issuance says of the certificate, as `certificate` in its detail: `audit verify` looks for
/// each certificate by it.
pub fn certificate(kind: &str, certificate: &pki::Summary) -> Value {
    let hex = |bytes: &[u8]| HEXLOWER.encode(bytes);
    json!({
        "kind": kind,
        "serial": hex(&certificate.serial),
        "issuer": hex(&certificate.issuer_key_id),
        "spki_sha256": hex(&certificate.spki_sha256),
        "sha256": hex(&certificate.sha256),
        "not_after": certificate.not_after.to_string(),
    })
}

/// Writes `record` in a transaction of its own: for an act that changes nothing else, such as a refusal.
///
/// # Errors
/// When it could not be committed.
pub async fn record(database: &Database, now: Timestamp, record: Record) -> Result<i64, StoreError> {
    let mut transaction = database.within(record.tenant.as_ref().map(TenantId::as_str)).begin_write().await?;
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
    let columns = Link::COLUMNS;
    let sql = format!(
        "SELECT {columns} FROM audit
         WHERE id {comparison} $1 AND ($2 = '' OR tenant = $2)
           AND ($3 = '' OR action = $3 OR SUBSTR(action, 1, CAST($4 AS INTEGER)) = $3)
         ORDER BY id {order} LIMIT $5"
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(from)
        .bind(filter.tenant.as_ref().map_or("", TenantId::as_str))
        .bind(action.unwrap_or_default())
        .bind(prefix.unwrap_or(0))
        .bind(i64::from(filter.limit.min(MOST)))
        .fetch_all(&mut *database.within(filter.tenant.as_ref().map(TenantId::as_str)).read().await?)
        .await?;
    Ok(rows.iter().map(|row| Link::read(row).map(Entry::from)).collect::<Result<_, sqlx::Error>>()?)
}

/// What has come since `filter.after`, oldest first. Moves it on, past what does not match as well: that is not looked at again.
///
/// # Errors
/// When the database does not answer; `filter` is as it was then.
pub async fn news(database: &Database, filter: &mut Filter) -> Result<Vec<Entry>, StoreError> {
    // The head first: what comes after it may not be among those that are found.
    let head = head(database).await?.id;
    let found = list(database, filter).await?;
    let through = match found.last() {
        Some(last) if found.len() >= filter.limit.min(MOST) as usize => last.id,
        last => last.map_or(head, |last| last.id.max(head)),
    };
    filter.after = filter.after.max(Some(through));
    Ok(found)
}

fn as_rfc_3339<S: serde::Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}
