//! Sends heads to an HTTP address, one at a time, again and again until they are taken.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use settings::Secret;
use tokio::time::Instant;
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use super::Published;

/// How long one try may take.
const WITHIN: Duration = Duration::from_secs(5);
/// The pause after the first failure, and the longest.
const PAUSE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(300)];
/// Where systems keep the authorities they trust: Debian, Fedora, Alpine.
const SYSTEM_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Where heads are posted to.
pub struct Webhook {
    agent: Agent,
    url: Secret,
    failures: u32,
    next_try: Instant,
}

/// The webhook can't be used, or did not take a head.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// Not an address.
    #[error("audit-heads-webhook starts with https:// or http://")]
    Address,
    /// Nothing to judge its certificate by.
    #[error(
        "audit-heads-webhook is https, but this system has no list of trusted authorities: install ca-certificates"
    )]
    Authorities,
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
    /// [`WebhookError::Address`], [`WebhookError::Authorities`].
    pub fn new(url: Secret) -> Result<Self, WebhookError> {
        let secure = url.expose().starts_with("https://");
        if !secure && !url.expose().starts_with("http://") {
            return Err(WebhookError::Address);
        }
        let mut tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
        if secure {
            tls = tls.root_certs(RootCerts::Specific(Arc::new(authorities()?)));
        }
        let agent = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(WITHIN))
            .user_agent(concat!("hyperfactory-hub/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self { agent, url, failures: 0, next_try: Instant::now() })
    }

    /// When it may be tried again.
    pub fn next_try(&self) -> Instant {
        self.next_try
    }

    /// Posts a head as JSON; any answer of the 200s takes it.
    ///
    /// # Errors
    /// Why it was not taken; [`Webhook::next_try`] is then a little later each time.
    pub async fn send(&mut self, published: Published) -> Result<(), WebhookError> {
        let (agent, url) = (self.agent.clone(), self.url.clone());
        let posted = tokio::task::spawn_blocking(move || post(&agent, &url, &published)).await;
        let outcome = posted.unwrap_or(Err(WebhookError::Stopped));
        match &outcome {
            Ok(()) => (self.failures, self.next_try) = (0, Instant::now()),
            Err(_) => {
                let longest = PAUSE[0].saturating_mul(1 << self.failures.min(16)).min(PAUSE[1]);
                self.failures = self.failures.saturating_add(1);
                self.next_try = Instant::now() + longest.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            }
        }
        outcome
    }
}

fn post(agent: &Agent, url: &Secret, published: &Published) -> Result<(), WebhookError> {
    let answer = agent.post(url.expose()).send_json(published);
    match answer.map(|answer| answer.status()) {
        Ok(status) if status.is_success() => Ok(()),
        Ok(status) => Err(WebhookError::Status(status.as_u16())),
        // Some of the library's errors show the address.
        Err(ureq::Error::BadUri(_) | ureq::Error::Http(_)) => {
            Err(WebhookError::Unreachable("audit-heads-webhook is no address".into()))
        }
        Err(error) => Err(WebhookError::Unreachable(error.to_string())),
    }
}

fn authorities() -> Result<Vec<Certificate<'static>>, WebhookError> {
    let path = SYSTEM_AUTHORITIES.iter().map(Path::new).find(|path| path.exists());
    let pem = path.and_then(|path| std::fs::read(path).ok()).ok_or(WebhookError::Authorities)?;
    Ok(parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect())
}
