//! Who may use the API and the dashboard: API tokens, one-time sign-in links, browser sessions, roles.

mod limiter;
mod principal;
mod secret;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use protocol::{TenantId, Timestamp};
use serde_json::json;
use store::sqlx::{self, Row, any::AnyRow};
use store::{Database, StoreError, Transaction};

use crate::audit::{self, Actor, Record, action};
use secret::{Purpose, Secret};

pub(crate) use limiter::Limiter;
pub use principal::{Principal, Role};

/// How long a browser stays signed in.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// How long a sign-in link works when nothing else is asked for.
pub const LINK_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// The one gate. Clones share it.
#[derive(Clone)]
pub struct Access {
    database: Database,
    limiter: Arc<Limiter>,
}

/// What a new credential may do.
#[derive(Clone, Debug)]
pub struct Grant {
    /// A name for people and for the audit log, at most 100 characters.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Where: this tenant alone, or everywhere.
    pub tenant: Option<TenantId>,
    /// For how long; `None`: until revoked (API tokens), [`LINK_LIFETIME`] (links).
    pub valid_for: Option<Duration>,
}

/// An API token, without its secret.
#[derive(Clone, Debug)]
pub struct ApiToken {
    /// Its id: a UUID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Where.
    pub tenant: Option<TenantId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A browser that has just signed in.
#[derive(Clone)]
pub struct SignedIn {
    /// The cookie's value. Shown to nobody else.
    pub cookie: String,
    /// Who it is.
    pub session: Session,
}

/// A browser's session.
#[derive(Clone, Debug)]
pub struct Session {
    /// Who it is.
    pub principal: Principal,
    /// Goes into every form; see [`Session::csrf_matches`].
    pub csrf: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

impl Session {
    /// Whether a form's token is this session's; takes the same time whatever the answer.
    pub fn csrf_matches(&self, given: &str) -> bool {
        secret::equal(self.csrf.as_bytes(), given.as_bytes())
    }
}

/// Nobody gets in.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The credential is not one, was revoked, or has ended: which, is not told.
    #[error("this token or link is not valid: it may have ended, or have been used or revoked; make a new one")]
    Invalid,
    /// Too many failures from this address.
    #[error("too many failed attempts from this address: try again in {} s", .retry_after.as_secs().max(1))]
    TooMany {
        /// Failures are answered so until this has passed. What is valid gets in all the same.
        retry_after: Duration,
    },
    /// A name, role or scope that can't be granted.
    #[error("{0}")]
    Grant(&'static str),
    /// No such API token.
    #[error("no API token has the id {0:?}: see `hfctl token list`")]
    Unknown(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for AccessError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Access {
    /// A gate over `database`.
    pub fn new(database: Database) -> Self {
        Self { database, limiter: Arc::new(Limiter::default()) }
    }

    /// The same for somebody who is bound to a tenant: other tenants' tokens are not there, and none can be made.
    #[must_use]
    pub fn within(&self, tenant: Option<&TenantId>) -> Self {
        let database = self.database.within(tenant.map(TenantId::as_str));
        Self { database, limiter: Arc::clone(&self.limiter) }
    }

    /// Makes an API token. The text that comes with it, `hft_…`, is shown once and never again.
    ///
    /// # Errors
    /// [`AccessError::Grant`] for a name or tenant that can't be.
    pub async fn create_api_token(
        &self,
        grant: Grant,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(ApiToken, String), AccessError> {
        check(&grant)?;
        let secret = Secret::generate(Purpose::ApiToken);
        let token = ApiToken {
            id: crate::rows::uuid(now),
            name: grant.name,
            role: grant.role,
            tenant: grant.tenant,
            created_at: now,
            created_by: actor.to_string(),
            expires_at: grant.valid_for.map(|valid| now.plus(valid)),
            revoked_at: None,
        };
        let mut transaction = self.database.begin_write().await?;
        sqlx::query(
            "INSERT INTO api_tokens (id, name, role, tenant, secret_hash, created_at, created_by, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(&token.id)
        .bind(&token.name)
        .bind(token.role.as_str())
        .bind(token.tenant.as_ref().map(TenantId::as_str))
        .bind(secret.hash())
        .bind(now.millis())
        .bind(&token.created_by)
        .bind(token.expires_at.map(Timestamp::millis))
        .execute(&mut *transaction)
        .await
        .map_err(unknown_tenant)?;
        let record = Record {
            actor: actor.clone(),
            action: action::API_TOKEN_CREATED,
            tenant: token.tenant.clone(),
            subject: token.id.clone(),
            detail: json!({ "name": token.name, "role": token.role.as_str() }),
            remote: None,
        };
        audit::append(&mut transaction, now, record).await?;
        commit(transaction).await?;
        Ok((token, secret.to_string()))
    }

    /// All API tokens, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_api_tokens(&self) -> Result<Vec<ApiToken>, AccessError> {
        let rows = sqlx::query(
            "SELECT id, name, role, tenant, created_at, created_by, expires_at, revoked_at FROM api_tokens
             WHERE $1 = '' OR tenant = $1 ORDER BY created_at DESC, id DESC",
        )
        .bind(self.database.tenant().unwrap_or_default())
        .fetch_all(&mut *self.database.read().await?)
        .await?;
        rows.iter().map(read_api_token).collect()
    }

    /// Ends an API token at once, and every browser session that was opened with it.
    ///
    /// # Errors
    /// [`AccessError::Unknown`] when there is none with this id.
    pub async fn revoke_api_token(&self, id: &str, actor: &Actor, now: Timestamp) -> Result<(), AccessError> {
        let mut transaction = self.database.begin_write().await?;
        let revoked = sqlx::query(
            "UPDATE api_tokens SET revoked_at = COALESCE(revoked_at, $2)
             WHERE id = $1 AND ($3 = '' OR tenant = $3) RETURNING name, tenant",
        )
        .bind(id)
        .bind(now.millis())
        .bind(self.database.tenant().unwrap_or_default())
        .fetch_optional(&mut *transaction)
        .await?
        .ok_or_else(|| AccessError::Unknown(id.to_owned()))?;
        sqlx::query("DELETE FROM web_sessions WHERE api_token = $1").bind(id).execute(&mut *transaction).await?;
        let record = Record {
            actor: actor.clone(),
            action: action::API_TOKEN_REVOKED,
            tenant: principal::tenant(revoked.try_get(1)?),
            subject: id.to_owned(),
            detail: json!({ "name": revoked.try_get::<String, _>(0)? }),
            remote: None,
        };
        audit::append(&mut transaction, now, record).await?;
        commit(transaction).await
    }

    /// Who presents this bearer token.
    ///
    /// # Errors
    /// [`AccessError::Invalid`], or [`AccessError::TooMany`] after repeated failures from `remote`.
    pub async fn authenticate(&self, bearer: &str, remote: IpAddr, now: Timestamp) -> Result<Principal, AccessError> {
        let found = self.api_token(bearer, now).await?;
        match found {
            Some((principal, _)) => Ok(principal),
            None => Err(self.refuse(action::ACCESS_REFUSED, "api", remote, now).await?),
        }
    }

    /// Makes a link's one-time code, `hfl_…`.
    ///
    /// # Errors
    /// [`AccessError::Grant`] for a name or tenant that can't be.
    pub async fn create_sign_in_link(
        &self,
        grant: Grant,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<String, AccessError> {
        check(&grant)?;
        let secret = Secret::generate(Purpose::Link);
        let mut transaction = self.database.begin_write().await?;
        sqlx::query("DELETE FROM sign_in_links WHERE expires_at < $1")
            .bind(now.minus(SESSION_LIFETIME).millis())
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO sign_in_links (secret_hash, name, role, tenant, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(secret.hash())
        .bind(&grant.name)
        .bind(grant.role.as_str())
        .bind(grant.tenant.as_ref().map(TenantId::as_str))
        .bind(now.millis())
        .bind(now.plus(grant.valid_for.unwrap_or(LINK_LIFETIME)).millis())
        .execute(&mut *transaction)
        .await
        .map_err(unknown_tenant)?;
        let record = Record {
            actor: actor.clone(),
            action: action::SIGN_IN_LINK_CREATED,
            tenant: grant.tenant,
            subject: grant.name,
            detail: json!({ "role": grant.role.as_str() }),
            remote: None,
        };
        audit::append(&mut transaction, now, record).await?;
        commit(transaction).await?;
        Ok(secret.to_string())
    }

    /// Signs a browser in with a link's code (which then is used up) or with an API token.
    ///
    /// # Errors
    /// [`AccessError::Invalid`], or [`AccessError::TooMany`] after repeated failures from `remote`.
    pub async fn sign_in(&self, code: &str, remote: IpAddr, now: Timestamp) -> Result<SignedIn, AccessError> {
        let code = code.trim();
        let (principal, api_token, ends) = if let Some((principal, ends)) = self.api_token(code, now).await? {
            let id = principal.token.clone();
            (principal, id, ends)
        } else if Secret::parse(Purpose::Link, code).is_some() {
            return self.redeem(code, remote, now).await;
        } else {
            return Err(self.refuse(action::SIGN_IN_REFUSED, "sign-in", remote, now).await?);
        };
        let transaction = self.database.begin_write().await?;
        self.open(transaction, principal, api_token, ends, remote, now).await
    }

    /// The session of a cookie.
    ///
    /// # Errors
    /// [`AccessError::Invalid`] when it is none, or has ended.
    pub async fn session(&self, cookie: &str, now: Timestamp) -> Result<Session, AccessError> {
        let secret = Secret::parse(Purpose::Session, cookie).ok_or(AccessError::Invalid)?;
        let row = sqlx::query(
            // A token may be revoked while a session is being opened with it.
            "SELECT name, role, tenant, api_token, expires_at FROM web_sessions
             WHERE secret_hash = $1 AND expires_at > $2 AND (api_token IS NULL OR EXISTS
               (SELECT 1 FROM api_tokens WHERE api_tokens.id = web_sessions.api_token AND revoked_at IS NULL))",
        )
        .bind(secret.hash())
        .bind(now.millis())
        .fetch_optional(self.database.reader())
        .await?
        .ok_or(AccessError::Invalid)?;
        Ok(Session {
            principal: read_principal(&row, row.try_get(3)?)?,
            csrf: secret.csrf(),
            expires_at: Timestamp::from_millis(row.try_get(4)?),
        })
    }

    /// Ends the session of a cookie, if there is one.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn sign_out(&self, cookie: &str, remote: IpAddr, now: Timestamp) -> Result<(), AccessError> {
        let Some(secret) = Secret::parse(Purpose::Session, cookie) else { return Ok(()) };
        let mut transaction = self.database.begin_write().await?;
        let ended = sqlx::query("DELETE FROM web_sessions WHERE secret_hash = $1 RETURNING name, role, tenant")
            .bind(secret.hash())
            .fetch_optional(&mut *transaction)
            .await?;
        let Some(row) = ended else { return Ok(()) };
        let principal = read_principal(&row, None)?;
        audit::append(&mut transaction, now, principal.record(action::SIGNED_OUT, remote)).await?;
        commit(transaction).await
    }

    async fn redeem(&self, code: &str, remote: IpAddr, now: Timestamp) -> Result<SignedIn, AccessError> {
        let hash = Secret::parse(Purpose::Link, code).ok_or(AccessError::Invalid)?.hash();
        let mut transaction = self.database.begin_write().await?;
        // One statement takes the link: of two browsers that come with it at once, one gets in.
        let taken = sqlx::query(
            "UPDATE sign_in_links SET used_at = $2 WHERE secret_hash = $1 AND used_at IS NULL AND expires_at > $2
             RETURNING name, role, tenant",
        )
        .bind(hash)
        .bind(now.millis())
        .fetch_optional(&mut *transaction)
        .await?;
        match taken {
            Some(row) => {
                let principal = read_principal(&row, None)?;
                self.open(transaction, principal, None, None, remote, now).await
            }
            None => {
                transaction.rollback().await?;
                Err(self.refuse(action::SIGN_IN_REFUSED, "sign-in", remote, now).await?)
            }
        }
    }

    async fn open(
        &self,
        mut transaction: Transaction,
        principal: Principal,
        api_token: Option<String>,
        ends: Option<Timestamp>,
        remote: IpAddr,
        now: Timestamp,
    ) -> Result<SignedIn, AccessError> {
        let secret = Secret::generate(Purpose::Session);
        let longest = now.plus(SESSION_LIFETIME);
        let expires_at = ends.map_or(longest, |ends| ends.min(longest));
        sqlx::query("DELETE FROM web_sessions WHERE expires_at < $1")
            .bind(now.millis())
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO web_sessions (secret_hash, name, role, tenant, created_at, expires_at, api_token)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(secret.hash())
        .bind(&principal.name)
        .bind(principal.role.as_str())
        .bind(principal.tenant.as_ref().map(TenantId::as_str))
        .bind(now.millis())
        .bind(expires_at.millis())
        .bind(api_token)
        .execute(&mut *transaction)
        .await?;
        audit::append(&mut transaction, now, principal.record(action::SIGNED_IN, remote)).await?;
        commit(transaction).await?;
        Ok(SignedIn { cookie: secret.to_string(), session: Session { principal, csrf: secret.csrf(), expires_at } })
    }

    async fn api_token(
        &self,
        bearer: &str,
        now: Timestamp,
    ) -> Result<Option<(Principal, Option<Timestamp>)>, AccessError> {
        let Some(secret) = Secret::parse(Purpose::ApiToken, bearer) else { return Ok(None) };
        let row = sqlx::query(
            "SELECT name, role, tenant, id, expires_at FROM api_tokens
             WHERE secret_hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)",
        )
        .bind(secret.hash())
        .bind(now.millis())
        .fetch_optional(self.database.reader())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let ends = row.try_get::<Option<i64>, _>(4)?.map(Timestamp::from_millis);
        Ok(Some((read_principal(&row, row.try_get(3)?)?, ends)))
    }

    /// Counts and audits a credential that is none; of a flood, the start alone is audited.
    async fn refuse(
        &self,
        action: &'static str,
        door: &str,
        remote: IpAddr,
        now: Timestamp,
    ) -> Result<AccessError, AccessError> {
        let failed = self.limiter.failed(remote, now);
        let error = failed.wait.map_or(AccessError::Invalid, |retry_after| AccessError::TooMany { retry_after });
        if !failed.audited {
            return Ok(error);
        }
        let record = Record {
            actor: Actor::anonymous(),
            action,
            tenant: None,
            subject: door.to_owned(),
            detail: json!({ "reason": "the link or token is not valid" }),
            remote: Some(remote),
        };
        audit::record(&self.database, now, record).await?;
        Ok(error)
    }
}

async fn commit(transaction: Transaction) -> Result<(), AccessError> {
    Ok(transaction.commit().await?)
}

fn check(grant: &Grant) -> Result<(), AccessError> {
    let length = grant.name.trim().chars().count();
    if !(1..=100).contains(&length) || grant.name.chars().any(char::is_control) {
        return Err(AccessError::Grant("a name of 1 to 100 printable characters is needed"));
    }
    Ok(())
}

fn unknown_tenant(error: sqlx::Error) -> AccessError {
    match &error {
        sqlx::Error::Database(refused) if refused.is_foreign_key_violation() => {
            AccessError::Grant("there is no such tenant: see `hfctl tenant list`")
        }
        _ => error.into(),
    }
}

/// Columns 0 to 2: name, role, tenant.
fn read_principal(row: &AnyRow, token: Option<String>) -> Result<Principal, AccessError> {
    let role: String = row.try_get(1)?;
    Ok(Principal {
        name: row.try_get(0)?,
        role: role.parse().map_err(|_| AccessError::Invalid)?,
        tenant: principal::tenant(row.try_get(2)?),
        token,
        remote: None,
    })
}

fn read_api_token(row: &AnyRow) -> Result<ApiToken, AccessError> {
    let role: String = row.try_get(2)?;
    let time = |column: usize| row.try_get::<Option<i64>, _>(column).map(|at| at.map(Timestamp::from_millis));
    Ok(ApiToken {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        role: role.parse().map_err(|_| AccessError::Invalid)?,
        tenant: principal::tenant(row.try_get(3)?),
        created_at: Timestamp::from_millis(row.try_get(4)?),
        created_by: row.try_get(5)?,
        expires_at: time(6)?,
        revoked_at: time(7)?,
    })
}
