//! Carries MQTT messages of a plant to its tenant's Kafka bus.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use hyperfactory_bridge::bridge::Reloads;
use hyperfactory_bridge::config::{Config, ConfigError};
use hyperfactory_bridge::{audit, bridge, dry_run, enroll, rehearsal, repair, show, status};
use node::{EnrollError, TokenArguments, TokenReadError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Carries MQTT messages of a plant to its tenant's Kafka bus, one way, and loses none but what may be dropped.
///
/// Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 refused by the hub.
#[derive(Debug, Parser)]
#[command(name = "hyperfactory-bridge", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// Configuration file [default: /etc/hyperfactory/bridge.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of log and dead letters [default: /var/lib/hyperfactory/bridge]
    #[arg(long, global = true, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make this machine a node of the kind bridge, with a join token from the hub
    ///
    /// The token may also be in HYPERFACTORY_BRIDGE_TOKEN, or in a file that HYPERFACTORY_BRIDGE_TOKEN_FILE names.
    Enroll {
        /// The join token; every user of this machine sees it in `ps` while it works once: prefer --token-file -
        #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
        token: Option<String>,
        /// File with the join token; - is standard input
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Carry messages until told to stop (SIGTERM or SIGINT); SIGHUP has it go on with the routes that are configured then
    Run,
    /// Show the running bridge's state; fails when it has no session with the hub
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Judge the configuration, and say what to do
    Check {
        /// Rehearse a rotation: have the hub give another Kafka certificate now (or read the files again), and try it at the
        /// brokers beside the one in use, which stays unless they take it
        #[arg(long)]
        rotate: bool,
        /// Say what would become of captured messages, lines of `mosquitto_sub -F %J` (- is standard input); binary payloads
        /// can be given as `payload-hex`: -F '{"topic":"%t","retain":%r,"payload-hex":"%x"}'
        #[arg(long, value_name = "FILE", conflicts_with = "rotate")]
        captured: Option<PathBuf>,
    },
    /// Show where a message of an MQTT topic goes, and what it becomes
    Explain {
        /// The MQTT topic
        topic: String,
        /// File with a payload, to see what steps make of it; - is standard input
        #[arg(long, value_name = "FILE")]
        payload: Option<PathBuf>,
    },
    /// Read Kafka topics from their beginning; fails when a bridge's records are missing or out of order
    ///
    /// Records are told apart by their headers. What came twice, after a crash, is counted and no failure; a number that was
    /// given to two records, after the bridge's state was restored from an image, is one. What Kafka may have deleted at the
    /// beginning of its partitions is counted and not missing; a topic that is compacted can't be audited. Where brokers keep
    /// access lists, the bridge's own certificate may write and not read: name one of a consumer.
    Audit {
        /// The Kafka topics: all that the bridge writes to, or what is in the others counts as missing
        #[arg(required = true)]
        topics: Vec<String>,
        /// Certificate of a consumer that may READ the topics, in PEM, in place of the bridge's own
        #[arg(long, value_name = "FILE", requires = "key")]
        certificate: Option<PathBuf>,
        /// Its key, in PEM
        #[arg(long, value_name = "FILE", requires = "certificate")]
        key: Option<PathBuf>,
    },
    /// Look at the records on disk, or repair their files; the bridge must not run
    #[command(subcommand)]
    Log(LogVerb),
}

#[derive(Debug, Subcommand)]
enum LogVerb {
    /// Read all of it and change nothing; fails when something is damaged
    Verify,
    /// Say what has to be done to damaged files; fails while something has
    ///
    /// The bridge does the same by itself when it starts, and loses no more.
    Repair {
        /// Do it
        #[arg(long)]
        yes: bool,
    },
    /// Show the records that wait for Kafka, a line each
    Dump {
        /// Those that Kafka refused, or that no route takes, and why
        #[arg(long)]
        dead_letters: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "hyperfactory-bridge: {error:#}");
            let refused = error.downcast_ref::<EnrollError>().is_some_and(EnrollError::is_refusal);
            ExitCode::from(if refused {
                3
            } else if error.is::<ConfigError>() || error.is::<TokenReadError>() {
                2
            } else {
                1
            })
        }
    }
}

