//! A node that is revoked while it works: its session ends, it says why, and it does not come back.

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Agent, Hub, SOON, until};
use serde_json::{Value, json};

fn sessions(hub: &Hub) -> Result<String> {
    let text = hub.api().get("/metrics")?.ok()?;
    let line = text.as_str().context("no metrics")?.lines().find(|line| line.starts_with("hyperfactory_hub_sessions "));
    Ok(line.context("no number of sessions")?.to_owned())
}

/// Waits until the agent says that it is revoked, and what to do.
fn knows(agent: &mut Agent) -> Result<()> {
    until("the agent to say that it is revoked", SOON, || {
        let said = agent.status()?.to_string();
        ensure!(said.contains("revoked") && said.contains("enroll"), "{said}");
        Ok(Some(()))
    })
}

#[test]
fn a_revoked_agent_loses_its_session_says_so_and_stays_out() -> Result<()> {
    let mut hub = Hub::start()?;
    hub.tenant("acme")?;
    let mut agent = Agent::create()?.set("interval", "1s");
    agent.enroll(&hub.join_token("acme")?)?;
    agent.run()?;
    let id = until("the node's session", SOON, || {
        let nodes = hub.api().get("/api/v1/nodes")?.ok()?;
        let node = &nodes["items"][0];
        Ok((node["presence"]["state"] == "online").then(|| node["id"].as_str().unwrap_or_default().to_owned()))
    })?;

    let refused = hub.api().post(&format!("/api/v1/nodes/{id}/revoke"), &json!({ "reason": "because" }))?;
    assert_eq!(refused.status, 422, "{}", refused.body);
    let path = format!("/api/v1/nodes/{id}/revoke");
    let answer = hub.api().post(&path, &json!({ "reason": "key_compromise", "comment": "a stolen disk" }))?;
    assert_eq!(answer.status, 204, "{}", answer.body);
    until("the session's end", SOON, || Ok(sessions(&hub)?.ends_with(" 0").then_some(())))?;
    knows(&mut agent)?;
    agent.stop()?;
    agent.run()?;
    knows(&mut agent)?;
    hub.kill()?;
    hub.restart()?;
    knows(&mut agent)?;
    assert!(sessions(&hub)?.ends_with(" 0"), "no session after a restart of either");

    let node = hub.api().get(&format!("/api/v1/nodes/{id}"))?.ok()?;
    assert!(node["revoked_at"].is_string() && node["attention"]["level"] == "ok", "{node}");
    let audit = hub.api().get("/api/v1/audit?action=node.revoked")?.ok()?;
    assert_eq!(audit["items"][0]["detail"]["comment"], Value::from("a stolen disk"), "{audit}");
    assert_eq!(hub.api().delete(&format!("/api/v1/nodes/{id}"))?.status, 204);
    assert_eq!(hub.api().get(&format!("/api/v1/nodes/{id}"))?.status, 404);
    Ok(())
}
