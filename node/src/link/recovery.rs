//! The way back for a node whose certificate the hub takes no more: it shows that it still has the key.

use std::sync::Arc;
use std::time::Duration;

use pki::recovery::{Claim, EXPORTER_LABEL};
use pki::roots;
use protocol::message::{RecoverProof, RecoverReply, RecoverRequest, Recovered, recover_reply::Reply};
use protocol::{frame, version};
use transport::{CloseCode, Connection, FrameReader, StreamError};

use super::renewal::{RenewalError, on_disk, renewed};
use super::session::{Failure, of_refusal};
use super::trust::ders;
use super::{Actor, Caller, Trouble, TroubleKind, dial, of_dial};
use crate::identity::{Credential, Identity, IdentityError, Pending};

/// How long the whole exchange may take once the hub is reached.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

impl Actor {
    /// Gets a certificate that the hub takes, for a new key, and saves it; gives the identity when it is durable.
    ///
    /// This node may have gone back to the certificate before its newest. That comes first: a hub that knows it takes who
    /// proves the one before for a copy of this node.
    pub(super) async fn recover(&self) -> Result<Identity, Failure> {
        let in_use = &self.options.identity;
        let newer = in_use.swapped().filter(|other| other.credential.sequence() >= in_use.credential.sequence());
        if let Some(newer) = newer {
            match self.recover_by(newer).await {
                Err(Failure { trouble, .. }) if trouble.kind == TroubleKind::Unissued => {}
                answered => return answered,
            }
        }
        self.recover_by(in_use.clone()).await
    }

    /// Recovers by the credential that is in use in `identity`. The key is saved before it is sent and serves every repetition.
    async fn recover_by(&self, identity: Identity) -> Result<Identity, Failure> {
        let options = &self.options;
        let (store, in_use) = (options.store.clone(), Arc::clone(&identity.credential));
        let made = on_disk(move || {
            let key = store.pending_key(Pending::Renew, Some(&in_use))?;
            let request = key.certificate_request().map_err(IdentityError::Key)?;
            Ok((key, request))
        });
        let (key, request) = made.await.map_err(|error| failed(&error))?;
        let dialed = dial(&options.endpoint, &identity.hub, Caller::Recovering(&identity), &options.clock).await;
        let connection = dialed.map_err(|error| of_dial(&error))?;
        let exchange = exchange(&connection, &identity, request);
        let answer = tokio::time::timeout(ANSWER_WITHIN, exchange).await;
        connection.close(CloseCode::Done, "");
        let recovered = answer.map_err(|_| broken("the hub did not answer in time; look at its log"))??;

        let store = options.store.clone();
        let (chain, now) = (connection.peer_chain(), options.clock.now());
        let sequence = recovered.sequence;
        let saved = on_disk(move || {
            let wanted = ders(recovered.roots);
            let roots = match roots::accept(&identity.roots, &wanted, &ders(recovered.links), &chain, now) {
                Ok(()) => wanted,
                Err(error) => {
                    // The certificate is good all the same, and the hub will say it again in the session.
                    tracing::warn!("the fleet's roots stay as they were: {error}");
                    identity.roots.clone()
                }
            };
            let next = renewed(identity, key, recovered.certificate_chain, sequence)?;
            let next = Identity { roots, ..next };
            store.save(&next)?;
            store.forget_pending(Pending::Renew)?;
            Ok(next)
        });
        let identity = saved.await.map_err(|error| failed(&error))?;
        tracing::info!(not_after = %identity.credential.subject().not_after, sequence, "this node has recovered");
        Ok(identity)
    }
}

async fn exchange(connection: &Connection, identity: &Identity, request: Vec<u8>) -> Result<Recovered, Failure> {
    let credential: &Credential = &identity.credential;
    let (mut writer, mut reader) = connection.open(frame::MAX_ENROLL).await.map_err(StreamError::Closed)?;
    let asked = RecoverRequest {
        versions: Some(version::SPOKEN),
        node_id: identity.node.to_bytes().to_vec(),
        spki_sha256: credential.subject().spki_sha256.to_vec(),
        sequence: credential.sequence(),
        certificate_request: request,
    };
    writer.send(&asked).await?;
    let Reply::Challenge(challenge) = reply(&mut reader).await? else { return Err(broken("it sent no challenge")) };
    let nonce = challenge.nonce.as_slice().try_into().map_err(|_| broken("its challenge is not 32 bytes long"))?;
    let exporter = connection.export(EXPORTER_LABEL).map_err(StreamError::Closed)?;
    let claim = Claim {
        nonce: &nonce,
        exporter: &exporter,
        node: identity.node,
        sequence: asked.sequence,
        certificate_request: &asked.certificate_request,
    };
    let signature = claim.sign(credential.key()).map_err(|error| failed(&IdentityError::Key(error).into()))?;
    writer.send(&RecoverProof { signature }).await?;
    writer.finish().await?;
    match reply(&mut reader).await? {
        Reply::Recovered(recovered) => Ok(recovered),
        _ => Err(broken("it sent a second challenge")),
    }
}

/// The hub's next answer, when it is no refusal.
async fn reply(reader: &mut FrameReader) -> Result<Reply, Failure> {
    let answer: RecoverReply = reader.recv().await?.ok_or_else(|| broken("it ended the stream"))?;
    match answer.reply {
        Some(Reply::Refusal(refusal)) => Err(of_refusal(&refusal)),
        Some(reply) => Ok(reply),
        None => Err(broken("its answer is of a kind this release does not know; update this node's software")),
    }
}

fn broken(what: &str) -> Failure {
    Trouble::new(TroubleKind::Broken, format!("the hub did not let this node recover: {what}")).into()
}

fn failed(error: &RenewalError) -> Failure {
    let kind = match error {
        RenewalError::Identity(IdentityError::File(_)) => TroubleKind::Disk,
        _ => TroubleKind::Broken,
    };
    Trouble::new(kind, format!("this node can't recover: {error}")).into()
}
