//! Operators' public keys: whose signatures on commands the hub passes on. Nodes judge them by the keys they pin themselves.

use pki::OperatorPublicKey;
use protocol::{TenantId, Timestamp};
use serde_json::json;
use store::sqlx::{self, Row, any::AnyRow};
use store::{Database, StoreError};

use crate::audit::{self, Actor, Record, action};
use crate::commands::Commands;
use crate::reason::Reason;
use crate::rows;

/// Longest name, in characters.
const NAME: usize = 100;

/// A registered key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorKey {
    /// Its id: a UUID.
    pub id: String,
    /// The only tenant whose nodes it may sign for.
    pub tenant: Option<TenantId>,
    /// Whose it is.
    pub name: String,
    /// The key.
    pub key: OperatorPublicKey,
    /// When it was registered.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A key that is not registered or revoked.
#[derive(Debug, thiserror::Error)]
pub enum OperatorsError {
    /// Not a name.
    #[error("a key has a name of 1 to {NAME} printable characters: say whose it is")]
    Name,
    /// It is there already.
    #[error("this key is registered already")]
    Known,
    /// There is none.
    #[error("there is no operator key {0}: see `hfctl operator-key list`")]
    Unknown(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for OperatorsError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Registers a key, in one transaction with the audit record.
///
/// # Errors
/// [`OperatorsError`].
pub async fn register(
    database: &Database,
    name: &str,
    key: OperatorPublicKey,
    tenant: Option<&TenantId>,
    reason: &Reason,
    actor: &Actor,
    now: Timestamp,
) -> Result<OperatorKey, OperatorsError> {
    let name = name.trim();
    if !(1..=NAME).contains(&name.chars().count()) || name.chars().any(char::is_control) {
        return Err(OperatorsError::Name);
    }
    let id = rows::uuid(now);
    let mut transaction = database.within(tenant.map(TenantId::as_str)).begin_write().await?;
    let inserted = sqlx::query(
        "INSERT INTO operator_keys (id, tenant, name, public_key, created_at, created_by)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (public_key) DO NOTHING",
    )
    .bind(&id)
    .bind(tenant.map(ToString::to_string))
    .bind(name)
    .bind(key.to_bytes().to_vec())
    .bind(now.millis())
    .bind(actor.to_string())
    .execute(&mut *transaction)
    .await?;
    if inserted.rows_affected() == 0 {
        return Err(OperatorsError::Known);
    }
    let record = Record {
        actor: actor.clone(),
        action: action::OPERATOR_KEY_REGISTERED,
        tenant: tenant.cloned(),
        subject: id.clone(),
        detail: json!({ "name": name, "key": key.to_string(), "reason": reason.as_str() }),
        remote: None,
    };
    audit::append(&mut transaction, now, record).await?;
    transaction.commit().await?;
    let (tenant, created_by) = (tenant.cloned(), actor.to_string());
    Ok(OperatorKey { id, tenant, name: name.to_owned(), key, created_at: now, created_by, revoked_at: None })
}

/// Registered keys, oldest first: of one tenant, or all.
///
/// # Errors
/// When the database does not answer.
pub async fn list(database: &Database, tenant: Option<&TenantId>) -> Result<Vec<OperatorKey>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, tenant, name, public_key, created_at, created_by, revoked_at FROM operator_keys
         WHERE $1 = '' OR tenant = $1 ORDER BY created_at, id LIMIT 1000",
    )
    .bind(tenant.map_or("", TenantId::as_str))
    .fetch_all(&mut *database.within(tenant.map(TenantId::as_str)).read().await?)
    .await?;
    Ok(rows.iter().map(read).collect::<Result<Vec<_>, sqlx::Error>>()?)
}

/// Takes a key back: nothing that it has signed is passed on any more, and what of that is not over is taken back. Doing it
/// twice changes nothing, but for what could not be taken back the first time.
///
/// # Errors
/// [`OperatorsError`].
pub async fn revoke(
    database: &Database,
    commands: &Commands,
    id: &str,
    tenant: Option<&TenantId>,
    reason: &Reason,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), OperatorsError> {
    let (database, doing, id) = (database.within(tenant.map(TenantId::as_str)), commands.clone(), id.to_owned());
    let (tenant, reason, actor) = (tenant.cloned(), reason.clone(), actor.clone());
    // What a key that is revoked has signed must then be taken back.
    commands
        .wholly(async move {
            let key = mark_revoked(&database, &id, tenant.as_ref(), &reason, &actor, now).await?;
            Ok(doing.take_back_signed(key.key, &id, key.tenant.as_ref(), &reason, &actor, now).await?)
        })
        .await
}

/// Stores that a key is revoked. In a transaction of its own: whoever has a command's row may wait for the audit log's head.
async fn mark_revoked(
    database: &Database,
    id: &str,
    tenant: Option<&TenantId>,
    reason: &Reason,
    actor: &Actor,
    now: Timestamp,
) -> Result<OperatorKey, OperatorsError> {
    let mut transaction = database.begin_write().await?;
    // Before anything else: a command that is being signed for is stored by then, or sees that the key is revoked.
    audit::lock(&mut transaction).await?;
    let row = sqlx::query(
        "UPDATE operator_keys SET revoked_at = COALESCE(revoked_at, $3) WHERE id = $1 AND ($2 = '' OR tenant = $2)
         RETURNING id, tenant, name, public_key, created_at, created_by, revoked_at",
    )
    .bind(id)
    .bind(tenant.map_or("", TenantId::as_str))
    .bind(now.millis())
    .fetch_optional(&mut *transaction)
    .await?;
    let key = read(&row.ok_or_else(|| OperatorsError::Unknown(id.chars().take(64).collect()))?)?;
    if key.revoked_at == Some(now) {
        let record = Record {
            actor: actor.clone(),
            action: action::OPERATOR_KEY_REVOKED,
            // Whose key it is, whoever revokes it: there its tenant looks.
            tenant: key.tenant.clone(),
            subject: id.to_owned(),
            detail: json!({ "name": key.name, "reason": reason.as_str() }),
            remote: None,
        };
        audit::append(&mut transaction, now, record).await?;
    }
    transaction.commit().await?;
    Ok(key)
}

fn read(row: &AnyRow) -> Result<OperatorKey, sqlx::Error> {
    let tenant: Option<String> = row.try_get(1)?;
    let key: Vec<u8> = row.try_get(3)?;
    let key = key.try_into().map_err(|_| sqlx::Error::Decode("an operator's key has not 32 bytes".into()))?;
    Ok(OperatorKey {
        id: row.try_get(0)?,
        tenant: tenant.and_then(|tenant| tenant.parse().ok()),
        name: row.try_get(2)?,
        key: OperatorPublicKey::from_bytes(key),
        created_at: Timestamp::from_millis(row.try_get(4)?),
        created_by: row.try_get(5)?,
        revoked_at: row.try_get::<Option<i64>, _>(6)?.map(Timestamp::from_millis),
    })
}
