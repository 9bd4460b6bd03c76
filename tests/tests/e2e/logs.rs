//! Logs of real services on a real engine, read live: what is left out is counted, and nothing else waits for it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{
    Agent, Browser, Engine, Hub, Postgres, Process, Project, SOON, Usage, View, binary, until, until_async,
};
use protocol::Timestamp;
use serde_json::Value;
use tempfile::TempDir;
use thirtyfour::{By, Key};

const SERVICES: &str = r#"
services:
  web:
    image: IMAGE
    command: ["sh", "-c", "echo pressure 7 bar; echo pressure lost >&2; while true; do sleep 1; echo still here; done"]
    network_mode: none
    pull_policy: never
    stop_signal: SIGKILL
  # A hundred thousand lines a second once it is told to, as far as the engine takes them.
  loop:
    image: IMAGE
    command:
      - sh
      - -c
      - |
        echo ready
        until [ -e /go ]; do sleep 0.1; done
        for i in 0 1 2 3 4 5 6 7 8 9; do seq $$((i * 50000 + 1)) $$((i * 50000 + 50000)); sleep 0.5; done
        echo done
        exec sleep infinity
    network_mode: none
    pull_policy: never
    stop_signal: SIGKILL
"#;

/// Lines of the service `loop` between the first and the last.
const WRITTEN: u64 = 500_000;
/// More than this the agent does not take, whatever a service writes.
const MOST_MEMORY: u64 = 24 * 1024;

/// A hub, an agent with a session, and a stack.
struct Site {
    hub: Hub,
    agent: Agent,
    engine: Engine,
    project: Project,
    node: String,
    folder: TempDir,
}

impl Site {
    fn start(hub: Hub, name: &str, set: impl FnOnce(Agent) -> Agent) -> Result<Self> {
        let engine = Engine::from_environment()?;
        let project = engine.project(name, SERVICES)?;
        project.up()?;
        hub.tenant("acme")?;
        let agent = set(Agent::create()?.watch(&engine).set("interval", "200ms")).join(&hub, "acme")?;
        let node = agent.node()?;
        hub.online(&node)?;
        Ok(Self { hub, agent, engine, project, node, folder: tempfile::tempdir()? })
    }

    fn hfctl(&self, service: &str, more: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("hfctl")?);
        let token = self.hub.api().token().context("no token")?.to_owned();
        command.env("HYPERFACTORY_HFCTL_URL", &self.hub.endpoints().http).env("HYPERFACTORY_HFCTL_TOKEN", token);
        let service = format!("{}/{service}", self.project.name());
        command.args(["logs", &service, "--node", &self.node]).args(more);
        Ok(command)
    }

    fn read(&self, service: &str, more: &[&str]) -> Result<Reader> {
        let log = self.folder.path().join(format!("{service}-{}.log", next()));
        Ok(Reader { process: Process::start(&mut self.hfctl(service, more)?, &log)?, log })
    }

    fn entries(&self, action: &str) -> Result<Vec<Value>> {
        let audit = self.hub.api().get(&format!("/api/v1/audit?action={action}"))?.ok()?;
        Ok(audit["items"].as_array().cloned().unwrap_or_default())
    }

    /// For when the samples are that the hub has kept since, ms since the Unix epoch.
    fn samples(&self, since: i64) -> Result<Vec<i64>> {
        let path = format!("/api/v1/nodes/{}/history?metric=memory.used&points=2000&from={since}", self.node);
        let history = self.hub.api().get(&path)?.ok()?;
        let points = history["series"][0]["points"].as_array().cloned().unwrap_or_default();
        Ok(points.iter().filter_map(|point| point["at"].as_i64()).collect())
    }

    fn session(&self) -> Result<Value> {
        Ok(self.hub.api().get(&format!("/api/v1/nodes/{}", self.node))?.ok()?["session"].clone())
    }
}

fn millis(time: Option<&str>) -> Option<i64> {
    Timestamp::parse(time?).map(Timestamp::millis)
}

/// For a file's name.
fn next() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// `hfctl logs` under way, and what it has printed.
struct Reader {
    process: Process,
    log: PathBuf,
}

impl Reader {
    fn lines(&self) -> Result<Vec<String>> {
        let text = String::from_utf8(std::fs::read(&self.log)?)?;
        // The last one may be half there.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        Ok(whole.lines().map(str::to_owned).collect())
    }

    fn says(&self, text: &str) -> Result<()> {
        until(&format!("{text:?}"), SOON, || {
            let lines = self.lines()?;
            ensure!(lines.iter().any(|line| line.contains(text)), "it says {:?}", lines.last());
            Ok(Some(()))
        })
    }
}

