//! `./bench agent`: what the agent costs a host with 30 containers, beside prometheus-node-exporter and netdata.
//!
//! All run at the same time on the same host at a 10 s interval. The hub runs in a network namespace, so that the
//! cable to it counts every byte the agent causes, those that QUIC needs for itself included.

mod figures;
mod log_loop;
mod peers;
mod stack;
mod stored;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use clap::Parser;
use hyperfactory_tests::report::Report;
use hyperfactory_tests::rig::{Agent, Engine, Hub, Netns, Project, SOON, Usage, until};

use figures::{Figures, Mark, Rate, Span};
use peers::{Peer, Scraped, Scraper};
use stored::Stored;

#[derive(Parser)]
struct Options {
    /// Writes one row per figure to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// How long each of the three measurements lasts; under three minutes the figures say little.
    #[arg(long, default_value_t = 240)]
    seconds: u64,
    /// What a log loop costs alone.
    #[arg(long)]
    log_loop_only: bool,
}

/// The interval of every measured program in the main comparison.
const INTERVAL: Duration = Duration::from_secs(10);
/// How often a service is killed to see how soon the hub knows.
const KILLS: usize = 10;
/// What a program does at its start is not what it costs for the rest of the year.
const SETTLE: Duration = Duration::from_secs(45);

fn main() -> Result<()> {
    let options = Options::parse();
    let mut report = Report::default();
    if !options.log_loop_only {
        beside_peers(&options, &mut report)?;
    }
    progress("a service that writes its log in a loop");
    log_loop::measure(&mut report)?;
    report.finish(options.json.as_deref())
}

fn beside_peers(options: &Options, report: &mut Report) -> Result<()> {
    let length = Duration::from_secs(options.seconds);

    let engine = Engine::from_environment()?;
    progress(&format!("starting {} containers, {} of them with health checks", stack::CONTAINERS, stack::CHECKED));
    let stacks = stack::up(&engine)?;
    let netns = Netns::create()?;
    let hub = Hub::builder().inside(&netns).start()?;
    hub.tenant("bench")?;

    let folder = tempfile::tempdir()?;
    let node_exporter = Peer::node_exporter(folder.path())?;
    let netdata = Peer::netdata(folder.path())?;
    let scraper = Scraper::start(INTERVAL, node_exporter.target(), netdata.target());
    settle("the peers to settle");

    // Half of it before the agent runs and half after, so that what an engine spends more by the hour is not the agent's.
    let without = || {
        progress(&format!("the engine without the agent, {} s", length.as_secs() / 2));
        Rate::parts(length / 2, || engine_cpu(&engine))
    };
    let mut engine_without = without()?;

    let mut agent = Agent::create()?
        .set("docker-host", format!("unix://{}", engine.socket().display()))
        .set("interval", format!("{}s", INTERVAL.as_secs()));
    agent.enroll(&hub.join_token("bench")?)?;
    agent.run()?;
    all_seen(&hub, stack::CONTAINERS)?;
    settle("the agent to settle");

    progress(&format!("all three side by side, {} s", length.as_secs()));
    let look = |agent: &mut Agent| -> Result<(Usage, Usage, Usage, Scraped)> {
        Ok((Usage::of_tree(agent.process()?.id())?, node_exporter.usage()?, netdata.usage()?, scraper.bytes()?))
    };
    let mark = Mark::set(&netns, &agent)?;
    let (since, begun, before) = (SystemTime::now(), Instant::now(), look(&mut agent)?);
    let engine_with = Rate::parts(length, || engine_cpu(&engine))?;
    let (elapsed, after) = (begun.elapsed(), look(&mut agent)?);
    let wire = mark.since(&netns, &agent)?;
    let stored = Stored::read(hub.state_dir(), since)?;
    agent.stop()?;
    engine_without.extend(without()?);
    drop((scraper, node_exporter, netdata));

    progress(&format!("a host with 8 services every 15 s, {} s", length.as_secs()));
    stack::leave_eight(&stacks)?;
    let mut agent = agent.set("interval", "15s");
    agent.run()?;
    settle("the agent to settle");
    let mark = Mark::set(&netns, &agent)?;
    std::thread::sleep(length);
    let small_wire = mark.since(&netns, &agent)?;

    progress(&format!("{KILLS} services killed, until the hub shows it"));
    let seen_after = (0..KILLS).map(|_| killed_and_seen(&hub, &stacks[0])).collect::<Result<Vec<_>>>()?;

    Figures {
        elapsed,
        agent: Span(before.0, after.0),
        node_exporter: Span(before.1, after.1),
        netdata: Span(before.2, after.2),
        engine_without: Rate::of(&engine_without),
        engine_with: Rate::of(&engine_with),
        wire,
        small_wire,
        scraped: after.3 - before.3,
        stored,
        seen_after,
    }
    .add_to(report)
}

/// CPU time of the engine and all that belongs to it: daemon, containerd, one shim for each container.
fn engine_cpu(engine: &Engine) -> Result<Duration> {
    let folder = engine.socket().parent().context("the engine's socket is in no folder")?;
    Ok(Usage::of_marked(&["dockerd", "containerd"], &folder.to_string_lossy())?.cpu)
}

/// Waits until the hub knows as many services of the one node as there are containers.
fn all_seen(hub: &Hub, containers: usize) -> Result<()> {
    until("the hub to know every service", SOON, || {
        let nodes = hub.api().get("/api/v1/nodes")?.ok()?;
        let id = nodes.pointer("/items/0/id").and_then(|id| id.as_str()).context("no node yet")?;
        let node = hub.api().get(&format!("/api/v1/nodes/{id}"))?.ok()?;
        let services = node.pointer("/services").and_then(|all| all.as_array()).context("no services yet")?;
        Ok((services.len() >= containers).then_some(()))
    })
}

/// Kills a service, and gives how long after the command the hub shows it as exited; then starts it again.
fn killed_and_seen(hub: &Hub, stack: &Project) -> Result<Duration> {
    let state = |wanted: &str| -> Result<Option<()>> {
        let nodes = hub.api().get("/api/v1/nodes")?.ok()?;
        let id = nodes.pointer("/items/0/id").and_then(|id| id.as_str()).context("no node")?;
        let node = hub.api().get(&format!("/api/v1/nodes/{id}"))?.ok()?;
        let services = node.pointer("/services").and_then(|all| all.as_array()).context("no services")?;
        let killed = services.iter().find(|one| one["stack"] == stack.name() && one["service"] == stack::ONE);
        Ok((killed.context("the service is gone")?["state"] == wanted).then_some(()))
    };
    until("the service to run", SOON, || state("running"))?;
    let begun = Instant::now();
    stack.compose(&["kill", stack::ONE])?;
    until("the hub to show that the service ended", SOON, || state("exited"))?;
    let elapsed = begun.elapsed();
    stack.compose(&["start", stack::ONE])?;
    Ok(elapsed)
}

fn settle(what: &str) {
    progress(&format!("{} s for {what}", SETTLE.as_secs()));
    std::thread::sleep(SETTLE);
}

#[expect(clippy::print_stderr, reason = "a benchmark tells what it is doing")]
fn progress(text: &str) {
    eprintln!("  {text} …");
}
