//! Who is enrolled, in memory: one look-up decides whether a session may be.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use pki::{NodeIdentity, Serial};
use protocol::message::{Refusal, RefusalCode};
use protocol::{NodeId, TenantId, Timestamp};
use store::sqlx::{self, Row};
use store::{Database, StoreError};

use super::advice::{Advice, Whom};
use super::patience::{Patience, Use};
use crate::telemetry::state::Certificate;

/// Every node with the certificates that are good for it.
pub(super) struct Registry(RwLock<HashMap<NodeId, Known>>);

struct Known {
    tenant: TenantId,
    revoked: bool,
    /// Why it is frozen.
    frozen: Option<Arc<str>>,
    /// The roots it trusts, and why not those it was told to.
    roots: Vec<[u8; 32]>,
    roots_trouble: Box<str>,
    /// Issued or in use: mostly one, two while a renewal is under way.
    good: Vec<Good>,
    /// The one a session has used last.
    current: Option<Serial>,
    advice: Option<Advice>,
    renewals: Patience,
    kafka: Patience,
}

/// A certificate this hub issued. Whoever has a tenant's authority can issue another with the same serial, but not for
/// the same key.
struct Good {
    certificate: Certificate,
    spki_sha256: [u8; 32],
    sequence: u64,
    /// The row of the intermediate that issued it.
    authority: i64,
}

impl Known {
    fn of(tenant: TenantId) -> Self {
        Self {
            tenant,
            revoked: false,
            frozen: None,
            roots: Vec::new(),
            roots_trouble: "".into(),
            good: Vec::new(),
            current: None,
            advice: None,
            renewals: Patience::new(),
            kafka: Patience::new(),
        }
    }

    fn patience(&mut self, of: Use) -> &mut Patience {
        match of {
            Use::Session => &mut self.renewals,
            Use::Kafka => &mut self.kafka,
        }
    }
}

impl Registry {
    pub(super) async fn load(database: &Database) -> Result<Self, StoreError> {
        let mut known: HashMap<NodeId, Known> = HashMap::new();
        let nodes = sqlx::query(
            "SELECT id, revoked_at, tenant, frozen_reason, roots, roots_trouble, renew_at, renew_through FROM nodes
             WHERE removed_at IS NULL",
        )
        .fetch_all(database.reader())
        .await?;
        for row in &nodes {
            let Ok(node) = row.try_get::<String, _>(0)?.parse() else { continue };
            let Ok(tenant) = row.try_get::<String, _>(2)?.parse() else { continue };
            let revoked = row.try_get::<Option<i64>, _>(1)?.is_some();
            let frozen = row.try_get::<Option<String>, _>(3)?.map(Into::into);
            let roots = row.try_get::<Option<Vec<u8>>, _>(4)?.unwrap_or_default().as_chunks().0.to_vec();
            let roots_trouble = row.try_get::<Option<String>, _>(5)?.unwrap_or_default().into();
            let renew_at = row.try_get::<Option<i64>, _>(6)?.map(Timestamp::from_millis);
            let through = row.try_get::<Option<i64>, _>(7)?.unwrap_or(0).cast_unsigned();
            let advice = renew_at.map(|at| Advice { at, through });
            known.insert(node, Known { revoked, frozen, roots, roots_trouble, advice, ..Known::of(tenant) });
        }
        let certificates = sqlx::query(
            "SELECT node, serial, not_after, state, spki_sha256, sequence, issued_at, authority FROM certificates
             WHERE kind IN ('agent', 'bridge') AND state IN ('issued', 'active') ORDER BY issued_at",
        )
        .fetch_all(database.reader())
        .await?;
        for row in &certificates {
            let Ok(node) = row.try_get::<String, _>(0)?.parse() else { continue };
            let serial: Vec<u8> = row.try_get(1)?;
            let Ok(serial) = data_encoding::HEXLOWER.encode(&serial).parse() else { continue };
            let Ok(spki_sha256) = row.try_get::<Vec<u8>, _>(4)?.try_into() else { continue };
            let Some(known) = known.get_mut(&node) else { continue };
            let certificate = Certificate {
                serial,
                issued_at: Timestamp::from_millis(row.try_get(6)?),
                not_after: Timestamp::from_millis(row.try_get(2)?),
            };
            let sequence = row.try_get::<Option<i64>, _>(5)?.unwrap_or(0).cast_unsigned();
            known.good.push(Good { certificate, spki_sha256, sequence, authority: row.try_get(7)? });
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
            let current = known.good.iter().find(|good| Some(good.certificate.serial) == known.current);
            current.or(known.good.last()).map(|good| good.certificate)
        };
        known.iter().filter_map(|(node, known)| Some((*node, used(known)?))).collect()
    }

