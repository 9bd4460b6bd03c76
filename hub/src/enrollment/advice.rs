//! Advice to renew before the time: whom it is for, when each is to come, and that they are told, now or when they return.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::{NodeId, TenantId, Timestamp};
use serde_json::json;
use store::sqlx::any::AnyRow;
use store::sqlx::{self, AssertSqlSafe, Row};
use store::{StoreError, Transaction};

use super::Enrollment;
use crate::audit::{self, Actor, Record, action};
use crate::certificate_policy::Kind;
use crate::gateway::Directive;
use crate::rows;
use crate::telemetry::state::NodeView;

/// Longest time over which renewals are spread.
pub const ADVICE_WITHIN_MAX: Duration = Duration::from_secs(90 * 86_400);
/// Renewals a second that are asked for at most: a spread that is too short for that is made longer.
pub const ADVISED_PER_SECOND: f64 = 100.0;
/// Longest reason, characters.
const REASON_MAX: usize = 200;
/// Nodes by one statement.
const AT_ONCE: usize = 500;
/// Nodes that the audit log names one by one; more are counted.
const NAMED: usize = 100;

/// The nodes that are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// These. Those that are revoked, or not known, are left out.
    Nodes(Vec<NodeId>),
    /// All of a tenant's.
    Tenant(TenantId),
    /// The fleet.
    All,
}

/// The certificates that are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Nodes' identities.
    Identity,
    /// What bridges show their tenant's brokers.
    Kafka,
    /// Both.
    All,
}

impl What {
    fn has_identity(self) -> bool {
        self != Self::Kafka
    }

    fn has_kafka(self) -> bool {
        self != Self::Identity
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Kafka => "kafka_client",
            Self::All => "all",
        }
    }
}

/// What an advice did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advised {
    /// Nodes it is for.
    pub nodes: usize,
    /// Those of them that were told at once; the others hear of it when they return.
    pub told: usize,
    /// The last of the moments.
    pub until: Timestamp,
}

/// Advice that was not given.
#[derive(Debug, thiserror::Error)]
pub enum AdviseError {
    /// Too far away.
    #[error("renewals are spread over at most {} days", ADVICE_WITHIN_MAX.as_secs() / 86_400)]
    Within,
    /// The reason is not one line of reasonable length.
    #[error("a reason is one line of at most {REASON_MAX} characters")]
    Reason,
    /// The database failed; nobody is advised.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for AdviseError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What one node is advised.
#[derive(Clone, Copy, Debug)]
pub(super) struct Advice {
    pub(super) at: Timestamp,
    /// For certificates up to this number: one that was issued later satisfies it.
    pub(super) through: u64,
}

impl Enrollment {
    /// Advises nodes to renew their certificates, bridges also those for Kafka, spread evenly over `within` from `now` on: no stretch of that time has
    /// more than its share. It takes the place of an earlier advice, and moves no renewal to later than the policy says.
    /// Whoever is in session here is told before this returns, the others when they return; it is satisfied when a newer
    /// certificate has been issued. The act and its reason are in the audit log of each tenant concerned.
    ///
    /// # Errors
    /// [`AdviseError`]; nobody is advised then.
    pub async fn renew_soon(
        &self,
        whom: &Whom,
        within: Duration,
        actor: &Actor,
        reason: &str,
        now: Timestamp,
    ) -> Result<Advised, AdviseError> {
        self.advise((whom, What::All), within, actor, reason, now).await
    }

    /// The same, for their identities alone.
    pub(crate) async fn renew_identities_soon(
        &self,
        nodes: Vec<NodeId>,
        within: Duration,
        reason: &str,
        now: Timestamp,
    ) -> Result<Advised, AdviseError> {
        self.advise((&Whom::Nodes(nodes), What::Identity), within, &Actor::system(), reason, now).await
    }

    /// The same, for bridges' Kafka certificates alone.
    pub(crate) async fn renew_kafka_soon(
        &self,
        bridges: Vec<NodeId>,
        within: Duration,
        reason: &str,
        now: Timestamp,
    ) -> Result<Advised, AdviseError> {
        self.advise((&Whom::Nodes(bridges), What::Kafka), within, &Actor::system(), reason, now).await
    }

