//! `./bench fleet`: one hub under 2,000 simulated nodes, on SQLite and on PostgreSQL, and after kill -9.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use hyperfactory_tests::fleet::{self, Fleet, Options, Tokens};
use hyperfactory_tests::report::{Report, Target};
use hyperfactory_tests::rig::{Hub, Postgres, Usage};
use serde_json::Value;
use tokio::time::Instant;

/// Loads one hub with simulated nodes and measures what it costs and whether anything is lost.
#[derive(Parser)]
struct Arguments {
    /// Writes the rows here as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Nodes.
    #[arg(long, default_value_t = 2_000)]
    nodes: usize,
    /// Seconds to measure on each database.
    #[arg(long, default_value_t = 180)]
    seconds: u64,
    /// Samples in a batch; 1 makes the most work.
    #[arg(long, default_value_t = 1)]
    batch: usize,
}

/// Longest wait for the fleet to come up, or to hand over what it holds.
const PATIENCE: Duration = Duration::from_secs(120);

// The fleet has one thread, which this one does not block.
#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut report = Report::default();
    measure(&mut report, "SQLite", None, &arguments).await?;
    let database = Postgres::from_environment()?.database()?;
    measure(&mut report, "PostgreSQL", Some(database.url()), &arguments).await?;
    report.finish(arguments.json.as_deref())
}

async fn measure(report: &mut Report, engine: &str, database: Option<&str>, arguments: &Arguments) -> Result<()> {
    let mut builder = Hub::builder().set("enrollments-per-second", "100000").set("enrollments-per-source", "100000");
    if let Some(database) = database {
        builder = builder.set("database", database);
    }
    let mut hub = builder.start()?;
    hub.tenant("bench")?;
    let stores = fleet::identity_stores(None, arguments.nodes);
    let api = fleet::Api::new(&hub.endpoints().http, hub.api().token().context("no token")?);
    fleet::enroll(&stores, &Tokens::from_api(api, vec!["bench".into()])).await?;
    let options = Options { samples_per_batch: arguments.batch, ..Options::default() };

    let drops = receive_buffer_drops()?;
    let fleet = Fleet::start(&options, &stores)?;
    let began = Instant::now();
    ensure!(fleet.wait_for_sessions(arguments.nodes, PATIENCE).await, "{} of {} sessions", fleet.up(), arguments.nodes);
    let all_up = began.elapsed();
    // The first round carries every node's schema; what follows is daily life.
    tokio::time::sleep(options.interval).await;

    let process = hub.process()?.id();
    let (before, began) = (Usage::of_tree(process)?, Instant::now());
    tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
    let (after, elapsed) = (Usage::of_tree(process)?, began.elapsed().as_secs_f64());
    let dropped = receive_buffer_drops()? - drops;

    hub.kill()?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let restarted = Instant::now();
    hub.restart()?;
    // A session the hub has is one the hub says it has: a node may not know yet that its own is gone.
    let back = loop {
        let up = sessions(&hub)?;
        if up >= arguments.nodes {
            break restarted.elapsed();
        }
        ensure!(restarted.elapsed() < PATIENCE, "{up} of {} sessions are back", arguments.nodes);
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    ensure!(fleet.wait_until_delivered(PATIENCE).await, "the fleet could not hand over all it holds");
    let summary = fleet.stop(PATIENCE).await;
    let holes = holes(&hub)?;

    let mut figure = |name: &str, unit: &str, value: f64, target: Target| {
        report.figure(&format!("{engine}: {name}"), unit, value, target);
    };
    figure("all sessions up from nothing", "s", all_up.as_secs_f64(), Target::Less);
    figure("hub CPU", "cores", (after.cpu - before.cpu).as_secs_f64() / elapsed, Target::AtMost(0.1));
    figure("hub RSS", "MiB", after.rss_kib as f64 / 1024.0, Target::AtMost(160.0));
    figure("receive-buffer drops", "datagrams", dropped as f64, Target::AtMost(0.0));
    figure("batches sent", "count", summary.batches_sent as f64, Target::More);
    figure("batches lost by nodes", "count", summary.batches_lost as f64, Target::AtMost(0.0));
    figure("numbers missing or doubled at the hub", "count", holes as f64, Target::AtMost(0.0));
    figure("all sessions back after kill -9", "s", back.as_secs_f64(), Target::AtMost(5.0));
    ensure!(hub.stop()?.success(), "the hub did not stop well");
    Ok(())
}

/// Live sessions, as the hub's own metrics say.
fn sessions(hub: &Hub) -> Result<usize> {
    let text = hub.api().get("/metrics")?.ok()?;
    let text = text.as_str().context("no metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix("hyperfactory_hub_sessions "));
    Ok(line.context("no number of sessions")?.trim().parse()?)
}

/// Numbers of all nodes that are neither stored nor given up, or are there twice.
fn holes(hub: &Hub) -> Result<u64> {
    let mut holes = 0;
    let mut cursor = String::new();
    loop {
        let page = hub.api().get(&format!("/api/v1/nodes?limit=200{cursor}"))?.ok()?;
        for node in page["items"].as_array().context("a page without items")? {
            let id = node["id"].as_str().context("a node without id")?;
            let coverage = hub.api().get(&format!("/api/v1/nodes/{id}/coverage"))?.ok()?;
            for epoch in coverage.as_array().context("no epochs")? {
                holes += u64::from(epoch["complete"] != Value::Bool(true));
            }
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(holes),
        }
    }
}

/// Datagrams this machine's kernel dropped because a socket's receive buffer was full.
fn receive_buffer_drops() -> Result<u64> {
    let snmp = std::fs::read_to_string("/proc/net/snmp").context("reading /proc/net/snmp")?;
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().context("no UDP counters")?, lines.next().context("no UDP counters")?);
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(name, _)| *name == "RcvbufErrors").context("no RcvbufErrors")?;
    Ok(value.parse()?)
}