    /// The intermediate that issued this certificate, when its holder is one of ours.
    pub(super) fn authorize(&self, identity: &NodeIdentity) -> Result<i64, Refusal> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // Also a node of another tenant: one tenant's authority says nothing about another's nodes.
        let Some(known) = known.get(&identity.node).filter(|known| known.tenant == identity.tenant) else {
            return Err(unknown(identity.node));
        };
        if known.revoked {
            return Err(revoked(identity.node));
        }
        if let Some(reason) = &known.frozen {
            return Err(frozen(identity.node, reason));
        }
        let Some(good) = known.good.iter().find(|good| good.is_of(identity)) else {
            return Err(Refusal {
                code: RefusalCode::CertificateReplaced.into(),
                message: format!(
                    "certificate {} of node {} is none that is in use here: a newer one has been used, or this hub's \
                     database is of a time before it; the node asks by itself which it is",
                    identity.serial, identity.node
                ),
                retry_after_ms: 0,
            });
        };
        Ok(good.authority)
    }

    /// Whether a node may prove that it is one of ours, and whose it is then.
    pub(super) fn admits(&self, node: NodeId) -> Result<TenantId, Refusal> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(&node).ok_or_else(|| unknown(node))?;
        match &known.frozen {
            _ if known.revoked => Err(revoked(node)),
            Some(reason) => Err(frozen(node, reason)),
            None => Ok(known.tenant.clone()),
        }
    }

    pub(super) fn tenant(&self, node: NodeId) -> Option<TenantId> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&node).map(|known| known.tenant.clone())
    }

    /// The number of a certificate that is good.
    pub(super) fn sequence(&self, identity: &NodeIdentity) -> Option<u64> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let good = known.get(&identity.node)?.good.iter().find(|good| good.is_of(identity))?;
        Some(good.sequence)
    }

    /// The nodes that are meant, but for those that are revoked.
    pub(super) fn meant(&self, whom: &Whom) -> Vec<(NodeId, TenantId)> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let named: HashSet<_> = match whom {
            Whom::Nodes(nodes) => nodes.iter().collect(),
            Whom::Tenant(_) | Whom::All => HashSet::new(),
        };
        let is_meant = |node: &NodeId, tenant: &TenantId| match whom {
            Whom::Nodes(_) => named.contains(node),
            Whom::Tenant(wanted) => wanted == tenant,
            Whom::All => true,
        };
        let all = known.iter().filter(|(node, known)| !known.revoked && is_meant(node, &known.tenant));
        all.map(|(node, known)| (*node, known.tenant.clone())).collect()
    }

    pub(super) fn advised(&self, node: NodeId, advice: Advice) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get_mut(&node) {
            known.advice = Some(advice);
        }
    }

    /// When the holder of this certificate is advised to renew it; `None` when no advice is open.
    pub(super) fn advice(&self, identity: &NodeIdentity) -> Option<Timestamp> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(&identity.node)?;
        let sequence = known.good.iter().find(|good| good.is_of(identity))?.sequence;
        known.advice.filter(|advice| sequence <= advice.through).map(|advice| advice.at)
    }

    /// What a node is told that asks too often. Nothing of one that is not known: it is refused anyway.
    pub(super) fn too_often(&self, node: NodeId, of: Use, now: Timestamp) -> Option<Refusal> {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.get_mut(&node)?.patience(of).lost(now)
    }

    /// A node has asked for something that is in the audit log.
    pub(super) fn asked(&self, node: NodeId, of: Use) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get_mut(&node) {
            known.patience(of).spend();
        }
    }

    /// Keeps a node out for this reason, or lets it in again.
    pub(super) fn freeze(&self, node: NodeId, reason: Option<&str>) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get_mut(&node) {
            known.frozen = reason.map(Into::into);
        }
    }

    pub(super) fn roots(&self, node: NodeId) -> Option<Vec<[u8; 32]>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&node).map(|known| known.roots.clone())
    }

    /// Whether this is something else than what the node said before.
    pub(super) fn trusts_anew(&self, node: NodeId, roots: &[[u8; 32]], trouble: &str) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&node).is_some_and(|known| known.roots != roots || *known.roots_trouble != *trouble)
    }

    pub(super) fn trusting(&self, node: NodeId, roots: &[[u8; 32]], trouble: &str) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get_mut(&node) {
            known.roots = roots.to_vec();
            known.roots_trouble = trouble.into();
        }
    }

    pub(super) fn is_current(&self, identity: &NodeIdentity) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&identity.node).is_some_and(|known| known.current == Some(identity.serial))
    }

    /// Keeps a node out, or lets it in again.
    pub(super) fn revoke(&self, node: NodeId, revoked: bool) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get_mut(&node) {
            known.revoked = revoked;
        }
    }

    /// The node is gone for good.
    pub(super) fn removed(&self, node: NodeId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }

    /// A node has been enrolled, with this certificate.
    pub(super) fn enrolled(&self, identity: &NodeIdentity, sequence: u64, authority: i64) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let known = known.entry(identity.node).or_insert_with(|| Known::of(identity.tenant.clone()));
        known.good.push(Good::of(identity, sequence, authority));
    }

    /// A certificate has been issued to a node: it is good, beside those before it. A node that has been removed meanwhile
    /// does not come back by it.
    pub(super) fn issued(&self, identity: &NodeIdentity, sequence: u64, authority: i64) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get_mut(&identity.node) {
            known.good.push(Good::of(identity, sequence, authority));
        }
    }

    /// A session has used this certificate: those before it are good no more.
    pub(super) fn activated(&self, identity: &NodeIdentity) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = known.get_mut(&identity.node) else { return };
        known.current = Some(identity.serial);
        if let Some(place) = known.good.iter().position(|good| good.is_of(identity)) {
            known.good.drain(..place);
        }
    }
}

