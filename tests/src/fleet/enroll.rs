//! Makes identities for simulated nodes: a join token and a real enrollment for each that has none.

use std::sync::Arc;
use std::time::Duration;

use ::node::{Applicant, Clock, IdentityStore};
use anyhow::Context;
use pki::JoinToken;
use protocol::NodeKind;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use transport::{CloseCode, Endpoint};

use super::Api;

/// Enrollments under way at once: what a hub admits without asking to come back.
const AT_ONCE: usize = 16;
/// How long one node keeps trying while the hub says that it is busy.
const PATIENCE: Duration = Duration::from_secs(300);

/// Makes the join token for the node of a number. May block.
type Make = dyn Fn(usize) -> anyhow::Result<JoinToken> + Send + Sync;

/// Where join tokens come from.
#[derive(Clone)]
pub struct Tokens(Arc<Make>);

impl Tokens {
    /// Tokens for nodes of `tenants` in turn, from the hub's API.
    pub fn from_api(api: Api, tenants: Vec<String>) -> Self {
        Self::made(move |index| {
            let tenant = tenants.get(index % tenants.len().max(1)).context("no tenant to enroll nodes for")?;
            api.join_token(tenant, &node_name(index))
        })
    }

    /// Tokens that `make` makes for the node of a number; it may block.
    pub fn made(make: impl Fn(usize) -> anyhow::Result<JoinToken> + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }
}

/// Enrolls the nodes whose stores hold no identity yet; how many that were.
///
/// # Errors
/// The first that failed.
pub async fn enroll(stores: &[IdentityStore], tokens: &Tokens) -> anyhow::Result<usize> {
    let endpoint = Endpoint::client().context("cannot open a UDP socket")?;
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for (index, store) in stores.iter().enumerate() {
        if store.load()?.is_some() {
            continue;
        }
        let permit = Arc::clone(&permits).acquire_owned().await.context("enrollment ends")?;
        let (store, tokens, endpoint) = (store.clone(), tokens.clone(), endpoint.clone());
        tasks.spawn(async move {
            let _permit = permit;
            let token = tokio::task::spawn_blocking(move || (tokens.0)(index)).await??;
            let applicant = Applicant {
                kind: NodeKind::Agent,
                name: node_name(index),
                software: format!("hyperfactory-fleet {}", env!("CARGO_PKG_VERSION")),
            };
            ::node::enroll(&endpoint, &store, &token, &applicant, &Clock::system(), PATIENCE)
                .await
                .with_context(|| format!("node {index} did not enroll"))
        });
    }
    let mut enrolled = 0;
    while let Some(result) = tasks.join_next().await {
        result??;
        enrolled += 1;
    }
    endpoint.close(CloseCode::Done, "enrolled");
    endpoint.wait_idle().await;
    Ok(enrolled)
}

/// The name of the node of a number.
pub fn node_name(index: usize) -> String {
    format!("sim-{index:05}")
}
