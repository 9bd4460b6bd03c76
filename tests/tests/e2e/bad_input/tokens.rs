//! Join tokens that are not good, or not for this.

use std::fs;

use anyhow::Result;
use hyperfactory_tests::rig::{Agent, Hub};
use pki::JoinToken;
use serde_json::{Value, json};

use super::{FAILED, MISUSED, REFUSED, agent, assert_ended, audit, newest_token, token};

fn hub() -> Result<Hub> {
    let hub = Hub::start()?;
    hub.tenant("acme")?;
    Ok(hub)
}

/// Asserts that `agent` got nothing, and that `hub` has `nodes` nodes.
fn assert_outside(agent: &Agent, hub: &Hub, nodes: usize) -> Result<()> {
    assert!(!agent.state_dir().join("identity.json").exists(), "it has an identity");
    assert_eq!(hub.nodes()?.len(), nodes);
    Ok(())
}

#[test]
fn a_token_enrolls_one_node_and_no_second() -> Result<()> {
    let hub = hub()?;
    let token = hub.join_token("acme")?;
    agent()?.enroll(&token)?;
    let second = agent()?;
    let output = second.command(&["enroll", "--token", &token])?;
    assert_ended(&output, REFUSED, &["this token has been used", "make a new one"]);
    assert_outside(&second, &hub, 1)?;
    let refused = audit(&hub, "enrollment.refused")?;
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!((&refused[0]["tenant"], &refused[0]["remote"]), (&json!("acme"), &json!("127.0.0.1")));
    assert_eq!(refused[0]["detail"]["code"], "REFUSAL_CODE_TOKEN_USED");
    Ok(())
}

/// The power goes after the hub has answered and before the agent has saved it: what is left is the key that asked.
#[test]
fn after_a_lost_reply_the_same_key_gets_the_same_certificate() -> Result<()> {
    let hub = hub()?;
    let token = hub.join_token("acme")?;
    let agent = agent()?;
    agent.enroll(&token)?;
    let (identity, waiting) = (agent.state_dir().join("identity.json"), agent.state_dir().join("enroll-key.json"));
    let first: Value = serde_json::from_slice(&fs::read(&identity)?)?;
    let secret = token.parse::<JoinToken>()?.secret_hash();
    let key = json!({
        "format": 2,
        "token": data_encoding::HEXLOWER.encode(&secret),
        "key": first["credential"]["key"],
    });
    fs::write(&waiting, key.to_string())?;
    fs::remove_file(&identity)?;

    agent.enroll(&token)?;
    let second: Value = serde_json::from_slice(&fs::read(&identity)?)?;
    assert_eq!(first, second);
    assert!(!waiting.exists());
    assert_eq!(hub.nodes()?.len(), 1);
    assert!(audit(&hub, "enrollment.refused")?.is_empty());
    Ok(())
}

#[test]
fn an_expired_token_is_refused() -> Result<()> {
    let mut hub = hub()?;
    let token = token(&hub, json!({ "tenant": "acme", "valid_for_seconds": 60 }))?;
    hub.stop()?;
    // Less than certificates are backdated by: to the agent, this hub's clock is right.
    hub.set_clock(Some("+5m"))?;
    hub.restart()?;
    let agent = agent()?;
    let output = agent.command(&["enroll", "--token", &token])?;
    assert_ended(&output, REFUSED, &["this token ended at", "make a new one"]);
    assert_outside(&agent, &hub, 0)?;
    assert_eq!(audit(&hub, "enrollment.refused")?[0]["detail"]["code"], "REFUSAL_CODE_TOKEN_EXPIRED");
    Ok(())
}

