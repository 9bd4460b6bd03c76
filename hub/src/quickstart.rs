//! `hyperfactory-hub quickstart`: a hub and an agent for this machine, from nothing to a live dashboard.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use protocol::{NodeKind, TenantId};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::access::{Grant, Role};
use crate::audit::Actor;
use crate::config::{Config, ConfigError, Encryption, STATE_DIR};
use crate::enrollment::NewToken;
use crate::hub::{Hub, now};
use crate::tenants::TenantError;
use crate::web::http_authority;

/// The tenant it makes.
const TENANT: &str = "demo";
/// How long the agent may take to stop.
const AGENT_STOPS_WITHIN: Duration = Duration::from_secs(15);
/// The agent's key for the time from one sample to the next.
const INTERVAL: &str = "HYPERFACTORY_AGENT_INTERVAL";
/// How far apart Ctrl-C may reach the two programs.
const CTRL_C_WITHIN: Duration = Duration::from_secs(2);
/// How long the printed link works.
const LINK_LIFETIME: Duration = Duration::from_secs(3600);

/// The hub's configuration, with state under the user's own state directory unless told otherwise.
///
/// # Errors
/// As [`Config::load`].
pub fn config(file: Option<&Path>, state_dir: Option<PathBuf>) -> Result<Config, ConfigError> {
    let mut config = Config::load(file, state_dir)?;
    if config.state_dir == Path::new(STATE_DIR) {
        config.state_dir = home().join("hub");
    }
    if config.public_address.is_none() && config.quic_listen.ip().is_unspecified() {
        // Its one agent is on this machine, whose name need not resolve.
        config.public_address = Some(format!("127.0.0.1:{}", config.quic_listen.port()));
    }
    Ok(config)
}

/// Runs hub and agent until `shutdown`.
///
/// # Errors
/// A sentence for the person who started it.
pub async fn run(config: &Config, agent: &Path, shutdown: CancellationToken) -> anyhow::Result<()> {
    let home = config.state_dir.parent().map_or_else(home, Path::to_path_buf);
    say("  starting the hub …");
    let hub = Hub::open(config, &shutdown).await?;
    let base = hub.endpoints().http.clone();
    let tenant: TenantId = TENANT.parse()?;
    let actor = Actor::operator("quickstart");
    let domain = hub.domain();
    match domain.tenants.create(&tenant, "Demo", &actor, now()).await {
        Ok(_) => say("  made the tenant `demo`"),
        Err(TenantError::Exists(_)) => say("  took up the tenant `demo` where it was"),
        Err(error) => return Err(error).context("the tenant `demo` could not be made"),
    }
    let grant =
        |valid_for| Grant { name: "quickstart".into(), role: Role::Admin, tenant: None, valid_for: Some(valid_for) };
    let link = domain.access.create_sign_in_link(grant(LINK_LIFETIME), &actor, now()).await?;
    let client = home.join("hfctl.toml");
    if !client.exists() {
        let (_, token) =
            domain.access.create_api_token(grant(Duration::from_secs(365 * 86_400)), &actor, now()).await?;
        let mut login = format!("url = \"{base}\"\ntoken = \"{token}\"\n");
        if config.encryption()? == Encryption::Own {
            let authority = home.join("http-authority.pem");
            std::fs::write(&authority, http_authority(config, domain).await?.pem)
                .with_context(|| format!("cannot write {}", authority.display()))?;
            login.push_str(&format!("ca-file = {:?}\n", authority.display().to_string()));
        }
        private_file(&client, &login)?;
    }
    let agent_state = home.join("agent");
    let token = if agent_state.join("identity.json").exists() {
        None
    } else {
        let new = NewToken { tenant, kind: NodeKind::Agent, name: None, valid_for: Duration::from_secs(600) };
        Some(hub.enrollment().create_token(new, &actor, now()).await?.1.to_string())
    };

    let stop_hub = CancellationToken::new();
    let serving = hub.run(stop_hub.clone());
    let beside = async {
        let ended = attend_agent(agent, &agent_state, token, &base, &link, &shutdown).await;
        stop_hub.cancel();
        ended
    };
    let (served, ended) = tokio::join!(serving, beside);
    ended?;
    served
}

/// Enrolls the agent, runs it beside the hub, and stops it first.
async fn attend_agent(
    agent: &Path,
    state: &Path,
    token: Option<String>,
    base: &str,
    link: &str,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    if let Some(token) = token {
        say("  enrolling an agent for this machine with a join token …");
        let mut enroll = program(agent, state);
        // The token goes through a pipe: arguments can be read by every user of a machine.
        enroll.args(["enroll", "--token-file", "-"]).stdin(Stdio::piped());
        let mut child = enroll.spawn().with_context(|| format!("cannot start {}", agent.display()))?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(token.as_bytes()).await?;
        }
        let status = tokio::select! {
            biased;
            () = shutdown.cancelled() => return stop(child).await,
            status = child.wait() => status?,
        };
        if !status.success() {
            bail!("the agent did not enroll ({status}): its own words are above");
        }
    }
    let mut child =
        program(agent, state).arg("run").spawn().with_context(|| format!("cannot start {}", agent.display()))?;
    say(&format!(
        "\n  Dashboard   {base}\n  Sign in     {base}/sign-in?link={link}\n              (works once, for an hour; again: run ./quickstart again)\n\n  \
         Try also    target/release/hfctl node list\n\n  Ctrl-C stops all of it.\n"
    ));
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        status = child.wait() => {
            let status = status?;
            // Ctrl-C reaches the agent as well, which may be the quicker one.
            let told = tokio::time::timeout(CTRL_C_WITHIN, shutdown.cancelled()).await.is_ok();
            if !(told && status.success()) {
                bail!("the agent has ended by itself ({status}): its own words are above");
            }
            return Ok(());
        }
    }
    say("\n  stopping the agent and the hub …");
    stop(child).await
}

fn program(agent: &Path, state: &Path) -> Command {
    let mut command = Command::new(agent);
    command.arg("--state-dir").arg(state).kill_on_drop(true);
    if std::env::var_os(INTERVAL).is_none() {
        // Somebody waits for the first figures; a rate takes two samples.
        command.env(INTERVAL, "5s");
    }
    command
}

async fn stop(mut child: Child) -> anyhow::Result<()> {
    if let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    }
    if tokio::time::timeout(AGENT_STOPS_WITHIN, child.wait()).await.is_err() {
        child.kill().await?;
        bail!("the agent did not stop within {} s and was killed", AGENT_STOPS_WITHIN.as_secs());
    }
    Ok(())
}

/// `$XDG_STATE_HOME/hyperfactory/quickstart`, by default under `~/.local/state`.
fn home() -> PathBuf {
    let base = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    base.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".local/state"))
        .join("hyperfactory/quickstart")
}

fn private_file(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[expect(clippy::print_stdout, reason = "quickstart shows its progress")]
fn say(text: &str) {
    println!("{text}");
}
