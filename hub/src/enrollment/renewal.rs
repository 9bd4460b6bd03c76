//! From a certificate to the next one, for a node that holds a session.

use std::time::Duration;

use pki::NodeIdentity;
use protocol::Timestamp;
use protocol::message::{Refusal, RefusalCode, RenewRequest, Renewed};
use serde_json::json;
use store::Transaction;
use store::sqlx::{self, AssertSqlSafe, Row};

use super::group::{Given, Operation, Renew};
use super::patience::Use;
use super::{Enrollment, Failure, Issued, internal, keys, malformed, refused, registry};
use crate::audit::{Actor, Record, action};
use crate::rows;
use crate::telemetry::state::Member;

/// A node that has got so many certificates within this time and used none gets no more for a while.
const UNUSED_MAX: i64 = 5;
const UNUSED_WITHIN: Duration = Duration::from_secs(3600);

impl Enrollment {
    /// Issues the next certificate to a node that holds a session. Asked again with the same key, it gives the same
    /// certificate while that is fresh.
    ///
    /// # Errors
    /// What to tell the node. A refusal is in the audit log, but for those of a node that asks again and again.
    pub async fn renew(
        &self,
        identity: &NodeIdentity,
        request: &RenewRequest,
        now: Timestamp,
    ) -> Result<Renewed, Refusal> {
        if let Some(refusal) = self.too_often(identity.node, Use::Session, now) {
            return Err(refusal);
        }
        let given = self.try_renew(identity, request, now).await;
        if matches!(given, Ok(Given { record: Some(_), .. }) | Err(Failure::Refused(_))) {
            self.0.registry.asked(identity.node, Use::Session);
        }
        match given {
            Ok(Given { issued, sequence, .. }) => {
                let renew_at_ms = self.renew_at(&issued.identity).millis();
                Ok(Renewed { certificate_chain: issued.chain, renew_at_ms, refusal: None, sequence })
            }
            Err(Failure::Refused(refusal)) => {
                let record = Record {
                    actor: Actor::node(identity.node),
                    action: action::RENEWAL_REFUSED,
                    tenant: Some(identity.tenant.clone()),
                    subject: identity.node.to_string(),
                    detail: json!({ "reason": refusal.message, "serial": identity.serial.to_string() }),
                    remote: None,
                };
                Err(self.refuse(refusal, record, now).await)
            }
            Err(error) => Err(internal(&error, "renew its certificate")),
        }
    }

    async fn try_renew(
        &self,
        identity: &NodeIdentity,
        request: &RenewRequest,
        now: Timestamp,
    ) -> Result<Given, Failure> {
        // Also with a certificate of an authority that is trusted no more: who still has a session gets another one by it.
        self.0.registry.authorize(identity).map_err(Failure::Refused)?;
        let number = self.0.registry.sequence(identity);
        if number != Some(request.sequence) {
            return Err(refused(
                RefusalCode::Malformed,
                format!(
                    "its certificate is number {}, and it says {}: its state is damaged; enroll it with a new token",
                    number.unwrap_or_default(),
                    request.sequence
                ),
            ));
        }
        let sequence = request.sequence + 1;
        let key = pki::verify_request(&request.certificate_request).map_err(malformed)?;
        let renew = Renew { identity: identity.clone(), key, sequence, now };
        self.0.submitter.submit(Operation::Renew(renew)).await?
    }

    /// Gives a node its next certificate, as part of a group.
    pub(super) async fn follow(&self, transaction: &mut Transaction, renew: &Renew) -> Result<Given, Failure> {
        let Renew { identity, key, sequence, now } = renew;
        let (sequence, now) = (*sequence, *now);
        // Takes the node's row, so that two requests with one key don't both find nothing.
        let sql = format!(
            "SELECT name, enrolled_at FROM nodes WHERE id = $1 AND removed_at IS NULL AND revoked_at IS NULL
               AND frozen_at IS NULL{}",
            rows::for_update(transaction)
        );
        let row =
            sqlx::query(AssertSqlSafe(sql)).bind(identity.node.to_string()).fetch_optional(&mut **transaction).await?;
        let Some(row) = row else { return Err(Failure::Refused(registry::unknown(identity.node))) };
        let member = Member {
            node: identity.node,
            tenant: identity.tenant.clone(),
            kind: identity.kind,
            name: row.try_get(0)?,
            enrolled_at: Timestamp::from_millis(row.try_get(1)?),
        };
        keys::be_free(transaction, key, identity.node).await?;
        let before = sqlx::query(
            "SELECT c.certificate, a.certificate, a.id FROM certificates c JOIN authorities a ON a.id = c.authority
             WHERE c.node = $1 AND c.spki_sha256 = $2 AND c.kind IN ('agent', 'bridge') AND c.state IN ('issued', 'active')
               AND a.state <> 'retired' ORDER BY c.issued_at DESC LIMIT 1",
        )
        .bind(identity.node.to_string())
        .bind(key.spki_sha256().to_vec())
        .fetch_optional(&mut **transaction)
        .await?;
        if let Some(before) = before {
            let issued = Issued::from_chain(vec![before.try_get(0)?, before.try_get(1)?], before.try_get(2)?)?;
            if issued.is_fresh(now) {
                return Ok(Given { member, issued, sequence, record: None });
            }
        }
        let unused: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM certificates
             WHERE node = $1 AND kind IN ('agent', 'bridge') AND state = 'issued' AND issued_at > $2",
        )
        .bind(identity.node.to_string())
        .bind(now.minus(UNUSED_WITHIN).millis())
        .fetch_one(&mut **transaction)
        .await?;
        if unused >= UNUSED_MAX {
            return Err(Failure::Refused(Refusal {
                code: RefusalCode::Busy.into(),
                message: format!(
                    "{unused} certificates were issued to this node within the hour and never used: \
                     see that it can write its state directory"
                ),
                retry_after_ms: UNUSED_WITHIN.as_millis() as u64,
            }));
        }
        let issued = self.sign(transaction, key, &member, now).await?;
        issued.save(transaction, &member, sequence, false, now).await?;
        let record = Record {
            actor: Actor::node(identity.node),
            action: action::CERTIFICATE_RENEWED,
            tenant: Some(identity.tenant.clone()),
            subject: identity.node.to_string(),
            detail: json!({ "certificate": issued.logged()? }),
            remote: None,
        };
        Ok(Given { member, issued, sequence, record: Some(record) })
    }
}
