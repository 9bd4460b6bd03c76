//! Who is enrolled, in memory: one look-up decides whether a session may be.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use pki::{NodeIdentity, Serial};
use protocol::message::{Refusal, RefusalCode};
use protocol::{NodeId, Timestamp};
use store::sqlx::{self, Row};
use store::{Database, StoreError};

use crate::telemetry::state::Certificate;

/// Every node with the certificates that are good for it.
pub(super) struct Registry(RwLock<HashMap<NodeId, Known>>);

#[derive(Default)]
struct Known {
    revoked: bool,
    /// Issued or in use: mostly one, two while a renewal is under way.
    good: Vec<Certificate>,
    /// The one a session has used last.
    current: Option<Serial>,
}

impl Registry {
    pub(super) async fn load(database: &Database) -> Result<Self, StoreError> {
        let mut known: HashMap<NodeId, Known> = HashMap::new();
        let nodes = sqlx::query("SELECT id, revoked_at FROM nodes WHERE removed_at IS NULL")
            .fetch_all(database.reader())
            .await?;
        for row in &nodes {
            let Ok(node) = row.try_get::<String, _>(0)?.parse() else { continue };
            known.entry(node).or_default().revoked = row.try_get::<Option<i64>, _>(1)?.is_some();
        }
        let certificates = sqlx::query(
            "SELECT node, serial, not_after, state FROM certificates WHERE state IN ('issued', 'active')
             ORDER BY issued_at",
        )
        .fetch_all(database.reader())
        .await?;
        for row in &certificates {
            let Ok(node) = row.try_get::<String, _>(0)?.parse() else { continue };
            let serial: Vec<u8> = row.try_get(1)?;
            let Ok(serial) = data_encoding::HEXLOWER.encode(&serial).parse() else { continue };
            let Some(known) = known.get_mut(&node) else { continue };
            known.good.push(Certificate { serial, not_after: Timestamp::from_millis(row.try_get(2)?) });
            if row.try_get::<String, _>(3)? == "active" {
                known.current = Some(serial);
            }
        }
        Ok(Self(RwLock::new(known)))
    }

    /// The certificate each node uses, or will use first.
    pub(super) fn certificates(&self) -> Vec<(NodeId, Certificate)> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let used = |known: &Known| {
            let current = known.good.iter().find(|good| Some(good.serial) == known.current);
            current.or(known.good.last()).copied()
        };
        known.iter().filter_map(|(node, known)| Some((*node, used(known)?))).collect()
    }

    pub(super) fn authorize(&self, identity: &NodeIdentity) -> Result<(), Refusal> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = known.get(&identity.node) else { return Err(unknown(identity.node)) };
        if known.revoked {
            return Err(Refusal {
                code: RefusalCode::NodeRevoked.into(),
                message: format!(
                    "node {} has been revoked; to have it back, enroll it with a new token",
                    identity.node
                ),
                retry_after_ms: 0,
            });
        }
        if !known.good.iter().any(|good| good.serial == identity.serial) {
            return Err(Refusal {
                code: RefusalCode::NodeRevoked.into(),
                message: format!(
                    "certificate {} of node {} was replaced by a newer one: this is an old copy of the node's state; \
                     enroll it with a new token",
                    identity.serial, identity.node
                ),
                retry_after_ms: 0,
            });
        }
        Ok(())
    }

    pub(super) fn is_current(&self, identity: &NodeIdentity) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&identity.node).is_some_and(|known| known.current == Some(identity.serial))
    }

    /// A certificate has been issued: it is good, beside those before it.
    pub(super) fn issued(&self, identity: &NodeIdentity) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let known = known.entry(identity.node).or_default();
        known.good.push(Certificate { serial: identity.serial, not_after: identity.not_after });
    }

    /// A session has used this certificate: those before it are good no more.
    pub(super) fn activated(&self, identity: &NodeIdentity) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = known.get_mut(&identity.node) else { return };
        known.current = Some(identity.serial);
        if let Some(place) = known.good.iter().position(|good| good.serial == identity.serial) {
            known.good.drain(..place);
        }
    }
}

pub(super) fn unknown(node: NodeId) -> Refusal {
    Refusal {
        code: RefusalCode::NodeUnknown.into(),
        message: format!(
            "this hub does not know node {node}: it was removed, or the hub's database is another one; \
             enroll the node with a new token"
        ),
        retry_after_ms: 0,
    }
}
