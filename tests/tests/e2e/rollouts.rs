//! A rollout over 500 nodes on a real hub that is killed again and again: the wave that gets unwell halts it, the rest is
//! untouched, and nobody is commanded twice.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::fleet::{self, Begun, Fleet, Options, Tokens};
use hyperfactory_tests::rig::{Hub, HubBuilder, Postgres, binary, until};
use protocol::CommandId;
use protocol::message::ServiceHealth;
use serde_json::{Value, json};

const NODES: usize = 500;
/// The first wave, and the first and second one.
const REACH: [usize; 2] = [5, 100];
/// Only a failure takes so long.
const PATIENCE: Duration = Duration::from_secs(180);

/// How often each command was begun, by the nodes' own account.
type Tally = Arc<Mutex<HashMap<CommandId, usize>>>;

fn sick_wave(mut hub: Hub) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    hub.tenant("acme")?;
    let stores = fleet::identity_stores(None, NODES);
    let api = fleet::Api::new(&hub.endpoints().http, hub.api().token().context("no token")?);
    runtime.block_on(fleet::enroll(&stores, &Tokens::from_api(api, vec!["acme".into()])))?;
    let tally = Tally::default();
    let begun = {
        let tally = Arc::clone(&tally);
        Begun(Arc::new(move |id| *lock(&tally).entry(id).or_default() += 1))
    };
    let options = Options { series: 40, begun: Some(begun), ..Options::default() };
    let fleet = runtime.block_on(async { Fleet::start(&options, &stores) })?;
    ensure!(runtime.block_on(fleet.wait_for_sessions(NODES, PATIENCE)), "{} sessions", fleet.up());
    let by_id: HashMap<String, usize> =
        fleet.nodes().iter().enumerate().map(|(place, node)| (node.id().to_string(), place)).collect();
    until("the nodes to be well", PATIENCE, || {
        let page = hub.api().get("/api/v1/nodes?limit=500&state=online")?.ok()?;
        let nodes = page["items"].as_array().context("no nodes")?;
        Ok((nodes.len() == NODES && nodes.iter().all(|node| node["service_counts"]["total"] != json!(0))).then_some(()))
    })?;

    let asked = json!({
        "command": { "action": "drain", "reason": "a new image", "target": { "tenant": "acme" } },
        "waves": [REACH[0].to_string(), REACH[1].to_string(), "100%"],
        "soak_seconds": 4,
    });
    let started = hub.api().post("/api/v1/rollouts", &asked)?.ok()?;
    let path = format!("/api/v1/rollouts/{}", started["id"]);
    let id = started["id"].to_string();
    // Whoever watches it from the beginning is told of its end, however often the hub is killed meanwhile.
    let mut watching = hfctl(&hub, &["rollout", "watch", &id])?;
    let mut watching = watching.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // Who finds no hub at the beginning does not wait for one.
    let mut lines = BufReader::new(watching.stdout.take().context("no output")?);
    ensure!(lines.read_line(&mut String::new())? > 0, "the rollout is not shown");
    killed(&mut hub)?;
    let second = wave_of(&hub, &path, 2)?;
    assert_eq!(second.len(), REACH[1] - REACH[0]);
    comes_to(&hub, &path, "wave 2 to be done", |rollout| {
        rollout["waves"][1]["counts"]["succeeded"] == json!(second.len()) && rollout["wave"] == json!(2)
    })?;
    // Not the nodes' word on the command, which is that it is done: what they are like afterwards.
    runtime.block_on(async {
        for node in &second {
            if let Some(node) = by_id.get(node).and_then(|place| fleet.nodes().get(*place)) {
                node.set_health(0, ServiceHealth::Unhealthy).await;
            }
        }
    });
    let halted = comes_to(&hub, &path, "it to halt", |rollout| rollout["state"] == "halted")?;
    let why = halted["why"].as_str().context("no reason")?.to_owned();
    assert!(why.contains("in wave 2") && why.contains("were well before and are not now"), "{why}");
    killed(&mut hub)?;
    assert_eq!(hub.api().get(&path)?.ok()?["why"], json!(why), "whoever looks later is told the same");
    let audit = hub.api().get("/api/v1/audit?action=rollout.halted")?.ok()?;
    assert_eq!(audit["items"][0]["detail"]["reason"], json!(why));
    let page = page(&hub, &format!("/rollouts/{}", started["id"]))?;
    assert!(page.contains("Holds itself") && page.contains("In wave 2"), "{page}");
    assert!(page.contains("Untouched"), "{page}");
    assert_eq!(halted["waves"][2]["counts"]["pending"], json!(NODES - REACH[1]), "the rest is untouched");
    assert_eq!(lock(&tally).len(), REACH[1], "also by the nodes' own account");

    let watched = watching.wait_with_output()?;
    let said = String::from_utf8_lossy(&watched.stderr).into_owned();
    assert!(watched.status.code() == Some(1) && said.contains(&why), "{said}");
    let resumed = hfctl(&hub, &["rollout", "resume", &id, "--reason", "the check is wrong"])?.output()?;
    assert!(resumed.status.success(), "{resumed:?}");
    comes_to(&hub, &path, "wave 3", |rollout| rollout["wave"] == json!(3))?;
    killed(&mut hub)?;
    comes_to(&hub, &path, "all to be done", |rollout| rollout["state"] == "done")?;
    let tally = lock(&tally).clone();
    assert_eq!(tally.len(), NODES);
    assert!(tally.values().all(|times| *times == 1), "a command was begun twice: {tally:?}");
    let mut commanded: HashMap<String, usize> = HashMap::new();
    for id in tally.keys() {
        let command = hub.api().get(&format!("/api/v1/commands/{id}"))?.ok()?;
        *commanded.entry(command["node"].as_str().context("no node")?.to_owned()).or_default() += 1;
    }
    assert!(commanded.len() == NODES && commanded.values().all(|times| *times == 1), "a node was commanded twice");
    runtime.block_on(fleet.stop(PATIENCE));
    assert!(hub.stop()?.success());
    Ok(())
}

