//! Who is in the fleet: from a join token to a certificate, from a certificate to the next one, and who may hold a session.

mod admission;
mod advice;
mod failure;
mod freeze;
mod group;
mod issued;
mod kafka;
mod keys;
mod name;
mod patience;
mod recovery;
mod registry;
mod renewal;
mod revocation;
mod tokens;
mod trusting;

use std::net::IpAddr;
use std::sync::{Arc, Weak};

use pki::NodeIdentity;
use protocol::message::{Refusal, RefusalCode};
use protocol::{NodeId, Timestamp};
use serde_json::json;
use store::group::{GroupError, Submitter, group_commit};
use store::sqlx::{self, Row};
use store::{Database, StoreError};
use tokio_util::sync::CancellationToken;

use crate::access::Limiter;
use crate::audit::{self, Actor, Record, action};
use crate::authorities::{Authorities, Roots};
use crate::gateway::Registry as Sessions;
use crate::metrics::Metrics;
use crate::rows;
use crate::telemetry::state::{Certificate, Fleet};
use failure::{Failure, internal, malformed, refused};
use group::Writer;
use issued::Issued;
use patience::Use;
use registry::Registry;

pub use advice::{ADVICE_WITHIN_MAX, ADVISED_PER_SECOND, AdviseError, Advised, Whom};
pub use freeze::UnfreezeError;
pub use recovery::{Asked, RecoveryBounds};
pub use revocation::{Reason, RevokeError, Revoked};
pub use tokens::{NewToken, TOKEN_LIFETIME_MAX, TokenError, TokenInfo};

/// What enrollment needs to know of its hub.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port` under which nodes reach the hub; it goes into join tokens.
    pub address: String,
    /// For how long, and how often, a node may come back by itself.
    pub recovery: RecoveryBounds,
}

/// The door for new nodes, and the list of those that are in. Clones share it.
#[derive(Clone)]
pub struct Enrollment(Arc<Inner>);

struct Inner {
    database: Database,
    authorities: Authorities,
    fleet: Fleet,
    settings: Settings,
    registry: Registry,
    sessions: Arc<Sessions>,
    /// Where certificates are asked for.
    submitter: Submitter<Writer>,
    trusting: Submitter<trusting::Writer>,
    /// Refusals of those who have shown neither a token nor a key.
    strangers: Limiter,
    metrics: Arc<Metrics>,
}

