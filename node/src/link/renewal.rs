//! Renews the certificate within a session: a new key that is saved first, a request, and a new identity.

use std::sync::Arc;
use std::time::Duration;

use pki::PrivateKey;
use protocol::Timestamp;
use protocol::message::Refusal;
use protocol::session::{ClockReading, Welcomed};
use tokio::time::Instant;
use transport::Backoff;

use super::{Actor, LinkOptions, Trouble, TroubleKind, ders};
use crate::clock::Clock;
use crate::identity::{Credential, Identity, IdentityError, IdentityStore, Pending};

/// A wait for a time of day is cut into pieces of this, so that a clock that was set is noticed.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A certificate serves at least this long, whatever the hub says: one that is due as soon as it is issued would have a
/// node do nothing but renew.
const SERVES_AT_LEAST: Duration = Duration::from_secs(10);
/// Attempts that failed are repeated after this share of the certificate's life, at first and at most.
const FIRST_RETRY_SHARE: u32 = 500;
const LONGEST_RETRY_SHARE: u32 = 20;

/// The moment a certificate is due by this node's own policy, the same at every start.
pub(super) fn due(credential: &Credential) -> Timestamp {
    let subject = credential.subject();
    pki::renewal::when(subject.not_before, subject.not_after, pki::renewal::jitter(&subject.serial))
}

/// The renewal of one session's certificate.
pub(super) struct Renewal {
    identity: Identity,
    store: IdentityStore,
    clock: Clock,
    reading: ClockReading,
    /// By the hub's clock.
    at: Timestamp,
    /// When this process renewed it the last time.
    renewed: Option<Instant>,
    backoff: Backoff,
    key: Option<PrivateKey>,
    trouble: Option<String>,
}

impl Renewal {
    /// `renewed`: when this process renewed it the last time.
    pub(super) fn new(options: &LinkOptions, welcomed: &Welcomed, renewed: Option<Instant>) -> Self {
        let (identity, store) = (options.identity.clone(), options.store.clone());
        let mut renewal = Self::of(identity, store, options.clock.clone(), welcomed.clock);
        renewal.renewed = renewed;
        renewal.advised(welcomed.renew_at);
        renewal
    }

    fn of(identity: Identity, store: IdentityStore, clock: Clock, reading: ClockReading) -> Self {
        let credential = &identity.credential;
        let life = credential.subject().not_after.since(credential.subject().not_before);
        Self {
            at: due(credential),
            renewed: None,
            backoff: Backoff::new(life / FIRST_RETRY_SHARE, life / LONGEST_RETRY_SHARE),
            key: None,
            trouble: None,
            identity,
            store,
            clock,
            reading,
        }
    }

    /// Takes the hub's advice when to renew; `None`: by the node's own policy.
    pub(super) fn advised(&mut self, renew_at: Option<Timestamp>) {
        let (subject, now) = (self.identity.credential.subject(), self.hub_now());
        let life = (subject.not_before, subject.not_after);
        let at = renew_at.map(|at| pki::renewal::heed(at, life, now, rand::random()));
        let at = at.unwrap_or_else(|| due(&self.identity.credential));
        let serves = self.renewed.map(|renewed| SERVES_AT_LEAST.saturating_sub(renewed.elapsed()));
        self.at = at.max(now.plus(serves.unwrap_or_default()));
    }

    /// When it is due, by the hub's clock.
    pub(super) fn at(&self) -> Timestamp {
        self.at
    }

