//! A bridge as a node of the hub's: enrolled with a token of its kind, and seen by its figures.

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Bridge, Hub, SOON, until};

#[test]
fn a_bridge_enrolls_with_its_kind_of_token_and_reports() -> Result<()> {
    let hub = Hub::start()?;
    hub.tenant("acme")?;
    let bridge = Bridge::nowhere()?;

    // A token for an agent is none for a bridge, and says so.
    let refused = bridge.enroll(&hub.join_token("acme")?)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(3) && said.contains("kind"), "{}: {said}", refused.status);

    let enrolled = bridge.enroll(&hub.bridge_token("acme", "cologne")?)?;
    ensure!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));

    let mut process = bridge.launch()?;
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
