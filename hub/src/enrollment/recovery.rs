//! The way back for a node whose certificate is taken no more: proof that it has the enrolled key, within bounds.
//!
//! A proof by a key that the node has left behind is something else: two nodes have its state, and both are kept out.

use std::net::IpAddr;
use std::time::Duration;

use pki::recovery::Claim;
use pki::{CertificateDer, RequestedKey};
use protocol::message::{RecoverRequest, Recovered, Refusal, RefusalCode};
use protocol::{NodeId, TenantId, Timestamp, version};
use serde_json::json;
use store::Transaction;
use store::sqlx::{self, Row};

use super::freeze::CLONED;
use super::{Enrollment, Failure, Issued, internal, keys, malformed, refused, registry};
use crate::audit;
use crate::audit::{Actor, Record, action};
use crate::rows;
use crate::telemetry::state::Member;

/// How far recovery goes.
#[derive(Clone, Copy, Debug)]
pub struct RecoveryBounds {
    /// For how long after its certificate's end a node may come back.
    pub window: Duration,
    /// How often within [`Self::within`].
    pub most: u32,
    /// See [`Self::most`].
    pub within: Duration,
}

impl Default for RecoveryBounds {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        Self { window: DAY * 90, most: 5, within: DAY * 30 }
    }
}

/// A node that is to prove itself.
#[derive(Debug)]
pub struct Asked {
    request: RecoverRequest,
    node: NodeId,
    tenant: TenantId,
    nonce: [u8; 32],
}

impl Asked {
    /// What the proof has to cover beside the request.
    pub fn nonce(&self) -> [u8; 32] {
        self.nonce
    }
}

/// The certificate a node comes back from.
struct Former {
    certificate: CertificateDer<'static>,
    sequence: u64,
    not_after: Timestamp,
    state: String,
    /// The highest number that a session has used.
    used: u64,
}

impl Former {
    /// Whether the node has gone on from it: who comes with it now has a copy of the node's state.
    fn is_left_behind(&self) -> bool {
        self.state == "retired" || self.used > self.sequence
    }
}

impl Enrollment {
    /// Looks whether the one who asks may prove to be this node. Nothing is computed for one that is kept out.
    ///
    /// # Errors
    /// What to tell it. The refusal is in the audit log, unless it is one of a flood.
    pub async fn challenge(&self, request: RecoverRequest, remote: IpAddr, now: Timestamp) -> Result<Asked, Refusal> {
        let node = NodeId::from_bytes(&request.node_id).ok();
        match self.try_challenge(&request, node, now).await {
            Ok((node, tenant)) => Ok(Asked { request, node, tenant, nonce: rand::random() }),
            Err(failure) => {
                let tenant = node.and_then(|node| self.0.registry.tenant(node));
                Err(self.not_recovered(failure, node, tenant, Actor::anonymous(), remote, now).await)
            }
        }
    }

    /// Takes the proof and gives the node a certificate for its new key. Asked again for the same key, it gives the same
    /// one. `exporter` is the connection's value for [`pki::recovery::EXPORTER_LABEL`].
    ///
    /// # Errors
    /// What to tell the node. The refusal is in the audit log, unless it is one of a flood without a good proof. A node that
    /// turns out to have been copied is frozen.
    pub async fn recover(
        &self,
        asked: Asked,
        exporter: &[u8; 32],
        signature: &[u8],
        remote: IpAddr,
        now: Timestamp,
    ) -> Result<Recovered, Refusal> {
        match self.try_recover(&asked, exporter, signature, remote, now).await {
            Ok((issued, sequence)) => {
                let trust = self.0.authorities.roots().trust();
                Ok(Recovered {
                    renew_at_ms: self.renew_at(&issued.identity).millis(),
                    certificate_chain: issued.chain,
                    sequence,
                    roots: trust.roots,
                    links: trust.links,
                })
            }
            Err((failure, actor)) => {
                Err(self.not_recovered(failure, Some(asked.node), Some(asked.tenant), actor, remote, now).await)
            }
        }
    }

    async fn try_challenge(
        &self,
        request: &RecoverRequest,
        node: Option<NodeId>,
        now: Timestamp,
    ) -> Result<(NodeId, TenantId), Failure> {
        let theirs = request.versions.unwrap_or_default();
        if version::negotiate(version::SPOKEN, theirs).is_none() {
            let message = "hub and node are of releases that do not go together: bring the older up to date";
            return Err(refused(RefusalCode::Version, message.into()));
        }
        let node =
            node.ok_or_else(|| refused(RefusalCode::Malformed, "the node's id is not 16 bytes: update it".into()))?;
        let tenant = self.0.registry.admits(node).map_err(Failure::Refused)?;
        let mut transaction = self.0.database.begin_read().await?;
        let former = former(&mut transaction, request, node).await?;
        if !former.is_left_behind() {
            self.within_bounds(&mut transaction, &former, request, node, now).await?;
        }
        Ok((node, tenant))
    }

