//! Keeps a bridge's Kafka certificate within a session: how it stands, the next one, and that one's trial at the brokers.

use std::time::Duration;

use pki::{CertificateDer, PrivateKey};
use protocol::message::Refusal;
use protocol::session::{ClockReading, Granted};
use protocol::{NodeId, Timestamp};
use tokio::task::JoinSet;
use tokio::time::Instant;
use transport::Backoff;

use super::renewal::{LOOK_EVERY, SERVES_AT_LEAST};
use super::{LinkOptions, ders};
use crate::clock::Clock;
use crate::kafka::{Kafka, KafkaCredential, KafkaError};

/// Attempts that failed are repeated after this, at first and at most: brokers are put right by people.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(600);

/// What there is to do.
pub(super) enum Due {
    /// Send [`KafkaRenewal::request`].
    Ask,
    /// Give it to [`KafkaRenewal::settle`].
    Tried(Box<Tried>),
}

/// A credential, and what the brokers made of it.
pub(super) struct Tried {
    credential: KafkaCredential,
    renew_at: Option<Timestamp>,
    outcome: Result<(), String>,
}

/// The key of a request that is under way.
enum Asked {
    /// That of the certificate in use: how does it stand?
    InUse,
    /// That of the next one.
    Next(Box<PrivateKey>),
}

/// The Kafka certificate of one session's bridge.
pub(super) struct KafkaRenewal {
    kafka: Kafka,
    bridge: NodeId,
    clock: Clock,
    reading: ClockReading,
    in_use: Option<KafkaCredential>,
    /// When the next one is due, by the hub's clock.
    at: Timestamp,
    /// Whether to ask how the one in use stands.
    inquire: bool,
    asked: Option<Asked>,
    /// At most one at a time.
    trials: JoinSet<Tried>,
    backoff: Backoff,
    not_before: Instant,
}

impl KafkaRenewal {
    /// Begins with what is on disk; the hub is asked how that stands.
    pub(super) async fn begin(options: &LinkOptions, reading: ClockReading) -> Option<Self> {
        let kafka = options.kafka.clone()?;
        Some(Self::start(kafka, options.identity.node, options.clock.clone(), reading).await)
    }

    async fn start(kafka: Kafka, bridge: NodeId, clock: Clock, reading: ClockReading) -> Self {
        let store = kafka.store.clone();
        let in_use = on_disk(move || store.load()).await.unwrap_or_else(|error| {
            tracing::warn!("{error}; asking the hub for another one");
            None
        });
        let renewal = Self {
            at: hub_now(&clock, reading),
            bridge,
            inquire: in_use.is_some(),
            asked: None,
            trials: JoinSet::new(),
            backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
            not_before: Instant::now(),
            kafka,
            clock,
            reading,
            in_use,
        };
        renewal.publish(None, None);
        renewal
    }

    /// Waits until there is something to do. Cancel-safe.
    pub(super) async fn due(&mut self) -> Due {
        if let Some(Ok(tried)) = self.trials.join_next().await {
            return Due::Tried(Box::new(tried));
        }
        if self.asked.is_some() {
            return std::future::pending().await;
        }
        let renew = std::sync::Arc::clone(&self.kafka.renew);
        tokio::select! {
            () = self.is_due() => {}
            // By somebody who waits for it: not after a pause, and not for how the one in use stands.
            () = renew.notified() => self.inquire = false,
        }
        Due::Ask
    }

    async fn is_due(&self) {
        tokio::time::sleep_until(self.not_before).await;
        loop {
            let left = self.at.since(hub_now(&self.clock, self.reading));
            if self.inquire || left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
        }
    }

    /// The request to send, once its key is saved.
    pub(super) async fn request(&mut self) -> Option<Vec<u8>> {
        let inquire = std::mem::take(&mut self.inquire);
        let made = match self.in_use.as_ref().filter(|_| inquire) {
            Some(in_use) => {
                in_use.key().certificate_request().map(|request| (Asked::InUse, request)).map_err(Into::into)
            }
            None => {
                let store = self.kafka.store.clone();
                let made = on_disk(move || {
                    let key = store.waiting_key()?;
                    let request = key.certificate_request()?;
                    Ok((Asked::Next(Box::new(key)), request))
                });
                made.await
            }
        };
        match made {
            Ok((asked, request)) => {
                self.asked = Some(asked);
                Some(request)
            }
            Err(error) => {
                self.failed(error.to_string(), Duration::ZERO);
                None
            }
        }
    }

