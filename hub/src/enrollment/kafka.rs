//! What a bridge shows its tenant's brokers: given over its session, and given again to whoever asks with the same key.

use std::time::Duration;

use pki::{NodeIdentity, Role, Serial, Summary};
use protocol::message::{KafkaGrant, Refusal, RefusalCode};
use protocol::{NodeKind, TenantId, Timestamp};
use serde_json::json;
use store::Transaction;
use store::sqlx::{self, AssertSqlSafe, Row};

use super::patience::Use;
use super::{Enrollment, Failure, internal, keys, malformed, refused, registry};
use crate::audit::{self, Actor, Record, action};
use crate::certificate_policy::Kind;
use crate::kafka_access;
use crate::rows;

/// A bridge that has got so many within this time gets no more for a while.
const MOST: i64 = 10;
const WITHIN: Duration = Duration::from_secs(3600);

/// Advice that is open for a bridge's Kafka certificates.
struct Advice {
    at: Timestamp,
    /// For those that were issued until then.
    before: Timestamp,
}

impl Enrollment {
    /// The certificate with which a bridge that holds a session comes to its tenant's brokers, the roots to judge them by,
    /// and when to ask for the next. For a key that has a certificate whose root is trusted, that one; when it is `in_use`,
    /// those before it are retired.
    ///
    /// # Errors
    /// What to tell the node. A refusal is in the audit log, but for those of a node that asks again and again.
    pub async fn kafka(
        &self,
        identity: &NodeIdentity,
        request: &[u8],
        in_use: bool,
        now: Timestamp,
    ) -> Result<KafkaGrant, Refusal> {
        if let Some(refusal) = self.too_often(identity.node, Use::Kafka, now) {
            return Err(refusal);
        }
        match self.try_kafka(identity, request, in_use, now).await {
            Ok(grant) => Ok(grant),
            Err(Failure::Refused(refusal)) => {
                self.0.registry.asked(identity.node, Use::Kafka);
                let record = Record {
                    actor: Actor::node(identity.node),
                    action: action::CERTIFICATE_REFUSED,
                    tenant: Some(identity.tenant.clone()),
                    subject: identity.node.to_string(),
                    detail: json!({ "kind": "kafka_client", "reason": refusal.message }),
                    remote: None,
                };
                Err(self.refuse(refusal, record, now).await)
            }
            Err(error) => Err(internal(&error, "have a Kafka certificate")),
        }
    }

    async fn try_kafka(
        &self,
        identity: &NodeIdentity,
        request: &[u8],
        in_use: bool,
        now: Timestamp,
    ) -> Result<KafkaGrant, Failure> {
        self.0.registry.authorize(identity).map_err(Failure::Refused)?;
        if identity.kind != NodeKind::Bridge {
            return Err(refused(
                RefusalCode::Malformed,
                format!("node {} is no bridge: bridges alone get Kafka certificates", identity.node),
            ));
        }
        let key = pki::verify_request(request).map_err(malformed)?;
        let (node, tenant) = (identity.node, &identity.tenant);
        let mut transaction = self.0.database.within(Some(tenant.as_str())).begin_write().await?;
        let advice = take_bridge(&mut transaction, identity).await?;
        keys::be_free(&mut transaction, &key, node).await?;
        let before = sqlx::query(
            "SELECT c.certificate, c.issued_at, c.state FROM certificates c JOIN authorities a ON a.id = c.authority
             WHERE c.node = $1 AND c.spki_sha256 = $2 AND c.kind = 'kafka-client' AND c.state IN ('issued', 'active')
               AND c.not_after > $3 AND a.state IN ('trusted', 'active') ORDER BY c.issued_at DESC LIMIT 1",
        )
        .bind(node.to_string())
        .bind(key.spki_sha256().to_vec())
        .bind(now.millis())
        .fetch_optional(&mut *transaction)
        .await?;
        let begun = kafka_access::begin(&mut transaction, node, tenant, now).await?;
        let begins = begun.is_some();
        if let Some(record) = begun {
            audit::append(&mut transaction, now, record).await?;
        }
        let (certificate, issued_at) = match before {
            Some(before) => {
                let (certificate, issued_at): (Vec<u8>, i64) = (before.try_get(0)?, before.try_get(1)?);
                let activates = in_use && before.try_get::<String, _>(2)? == "issued";
                if activates {
                    activate(&mut transaction, identity, &certificate, now).await?;
                }
                if activates || begins {
                    transaction.commit().await?;
                }
                (certificate, Timestamp::from_millis(issued_at))
            }
            None => {
                spare(&mut transaction, identity, now).await?;
                let issued = self.0.authorities.kafka_client(&mut transaction, tenant, node, &key, now).await?;
                transaction.commit().await?;
                (issued.certificate.to_vec(), now)
            }
        };
        let roots = self.0.authorities.trusted(&Role::Kafka(tenant.clone()), now).await?;
        let renew_at_ms = self.kafka_renew_at(tenant, &certificate, issued_at, advice)?.millis();
        let roots = roots.iter().map(|root| root.to_vec()).collect();
        Ok(KafkaGrant { certificate, roots, renew_at_ms, refusal: None })
    }