/// What a line stands for, where the service writes numbers.
enum Line {
    Number(u64),
    Dropped(u64),
    Other,
}

fn meaning(line: &str) -> Line {
    let dropped = line.strip_prefix("--- ").and_then(|line| line.split_once(" line")).map(|(count, _)| count);
    match (line.parse(), dropped.and_then(|count| count.parse().ok())) {
        (Ok(number), _) => Line::Number(number),
        (_, Some(dropped)) => Line::Dropped(dropped),
        _ => Line::Other,
    }
}

/// Lines that were delivered, and lines that were said to be left out; every hole in the numbers is as large as is said in
/// its place.
fn account(lines: &[String]) -> Result<(u64, u64)> {
    let (mut delivered, mut dropped, mut next, mut gap) = (0, 0, 1, 0);
    for line in lines {
        match meaning(line) {
            Line::Number(number) => {
                ensure!(number == next + gap, "{number} comes after {} and {gap} dropped lines", next - 1);
                (next, gap, delivered) = (number + 1, 0, delivered + 1);
            }
            Line::Dropped(count) => {
                gap += count;
                dropped += count;
            }
            Line::Other => {}
        }
    }
    Ok((delivered, dropped))
}

#[test]
fn a_service_that_writes_a_hundred_thousand_lines_a_second_is_read_within_bounds_and_nothing_waits_for_it() -> Result<()>
{
    let mut site = Site::start(Hub::start()?, "logs-loop", |agent| agent.set("interval", "1s"))?;
    let agent = site.agent.process()?.id();
    let files = || -> Result<usize> { Ok(std::fs::read_dir(format!("/proc/{agent}/fd"))?.count()) };
    let before = files()?;
    let mut reader = site.read("loop", &["--follow", "--reason", "it is too loud"])?;
    reader.says("ready")?;
    let session = site.session()?;
    let quiet = Usage::of_tree(agent)?.rss_kib;

    site.project.exec("loop", &["touch", "/go"])?;
    let mut peak = 0;
    until("the last line", Duration::from_secs(120), || {
        reader.process.check()?;
        peak = peak.max(Usage::of_tree(agent)?.rss_kib);
        let lines = reader.lines()?;
        let (delivered, dropped) = account(&lines)?;
        // The line that says "done" is delivered, or one of those that are left out.
        let done = u64::from(lines.iter().any(|line| line == "done"));
        ensure!(delivered + dropped + done > WRITTEN, "{delivered} delivered and {dropped} dropped so far");
        Ok(Some(()))
    })?;
    let lines = reader.lines()?;
    let (delivered, dropped) = account(&lines)?;
    let done = u64::from(lines.iter().any(|line| line == "done"));
    assert_eq!(delivered + dropped + done, WRITTEN + 1, "what was written is what was delivered and what was dropped");
    assert!(delivered > 1_000 && dropped > WRITTEN / 2, "{delivered} delivered, {dropped} dropped");
    assert!(peak < quiet + MOST_MEMORY, "the agent took {quiet} KiB, and then {peak}");
    // Heartbeats were on time: of each second from the begin of the reading to the last line there is a sample at the hub, which
    // is left out when the agent is busy with something else, and it came in the same session.
    let started = site.entries("tail.started")?;
    assert_eq!(started.len(), 1, "{started:?}");
    let last_line = site.engine.run(&["logs", "--timestamps", "--tail", "1", &site.project.container("loop")?])?;
    let (begin, end) = (millis(started[0]["at"].as_str()), millis(last_line.split_whitespace().next()));
    let (begin, end) = (begin.context("no begin")?, end.context("no end")?);
    let samples = until("a sample after the last line", SOON, || {
        let samples = site.samples(begin)?;
        Ok(samples.last().is_some_and(|last| *last >= end).then_some(samples))
    })?;
    assert!(end > begin + 5_000 && samples[0] <= begin + 1_000, "from {begin} to {end}: {samples:?}");
    let missing: Vec<i64> = samples.windows(2).filter(|two| two[1] != two[0] + 1_000).map(|two| two[0]).collect();
    assert!(missing.is_empty(), "samples are missing after {missing:?} of {samples:?}");
    assert_eq!(site.session()?, session);
    let alerts = site.hub.api().get("/api/v1/alerts")?.ok()?;
    assert_eq!(alerts["items"], serde_json::json!([]), "nothing was out of order at any time");

    // A reader that goes away takes all that was opened for it along.
    reader.process.kill()?;
    until("the agent to let go of the log", SOON, || {
        let now = files()?;
        ensure!(now <= before, "{now} files are open, and {before} were before");
        Ok(Some(()))
    })?;
    assert_eq!(started[0]["actor"], "operator:rig");
    assert_eq!(started[0]["detail"]["service"], format!("{}/loop", site.project.name()));
    assert_eq!(started[0]["detail"]["reason"], "it is too loud");
    assert!(site.agent.stop()?.success());
    Ok(())
}

