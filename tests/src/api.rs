//! A client of the hub's REST API, as plain as curl.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;
use ureq::RequestBuilder;
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

/// How long an answer may take: a hub may be under load on purpose.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest body that is read whole.
const MOST_BYTES: u64 = 64 << 20;
/// Where Debian and Ubuntu keep the authorities they trust.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// An address of the API, and the bearer token that is sent to it.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    token: Option<String>,
    agent: ureq::Agent,
}

/// What came back, whatever the status.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The body; `Null` when it is empty, a string when it is not JSON.
    pub body: Value,
}

impl Api {
    /// A client of `base` (`http://127.0.0.1:port`), without a token. HTTPS is trusted by the authorities in the file
    /// that SSL_CERT_FILE names, or those of the system.
    pub fn new(base: impl Into<String>) -> Self {
        let file = std::env::var("SSL_CERT_FILE").unwrap_or_else(|_| SYSTEM_AUTHORITIES.to_owned());
        let base = base.into();
        let authorities = if base.starts_with("https:") { std::fs::read(file).unwrap_or_default() } else { Vec::new() };
        Self::trusting(base, &authorities)
    }

    /// The same, for which `authorities`, in PEM, and no others sign certificates.
    pub fn trusting(base: impl Into<String>, authorities: &[u8]) -> Self {
        let roots = parse_pem(authorities).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::Specific(Arc::new(roots.collect())))
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(PATIENCE))
            .build();
        let base = base.into().trim_end_matches('/').to_owned();
        Self { base, token: None, agent: config.new_agent() }
    }

    /// The bearer token that is sent.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The same address with a bearer token.
    pub fn with_token(&self, token: impl Into<String>) -> Self {
        Self { token: Some(token.into().trim().to_owned()), ..self.clone() }
    }

    /// The address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// GET.
    pub fn get(&self, path: &str) -> Result<Reply> {
        reply(self.signed(self.agent.get(self.url(path))).call()).with_context(|| format!("GET {path}"))
    }

    /// GET of what is no JSON; its bytes.
    pub fn download(&self, path: &str) -> Result<Vec<u8>> {
        let fetch = || -> Result<Vec<u8>> {
            let mut response = self.signed(self.agent.get(self.url(path))).call()?;
            let status = response.status();
            if !status.is_success() {
                bail!("the hub answered {status}");
            }
            Ok(response.body_mut().with_config().limit(MOST_BYTES).read_to_vec()?)
        };
        fetch().with_context(|| format!("GET {path}"))
    }

    /// POST of a JSON body.
    pub fn post(&self, path: &str, body: &impl Serialize) -> Result<Reply> {
        reply(self.signed(self.agent.post(self.url(path))).send_json(body)).with_context(|| format!("POST {path}"))
    }

    /// PUT of a JSON body.
    pub fn put(&self, path: &str, body: &impl Serialize) -> Result<Reply> {
        reply(self.signed(self.agent.put(self.url(path))).send_json(body)).with_context(|| format!("PUT {path}"))
    }

    /// POST of a JSON body under an Idempotency-Key: sent again, it has no second effect.
    pub fn post_once(&self, path: &str, key: &str, body: &impl Serialize) -> Result<Reply> {
        let request = self.signed(self.agent.post(self.url(path))).header("Idempotency-Key", key);
        reply(request.send_json(body)).with_context(|| format!("POST {path}"))
    }

    /// DELETE.
    pub fn delete(&self, path: &str) -> Result<Reply> {
        reply(self.signed(self.agent.delete(self.url(path))).call()).with_context(|| format!("DELETE {path}"))
    }

    fn signed<Body>(&self, request: RequestBuilder<Body>) -> RequestBuilder<Body> {
        match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }
}

impl Reply {
    /// The body of a success; an error with what the hub said otherwise.
    pub fn ok(self) -> Result<Value> {
        if !(200..300).contains(&self.status) {
            bail!("the hub answered {}: {}", self.status, self.body);
        }
        Ok(self.body)
    }
}

fn reply(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Reply> {
    let mut response = response?;
    let status = response.status().as_u16();
    let text = response.body_mut().read_to_string()?;
    let body = match text.as_str() {
        "" => Value::Null,
        _ => serde_json::from_str(&text).unwrap_or(Value::String(text)),
    };
    Ok(Reply { status, body })
}
