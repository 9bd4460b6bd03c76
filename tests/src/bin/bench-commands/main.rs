//! `./bench commands`: how soon a node accepts what is asked of it, the stored row included, beside request and reply over
//! NATS; and a command for every node at once.

mod faulty;
mod nats;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use hyperfactory_tests::fleet::{self, Begun, Fleet, Options, Tokens};
use hyperfactory_tests::report::{Report, Target};
use hyperfactory_tests::rig::{Hub, Postgres};
use node::IdentityStore;
use protocol::CommandId;
use rand::RngExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Measures commands on one hub with simulated nodes, whose journals are in memory.
#[derive(Parser)]
struct Arguments {
    /// Writes the rows here as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Commands for each figure.
    #[arg(long, default_value_t = 2_000)]
    commands: usize,
    /// Seconds between the samples of a node.
    #[arg(long, default_value_t = 10)]
    interval: u64,
    /// Numbers of connected nodes.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 5_000])]
    nodes: Vec<usize>,
    /// Commands through faults on each engine; 0 leaves that part out.
    #[arg(long, default_value_t = 100_000)]
    faulty: usize,
    /// The part with faults alone.
    #[arg(long)]
    faulty_only: bool,
}

/// Longest wait for a fleet to come up, or for a command to arrive.
const PATIENCE: Duration = Duration::from_secs(120);
/// From the last session to the first command.
const SETTLE: Duration = Duration::from_secs(10);
/// The p99 to reach, in ms, by number of nodes.
const TARGETS: [(usize, f64); 2] = [(1_000, 3.0), (5_000, 10.0)];

/// Commands that were begun and are not counted yet: those of one request, and what comes again.
const ARRIVALS: usize = 4_096;

/// Which command was begun, and when.
type Arrival = (CommandId, Instant);

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let faulty = arguments.faulty;
    let mut report = tokio::task::spawn_blocking(move || faulty::measure(faulty)).await??;
    if arguments.faulty_only {
        return report.finish(arguments.json.as_deref());
    }
    let mut peers = HashMap::new();
    for nodes in &arguments.nodes {
        peers.insert(*nodes, nats::measure(*nodes, arguments.commands).await?);
    }
    measure(&mut report, "SQLite", None, &arguments, &peers).await?;
    let database = Postgres::from_environment()?.database()?;
    measure(&mut report, "PostgreSQL", Some(database.url()), &arguments, &peers).await?;
    report.finish(arguments.json.as_deref())
}

async fn measure(
    report: &mut Report,
    engine: &str,
    database: Option<&str>,
    arguments: &Arguments,
    peers: &HashMap<usize, Vec<f64>>,
) -> Result<()> {
    let mut builder = Hub::builder().set("enrollments-per-second", "100000").set("enrollments-per-source", "100000");
    if let Some(database) = database {
        builder = builder.set("database", database);
    }
    let mut hub = builder.start()?;
    hub.tenant("bench")?;
    let most = arguments.nodes.iter().copied().max().unwrap_or(0);
    let stores = fleet::identity_stores(None, most);
    let api = fleet::Api::new(&hub.endpoints().http, hub.api().token().context("no token")?);
    fleet::enroll(&stores, &Tokens::from_api(api, vec!["bench".into()])).await?;
    for nodes in &arguments.nodes {
        let stores = stores.get(..*nodes).context("too few identities")?;
        let (one_by_one, at_once) = commands(&hub, stores, arguments).await?;
        let theirs = peers.get(nodes).context("no peer")?;
        let target =
            TARGETS.iter().find(|(count, _)| count == nodes).map_or(Target::Less, |(_, ms)| Target::AtMost(*ms));
        let name = |what: &str| format!("{engine}: asked for to accepted, {what}, {nodes} connected");
        let beside = "NATS request to reply, nothing stored";
        report.above(&name("p50"), "ms", percentile(&one_by_one, 0.5), beside, percentile(theirs, 0.5), Target::Less);
        report.above(&name("p99"), "ms", percentile(&one_by_one, 0.99), beside, percentile(theirs, 0.99), target);
        if *nodes == 1_000 {
            let name = format!("{engine}: a command for each of {nodes} nodes at once, all accepted");
            report.figure(&name, "s", at_once.as_secs_f64(), Target::AtMost(1.0));
        }
    }
    ensure!(hub.stop()?.success(), "the hub did not stop well");
    Ok(())
}

/// Milliseconds of each command, one after the other, and how long one for every node took.
async fn commands(hub: &Hub, stores: &[IdentityStore], arguments: &Arguments) -> Result<(Vec<f64>, Duration)> {
    let (arrived, mut arrivals) = mpsc::channel::<Arrival>(ARRIVALS);
    let begun = Begun(Arc::new(move |id| {
        // One too many is missed by whoever counts them.
        let _ = arrived.try_send((id, Instant::now()));
    }));
    let interval = Duration::from_secs(arguments.interval);
    let fleet = Fleet::start(&Options { begun: Some(begun), interval, ..Options::default() }, stores)?;
    ensure!(fleet.wait_for_sessions(stores.len(), PATIENCE).await, "{} of {} sessions", fleet.up(), stores.len());
    // What connecting costs is over then: first words, first batches, first copies of each node's state.
    ensure!(fleet.wait_until_delivered(PATIENCE).await, "telemetry was not acknowledged");
    tokio::time::sleep(SETTLE).await;
    let ids: Vec<String> = fleet.nodes().iter().map(|node| node.id().to_string()).collect();
    let mut taken = Vec::with_capacity(arguments.commands);
    for _ in 0..arguments.commands {
        let node = ids.get(rand::rng().random_range(0..ids.len())).context("no nodes")?;
        let asked = json!({ "action": "drain", "reason": "a benchmark", "target": { "nodes": [node] } });
        let (made, began) = ask(hub, asked).await?;
        let id: CommandId = made["commands"][0]["id"].as_str().context("no command")?.parse()?;
        let at = all(&mut arrivals, HashSet::from([id])).await?;
        taken.push(at.duration_since(began).as_secs_f64() * 1e3);
    }
    // Only the nodes that are connected are named; a body holds a thousand of them.
    let few: Vec<&String> = ids.iter().take(1_000).collect();
    let asked = json!({ "action": "drain", "reason": "a benchmark", "target": { "nodes": few } });
    let (made, began) = ask(hub, asked).await?;
    let made = made["commands"].as_array().context("no commands")?;
    let made = made.iter().map(|command| Ok(command["id"].as_str().context("no id")?.parse()?));
    let last = all(&mut arrivals, made.collect::<Result<_>>()?).await?;
    fleet.stop(PATIENCE).await;
    Ok((taken, last.duration_since(began)))
}

/// Asks for commands; gives the answer, and when it was begun to ask: not before the thread is there that does.
async fn ask(hub: &Hub, asked: Value) -> Result<(Value, Instant)> {
    let api = hub.api().clone();
    tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        Ok((api.post("/api/v1/commands", &asked)?.ok()?, began))
    })
    .await?
}

fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() as f64 * share) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// When the last of these was begun. Others are passed over: what a fleet before did not come to tell the end of is handed
/// over again, and its nodes have forgotten it.
async fn all(arrivals: &mut mpsc::Receiver<Arrival>, mut awaited: HashSet<CommandId>) -> Result<Instant> {
    loop {
        let (id, at) = tokio::time::timeout(PATIENCE, arrivals.recv())
            .await
            .context("a command did not arrive")?
            .context("the fleet ended")?;
        if awaited.remove(&id) && awaited.is_empty() {
            return Ok(at);
        }
    }
}
