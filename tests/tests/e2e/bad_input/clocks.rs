//! A hub whose clock is wrong by a year.

use anyhow::{Result, ensure};
use hyperfactory_tests::rig::{Hub, SOON, until};

use super::{FAILED, agent, assert_ended, delivers, newest_token, running};

#[test]
fn a_new_node_says_to_check_the_clocks() -> Result<()> {
    for offset in ["+365d", "-365d"] {
        let hub = Hub::builder().clock(offset)?.start()?;
        hub.tenant("acme")?;
        let agent = agent()?;
        let output = agent.command(&["enroll", "--token", &hub.join_token("acme")?])?;
        assert_ended(&output, FAILED, &["not valid at this machine's time", "set this machine's clock", "the hub's"]);
        assert!(!agent.state_dir().join("identity.json").exists());
        assert!(hub.nodes()?.is_empty());
        assert_eq!(newest_token(&hub)?, "open", "{offset}");
    }
    Ok(())
}

#[test]
fn a_node_says_so_while_the_hub_is_a_year_ahead_and_is_back_when_it_is_right() -> Result<()> {
    let mut hub = Hub::start()?;
    hub.tenant("acme")?;
    let (agent, node) = running(&hub, agent()?, "acme")?;

    hub.stop()?;
    hub.set_clock(Some("+365d"))?;
    hub.restart()?;
    until("the agent to speak of the clocks", SOON, || {
        let status = agent.status()?;
        let link = status["link"].as_str().unwrap_or_default();
        ensure!(link.contains("set this machine's clock, and if it is right, the hub's"), "{link}");
        Ok(Some(()))
    })?;
    assert_ended(&agent.command(&["status"])?, FAILED, &["set this machine's clock"]);
    assert_ended(&agent.command(&["check"])?, FAILED, &["set this machine's clock"]);

    hub.stop()?;
    hub.set_clock(None)?;
    hub.restart()?;
    delivers(&hub, &node)?;
    assert_eq!(hub.nodes()?, [node]);
    // What that year's hub made for itself is in nobody's way: another node gets in as well.
    running(&hub, super::agent()?, "acme")?;
    Ok(())
}

#[test]
fn a_hub_that_wakes_up_a_year_too_early_says_so_and_breaks_nothing() -> Result<()> {
    let mut hub = Hub::start()?;
    hub.tenant("acme")?;
    let (_agent, node) = running(&hub, agent()?, "acme")?;

    hub.stop()?;
    hub.set_clock(Some("-365d"))?;
    assert_ended(&hub.attempt(&["serve"])?, FAILED, &["check this machine's clock"]);

    hub.set_clock(None)?;
    hub.restart()?;
    delivers(&hub, &node)?;
    Ok(())
}