fn everyday(hub: Hub, name: &str) -> Result<()> {
    let mut site = Site::start(hub, name, |agent| agent)?;
    // The last lines, and no more.
    let last = site.hfctl("web", &["--tail", "50"])?.output()?;
    let said = String::from_utf8(last.stdout)?;
    ensure!(
        last.status.success() && said.starts_with("pressure 7 bar\n") || said.starts_with("pressure lost\n"),
        "{said}"
    );
    // Searched for on the node.
    let found = site.hfctl("web", &["--grep", "(?i)LOST$"])?.output()?;
    assert_eq!((found.status.success(), String::from_utf8(found.stdout)?.as_str()), (true, "pressure lost\n"));
    let none = site.hfctl("web", &["--until", "2020-01-01T00:00:00Z", "--timestamps"])?.output()?;
    assert_eq!((none.status.success(), none.stdout.len()), (true, 0));
    let wrong = site.hfctl("web", &["--grep", "(("])?.output()?;
    let complaint = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(1) && complaint.contains("unclosed group"), "{complaint}");
    let nothing = site.hfctl("nonesuch", &[])?.output()?;
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("no container"), "{nothing:?}");

    // It goes on when its service is restarted, and says each line once.
    let mut reader = site.read("web", &["--follow", "--since", "1h"])?;
    reader.says("pressure 7 bar")?;
    site.project.compose(&["restart", "web"])?;
    until("the second life", SOON, || {
        let begins = reader.lines()?.iter().filter(|line| *line == "pressure 7 bar").count();
        ensure!(begins <= 2, "the beginning was told {begins} times");
        Ok((begins == 2).then_some(()))
    })?;

    // As many as may be at once, and one more.
    let others = (0..3).map(|_| site.read("web", &["--follow"])).collect::<Result<Vec<Reader>>>()?;
    for other in &others {
        other.says("still here")?;
    }
    let refused = site.hfctl("web", &["--follow"])?.output()?;
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && complaint.contains("at once"), "{complaint}");
    drop(others);
    until("room again", SOON, || Ok(site.hfctl("web", &[])?.output()?.status.success().then_some(())))?;

    // The end of the session is the end of it.
    ensure!(site.agent.stop()?.success());
    assert_eq!(reader.process.wait(SOON)?.code(), Some(1));
    reader.says("stopping")?;
    let offline = site.hfctl("web", &[])?.output()?;
    assert!(String::from_utf8_lossy(&offline.stderr).contains("no session"), "{offline:?}");

    // And the hub's end is one.
    site.agent.run()?;
    site.hub.online(&site.node)?;
    let mut reader = site.read("web", &["--follow"])?;
    reader.says("still here")?;
    assert!(site.hub.stop()?.success());
    reader.process.wait(SOON)?;
    reader.says("the hub stops")?;
    Ok(())
}

#[test]
fn a_log_is_read_searched_and_followed_through_restarts_on_sqlite() -> Result<()> {
    everyday(Hub::start()?, "logs-sqlite")
}

#[test]
fn a_log_is_read_searched_and_followed_through_restarts_on_postgresql() -> Result<()> {
    let database = Postgres::from_environment()?.database()?;
    everyday(Hub::builder().set("database", database.url()).start()?, "logs-postgresql")
}

#[test]
fn a_reader_of_a_service_with_more_containers_than_are_read_at_once_is_told() -> Result<()> {
    let site = Site::start(Hub::start()?, "logs-many", |agent| agent)?;
    site.project.compose(&["up", "--detach", "--no-recreate", "--scale", "web=9", "web"])?;
    let said = String::from_utf8(site.hfctl("web", &["--grep", "7 bar"])?.output()?.stdout)?;
    assert_eq!(said.matches("pressure 7 bar").count(), 8, "{said}");
    assert_eq!(said.matches("--- only 8 of the 9 containers of logs-many/web are read ---").count(), 1, "{said}");

    // Also when there are more by and by.
    let reader = site.read("web", &["--follow"])?;
    reader.says("--- only 8 of the 9 ")?;
    site.project.compose(&["up", "--detach", "--no-recreate", "--scale", "web=11", "web"])?;
    reader.says("--- only 8 of the 11 ")?;
    Ok(())
}

