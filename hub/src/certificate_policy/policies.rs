//! The policy as it is set: the fleet's terms and tenants' own, in the database, and in memory for whoever issues.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use protocol::{TenantId, Timestamp};
use serde_json::{Value, json};
use store::sqlx::{self, Row};
use store::{Database, StoreError, Transaction};

use super::{CertificatePolicy, Kind, PolicyError, Terms};
use crate::audit::{self, Actor, Record, action};

/// Everybody's policy. Clones share it.
#[derive(Clone, Default)]
pub struct Policies(Arc<RwLock<Set>>);

/// What is set, by tenant (`None`: the fleet) and kind; all else is as by default.
type Set = BTreeMap<(Option<TenantId>, Kind), (Terms, Change)>;

/// When terms were set, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    at: Timestamp,
    by: String,
}

/// Terms that go for somebody, and where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated {
    /// Of what.
    pub kind: Kind,
    /// The terms.
    pub terms: Terms,
    /// Where they come from.
    pub source: Source,
    /// When they were set, and by whom; `None` for a default.
    pub changed: Option<(Timestamp, String)>,
}

/// Where terms come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody has set them.
    Default,
    /// They are the fleet's.
    Fleet,
    /// They are the tenant's own.
    Tenant,
}

impl Policies {
    /// What is set in `database`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn load(transaction: &mut Transaction) -> Result<Self, StoreError> {
        Ok(Self(Arc::new(RwLock::new(read(transaction).await?))))
    }

    /// Reads again what is set: another hub on the same database may have changed it.
    ///
    /// # Errors
    /// When the database does not answer; all stays as it was.
    pub async fn look(&self, transaction: &mut Transaction) -> Result<(), StoreError> {
        let set = read(transaction).await?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = set;
        Ok(())
    }

    /// The policy of a tenant; `None`: the fleet's.
    pub fn of(&self, tenant: Option<&TenantId>) -> CertificatePolicy {
        policy(&self.0.read().unwrap_or_else(PoisonError::into_inner), tenant)
    }

    /// The terms for one kind of certificate of a tenant's.
    pub fn terms(&self, tenant: Option<&TenantId>, kind: Kind) -> Terms {
        stated(&self.0.read().unwrap_or_else(PoisonError::into_inner), tenant, kind).terms
    }

    /// All terms that go for a tenant, or for the fleet, with where they come from.
    pub fn list(&self, tenant: Option<&TenantId>) -> Vec<Stated> {
        let set = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let kinds = Kind::ALL.into_iter().filter(|kind| tenant.is_none() || kind.is_tenants());
        kinds.map(|kind| stated(&set, tenant, kind)).collect()
    }

    /// Sets the terms of a kind for the fleet, or for one tenant alone; `None` takes them back, so that what goes for the
    /// fleet, or by default, goes again. They count from the next certificate on. The act is in the audit log.
    ///
    /// # Errors
    /// [`PolicyError`]; nothing has changed then.
    pub async fn set(
        &self,
        database: &Database,
        tenant: Option<&TenantId>,
        kind: Kind,
        terms: Option<Terms>,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Stated, PolicyError> {
        if tenant.is_some() && !kind.is_tenants() {
            return Err(PolicyError::Fleet(kind));
        }
        let mut transaction = database.begin_write().await?;
        if let Some(tenant) = tenant {
            let known: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM tenants WHERE id = $1")
                .bind(tenant.as_str())
                .fetch_one(&mut *transaction)
                .await?;
            if known == 0 {
                return Err(PolicyError::Tenant(tenant.clone()));
            }
        }
        let mut set = read(&mut transaction).await?;
        let before = stated(&set, tenant, kind);
        let place = (tenant.cloned(), kind);
        let change = Change { at: now, by: actor.to_string() };
        match terms {
            Some(terms) => drop(set.insert(place, (terms, change))),
            None => drop(set.remove(&place)),
        }
        check(&set)?;
        write(&mut transaction, tenant, kind, terms, actor, now).await?;
        let after = stated(&set, tenant, kind);
        let record = Record {
            actor: actor.clone(),
            action: action::CERTIFICATE_POLICY_CHANGED,
            tenant: tenant.cloned(),
            subject: kind.to_string(),
            detail: json!({ "before": logged(&before), "after": logged(&after) }),
            remote: None,
        };
        audit::append(&mut transaction, now, record).await?;
        transaction.commit().await?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = set;
        tracing::info!(tenant = tenant.map(TenantId::as_str), %kind, terms = %after.terms, "certificate policy changed");
        Ok(after)
    }
}

