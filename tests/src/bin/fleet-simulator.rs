//! `hyperfactory-fleet`: many nodes in one process, with real certificates and real QUIC sessions, to size a hub or test it.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use hyperfactory_tests::fleet::{self, Api, Errands, Fleet, Options, Summary, Tokens};
use tokio::time::{Instant, MissedTickBehavior};
use tracing_subscriber::EnvFilter;

/// Runs a simulated fleet against a hub. It prints a line every few seconds, and at the end a summary as JSON on
/// standard output.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where the nodes find the hub, `host:port`, when it is not what their tokens or identities say.
    #[arg(long)]
    hub: Option<String>,
    /// How many nodes.
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// Seconds between samples.
    #[arg(long, default_value_t = 10.0)]
    interval: f64,
    /// Series per node, about.
    #[arg(long, default_value_t = 300)]
    series: usize,
    /// Samples in a batch.
    #[arg(long, default_value_t = ::node::telemetry::SAMPLES_PER_BATCH)]
    batch: usize,
    /// The hub's API, which join tokens are asked of for nodes without an identity.
    #[arg(long, default_value = "http://127.0.0.1:7080")]
    api: String,
    /// File with an API token that may make join tokens.
    #[arg(long, env = "HYPERFACTORY_FLEET_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Tenants that the nodes belong to, in turn.
    #[arg(long, value_delimiter = ',', default_value = "demo")]
    tenants: Vec<String>,
    /// Keeps identities here and takes them up again; without it, every run enrolls new nodes.
    #[arg(long)]
    identities: Option<PathBuf>,
    /// Seconds to run; without it, until Ctrl-C.
    #[arg(long)]
    duration: Option<f64>,
    /// Makes one run like another.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Share of the nodes whose process restarts in a minute.
    #[arg(long, default_value_t = 0.0)]
    churn: f64,
    /// Sockets the nodes share.
    #[arg(long, default_value_t = 4)]
    sockets: usize,
    /// Has the nodes carry out the scripts `count`, `linger` and `fail`, and keeps their journals and an account of it here.
    #[arg(long, value_name = "FOLDER")]
    errands: Option<PathBuf>,
    /// Seconds to wait at the end for the hub to store everything.
    #[arg(long, default_value_t = 30.0)]
    drain: f64,
}

/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);

// One thread is enough for thousands of nodes, and tells how much of a core they cost.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let options = Options {
        interval: seconds(arguments.interval)?,
        series: arguments.series,
        samples_per_batch: arguments.batch,
        seed: arguments.seed,
        churn: arguments.churn,
        sockets: arguments.sockets,
        hub: arguments.hub.clone(),
        errands: arguments.errands.as_deref().map(Errands::open).transpose()?,
        ..Options::default()
    };
    let mut progress = std::io::stderr();

    let stores = fleet::identity_stores(arguments.identities.clone(), arguments.nodes);
    let began = Instant::now();
    let enrolled = fleet::enroll(&stores, &tokens(&arguments)).await?;
    writeln!(progress, "{enrolled} nodes enrolled in {:.1} s", began.elapsed().as_secs_f64())?;

    let fleet = Fleet::start(&options, &stores)?;
    let end = arguments.duration.map(seconds).transpose()?.map(|duration| Instant::now() + duration);
    let mut ticks = tokio::time::interval(PROGRESS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        let ended = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ended => break,
            signal = tokio::signal::ctrl_c() => {
                signal.context("cannot listen for Ctrl-C")?;
                break;
            }
            _ = ticks.tick() => writeln!(progress, "{}", line(&fleet.summary()))?,
        }
    }
    let summary = fleet.stop(seconds(arguments.drain)?).await;
    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&summary)?)?;
    Ok(())
}

fn tokens(arguments: &Arguments) -> Tokens {
    let (api, file, tenants) = (arguments.api.clone(), arguments.token_file.clone(), arguments.tenants.clone());
    Tokens::made(move |index| {
        // Read when first needed: a fleet whose nodes all have identities needs none.
        let file = file.as_deref().context("name a file with an API token: --token-file")?;
        let bearer = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let tenant = tenants.get(index % tenants.len().max(1)).context("name a tenant: --tenants")?;
        Api::new(&api, &bearer).join_token(tenant, &fleet::node_name(index))
    })
}

fn line(summary: &Summary) -> String {
    format!(
        "{:7.1} s  {}/{} up  {} sent  {} stored  {} waiting  {} lost  {} reconnects",
        summary.elapsed_s,
        summary.up,
        summary.nodes,
        summary.batches_sent,
        summary.batches_acknowledged,
        summary.batches_pending,
        summary.batches_lost,
        summary.reconnects.count,
    )
}

fn seconds(value: f64) -> anyhow::Result<Duration> {
    let duration = Duration::try_from_secs_f64(value).ok().filter(|duration| !duration.is_zero());
    duration.with_context(|| format!("{value} is no number of seconds over zero"))
}
