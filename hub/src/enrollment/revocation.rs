//! Taking trust away: a node's certificates are denied, its session ends, and the next list of its issuer says so.

use std::sync::Arc;

use pki::RevocationReason;
use protocol::{NodeId, NodeKind, TenantId, Timestamp};
use serde_json::json;
use store::sqlx::{self, Row};
use store::{StoreError, Transaction};

use super::{Enrollment, Inner};
use crate::audit::{self, Actor, Record, action};
use crate::kafka_access;
use crate::rows;
use crate::words::words;

/// Longest comment, characters.
const COMMENT_MAX: usize = 500;

/// Why a node loses its trust: those of RFC 5280's reasons (section 5.3.1) that an operator can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reason {
    /// Not said.
    #[default]
    Unspecified,
    /// Somebody else has, or may have, its private key.
    KeyCompromise,
    /// Another node does its work now.
    Superseded,
    /// It is no longer there.
    CessationOfOperation,
    /// It may no longer take part.
    PrivilegeWithdrawn,
}

words! {
    Reason {
        Unspecified = "unspecified", KeyCompromise = "key_compromise", Superseded = "superseded",
        CessationOfOperation = "cessation_of_operation", PrivilegeWithdrawn = "privilege_withdrawn",
    }
    or RevokeError = |text| RevokeError::Reason(text.to_owned())
}

impl From<Reason> for RevocationReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Unspecified => Self::Unspecified,
            Reason::KeyCompromise => Self::KeyCompromise,
            Reason::Superseded => Self::Superseded,
            Reason::CessationOfOperation => Self::CessationOfOperation,
            Reason::PrivilegeWithdrawn => Self::PrivilegeWithdrawn,
        }
    }
}

/// What a revocation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// When; of a node that was revoked before, that time.
    pub at: Timestamp,
    /// Certificates that were denied by it: all of the node's that had not ended.
    pub certificates: usize,
}

/// A revocation that was not made.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// No such node.
    #[error("there is no node {0}: see `hfctl node list`")]
    Unknown(NodeId),
    /// No such reason.
    #[error("{0:?} is no reason: say {all}", all = Reason::ALL.map(Reason::as_str).join(", "))]
    Reason(String),
    /// The comment is not one line of reasonable length.
    #[error("a comment is one line of at most {COMMENT_MAX} characters")]
    Comment,
    /// The database failed; nothing was revoked, or it did not say.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for RevokeError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Enrollment {
    /// Takes a node's trust away: in one transaction its certificates are denied by issuer and serial and by key, the
    /// removal of its rights at the tenant's broker is queued, and the act is in the audit log. Its session ends before
    /// this returns, and none begins any more. Asked again, it changes no row; whoever does not know of it yet is told.
    ///
    /// # Errors
    /// [`RevokeError`]; nothing is revoked then, or the database did not say: the node is kept out until it does.
    pub async fn revoke(
        &self,
        node: NodeId,
        reason: Reason,
        comment: &str,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Revoked, RevokeError> {
        if comment.chars().count() > COMMENT_MAX || comment.chars().any(char::is_control) {
            return Err(RevokeError::Comment);
        }
        let mut transaction = self.writing(node).await?;
        let found = self.found(&mut transaction, node).await?;
        if let Some(at) = found.revoked_at {
            // Perhaps by another hub, or by a commit whose answer was lost.
            drop(Cut::of(&self.0, node));
            self.0.fleet.revoked(node, at);
            return Ok(Revoked { at, certificates: 0 });
        }
        let certificates = deny(&mut transaction, &found, reason, now).await?;
        let record = Record {
            actor: actor.clone(),
            action: action::NODE_REVOKED,
            tenant: Some(found.tenant.clone()),
            subject: node.to_string(),
            detail: json!({
                "name": found.name, "reason": reason.as_str(), "comment": comment, "certificates": certificates,
            }),
            remote: None,
        };
        audit::append(&mut transaction, now, record).await?;
        let cut = Cut::of(&self.0, node);
        if let Err(error) = transaction.commit().await {
            // A connection may break after the commit, too.
            match self.revoked_at(node).await {
                Ok(Some(_)) => {}
                Ok(None) => {
                    cut.undo();
                    return Err(error.into());
                }
                Err(_) => return Err(error.into()),
            }
        }
        drop(cut);
        self.0.fleet.revoked(node, now);
        let certificates = certificates.len();
        tracing::info!(%node, %reason, certificates, "node revoked");
        Ok(Revoked { at: now, certificates })
    }

    /// Takes a node out of the fleet: it is revoked if it was not, its name is free again, and it is listed no more. Its
    /// telemetry stays until retention takes it.
    ///
    /// # Errors
    /// [`RevokeError`].
    pub async fn remove(&self, node: NodeId, actor: &Actor, now: Timestamp) -> Result<(), RevokeError> {
        self.revoke(node, Reason::CessationOfOperation, "removed", actor, now).await?;
        let mut transaction = self.writing(node).await?;
        let found = self.found(&mut transaction, node).await?;
        sqlx::query("UPDATE nodes SET removed_at = $2 WHERE id = $1")
            .bind(node.to_string())
            .bind(now.millis())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("UPDATE alerts SET closed_at = $2 WHERE node = $1 AND closed_at IS NULL")
            .bind(node.to_string())
            .bind(now.millis())
            .execute(&mut *transaction)
            .await?;
        let record = Record {
            actor: actor.clone(),
            action: action::NODE_REMOVED,
            tenant: Some(found.tenant),
            subject: node.to_string(),
            detail: json!({ "name": found.name }),
            remote: None,
        };
        audit::append(&mut transaction, now, record).await?;
        transaction.commit().await?;
        self.0.forget(node);
        Ok(())
    }

    /// When a node was revoked, once whatever is under way with its row is over.
    async fn revoked_at(&self, node: NodeId) -> Result<Option<Timestamp>, RevokeError> {
        let mut transaction = self.writing(node).await?;
        Ok(self.found(&mut transaction, node).await?.revoked_at)
    }

    /// A node's row, held. A node that the database no longer has, for another hub has removed it, is out here as well.
    async fn found(&self, transaction: &mut Transaction, node: NodeId) -> Result<Found, RevokeError> {
        let found = Found::take(transaction, node).await;
        if matches!(found, Err(RevokeError::Unknown(_))) {
            self.0.forget(node);
        }
        found
    }

    /// A transaction for the tenant of `node` alone.
    pub(super) async fn writing(&self, node: NodeId) -> Result<Transaction, StoreError> {
        let tenant = self.0.registry.tenant(node);
        self.0.database.within(tenant.as_ref().map(TenantId::as_str)).begin_write().await
    }
}

