//! Logs of real services on a real engine, shipped and kept: each line once, or counted among those left out.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Agent, Engine, Hub, Postgres, Process, Project, Usage, binary, until};
use serde_json::Value;

/// Long enough for a slow machine.
const PATIENCE: Duration = Duration::from_secs(90);

const SERVICES: &str = r#"
services:
  # Numbered lines, on both of its streams, until it is told to stop.
  calm:
    image: IMAGE
    command:
      - sh
      - -c
      - |
        i=0
        until [ -e /stop ]; do
          i=$$((i + 1)); echo line $$i
          i=$$((i + 1)); echo line $$i >&2
          sleep 0.02
        done
        echo last $$i
        exec sleep infinity
    network_mode: none
    pull_policy: never
    stop_signal: SIGKILL
  # As fast as the engine takes them, once it is told to.
  loud:
    image: IMAGE
    command:
      - sh
      - -c
      - until [ -e /go ]; do sleep 0.1; done; seq 200000; exec sleep infinity
    network_mode: none
    pull_policy: never
    stop_signal: SIGKILL
  # Nobody has chosen it.
  private:
    image: IMAGE
    command: ["sh", "-c", "while true; do echo secret; sleep 0.5; done"]
    network_mode: none
    pull_policy: never
    stop_signal: SIGKILL
"#;

/// Lines of the service `loud`.
const WRITTEN: u64 = 200_000;
/// More than this, in KiB, the agent does not take, whatever a service writes.
const MOST_MEMORY: u64 = 24 * 1024;

struct Site {
    hub: Hub,
    agent: Agent,
    project: Project,
    node: String,
}

impl Site {
    /// The agent is there before the services are, so that all they write is its to ship.
    fn start(hub: Hub, name: &str) -> Result<Self> {
        let engine = Engine::from_environment()?;
        let project = engine.project(name, SERVICES)?;
        hub.tenant("acme")?;
        let chosen = format!("{0}/calm,{0}/loud", project.name());
        let agent = Agent::create()?.watch(&engine).set("interval", "200ms").set("logs-services", chosen);
        let agent = agent.join(&hub, "acme")?;
        let node = agent.node()?;
        project.up()?;
        Ok(Self { hub, agent, project, node })
    }

