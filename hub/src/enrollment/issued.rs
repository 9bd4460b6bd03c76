//! A certificate as it goes to a node: signed by its tenant's intermediate, recorded, and only then given out.

use pki::{CertificateDer, NodeIdentity, RequestedKey};
use protocol::Timestamp;
use store::Transaction;

use super::{Enrollment, Failure};
use crate::audit;
use crate::authorities::Certified;
use crate::telemetry::state::Member;

/// A certificate as it goes to a node.
pub(super) struct Issued {
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) identity: NodeIdentity,
    /// The row of the intermediate it is from.
    pub(super) authority: i64,
}

impl Enrollment {
    /// A certificate that is recorded by [`Issued::save`], and then may be given out.
    pub(super) async fn sign(
        &self,
        transaction: &mut Transaction,
        key: &RequestedKey,
        member: &Member,
        now: Timestamp,
    ) -> Result<Issued, Failure> {
        let issuing = self.0.authorities.tenant(transaction, &member.tenant, now).await?;
        let lifetime = self.0.authorities.policies().terms(Some(&member.tenant), member.kind.into()).lifetime;
        let leaf = issuing.authority.issue_node(key, member.node, member.kind, now, lifetime)?;
        Ok(Issued::from_chain(vec![leaf, issuing.authority.certificate_der().to_vec()], issuing.id)?)
    }
}

impl Issued {
    /// What the audit log says of it.
    pub(super) fn logged(&self) -> Result<serde_json::Value, pki::TrustError> {
        Ok(audit::certificate("node", &pki::Summary::of(&self.chain[0])?))
    }

    pub(super) fn from_chain(chain: Vec<Vec<u8>>, authority: i64) -> Result<Self, pki::TrustError> {
        let ders: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(&**der)).collect();
        let identity = pki::node_identity(&ders)?;
        Ok(Self { chain, identity, authority })
    }

    pub(super) async fn save(
        &self,
        transaction: &mut Transaction,
        member: &Member,
        sequence: u64,
        recovered: bool,
        now: Timestamp,
    ) -> Result<(), Failure> {
        let certificate = Certified {
            kind: member.kind.into(),
            authority: self.authority,
            tenant: Some(&member.tenant),
            node: Some(member.node),
            certificate: &self.chain[0],
            sequence: Some(sequence),
            recovered,
        };
        certificate.save(transaction, now).await?;
        Ok(())
    }

    /// Half-way through its life it is no answer any more: a node asks because it wants a newer one.
    pub(super) fn is_fresh(&self, now: Timestamp) -> bool {
        let age = now.since(self.identity.not_before);
        age < self.identity.not_after.since(self.identity.not_before) / 2
    }
}
