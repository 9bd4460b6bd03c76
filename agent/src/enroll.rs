//! The verb `enroll`: reads the join token from where it is safe, and makes this machine a node.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use node::{Applicant, Clock, EnrollError, Identity, IdentityStore};
use pki::JoinToken;
use protocol::NodeKind;
use transport::Endpoint;

use crate::agent::SOFTWARE;
use crate::config::{Config, STATE_DIR};
use crate::failure::Failure;
use crate::host;

/// How long to go on trying while the hub does not answer or is busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// A token is about 150 characters.
const LONGEST_TOKEN: u64 = 4096;

/// Where the command line says that the token is.
#[derive(Debug, Default)]
pub struct TokenArguments {
    /// `--token`: the token itself, or `-` for standard input.
    pub token: Option<String>,
    /// `--token-file`, `-` for standard input.
    pub file: Option<std::path::PathBuf>,
}

/// Enrolls and says as what, in one line.
pub async fn run(config: &Config, arguments: TokenArguments) -> Result<String, Failure> {
    let token = match (arguments.token, arguments.file) {
        (Some(token), None) if token != "-" => token,
        (Some(_), None) => read_token(Path::new("-"))?,
        (_, Some(file)) => read_token(&file)?,
        (None, None) => match &config.token {
            Some(token) => token.expose().to_owned(),
            None => {
                return Err(Failure::usage(anyhow::anyhow!(
                    "no join token: give it with --token TOKEN, --token-file FILE (- for standard input), or in \
                     HYPERFACTORY_AGENT_TOKEN or HYPERFACTORY_AGENT_TOKEN_FILE"
                )));
            }
        },
    };
    let token = parse(&token)?;
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
    token.trim().parse().map_err(|error: pki::TokenError| Failure::usage(error))
}

/// Enrolls this machine and keeps the identity where the service finds it.
pub async fn enroll(
    config: &Config,
    store: &IdentityStore,
    token: &JoinToken,
    clock: &Clock,
) -> Result<Identity, Failure> {
    let endpoint = Endpoint::client().context("the agent can't open a UDP socket")?;
    let applicant = Applicant {
        kind: NodeKind::Agent,
        name: config.name.clone().unwrap_or_else(|| host::facts(String::new()).hostname),
        software: SOFTWARE.into(),
    };
    let enrolled = node::enroll(&endpoint, store, token, &applicant, clock, PATIENCE).await;
    // Also after a failure: the key that waits for its certificate has to be readable by the service.
    hand_over(&config.state_dir);
    // The hub is to hear of the end of the connection.
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    enrolled.map_err(|error: EnrollError| if error.is_refusal() { Failure::refused(error) } else { error.into() })
}

/// Gives files that root made in the service's directory to the user that the directory belongs to.
fn hand_over(state_dir: &Path) {
    use std::os::unix::fs::{MetadataExt, chown};
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let Ok(owner) = std::fs::metadata(state_dir).map(|directory| (directory.uid(), directory.gid())) else { return };
    if owner.0 == 0 {
        return;
    }
    for file in std::fs::read_dir(state_dir).into_iter().flatten().flatten() {
        if file.file_type().is_ok_and(|kind| kind.is_file())
            && let Err(error) = chown(file.path(), Some(owner.0), Some(owner.1))
        {
            tracing::warn!(file = %file.path().display(), %error, "the service may not be able to read a file");
        }
    }
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let mut token = String::new();
    if path == Path::new("-") {
        std::io::stdin()
            .take(LONGEST_TOKEN)
            .read_to_string(&mut token)
            .context("the token can't be read from standard input")
    } else {
        let read = std::fs::File::open(path).and_then(|file| file.take(LONGEST_TOKEN).read_to_string(&mut token));
        read.with_context(|| format!("the token can't be read from {}", path.display()))
    }
    .map_err(Failure::usage)?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Code;

    async fn refused(arguments: TokenArguments) -> (Code, String) {
        let failure = run(&Config::default(), arguments).await.unwrap_err();
        (failure.code, failure.to_string())
    }

    #[tokio::test]
    async fn a_token_that_is_missing_or_none_is_wrong_usage() {
        let (code, said) = refused(TokenArguments::default()).await;
        assert_eq!(code, Code::Usage);
        assert!(said.contains("--token-file") && said.contains("HYPERFACTORY_AGENT_TOKEN_FILE"), "{said}");

        let (code, _) = refused(TokenArguments { token: Some("hfj_cut".into()), file: None }).await;
        assert_eq!(code, Code::Usage);

        let (code, said) = refused(TokenArguments { token: None, file: Some("/nonexistent".into()) }).await;
        assert_eq!(code, Code::Usage);
        assert!(said.contains("/nonexistent"), "{said}");
    }

    #[test]
    fn a_token_file_may_end_in_a_line_break() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hfj_abc\n").unwrap();
        assert_eq!(read_token(file.path()).unwrap(), "hfj_abc\n");
        let cut = parse(&read_token(file.path()).unwrap()).unwrap_err().to_string();
        assert_eq!(cut, parse("hfj_abc").unwrap_err().to_string());
    }
}
