//! What a service that writes its log in a loop costs the agent that ships it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::report::{Report, Target};
use hyperfactory_tests::rig::{Agent, Engine, Hub, SOON, Usage, until};

/// Lines of some 90 bytes, as fast as the engine takes them.
const SERVICES: &str = r#"
services:
  loud:
    image: IMAGE
    command: ["sh", "-c", "until [ -e /go ]; do sleep 0.1; done; exec yes 'level=error msg=\"connection refused\" address=10.0.0.7:5432 attempt=17 again_in=250ms'"]
    network_mode: none
    pull_policy: never
    stop_signal: SIGKILL
"#;
/// How long the loop is measured, and how long the agent without one.
const LENGTH: Duration = Duration::from_secs(30);

/// Adds the figures to the report.
pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let engine = Engine::from_environment()?;
    let project = engine.project("bench-loop", SERVICES)?;
    let hub = Hub::start()?;
    hub.tenant("loop")?;
    let mut agent = Agent::create()?
        .set("docker-host", format!("unix://{}", engine.socket().display()))
        .set("logs-services", format!("{}/loud", project.name()));
    agent.enroll(&hub.join_token("loop")?)?;
    agent.run()?;
    project.up()?;
    let id = agent.process()?.id();
    let node = agent.node()?;
    let quiet = span(id)?;
    project.exec("loud", &["touch", "/go"])?;
    let lines = || -> Result<(u64, u64)> {
        let metrics = String::from_utf8(hub.api().download("/metrics")?)?;
        let of = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<f64>().ok())
                .map(|value| value as u64)
                .with_context(|| format!("no {name}"))
        };
        Ok((of("hyperfactory_hub_log_lines_total")?, of("hyperfactory_hub_log_lines_dropped_total")?))
    };
    until("the loop's first lines to be left out", SOON, || Ok((lines()?.1 > 0).then_some(())))?;
    let before = lines()?;
    let loud = span(id)?;
    let after = lines()?;
    let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / LENGTH.as_secs_f64();
    let (kept, dropped) = (rate(before.0, after.0), rate(before.1, after.1));
    ensure!(hub.node(&node)?["presence"]["state"] == "online", "the node is not there any more");
    let name = |what: &str| format!("a shipped service in a log loop: {what}");
    report.figure(&name("lines read"), "1/s", kept + dropped, Target::More);
    report.figure(&name("lines kept"), "1/s", kept, Target::More);
    report.figure(&name("agent's processor"), "cores", loud.0, Target::Less);
    report.figure(&name("agent's processor, for a million lines"), "s", loud.0 / (kept + dropped) * 1e6, Target::Less);
    report.figure(&name("agent's memory more than without"), "MB", loud.1 - quiet.1, Target::AtMost(24.0));
    Ok(())
}

/// Processor, in cores, and memory at the end, in MB.
fn span(id: u32) -> Result<(f64, f64)> {
    let (began, before) = (Instant::now(), Usage::of_tree(id)?);
    std::thread::sleep(LENGTH);
    let after = Usage::of_tree(id)?;
    let cores = after.cpu.saturating_sub(before.cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    Ok((cores, after.rss_kib as f64 * 1024.0 / 1e6))
}
