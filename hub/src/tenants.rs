//! Tenants: each is made with an authority of its own, in one transaction.

use protocol::{TenantId, Timestamp};
use serde_json::json;
use store::sqlx::{self, AssertSqlSafe, Row, any::AnyRow};
use store::{Database, StoreError};

use crate::audit::{self, Actor, Record, action};
use crate::authorities::{Authorities, AuthoritiesError};

/// The fleet's customers.
#[derive(Clone)]
pub struct Tenants {
    database: Database,
    authorities: Authorities,
}

/// One customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its slug, for ever.
    pub id: TenantId,
    /// Its name for people.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Whether its authority waits for the signature of a fleet root that is kept offline: no node can enroll before.
    pub awaits_signature: bool,
}

/// A tenant that could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum TenantError {
    /// There is one with this id.
    #[error("tenant {0} exists already")]
    Exists(TenantId),
    /// There is none with this id.
    #[error("there is no tenant {0}: see `hfctl tenant list`")]
    Unknown(TenantId),
    /// Not a name.
    #[error("a tenant's name has 1 to 100 printable characters")]
    Name,
    /// Its authority could not be made.
    #[error(transparent)]
    Authorities(#[from] AuthoritiesError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for TenantError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Tenants {
    /// The tenants of `database`.
    pub fn new(database: Database, authorities: Authorities) -> Self {
        Self { database, authorities }
    }

    /// The same for somebody who is bound to a tenant: nothing else is there.
    #[must_use]
    pub fn within(&self, tenant: Option<&TenantId>) -> Self {
        Self { database: self.database.within(tenant.map(TenantId::as_str)), authorities: self.authorities.clone() }
    }

    /// Makes a tenant and its intermediate; while the fleet root is offline, the intermediate waits for its signature.
    ///
    /// # Errors
    /// [`TenantError::Exists`], [`TenantError::Name`], or why it could not be stored.
    pub async fn create(
        &self,
        id: &TenantId,
        name: &str,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Tenant, TenantError> {
        let name = name.trim();
        if !(1..=100).contains(&name.chars().count()) || name.chars().any(char::is_control) {
            return Err(TenantError::Name);
        }
        let mut transaction = self.database.begin_write().await?;
        let inserted =
            sqlx::query("INSERT INTO tenants (id, name, created_at) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING")
                .bind(id.as_str())
                .bind(name)
                .bind(now.millis())
                .execute(&mut *transaction)
                .await?;
        if inserted.rows_affected() == 0 {
            return Err(TenantError::Exists(id.clone()));
        }
        let signed = self.authorities.create_tenant(&mut transaction, id, now).await?;
        let record = Record {
            actor: actor.clone(),
            action: action::TENANT_CREATED,
            tenant: Some(id.clone()),
            subject: id.to_string(),
            detail: json!({ "name": name }),
            remote: None,
        };
        audit::append(&mut transaction, now, record).await?;
        transaction.commit().await?;
        Ok(Tenant { id: id.clone(), name: name.to_owned(), created_at: now, awaits_signature: !signed })
    }

    /// All tenants, by id.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list(&self) -> Result<Vec<Tenant>, TenantError> {
        let sql = format!("{TENANT} WHERE $1 = '' OR t.id = $1 ORDER BY t.id");
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(self.database.tenant().unwrap_or_default())
            .fetch_all(&mut *self.database.read().await?)
            .await?;
        Ok(rows.iter().map(read).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// One tenant.
    ///
    /// # Errors
    /// [`TenantError::Unknown`] when there is none with this id.
    pub async fn get(&self, id: &TenantId) -> Result<Tenant, TenantError> {
        let row = sqlx::query(AssertSqlSafe(format!("{TENANT} WHERE t.id = $1")))
            .bind(id.as_str())
            .fetch_optional(&mut *self.database.read().await?)
            .await?;
        let tenant = row.as_ref().map(read).transpose()?.flatten();
        tenant.ok_or_else(|| TenantError::Unknown(id.clone()))
    }
}

/// A tenant, and how many authorities issue for its nodes.
const TENANT: &str = "SELECT t.id, t.name, t.created_at,
    (SELECT COUNT(*) FROM authorities a WHERE a.tenant = t.id AND a.kind = 'nodes' AND a.state = 'active') FROM tenants t";

/// `None` for an id that is none: nothing but [`Tenants::create`] writes them.
fn read(row: &AnyRow) -> Result<Option<Tenant>, sqlx::Error> {
    let id: String = row.try_get(0)?;
    let (name, created_at) = (row.try_get(1)?, Timestamp::from_millis(row.try_get(2)?));
    let awaits_signature = row.try_get::<i64, _>(3)? == 0;
    Ok(id.parse().ok().map(|id| Tenant { id, name, created_at, awaits_signature }))
}
