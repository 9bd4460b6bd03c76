//! A tenant's Kafka plane: certificates for its bridges and its brokers, from the tenant's own root.

use pki::{CertificateDer, RequestedKey, Role, ServerNames, Summary, kafka_principal};
use protocol::{NodeId, TenantId, Timestamp};
use serde_json::json;
use store::{Transaction, sqlx};

use super::rows::load;
use super::{Authorities, AuthoritiesError, Certified, Issuing, LeafKind};
use crate::audit::{self, Actor, Record, action};
use crate::certificate_policy::Kind;

/// A certificate of a tenant's Kafka plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaCertificate {
    /// The certificate, in DER.
    pub certificate: CertificateDer<'static>,
    /// The tenant's Kafka root that issued it: the whole rest of its chain.
    pub root: CertificateDer<'static>,
    /// Serial, key and validity.
    pub summary: Summary,
}

impl Authorities {
    /// Issues the certificate with which the bridge `node` comes to its tenant's brokers, as part of `transaction`. The
    /// principal in it is [`kafka_principal`].
    ///
    /// # Errors
    /// [`AuthoritiesError::NotABridge`] when `node` is no bridge of the tenant's, or is revoked.
    pub async fn kafka_client(
        &self,
        transaction: &mut Transaction,
        tenant: &TenantId,
        node: NodeId,
        key: &RequestedKey,
        now: Timestamp,
    ) -> Result<KafkaCertificate, AuthoritiesError> {
        let bridge: Option<String> = sqlx::query_scalar(
            "SELECT id FROM nodes WHERE id = $1 AND tenant = $2 AND kind = 'bridge'
               AND removed_at IS NULL AND revoked_at IS NULL",
        )
        .bind(node.to_string())
        .bind(tenant.as_str())
        .fetch_optional(&mut **transaction)
        .await?;
        if bridge.is_none() {
            return Err(AuthoritiesError::NotABridge { node, tenant: tenant.clone() });
        }
        let Issuing { id, authority } = self.kafka(transaction, tenant).await?;
        let lifetime = self.policy(tenant).lifetime(Kind::KafkaClient);
        let certificate = authority.issue_kafka_client(key, node, now, lifetime)?;
        let certified = Certified {
            kind: LeafKind::KafkaClient,
            authority: id,
            tenant: Some(tenant),
            node: Some(node),
            certificate: &certificate,
            sequence: None,
            recovered: false,
        };
        let summary = certified.save(transaction, now).await?;
        let record = Record {
            actor: Actor::node(node),
            action: action::CERTIFICATE_ISSUED,
            tenant: Some(tenant.clone()),
            subject: node.to_string(),
            detail: json!({
                "certificate": audit::certificate(LeafKind::KafkaClient.logged(), &summary),
                "principal": format!("User:CN={}", kafka_principal(node)),
            }),
            remote: None,
        };
        audit::append(transaction, now, record).await?;
        Ok(KafkaCertificate { certificate: certificate.into(), root: authority.certificate_der().clone(), summary })
    }

    /// Issues a certificate for `tenant`'s brokers, for the key of a PKCS#10 request in DER; the names are `names`, whatever
    /// the request says.
    ///
    /// # Errors
    /// [`AuthoritiesError::Missing`] when there is no such tenant, [`AuthoritiesError::Request`] when the request does not
    /// prove possession of a usable key.
    pub async fn kafka_server(
        &self,
        tenant: &TenantId,
        request: &[u8],
        names: &ServerNames,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<KafkaCertificate, AuthoritiesError> {
        let key = pki::verify_request(request)?;
        let mut transaction = self.0.database.within(Some(tenant.as_str())).begin_write().await?;
        let Issuing { id, authority } = self.kafka(&mut transaction, tenant).await?;
        let lifetime = self.policy(tenant).lifetime(Kind::KafkaServer);
        let certificate = authority.issue_kafka_server(&key, names, now, lifetime)?;
        let certified = Certified {
            kind: LeafKind::KafkaServer,
            authority: id,
            tenant: Some(tenant),
            node: None,
            certificate: &certificate,
            sequence: None,
            recovered: false,
        };
        let summary = certified.save(&mut transaction, now).await?;
        let record = Record {
            actor: actor.clone(),
            action: action::CERTIFICATE_ISSUED,
            tenant: Some(tenant.clone()),
            subject: names.iter().next().unwrap_or_default(),
            detail: json!({
                "certificate": audit::certificate(LeafKind::KafkaServer.logged(), &summary),
                "names": names.iter().collect::<Vec<_>>(),
            }),
            remote: None,
        };
        audit::append(&mut transaction, now, record).await?;
        transaction.commit().await?;
        Ok(KafkaCertificate { certificate: certificate.into(), root: authority.certificate_der().clone(), summary })
    }

    async fn kafka(&self, transaction: &mut Transaction, tenant: &TenantId) -> Result<Issuing, AuthoritiesError> {
        let stored = load(transaction, &Role::Kafka(tenant.clone()), &self.0.keys).await?;
        stored.ok_or_else(|| AuthoritiesError::Missing(tenant.clone()))
    }
}
