//! Sends heads to an HTTP address, one at a time, again and again until they are taken.

use std::time::Duration;

use settings::Secret;
use tokio::time::Instant;
use ureq::Agent;

use super::Published;
use crate::client::{AddressError, Tries, client, unanswered};

/// Its key in the configuration.
const KEY: &str = "audit-heads-webhook";
/// How long one try may take.
const WITHIN: Duration = Duration::from_secs(5);

/// Where heads are posted to.
pub struct Webhook {
    agent: Agent,
    url: Secret,
    tries: Tries,
}

/// The webhook can't be used, or did not take a head.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// Its address can't be used.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// It answered that it did not take it.
    #[error("it answered {0}")]
    Status(u16),
    /// It can't be reached.
    #[error("it can't be reached: {0}")]
    Unreachable(String),
    /// The hub is stopping.
    #[error("the hub is stopping")]
    Stopped,
}

impl Webhook {
    /// A webhook at `url`, which may hold a secret and is shown to nobody.
    ///
    /// # Errors
    /// [`WebhookError::Address`].
    pub fn new(url: Secret) -> Result<Self, WebhookError> {
        Ok(Self { agent: client(KEY, &url, WITHIN)?, url, tries: Tries::new() })
    }

    /// When it may be tried again.
    pub fn next_try(&self) -> Instant {
        self.tries.next()
    }

    /// Posts a head as JSON; any answer of the 200s takes it.
    ///
    /// # Errors
    /// Why it was not taken; [`Webhook::next_try`] is then a little later each time.
    pub async fn send(&mut self, published: Published) -> Result<(), WebhookError> {
        let (agent, url) = (self.agent.clone(), self.url.clone());
        let posted = tokio::task::spawn_blocking(move || post(&agent, &url, &published)).await;
        let outcome = posted.unwrap_or(Err(WebhookError::Stopped));
        self.tries.went(outcome.is_ok());
        outcome
    }
}

fn post(agent: &Agent, url: &Secret, published: &Published) -> Result<(), WebhookError> {
    let answer = agent.post(url.expose()).send_json(published);
    match answer.map(|answer| answer.status()) {
        Ok(status) if status.is_success() => Ok(()),
        Ok(status) => Err(WebhookError::Status(status.as_u16())),
        Err(error) => Err(WebhookError::Unreachable(unanswered(KEY, &error))),
    }
}