    async fn try_recover(
        &self,
        asked: &Asked,
        exporter: &[u8; 32],
        signature: &[u8],
        remote: IpAddr,
        now: Timestamp,
    ) -> Result<(Issued, u64), (Failure, Actor)> {
        let stranger = |failure: Failure| (failure, Actor::anonymous());
        let node = asked.node;
        // Again: between challenge and proof, an operator may have acted.
        self.0.registry.admits(node).map_err(|refusal| stranger(Failure::Refused(refusal)))?;
        let mut transaction = self.0.database.begin_write().await.map_err(|error| stranger(error.into()))?;
        let former = former(&mut transaction, &asked.request, node).await.map_err(stranger)?;
        let claim = Claim {
            nonce: &asked.nonce,
            exporter,
            node,
            sequence: asked.request.sequence,
            certificate_request: &asked.request.certificate_request,
        };
        if !claim.is_signed_by(&former.certificate, signature) {
            let message = "the proof is not by the key of the node's certificate: enroll the node with a new token";
            return Err(stranger(refused(RefusalCode::Malformed, message.into())));
        }
        let proved = |failure: Failure| (failure, Actor::node(node));
        if former.is_left_behind() {
            drop(transaction);
            let detail = json!({ "sequence": former.sequence, "used": former.used });
            let frozen = self.freeze(node, CLONED, detail, Some(remote), now).await;
            return Err(proved(
                frozen.map_or_else(Failure::from, |()| Failure::Refused(registry::frozen(node, CLONED))),
            ));
        }
        self.issue_again(transaction, asked, &former, remote, now).await.map_err(proved)
    }

    /// What follows a good proof.
    async fn issue_again(
        &self,
        mut transaction: Transaction,
        asked: &Asked,
        former: &Former,
        remote: IpAddr,
        now: Timestamp,
    ) -> Result<(Issued, u64), Failure> {
        let key = pki::verify_request(&asked.request.certificate_request).map_err(malformed)?;
        if key.spki_sha256().as_slice() == asked.request.spki_sha256 {
            return Err(refused(RefusalCode::Malformed, "recovery takes a new key: update the node's program".into()));
        }
        keys::be_free(&mut transaction, &key, asked.node).await?;
        let row = sqlx::query(
            "UPDATE nodes SET software = software
             WHERE id = $1 AND removed_at IS NULL AND revoked_at IS NULL AND frozen_at IS NULL
             RETURNING name, kind, enrolled_at",
        )
        .bind(asked.node.to_string())
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(row) = row else { return Err(Failure::Refused(registry::unknown(asked.node))) };
        let sequence = former.sequence + 1;
        if let Some(before) = self.answered(&mut transaction, asked, &key, sequence, now).await? {
            return Ok((before, sequence));
        }
        self.within_bounds(&mut transaction, former, &asked.request, asked.node, now).await?;
        let member = Member {
            node: asked.node,
            tenant: asked.tenant.clone(),
            kind: rows::parsed(row.try_get(1)?)?,
            name: row.try_get(0)?,
            enrolled_at: Timestamp::from_millis(row.try_get(2)?),
        };
        let issued = self.sign(&mut transaction, &key, &member, now).await?;
        issued.save(&mut transaction, &member, sequence, true, now).await?;
        let record = Record {
            actor: Actor::node(asked.node),
            action: action::NODE_RECOVERED,
            tenant: Some(asked.tenant.clone()),
            subject: asked.node.to_string(),
            detail: json!({
                "certificate": issued.logged()?, "sequence": sequence, "ended": former.not_after.to_string(),
            }),
            remote: Some(remote),
        };
        audit::append(&mut transaction, now, record).await?;
        transaction.commit().await?;
        self.0.registry.issued(&issued.identity, sequence, issued.authority);
        tracing::info!(node = %asked.node, %remote, sequence, "node recovered");
        Ok((issued, sequence))
    }

    /// The answer that was lost: a certificate for this key, if it still serves.
    async fn answered(
        &self,
        transaction: &mut Transaction,
        asked: &Asked,
        key: &RequestedKey,
        sequence: u64,
        now: Timestamp,
    ) -> Result<Option<Issued>, Failure> {
        let issuing = self.0.authorities.tenant(transaction, &asked.tenant, now).await?;
        let before: Option<Vec<u8>> = sqlx::query_scalar(
            "SELECT certificate FROM certificates
             WHERE node = $1 AND spki_sha256 = $2 AND kind IN ('agent', 'bridge') AND state IN ('issued', 'active')
               AND sequence = $3 AND authority = $4 ORDER BY issued_at DESC LIMIT 1",
        )
        .bind(asked.node.to_string())
        .bind(key.spki_sha256().to_vec())
        .bind(sequence.cast_signed())
        .bind(issuing.id)
        .fetch_optional(&mut **transaction)
        .await?;
        let Some(before) = before else { return Ok(None) };
        let issued = Issued::from_chain(vec![before, issuing.authority.certificate_der().to_vec()], issuing.id)?;
        Ok(issued.is_fresh(now).then_some(issued))
    }

