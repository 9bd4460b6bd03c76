//! Rounds of power cuts and cable cuts, and the proof that no batch was lost or counted twice.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::rig::{Agent, Hub, Netns, until};

/// How long a round may take to settle: back-off, a debug build and a busy machine included.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);

/// What a run has seen.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Rounds done.
    pub rounds: u32,
    /// Times the hub was killed.
    pub hub_kills: u32,
    /// Times an agent was killed.
    pub agent_kills: u32,
    /// Times the cable was cut.
    pub cuts: u32,
    /// Batches the hub has of all nodes.
    pub batches: u64,
    /// Batches neither stored nor reported as lost.
    pub missing: u64,
    /// Batches counted more than once.
    pub doubled: u64,
    /// Batches the nodes reported as lost.
    pub lost: u64,
}

/// Runs `rounds` of chaos over a hub with two agents behind one cable; `database` is the hub's, `None` the embedded one.
///
/// Every round ends with all sessions up and every number the nodes have written stored; the outcome counts what is not.
///
/// # Errors
/// When something does not come back, or the rig fails.
pub fn run(rounds: u32, seed: u64, database: Option<&str>) -> Result<Outcome> {
    let netns = Netns::create()?;
    let mut builder = Hub::builder().at(netns.outside());
    if let Some(database) = database {
        builder = builder.set("database", database);
    }
    let mut hub = builder.start()?;
    hub.tenant("chaos")?;
    let mut agents = Vec::new();
    for _ in 0..2 {
        let mut agent = Agent::create()?
            .inside(&netns)
            .set("interval", "200ms")
            .set("samples-per-batch", "1")
            .set("docker-host", "unix:///nonexistent/docker.sock");
        agent.enroll(&hub.join_token("chaos")?)?;
        agent.run()?;
        agents.push(agent);
    }
    let mut outcome = Outcome::default();
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut before = settled(&hub, agents.len(), &[0; 2])?;
    for round in 0..rounds {
        // Some batches come before the blow and some while it lasts.
        std::thread::sleep(Duration::from_millis(rng.random_range(0..300)));
        let mut cut = false;
        if rng.random_bool(0.3) {
            netns.cut()?;
            outcome.cuts += 1;
            cut = true;
            std::thread::sleep(Duration::from_millis(rng.random_range(0..400)));
        }
        let hub_dies = rng.random_bool(0.5);
        if hub_dies {
            hub.kill()?;
            outcome.hub_kills += 1;
        }
        for agent in &mut agents {
            if rng.random_bool(0.4) {
                agent.kill()?;
                outcome.agent_kills += 1;
                std::thread::sleep(Duration::from_millis(rng.random_range(0..100)));
                agent.run()?;
            }
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..300)));
        if hub_dies {
            hub.restart()?;
        }
        if cut {
            netns.mend()?;
        }
        before = settled(&hub, agents.len(), &before).with_context(|| format!("round {round} of seed {seed}"))?;
        outcome.rounds += 1;
    }
    // Stopped in order, the agents hand over all they have.
    for agent in &mut agents {
        let status = agent.stop()?;
        ensure!(status.success(), "an agent ended with {status}");
    }
    for node in nodes(&hub)? {
        for epoch in coverage(&hub, &node)? {
            outcome.batches += number(&epoch, "stored");
            outcome.lost += number(&epoch, "lost");
            outcome.missing += length(&epoch["missing"]);
            outcome.doubled += length(&epoch["doubled"]);
        }
    }
    ensure!(hub.stop()?.success(), "the hub did not stop well");
    hub.command(&["audit", "verify"])?;
    Ok(outcome)
}

/// Waits until every node has a session and the hub has more of each spool than `before`; gives how much.
fn settled(hub: &Hub, count: usize, before: &[u64]) -> Result<Vec<u64>> {
    until("all nodes to be back and their batches to flow", SETTLED_WITHIN, || {
        let nodes = nodes(hub)?;
        ensure!(nodes.len() == count, "{} of {count} nodes", nodes.len());
        let mut through = Vec::new();
        for (node, before) in nodes.iter().zip(before) {
            let epochs = coverage(hub, node)?;
            let sum = epochs.iter().map(|epoch| number(epoch, "through")).sum();
            for epoch in &epochs {
                if epoch["complete"] != Value::Bool(true) {
                    bail!("node {node} has holes: {epoch}");
                }
            }
            ensure!(sum > *before, "node {node}: {sum} batches, as before");
            through.push(sum);
        }
        Ok(Some(through))
    })
}

/// Ids of all nodes, in a stable order.
fn nodes(hub: &Hub) -> Result<Vec<String>> {
    let page = hub.api().get("/api/v1/nodes?limit=100")?.ok()?;
    let items = page["items"].as_array().context("a page without items")?;
    let mut ids: Vec<_> = items.iter().filter_map(|node| node["id"].as_str().map(str::to_owned)).collect();
    ids.sort();
    Ok(ids)
}

fn coverage(hub: &Hub, node: &str) -> Result<Vec<Value>> {
    let coverage = hub.api().get(&format!("/api/v1/nodes/{node}/coverage"))?.ok()?;
    coverage.as_array().cloned().with_context(|| format!("no epochs in {coverage}"))
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}

/// How many numbers a list of ranges holds.
fn length(ranges: &Value) -> u64 {
    let ranges = ranges.as_array().map(Vec::as_slice).unwrap_or_default();
    ranges.iter().map(|range| range[1].as_u64().unwrap_or(0) + 1 - range[0].as_u64().unwrap_or(0)).sum()
}
