//! One request of Loki's push API, and what its answer means.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use settings::Secret;
use ureq::Agent;

use crate::client::{AddressError, client, unanswered};

/// Its key in the configuration.
const KEY: &str = "loki-url";
/// Where below the address lines are pushed to.
const PATH: &str = "/loki/api/v1/push";
/// How long one push may take.
const WITHIN: Duration = Duration::from_secs(15);
/// Most bytes of an answer's text that are told.
const TOLD: u64 = 300;

/// Where lines are pushed to.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The address, without the path of the push API.
    pub url: Secret,
    /// File with a bearer token; read at each push, so that it can be replaced.
    pub token_file: Option<PathBuf>,
    /// The header X-Scope-OrgID, for a Loki of several tenants.
    pub tenant: Option<String>,
}

/// An endpoint that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LokiError {
    /// Its address.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// An endpoint, and the client for it.
#[derive(Clone)]
pub(super) struct Target {
    agent: Agent,
    endpoint: Endpoint,
}

/// What became of a push.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Taken,
    /// Nothing of it may have been taken; it may be later.
    NotNow(String),
    /// Something in it will never be taken.
    Refused(String),
}

impl Target {
    pub(super) fn new(endpoint: Endpoint) -> Result<Self, LokiError> {
        Ok(Self { agent: client(KEY, &endpoint.url, WITHIN)?, endpoint })
    }

    pub(super) async fn push(&self, body: Value) -> Answer {
        let target = self.clone();
        let posted = tokio::task::spawn_blocking(move || target.post(&body)).await;
        posted.unwrap_or_else(|_| Answer::NotNow("is not asked: the hub is stopping".into()))
    }

    fn post(&self, body: &Value) -> Answer {
        let Endpoint { url, token_file, tenant } = &self.endpoint;
        let mut request = self.agent.post(format!("{}{PATH}", url.expose().trim_end_matches('/')));
        if let Some(file) = token_file {
            match std::fs::read_to_string(file) {
                Ok(token) => request = request.header("authorization", format!("Bearer {}", token.trim())),
                Err(error) => return Answer::NotNow(format!("takes a token, and {}: {error}", file.display())),
            }
        }
        if let Some(tenant) = tenant {
            request = request.header("x-scope-orgid", tenant);
        }
        match request.send_json(body) {
            Ok(mut answer) => {
                let said = answer.body_mut().with_config().limit(TOLD).read_to_string().unwrap_or_default();
                judge(answer.status().as_u16(), said.trim())
            }
            Err(error) => Answer::NotNow(format!("can't be reached: {}", unanswered(KEY, &error))),
        }
    }
}

/// Of a request that is malformed, too large, or has lines that are too old, each part may be another matter. Whatever else
/// is wrong is wrong with the address, the token or the server, and may be put right.
fn judge(status: u16, said: &str) -> Answer {
    let told = if said.is_empty() { format!("answered {status}") } else { format!("answered {status}: {said}") };
    match status {
        200..300 => Answer::Taken,
        400 | 413 | 422 => Answer::Refused(told),
        _ => Answer::NotNow(told),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_what_may_pass() {
        assert_eq!(judge(204, ""), Answer::Taken);
        for status in [400, 413, 422] {
            assert!(matches!(judge(status, "entry too far behind"), Answer::Refused(why) if why.contains("behind")));
        }
        for status in [301, 401, 403, 404, 429, 500, 503] {
            assert!(matches!(judge(status, ""), Answer::NotNow(why) if why.contains(&status.to_string())));
        }
    }
}