impl Enrollment {
    /// Opens the door; reads all nodes and their certificates, so that a session costs no query. Gives the door, and the
    /// task that issues until `stop`, or until nobody holds the door.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn open(
        database: Database,
        authorities: Authorities,
        fleet: Fleet,
        settings: Settings,
        sessions: Arc<Sessions>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), StoreError> {
        let registry = Registry::load(&database).await?;
        for (node, certificate) in registry.certificates() {
            fleet.certificate(node, certificate);
        }
        let (trusting, hearing) = group_commit(database.clone(), trusting::Writer, trusting::LIMITS, stop.clone());
        let mut issuing = None;
        let inner = Arc::new_cyclic(|inner| {
            let writer = Writer(Weak::clone(inner));
            let (submitter, task) = group_commit(database.clone(), writer, group::LIMITS, stop);
            issuing = Some(task);
            let strangers = Limiter::default();
            Inner {
                database,
                authorities,
                fleet,
                settings,
                registry,
                sessions,
                submitter,
                trusting,
                strangers,
                metrics,
            }
        });
        Ok((Self(inner), async move {
            if let Some(issuing) = issuing {
                tokio::join!(issuing, hearing);
            }
        }))
    }

    /// A session has begun with this certificate: from now on, it is the node's, and the ones before it are retired.
    /// Costs a query only the first time.
    ///
    /// # Errors
    /// When the database does not answer; the old certificates then stay good, and the next session tries again.
    pub async fn seen(&self, identity: &NodeIdentity, now: Timestamp) -> Result<(), StoreError> {
        if self.0.registry.is_current(identity) {
            return Ok(());
        }
        let mut transaction = self.0.database.begin_write().await?;
        let activated = sqlx::query(
            "UPDATE certificates SET state = 'active' WHERE node = $1 AND serial = $2 AND kind IN ('agent', 'bridge') AND state IN ('issued', 'active')
             RETURNING issued_at",
        )
        .bind(identity.node.to_string())
        .bind(identity.serial.as_bytes().to_vec())
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(row) = activated else { return Ok(()) };
        let retired = sqlx::query(
            "UPDATE certificates SET state = 'retired', superseded_at = $3
             WHERE node = $1 AND serial <> $2 AND kind IN ('agent', 'bridge') AND state IN ('issued', 'active')
               AND issued_at <= $4 RETURNING serial",
        )
        .bind(identity.node.to_string())
        .bind(identity.serial.as_bytes().to_vec())
        .bind(now.millis())
        .bind(row.try_get::<i64, _>(0)?)
        .fetch_all(&mut *transaction)
        .await?;
        if !retired.is_empty() {
            let record = Record {
                actor: Actor::node(identity.node),
                action: action::CERTIFICATE_RETIRED,
                tenant: Some(identity.tenant.clone()),
                subject: identity.node.to_string(),
                detail: json!({ "in_use": identity.serial.to_string(), "retired": retired.len() }),
                remote: None,
            };
            audit::append(&mut transaction, now, record).await?;
        }
        transaction.commit().await?;
        self.0.registry.activated(identity);
        self.0.fleet.certificate(identity.node, identity.into());
        Ok(())
    }

    /// Whether the holder of this verified certificate may hold a session. Asks no database.
    ///
    /// # Errors
    /// What to tell the node.
    pub fn authorize(&self, identity: &NodeIdentity) -> Result<(), Refusal> {
        let intermediate = self.0.registry.authorize(identity)?;
        if self.0.authorities.is_retired(intermediate) {
            return Err(Refusal {
                code: RefusalCode::CertificateReplaced.into(),
                message: format!(
                    "certificate {} of node {} is of an authority that has been rotated away: the node recovers by itself",
                    identity.serial, identity.node
                ),
                retry_after_ms: 0,
            });
        }
        Ok(())
    }

    /// The roots a node says it trusts, as SHA-256 of their public keys; `None` for a node that is not known.
    pub fn trusts(&self, node: NodeId) -> Option<Vec<[u8; 32]>> {
        self.0.registry.roots(node)
    }

    /// The roots nodes are to trust.
    pub fn roots(&self) -> Arc<Roots> {
        self.0.authorities.roots()
    }

    /// A node has said which roots it trusts, and why it did not take those it was told to. Costs a query only when that is
    /// new.
    ///
    /// # Errors
    /// When it could not be stored; what it said before then counts.
    pub async fn trusting(&self, node: NodeId, roots: &[[u8; 32]], trouble: &str) -> Result<(), GroupError> {
        let trouble = rows::text(trouble);
        if !self.0.registry.trusts_anew(node, roots, &trouble) {
            return Ok(());
        }
        let word = trusting::Word { node, roots: roots.concat(), trouble: trouble.clone() };
        self.0.trusting.submit(word).await?;
        self.0.registry.trusting(node, roots, &trouble);
        Ok(())
    }

    /// When a node should renew this certificate; each is told another moment, so that a fleet does not come at once.
    pub fn renew_at(&self, identity: &NodeIdentity) -> Timestamp {
        let terms = self.0.authorities.policies().terms(Some(&identity.tenant), identity.kind.into());
        let issued_at = Certificate::from(identity).issued_at;
        let regular = terms.renew_at(issued_at, identity.not_after, pki::renewal::jitter(&identity.serial));
        self.0.registry.advice(identity).map_or(regular, |advised| advised.min(regular))
    }

    /// What a node is told that asks too often for certificates of this use. It is not in the audit log, which it would fill.
    fn too_often(&self, node: NodeId, of: Use, now: Timestamp) -> Option<Refusal> {
        let refusal = self.0.registry.too_often(node, of, now)?;
        self.0.metrics.refusals_unaudited.inc();
        Some(refusal)
    }

    /// The refusal of somebody who has shown neither a token nor a key: of a flood, the start alone is audited.
    async fn refuse_stranger(&self, refusal: Refusal, record: Record, remote: IpAddr, now: Timestamp) -> Refusal {
        if self.0.strangers.failed(remote, now).audited {
            return self.refuse(refusal, record, now).await;
        }
        self.0.metrics.refusals_unaudited.inc();
        refusal
    }

    /// The refusal, once it is in the audit log. Until then the node is told to come back.
    async fn refuse(&self, refusal: Refusal, record: Record, now: Timestamp) -> Refusal {
        match audit::record(&self.0.database, now, record).await {
            Ok(_) => refusal,
            Err(error) => internal(&error.into(), "be refused"),
        }
    }
}
