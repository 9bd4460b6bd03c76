//! Makes identities for simulated nodes: a join token and a real enrollment for each that has none.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use node::IdentityStore;
use node::enroll::Applicant;
use pki::JoinToken;
use protocol::NodeKind;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use transport::Endpoint;

use super::Api;

/// Enrollments under way at once: what a hub admits without asking to come back.
const AT_ONCE: usize = 16;
/// How long one node keeps trying while the hub says that it is busy.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where join tokens come from.
#[derive(Clone)]
pub enum Tokens {
    /// From the hub's API, for nodes of these tenants in turn.
    Api(Api, Vec<String>),
    /// From whoever makes them: the number of the node gives its token.
    Made(Arc<dyn Fn(usize) -> anyhow::Result<JoinToken> + Send + Sync>),
}

impl Tokens {
    fn token(&self, index: usize) -> anyhow::Result<JoinToken> {
        match self {
            Self::Api(api, tenants) => {
                let tenant = tenants.get(index % tenants.len().max(1)).context("no tenant to enroll nodes for")?;
                api.join_token(tenant, &name(index))
            }
            Self::Made(make) => make(index),
        }
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
            let token = tokio::task::spawn_blocking(move || tokens.token(index)).await??;
            let applicant = Applicant {
                kind: NodeKind::Agent,
                name: name(index),
                software: format!("hyperfactory-fleet {}", env!("CARGO_PKG_VERSION")),
            };
            node::enroll::enroll(&endpoint, &store, &token, &applicant, PATIENCE)
                .await
                .with_context(|| format!("node {index} did not enroll"))
        });
    }
    let mut enrolled = 0;
    while let Some(result) = tasks.join_next().await {
        result??;
        enrolled += 1;
    }
    endpoint.close();
    Ok(enrolled)
}

fn name(index: usize) -> String {
    format!("sim-{index:05}")
}
