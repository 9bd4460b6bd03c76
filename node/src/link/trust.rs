//! The fleet roots a node trusts, as its hub leads it from one to the next.

use pki::CertificateDer;
use pki::roots::{self, RootsError};
use protocol::Timestamp;
use protocol::message::Trust;

use super::renewal::{RenewalError, on_disk};
use crate::identity::{Identity, IdentityStore};

/// Has `identity` trust what a hub has sent, and saves it; on an error it is as before.
pub(super) async fn take(
    identity: &mut Identity,
    store: &IdentityStore,
    trust: Trust,
    hub_chain: &[CertificateDer<'static>],
    now: Timestamp,
) -> Result<(), TrustError> {
    let [wanted, links] = [trust.roots, trust.links].map(ders);
    roots::accept(&identity.roots, &wanted, &links, hub_chain, now)?;
    if wanted == identity.roots {
        return Ok(());
    }
    let (next, store) = (Identity { roots: wanted, ..identity.clone() }, store.clone());
    *identity = on_disk(move || {
        store.save(&next)?;
        Ok(next)
    })
    .await?;
    tracing::info!(roots = identity.roots.len(), "the fleet's roots have changed");
    Ok(())
}

pub(crate) fn ders(encoded: Vec<Vec<u8>>) -> Vec<CertificateDer<'static>> {
    encoded.into_iter().map(Into::into).collect()
}

/// A list of roots that is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrustError {
    #[error(transparent)]
    Roots(#[from] RootsError),
    #[error(transparent)]
    Disk(#[from] RenewalError),
}
