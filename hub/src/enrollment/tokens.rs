//! Join tokens: made for one tenant and kind, shown once, listed without their secret.

use std::time::Duration;

use pki::JoinToken;
use protocol::{NodeId, NodeKind, TenantId, Timestamp};
use serde_json::json;
use store::StoreError;
use store::sqlx::{self, Row, any::AnyRow};

use super::{Enrollment, name};
use crate::audit::{self, Actor, Record, action};

/// Longest life of a join token.
pub const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(30 * 86_400);

/// A token to be made.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// Whose node it enrolls.
    pub tenant: TenantId,
    /// What kind of node.
    pub kind: NodeKind,
    /// The node's name; `None`: its host name.
    pub name: Option<String>,
    /// For how long.
    pub valid_for: Duration,
}

/// A token without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// Its id: a UUID.
    pub id: String,
    /// Whose node it enrolls.
    pub tenant: TenantId,
    /// What kind of node.
    pub kind: NodeKind,
    /// The node's name, when fixed.
    pub name: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it was used.
    pub used_at: Option<Timestamp>,
    /// The node it enrolled.
    pub node: Option<NodeId>,
}

/// A token that could not be made or listed.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No such tenant.
    #[error("there is no tenant {0}: see `hfctl tenant list`")]
    Tenant(TenantId),
    /// Not a node's name.
    #[error("a node's name has 1 to 64 letters, digits, '.', '-' and '_'")]
    Name,
    /// Too short or too long a life.
    #[error("a token is valid for 1 minute to 30 days")]
    Lifetime,
    /// The token itself could not be made.
    #[error(transparent)]
    Token(#[from] pki::TokenError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for TokenError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Enrollment {
    /// Makes a join token. It can be shown now and never again.
    ///
    /// # Errors
    /// [`TokenError`] says what to change.
    pub async fn create_token(
        &self,
        new: NewToken,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(TokenInfo, JoinToken), TokenError> {
        if new.valid_for < Duration::from_secs(60) || new.valid_for > TOKEN_LIFETIME_MAX {
            return Err(TokenError::Lifetime);
        }
        if new.name.as_deref().is_some_and(|given| name::clean(given).as_deref() != Some(given)) {
            return Err(TokenError::Name);
        }
        let root_pin = self.0.authorities.root_pin();
        let token = JoinToken::generate(&self.0.settings.address, root_pin)?;
        let info = TokenInfo {
            id: crate::rows::uuid(now),
            tenant: new.tenant,
            kind: new.kind,
            name: new.name,
            created_at: now,
            created_by: actor.to_string(),
            expires_at: now.plus(new.valid_for),
            used_at: None,
            node: None,
        };
        let mut transaction = self.0.database.within(Some(info.tenant.as_str())).begin_write().await?;
        sqlx::query(
            "INSERT INTO join_tokens (id, tenant, kind, name, secret_hash, created_at, created_by, expires_at, root_pin)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(&info.id)
        .bind(info.tenant.as_str())
        .bind(info.kind.as_str())
        .bind(info.name.as_deref())
        .bind(token.secret_hash().to_vec())
        .bind(now.millis())
        .bind(&info.created_by)
        .bind(info.expires_at.millis())
        .bind(root_pin.to_vec())
        .execute(&mut *transaction)
        .await
        .map_err(|error| match &error {
            sqlx::Error::Database(refused) if refused.is_foreign_key_violation() => {
                TokenError::Tenant(info.tenant.clone())
            }
            _ => error.into(),
        })?;
        let record = Record {
            actor: actor.clone(),
            action: action::TOKEN_CREATED,
            tenant: Some(info.tenant.clone()),
            subject: info.id.clone(),
            detail: json!({
                "kind": info.kind.as_str(), "name": info.name, "expires_at": info.expires_at.to_string(),
            }),
            remote: None,
        };
        audit::append(&mut transaction, now, record).await?;
        transaction.commit().await?;
        Ok((info, token))
    }

    /// Tokens, newest first: of one tenant, when given, and at most 500.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_tokens(&self, tenant: Option<&TenantId>) -> Result<Vec<TokenInfo>, TokenError> {
        let rows = sqlx::query(
            "SELECT id, tenant, kind, name, created_at, created_by, expires_at, used_at, node FROM join_tokens
             WHERE $1 = '' OR tenant = $1 ORDER BY created_at DESC, id DESC LIMIT 500",
        )
        .bind(tenant.map_or("", TenantId::as_str))
        .fetch_all(&mut *self.0.database.within(tenant.map(TenantId::as_str)).read().await?)
        .await?;
        Ok(rows.iter().map(read).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// One token, by its id, for somebody who may be bound to a tenant: for a page that waits for its use.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn token(&self, id: &str, tenant: Option<&TenantId>) -> Result<Option<TokenInfo>, TokenError> {
        let row = sqlx::query(
            "SELECT id, tenant, kind, name, created_at, created_by, expires_at, used_at, node FROM join_tokens
             WHERE id = $1 AND ($2 = '' OR tenant = $2)",
        )
        .bind(id)
        .bind(tenant.map_or("", TenantId::as_str))
        .fetch_optional(&mut *self.0.database.within(tenant.map(TenantId::as_str)).read().await?)
        .await?;
        Ok(row.as_ref().map(read).transpose()?.flatten())
    }
}

/// `None` for ids that are none: nothing but this module writes them.
fn read(row: &AnyRow) -> Result<Option<TokenInfo>, sqlx::Error> {
    let (tenant, kind): (String, String) = (row.try_get(1)?, row.try_get(2)?);
    let (Ok(tenant), Ok(kind)) = (tenant.parse(), kind.parse()) else { return Ok(None) };
    Ok(Some(TokenInfo {
        id: row.try_get(0)?,
        tenant,
        kind,
        name: row.try_get(3)?,
        created_at: Timestamp::from_millis(row.try_get(4)?),
        created_by: row.try_get(5)?,
        expires_at: Timestamp::from_millis(row.try_get(6)?),
        used_at: row.try_get::<Option<i64>, _>(7)?.map(Timestamp::from_millis),
        node: row.try_get::<Option<String>, _>(8)?.and_then(|node| node.parse().ok()),
    }))
}
