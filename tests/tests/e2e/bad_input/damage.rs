//! State that was damaged behind the programs' backs.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Hub, SOON, until};
use serde_json::json;

use super::{FAILED, agent, assert_ended, delivers, has_all, newest_token, running};

fn hub() -> Result<Hub> {
    let hub = Hub::start()?;
    hub.tenant("acme")?;
    Ok(hub)
}

#[test]
fn an_agent_with_a_damaged_identity_says_so_and_does_not_become_another_node() -> Result<()> {
    let hub = hub()?;
    let mut other = agent()?;
    other.enroll(&hub.join_token("acme")?)?;
    let agent = agent()?;
    agent.enroll(&hub.join_token("acme")?)?;
    let token = hub.join_token("acme")?;
    let agent = agent.set("token", &token);

    let path = agent.state_dir().join("identity.json");
    let good = fs::read_to_string(&path)?;
    let stranger = good.replace(&agent.node()?, &other.node()?);
    for (damaged, why) in [
        (&good[..good.len() / 2], "not the JSON that was written"),
        ("", "not the JSON that was written"),
        (&good.replace("\"format\": 2", "\"format\": 7"), "format 7"),
        (&stranger, "names another node"),
        (&good.replace("BEGIN PRIVATE KEY", "BEGIN PRIVATE CHEESE"), "BEGIN PRIVATE KEY"),
    ] {
        assert_ne!(damaged, good, "it is damaged");
        fs::write(&path, damaged)?;
        for verb in [&["run"][..], &["enroll", "--token", &token], &["status"]] {
            let output = agent.command(verb)?;
            let what_to_do = "is damaged; move it away and enroll again";
            assert_ended(&output, FAILED, &[path.to_str().unwrap(), what_to_do, why]);
        }
        assert_ended(&agent.command(&["check"])?, FAILED, &["identity.json is damaged"]);
        assert_eq!(fs::read_to_string(&path)?, damaged, "the damaged file is evidence");
    }
    assert_eq!(newest_token(&hub)?, "open");
    assert_eq!(hub.nodes()?.len(), 2);

    fs::write(&path, good)?;
    let mut agent = agent;
    agent.run()?;
    delivers(&hub, &agent.node()?)?;
    other.run()?;
    delivers(&hub, &other.node()?)?;
    Ok(())
}

#[test]
fn flipped_bytes_in_the_spool_cost_what_they_hit_and_the_hub_is_told_which() -> Result<()> {
    let mut hub = hub()?;
    let (mut agent, node) = running(&hub, agent()?.set("interval", "100ms"), "acme")?;
    hub.kill()?;
    until("a backlog", SOON, || {
        let pending = agent.status()?["batches_pending"].as_u64().context("no number")?;
        ensure!(pending > 30, "{pending} batches");
        Ok(Some(()))
    })?;
    agent.kill()?;
    flip_in_the_middle(&agent.state_dir().join("spool"))?;

    agent.run()?;
    hub.restart()?;
    delivers(&hub, &node)?;
    let coverage = has_all(&hub, &agent, &node)?;
    let lost = coverage["lost_ranges"].as_array().context("no ranges")?;
    assert!(!lost.is_empty() && lost.iter().all(|range| range["reason"] == "corrupt"), "{coverage}");
    assert_eq!(agent.status()?["batches_lost"], coverage["lost"]);
    let log = agent.process()?.log();
    assert!(log.contains("batches are lost; the hub is told"), "{log}");
    Ok(())
}

/// Turns over some bytes in the midst of what the newest segment holds.
fn flip_in_the_middle(spool: &Path) -> Result<()> {
    let files = fs::read_dir(spool)?.flatten().map(|entry| entry.path());
    let newest = files.filter(|path| path.extension().is_some_and(|it| it == "seg")).max().context("no segment")?;
    let bytes = fs::read(&newest)?;
    let written = bytes.iter().rposition(|byte| *byte != 0).context("an empty segment")?;
    let place = written / 2;
    let flipped: Vec<u8> = bytes[place..place + 16].iter().map(|byte| !byte).collect();
    Ok(fs::File::options().write(true).open(newest)?.write_all_at(&flipped, place as u64)?)
}

#[test]
fn a_damaged_database_is_called_that_and_its_backup_brings_all_back() -> Result<()> {
    let mut hub = hub()?;
    let (_agent, node) = running(&hub, agent()?, "acme")?;
    hub.stop()?;
    let path = hub.state_dir().join("hub.db");
    let backup = fs::read(&path)?;
    let page = 4096;
    for damage in [0..100, page..backup.len()] {
        let mut damaged = backup.clone();
        damaged[damage.clone()].fill(0x5a);
        fs::write(&path, &damaged)?;
        assert_ended(&hub.attempt(&["serve"])?, FAILED, &["damaged", "restore it from its backup"]);
        assert_ended(&hub.attempt(&["check"])?, FAILED, &["FAIL  database", "restore it from its backup"]);
    }
    for left_over in ["hub.db-wal", "hub.db-shm"] {
        let _ = fs::remove_file(hub.state_dir().join(left_over));
    }
    fs::write(&path, &backup)?;
    hub.restart()?;
    delivers(&hub, &node)?;
    Ok(())
}

#[test]
fn without_the_master_key_of_its_database_the_hub_says_which_one_it_needs() -> Result<()> {
    let mut hub = hub()?;
    let (_agent, node) = running(&hub, agent()?, "acme")?;
    hub.stop()?;
    let path: PathBuf = hub.state_dir().join("master.key");
    let good = fs::read_to_string(&path)?;
    let another = good.chars().rev().collect::<String>();
    for (key, advice) in [
        (Some(another.trim()), "give the hub the master key this database is under"),
        (Some(&good[..20]), "restore it from the copy made when the hub was set up"),
        (None, "restore it from the copy made when the hub was set up"),
    ] {
        match key {
            Some(key) => fs::write(&path, key)?,
            None => fs::remove_file(&path)?,
        }
        assert_ended(&hub.attempt(&["serve"])?, FAILED, &[advice]);
        assert_ended(&hub.attempt(&["check"])?, FAILED, &["FAIL  master-key", advice]);
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), key, "the hub has put another key there");
    }
    fs::write(&path, &good)?;
    hub.restart()?;
    delivers(&hub, &node)?;
    assert_eq!(hub.node(&node)?["presence"]["state"], json!("online"));
    Ok(())
}
