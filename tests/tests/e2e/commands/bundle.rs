//! A diagnostics bundle of a machine that is full of secrets.

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Agent, Engine, Hub, SOON, until};
use serde_json::{Value, json};

use super::Site;

/// In each secret that is planted, with a name for where.
const PLANTED: &str = "pl4nted";

/// Services with a secret wherever people put one.
const SERVICES: &str = r#"
services:
  web:
    image: IMAGE
    command: ["sh", "-c", "cat /key.pem; echo 'authorization: Bearer pl4nted-bearer'; exec sleep infinity", "--password=pl4nted-argument"]
    network_mode: none
    pull_policy: never
    stop_signal: SIGKILL
    environment:
      DB_PASSWORD: pl4nted-password
      API_TOKEN: pl4nted-token
      ENCRYPTION_KEY: pl4nted-key
      DATABASE_URL: postgres://shop:pl4nted-dsn@db/shop
    labels:
      traefik.auth.token: pl4nted-label
    secrets: [file]
    volumes: ["KEY:/key.pem:ro"]
    healthcheck:
      test: ["CMD", "sh", "-c", "echo login with --password=pl4nted-check failed; exit 1"]
      interval: 1s
      retries: 1
  broken:
    image: IMAGE
    command: ["/no/such/program --password=pl4nted-broken"]
    network_mode: none
    pull_policy: never
secrets:
  file: {file: SECRET}
"#;

#[test]
fn a_diagnostics_bundle_holds_none_of_the_secrets_of_its_machine() -> Result<()> {
    let (hub, engine, files) = (Hub::start()?, Engine::from_environment()?, tempfile::tempdir()?);
    let (key, secret) = (files.path().join("key.pem"), files.path().join("secret"));
    std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\npl4nted-pem\n-----END PRIVATE KEY-----\n")?;
    std::fs::write(&secret, "pl4nted-file\n")?;
    let services = SERVICES.replace("KEY:/", &format!("{}:/", key.display()));
    let services = services.replace("SECRET", &secret.display().to_string());
    let project = engine.project("bundle", &services)?;
    // The engine refuses one of them, and says why with its command.
    ensure!(project.up().is_err(), "a program that is not there was started");
    project.compose(&["up", "--detach", "web"])?;
    hub.tenant("acme")?;
    // With all that is logged.
    let agent = Agent::create()?.watch(&engine).set("interval", "1s").set("log", "debug");
    let agent = agent.set("token", "hfj_pl4nted-join").join(&hub, "acme")?;
    let node = agent.node()?;
    hub.online(&node)?;
    let mut site = Site { hub, agent, engine, project, node };
    until("the check to fail", SOON, || {
        let inspected = site.engine.inspect(&site.project.container("web")?)?;
        Ok((inspected["State"]["Health"]["Status"] == "unhealthy").then_some(()))
    })?;
    let start = site.ask("service.start", Some("broken"), json!({}))?;
    let refused = site.comes_to(&start, "failed")?.to_string();
    ensure!(refused.contains("/no/such/program") && !refused.contains(PLANTED), "{refused}");

    let web = site.project.name().to_owned() + "-web-1";
    let text = site.bundle(&["told by the hub to gather diagnostics", "(unhealthy)", &web])?;
    // Its own key, in whichever lines.
    let identity = std::fs::read_to_string(site.agent.state_dir().join("identity.json"))?;
    let identity: Value = serde_json::from_str(&identity)?;
    let key = identity["credential"]["key"].as_str().context("no key")?;
    for line in key.lines().filter(|line| !line.starts_with("-----")) {
        ensure!(!text.contains(line), "a line of the agent's key is in the bundle");
    }

    // An engine that is asked with a password: in the configuration, in a check, in the log, and in what the hub shows.
    ensure!(site.agent.stop()?.success());
    let agent = std::mem::replace(&mut site.agent, Agent::create()?);
    site.agent = agent.set("docker-host", "tcp://ops:pl4nted-engine@127.0.0.1:1");
    site.agent.run()?;
    site.bundle(&["tcp://…@127.0.0.1:1"])?;
    let shown = until("the hub to show it", SOON, || {
        let node = site.hub.node(&site.node)?.to_string();
        Ok(node.contains("127.0.0.1:1").then_some(node))
    })?;
    ensure!(!shown.contains(PLANTED), "{shown}");
    Ok(())
}

impl Site {
    /// A bundle that has these parts, and nothing that was planted.
    fn bundle(&self, parts: &[&str]) -> Result<String> {
        let id = self.ask("diagnostics", None, json!({}))?;
        let bundle = self.comes_to(&id, "succeeded")?;
        let text = bundle["output"].as_str().context("no output")?;
        let planted: Vec<&str> = text.lines().filter(|line| line.contains(PLANTED)).collect();
        assert!(planted.is_empty(), "{planted:#?}");
        for part in parts {
            ensure!(text.contains(part), "{part} is not in {text}");
        }
        Ok(text.to_owned())
    }
}