#[test]
fn a_log_that_the_owner_keeps_to_themselves_is_refused_by_the_agent_and_audited_at_the_hub() -> Result<()> {
    let site = Site::start(Hub::start()?, "logs-refused", |agent| agent.set("commands-projects", "other"))?;
    let refused = site.hfctl("web", &["--follow"])?.output()?;
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(3) && complaint.contains("leaves the project"), "{complaint}");
    assert!(refused.stdout.is_empty());
    let audit = site.entries("tail.refused")?;
    assert_eq!(audit.len(), 1, "{audit:?}");
    assert_eq!(audit[0]["actor"], format!("node:{}", site.node));
    Ok(())
}

/// Waits until an element's text holds `wanted`.
async fn shows(browser: &Browser, element: &str, wanted: &str) -> Result<()> {
    until_async(&format!("#{element} to show {wanted:?}"), SOON, async || {
        let text = browser.find(By::Id(element)).await?.text().await?;
        ensure!(text.contains(wanted), "it shows {text:?}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn a_log_is_followed_paused_and_searched_on_the_dashboard_by_keys() -> Result<()> {
    let site = Site::start(Hub::start()?, "logs-dashboard", |agent| agent)?;
    let browser = Browser::start().await?;
    browser.goto(site.hub.sign_in_link()?).await?;
    browser.find(By::Css("form button[type=submit]")).await?.click().await?;
    until_async("the fleet", SOON, async || Ok(browser.find(By::Id("view")).await.ok().map(drop))).await?;
    browser.goto(format!("{}/nodes/{}", site.hub.endpoints().http, site.node)).await?;
    browser.find(By::Css(format!("tr[id='s-{}/web/1'] a[href*='/logs?']", site.project.name()))).await?.click().await?;
    shows(&browser, "logs-lines", "pressure 7 bar").await?;
    shows(&browser, "logs-lines", "still here").await?;
    shows(&browser, "logs-state", "lines").await?;
    let keys = async |keys: &str| browser.find(By::Id("logs-lines")).await?.send_keys(keys).await;
    keys("p").await?;
    shows(&browser, "logs-state", "paused").await?;
    keys("p").await?;
    // What has an end comes to it, also while nobody looks; and then there is something to press.
    keys("p").await?;
    shows(&browser, "logs-state", "paused").await?;
    browser.find(By::Id("logs-until")).await?.send_keys("1ms".to_owned() + Key::Enter).await?;
    shows(&browser, "logs-state", "more to come. Ended").await?;
    keys("p").await?;
    shows(&browser, "logs-lines", "still here").await?;
    let last = browser.find(By::Css("#logs-lines li:last-child")).await?.text().await?;
    assert_eq!(last, "The end of the log.");
    browser.find(By::Id("logs-until")).await?.clear().await?;
    browser.find(By::Id("logs-reason")).await?.send_keys("line 2 stands still").await?;
    keys("/").await?;
    browser.find(By::Id("logs-grep")).await?.send_keys("pressure l".to_owned() + Key::Enter).await?;
    shows(&browser, "logs-state", "1 line").await?;
    let found = browser.find(By::Id("logs-lines")).await?.text().await?;
    assert!(found.contains("pressure lost") && !found.contains("7 bar"), "{found}");
    for view in View::ALL {
        browser.look(view).await?;
        let over = browser.overflow().await?;
        ensure!(over <= 0, "the page is {over} pixels wider than a window of {}", view.width);
    }
    // What is kept of it is searched from here: nothing, for its agent ships nothing.
    keys("s").await?;
    browser.find(By::Id("kept-reason")).await?.send_keys("it stood still").await?;
    browser.find(By::Id("kept-text")).await?.send_keys("pressure".to_owned() + Key::Enter).await?;
    shows(&browser, "view", "Nothing found").await?;
    browser.find(By::Tag("body")).await?.send_keys("/").await?;
    let asked = browser.find(By::Css("#kept-text:focus")).await?.value().await?;
    assert_eq!(asked.as_deref(), Some("pressure"), "the key / leads to the search");
    for view in View::ALL {
        browser.look(view).await?;
        let over = browser.overflow().await?;
        ensure!(over <= 0, "the page is {over} pixels wider than a window of {}", view.width);
    }
    let complaints = browser.complaints().await?;
    ensure!(complaints.is_empty(), "{complaints:?}");
    let (read, searched) = (site.entries("tail.started")?, site.entries("logs.searched")?);
    let why = |entry: &Value| entry["detail"]["reason"].as_str().map(str::to_owned);
    assert!(read.len() >= 2 && why(&read[0]).as_deref() == Some("line 2 stands still"), "{read:?}");
    assert_eq!((searched.len(), why(&searched[0]).as_deref()), (1, Some("it stood still")), "{searched:?}");
    browser.quit().await
}