    /// A node is away for so long, and comes back so often, and no more. A key counts once, however many authorities
    /// have answered it: a rotation may come between an answer that is lost and the next.
    async fn within_bounds(
        &self,
        transaction: &mut Transaction,
        former: &Former,
        request: &RecoverRequest,
        node: NodeId,
        now: Timestamp,
    ) -> Result<(), Failure> {
        let RecoveryBounds { window, most, within } = self.0.settings.recovery;
        if now > former.not_after.plus(window) {
            let days = window.as_secs() / 86_400;
            return Err(refused(
                RefusalCode::RecoveryOver,
                format!(
                    "its certificate ended at {}, and a node may come back within {days} days: enroll it with a new \
                     token",
                    former.not_after
                ),
            ));
        }
        let recent = sqlx::query(
            "SELECT COUNT(DISTINCT spki_sha256), MIN(issued_at) FROM certificates
             WHERE node = $1 AND recovered = 1 AND issued_at > $2",
        )
        .bind(node.to_string())
        .bind(now.minus(within).millis())
        .fetch_one(&mut **transaction)
        .await?;
        let count: i64 = recent.try_get(0)?;
        if count < i64::from(most) {
            return Ok(());
        }
        // The last answer may have been lost: who asks for the same key again is not counted twice.
        let key = pki::verify_request(&request.certificate_request).map_err(malformed)?;
        let again: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM certificates
             WHERE node = $1 AND recovered = 1 AND spki_sha256 = $2 AND state IN ('issued', 'active') AND not_after > $3",
        )
        .bind(node.to_string())
        .bind(key.spki_sha256().to_vec())
        .bind(now.millis())
        .fetch_one(&mut **transaction)
        .await?;
        if again > 0 {
            return Ok(());
        }
        let oldest = Timestamp::from_millis(recent.try_get(1)?);
        let wait = oldest.plus(within).since(now);
        Err(Failure::Refused(Refusal {
            code: RefusalCode::Busy.into(),
            message: format!(
                "this node has recovered {count} times within {} days: see why it loses its certificate, or revoke it \
                 and enroll it with a new token",
                within.as_secs() / 86_400
            ),
            retry_after_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1),
        }))
    }

    /// What to tell one who was not recovered, once that is in the audit log.
    async fn not_recovered(
        &self,
        failure: Failure,
        node: Option<NodeId>,
        tenant: Option<TenantId>,
        actor: Actor,
        remote: IpAddr,
        now: Timestamp,
    ) -> Refusal {
        let Failure::Refused(refusal) = failure else { return internal(&failure, "recover") };
        let is_stranger = actor == Actor::anonymous();
        let record = Record {
            actor,
            action: action::RECOVERY_REFUSED,
            tenant,
            subject: node.map_or_else(String::new, |node| node.to_string()),
            detail: json!({ "reason": refusal.message, "code": refusal.code().as_str_name() }),
            remote: Some(remote),
        };
        if is_stranger {
            self.refuse_stranger(refusal, record, remote, now).await
        } else {
            self.refuse(refusal, record, now).await
        }
    }
}

/// The node's newest certificate for the key that asks.
async fn former(transaction: &mut Transaction, request: &RecoverRequest, node: NodeId) -> Result<Former, Failure> {
    let row = sqlx::query(
        "SELECT certificate, sequence, not_after, state,
                (SELECT COALESCE(MAX(sequence), 0) FROM certificates
                 WHERE node = $1 AND kind IN ('agent', 'bridge') AND state = 'active')
         FROM certificates WHERE node = $1 AND spki_sha256 = $2 AND kind IN ('agent', 'bridge')
         ORDER BY issued_at DESC LIMIT 1",
    )
    .bind(node.to_string())
    .bind(request.spki_sha256.clone())
    .fetch_optional(&mut **transaction)
    .await?;
    let Some(row) = row else {
        let message = "this hub has issued no certificate of this node for this key: enroll the node with a new token";
        return Err(refused(RefusalCode::CertificateUnknown, message.into()));
    };
    let number = |column| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.unwrap_or(0).cast_unsigned());
    let former = Former {
        certificate: row.try_get::<Vec<u8>, _>(0)?.into(),
        sequence: number(1)?,
        not_after: Timestamp::from_millis(row.try_get(2)?),
        state: row.try_get(3)?,
        used: number(4)?,
    };
    if former.state == "revoked" {
        return Err(refused(
            RefusalCode::NodeRevoked,
            "its certificate has been revoked: to have the node back, enroll it with a new token".into(),
        ));
    }
    if former.sequence != request.sequence {
        return Err(refused(
            RefusalCode::Malformed,
            format!(
                "its certificate is number {}, and it says {}: its state is damaged; enroll it with a new token",
                former.sequence, request.sequence
            ),
        ));
    }
    Ok(former)
}
