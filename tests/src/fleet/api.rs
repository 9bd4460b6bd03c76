//! The part of the hub's REST API that a fleet needs: join tokens.

use anyhow::Context;
use pki::JoinToken;
use serde_json::json;

use crate::api;

/// A hub's API, spoken with a bearer token.
#[derive(Clone)]
pub struct Api(api::Api);

impl Api {
    /// The API at `base`, for example `http://127.0.0.1:7080`.
    pub fn new(base: &str, bearer: &str) -> Self {
        Self(api::Api::new(base).with_token(bearer))
    }

    /// Makes a join token for an agent of `tenant`. Blocks.
    ///
    /// # Errors
    /// When the hub does not answer, refuses, or answers something else.
    pub fn join_token(&self, tenant: &str, name: &str) -> anyhow::Result<JoinToken> {
        let wanted = json!({ "tenant": tenant, "kind": "agent", "name": name });
        let made = self.0.post("/api/v1/tokens", &wanted).and_then(api::Reply::ok);
        let made =
            made.with_context(|| format!("cannot make a join token for tenant {tenant} at {}", self.0.base()))?;
        let token = made["token"].as_str().context("the hub's answer holds no join token")?;
        token.parse().context("the hub's answer holds no join token")
    }
}
