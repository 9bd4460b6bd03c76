//! Verifies the log in a database, against the certificates beside it.

use data_encoding::HEXLOWER;
use pki::{CertificateDer, Role, Summary};
use protocol::Timestamp;
use store::StoreError;
use store::sqlx::any::AnyRow;
use store::sqlx::{self, AnyConnection, AssertSqlSafe, Row};

use super::{Extent, Finding, Hash, Head, Link, Report, Walk};
use crate::authorities;

/// Rows read at once.
const PAGE: i64 = 1_000;

/// The log could not be verified at all.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// There is no log.
    #[error("it holds no audit log of this version of the hub: see that it is a hub's database")]
    NoLog(#[source] sqlx::Error),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Walks the log as `snapshot` shows it, and compares it with every certificate and authority, and with
/// `certificates` from elsewhere (each with a name for messages and the SHA-256 of its DER).
///
/// # Errors
/// [`DatabaseError`]: then nothing is known of the log.
pub async fn database(
    snapshot: &mut AnyConnection,
    heads: &[Head],
    certificates: &[(String, String)],
    now: Timestamp,
) -> Result<Report, DatabaseError> {
    let mut walk = Walk::new(Extent::Whole, heads);
    let row = sqlx::query("SELECT last_id, hash FROM audit_head WHERE chain = 1")
        .fetch_optional(&mut *snapshot)
        .await
        .map_err(DatabaseError::NoLog)?;
    let head = row.as_ref().and_then(read_head);
    if head.is_none() {
        walk.unreadable("audit_head".into(), "its row is missing or damaged".into());
    }
    entries(snapshot, &mut walk).await?;
    authorities(snapshot, &mut walk).await?;
    links(snapshot, &mut walk).await?;
    leaves(snapshot, &mut walk).await?;
    for (name, sha256) in certificates {
        walk.certificate(name, sha256);
    }
    walk.certificates_done(&now.to_string());
    Ok(walk.finish(head))
}

fn read_head(row: &AnyRow) -> Option<Head> {
    let hash: Vec<u8> = row.try_get(1).ok()?;
    Some(Head { id: row.try_get(0).ok()?, hash: Hash::from_bytes(&hash)? })
}

async fn entries(snapshot: &mut AnyConnection, walk: &mut Walk) -> Result<(), DatabaseError> {
    let mut after = i64::MIN;
    loop {
        let sql = format!("SELECT {} FROM audit WHERE id > $1 ORDER BY id LIMIT $2", Link::COLUMNS);
        let rows = sqlx::query(AssertSqlSafe(sql)).bind(after).bind(PAGE).fetch_all(&mut *snapshot).await?;
        let before = after;
        for row in &rows {
            let id: Result<i64, _> = row.try_get(0);
            match (id, Link::read(row)) {
                (Ok(id), link) => {
                    after = id;
                    match link {
                        Ok(link) => walk.entry(&link),
                        Err(error) => walk.unreadable(format!("entry {id}"), error.to_string()),
                    }
                }
                (Err(error), _) => walk.unreadable("a row of the audit log".into(), error.to_string()),
            }
        }
        if rows.len() < PAGE as usize || after == before {
            return Ok(());
        }
    }
}

async fn authorities(snapshot: &mut AnyConnection, walk: &mut Walk) -> Result<(), DatabaseError> {
    let rows = sqlx::query(
        "SELECT id, kind, tenant, not_after, certificate FROM authorities WHERE certificate IS NOT NULL ORDER BY id",
    )
    .fetch_all(&mut *snapshot)
    .await?;
    for (number, row) in rows.iter().enumerate() {
        if let Err(error) = authority(walk, row) {
            mislabelled(walk, &format!("row {} of the authorities", number + 1), &error.to_string());
        }
    }
    Ok(())
}

/// # Errors
/// When the row holds something else than an authority.
fn authority(walk: &mut Walk, row: &AnyRow) -> Result<(), sqlx::Error> {
    let (id, kind, tenant): (i64, String, Option<String>) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let (not_after, der): (Option<i64>, Vec<u8>) = (row.try_get(3)?, row.try_get(4)?);
    let owner = tenant.as_deref().map_or(String::new(), |tenant| format!(" of tenant {tenant}"));
    let what = format!("authority {id} ({kind}{owner})");
    let Some(summary) = summary(walk, &what, &der) else { return Ok(()) };
    walk.certificate(&what, &HEXLOWER.encode(&summary.sha256));
    let role = Role::of(&der);
    let place = role.as_ref().map(authorities::place);
    if place != Some((&kind, tenant.as_deref().unwrap_or_default())) {
        mislabelled(walk, &what, "the certificate is for another purpose or tenant than its row says");
    }
    if Some(summary.not_after.millis()) != not_after {
        mislabelled(walk, &what, "its row says something else than the certificate");
    }
    Ok(())
}

async fn links(snapshot: &mut AnyConnection, walk: &mut Walk) -> Result<(), DatabaseError> {
    let rows = sqlx::query("SELECT serial, not_after, certificate FROM root_links ORDER BY created_at, serial")
        .fetch_all(snapshot)
        .await?;
    for (number, row) in rows.iter().enumerate() {
        if let Err(error) = link(walk, row) {
            mislabelled(walk, &format!("row {} of the links between roots", number + 1), &error.to_string());
        }
    }
    Ok(())
}

/// # Errors
/// When the row holds something else than a link.
fn link(walk: &mut Walk, row: &AnyRow) -> Result<(), sqlx::Error> {
    let (serial, not_after, der): (Vec<u8>, i64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let what = format!("link {} between roots", HEXLOWER.encode(&serial));
    let Some(summary) = summary(walk, &what, &der) else { return Ok(()) };
    walk.certificate(&what, &HEXLOWER.encode(&summary.sha256));
    if summary.serial != serial || summary.not_after.millis() != not_after {
        mislabelled(walk, &what, "its row says something else than the certificate");
    }
    Ok(())
}

async fn leaves(snapshot: &mut AnyConnection, walk: &mut Walk) -> Result<(), DatabaseError> {
    let mut after = (i64::MIN, Vec::new());
    loop {
        let rows = sqlx::query(
            "SELECT c.authority, c.serial, c.kind, c.tenant, c.node, c.spki_sha256, c.not_after, c.certificate, a.certificate
             FROM certificates c LEFT JOIN authorities a ON a.id = c.authority
             WHERE c.authority > $1 OR (c.authority = $1 AND c.serial > $2)
             ORDER BY c.authority, c.serial LIMIT $3",
        )
        .bind(after.0)
        .bind(after.1.clone())
        .bind(PAGE)
        .fetch_all(&mut *snapshot)
        .await?;
        for row in &rows {
            after = (row.try_get(0)?, row.try_get(1)?);
            if let Err(error) = leaf(walk, row, &after.1) {
                mislabelled(walk, &format!("certificate {}", HEXLOWER.encode(&after.1)), &error.to_string());
            }
        }
        if rows.len() < PAGE as usize {
            return Ok(());
        }
    }
}

/// # Errors
/// When the row holds something else than a certificate.
fn leaf(walk: &mut Walk, row: &AnyRow, serial: &[u8]) -> Result<(), sqlx::Error> {
    let (kind, node): (String, Option<String>) = (row.try_get(2)?, row.try_get(4)?);
    let (tenant, der): (Option<String>, Vec<u8>) = (row.try_get(3)?, row.try_get(7)?);
    let of = node.as_deref().map_or(kind.clone(), |node| format!("{kind} of node {node}"));
    let what = format!("certificate {} ({of})", HEXLOWER.encode(serial));
    let Some(summary) = summary(walk, &what, &der) else { return Ok(()) };
    walk.certificate(&what, &HEXLOWER.encode(&summary.sha256));
    let same = summary.serial == serial
        && summary.spki_sha256.as_slice() == row.try_get::<Vec<u8>, _>(5)?
        && summary.not_after.millis() == row.try_get::<i64, _>(6)?;
    if !same {
        mislabelled(walk, &what, "its row says something else than the certificate");
    }
    let issuer: Vec<u8> = row.try_get::<Option<Vec<u8>>, _>(8)?.unwrap_or_default();
    if let Err(why) = belongs(&kind, tenant.as_deref(), node.as_deref(), &summary, &der, &issuer) {
        mislabelled(walk, &what, &why);
    }
    Ok(())
}

/// Whether a certificate is its row's kind, tenant's and node's, and its authority's.
fn belongs(
    kind: &str,
    tenant: Option<&str>,
    node: Option<&str>,
    summary: &Summary,
    der: &[u8],
    issuer: &[u8],
) -> Result<(), String> {
    let agree = match kind {
        "agent" | "bridge" => {
            let identity =
                pki::node_identity(&[CertificateDer::from(der), issuer.into()]).map_err(|error| error.to_string())?;
            let holder = (identity.kind.as_str(), Some(identity.tenant.as_str()), Some(identity.node.to_string()));
            (holder.0, holder.1, holder.2.as_deref()) == (kind, tenant, node)
        }
        "kafka-client" | "kafka-server" => {
            let root = matches!(Role::of(issuer), Some(Role::Kafka(owner)) if Some(owner.as_str()) == tenant);
            let principal = node.and_then(|node| node.parse().ok()).map(pki::kafka_principal);
            root && if kind == "kafka-client" { principal == summary.common_name } else { node.is_none() }
        }
        "hub-server" => Role::of(issuer) == Some(Role::Hub) && tenant.is_none() && node.is_none(),
        "web-server" => Role::of(issuer) == Some(Role::Web) && tenant.is_none() && node.is_none(),
        _ => false,
    };
    if !agree {
        return Err("its row says something else than the certificate".into());
    }
    if pki::trust::signed_by(der, issuer) { Ok(()) } else { Err("its authority did not sign it".into()) }
}

fn summary(walk: &mut Walk, what: &str, der: &[u8]) -> Option<Summary> {
    match Summary::of(der) {
        Ok(summary) => Some(summary),
        Err(error) => {
            mislabelled(walk, what, &error.to_string());
            None
        }
    }
}

fn mislabelled(walk: &mut Walk, what: &str, why: &str) {
    walk.found(Finding::Mislabelled { what: what.to_owned(), why: why.to_owned() });
}