    /// All that is kept of a service, the oldest first.
    fn kept(&self, service: &str, more: &str) -> Result<Vec<Value>> {
        let path = format!("/api/v1/logs?node={}&service={service}&limit=500{more}", self.node);
        let (mut kept, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.hub.api().get(&format!("{path}{cursor}"))?.ok()?;
            kept.extend(page["items"].as_array().context("no page")?.iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        kept.reverse();
        Ok(kept)
    }

    /// Waits until so many lines of the calm service are kept.
    fn until_kept(&self, lines: usize) -> Result<()> {
        until(&format!("{lines} lines"), PATIENCE, || {
            let kept = self.kept("calm", "")?.len();
            ensure!(kept >= lines, "{kept} lines are kept");
            Ok(Some(()))
        })
    }

    /// Has the calm service stop, and gives the numbers of its lines once the last is kept, and how many there are to be.
    fn finish(&self) -> Result<(Vec<u64>, u64)> {
        self.project.exec("calm", &["touch", "/stop"])?;
        let last = until("the last line", PATIENCE, || {
            let found = self.kept("calm", "&text=last")?;
            let last = found.last().and_then(|line| line["text"].as_str()?.strip_prefix("last ")?.parse::<u64>().ok());
            last.context("it is not kept yet").map(Some)
        })?;
        let mut numbers = Vec::new();
        for line in self.kept("calm", "")? {
            ensure!(line["dropped"] == 0, "lines were left out: {line}");
            if let Some(number) = line["text"].as_str().and_then(|text| text.strip_prefix("line ")) {
                numbers.push(number.parse()?);
            }
        }
        Ok((numbers, last))
    }
}

/// What the hub has of the node's batches of lines: all of them, and none reported lost.
fn no_gaps(site: &Site) -> Result<()> {
    let coverage = site.hub.api().get(&format!("/api/v1/nodes/{}/logs/coverage", site.node))?.ok()?;
    for epoch in coverage.as_array().context("no list")? {
        ensure!(epoch["complete"] == true && epoch["lost"] == 0, "batches are missing: {epoch}");
    }
    Ok(())
}

/// Every number from 1 to the last, once.
fn whole(numbers: &[u64], last: u64) -> Result<()> {
    let distinct: BTreeSet<u64> = numbers.iter().copied().collect();
    let missing: Vec<u64> = (1..=last).filter(|number| !distinct.contains(number)).collect();
    ensure!(missing.is_empty(), "of {last} lines, these are missing: {missing:?}");
    ensure!(numbers.len() as u64 == last, "{} lines are kept of {last}: some came twice", numbers.len());
    Ok(())
}

fn kills(hub: Hub, name: &str) -> Result<()> {
    let mut site = Site::start(hub, name)?;
    site.until_kept(20)?;
    for round in 1..=4 {
        // Mid-flight, wherever that is: lines come all the time.
        site.agent.kill()?;
        site.agent.run()?;
        if round % 2 == 0 {
            site.hub.kill()?;
            site.hub.restart()?;
        }
        let kept = site.kept("calm", "")?.len();
        site.until_kept(kept + 20)?;
    }
    // Away for a while, and back.
    site.hub.kill()?;
    site.agent.kill()?;
    site.agent.run()?;
    site.hub.restart()?;
    let (numbers, last) = site.finish()?;
    whole(&numbers, last)?;
    ensure!(last > 100, "only {last} lines were written");
    no_gaps(&site)?;
    assert_eq!(site.kept("private", "")?.len(), 0, "nobody has chosen it");
    let error = site.kept("calm", "&stream=stderr&text=line")?;
    assert!(error.iter().all(|line| line["stream"] == "stderr") && !error.is_empty());
    Ok(())
}

#[test]
fn every_line_is_kept_once_though_agent_and_hub_are_killed_on_sqlite() -> Result<()> {
    kills(Hub::start()?, "shipping-sqlite")
}

#[test]
fn every_line_is_kept_once_though_agent_and_hub_are_killed_on_postgresql() -> Result<()> {
    let database = Postgres::from_environment()?.database()?;
    kills(Hub::builder().set("database", database.url()).start()?, "shipping-postgresql")
}

#[test]
fn a_log_loop_costs_the_service_beside_it_no_line_and_is_told_what_it_lost() -> Result<()> {
    let mut site = Site::start(Hub::start()?, "shipping-loop")?;
    site.until_kept(20)?;
    let agent = site.agent.process()?.id();
    let (quiet, batches) = (Usage::of_tree(agent)?.rss_kib, site.hub.stored(&site.node)?);
    site.project.exec("loud", &["touch", "/go"])?;
    let kept = site.kept("calm", "")?.len();
    let mut peak = 0;
    let count = |lines: &[Value]| -> (u64, u64) {
        let dropped = lines.iter().filter_map(|line| line["dropped"].as_u64()).sum();
        (lines.iter().filter(|line| line["dropped"] == 0).count() as u64, dropped)
    };
    until("all of the loud service's lines to be told of", PATIENCE, || {
        peak = peak.max(Usage::of_tree(agent)?.rss_kib);
        let (stored, dropped) = count(&site.kept("loud", "")?);
        ensure!(stored + dropped >= WRITTEN, "{stored} are kept and {dropped} were left out");
        Ok(Some(()))
    })?;
    site.until_kept(kept + 50)?;
    let (numbers, last) = site.finish()?;
    whole(&numbers, last)?;
    let lines = site.kept("loud", "")?;
    let (stored, dropped) = count(&lines);
    assert_eq!(stored + dropped, WRITTEN, "what was written is what is kept and what was left out");
    assert!(stored >= 1_000 && dropped > WRITTEN / 2, "{stored} are kept, {dropped} were left out");
    // In their place, and with the time in which they were written.
    let mut next = 1;
    for line in &lines {
        match line["dropped"].as_u64().context("no count")? {
            0 => {
                assert_eq!(line["text"], next.to_string());
                next += 1;
            }
            dropped => {
                assert!(line["until"].as_str() >= line["at"].as_str(), "{line}");
                next += dropped;
            }
        }
    }
    assert!(peak < quiet + MOST_MEMORY, "the agent took {quiet} KiB, and then {peak}");
    assert!(site.hub.stored(&site.node)? > batches, "no telemetry was stored meanwhile");

    // As operators search it.
    let mut hfctl = Command::new(binary("hfctl")?);
    hfctl.env("HYPERFACTORY_HFCTL_URL", &site.hub.endpoints().http);
    hfctl.env("HYPERFACTORY_HFCTL_TOKEN", site.hub.api().token().context("no token")?);
    let service = format!("{}/calm", site.project.name());
    let found = hfctl.args(["logs", "search", "LAST", "--service", &service, "--since", "1h"]).output()?;
    let said = String::from_utf8(found.stdout)?;
    assert!(found.status.success() && said.ends_with(&format!(" {} {service} last {last}\n", site.node)), "{said}");
    assert!(site.agent.stop()?.success());
    Ok(())
}

#[test]
fn a_container_that_the_engine_would_not_tell_of_keeps_no_other_from_being_shipped() -> Result<()> {
    const TWO: &str = r#"
services:
  a: &loud
    image: IMAGE
    command: ["sh", "-c", "while true; do echo a line; sleep 0.2; done"]
    network_mode: none
    pull_policy: never
    stop_signal: SIGKILL
  b: *loud
"#;
    let engine = Engine::from_environment()?;
    let project = engine.project("untold", TWO)?;
    project.up()?;
    // They are asked about in the order of their ids.
    let mut services = [(project.container("a")?, "a"), (project.container("b")?, "b")];
    services.sort();
    let [(first, untold), (_, other)] = services;
    let folder = tempfile::tempdir()?;
    let (socket, file) = (folder.path().join("docker.sock"), folder.path().join("haproxy.cfg"));
    let proxy = format!(
        "defaults\n mode http\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n\
         frontend agent\n bind unix@{}\n http-request deny deny_status 500 if {{ path_end /containers/{first}/json }}\n \
         default_backend engine\nbackend engine\n server engine unix@{}\n",
        socket.display(),
        engine.socket().display()
    );
    std::fs::write(&file, proxy)?;
    let mut haproxy = Command::new("/usr/sbin/haproxy");
    let mut proxy = Process::start(haproxy.arg("-f").arg(&file), &folder.path().join("haproxy.log"))?;
    until("the proxy's socket", PATIENCE, || {
        proxy.check()?;
        Ok(socket.exists().then_some(()))
    })?;
    let hub = Hub::start()?;
    hub.tenant("acme")?;
    let agent = Agent::create()?.set("docker-host", format!("unix://{}", socket.display())).set("interval", "200ms");
    let agent = agent.set("logs-services", "untold").join(&hub, "acme")?;
    let mut site = Site { hub, node: agent.node()?, agent, project };
    until("lines of the other", PATIENCE, || Ok((!site.kept(other, "")?.is_empty()).then_some(())))?;
    assert!(site.kept(untold, "")?.is_empty());
    let warned = |site: &mut Site| -> Result<usize> {
        let log = site.agent.process()?.log();
        Ok(log.lines().filter(|line| line.contains("would not say how it is") && line.contains("untold-")).count())
    };
    // One that is started has it look again.
    site.project.compose(&["restart", "--timeout", "0", other])?;
    let before = site.kept(other, "")?.len();
    until("lines of its next life", PATIENCE, || Ok((site.kept(other, "")?.len() > before + 10).then_some(())))?;
    assert_eq!(warned(&mut site)?, 1, "once");
    Ok(())
}