    fn kafka_renew_at(
        &self,
        tenant: &TenantId,
        certificate: &[u8],
        issued_at: Timestamp,
        advice: Option<Advice>,
    ) -> Result<Timestamp, Failure> {
        let summary = Summary::of(certificate)?;
        let serial: Option<Serial> = data_encoding::HEXLOWER.encode(&summary.serial).parse().ok();
        let jitter = serial.as_ref().map_or(0.5, pki::renewal::jitter);
        let terms = self.0.authorities.policies().terms(Some(tenant), Kind::KafkaClient);
        let regular = terms.renew_at(issued_at, summary.not_after, jitter);
        let advised = advice.filter(|advice| issued_at <= advice.before).map(|advice| advice.at);
        Ok(advised.map_or(regular, |advised| advised.min(regular)))
    }
}

/// Takes the bridge's row, so that a revocation comes before or after, and two requests with one key don't both find nothing.
async fn take_bridge(transaction: &mut Transaction, identity: &NodeIdentity) -> Result<Option<Advice>, Failure> {
    let sql = format!(
        "SELECT kafka_renew_at, kafka_renew_before FROM nodes WHERE id = $1 AND kind = 'bridge'
           AND removed_at IS NULL AND revoked_at IS NULL AND frozen_at IS NULL{}",
        rows::for_update(transaction)
    );
    let row =
        sqlx::query(AssertSqlSafe(sql)).bind(identity.node.to_string()).fetch_optional(&mut **transaction).await?;
    let Some(row) = row else { return Err(Failure::Refused(registry::unknown(identity.node))) };
    let (at, before): (Option<i64>, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
    Ok(at
        .zip(before)
        .map(|(at, before)| Advice { at: Timestamp::from_millis(at), before: Timestamp::from_millis(before) }))
}

/// A bridge has come to its brokers with this certificate, or is about to: it is the one, and those before it are retired.
async fn activate(
    transaction: &mut Transaction,
    identity: &NodeIdentity,
    certificate: &[u8],
    now: Timestamp,
) -> Result<(), Failure> {
    let serial = Summary::of(certificate)?.serial;
    let retired = sqlx::query(
        "UPDATE certificates SET state = 'retired', superseded_at = $3
         WHERE node = $1 AND serial <> $2 AND kind = 'kafka-client' AND state IN ('issued', 'active')
           AND issued_at <= (SELECT issued_at FROM certificates WHERE node = $1 AND serial = $2 AND kind = 'kafka-client')",
    )
    .bind(identity.node.to_string())
    .bind(serial.clone())
    .bind(now.millis())
    .execute(&mut **transaction)
    .await?;
    sqlx::query("UPDATE certificates SET state = 'active' WHERE node = $1 AND serial = $2 AND kind = 'kafka-client'")
        .bind(identity.node.to_string())
        .bind(serial.clone())
        .execute(&mut **transaction)
        .await?;
    if retired.rows_affected() > 0 {
        let record = Record {
            actor: Actor::node(identity.node),
            action: action::CERTIFICATE_RETIRED,
            tenant: Some(identity.tenant.clone()),
            subject: identity.node.to_string(),
            detail: json!({
                "kind": "kafka_client", "in_use": data_encoding::HEXLOWER.encode(&serial),
                "retired": retired.rows_affected(),
            }),
            remote: None,
        };
        audit::append(transaction, now, record).await?;
    }
    Ok(())
}

/// Refuses a bridge that asks for one certificate after the other.
async fn spare(transaction: &mut Transaction, identity: &NodeIdentity, now: Timestamp) -> Result<(), Failure> {
    let issued: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM certificates WHERE node = $1 AND kind = 'kafka-client' AND issued_at > $2",
    )
    .bind(identity.node.to_string())
    .bind(now.minus(WITHIN).millis())
    .fetch_one(&mut **transaction)
    .await?;
    if issued < MOST {
        return Ok(());
    }
    Err(Failure::Refused(Refusal {
        code: RefusalCode::Busy.into(),
        message: format!(
            "{issued} Kafka certificates were issued to this bridge within the hour: see that it can write its state \
             directory"
        ),
        retry_after_ms: u64::try_from(WITHIN.as_millis()).unwrap_or(u64::MAX),
    }))
}