impl Inner {
    /// A node is no longer part of the fleet.
    fn forget(&self, node: NodeId) {
        self.registry.removed(node);
        self.sessions.end(node);
        self.fleet.removed(node);
    }
}

/// A node's row, held until the transaction ends.
struct Found {
    node: NodeId,
    tenant: TenantId,
    kind: NodeKind,
    name: String,
    revoked_at: Option<Timestamp>,
}

impl Found {
    async fn take(transaction: &mut Transaction, node: NodeId) -> Result<Self, RevokeError> {
        let row = sqlx::query(
            "UPDATE nodes SET software = software WHERE id = $1 AND removed_at IS NULL
             RETURNING tenant, kind, name, revoked_at",
        )
        .bind(node.to_string())
        .fetch_optional(&mut **transaction)
        .await?
        .ok_or(RevokeError::Unknown(node))?;
        Ok(Self {
            node,
            tenant: rows::parsed(row.try_get(0)?)?,
            kind: rows::parsed(row.try_get(1)?)?,
            name: row.try_get(2)?,
            revoked_at: row.try_get::<Option<i64>, _>(3)?.map(Timestamp::from_millis),
        })
    }
}

/// Denies every certificate of the node that has not ended, and its keys; gives their serials.
async fn deny(
    transaction: &mut Transaction,
    found: &Found,
    reason: Reason,
    now: Timestamp,
) -> Result<Vec<String>, RevokeError> {
    let node = found.node.to_string();
    sqlx::query("UPDATE nodes SET revoked_at = $2 WHERE id = $1")
        .bind(&node)
        .bind(now.millis())
        .execute(&mut **transaction)
        .await?;
    // Also those that a session has left behind: whoever kept one must not come back by it.
    sqlx::query(
        "INSERT INTO revocations (authority, serial, spki_sha256, tenant, node, reason, revoked_at, not_after)
         SELECT authority, serial, spki_sha256, tenant, node, $3, $2, not_after FROM certificates
         WHERE node = $1 AND state <> 'revoked' AND not_after > $2",
    )
    .bind(&node)
    .bind(now.millis())
    .bind(reason.as_str())
    .execute(&mut **transaction)
    .await?;
    let rows = sqlx::query(
        "UPDATE certificates SET state = 'revoked' WHERE node = $1 AND state <> 'revoked' AND not_after > $2
         RETURNING serial",
    )
    .bind(&node)
    .bind(now.millis())
    .fetch_all(&mut **transaction)
    .await?;
    if found.kind == NodeKind::Bridge {
        kafka_access::end(transaction, found.node, &found.tenant, now).await?;
    }
    let serials = rows.iter().map(|row| row.try_get::<Vec<u8>, _>(0));
    serials.map(|serial| Ok(data_encoding::HEXLOWER.encode(&serial?))).collect()
}

/// A node that is kept out from before the commit on, and whose session ends once that is through. Should the caller be
/// gone before the commit answers, the node stays out: it may be revoked.
struct Cut {
    inner: Arc<Inner>,
    node: NodeId,
    undone: bool,
}

impl Cut {
    fn of(inner: &Arc<Inner>, node: NodeId) -> Self {
        inner.registry.revoke(node, true);
        Self { inner: Arc::clone(inner), node, undone: false }
    }

    fn undo(mut self) {
        self.inner.registry.revoke(self.node, false);
        self.undone = true;
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if !self.undone {
            self.inner.sessions.end(self.node);
        }
    }
}
