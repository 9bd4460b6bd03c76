//! The part of the hub's REST API that a fleet needs: tenants and join tokens.

use std::time::Duration;

use anyhow::Context;
use pki::JoinToken;
use serde::Deserialize;
use serde_json::json;

/// A hub's API, spoken with a bearer token.
#[derive(Clone)]
pub struct Api {
    base: String,
    bearer: String,
    agent: ureq::Agent,
}

impl Api {
    /// The API at `base`, for example `http://127.0.0.1:7080`.
    pub fn new(base: &str, bearer: &str) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(30))).build();
        Self { base: base.trim_end_matches('/').to_owned(), bearer: bearer.trim().to_owned(), agent: config.into() }
    }

    /// Makes a join token for an agent of `tenant`. Blocks.
    ///
    /// # Errors
    /// When the hub does not answer, refuses, or answers something else.
    pub fn join_token(&self, tenant: &str, name: &str) -> anyhow::Result<JoinToken> {
        #[derive(Deserialize)]
        struct Made {
            token: String,
        }
        let url = format!("{}/api/v1/tokens", self.base);
        let made: Made = self
            .agent
            .post(&url)
            .header("Authorization", &format!("Bearer {}", self.bearer))
            .send_json(json!({ "tenant": tenant, "kind": "agent", "name": name }))
            .and_then(|mut answer| answer.body_mut().read_json())
            .with_context(|| format!("cannot make a join token for tenant {tenant} at {url}"))?;
        made.token.parse().context("the hub's answer holds no join token")
    }
}
