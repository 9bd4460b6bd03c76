//! The verb `enroll`: makes this machine a node of the kind bridge.

use std::path::Path;

use node::{Applicant, Clock, Identity, IdentityStore, TokenArguments};
use pki::JoinToken;
use protocol::NodeKind;

use crate::bridge::SOFTWARE;
use crate::config::{Config, STATE_DIR};
use crate::host;

/// Enrolls and says as what, in one line.
///
/// # Errors
/// When there is no token, or the hub refuses it or does not answer.
pub async fn run(config: &Config, arguments: TokenArguments) -> anyhow::Result<String> {
    let configured = config.token.as_ref().map(settings::Secret::expose);
    let token = arguments.read(configured, "HYPERFACTORY_BRIDGE")?;
    let store = IdentityStore::directory(&config.state_dir);
    let identity = enroll(config, &store, &token, &Clock::system()).await?;
    let Identity { name, node, tenant, hub, .. } = identity;
    let mut done = format!("enrolled as {name} ({node}) of tenant {tenant} with the hub at {hub}");
    // Elsewhere it is not the packaged service that runs it.
    if config.state_dir == Path::new(STATE_DIR) {
        done.push_str("\nnow start the service: systemctl enable --now hyperfactory-bridge");
    }
    Ok(done)
}

/// The identity, from an enrollment now if a token is configured and none was yet. A bridge may do without.
///
/// # Errors
/// When the identity can't be read, or the hub refuses the token or does not answer.
pub async fn identity(config: &Config, store: &IdentityStore, clock: &Clock) -> anyhow::Result<Option<Identity>> {
    match (store.load()?, &config.token) {
        (Some(identity), _) => Ok(Some(identity)),
        (None, Some(token)) => {
            let token = node::token::parse(token.expose())?;
            enroll(config, store, &token, clock).await.map(Some)
        }
        (None, None) => Ok(None),
    }
}

/// The configuration as it is for this machine, which is enrolled or is not.
///
/// # Errors
/// When the identity can't be read, or the configuration needs one.
pub fn settled(config: Config) -> anyhow::Result<Config> {
    let identity = IdentityStore::directory(&config.state_dir).load()?;
    Ok(config.enrolled(identity.is_some())?)
}

async fn enroll(config: &Config, store: &IdentityStore, token: &JoinToken, clock: &Clock) -> anyhow::Result<Identity> {
    let name = config.name.clone().unwrap_or_else(|| host::facts(String::new()).hostname);
    let applicant = Applicant { kind: NodeKind::Bridge, name, software: SOFTWARE.into() };
    Ok(node::enroll_machine(store, token, &applicant, clock).await?)
}
