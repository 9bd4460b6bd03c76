//! From a join token to a live fleet: a real engine's services, seen on the hub as they change.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Agent, Engine, Hub, Postgres, SOON, until};
use serde_json::Value;

const SERVICES: &str = include_str!("../../../compose/test/compose.yaml");

/// Looks until the hub shows the service as wanted.
fn sees(hub: &Hub, stack: &str, service: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Value::Null;
    until(&format!("{service} to be as wanted"), SOON, || {
        let node = node(hub)?;
        let services = node["services"].as_array().context("no services")?;
        let found = services.iter().find(|found| found["stack"] == stack && found["service"] == service);
        last = found.cloned().context("the service is not there")?;
        ensure!(wanted(&last), "it is {last}");
        Ok(Some(last.clone()))
    })
}

fn node(hub: &Hub) -> Result<Value> {
    let page = hub.api().get("/api/v1/nodes")?.ok()?;
    let id = page["items"][0]["id"].as_str().context("no node")?.to_owned();
    hub.api().get(&format!("/api/v1/nodes/{id}"))?.ok()
}

fn five_conditions(hub: &Hub, name: &str) -> Result<()> {
    let engine = Engine::from_environment()?;
    let project = engine.project(name, SERVICES)?;
    hub.tenant("acme")?;
    let mut agent = Agent::create()?.watch(&engine).set("interval", "1s").join(hub, "acme")?;
    project.up()?;
    let stack = project.name();

    let healthy = sees(hub, stack, "healthy", |it| it["state"] == "running" && it["health"] == "healthy")?;
    assert!(healthy["image"].as_str().is_some_and(|image| image.contains("busybox")), "{healthy}");
    let sick = sees(hub, stack, "unhealthy", |it| it["health"] == "unhealthy")?;
    assert_eq!(sick["health_output"], "no pressure", "{sick}");
    let looping = sees(hub, stack, "looping", |it| it["restart_count"].as_u64() >= Some(3))?;
    assert_eq!(looping["exit_code"], 3, "{looping}");
    let greedy = sees(hub, stack, "greedy", |it| it["state"] == "exited" && it["oom_killed"] == true)?;
    assert_eq!(greedy["exit_code"], 137, "{greedy}");
    project.compose(&["stop", "stopped"])?;
    sees(hub, stack, "stopped", |it| it["state"] == "exited" && it["oom_killed"] == false)?;

    // A service that falls ill and recovers, without anything else changing.
    sees(hub, stack, "fragile", |it| it["health"] == "healthy")?;
    project.exec("fragile", &["touch", "/tmp/sick"])?;
    let ill = sees(hub, stack, "fragile", |it| it["health"] == "unhealthy")?;
    assert_eq!(ill["health_output"], "valve 7 does not answer", "{ill}");
    project.exec("fragile", &["rm", "/tmp/sick"])?;
    sees(hub, stack, "fragile", |it| it["health"] == "healthy")?;

    // Figures of the host and of a container.
    until("figures", SOON, || {
        let node = node(hub)?;
        let services = node["services"].as_array().context("no services")?;
        let healthy = services
            .iter()
            .find(|it| it["stack"] == stack && it["service"] == "healthy")
            .context("healthy is not there")?;
        ensure!(healthy["memory"].as_f64() > Some(0.0), "{healthy}");
        ensure!(node["figures"]["memory"]["used"].as_f64() > Some(0.0), "{node}");
        Ok(Some(()))
    })?;

    // Five alerts at most describe five conditions, and the loop is among them.
    until("the restart loop's alert", Duration::from_secs(90), || {
        let alerts = hub.api().get("/api/v1/alerts?state=open")?.ok()?;
        let items = alerts["items"].as_array().context("no alerts")?;
        let of = |rule: &str| items.iter().any(|alert| alert["rule"] == rule);
        ensure!(of("service.restarting") && of("service.unhealthy"), "{alerts}");
        Ok(Some(()))
    })?;
    project.compose(&["down", "--timeout", "0"])?;
    until("the services to be gone", SOON, || {
        let node = node(hub)?;
        let services = node["services"].as_array().context("no services")?;
        Ok((!services.iter().any(|it| it["stack"] == stack)).then_some(()))
    })?;
    assert!(agent.stop()?.success());
    Ok(())
}

#[test]
fn every_condition_of_a_real_service_is_seen_on_the_hub_on_sqlite() -> Result<()> {
    let mut hub = Hub::builder().set("alert-unhealthy-after", "2s").start()?;
    five_conditions(&hub, "e2e-sqlite")?;
    assert!(hub.stop()?.success());
    Ok(())
}

#[test]
fn every_condition_of_a_real_service_is_seen_on_the_hub_on_postgresql() -> Result<()> {
    let database = Postgres::from_environment()?.database()?;
    let mut hub = Hub::builder().set("database", database.url()).set("alert-unhealthy-after", "2s").start()?;
    five_conditions(&hub, "e2e-postgresql")?;
    assert!(hub.stop()?.success());
    Ok(())
}

#[test]
fn without_an_engine_the_page_says_so_and_everything_else_works() -> Result<()> {
    let hub = Hub::start()?;
    hub.tenant("acme")?;
    let mut agent = Agent::create()?.set("docker-host", "unix:///nonexistent/docker.sock").set("interval", "1s");
    agent.enroll(&hub.join_token("acme")?)?;
    agent.run()?;
    until("the engine's state and the host's figures", SOON, || {
        let node = node(&hub)?;
        ensure!(node["engine"]["state"] == "absent", "{node}");
        ensure!(node["engine"]["message"].as_str().is_some_and(|said| said.contains("docker-host")), "{node}");
        ensure!(node["figures"]["cpu"].is_number(), "{node}");
        Ok(Some(()))
    })
}
