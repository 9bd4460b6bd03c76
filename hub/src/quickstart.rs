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
use crate::config::{Config, Encryption, STATE_DIR};
use crate::enrollment::NewToken;
use crate::hub::{Hub, now};
use crate::tenants::TenantError;
use crate::web::http_authority;

/// The tenant it makes.
const TENANT: &str = "demo";
/// How long the agent may take to stop.
const AGENT_STOPS_WITHIN: Duration = Duration::from_secs(15);
/// The agent's configuration, written once. What a real agent on this machine is told is nothing to this one.
const AGENT_TOML: &str = r#"# Of the agent that ./quickstart runs, which does not read /etc/hyperfactory/agent.toml.

# Somebody waits for the first figures; a rate takes two samples.
interval = "5s"
# Any free port: another agent may run here.
health-listen = "127.0.0.1:0"
log = "warn"
"#;
/// How long the printed link works.
const LINK_LIFETIME: Duration = Duration::from_secs(3600);

/// The hub's configuration, with state under the user's own state directory unless told otherwise.
///
/// # Errors
/// As [`Config::load`].
pub fn config(file: Option<&Path>, state_dir: Option<PathBuf>) -> Result<Config, settings::SettingsError> {
    let home = home();
    // Not the file in /etc: it may name the database of a hub that is in use.
    let mut config = Config::load_from(&home, file, state_dir)?;
    if config.state_dir == Path::new(STATE_DIR) {
        config.state_dir = home.join("hub");
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
    // The address is the hub's of today; a token is made once.
    let token = match kept_token(&client) {
        Some(token) => token,
        None => domain.access.create_api_token(grant(Duration::from_secs(365 * 86_400)), &actor, now()).await?.1,
    };
    let mut login = format!("url = \"{base}\"\ntoken = \"{token}\"\n");
    if config.encryption()? == Encryption::Own {
        let authority = home.join("http-authority.pem");
        std::fs::write(&authority, http_authority(config, domain).await?.pem)
            .with_context(|| format!("cannot write {}", authority.display()))?;
        login.push_str(&format!("ca-file = {:?}\n", authority.display().to_string()));
    }
    private_file(&client, &login)?;
    let agent = Agent { program: agent.to_owned(), config: home.join("agent.toml"), state: home.join("agent") };
    if !agent.config.exists() {
        private_file(&agent.config, AGENT_TOML)?;
    }
    let token = if agent.state.join("identity.json").exists() {
        None
    } else {
        let new = NewToken { tenant, kind: NodeKind::Agent, name: None, valid_for: Duration::from_secs(600) };
        Some(hub.enrollment().create_token(new, &actor, now()).await?.1.to_string())
    };

    let stop_hub = CancellationToken::new();
    let serving = hub.run(stop_hub.clone());
    let beside = async {
        let ended = agent.attend(token, &base, &link, &shutdown).await;
        stop_hub.cancel();
        ended
    };
    let (served, ended) = tokio::join!(serving, beside);
    ended?;
    served
}

/// The agent of this machine.
struct Agent {
    program: PathBuf,
    config: PathBuf,
    state: PathBuf,
}

impl Agent {
    /// Enrolls it, runs it beside the hub, and stops it first.
    async fn attend(
        &self,
        token: Option<String>,
        base: &str,
        link: &str,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        if let Some(token) = token {
            say("  enrolling an agent for this machine with a join token …");
            // The token goes through a pipe: arguments can be read by every user of a machine.
            let mut child = self.start(&["enroll", "--token-file", "-"], Stdio::piped())?;
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
        let mut child = self.start(&["run", "--parent", &std::process::id().to_string()], Stdio::null())?;
        say(&format!(
            "\n  Dashboard   {base}\n  Sign in     {base}/sign-in?link={link}\n              \
             (works once, within an hour; every start of ./quickstart prints a new one)\n\n  \
             Try also    {} node list\n\n  Ctrl-C stops all of it.\n",
            self.beside("hfctl").display(),
        ));
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            status = child.wait() => bail!("the agent has ended by itself ({}): its own words are above", status?),
        }
        say("\n  stopping the agent and the hub …");
        stop(child).await
    }

    /// In a process group of its own: Ctrl-C is for the hub, which then stops the agent in order.
    fn start(&self, verb: &[&str], input: Stdio) -> anyhow::Result<Child> {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config).arg("--state-dir").arg(&self.state).args(verb);
        let child = command.stdin(input).process_group(0).kill_on_drop(true).spawn();
        child.with_context(|| format!("cannot start {}", self.program.display()))
    }

    /// Another program of the same build, as one would type it here.
    fn beside(&self, name: &str) -> PathBuf {
        let path = self.program.with_file_name(name);
        let here = std::env::current_dir().unwrap_or_default();
        path.strip_prefix(&here).map(Path::to_path_buf).unwrap_or(path)
    }
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

/// The token in an `hfctl.toml` of an earlier start.
fn kept_token(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix("token = \"")?.strip_suffix('"')?.to_owned()))
}

/// Written whole or not at all, and readable by this user alone.
fn private_file(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let new = path.with_extension("toml.new");
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&new, path)
    };
    write().with_context(|| format!("cannot write {}: see that its disk has room", path.display()))
}

/// A terminal that is gone, or a pipe that nobody reads, is no reason to fail.
fn say(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}