impl Good {
    fn of(identity: &NodeIdentity, sequence: u64, authority: i64) -> Self {
        Self { certificate: identity.into(), spki_sha256: identity.spki_sha256, sequence, authority }
    }

    fn is_of(&self, identity: &NodeIdentity) -> bool {
        self.certificate.serial == identity.serial && self.spki_sha256 == identity.spki_sha256
    }
}

fn revoked(node: NodeId) -> Refusal {
    Refusal {
        code: RefusalCode::NodeRevoked.into(),
        message: format!("node {node} has been revoked; to have it back, enroll it with a new token"),
        retry_after_ms: 0,
    }
}

pub(super) fn frozen(node: NodeId, reason: &str) -> Refusal {
    Refusal {
        code: RefusalCode::NodeFrozen.into(),
        message: format!(
            "node {node} is frozen: {reason}. Wipe the state of the machine that should not have it and run \
             `hfctl node unfreeze {node}`; or revoke the node and enroll both machines with new tokens"
        ),
        retry_after_ms: 0,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_was_removed_does_not_come_back_by_a_certificate_that_was_under_way() {
        let now = Timestamp::from_millis(1);
        let identity = NodeIdentity {
            node: NodeId::new(now, [1; 10]),
            kind: protocol::NodeKind::Agent,
            tenant: "acme".parse().unwrap(),
            serial: "01".repeat(16).parse().unwrap(),
            spki_sha256: [2; 32],
            issuer_sha256: [3; 32],
            not_before: now,
            not_after: now,
        };
        let registry = Registry(RwLock::default());
        registry.enrolled(&identity, 1, 1);
        assert!(registry.authorize(&identity).is_ok());
        registry.removed(identity.node);
        registry.issued(&identity, 2, 1);
        assert_eq!(registry.authorize(&identity).unwrap_err().code(), RefusalCode::NodeUnknown);
    }
}