fn lock(tally: &Tally) -> std::sync::MutexGuard<'_, HashMap<CommandId, usize>> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

fn killed(hub: &mut Hub) -> Result<()> {
    hub.kill()?;
    hub.restart()
}

/// The rollout, once it is so.
fn comes_to(hub: &Hub, path: &str, what: &str, so: impl Fn(&Value) -> bool) -> Result<Value> {
    until(what, PATIENCE, || {
        let rollout = hub.api().get(path)?.ok()?;
        ensure!(so(&rollout), "it is {rollout}");
        Ok(Some(rollout))
    })
}

/// The nodes of a wave, by id.
fn wave_of(hub: &Hub, path: &str, wave: u32) -> Result<Vec<String>> {
    let nodes = hub.api().get(&format!("{path}/nodes?limit=500"))?.ok()?;
    let nodes = nodes["items"].as_array().context("no nodes")?;
    let of_wave = nodes.iter().filter(|node| node["wave"] == json!(wave));
    Ok(of_wave.filter_map(|node| node["node"].as_str().map(str::to_owned)).collect())
}

/// A page of the dashboard, as whoever signs in by a link sees it.
fn page(hub: &Hub, path: &str) -> Result<String> {
    let base = &hub.endpoints().http;
    let link = hub.sign_in_link()?;
    let code = link.rsplit('=').next().context("a link without a code")?;
    let agent: ureq::Agent = ureq::Agent::config_builder().max_redirects(0).http_status_as_error(false).build().into();
    let signed_in = agent.post(format!("{base}/sign-in")).send_form([("code", code)])?;
    let cookie = signed_in.headers().get("set-cookie").context("no cookie")?.to_str()?;
    let cookie = cookie.split(';').next().unwrap_or_default().to_owned();
    Ok(agent.get(format!("{base}{path}")).header("cookie", &cookie).call()?.body_mut().read_to_string()?)
}

fn hfctl(hub: &Hub, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary("hfctl")?);
    command.env("HYPERFACTORY_HFCTL_URL", &hub.endpoints().http);
    command.env("HYPERFACTORY_HFCTL_TOKEN", hub.api().token().context("no token")?);
    command.args(arguments);
    Ok(command)
}

fn hub() -> HubBuilder {
    Hub::builder().set("enrollments-per-second", "100000").set("enrollments-per-source", "100000")
}

#[test]
fn a_wave_that_gets_unwell_halts_a_rollout_over_500_nodes_on_sqlite() -> Result<()> {
    sick_wave(hub().start()?)
}

#[test]
fn a_wave_that_gets_unwell_halts_a_rollout_over_500_nodes_on_postgresql() -> Result<()> {
    let database = Postgres::from_environment()?.database()?;
    sick_wave(hub().set("database", database.url()).start()?)
}