    /// Takes the hub's answer. What is new is tried at the brokers first, while the one before still holds.
    pub(super) async fn granted(&mut self, granted: Granted) {
        let Granted { certificate, roots, renew_at } = granted;
        let key = match (self.asked.take(), &self.in_use) {
            (Some(Asked::Next(key)), _) => Ok(*key),
            (Some(Asked::InUse), Some(in_use)) if in_use.is(&certificate, &roots) => {
                return self.stands(renew_at, Duration::ZERO);
            }
            // The roots are others; or its own root is trusted no more, and it was issued anew.
            (Some(Asked::InUse), Some(in_use)) => PrivateKey::from_pem(&in_use.key_pem()).map_err(KafkaError::from),
            (Some(Asked::InUse), None) | (None, _) => {
                return tracing::warn!("the hub sent a Kafka certificate that was not asked for");
            }
        };
        let credential =
            key.and_then(|key| KafkaCredential::new(self.bridge, key, CertificateDer::from(certificate), ders(roots)));
        let credential = match credential {
            Ok(credential) => credential,
            Err(error) => return self.failed(error.to_string(), Duration::ZERO),
        };
        let now = hub_now(&self.clock, self.reading);
        if self.in_use.as_ref().is_some_and(|in_use| in_use.summary().not_after > now) {
            let trial = self.kafka.trial.clone();
            self.trials.spawn_blocking(move || {
                let outcome = trial(&credential);
                Tried { credential, renew_at, outcome }
            });
        } else {
            self.settle(Tried { credential, renew_at, outcome: Ok(()) }).await;
        }
    }

    /// Takes a credential into use, when the brokers have taken it.
    pub(super) async fn settle(&mut self, tried: Tried) {
        let Tried { credential, renew_at, outcome } = tried;
        if let Err(why) = outcome {
            let text = format!("the new Kafka certificate is not used yet, the brokers don't take it: {why}");
            return self.failed(text, Duration::ZERO);
        }
        let store = self.kafka.store.clone();
        let saved = on_disk(move || {
            store.save(&credential)?;
            // The key is part of the credential now. Left behind, it would be asked for again.
            store.forget_waiting()?;
            Ok(credential)
        });
        match saved.await {
            Ok(credential) => {
                tracing::info!(not_after = %credential.summary().not_after, "a Kafka certificate from the hub");
                self.in_use = Some(credential);
                self.stands(renew_at, SERVES_AT_LEAST);
                self.kafka.status.send_modify(|status| status.attempts += 1);
            }
            Err(error) => self.failed(error.to_string(), Duration::ZERO),
        }
    }

    /// The hub has news: how does it stand?
    pub(super) fn news(&mut self, reason: &str) {
        tracing::info!(reason, "the hub has news of the Kafka plane");
        self.inquire = self.in_use.is_some();
        self.not_before = Instant::now();
    }

    pub(super) fn refused(&mut self, refusal: &Refusal) {
        let text = format!("the hub gave no Kafka certificate: {}", refusal.message);
        self.failed(text, Duration::from_millis(refusal.retry_after_ms));
    }

    pub(super) fn unanswered(&mut self) {
        self.failed("the hub did not answer a request for a Kafka certificate; look at its log".into(), Duration::ZERO);
    }

    fn stands(&mut self, renew_at: Option<Timestamp>, serves: Duration) {
        let Some(in_use) = &self.in_use else { return };
        let (from, until) = (in_use.summary().not_before, in_use.summary().not_after);
        let now = hub_now(&self.clock, self.reading);
        let advised = renew_at.unwrap_or_else(|| pki::renewal::when(from, until, rand::random()));
        let at = pki::renewal::heed(advised, (from, until), now, rand::random());
        self.at = at.max(now.plus(serves));
        self.backoff.reset();
        self.publish(Some(self.at), None);
    }

    fn failed(&mut self, why: String, retry_after: Duration) {
        // Whichever it was: the answer to this tells what to do.
        self.inquire |= matches!(self.asked.take(), Some(Asked::InUse));
        self.backoff.after(retry_after);
        let delay = self.backoff.next_delay(&mut rand::rng());
        self.not_before = Instant::now() + delay;
        tracing::warn!("{why}; trying again in {:.0} s", delay.as_secs_f32());
        self.publish(Some(self.at), Some(why));
        self.kafka.status.send_modify(|status| status.attempts += 1);
    }

