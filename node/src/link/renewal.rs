//! Renews the certificate within a session: a new key that is saved first, a request, and a new identity.

use std::sync::Arc;
use std::time::Duration;

use pki::PrivateKey;
use protocol::Timestamp;
use protocol::message::Refusal;
use protocol::session::{ClockReading, Welcomed};
use transport::Backoff;

use super::{Actor, LinkOptions, Trouble, TroubleKind};
use crate::clock::Clock;
use crate::identity::{Credential, Identity, IdentityError, IdentityStore, Pending};

/// A wait for a time of day is cut into pieces of this, so that a clock that was set is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Attempts that failed are repeated after this share of the certificate's life, at first and at most.
const FIRST_RETRY_SHARE: u32 = 500;
const LONGEST_RETRY_SHARE: u32 = 20;

/// The moment a certificate is due by this node's own policy, the same at every start.
pub(super) fn due(credential: &Credential) -> Timestamp {
    let subject = credential.subject();
    // The serial is random and stays with the certificate.
    let jitter = f64::from(subject.serial.as_bytes().last().copied().unwrap_or(0)) / 255.0;
    pki::renewal::when(subject.not_before, subject.not_after, jitter)
}

/// The renewal of one session's certificate.
pub(super) struct Renewal {
    identity: Identity,
    store: IdentityStore,
    clock: Clock,
    reading: ClockReading,
    /// By the hub's clock.
    at: Timestamp,
    backoff: Backoff,
    key: Option<PrivateKey>,
    trouble: Option<String>,
}

impl Renewal {
    pub(super) fn new(options: &LinkOptions, welcomed: &Welcomed) -> Self {
        let credential = &options.identity.credential;
        let life = credential.subject().not_after.since(credential.subject().not_before);
        Self {
            identity: options.identity.clone(),
            store: options.store.clone(),
            clock: options.clock.clone(),
            reading: welcomed.clock,
            at: welcomed.renew_at.unwrap_or_else(|| due(credential)),
            backoff: Backoff::new(life / FIRST_RETRY_SHARE, life / LONGEST_RETRY_SHARE),
            key: None,
            trouble: None,
        }
    }

    /// When it is due, by the hub's clock.
    pub(super) fn at(&self) -> Timestamp {
        self.at
    }

    /// What went wrong the last time.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.clone()
    }

    /// Waits until it is due. While a request is under way it is not. Cancel-safe.
    pub(super) async fn due(&self) {
        if self.key.is_some() {
            return std::future::pending().await;
        }
        loop {
            let left = self.at.since(self.hub_now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
        }
    }

    /// The request to send, once its key is saved.
    pub(super) async fn request(&mut self) -> Option<Vec<u8>> {
        let (store, in_use) = (self.store.clone(), Arc::clone(&self.identity.credential));
        let made = on_disk(move || {
            let key = store.pending_key(Pending::Renew, Some(&in_use))?;
            let request = key.certificate_request().map_err(IdentityError::Key)?;
            Ok((key, request))
        });
        match made.await {
            Ok((key, request)) => {
                self.key = Some(key);
                Some(request)
            }
            Err(error) => {
                self.failed(&error, Duration::ZERO);
                None
            }
        }
    }

    /// Takes the renewed chain and saves the identity; gives it when it is durable.
    pub(super) async fn accept(&mut self, chain: Vec<Vec<u8>>) -> Option<Identity> {
        let Some(key) = self.key.take() else {
            tracing::warn!("the hub sent a certificate that was not asked for");
            return None;
        };
        let (store, identity) = (self.store.clone(), self.identity.clone());
        let saved = on_disk(move || {
            let renewed = renewed(identity, key, chain)?;
            store.save(&renewed)?;
            // The key is part of the identity now. Left behind, it would be told from a waiting one.
            store.forget_pending(Pending::Renew)?;
            Ok(renewed)
        });
        match saved.await {
            Ok(identity) => {
                let not_after = identity.credential.subject().not_after;
                tracing::info!(%not_after, "certificate renewed");
                Some(identity)
            }
            Err(error) => {
                self.failed(&error, Duration::ZERO);
                None
            }
        }
    }

    pub(super) fn refused(&mut self, refusal: &Refusal) {
        let text = format!("the hub would not renew the certificate: {}", refusal.message);
        self.failed(&text, Duration::from_millis(refusal.retry_after_ms));
    }

    pub(super) fn unanswered(&mut self) {
        self.failed(&"the hub did not answer a request to renew the certificate; look at its log", Duration::ZERO);
    }

    fn failed(&mut self, why: &dyn std::fmt::Display, retry_after: Duration) {
        self.key = None;
        self.backoff.after(retry_after);
        self.at = self.hub_now().plus(self.backoff.next_delay(&mut rand::rng()));
        tracing::warn!(next = %self.at, "certificate not renewed: {why}");
        self.trouble = Some(why.to_string());
    }

    /// The hub's time: certificates begin and end by it, however wrong this node's clock is.
    fn hub_now(&self) -> Timestamp {
        Timestamp::from_millis(self.clock.now().millis().saturating_sub(self.reading.offset_ms))
    }
}

impl Actor {
    /// Lets go of the credential before a renewal: a session is up with the new one.
    pub(super) async fn retire_previous(&mut self) {
        if self.options.identity.previous.take().is_some() {
            self.save("the old key stays in the identity file until the next renewal").await;
        }
    }

    /// Goes back to the credential before a renewal when the hub does not accept the new one; says so if it did.
    pub(super) async fn go_back(&mut self, trouble: &Trouble) -> Option<Trouble> {
        if !matches!(trouble.kind, TroubleKind::Trust | TroubleKind::Revoked) {
            return None;
        }
        self.options.identity.credential = self.options.identity.previous.take()?;
        self.save("the identity file holds a certificate that the hub does not accept").await;
        self.publish_certificate();
        let message = format!("going back to the certificate before the renewal: {trouble}");
        Some(Trouble::new(TroubleKind::Trust, message))
    }

    async fn save(&self, otherwise: &str) {
        let (store, identity) = (self.options.store.clone(), self.options.identity.clone());
        if let Err(error) = on_disk(move || Ok(store.save(&identity)?)).await {
            tracing::warn!("{error}; {otherwise}");
        }
    }
}

/// The identity with a renewed certificate in it, if that is what the hub sent.
fn renewed(identity: Identity, key: PrivateKey, chain: Vec<Vec<u8>>) -> Result<Identity, RenewalError> {
    let credential = Credential::new(key, chain.into_iter().map(Into::into).collect()).map_err(IdentityError::from)?;
    let (new, old) = (credential.subject(), identity.credential.subject());
    if (new.node, new.kind, &new.tenant) != (old.node, old.kind, &old.tenant) {
        return Err(RenewalError::OtherNode);
    }
    Ok(Identity { previous: Some(identity.credential), credential: Arc::new(credential), ..identity })
}

/// Runs what reads and writes files off the runtime's thread.
async fn on_disk<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, RenewalError> + Send + 'static,
) -> Result<T, RenewalError> {
    tokio::task::spawn_blocking(act).await.map_err(|_| RenewalError::Stopped)?
}

/// A certificate could not be renewed on this node's side.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the hub sent a certificate that names another node; look at the hub's log")]
    OtherNode,
    #[error("the process is shutting down")]
    Stopped,
}
