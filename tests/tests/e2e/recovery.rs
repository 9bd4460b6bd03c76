//! A node that was away past its certificate's end, a copy of its disk that turns up later, and a hub whose disk is of
//! yesterday.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Agent, Hub, SOON, until};
use serde_json::json;

fn online(hub: &Hub) -> Result<String> {
    until("the node's session", SOON, || {
        let nodes = hub.api().get("/api/v1/nodes")?.ok()?;
        let node = &nodes["items"][0];
        Ok((node["presence"]["state"] == "online").then(|| node["id"].as_str().unwrap_or_default().to_owned()))
    })
}

fn audited(hub: &Hub, action: &str) -> Result<usize> {
    let entries = hub.api().get(&format!("/api/v1/audit?action={action}"))?.ok()?;
    Ok(entries["items"].as_array().context("no entries")?.len())
}

#[test]
fn an_agent_that_was_away_for_three_weeks_comes_back_by_itself_and_a_copy_of_its_disk_freezes_it() -> Result<()> {
    let mut hub = Hub::builder().clock("-20d")?.start()?;
    hub.tenant("acme")?;
    let mut agent = Agent::create()?.set("interval", "1s");
    agent.set_clock(Some("-20d"))?;
    agent.enroll(&hub.join_token("acme")?)?;
    agent.run()?;
    let id = online(&hub)?;
    agent.stop()?;
    hub.stop()?;
    let mut copy = agent.copy()?;

    hub.set_clock(None)?;
    hub.restart()?;
    agent.set_clock(None)?;
    agent.run()?;
    assert_eq!(online(&hub)?, id);
    assert_eq!((audited(&hub, "node.recovered")?, audited(&hub, "node.enrolled")?), (1, 1));
    hub.command(&["audit", "verify"])?;

    // The disk of three weeks ago comes to life, with the key that the node has left behind.
    copy.set_clock(None)?;
    copy.run()?;
    for (whose, agent) in [("the copy", &copy), ("the node", &agent)] {
        until(&format!("{whose} to say that it is frozen"), SOON, || {
            let link = agent.status()?["link"].as_str().unwrap_or_default().to_owned();
            ensure!(link.contains("frozen"), "{link}");
            Ok(Some(()))
        })?;
    }
    let alert = until("the alert", SOON, || {
        let alerts = hub.api().get("/api/v1/alerts?state=open")?.ok()?;
        let found = alerts["items"].as_array().and_then(|all| all.iter().find(|one| one["rule"] == "node.cloned"));
        Ok(found.cloned())
    })?;
    ensure!(alert["level"] == "critical" || alert["severity"] == "critical", "{alert}");

    copy.stop()?;
    assert_eq!(hub.api().post(&format!("/api/v1/nodes/{id}/unfreeze"), &serde_json::json!({}))?.status, 204);
    agent.stop()?;
    agent.run()?;
    until("the node's session", SOON, || {
        let node = hub.node(&id)?;
        Ok((node["presence"]["state"] == "online").then_some(()))
    })?;
    until("the end of the alert", SOON, || {
        let alerts = hub.api().get("/api/v1/alerts?state=open")?.ok()?;
        let open = alerts["items"].as_array().is_some_and(|all| all.iter().any(|one| one["rule"] == "node.cloned"));
        Ok((!open).then_some(()))
    })?;
    Ok(())
}

#[test]
fn a_hub_that_is_restored_from_before_a_renewal_has_its_agent_back_without_anybodys_help() -> Result<()> {
    let (mut hub, backup, right) = (Hub::start()?, tempfile::tempdir()?, tempfile::tempdir()?);
    hub.tenant("acme")?;
    let agent = Agent::create()?.set("interval", "1s").join(&hub, "acme")?;
    let id = online(&hub)?;
    let serial = |hub: &Hub| Ok::<_, anyhow::Error>(hub.node(&id)?["certificate"]["serial"].clone());
    let first = serial(&hub)?;
    hub.stop()?;
    replace(backup.path(), hub.state_dir())?;
    hub.restart()?;
    online(&hub)?;
    hub.api().post("/api/v1/renewals", &json!({ "all": true, "within_seconds": 1, "reason": "drill" }))?.ok()?;
    until("a session after the renewal", SOON, || Ok((serial(&hub)? != first).then_some(())))?;
    let second = serial(&hub)?;
    hub.stop()?;
    replace(right.path(), hub.state_dir())?;

    replace(hub.state_dir(), backup.path())?;
    hub.restart()?;
    assert_eq!(online(&hub)?, id);
    assert_eq!(serial(&hub)?, first);
    assert_eq!((audited(&hub, "node.enrolled")?, audited(&hub, "node.frozen")?), (1, 0));

    // It was the wrong backup, and the right database is put back.
    hub.stop()?;
    replace(hub.state_dir(), right.path())?;
    hub.restart()?;
    until("a session after the recovery", SOON, || Ok((serial(&hub)? != second).then_some(())))?;
    assert_eq!(online(&hub)?, id);
    assert_eq!((audited(&hub, "node.recovered")?, audited(&hub, "node.frozen")?), (1, 0));
    drop(agent);
    Ok(())
}

/// Replaces the files in one folder by those of another.
fn replace(files: &Path, by: &Path) -> Result<()> {
    for file in fs::read_dir(files)? {
        fs::remove_file(file?.path())?;
    }
    for file in fs::read_dir(by)? {
        let file = file?;
        fs::copy(file.path(), files.join(file.file_name()))?;
    }
    Ok(())
}
