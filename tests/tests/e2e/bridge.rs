//! A bridge as a node of the hub's: enrolled with a token of its kind, and seen by its figures.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Hub, Process, SOON, binary, until};
use serde_json::json;

/// Nothing answers at these addresses: what it can't deliver, a bridge still reports.
const CONFIG: &str = r#"
interval = "200ms"
health-listen = "127.0.0.1:0"
[[mqtt]]
name = "plant"
address = "127.0.0.1:9"
[kafka]
brokers = ["127.0.0.1:9"]
[[route]]
preset = "umh"
"#;

#[test]
fn a_bridge_enrolls_with_its_kind_of_token_and_reports() -> Result<()> {
    let hub = Hub::start()?;
    hub.tenant("acme")?;
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("bridge.toml");
    std::fs::write(&config, CONFIG)?;
    let program = || -> Result<Command> {
        let mut command = Command::new(binary("hyperfactory-bridge")?);
        command.arg("--config").arg(&config).arg("--state-dir").arg(folder.path().join("state"));
        Ok(command)
    };

    // A token for an agent is none for a bridge, and says so.
    let refused = program()?.args(["enroll", "--token", &hub.join_token("acme")?]).output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(3) && said.contains("kind"), "{}: {said}", refused.status);

    let made = hub.api().post("/api/v1/tokens", &json!({ "tenant": "acme", "kind": "bridge" }))?.ok()?;
    let token = made["token"].as_str().context("no token in the reply")?;
    let enrolled = program()?.args(["enroll", "--token", token]).output()?;
    ensure!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));

    let mut process = Process::start(program()?.arg("run"), &folder.path().join("log"))?;
    let node = until("the bridge's session", SOON, || {
        process.check()?;
        let page = hub.api().get("/api/v1/nodes")?.ok()?;
        let found = page["items"]
            .as_array()
            .context("no nodes")?
            .iter()
            .find(|node| node["presence"]["state"] == "online")
            .cloned();
        Ok(found)
    })?;
    ensure!(node["kind"] == "bridge", "{node}");
    let id = node["id"].as_str().context("no id")?;
    for metric in ["bridge.pending", "bridge.connected", "bridge.bytes"] {
        until(&format!("figures of {metric}"), SOON, || {
            process.check()?;
            let history = hub.api().get(&format!("/api/v1/nodes/{id}/history?metric={metric}"))?.ok()?;
            Ok(history["series"].as_array().filter(|series| !series.is_empty()).map(drop))
        })?;
    }
    ensure!(process.stop(SOON)?.success(), "{}", process.last_words());
    Ok(())
}
