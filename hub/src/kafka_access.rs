//! What bridges may do at their tenants' brokers: one row a bridge says what is wanted, and an agent of the tenant brings the
//! brokers' access lists to that.

mod keeper;
mod row;

use std::sync::Arc;

use protocol::command::{Action, ActionError};
use protocol::{NodeId, TenantId, Timestamp};
use serde_json::json;
use store::sqlx;
use store::{Database, StoreError, Transaction};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::alerts::Alerts;
use crate::audit::{self, Actor, Record, action};
use crate::commands::Commands;
use crate::telemetry::state::Fleet;
use crate::words::words;

pub use row::{Row, Step};

/// The Kafka topic that the Unified Namespace of every site shares: no bridge's own, whatever it is called.
const NAMESPACE: &str = "umh.messages";

/// The fleet's wishes for access lists. Clones share them.
#[derive(Clone)]
pub struct KafkaAccess {
    database: Database,
    commands: Commands,
    fleet: Fleet,
    alerts: Alerts,
    /// There is something to do.
    sooner: Arc<Notify>,
}

/// What a bridge may do, and how that stands, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Topics it may write to, by name or by a beginning and `*`; none: nothing.
    pub topics: Vec<String>,
    /// Whether the brokers know.
    pub state: State,
    /// What is wrong or awaited and what to do, or what was done.
    pub message: String,
    /// Attempts that were in vain, since something else was wanted.
    pub tries: u32,
}

/// Whether the brokers know what a bridge may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not yet, or not any more.
    Waiting,
    /// An agent is on it.
    Asked,
    /// Their access lists are so.
    Placed,
    /// The last attempt was in vain; there will be another.
    Refused,
}

words! {
    State { Waiting = "waiting", Asked = "asked", Placed = "placed", Refused = "refused" }
    or StateError = |_| StateError
}

/// Not a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("states of access are waiting, asked, placed and refused")]
pub struct StateError;