#[test]
fn a_token_of_another_hub_opens_nothing() -> Result<()> {
    let (ours, other) = (hub()?, hub()?);
    let token: JoinToken = ours.join_token("acme")?.parse()?;
    let theirs: JoinToken = other.join_token("acme")?.parse()?;
    let agent = agent()?;

    // Our secret at the other hub, which is the hub that its pin says.
    let foreign = JoinToken::new(&theirs.hub, theirs.root_pin, token.secret)?;
    let output = agent.command(&["enroll", "--token", &foreign.to_string()])?;
    assert_ended(&output, REFUSED, &["this hub has made no such token", "make a new one"]);
    assert_outside(&agent, &other, 0)?;
    let refused = audit(&other, "enrollment.refused")?;
    assert_eq!(refused[0]["detail"]["code"], "REFUSAL_CODE_TOKEN_UNKNOWN");
    assert_eq!(refused[0]["tenant"], Value::Null);

    // Our whole token, whose address now leads to the other hub: its secret must not be shown there.
    let astray = JoinToken::new(&theirs.hub, token.root_pin, token.secret)?;
    let output = agent.command(&["enroll", "--token", &astray.to_string()])?;
    assert_ended(&output, FAILED, &["not the hub the join token was made for", "check the hub's address"]);
    assert_outside(&agent, &other, 0)?;
    assert_eq!(audit(&other, "enrollment.refused")?.len(), 1, "the other hub saw the token");

    // None of that has used it up.
    agent.enroll(&token.to_string())?;
    assert_eq!(ours.nodes()?, [agent.node()?]);
    Ok(())
}

#[test]
fn a_bridges_token_is_not_for_an_agent() -> Result<()> {
    let hub = hub()?;
    let token = token(&hub, json!({ "tenant": "acme", "kind": "bridge" }))?;
    let agent = agent()?;
    let output = agent.command(&["enroll", "--token", &token])?;
    assert_ended(&output, REFUSED, &["this token is for bridge nodes", "make one for the other kind"]);
    assert_outside(&agent, &hub, 0)?;
    assert_eq!(newest_token(&hub)?, "open", "the bridge can still use it");
    assert_eq!(audit(&hub, "enrollment.refused")?[0]["detail"]["code"], "REFUSAL_CODE_TOKEN_KIND");
    Ok(())
}

#[test]
fn a_token_that_was_not_pasted_whole_is_wrong_usage() -> Result<()> {
    let token = JoinToken::generate("hub.example.com:7443", [7; 32])?.to_string();
    let mut typed = token.clone();
    typed.replace_range(60..61, if &token[60..61] == "x" { "y" } else { "x" });
    for (pasted, advice) in [
        (&token[..token.len() - 1], "cut short; copy it again"),
        (&token[4..], "copy it from the hub's token page"),
        (&format!("{token}{token}"), "copy the token alone"),
        (&format!("“{token}”"), "copy it"),
        (&typed, "copy it again instead of typing it"),
        ("", "empty"),
    ] {
        let agent = agent()?;
        assert_ended(&agent.command(&["enroll", "--token", pasted])?, MISUSED, &[advice]);
        let file = agent.state_dir().join("token");
        fs::write(&file, pasted)?;
        assert_ended(&agent.command(&["enroll", "--token-file", file.to_str().unwrap()])?, MISUSED, &[advice]);
        if !pasted.is_empty() {
            let agent = agent.set("token", pasted);
            assert_ended(&agent.command(&["run"])?, MISUSED, &[advice]);
        }
    }
    assert_ended(&agent()?.command(&["enroll"])?, MISUSED, &["no join token", "--token-file"]);
    Ok(())
}

/// A machine that is enrolled stays what it is, whatever token comes.
#[test]
fn an_enrolled_machine_does_not_enroll_again() -> Result<()> {
    let hub = hub()?;
    let agent = agent()?;
    agent.enroll(&hub.join_token("acme")?)?;
    let node = agent.node()?;
    let output = agent.command(&["enroll", "--token", &hub.join_token("acme")?])?;
    assert_ended(&output, FAILED, &["enrolled already", &node, "identity.json"]);
    assert_eq!((agent.node()?, newest_token(&hub)?), (node, json!("open")));
    Ok(())
}
