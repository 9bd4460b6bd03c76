//! `hyperfactory-hub`: arguments, logging, exit codes.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use hyperfactory_hub::access::{Grant, Role};
use hyperfactory_hub::audit::{Actor, Audit};
use hyperfactory_hub::ca::{self, Ca, Root};
use hyperfactory_hub::config::{Config, HttpTls};
use hyperfactory_hub::hub::{Domain, Endpoints, Hub, now};
use hyperfactory_hub::web::{PairError, http_authority};
use hyperfactory_hub::{check, keys, quickstart, service};
use protocol::TenantId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Failed.
const FAILED: u8 = 1;
/// Wrong usage or configuration.
const MISCONFIGURED: u8 = 2;

/// The centre of a Hyperfactory fleet: enrolls nodes, keeps their telemetry, raises alerts, shows the dashboard.
///
/// Configuration: /etc/hyperfactory/hub.toml and HYPERFACTORY_HUB_<KEY> variables, which win. RUST_LOG sets what is logged.
#[derive(Parser)]
#[command(name = "hyperfactory-hub", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args)]
struct Place {
    /// Configuration file [default: /etc/hyperfactory/hub.toml].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State directory [default: /var/lib/hyperfactory/hub].
    #[arg(long, global = true, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    /// Runs the hub until SIGTERM, Ctrl-C or the end of its terminal. Without a terminal, SIGHUP has it read
    /// http-certificate and http-key again.
    Serve,
    /// Runs a hub and an agent for this machine, with the tenant `demo`, and prints the dashboard's address.
    Quickstart {
        /// The agent's program.
        #[arg(long, value_name = "FILE")]
        agent: PathBuf,
    },
    /// Tests configuration, database, keys, HTTPS, ports and disk, and says what to do.
    Check,
    /// Prints a one-time link that signs a browser in to the dashboard. Works while the hub runs.
    SignIn(Who),
    /// The keys that guard the CA keys in the database.
    #[command(subcommand)]
    Keys(keys::verb::Verb),
    /// Makes an API token and prints it, once. Works while the hub runs.
    ApiToken(Who),
    /// Prints the authority of the hub's own HTTPS certificate (http-tls = "own"), in PEM for browsers and for hfctl
    /// login --ca-file. It can speak for this hub's names alone. Works while the hub runs.
    HttpAuthority,
    /// The fleet's certificate authorities.
    #[command(subcommand)]
    Ca(Ca),
    /// The audit log, offline.
    #[command(subcommand)]
    Audit(Audit),
}

#[derive(Args)]
struct Who {
    /// Whose it is; appears in the audit log.
    #[arg(long, default_value = "admin")]
    name: String,
    /// admin, operator or viewer.
    #[arg(long, default_value = "admin")]
    role: Role,
    /// See and do things of this tenant alone.
    #[arg(long, value_name = "TENANT")]
    tenant: Option<TenantId>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_filter(&arguments.verb)));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A log on a full disk would otherwise end the task that has something to say.
        .log_internal_errors(false)
        .init();
    let arguments = match arguments {
        // Where the root's key is, there is no hub.
        Arguments { verb: Verb::Ca(Ca::Root(Root::Sign(sign))), .. } => {
            return match sign.run(now()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => told(&error, if ca::is_usage(&error) { MISCONFIGURED } else { FAILED }),
            };
        }
        arguments => arguments,
    };
    let config = if matches!(arguments.verb, Verb::Quickstart { .. }) {
        quickstart::config(arguments.place.config.as_deref(), arguments.place.state_dir)
    } else {
        Config::load(arguments.place.config.as_deref(), arguments.place.state_dir)
    };
    let config = match config {
        Ok(config) => config,
        Err(error) => return told(&error.into(), MISCONFIGURED),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return told(&error.into(), FAILED),
    };
    // On a worker: the allocator keeps memory by thread, and what a start takes to load a fleet would lie idle ever after
    // where only this thread could have it.
    let running = runtime.spawn(async move { run(arguments.verb, &config).await });
    match runtime.block_on(running) {
        Err(panicked) => told(&panicked.into(), FAILED),
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            let misconfigured = matches!(error.downcast_ref(), Some(store::StoreError::Url { .. }))
                || error.downcast_ref::<PairError>().is_some()
                || ca::is_usage(&error);
            told(&error, if misconfigured { MISCONFIGURED } else { FAILED })
        }
    }
}