    async fn advise(
        &self,
        (whom, what): (&Whom, What),
        within: Duration,
        actor: &Actor,
        reason: &str,
        now: Timestamp,
    ) -> Result<Advised, AdviseError> {
        if within > ADVICE_WITHIN_MAX {
            return Err(AdviseError::Within);
        }
        if reason.chars().count() > REASON_MAX || reason.chars().any(char::is_control) {
            return Err(AdviseError::Reason);
        }
        let meant = self.0.registry.meant(whom);
        let within = within.max(Duration::from_secs_f64(meant.len() as f64 / ADVISED_PER_SECOND));
        let moments = pki::renewal::spread(meant.len(), within, rand::random).map(|after| now.plus(after));
        let mut wanted: Vec<_> = meant.iter().map(|(node, _)| *node).zip(moments).collect();
        // Whoever takes many rows takes them in one order.
        wanted.sort_unstable();
        let one_tenant =
            meant.first().map(|(_, tenant)| tenant).filter(|one| meant.iter().all(|(_, other)| other == *one));
        let mut transaction = self.0.database.within(one_tenant.map(TenantId::as_str)).begin_write().await?;
        let mut taken = Vec::with_capacity(wanted.len());
        for some in wanted.chunks(AT_ONCE) {
            taken.append(&mut store(&mut transaction, some, what, now).await?);
        }
        let mut by_tenant: BTreeMap<&TenantId, Vec<NodeId>> = BTreeMap::new();
        for row in &taken {
            by_tenant.entry(&row.tenant).or_default().push(row.node);
        }
        let records = by_tenant.iter().map(|(tenant, nodes)| Record {
            actor: actor.clone(),
            action: action::RENEWAL_ADVISED,
            tenant: Some((*tenant).clone()),
            subject: match nodes.as_slice() {
                [one] => one.to_string(),
                _ => tenant.to_string(),
            },
            detail: json!({
                "reason": reason, "certificates": what.as_str(), "within_seconds": within.as_secs(), "count": nodes.len(),
                "nodes": nodes.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>(),
            }),
            remote: None,
        });
        let records: Vec<_> = records.collect();
        if !records.is_empty() {
            audit::append_all(&mut transaction, now, records).await?;
        }
        transaction.commit().await?;

        let said: Arc<str> = reason.into();
        let mut advised = Advised { nodes: taken.len(), told: 0, until: now };
        for Taken { node, advice, .. } in taken {
            advised.until = advised.until.max(advice.at);
            let mut told = false;
            if what.has_identity() {
                self.0.registry.advised(node, advice);
                told |= self.0.sessions.direct(node, Directive::Renew(Arc::clone(&said)));
            }
            if what.has_kafka() {
                told |= self.0.sessions.direct(node, Directive::Kafka(Arc::clone(&said)));
            }
            advised.told += usize::from(told);
        }
        tracing::info!(nodes = advised.nodes, told = advised.told, until = %advised.until, reason, "nodes are to renew");
        Ok(advised)
    }

    /// Nodes of a tenant's (`None`: of all) whose certificates end later than one that is issued now.
    pub fn outliving(&self, tenant: Option<&TenantId>, kind: Kind, now: Timestamp) -> Vec<NodeId> {
        let longest =
            |view: &NodeView| now.plus(self.0.authorities.policies().terms(Some(&view.tenant), kind).lifetime);
        let outlives = |view: &NodeView| {
            Kind::from(view.kind) == kind
                && view.revoked_at.is_none()
                && tenant.is_none_or(|one| *one == view.tenant)
                && view.certificate.is_some_and(|certificate| certificate.not_after > longest(view))
        };
        self.0.fleet.all().iter().filter(|view| outlives(view)).map(|view| view.node).collect()
    }
}

/// A node whose advice is stored.
struct Taken {
    node: NodeId,
    tenant: TenantId,
    advice: Advice,
}

async fn store(
    transaction: &mut Transaction,
    wanted: &[(NodeId, Timestamp)],
    what: What,
    now: Timestamp,
) -> Result<Vec<Taken>, AdviseError> {
    let identity = "renew_at = v.column2,
         renew_through = (SELECT COALESCE(MAX(c.sequence), 0) FROM certificates c
                          WHERE c.node = nodes.id AND c.kind IN ('agent', 'bridge'))";
    let kafka = format!("kafka_renew_at = v.column2, kafka_renew_before = {}", now.millis());
    let (set, at) = match what {
        What::Identity => (identity.to_owned(), "renew_at, renew_through"),
        What::Kafka => (kafka, "kafka_renew_at, 0"),
        What::All => (format!("{identity}, {kafka}"), "renew_at, renew_through"),
    };
    let sql = format!(
        "UPDATE nodes SET {set} FROM (VALUES {}) AS v
         WHERE nodes.id = v.column1 AND removed_at IS NULL AND revoked_at IS NULL
         RETURNING id, tenant, {at}",
        rows::placeholders(wanted.len(), 2)
    );
    let query = wanted
        .iter()
        .fold(sqlx::query(AssertSqlSafe(sql)), |query, (node, at)| query.bind(node.to_string()).bind(at.millis()));
    let rows = query.fetch_all(&mut **transaction).await?;
    let read = |row: &AnyRow| {
        Ok(Taken {
            node: rows::parsed(row.try_get(0)?)?,
            tenant: rows::parsed(row.try_get(1)?)?,
            advice: Advice {
                at: Timestamp::from_millis(row.try_get(2)?),
                through: row.try_get::<i64, _>(3)?.cast_unsigned(),
            },
        })
    };
    Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
}
