//! Keeping a node out whose key two machines have, until an operator has looked.

use std::net::IpAddr;

use protocol::{NodeId, Timestamp};
use serde_json::{Value, json};
use store::StoreError;
use store::sqlx::{self, Row};

use super::Enrollment;
use crate::audit::{self, Actor, Record, action};

/// Why a node is frozen whose former key is used.
pub(crate) const CLONED: &str = "a copy of its state was used: two machines have had its key";

impl Enrollment {
    /// Keeps a node out until an operator has looked: in one transaction with its audit record, then its session ends.
    ///
    /// # Errors
    /// When it could not be stored; the node is not frozen then.
    pub(crate) async fn freeze(
        &self,
        node: NodeId,
        reason: &'static str,
        detail: Value,
        remote: Option<IpAddr>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut transaction = self.0.database.begin_write().await?;
        let row = sqlx::query(
            "UPDATE nodes SET frozen_at = $2, frozen_reason = $3 WHERE id = $1 AND frozen_at IS NULL RETURNING tenant",
        )
        .bind(node.to_string())
        .bind(now.millis())
        .bind(reason)
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some(row) = row {
            let record = Record {
                actor: Actor::system(),
                action: action::NODE_FROZEN,
                tenant: row.try_get::<String, _>(0)?.parse().ok(),
                subject: node.to_string(),
                detail: json!({ "reason": reason, "seen": detail }),
                remote,
            };
            audit::append(&mut transaction, now, record).await?;
            transaction.commit().await?;
            tracing::error!(%node, reason, "node frozen");
        }
        self.0.registry.freeze(node, Some(reason));
        self.0.fleet.frozen(node, Some(reason.into()));
        self.0.sessions.freeze(node);
        Ok(())
    }

    /// Lets a frozen node in again. Whichever of the two comes back first and renews its certificate is the node; the other
    /// is found out again.
    ///
    /// # Errors
    /// [`UnfreezeError::Unknown`] when there is no such node.
    pub async fn unfreeze(&self, node: NodeId, actor: &Actor, now: Timestamp) -> Result<(), UnfreezeError> {
        let mut transaction = self.writing(node).await?;
        let row = sqlx::query(
            "UPDATE nodes SET frozen_at = NULL, frozen_reason = NULL WHERE id = $1 AND removed_at IS NULL
             RETURNING tenant, name",
        )
        .bind(node.to_string())
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(row) = row else { return Err(UnfreezeError::Unknown(node)) };
        let (tenant, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let record = Record {
            actor: actor.clone(),
            action: action::NODE_UNFROZEN,
            tenant: tenant.parse().ok(),
            subject: node.to_string(),
            detail: json!({ "name": name }),
            remote: None,
        };
        audit::append(&mut transaction, now, record).await?;
        transaction.commit().await?;
        self.0.registry.freeze(node, None);
        self.0.fleet.frozen(node, None);
        Ok(())
    }
}

/// A node that stays frozen.
#[derive(Debug, thiserror::Error)]
pub enum UnfreezeError {
    /// No such node.
    #[error("there is no node {0}: see `hfctl node list`")]
    Unknown(NodeId),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for UnfreezeError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}