    fn publish(&self, renew_at: Option<Timestamp>, trouble: Option<String>) {
        let not_after = self.in_use.as_ref().map(|in_use| in_use.summary().not_after);
        self.kafka.status.send_modify(|status| {
            status.not_after = not_after;
            status.renew_at = renew_at.or(status.renew_at);
            status.trouble = trouble;
        });
    }
}

/// What there is to do for a bridge; nothing, ever, for any other node.
pub(super) async fn due(kafka: &mut Option<KafkaRenewal>) -> Due {
    match kafka {
        Some(kafka) => kafka.due().await,
        None => std::future::pending().await,
    }
}

/// The hub's time: certificates begin and end by it, however wrong this node's clock is.
fn hub_now(clock: &Clock, reading: ClockReading) -> Timestamp {
    Timestamp::from_millis(clock.now().millis().saturating_sub(reading.offset_ms))
}

/// Runs what reads and writes files off the runtime's thread.
async fn on_disk<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, KafkaError> + Send + 'static,
) -> Result<T, KafkaError> {
    tokio::task::spawn_blocking(act).await.map_err(|_| KafkaError::Stopped)?
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use pki::Authority;
    use protocol::message::RefusalCode;
    use tokio::sync::{Notify, watch};

    use super::*;
    use crate::kafka::KafkaStore;
    use crate::kafka::tests::{certified, plane};

    const DAY: Duration = Duration::from_secs(86_400);

    /// A hub that grants, brokers that take what they are told to, and a bridge's state directory.
    struct World {
        roots: Mutex<Vec<Authority>>,
        taken: Arc<AtomicBool>,
        tried: Arc<AtomicUsize>,
        directory: tempfile::TempDir,
    }

    fn bridge() -> NodeId {
        NodeId::new(Timestamp::from_millis(1), [9; 10])
    }

    fn now() -> Timestamp {
        Clock::system().now()
    }

    impl World {
        fn new() -> Self {
            Self {
                roots: Mutex::new(vec![plane(now())]),
                taken: Arc::new(AtomicBool::new(true)),
                tried: Arc::default(),
                directory: tempfile::tempdir().expect("tempdir"),
            }
        }

        fn store(&self) -> KafkaStore {
            KafkaStore::directory(self.directory.path())
        }

        /// As a session that begins.
        async fn begin(&self) -> KafkaRenewal {
            let (taken, tried) = (Arc::clone(&self.taken), Arc::clone(&self.tried));
            let kafka = Kafka {
                store: self.store(),
                trial: Arc::new(move |_| {
                    tried.fetch_add(1, Ordering::SeqCst);
                    taken.load(Ordering::SeqCst).then_some(()).ok_or_else(|| "unknown ca".into())
                }),
                renew: Arc::<Notify>::default(),
                status: watch::Sender::default(),
            };
            KafkaRenewal::start(kafka, bridge(), Clock::system(), ClockReading { offset_ms: 0, delay_ms: 1 }).await
        }

        /// What the hub answers: a certificate of the newest root, or the one that `known` is.
        fn grant(&self, request: &[u8], known: Option<&KafkaCredential>) -> Granted {
            let roots = self.roots.lock().expect("whole");
            let key = pki::verify_request(request).expect("proved");
            let certificate = match known.filter(|known| known.summary().spki_sha256 == key.spki_sha256()) {
                Some(known) => pki::pem::read_certificates(&known.certificate_pem()).expect("its own")[0].to_vec(),
                None => roots[0].issue_kafka_client(&key, bridge(), now(), DAY * 90).expect("a certificate"),
            };
            let roots = roots.iter().map(|root| root.certificate_der().to_vec()).collect();
            Granted { certificate, roots, renew_at: Some(now().plus(DAY * 60)) }
        }
    }

    /// Lets the renewal ask, and gives its request.
    async fn asked(renewal: &mut KafkaRenewal) -> Vec<u8> {
        assert!(matches!(renewal.due().await, Due::Ask));
        renewal.request().await.expect("a request")
    }

    /// Lets the brokers' verdict in.
    async fn tried(renewal: &mut KafkaRenewal) {
        let Due::Tried(tried) = renewal.due().await else { panic!("a trial is under way") };
        renewal.settle(*tried).await;
    }

    #[tokio::test]
    async fn the_first_certificate_is_used_at_once_and_known_to_the_next_session() {
        let world = World::new();
        let mut renewal = world.begin().await;
        let request = asked(&mut renewal).await;
        renewal.granted(world.grant(&request, None)).await;
        assert_eq!(world.tried.load(Ordering::SeqCst), 0, "there is nothing else to use");
        let kept = world.store().load().expect("readable").expect("saved");
        assert!(renewal.at > now().plus(DAY * 59));

        let mut again = world.begin().await;
        let request = asked(&mut again).await;
        let key = pki::verify_request(&request).expect("proved");
        assert_eq!(key.spki_sha256(), kept.summary().spki_sha256, "it asks how that stands");
        again.granted(world.grant(&request, Some(&kept))).await;
        assert!(again.at > now().plus(DAY * 59) && world.tried.load(Ordering::SeqCst) == 0);
        assert_eq!(again.kafka.status.borrow().not_after, Some(kept.summary().not_after));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_the_brokers_do_not_take_replaces_none_and_is_tried_again() {
        let world = World::new();
        let mut renewal = world.begin().await;
        let request = asked(&mut renewal).await;
        renewal.granted(world.grant(&request, None)).await;
        let kept = world.store().load().expect("readable").expect("saved").summary().clone();

        world.taken.store(false, Ordering::SeqCst);
        renewal.at = now();
        let first = asked(&mut renewal).await;
        let grant = world.grant(&first, None);
        renewal.granted(grant.clone()).await;
        tried(&mut renewal).await;
        let trouble = renewal.kafka.status.borrow().trouble.clone().expect("said");
        assert!(trouble.contains("brokers don't take it: unknown ca"), "{trouble}");
        assert_eq!(*world.store().load().expect("readable").expect("there").summary(), kept);

        // The same key, so that the hub gives the same.
        world.taken.store(true, Ordering::SeqCst);
        let second = asked(&mut renewal).await;
        let keys = [&first, &second].map(|request| pki::verify_request(request).expect("proved").spki_sha256());
        assert_eq!(keys[0], keys[1]);
        renewal.granted(grant).await;
        tried(&mut renewal).await;
        let used = world.store().load().expect("readable").expect("there").summary().clone();
        assert_eq!((used.spki_sha256, world.tried.load(Ordering::SeqCst)), (keys[0], 2));
        assert_eq!(renewal.kafka.status.borrow().trouble, None);
    }

    #[tokio::test(start_paused = true)]
    async fn news_brings_the_roots_and_a_refusal_is_heeded() {
        let world = World::new();
        let mut renewal = world.begin().await;
        let request = asked(&mut renewal).await;
        renewal.granted(world.grant(&request, None)).await;
        let kept = world.store().load().expect("readable").expect("saved");

        world.roots.lock().expect("whole").push(plane(now()));
        renewal.news("rotation");
        let request = asked(&mut renewal).await;
        renewal.granted(world.grant(&request, Some(&kept))).await;
        tried(&mut renewal).await;
        let both = world.store().load().expect("readable").expect("there");
        assert_eq!(both.roots_pem().matches("BEGIN").count(), 2);
        assert_eq!(both.certificate_pem(), kept.certificate_pem());

        renewal.news("again");
        asked(&mut renewal).await;
        let began = Instant::now();
        let retry_after_ms = 7_200_000;
        renewal.refused(&Refusal { code: RefusalCode::Busy.into(), message: "later".into(), retry_after_ms });
        assert!(renewal.kafka.status.borrow().trouble.as_deref().is_some_and(|text| text.contains("later")));
        let request = asked(&mut renewal).await;
        assert!(began.elapsed() >= Duration::from_secs(7200));
        let key = pki::verify_request(&request).expect("proved");
        assert_eq!(key.spki_sha256(), kept.summary().spki_sha256, "it still wants to know how it stands");
    }

    #[tokio::test]
    async fn what_is_not_this_bridges_is_not_kept() {
        let world = World::new();
        let mut renewal = world.begin().await;
        let request = asked(&mut renewal).await;
        let mut grant = world.grant(&request, None);
        let strange = PrivateKey::generate().expect("a key");
        grant.certificate = certified(&world.roots.lock().expect("whole")[0], &strange, bridge(), now());
        renewal.granted(grant).await;
        assert!(renewal.kafka.status.borrow().trouble.as_deref().is_some_and(|text| text.contains("another key")));
        assert!(world.store().load().expect("readable").is_none());
    }
}
