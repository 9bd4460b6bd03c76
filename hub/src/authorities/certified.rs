//! A certificate that has been issued, as it is recorded: nothing is given out that is not.

use pki::Summary;
use protocol::{NodeId, NodeKind, TenantId, Timestamp};
use store::{Transaction, sqlx};

use super::AuthoritiesError;

/// What a leaf is for, as recorded and as policies name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeafKind {
    /// An agent's identity.
    Agent,
    /// A bridge's identity.
    Bridge,
    /// What a bridge shows its tenant's brokers.
    KafkaClient,
    /// What a tenant's brokers show.
    KafkaServer,
    /// What the hub shows nodes.
    HubServer,
    /// What the hub shows browsers.
    WebServer,
}

impl LeafKind {
    /// What the audit log calls it.
    pub(crate) const fn logged(self) -> &'static str {
        match self {
            Self::Agent | Self::Bridge => "node",
            Self::KafkaClient => "kafka_client",
            Self::KafkaServer => "kafka_server",
            Self::HubServer => "hub_server",
            Self::WebServer => "web_server",
        }
    }

    /// As recorded.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Bridge => "bridge",
            Self::KafkaClient => "kafka-client",
            Self::KafkaServer => "kafka-server",
            Self::HubServer => "hub-server",
            Self::WebServer => "web-server",
        }
    }
}

impl From<NodeKind> for LeafKind {
    fn from(kind: NodeKind) -> Self {
        match kind {
            NodeKind::Agent => Self::Agent,
            NodeKind::Bridge => Self::Bridge,
        }
    }
}

/// One certificate and where it belongs.
pub(crate) struct Certified<'a> {
    pub(crate) kind: LeafKind,
    /// The row of the authority that issued it.
    pub(crate) authority: i64,
    pub(crate) tenant: Option<&'a TenantId>,
    pub(crate) node: Option<NodeId>,
    /// In DER.
    pub(crate) certificate: &'a [u8],
    /// Its number among the identities of a node.
    pub(crate) sequence: Option<u64>,
    /// Whether it is given for recovery.
    pub(crate) recovered: bool,
}

impl Certified<'_> {
    /// Records it, in the transaction that precedes its being given out.
    pub(crate) async fn save(
        &self,
        transaction: &mut Transaction,
        now: Timestamp,
    ) -> Result<Summary, AuthoritiesError> {
        let summary = Summary::of(self.certificate).map_err(AuthoritiesError::Unreadable)?;
        sqlx::query(
            "INSERT INTO certificates
                 (serial, authority, kind, tenant, node, spki_sha256, certificate, issued_at, not_after, state,
                  sequence, recovered)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'issued', $10, $11)",
        )
        .bind(summary.serial.clone())
        .bind(self.authority)
        .bind(self.kind.as_str())
        .bind(self.tenant.map(TenantId::as_str))
        .bind(self.node.map(|node| node.to_string()))
        .bind(summary.spki_sha256.to_vec())
        .bind(self.certificate.to_vec())
        .bind(now.millis())
        .bind(summary.not_after.millis())
        .bind(self.sequence.map(u64::cast_signed))
        .bind(i64::from(self.recovered))
        .execute(&mut **transaction)
        .await?;
        Ok(summary)
    }
}
