//! Bad input, whoever it comes from: a clear error that says what to do, nothing is lost, and nobody gets in.

mod clocks;
mod configuration;
mod damage;
mod full_disk;
mod hostile;
mod intruder;
mod strangers;
mod tokens;

use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Agent, Hub, until};
use serde_json::Value;

/// Exit codes of all programs.
const FAILED: i32 = 1;
const MISUSED: i32 = 2;
const REFUSED: i32 = 3;

/// Until a node has come back by itself: its back-off is up to a minute.
const BACK: Duration = Duration::from_secs(120);

/// Asserts how a program ended, and that what it said has all of `words`.
#[track_caller]
fn assert_ended(output: &Output, code: i32, words: &[&str]) {
    let said = [String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout)].concat();
    assert_eq!(output.status.code(), Some(code), "it said: {said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// An agent that samples often and has no engine.
fn agent() -> Result<Agent> {
    let agent = Agent::create()?.set("interval", "200ms").set("samples-per-batch", "1");
    Ok(agent.set("docker-host", "unix:///nonexistent/docker.sock"))
}

/// An agent of `tenant` in session with `hub`, and its node.
fn running(hub: &Hub, agent: Agent, tenant: &str) -> Result<(Agent, String)> {
    let mut agent = agent;
    agent.enroll(&hub.join_token(tenant)?)?;
    agent.run()?;
    let node = agent.node()?;
    delivers(hub, &node)?;
    Ok((agent, node))
}

/// Waits until more of a node's batches have been stored, and says up to which; none may be missing.
fn delivers(hub: &Hub, node: &str) -> Result<u64> {
    let before = through(hub, node).unwrap_or(0);
    until("more batches", BACK, || {
        let now = through(hub, node)?;
        ensure!(now > before + 2, "{now} batches, {before} before");
        Ok(Some(now))
    })
}

/// The last number stored of a node's only spool, in which each number is there once or named as lost.
fn through(hub: &Hub, node: &str) -> Result<u64> {
    let coverage = coverage(hub, node)?;
    coverage["through"].as_u64().context("no number")
}

/// What is stored of a node's only spool, in which each number is there once or named as lost.
fn coverage(hub: &Hub, node: &str) -> Result<Value> {
    let mut epochs = hub.coverage(node)?;
    ensure!(epochs.len() == 1, "{} epochs", epochs.len());
    let epoch = epochs.remove(0);
    assert_eq!(epoch["complete"], true, "{epoch}");
    let number = |key: &str| epoch[key].as_u64().with_context(|| format!("no {key} in {epoch}"));
    assert_eq!(number("stored")? + number("lost")?, number("through")?, "{epoch}");
    Ok(epoch)
}

/// Waits until the hub has all that the agent has written so far.
fn has_all(hub: &Hub, agent: &Agent, node: &str) -> Result<Value> {
    until("the backlog to be stored", BACK, || {
        let pending = agent.status()?["batches_pending"].as_u64().context("no number")?;
        ensure!(pending < 3, "{pending} batches wait");
        coverage(hub, node).map(Some)
    })
}

/// The newest audit records of an action.
fn audit(hub: &Hub, action: &str) -> Result<Vec<Value>> {
    let page = hub.api().get(&format!("/api/v1/audit?action={action}"))?.ok()?;
    page["items"].as_array().cloned().context("a page without items")
}

/// What became of the newest join token.
fn newest_token(hub: &Hub) -> Result<Value> {
    let page = hub.api().get("/api/v1/tokens")?.ok()?;
    Ok(page["items"][0]["state"].clone())
}

/// Makes a join token as `wanted` says.
fn token(hub: &Hub, wanted: Value) -> Result<String> {
    let made = hub.api().post("/api/v1/tokens", &wanted)?.ok()?;
    Ok(made["token"].as_str().context("no token in the reply")?.to_owned())
}