/// Topics that are not set.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Not of a bridge that is in the fleet.
    #[error("{0} is no bridge that is in the fleet: agents and revoked bridges write to no brokers")]
    NotABridge(NodeId),
    /// They make no sense.
    #[error(transparent)]
    Topics(#[from] ActionError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for AccessError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl KafkaAccess {
    /// Stands on these; its task is [`KafkaAccess::keep`]. What can't be taken away from a bridge that was removed is among
    /// `alerts`; of those in the fleet, the rules judge.
    pub fn new(database: Database, commands: Commands, fleet: Fleet, alerts: Alerts) -> Self {
        Self { database, commands, fleet, alerts, sooner: Arc::default() }
    }

    /// The task that brings brokers to what is wanted, until `stop`; `wall` is the wall clock.
    pub fn keep<C: Fn() -> Timestamp + Send>(
        &self,
        wall: C,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<C> {
        keeper::keep(self.clone(), wall, stop)
    }

    /// Says which topics a bridge may write to, in one transaction with the audit record: these and no others.
    ///
    /// # Errors
    /// [`AccessError`]; nothing is changed then.
    pub async fn allow(
        &self,
        bridge: NodeId,
        tenant: &TenantId,
        topics: &[String],
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), AccessError> {
        Action::KafkaAcl { bridge, topics: topics.to_vec() }.checked()?;
        let mut transaction = self.database.within(Some(tenant.as_str())).begin_write().await?;
        let found = sqlx::query(
            "UPDATE nodes SET software = software
             WHERE id = $1 AND kind = 'bridge' AND revoked_at IS NULL AND removed_at IS NULL RETURNING id",
        )
        .bind(bridge.to_string())
        .fetch_optional(&mut *transaction)
        .await?;
        found.ok_or(AccessError::NotABridge(bridge))?;
        want(&mut transaction, bridge, tenant, topics, now).await?;
        audit::append(&mut transaction, now, record(bridge, tenant, topics, actor.clone())).await?;
        transaction.commit().await?;
        self.sooner.notify_one();
        Ok(())
    }
}

/// A bridge has a Kafka certificate: unless something is wanted for it already, it may write to topics that begin with its own
/// name and a dot, and to nothing that it shares with others. Gives the audit record of that, to be written in the same
/// transaction.
pub(crate) async fn begin(
    transaction: &mut Transaction,
    bridge: NodeId,
    tenant: &TenantId,
    now: Timestamp,
) -> Result<Option<Record>, StoreError> {
    let known = sqlx::query("SELECT 1 FROM kafka_access WHERE node = $1").bind(bridge.to_string());
    if known.fetch_optional(&mut **transaction).await?.is_some() {
        return Ok(None);
    }
    let topics = [format!("{}*", own(transaction, bridge, tenant).await?)];
    want(transaction, bridge, tenant, &topics, now).await?;
    Ok(Some(record(bridge, tenant, &topics, Actor::system())))
}

/// A bridge is no longer trusted: it may do nothing any more.
pub(crate) async fn end(
    transaction: &mut Transaction,
    bridge: NodeId,
    tenant: &TenantId,
    now: Timestamp,
) -> Result<(), StoreError> {
    want(transaction, bridge, tenant, &[], now).await
}

/// What is being done is let finish: then it is seen that something else is wanted.
async fn want(
    transaction: &mut Transaction,
    bridge: NodeId,
    tenant: &TenantId,
    topics: &[String],
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO kafka_access (node, tenant, topics, revision, state, asked_revision, tries, retry_at, message, changed_at)
         VALUES ($1, $2, $3, 1, 'waiting', 0, 0, 0, '', $4)
         ON CONFLICT (node) DO UPDATE SET topics = excluded.topics, revision = kafka_access.revision + 1,
           state = CASE WHEN kafka_access.state = 'asked' THEN 'asked' ELSE 'waiting' END,
           tries = 0, retry_at = 0, message = '', changed_at = excluded.changed_at",
    )
    .bind(bridge.to_string())
    .bind(tenant.as_str())
    .bind(topics.join(" "))
    .bind(now.millis())
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

fn record(bridge: NodeId, tenant: &TenantId, topics: &[String], actor: Actor) -> Record {
    Record {
        actor,
        action: action::KAFKA_ACCESS_SET,
        tenant: Some(tenant.clone()),
        subject: bridge.to_string(),
        detail: json!({ "principal": format!("User:CN={}", pki::kafka_principal(bridge)), "write": topics }),
        remote: None,
    }
}

/// How the topics of a bridge begin that are its own: with its name; or with its id, where topics that somebody else may write
/// to begin so as well, for a machine may have named itself.
async fn own(transaction: &mut Transaction, bridge: NodeId, tenant: &TenantId) -> Result<String, StoreError> {
    let name = sqlx::query_scalar("SELECT name FROM nodes WHERE id = $1").bind(bridge.to_string());
    let name: String = name.fetch_one(&mut **transaction).await?;
    let allowed = sqlx::query_scalar("SELECT topics FROM kafka_access WHERE tenant = $1").bind(tenant.as_str());
    let allowed: Vec<String> = allowed.fetch_all(&mut **transaction).await?;
    let own = beginning(&name);
    let mut shared = allowed.iter().flat_map(|topics| topics.split_ascii_whitespace()).chain([NAMESPACE]);
    Ok(if shared.any(|topic| topic.starts_with(&own)) { format!("{bridge}.") } else { own })
}

/// A name as it can begin a topic's. Its own dots go: topics of `plant.a` would be among those of `plant`.
fn beginning(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '-' };
    name.chars().map(fits).chain(['.']).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_bridges_topics_are_among_anothers() {
        assert_eq!(super::beginning("cologne_2"), "cologne_2.");
        assert_eq!(super::beginning("plant.köln 2"), "plant-k-ln-2.");
    }
}
