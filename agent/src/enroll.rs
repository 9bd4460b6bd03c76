//! The verb `enroll`: makes this machine a node of the kind agent.

use std::path::Path;

use node::{Applicant, Clock, Identity, IdentityStore, TokenArguments};
use pki::JoinToken;
use protocol::NodeKind;

use crate::agent::SOFTWARE;
use crate::config::{Config, STATE_DIR};
use crate::failure::Failure;
use crate::host;

/// Enrolls and says as what, in one line.
pub async fn run(config: &Config, arguments: TokenArguments) -> Result<String, Failure> {
    let configured = config.token.as_ref().map(settings::Secret::expose);
    let token = arguments.read(configured, "HYPERFACTORY_AGENT").map_err(Failure::usage)?;
    let store = IdentityStore::directory(&config.state_dir);
    let identity = enroll(config, &store, &token, &Clock::system()).await?;
    let mut done = format!(
        "enrolled as {} ({}) of tenant {} with the hub at {}",
        identity.name, identity.node, identity.tenant, identity.hub
    );
    // Elsewhere it is not the packaged service that runs it.
    if config.state_dir == Path::new(STATE_DIR) {
        done.push_str("\nnow start the service: systemctl enable --now hyperfactory-agent");
    }
    Ok(done)
}

/// Reads a join token as a person pasted it.
///
/// # Errors
/// When it is cut short, mistyped or no join token at all: wrong usage.
pub fn parse(token: &str) -> Result<JoinToken, Failure> {
    node::token::parse(token).map_err(Failure::usage)
}

/// Enrolls this machine and keeps the identity where the service finds it.
pub async fn enroll(
    config: &Config,
    store: &IdentityStore,
    token: &JoinToken,
    clock: &Clock,
) -> Result<Identity, Failure> {
    let applicant = Applicant {
        kind: NodeKind::Agent,
        name: config.name.clone().unwrap_or_else(|| host::facts(String::new()).hostname),
        software: SOFTWARE.into(),
    };
    let enrolled = node::enroll_machine(store, token, &applicant, clock).await;
    enrolled.map_err(|error| if error.is_refusal() { Failure::refused(error) } else { error.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Code;

    #[tokio::test]
    async fn a_token_that_is_missing_or_none_is_wrong_usage() {
        for arguments in [
            TokenArguments::default(),
            TokenArguments { token: Some("hfj_cut".into()), file: None },
            TokenArguments { token: None, file: Some("/nonexistent".into()) },
        ] {
            let failure = run(&Config::default(), arguments).await.unwrap_err();
            assert_eq!(failure.code, Code::Usage);
        }
    }
}
