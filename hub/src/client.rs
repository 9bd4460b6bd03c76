//! The hub's own HTTP client, for addresses that its configuration names.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use settings::Secret;
use tokio::time::Instant;
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

/// The pause after the first failure, and the longest.
const PAUSE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(300)];
/// Where systems keep the authorities they trust: Debian, Fedora, Alpine.
const SYSTEM_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// An address that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Not an address.
    #[error("{0} starts with https:// or http://")]
    Scheme(&'static str),
    /// Nothing to judge its certificate by.
    #[error("{0} is https, but this system has no list of trusted authorities: install ca-certificates")]
    Authorities(&'static str),
}

/// A client for `url`, which the configuration has under `key`; no call of it takes longer than `within`.
pub(crate) fn client(key: &'static str, url: &Secret, within: Duration) -> Result<Agent, AddressError> {
    let secure = url.expose().starts_with("https://");
    if !secure && !url.expose().starts_with("http://") {
        return Err(AddressError::Scheme(key));
    }
    let mut tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
    if secure {
        let authorities = authorities().ok_or(AddressError::Authorities(key))?;
        tls = tls.root_certs(RootCerts::Specific(Arc::new(authorities)));
    }
    Ok(Agent::config_builder()
        .tls_config(tls.build())
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(within))
        .user_agent(concat!("hyperfactory-hub/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent())
}

/// When something that failed may be tried again: a little later each time.
#[derive(Debug)]
pub(crate) struct Tries {
    failures: u32,
    next: Instant,
}

impl Tries {
    pub(crate) fn new() -> Self {
        Self { failures: 0, next: Instant::now() }
    }

    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    pub(crate) fn went(&mut self, well: bool) {
        if well {
            (self.failures, self.next) = (0, Instant::now());
            return;
        }
        let longest = PAUSE[0].saturating_mul(1 << self.failures.min(16)).min(PAUSE[1]);
        self.failures = self.failures.saturating_add(1);
        self.next = Instant::now() + longest.mul_f64(0.5 + rand::random::<f64>() / 2.0);
    }
}

/// Why nothing was answered, without the address, which may hold a secret and which some of the library's errors show.
pub(crate) fn unanswered(key: &'static str, error: &ureq::Error) -> String {
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => format!("{key} is no address"),
        error => error.to_string(),
    }
}

fn authorities() -> Option<Vec<Certificate<'static>>> {
    let path = SYSTEM_AUTHORITIES.iter().map(Path::new).find(|path| path.exists());
    let pem = path.and_then(|path| std::fs::read(path).ok())?;
    let certificates = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    Some(certificates.collect())
}
