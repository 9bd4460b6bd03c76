//! Reports a host and its Compose services to a Hyperfactory hub.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use hyperfactory_agent::config::Config;
use hyperfactory_agent::failure::Failure;
use hyperfactory_agent::recent::Recent;
use hyperfactory_agent::{agent, check, enroll};
use node::TokenArguments;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Reports this machine and its Compose services to a Hyperfactory hub.
///
/// Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 refused by the hub.
#[derive(Debug, Parser)]
#[command(name = "hyperfactory-agent", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// Configuration file [default: /etc/hyperfactory/agent.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of identity and spool [default: /var/lib/hyperfactory/agent]
    #[arg(long, global = true, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make this machine a node, with a join token from the hub
    ///
    /// The token may also be in HYPERFACTORY_AGENT_TOKEN, or in a file that HYPERFACTORY_AGENT_TOKEN_FILE names.
    Enroll {
        /// The join token; every user of this machine sees it in `ps` while it works once: prefer --token-file -
        #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
        token: Option<String>,
        /// File with the join token; - is standard input
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Report to the hub until told to stop (SIGTERM or SIGINT)
    Run {
        /// Stop also when the process with this id ends, which started this one
        #[arg(long, value_name = "PID", hide = true)]
        parent: Option<i32>,
    },
    /// Show the running agent's state; fails when it has no session with the hub
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Test engine, certificate, hub address, clock and disk, and say what to do
    Check,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "hyperfactory-agent: {failure}");
            ExitCode::from(failure.code as u8)
        }
    }
}

/// Carries out a verb; says whether all is well.
fn run(cli: Cli) -> Result<bool, Failure> {
    let config = Config::load(cli.config.as_deref(), cli.state_dir).map_err(Failure::usage)?;
    let recent = Recent::default();
    log_to_stderr(&config, &recent);
    // One thread: the agent has a twentieth of a percent of a processor's work to do.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .context("the agent can't start its runtime")?;
    runtime.block_on(async {
        match cli.verb {
            Verb::Enroll { token, token_file } => {
                let done = enroll::run(&config, TokenArguments { token, file: token_file }).await?;
                show(&format!("{done}\n"))
            }
            Verb::Run { parent } => {
                let (stop, _signals) = stop_on_signal()?;
                if let Some(parent) = parent {
                    stop_with(parent, &stop)?;
                }
                agent::run(config, recent, stop).await?;
                Ok(true)
            }
            Verb::Status { json } => {
                let (text, well) = check::status(&config, json).await?;
                show(&text).map(|shown| shown && well)
            }
            Verb::Check => {
                let (text, well) = check::check(&config).await?;
                show(&text).map(|shown| shown && well)
            }
        }
    })
}

fn show(text: &str) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("the answer can't be written")?;
    Ok(true)
}

/// A token that the first SIGTERM or SIGINT cancels; the second ends the process where it stands.
fn stop_on_signal() -> Result<(CancellationToken, JoinSet<()>), Failure> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be waited for")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be waited for")?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let mut waiting = JoinSet::new();
    waiting.spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stopping.is_cancelled() {
                tracing::warn!(
                    "told to stop a second time: leaving at once; the spool keeps what the hub does not have"
                );
                std::process::exit(1);
            }
            stopping.cancel();
        }
    });
    Ok((stop, waiting))
}

/// Has the kernel send SIGTERM when the process `parent` ends, however it ends.
fn stop_with(parent: i32, stop: &CancellationToken) -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .context("the kernel does not watch the process that started this one")?;
    // It may have ended before it was watched.
    if rustix::process::getppid().map(rustix::process::Pid::as_raw_nonzero) != std::num::NonZeroI32::new(parent) {
        stop.cancel();
    }
    Ok(())
}

/// Under the service manager the journal has the time already.
fn log_to_stderr(config: &Config, recent: &Recent) {
    let layer = tracing_subscriber::fmt::layer().with_writer(recent.clone()).with_ansi(std::io::stderr().is_terminal());
    let layer: Box<dyn tracing_subscriber::Layer<_> + Send + Sync> =
        if std::env::var_os("JOURNAL_STREAM").is_some() { Box::new(layer.without_time()) } else { Box::new(layer) };
    tracing_subscriber::registry().with(config.log()).with(layer).init();
}
