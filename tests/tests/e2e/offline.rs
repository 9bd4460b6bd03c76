//! A fleet root that is kept offline: a new tenant's agent waits by itself until the root has signed.

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Agent, Hub, SOON, binary, until};

#[test]
fn an_agent_of_a_new_tenant_waits_for_the_ceremony_and_enrolls_by_itself() -> Result<()> {
    let mut hub = Hub::start()?;
    let vault = tempfile::tempdir()?;
    let at = |name: &str| vault.path().join(name).display().to_string();
    std::fs::write(at("passphrase"), "correct horse battery staple\n")?;
    let passphrase = ["--passphrase-file", &at("passphrase")];

    // While the hub runs.
    hub.command(&[verb(&["export", "--file", &at("root.key")]), passphrase.to_vec()].concat())?;
    hub.tenant("late")?;
    let tenant = hub.api().get("/api/v1/tenants/late")?.ok()?;
    ensure!(tenant["awaits_signature"] == true, "{tenant}");
    let awaited = hub.api().get("/api/v1/authorities/awaited")?.ok()?;
    ensure!(awaited[0]["kind"] == "nodes" && awaited[0]["tenant"] == "late", "{awaited}");
    let mut agent = Agent::create()?.set("interval", "1s").set("token", hub.join_token("late")?);
    agent.launch()?;
    let log = agent.state_dir().join("rig.log");
    until("the agent to be told what it waits for", SOON, || {
        Ok(std::fs::read_to_string(&log)?.contains("tenant late waits for its authority").then_some(()))
    })?;

    // A hub that starts again goes on, with its root elsewhere.
    hub.stop()?;
    hub.restart()?;
    hub.command(&verb(&["requests", "--file", &at("requests")]))?;
    let signed = std::process::Command::new(binary("hyperfactory-hub")?)
        .args(verb(&["sign", "--key", &at("root.key"), "--requests", &at("requests"), "--out", &at("signed"), "--yes"]))
        .args(passphrase)
        .output()
        .context("running the hub's program")?;
    ensure!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    hub.command(&verb(&["import", "--file", &at("signed")]))?;

    // It is to come again after 20 s.
    until("the agent's session", SOON * 2, || {
        agent.process()?.check()?;
        let nodes = hub.api().get("/api/v1/nodes")?.ok()?;
        Ok((nodes["items"][0]["presence"]["state"] == "online").then_some(()))
    })?;
    hub.command(&["audit", "verify"])?;
    Ok(())
}

fn verb<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&["ca", "root"], words].concat()
}