    /// Makes it due at once.
    pub(super) fn now(&mut self) {
        self.at = self.hub_now();
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

    /// Who the node is by now: renewed certificates are not in it, new roots are.
    pub(super) fn identity(&mut self) -> (&mut Identity, &IdentityStore) {
        (&mut self.identity, &self.store)
    }

    /// The request to send, once its key is saved, and the number of the certificate in use.
    pub(super) async fn request(&mut self) -> Option<(Vec<u8>, u64)> {
        let (store, in_use) = (self.store.clone(), Arc::clone(&self.identity.credential));
        let made = on_disk(move || {
            let key = store.pending_key(Pending::Renew, Some(&in_use))?;
            let request = key.certificate_request().map_err(IdentityError::Key)?;
            Ok((key, request))
        });
        match made.await {
            Ok((key, request)) => {
                self.key = Some(key);
                Some((request, self.identity.credential.sequence()))
            }
            Err(error) => {
                self.failed(&error, Duration::ZERO);
                None
            }
        }
    }

    /// Takes the renewed chain and saves the identity; gives it when it is durable.
    pub(super) async fn accept(&mut self, chain: Vec<Vec<u8>>, sequence: u64) -> Option<Identity> {
        let Some(key) = self.key.take() else {
            tracing::warn!("the hub sent a certificate that was not asked for");
            return None;
        };
        let (store, identity) = (self.store.clone(), self.identity.clone());
        let saved = on_disk(move || {
            let renewed = renewed(identity, key, chain, sequence)?;
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
    /// Goes back to the certificate before the newest, if that is in use and there is one; says so if it did. Only for a hub
    /// that says that it knows no such certificate: any other may have used it, be it that its Welcome was lost, and takes who
    /// comes with the one before for a copy of this node. The newest is kept: the right database may yet be put back.
    pub(super) async fn go_back(&mut self, trouble: &Trouble) -> Option<Trouble> {
        let newest = self.options.identity.credential.sequence();
        let before = self.options.identity.swapped().filter(|before| before.credential.sequence() < newest)?;
        self.options.identity = before;
        let (store, identity) = (self.options.store.clone(), self.options.identity.clone());
        if let Err(error) = on_disk(move || Ok(store.save(&identity)?)).await {
            tracing::warn!("{error}; the identity file holds a certificate that the hub does not know");
        }
        self.publish_certificate();
        let message = format!("going back to the certificate before: {trouble}");
        Some(Trouble::new(TroubleKind::Outdated, message))
    }
}

/// The identity with a renewed certificate in it, if that is what the hub sent. Of the others, one that is newer than the one
/// in use stays until a session has used as new a one: a hub whose database is of another time may be put right yet.
pub(super) fn renewed(
    identity: Identity,
    key: PrivateKey,
    chain: Vec<Vec<u8>>,
    sequence: u64,
) -> Result<Identity, RenewalError> {
    let credential = Credential::new(key, ders(chain), sequence).map_err(IdentityError::from)?;
    let (new, old) = (credential.subject(), identity.credential.subject());
    if (new.node, new.kind, &new.tenant) != (old.node, old.kind, &old.tenant) {
        return Err(RenewalError::OtherNode);
    }
    let in_use = identity.credential;
    let newer = identity.previous.filter(|other| other.sequence() > in_use.sequence());
    Ok(Identity { previous: Some(newer.unwrap_or(in_use)), credential: Arc::new(credential), ..identity })
}

/// Runs what reads and writes files off the runtime's thread.
pub(super) async fn on_disk<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, RenewalError> + Send + 'static,
) -> Result<T, RenewalError> {
    tokio::task::spawn_blocking(act).await.map_err(|_| RenewalError::Stopped)?
}

/// A certificate could not be renewed on this node's side.
#[derive(Debug, thiserror::Error)]
pub(super) enum RenewalError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the hub sent a certificate that names another node; look at the hub's log")]
    OtherNode,
    #[error("the process is shutting down")]
    Stopped,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use pki::PrivateKey;
    use protocol::message::RefusalCode;

    use super::*;
    use crate::identity::tests::Fleet;

    const IN_STEP: ClockReading = ClockReading { offset_ms: 0, delay_ms: 1 };

    /// A renewal by the node's own policy, and the clock it goes by, which stands at the certificate's start.
    fn renewal(fleet: &Fleet, reading: ClockReading) -> (Renewal, Arc<AtomicI64>) {
        let identity = fleet.identity();
        let wall = Arc::new(AtomicI64::new(identity.credential.subject().not_before.millis()));
        let shown = Arc::clone(&wall);
        let clock = Clock::new(move || Timestamp::from_millis(shown.load(Ordering::Relaxed)));
        (Renewal::of(identity, IdentityStore::memory(), clock, reading), wall)
    }

    fn refusal(text: &str, retry_after: Duration) -> Refusal {
        let retry_after_ms = u64::try_from(retry_after.as_millis()).expect("short");
        Refusal { code: RefusalCode::Busy.into(), message: text.into(), retry_after_ms }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_jumps_does_not_skip_a_renewal() {
        let (renewal, wall) = renewal(&Fleet::new(), IN_STEP);
        let mut due = std::pin::pin!(renewal.due());
        assert!(tokio::time::timeout(Duration::from_secs(3600), &mut due).await.is_err(), "not due for days");
        let began = Instant::now();
        wall.store(renewal.at().millis(), Ordering::Relaxed);
        due.await;
        assert!(began.elapsed() <= LOOK_EVERY);
    }

    #[tokio::test(start_paused = true)]
    async fn the_hubs_time_decides_when_the_nodes_clock_is_wrong() {
        let ahead = ClockReading { offset_ms: 30 * 86_400_000, delay_ms: 1 };
        let (renewal, wall) = renewal(&Fleet::new(), ahead);
        wall.store(renewal.at().millis() + 1, Ordering::Relaxed);
        assert!(tokio::time::timeout(Duration::from_secs(3600), renewal.due()).await.is_err());
        wall.fetch_add(ahead.offset_ms, Ordering::Relaxed);
        renewal.due().await;
    }

    #[tokio::test]
    async fn no_advice_lets_the_certificate_end_or_has_a_new_one_replaced_at_once() {
        let (mut renewal, wall) = renewal(&Fleet::new(), IN_STEP);
        let life = renewal.identity.credential.subject().clone();
        let own = renewal.at();
        renewal.advised(Some(Timestamp::from_millis(i64::MAX)));
        assert!(renewal.at() > own && renewal.at() < life.not_after);
        renewal.advised(None);
        assert_eq!(renewal.at(), own);

        let now = own.minus(Duration::from_secs(3600));
        wall.store(now.millis(), Ordering::Relaxed);
        renewal.advised(Some(Timestamp::from_millis(i64::MIN)));
        assert!((now..=now.plus(Duration::from_secs(30))).contains(&renewal.at()));
        renewal.renewed = Some(Instant::now());
        renewal.advised(Some(now));
        assert!(renewal.at() > now.plus(SERVES_AT_LEAST / 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_renewal_keeps_its_key_says_why_and_comes_back_when_told() {
        let (mut renewal, _wall) = renewal(&Fleet::new(), IN_STEP);
        let asked_at = renewal.clock.now();
        renewal.request().await.expect("a request");
        let key = renewal.key.as_ref().map(PrivateKey::spki_sha256);
        renewal.refused(&refusal("the tenant's authority is sealed", Duration::from_secs(7200)));
        assert!(renewal.trouble().is_some_and(|text| text.contains("sealed")));
        assert!(renewal.at() >= asked_at.plus(Duration::from_secs(7200)));
        renewal.request().await.expect("a request");
        assert_eq!(renewal.key.as_ref().map(PrivateKey::spki_sha256), key);
    }

    #[tokio::test]
    async fn a_certificate_for_another_node_or_key_is_not_taken() {
        let fleet = Fleet::new();
        let (mut renewal, _wall) = renewal(&fleet, IN_STEP);
        let chain = |credential: &Credential| credential.chain().iter().map(|der| der.to_vec()).collect::<Vec<_>>();

        renewal.request().await.expect("a request");
        let others_key = fleet.credential(PrivateKey::generate().expect("a key"), renewal.identity.node);
        assert!(renewal.accept(chain(&others_key.expect("a pair")), 8).await.is_none());

        let key = renewal.store.pending_key(Pending::Renew, None).expect("the waiting key");
        renewal.request().await.expect("a request");
        let stranger = protocol::NodeId::new(Timestamp::from_millis(2), [1; 10]);
        let others_name = fleet.credential(key, stranger).expect("a pair");
        assert!(renewal.accept(chain(&others_name), 8).await.is_none());
        assert!(renewal.trouble().is_some_and(|text| text.contains("another node")));
        assert!(renewal.store.load().expect("readable").is_none(), "nothing was saved");
    }
}
