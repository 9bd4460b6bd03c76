//! Keeps a bridge's Kafka certificate within a session: how it stands, the next one, and that one's trial at the brokers.

use std::time::Duration;

use pki::{CertificateDer, PrivateKey};
use protocol::message::Refusal;
use protocol::session::{ClockReading, Granted};
use protocol::{NodeId, Timestamp};
use tokio::task::JoinSet;
use tokio::time::Instant;
use transport::Backoff;

use super::renewal::LOOK_EVERY;
use super::{LinkOptions, ders};
use crate::clock::Clock;
use crate::kafka::{Kafka, KafkaCredential, KafkaError};

/// Attempts that failed are repeated after this, at first and at most: brokers are put right by people.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(600);

/// A certificate serves at least this long, whatever the hub says, and the hub gives ten an hour at most.
const SERVES_AT_LEAST: Duration = Duration::from_secs(2);

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

/// Whether the hub has been told, in this session, that the certificate in use is. It is told a key, for which it may have issued
/// another certificate by now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Not before it has answered with this very one.
    No,
    /// It has: by the next request.
    Due,
    Yes,
}

/// The key of a request that is under way.
enum Asked {
    /// That of the certificate in use: how does it stand? And whether the hub is told with it that it is in use.
    InUse(bool),
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
    told: Told,
    asked: Option<Asked>,
    /// When this session has taken it into use.
    taken: Option<Instant>,
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
            told: Told::No,
            asked: None,
            taken: None,
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

    /// The request to send, once its key is saved, and whether it tells that the certificate for this key is in use.
    pub(super) async fn request(&mut self) -> Option<(Vec<u8>, bool)> {
        let inquire = std::mem::take(&mut self.inquire);
        let made = match self.in_use.as_ref().filter(|_| inquire) {
            Some(in_use) => {
                let tells = self.told == Told::Due;
                if tells {
                    self.told = Told::No;
                }
                in_use.key().certificate_request().map(|request| (Asked::InUse(tells), request)).map_err(Into::into)
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
                let tells = matches!(asked, Asked::InUse(true));
                self.asked = Some(asked);
                Some((request, tells))
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
            (Some(Asked::InUse(told)), Some(in_use)) if in_use.is(&certificate, &roots) => {
                if told {
                    self.told = Told::Yes;
                } else if self.told == Told::No {
                    (self.told, self.inquire) = (Told::Due, true);
                }
                return self.stands(renew_at);
            }
            // The roots are others; or its own root is trusted no more, and it was issued anew.
            (Some(Asked::InUse(_)), Some(in_use)) => {
                // Until it is taken: the one in use is not due, and nothing else would have this one tried again.
                (self.told, self.inquire) = (Told::No, true);
                PrivateKey::from_pem(&in_use.key_pem()).map_err(KafkaError::from)
            }
            (Some(Asked::InUse(_)), None) | (None, _) => {
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
                self.heard().await;
                self.taken = Some(Instant::now());
                (self.told, self.inquire) = (Told::Due, true);
                self.stands(renew_at);
                self.kafka.status.send_modify(|status| status.attempts += 1);
            }
            Err(error) => self.failed(error.to_string(), Duration::ZERO),
        }
    }

    /// Who asked for another one while this was on its way has it.
    async fn heard(&self) {
        tokio::select! {
            biased;
            () = self.kafka.renew.notified() => {}
            () = std::future::ready(()) => {}
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

    fn stands(&mut self, renew_at: Option<Timestamp>) {
        let Some(in_use) = &self.in_use else { return };
        let (from, until) = (in_use.summary().not_before, in_use.summary().not_after);
        let now = hub_now(&self.clock, self.reading);
        let advised = renew_at.unwrap_or_else(|| pki::renewal::when(from, until, rand::random()));
        let at = pki::renewal::heed(advised, (from, until), now, rand::random());
        let serves = self.taken.map(|taken| SERVES_AT_LEAST.saturating_sub(taken.elapsed()));
        self.at = at.max(now.plus(serves.unwrap_or_default()));
        self.backoff.reset();
        self.publish(Some(self.at), None);
    }

    fn failed(&mut self, why: String, retry_after: Duration) {
        // Whichever it was: the answer to this tells what to do. Also when another one was asked for while the one in use was to
        // be tried again.
        let unsettled = self.in_use.is_some() && self.told != Told::Yes;
        self.inquire |= matches!(self.asked.take(), Some(Asked::InUse(_))) || unsettled;
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
mod tests;
