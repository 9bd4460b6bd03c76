//! Authorities as they are listed: for pages, programs and gauges.

use pki::authority::BACKDATE;
use protocol::{TenantId, Timestamp};
use store::Database;
use store::sqlx::{self, Row as _};

use super::AuthoritiesError;
use crate::certificate_policy::{Kind, Policies};

/// One authority, without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its number, which its revocation list is found by.
    pub id: i64,
    /// `root`, `hub`, `nodes`, `kafka`, `web`.
    pub kind: String,
    /// Whose it is; `None`: the fleet's.
    pub tenant: Option<String>,
    /// Counts from 1 within kind and tenant.
    pub generation: i64,
    /// `awaiting-signature`, `pending`, `trusted`, `active` or `retired`.
    pub state: String,
    /// SHA-256 of its SubjectPublicKeyInfo, hexadecimal.
    pub spki_sha256: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// End of its validity; `None` while it waits for its signature.
    pub not_after: Option<Timestamp>,
    /// Of one that issues: when the hub makes its successor by itself; `None` for a root.
    pub followed_at: Option<Timestamp>,
    /// Of one that issues: by when it is to have a successor, by the policy; of a root, by rotation.
    pub renew_by: Option<Timestamp>,
    /// Certificates of its that are good now.
    pub certificates: i64,
}

impl Listed {
    /// Those of `all` that come after it, perhaps not signed yet.
    pub(crate) fn followers<'a>(&self, all: &'a [Self]) -> impl Iterator<Item = &'a Self> {
        all.iter().filter(|other| {
            (&other.kind, &other.tenant) == (&self.kind, &self.tenant)
                && other.generation > self.generation
                && other.state != "retired"
        })
    }
}

/// All authorities, the fleet's first, then by tenant, kind and age; of one tenant alone when `tenant` says so.
pub(super) async fn list(
    database: &Database,
    policies: &Policies,
    tenant: Option<&TenantId>,
    now: Timestamp,
) -> Result<Vec<Listed>, AuthoritiesError> {
    let mut transaction = database.begin_read().await?;
    let rows = sqlx::query(
        "SELECT a.id, a.kind, a.tenant, a.generation, a.state, a.spki_sha256, a.created_at, a.not_after,
             (SELECT COUNT(*) FROM certificates c
              WHERE c.authority = a.id AND c.state IN ('issued', 'active') AND c.not_after > $2)
         FROM authorities a WHERE $1 = '' OR a.tenant = $1
         ORDER BY COALESCE(a.tenant, ''), a.kind, a.generation DESC",
    )
    .bind(tenant.map_or("", TenantId::as_str))
    .bind(now.millis())
    .fetch_all(&mut *transaction)
    .await?;
    let mut all = Vec::with_capacity(rows.len());
    for row in &rows {
        let (kind, state): (String, String) = (row.try_get(1)?, row.try_get(4)?);
        let not_after = row.try_get::<Option<i64>, _>(7)?.map(Timestamp::from_millis);
        let tenant: Option<String> = row.try_get(2)?;
        let (spki, created_at) = (row.try_get::<Vec<u8>, _>(5)?, Timestamp::from_millis(row.try_get(6)?));
        let place = match (state.as_str(), kind.as_str()) {
            ("active", "root") => Some(Kind::Root),
            ("active", "hub") => Some(Kind::HubIntermediate),
            ("active", "nodes") => Some(Kind::NodesIntermediate),
            ("active", "kafka") => Some(Kind::KafkaRoot),
            _ => None,
        };
        let (mut followed_at, mut renew_by) = (None, None);
        if let (Some(kind), Some(not_after), Ok(spki)) = (place, not_after, spki.as_slice().try_into()) {
            let policy = policies.of(tenant.as_deref().and_then(|tenant| tenant.parse().ok()).as_ref());
            renew_by = Some(policy.terms(kind).renew_by(created_at, not_after));
            // A root has no successor of itself.
            if matches!(kind, Kind::HubIntermediate | Kind::NodesIntermediate) {
                followed_at = Some(policy.followed_at(kind, spki, created_at.minus(BACKDATE), not_after));
            }
        }
        all.push(Listed {
            id: row.try_get(0)?,
            tenant,
            generation: row.try_get(3)?,
            spki_sha256: data_encoding::HEXLOWER.encode(&spki),
            created_at,
            followed_at,
            renew_by,
            not_after,
            certificates: row.try_get(8)?,
            kind,
            state,
        });
    }
    Ok(all)
}