/// Carries out a verb; says whether all is well.
fn run(cli: Cli) -> anyhow::Result<bool> {
    let Cli { verb, config: file, state_dir } = cli;
    let load = move || Config::load(file.as_deref(), state_dir.clone());
    let config = load()?;
    log_to_stderr(&config);
    match verb {
        Verb::Enroll { token, token_file } => {
            let done = runtime()?.block_on(enroll::run(&config, TokenArguments { token, file: token_file }))?;
            show(&format!("{done}\n")).map(|()| true)
        }
        Verb::Run => {
            config.complete()?;
            runtime()?.block_on(async {
                let (stop, _signals) = stop_on_signal()?;
                let signals = signal(SignalKind::hangup()).context("SIGHUP can't be waited for")?;
                bridge::run(config, stop, Reloads { signals, load: Box::new(load) }).await
            })?;
            Ok(true)
        }
        Verb::Status { json } => {
            let (text, well) = runtime()?.block_on(status::run(&config, json))?;
            show(&text).map(|()| well)
        }
        Verb::Check { rotate: true, .. } => {
            let config = enroll::settled(config)?;
            let (text, well) = runtime()?.block_on(rehearsal::run(&config))?;
            show(&text).map(|()| well)
        }
        Verb::Check { captured: Some(file), .. } => {
            let (text, well) = dry_run::captured(&config, std::io::BufReader::new(open(&file)?))?;
            show(&text).map(|()| well)
        }
        Verb::Check { .. } => {
            show::check(&enroll::settled(config)?).and_then(|(text, well)| show(&text).map(|()| well))
        }
        Verb::Explain { topic, payload } => {
            let payload = payload.map(|file| read(&file)).transpose()?;
            dry_run::explain(&config, &topic, payload.as_deref()).and_then(|(text, well)| show(&text).map(|()| well))
        }
        Verb::Audit { topics, certificate, key } => {
            let reader = certificate.zip(key).map(|(certificate, key)| audit::Reader { certificate, key });
            let ledger = audit::run(&enroll::settled(config)?.kafka, reader.as_ref(), &topics)?;
            show(&ledger.report())?;
            Ok(ledger.is_whole())
        }
        Verb::Log(LogVerb::Verify) => show::verify(&config).and_then(|(text, well)| show(&text).map(|()| well)),
        Verb::Log(LogVerb::Repair { yes }) => {
            repair::run(&config, yes).and_then(|(text, well)| show(&text).map(|()| well))
        }
        Verb::Log(LogVerb::Dump { dead_letters }) => show::dump(&config, dead_letters, show).map(|()| true),
    }
}

fn open(file: &Path) -> anyhow::Result<Box<dyn Read>> {
    if file == Path::new("-") {
        return Ok(Box::new(std::io::stdin()));
    }
    let opened = std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Box::new(opened))
}

/// A payload that MQTT may carry.
fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut payload = Vec::new();
    let most = 256 << 20;
    open(file)?.take(most).read_to_end(&mut payload).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(payload)
}

/// One thread for connections; log and sink have their own.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
    runtime.context("the bridge can't start its runtime")
}

fn show(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("the answer can't be written")
}

/// A token that the first SIGTERM or SIGINT cancels; the second ends the process where it stands.
fn stop_on_signal() -> anyhow::Result<(CancellationToken, JoinSet<()>)> {
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
                tracing::warn!("told to stop a second time: leaving at once; nothing that was acknowledged is lost");
                std::process::exit(1);
            }
            stopping.cancel();
        }
    });
    Ok((stop, waiting))
}

/// Under the service manager the journal has the time already.
fn log_to_stderr(config: &Config) {
    let layer =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let layer: Box<dyn tracing_subscriber::Layer<_> + Send + Sync> =
        if std::env::var_os("JOURNAL_STREAM").is_some() { Box::new(layer.without_time()) } else { Box::new(layer) };
    tracing_subscriber::registry().with(config.log()).with(layer).init();
}
