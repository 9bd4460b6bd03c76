//! A client of the hub's REST API, as plain as curl.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

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
    /// A client of `base` (`http://127.0.0.1:port`), without a token.
    pub fn new(base: impl Into<String>) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(10)))
            .build();
        Self { base: base.into(), token: None, agent: config.new_agent() }
    }

    /// The bearer token that is sent.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The same address with a bearer token.
    pub fn with_token(&self, token: impl Into<String>) -> Self {
        Self { token: Some(token.into()), ..self.clone() }
    }

    /// The address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// GET.
    pub fn get(&self, path: &str) -> Result<Reply> {
        let mut request = self.agent.get(self.url(path));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        reply(request.call()).with_context(|| format!("GET {path}"))
    }

    /// POST of a JSON body.
    pub fn post(&self, path: &str, body: &impl Serialize) -> Result<Reply> {
        let mut request = self.agent.post(self.url(path));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        reply(request.send_json(body)).with_context(|| format!("POST {path}"))
    }

    /// DELETE.
    pub fn delete(&self, path: &str) -> Result<Reply> {
        let mut request = self.agent.delete(self.url(path));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        reply(request.call()).with_context(|| format!("DELETE {path}"))
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