async fn run(verb: Verb, config: &Config) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Serve => {
            let has_terminal = std::io::stdin().is_terminal();
            let shutdown = until_told(has_terminal)?;
            let hub = Hub::open(config, &shutdown).await?;
            if !has_terminal {
                on_hang_up(&hub.reload())?;
            }
            hub.judge_receive_buffer();
            service::ready();
            hub.run(shutdown).await?;
        }
        Verb::Quickstart { agent } => quickstart::run(config, &agent, until_told(true)?).await?,
        Verb::Check => {
            let sound = check::print(&check::all(config).await);
            return Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(FAILED) });
        }
        Verb::Keys(verb) => keys::verb::run(verb, config).await?,
        Verb::Ca(Ca::Root(verb)) => ca::run(verb, config).await?,
        Verb::SignIn(who) => {
            let domain = Domain::open(config).await?;
            let actor = Actor::operator("hyperfactory-hub");
            let code = domain.access.create_sign_in_link(who.grant(), &actor, now()).await?;
            say(&format!("{}/sign-in?link={code}", Endpoints::of(config)?));
            if config.http_tls == Some(HttpTls::Own) {
                note(
                    "the browser has to trust this hub's own authority first: import what hyperfactory-hub http-authority prints",
                );
            }
        }
        Verb::ApiToken(who) => {
            let domain = Domain::open(config).await?;
            let grant = who.grant();
            let (_, token) = domain.access.create_api_token(grant, &Actor::operator("hyperfactory-hub"), now()).await?;
            say(&token);
            if config.http_tls == Some(HttpTls::Own) {
                let (url, fingerprint) = (Endpoints::of(config)?, http_authority(config, &domain).await?.fingerprint);
                note(&format!("use it with: hfctl login --url {url} --fingerprint {fingerprint}"));
            }
        }
        Verb::HttpAuthority => {
            let authority = http_authority(config, &Domain::open(config).await?).await?;
            say(authority.pem.trim_end());
            note(&format!("its SHA-256 fingerprint: {}", authority.fingerprint));
        }
        Verb::Audit(audit) => {
            let sound = audit.run(config, now()).await?;
            return Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(FAILED) });
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Who {
    fn grant(self) -> Grant {
        Grant { name: self.name, role: self.role, tenant: self.tenant, valid_for: None }
    }
}

/// Cancelled by SIGTERM, SIGINT and, if so `hang_up_ends`, SIGHUP: a terminal was closed.
fn until_told(hang_up_ends: bool) -> anyhow::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hang_up = signal(SignalKind::hangup())?;
    let told = CancellationToken::new();
    let shutdown = told.clone();
    #[expect(clippy::disallowed_methods, reason = "listens for the life of the process; its end is the process's")]
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hang_up.recv(), if hang_up_ends => {}
        }
        told.cancel();
    });
    Ok(shutdown)
}

/// Has what `reload` wakes done at every SIGHUP.
fn on_hang_up(reload: &Arc<Notify>) -> anyhow::Result<()> {
    let mut hang_up = signal(SignalKind::hangup())?;
    let reload = Arc::clone(reload);
    #[expect(clippy::disallowed_methods, reason = "listens for the life of the process; its end is the process's")]
    tokio::spawn(async move {
        while hang_up.recv().await.is_some() {
            reload.notify_one();
        }
    });
    Ok(())
}

/// The verbs that print something for a person or a script keep quiet beside it.
fn default_filter(verb: &Verb) -> &'static str {
    match verb {
        Verb::Serve => "info",
        Verb::Quickstart { .. }
        | Verb::Check
        | Verb::Keys(_)
        | Verb::Ca(_)
        | Verb::SignIn(_)
        | Verb::ApiToken(_)
        | Verb::HttpAuthority
        | Verb::Audit(_) => "warn",
    }
}

#[expect(clippy::print_stdout, reason = "the verb's result")]
fn say(text: &str) {
    println!("{text}");
}

fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn told(error: &anyhow::Error, code: u8) -> ExitCode {
    // A terminal that is gone hears nothing.
    let _ = writeln!(std::io::stderr(), "hyperfactory-hub: {error:#}");
    ExitCode::from(code)
}
