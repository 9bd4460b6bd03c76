//! The verb `status`: what the running bridge says of itself.

use anyhow::Context;
use node::{IdentityStore, health};

use crate::config::Config;

/// The running bridge's state: in words, or as JSON. Also says whether it has a session with the hub.
///
/// # Errors
/// When none answers.
pub async fn run(config: &Config, json: bool) -> anyhow::Result<(String, bool)> {
    let identity = IdentityStore::directory(&config.state_dir).load()?;
    let report = health::ask(config.health_listen).await.with_context(|| match &identity {
        Some(_) => "the bridge does not run",
        None => "this machine is not enrolled (hyperfactory-bridge enroll), and a bridge that is not serves no state",
    })?;
    if json {
        return Ok((format!("{}\n", serde_json::to_string_pretty(&report)?), report.session_up));
    }
    let who = identity.map(|identity| {
        let node::Identity { name, node, tenant, hub, .. } = identity;
        format!("node         {name} ({node}) of tenant {tenant}, hub {hub}\n")
    });
    Ok((format!("{}{report}", who.unwrap_or_default()), report.session_up))
}
