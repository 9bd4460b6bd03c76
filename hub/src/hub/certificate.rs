//! The hub's own certificate and the roots it judges nodes by, as time and rotations go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use pki::tls::{HubCertificate, HubChain, TrustedRoots};
use protocol::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::now;
use crate::authorities::{Authorities, HubServer, RENEW_FOR_NODES};
use crate::gateway::Gateway;
use crate::rotation::Rotations;

/// How often the hub looks at its own certificate, and whether another hub has taken a step of a rotation.
const LOOK_AT_TRUST: Duration = Duration::from_secs(10);
/// How often it looks whether an intermediate has to be followed.
const LOOK_AT_INTERMEDIATES: Duration = Duration::from_secs(3600);

/// Replaces the hub's own certificate well before it ends, and when a step of a rotation wants another one. Then it also
/// judges nodes by the fleet's new roots, and tells those that are in session.
pub(super) async fn keep_certified(
    domain: (Authorities, Rotations),
    gateway: Arc<Gateway>,
    certificate: HubCertificate,
    mut until: Timestamp,
    trusted: TrustedRoots,
    shutdown: CancellationToken,
) {
    let (authorities, rotations) = domain;
    let mut roots = authorities.watch_roots();
    let mut told = authorities.roots();
    // Whether a step has been taken that this hub has not followed in all. One may have been its last act before it ended.
    let mut behind = true;
    let mut intermediates = Instant::now() + LOOK_AT_INTERMEDIATES;
    loop {
        if !behind {
            behind = tokio::select! {
                () = shutdown.cancelled() => return,
                changed = roots.changed() => changed.is_ok(),
                () = tokio::time::sleep(LOOK_AT_TRUST) => false,
            };
        }
        if let Err(error) = authorities.look(now()).await {
            warn!(%error, "the fleet's roots were not read again");
        }
        if Instant::now() >= intermediates {
            intermediates = Instant::now() + LOOK_AT_INTERMEDIATES;
            follow(&authorities).await;
        }
        let now_trusted = roots.borrow_and_update().clone();
        if now_trusted.steps != told.steps {
            behind = true;
            gateway.registry.kafka(&"a step of a rotation".into());
        }
        if !now_trusted.same(&told) {
            behind = true;
            if let Err(error) = trusted.replace(&now_trusted.trusted) {
                warn!(%error, "the fleet's new roots can't be read; nodes are judged by those before");
            }
            gateway.registry.trust(&Arc::new(now_trusted.trust()));
        }
        told = now_trusted;
        if !behind && now() < until.minus(RENEW_FOR_NODES) {
            continue;
        }
        let followed = async {
            let shown = authorities.hub_server(now()).await?;
            certificate.replace(chain(&shown)?, &shown.key)?;
            if shown.not_after != until {
                info!(not_after = %shown.not_after, "the hub has a new server certificate");
                until = shown.not_after;
            }
            rotations.advise(&gateway.enrollment, now()).await?;
            anyhow::Ok(())
        };
        match followed.await {
            Ok(()) => behind = false,
            Err(error) => {
                warn!(error = format!("{error:#}"), %until, "the hub could not renew its server certificate, or not go on from there");
                if shutdown.run_until_cancelled(tokio::time::sleep(LOOK_AT_TRUST)).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// Follows the intermediates whose time has come. A hub that can't do it serves all the same: they last for months yet.
pub(super) async fn follow(authorities: &Authorities) {
    if let Err(error) = authorities.follow(now()).await {
        warn!(
            error = crate::rows::chain(&error),
            "an intermediate whose time has come is not followed by a new one yet"
        );
    }
}

pub(super) fn served(shown: &HubServer) -> anyhow::Result<HubCertificate> {
    Ok(HubCertificate::new(chain(shown)?, &shown.key)?)
}

fn chain(shown: &HubServer) -> anyhow::Result<HubChain> {
    let (links, roots) = (shown.roots.links.clone(), shown.roots.trusted.clone());
    match shown.chain.as_slice() {
        [leaf, intermediate] => Ok(HubChain { leaf: leaf.clone(), intermediate: intermediate.clone(), links, roots }),
        _ => bail!("the hub's certificate chain is not leaf and intermediate"),
    }
}
