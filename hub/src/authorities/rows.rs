//! Authorities as they stand in the database: found by what they are for, saved as the next generation.

use std::collections::HashSet;

use pki::{Authority, AuthorityError, CertificateDer, Owner, Role, Summary};
use protocol::Timestamp;
use serde_json::json;
use store::sqlx::{self, Row};
use store::{Database, Transaction};

use super::{AuthoritiesError, Issuing};
use crate::audit::{self, Actor, Record, action};
use crate::keys::Keys;

/// Kind and tenant in the table; the tenant is empty where there is none.
pub(crate) fn place(role: &Role) -> (&'static str, &str) {
    match role {
        Role::Root => ("root", ""),
        Role::Hub => ("hub", ""),
        Role::Nodes(tenant) => ("nodes", tenant.as_str()),
        Role::Kafka(tenant) => ("kafka", tenant.as_str()),
        Role::Web => ("web", ""),
    }
}

/// What an authority is for that has this kind and tenant in the table.
pub(super) fn role(kind: &str, tenant: Option<&str>) -> Option<Role> {
    match (kind, tenant) {
        ("root", None) => Some(Role::Root),
        ("hub", None) => Some(Role::Hub),
        ("web", None) => Some(Role::Web),
        ("nodes", Some(tenant)) => tenant.parse().ok().map(Role::Nodes),
        ("kafka", Some(tenant)) => tenant.parse().ok().map(Role::Kafka),
        _ => None,
    }
}

/// The authority that issues as `role`; `None` also when its key is elsewhere.
pub(super) async fn load(
    transaction: &mut Transaction,
    role: &Role,
    keys: &Keys,
) -> Result<Option<Issuing>, AuthoritiesError> {
    let (kind, tenant) = place(role);
    let row = sqlx::query(
        "SELECT id, certificate, sealed_key FROM authorities
         WHERE kind = $1 AND COALESCE(tenant, '') = $2 AND state = 'active' AND sealed_key IS NOT NULL",
    )
    .bind(kind)
    .bind(tenant)
    .fetch_optional(&mut **transaction)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let (certificate, sealed): (Vec<u8>, Vec<u8>) = (row.try_get(1)?, row.try_get(2)?);
    let key = keys.get(transaction, role.owner()).await?;
    let authority = Authority::open(&certificate, &sealed, &key)?;
    if authority.role() != role {
        return Err(AuthorityError::Certificate.into());
    }
    Ok(Some(Issuing { id: row.try_get(0)?, authority }))
}

/// The row of the authority that issues as `role`.
pub(super) async fn active(transaction: &mut Transaction, role: &Role) -> Result<Option<i64>, AuthoritiesError> {
    let (kind, tenant) = place(role);
    let id = sqlx::query_scalar(
        "SELECT id FROM authorities WHERE kind = $1 AND COALESCE(tenant, '') = $2 AND state = 'active'",
    )
    .bind(kind)
    .bind(tenant)
    .fetch_optional(&mut **transaction)
    .await?;
    Ok(id)
}

/// The nodes' intermediates that are trusted no more, of all tenants.
pub(super) async fn retired(transaction: &mut Transaction) -> Result<HashSet<i64>, AuthoritiesError> {
    let ids: Vec<i64> = sqlx::query_scalar("SELECT id FROM authorities WHERE kind = 'nodes' AND state = 'retired'")
        .fetch_all(&mut **transaction)
        .await?;
    Ok(ids.into_iter().collect())
}