impl Source {
    /// Its name in the API and the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Fleet => "fleet",
            Self::Tenant => "tenant",
        }
    }
}

fn logged(stated: &Stated) -> Value {
    let Terms { lifetime, renew_from, renew_until } = stated.terms;
    json!({
        "source": stated.source.as_str(), "lifetime_seconds": lifetime.as_secs(),
        "renew_from_percent": renew_from, "renew_until_percent": renew_until,
    })
}

fn stated(set: &Set, tenant: Option<&TenantId>, kind: Kind) -> Stated {
    let found = |tenant: Option<&TenantId>, source| {
        let (terms, change) = set.get(&(tenant.cloned(), kind))?;
        Some(Stated { kind, terms: *terms, source, changed: Some((change.at, change.by.clone())) })
    };
    let own = tenant.and_then(|tenant| found(Some(tenant), Source::Tenant));
    let default = || Stated { kind, terms: kind.default_terms(), source: Source::Default, changed: None };
    own.or_else(|| found(None, Source::Fleet)).unwrap_or_else(default)
}

fn policy(set: &Set, tenant: Option<&TenantId>) -> CertificatePolicy {
    Kind::ALL
        .into_iter()
        .fold(CertificatePolicy::default(), |policy, kind| policy.with(kind, stated(set, tenant, kind).terms))
}

/// Whether everything fits for the fleet, and for each tenant with terms of its own.
fn check(set: &Set) -> Result<(), PolicyError> {
    policy(set, None).check()?;
    let tenants: BTreeSet<&TenantId> = set.keys().filter_map(|(tenant, _)| tenant.as_ref()).collect();
    for tenant in tenants {
        let fits = policy(set, Some(tenant)).check();
        fits.map_err(|why| PolicyError::OfTenant { tenant: tenant.clone(), why: Box::new(why) })?;
    }
    Ok(())
}

/// What is set. A row that is none of ours counts for nothing.
async fn read(transaction: &mut Transaction) -> Result<Set, StoreError> {
    let rows = sqlx::query(
        "SELECT tenant, kind, lifetime_seconds, renew_from, renew_until, changed_at, changed_by FROM certificate_policies",
    )
    .fetch_all(&mut **transaction)
    .await?;
    let mut set = Set::new();
    for row in &rows {
        let tenant = row.try_get::<Option<String>, _>(0)?.map(|tenant| tenant.parse()).transpose();
        let (Ok(tenant), Ok(kind)) = (tenant, row.try_get::<String, _>(1)?.parse()) else { continue };
        let percent = |column| Ok::<_, sqlx::Error>(u8::try_from(row.try_get::<i64, _>(column)?).unwrap_or(u8::MAX));
        let seconds = row.try_get::<i64, _>(2)?.max(0).unsigned_abs();
        let (renew_from, renew_until) = (percent(3)?, percent(4)?);
        let terms = Terms { lifetime: Duration::from_secs(seconds), renew_from, renew_until };
        let change = Change { at: Timestamp::from_millis(row.try_get(5)?), by: row.try_get(6)? };
        set.insert((tenant, kind), (terms, change));
    }
    Ok(set)
}

async fn write(
    transaction: &mut Transaction,
    tenant: Option<&TenantId>,
    kind: Kind,
    terms: Option<Terms>,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), PolicyError> {
    let Some(Terms { lifetime, renew_from, renew_until }) = terms else {
        sqlx::query("DELETE FROM certificate_policies WHERE COALESCE(tenant, '') = $1 AND kind = $2")
            .bind(tenant.map_or("", TenantId::as_str))
            .bind(kind.as_str())
            .execute(&mut **transaction)
            .await?;
        return Ok(());
    };
    sqlx::query(
        "INSERT INTO certificate_policies
             (tenant, kind, lifetime_seconds, renew_from, renew_until, changed_at, changed_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (COALESCE(tenant, ''), kind) DO UPDATE SET lifetime_seconds = excluded.lifetime_seconds,
             renew_from = excluded.renew_from, renew_until = excluded.renew_until,
             changed_at = excluded.changed_at, changed_by = excluded.changed_by",
    )
    .bind(tenant.map(TenantId::as_str))
    .bind(kind.as_str())
    .bind(i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX))
    .bind(i64::from(renew_from))
    .bind(i64::from(renew_until))
    .bind(now.millis())
    .bind(actor.to_string())
    .execute(&mut **transaction)
    .await?;
    Ok(())
}
