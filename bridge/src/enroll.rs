//! The verb `enroll`: makes this machine a node of the kind bridge, with a join token.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use node::{Applicant, Clock, EnrollError, Identity, IdentityStore};
use pki::JoinToken;
use protocol::NodeKind;
use transport::Endpoint;

use crate::bridge::SOFTWARE;
use crate::config::{Config, STATE_DIR};
use crate::host;

/// How long to go on trying while the hub does not answer or is busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// A token is about 150 characters.
const LONGEST_TOKEN: u64 = 4096;

/// Enrolls and says as what, in one line. `file` is what `--token-file` said, `-` for standard input.
///
/// # Errors
/// When there is no token, or the hub refuses it or does not answer.
pub async fn run(config: &Config, token: Option<String>, file: Option<PathBuf>) -> anyhow::Result<String> {
    let token = match (token, file) {
        (Some(token), _) => token,
        (None, Some(file)) => read_token(&file)?,
        (None, None) => config.token.as_ref().map(|token| token.expose().to_owned()).context(
            "no join token: give it with --token TOKEN, --token-file FILE (- for standard input), or in \
             HYPERFACTORY_BRIDGE_TOKEN or HYPERFACTORY_BRIDGE_TOKEN_FILE",
        )?,
    };
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
        (None, Some(token)) => enroll(config, store, token.expose(), clock).await.map(Some),
        (None, None) => Ok(None),
    }
}

async fn enroll(config: &Config, store: &IdentityStore, token: &str, clock: &Clock) -> anyhow::Result<Identity> {
    let token: JoinToken = token.trim().parse()?;
    let endpoint = Endpoint::client().context("the bridge can't open a UDP socket")?;
    let name = config.name.clone().unwrap_or_else(|| host::facts(String::new()).hostname);
    let applicant = Applicant { kind: NodeKind::Bridge, name, software: SOFTWARE.into() };
    let enrolled = node::enroll(&endpoint, store, &token, &applicant, clock, PATIENCE).await;
    // Also after a failure: the key that waits for its certificate has to be readable by the service.
    hand_over(&config.state_dir);
    // The hub is to hear of the end of the connection.
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    enrolled.map_err(|error: EnrollError| error.into())
}

/// Gives files that root made in the service's directory to the user that the directory belongs to.
fn hand_over(state_dir: &Path) {
    use std::os::unix::fs::{MetadataExt, chown};
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let Ok(owner) = std::fs::metadata(state_dir).map(|directory| (directory.uid(), directory.gid())) else { return };
    for file in std::fs::read_dir(state_dir).into_iter().flatten().flatten() {
        if owner.0 != 0
            && file.file_type().is_ok_and(|kind| kind.is_file())
            && let Err(error) = chown(file.path(), Some(owner.0), Some(owner.1))
        {
            tracing::warn!(file = %file.path().display(), %error, "the service may not be able to read a file");
        }
    }
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let mut token = String::new();
    if path == Path::new("-") {
        std::io::stdin()
            .take(LONGEST_TOKEN)
            .read_to_string(&mut token)
            .context("no token can be read from standard input")?;
    } else {
        let read = std::fs::File::open(path).and_then(|file| file.take(LONGEST_TOKEN).read_to_string(&mut token));
        read.with_context(|| format!("the token can't be read from {}", path.display()))?;
    }
    Ok(token)
}