/// The authority of this row, whatever its state; `None` when its certificate or its key is not here.
pub(super) async fn by_number(
    transaction: &mut Transaction,
    id: i64,
    keys: &Keys,
) -> Result<Option<Authority>, AuthoritiesError> {
    let row = sqlx::query(
        "SELECT certificate, sealed_key FROM authorities
         WHERE id = $1 AND certificate IS NOT NULL AND sealed_key IS NOT NULL",
    )
    .bind(id)
    .fetch_optional(&mut **transaction)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let (certificate, sealed): (Vec<u8>, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
    let role = Role::of(&certificate).ok_or(AuthorityError::Certificate)?;
    let key = keys.get(transaction, role.owner()).await?;
    Ok(Some(Authority::open(&certificate, &sealed, &key)?))
}

/// Stores `authority` as the active one of its kind. The one before it issues no more, and stays trusted: what it issued
/// is good until it ends.
pub(super) async fn save(
    transaction: &mut Transaction,
    authority: &Authority,
    issuer: Option<i64>,
    keys: &Keys,
    now: Timestamp,
) -> Result<i64, AuthoritiesError> {
    stand_down(transaction, authority.role()).await?;
    insert(transaction, authority, issuer, "active", keys, now).await
}

/// Gives the row that waits for a signature its certificate by the root `issuer`, and makes it the active one, as [`save`]
/// does; the successor in a rotation has its turn when the rotation says so.
pub(super) async fn complete(
    transaction: &mut Transaction,
    id: i64,
    role: &Role,
    (certificate, issuer): (&CertificateDer<'_>, i64),
    actor: &Actor,
    now: Timestamp,
) -> Result<(), AuthoritiesError> {
    let rotated: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM rotations WHERE new_authority = $1 AND ended_at IS NULL")
            .bind(id)
            .fetch_one(&mut **transaction)
            .await?;
    let state = if rotated > 0 { "pending" } else { "active" };
    if rotated == 0 {
        stand_down(transaction, role).await?;
    }
    let summary = Summary::of(certificate).map_err(AuthoritiesError::Unreadable)?;
    sqlx::query("UPDATE authorities SET state = $5, certificate = $2, not_after = $3, issuer = $4 WHERE id = $1")
        .bind(id)
        .bind(certificate.to_vec())
        .bind(summary.not_after.millis())
        .bind(issuer)
        .bind(state)
        .execute(&mut **transaction)
        .await?;
    created(transaction, role, &summary, actor, now).await
}

/// The one of this kind that is active issues no more, and stays trusted.
pub(super) async fn stand_down(transaction: &mut Transaction, role: &Role) -> Result<(), AuthoritiesError> {
    let (kind, tenant) = place(role);
    sqlx::query(
        "UPDATE authorities SET state = 'trusted'
         WHERE kind = $1 AND COALESCE(tenant, '') = $2 AND state = 'active'",
    )
    .bind(kind)
    .bind(tenant)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Stores `authority` as the newest generation of its kind; `issuer` is the row of the root that signed it.
pub(super) async fn insert(
    transaction: &mut Transaction,
    authority: &Authority,
    issuer: Option<i64>,
    state: &'static str,
    keys: &Keys,
    now: Timestamp,
) -> Result<i64, AuthoritiesError> {
    let (kind, tenant) = place(authority.role());
    let sealed = authority.seal_key(&keys.get(transaction, authority.role().owner()).await?)?;
    let id = sqlx::query_scalar(
        "INSERT INTO authorities (kind, tenant, generation, state, spki_sha256, certificate, sealed_key, not_after, created_at,
             issuer)
         SELECT $1, NULLIF($2, ''), COALESCE(MAX(generation), 0) + 1, $8, $3, $4, $5, $6, $7, $9 FROM authorities
         WHERE kind = $1 AND COALESCE(tenant, '') = $2 RETURNING id",
    )
    .bind(kind)
    .bind(tenant)
    .bind(authority.spki_sha256().to_vec())
    .bind(authority.certificate_der().to_vec())
    .bind(sealed)
    .bind(authority.not_after().millis())
    .bind(now.millis())
    .bind(state)
    .bind(issuer)
    .fetch_one(&mut **transaction)
    .await?;
    let summary = Summary::of(authority.certificate_der()).map_err(AuthoritiesError::Unreadable)?;
    created(transaction, authority.role(), &summary, &Actor::system(), now).await?;
    Ok(id)
}

async fn created(
    transaction: &mut Transaction,
    role: &Role,
    summary: &Summary,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), AuthoritiesError> {
    let record = Record {
        actor: actor.clone(),
        action: action::AUTHORITY_CREATED,
        tenant: match role.owner() {
            Owner::Fleet => None,
            Owner::Tenant(tenant) => Some(tenant),
        },
        subject: place(role).0.to_owned(),
        detail: json!({ "certificate": audit::certificate("authority", summary) }),
        remote: None,
    };
    audit::append(transaction, now, record).await?;
    Ok(())
}

/// The certificates to trust for `role` at `now`, the newest first: of those that issue, those before them whose
/// certificates are still in use, and those that are about to.
pub(super) async fn trusted(
    database: &Database,
    role: &Role,
    now: Timestamp,
) -> Result<Vec<CertificateDer<'static>>, AuthoritiesError> {
    let (kind, tenant) = place(role);
    let certificates: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT certificate FROM authorities
         WHERE kind = $1 AND COALESCE(tenant, '') = $2 AND state IN ('trusted', 'active') AND not_after > $3
         ORDER BY generation DESC",
    )
    .bind(kind)
    .bind(tenant)
    .bind(now.millis())
    .fetch_all(database.reader())
    .await?;
    Ok(certificates.into_iter().map(CertificateDer::from).collect())
}

/// Opens every authority that issues.
pub(super) async fn check(database: &Database, keys: &Keys) -> Result<(), AuthoritiesError> {
    let mut transaction = database.begin_read().await?;
    let rows = sqlx::query("SELECT kind, tenant FROM authorities WHERE state = 'active' AND sealed_key IS NOT NULL")
        .fetch_all(&mut *transaction)
        .await?;
    for row in rows {
        let (kind, tenant): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        let role = role(&kind, tenant.as_deref()).ok_or(AuthorityError::Certificate)?;
        load(&mut transaction, &role, keys).await?;
    }
    Ok(())
}
