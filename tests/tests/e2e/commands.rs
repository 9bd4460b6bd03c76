//! Commands to real services on a real engine: done once, however often something is killed, and told truly.

mod bundle;
mod hostile;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::ordeal::{self, Plan};
use hyperfactory_tests::rig::{Agent, Engine, Hub, Postgres, Project, SOON, binary, until};
use serde_json::{Value, json};

const SERVICES: &str = r#"
services:
  web:
    image: IMAGE
    command: ["sh", "-c", "echo pressure 7 bar; exec sleep infinity"]
    network_mode: none
    pull_policy: never
    stop_signal: SIGKILL
  # Takes its time to stop: it is killed by the engine after three seconds.
  slow:
    image: IMAGE
    command: ["sh", "-c", "trap '' TERM; while true; do sleep 0.1; done"]
    network_mode: none
    pull_policy: never
    stop_grace_period: 3s
  backup:
    image: IMAGE
    command: ["sh", "-c", "echo 3 tables; exit 0"]
    network_mode: none
    pull_policy: never
    labels: {com.hyperfactory.backup: "true"}
"#;

/// A hub, an agent with a session, and a stack.
struct Site {
    hub: Hub,
    agent: Agent,
    engine: Engine,
    project: Project,
    node: String,
}

impl Site {
    fn start(hub: Hub, name: &str, set: impl FnOnce(Agent) -> Agent) -> Result<Self> {
        let engine = Engine::from_environment()?;
        let project = engine.project(name, SERVICES)?;
        project.up()?;
        hub.tenant("acme")?;
        let agent = set(Agent::create()?.watch(&engine).set("interval", "1s")).join(&hub, "acme")?;
        let node = agent.node()?;
        hub.online(&node)?;
        Ok(Self { hub, agent, engine, project, node })
    }

    /// Asks for something; gives the command's id.
    fn ask(&self, action: &str, service: Option<&str>, more: Value) -> Result<String> {
        let mut asked = json!({
            "action": action,
            "target": { "nodes": [self.node] },
            "reason": "a test",
            "stack": service.map(|_| self.project.name()),
            "service": service,
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            asked[key] = value.clone();
        }
        let made = self.hub.api().post("/api/v1/commands", &asked)?.ok()?;
        Ok(made["commands"][0]["id"].as_str().context("no command")?.to_owned())
    }

    fn cancel(&self, id: &str) -> Result<()> {
        self.hub.api().post(&format!("/api/v1/commands/{id}/cancel"), &json!({ "reason": "a test" }))?.ok().map(drop)
    }

    fn command(&self, id: &str) -> Result<Value> {
        self.hub.api().get(&format!("/api/v1/commands/{id}"))?.ok()
    }

    /// The command once it stands so.
    fn comes_to(&self, id: &str, state: &str) -> Result<Value> {
        let mut last = Value::Null;
        until(&format!("{id} to be {state}"), SOON, || {
            last = self.command(id)?;
            ensure!(last["state"] == state, "it is {last}");
            Ok(Some(last.clone()))
        })
    }

    fn started_at(&self, service: &str) -> Result<String> {
        let inspected = self.engine.inspect(&self.project.container(service)?)?;
        Ok(inspected["State"]["StartedAt"].as_str().context("no start")?.to_owned())
    }

    /// How often the engine was told to restart a service: its own record of it.
    fn restarts(&self, service: &str, since: &str) -> Result<usize> {
        let container = format!("container={}", self.project.container(service)?);
        let now = self.engine.run(&["info", "--format", "{{.SystemTime}}"])?;
        let arguments =
            ["events", "--since", since, "--until", now.trim(), "--filter", "event=restart", "--filter", &container];
        Ok(self.engine.run(&arguments)?.lines().count())
    }

    fn engine_time(&self) -> Result<String> {
        Ok(self.engine.run(&["info", "--format", "{{.SystemTime}}"])?.trim().to_owned())
    }
}

fn everyday(hub: Hub, name: &str) -> Result<()> {
    let planted = "hfj_planted-secret-that-nobody-may-see";
    let mut site = Site::start(hub, name, |agent| agent)?;
    let (before, since) = (site.started_at("web")?, site.engine_time()?);

    let restart = site.ask("service.restart", Some("web"), json!({}))?;
    let done = site.comes_to(&restart, "succeeded")?;
    assert_ne!(site.started_at("web")?, before);
    assert_eq!(site.restarts("web", &since)?, 1);
    let output = done["output"].as_str().context("no output")?;
    assert!(output.contains("restarted, running since"), "{output}");
    assert_eq!((&done["told"], &done["requested_by"]), (&json!(true), &json!("operator:rig")));

    let logs = site.ask("service.logs", Some("web"), json!({ "lines": 5 }))?;
    let logs = site.comes_to(&logs, "succeeded")?;
    assert!(logs["output"].as_str().is_some_and(|said| said.contains("pressure 7 bar")), "{logs}");

    // By default the owner of the machine does not have services stopped.
    let stop = site.ask("service.stop", Some("web"), json!({}))?;
    let refused = site.comes_to(&stop, "failed")?;
    assert_eq!(refused["refused"], json!(true));
    assert!(refused["message"].as_str().is_some_and(|said| said.contains("agent.toml")), "{refused}");
    let audit = site.hub.api().get("/api/v1/audit?action=command.refused")?.ok()?;
    assert_eq!(audit["items"][0]["subject"], json!(stop), "{audit}");

    let nothing = site.ask("service.restart", Some("nonesuch"), json!({}))?;
    let nothing = site.comes_to(&nothing, "failed")?;
    assert!(nothing["message"].as_str().is_some_and(|said| said.contains("no container")), "{nothing}");

    let backup = site.ask("backup", None, json!({ "stack": site.project.name() }))?;
    let backup = site.comes_to(&backup, "succeeded")?;
    assert!(backup["output"].as_str().is_some_and(|said| said.contains("3 tables")), "{backup}");

    // More often than configured, and less often.
    for (action, more) in [
        ("drain", json!({})),
        ("telemetry.interval", json!({ "interval_ms": 200 })),
        ("telemetry.interval", json!({ "interval_ms": 5_000 })),
        ("certificate.renew", json!({})),
    ] {
        let id = site.ask(action, None, more)?;
        site.comes_to(&id, "succeeded").with_context(|| action.to_owned())?;
    }

    // Asked for while the node is away, with a secret in its configuration.
    ensure!(site.agent.stop()?.success());
    let waiting = site.ask("diagnostics", None, json!({}))?;
    assert_eq!(site.command(&waiting)?["state"], "queued");
    let agent = std::mem::replace(&mut site.agent, Agent::create()?);
    site.agent = agent.set("token", planted);
    site.agent.run()?;
    let bundle = site.comes_to(&waiting, "succeeded")?;
    let text = bundle["output"].as_str().context("no output")?;
    for part in [
        "== versions ==",
        "hyperfactory-agent",
        "== configuration ==",
        "== checks ==",
        "Up ",
        "== log ==",
        "session up",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("planted"), "{text}");
    assert!(site.agent.stop()?.success());
    assert!(site.hub.stop()?.success());
    Ok(())
}

#[test]
fn a_real_service_is_restarted_and_read_and_what_the_owner_forbids_is_refused_on_sqlite() -> Result<()> {
    everyday(Hub::start()?, "commands-sqlite")
}

#[test]
fn a_real_service_is_restarted_and_read_and_what_the_owner_forbids_is_refused_on_postgresql() -> Result<()> {
    let database = Postgres::from_environment()?.database()?;
    everyday(Hub::builder().set("database", database.url()).start()?, "commands-postgresql")
}

#[test]
fn a_real_service_is_stopped_and_started_where_its_owner_allows_it() -> Result<()> {
    let site = Site::start(Hub::start()?, "commands-stop", |agent| {
        agent.set("commands-accept", "service.start,service.stop")
    })?;
    let runs = || -> Result<bool> {
        let inspected = site.engine.inspect(&site.project.container("web")?)?;
        Ok(inspected["State"]["Running"] == true)
    };
    let done = |action: &str, said: &str| -> Result<()> {
        let id = site.ask(action, Some("web"), json!({}))?;
        let done = site.comes_to(&id, "succeeded")?;
        ensure!(done["output"].as_str().is_some_and(|output| output.contains(said)), "{done}");
        Ok(())
    };
    let shown = |state: &str| {
        until(&format!("the service to be {state}"), SOON, || {
            let node = site.hub.node(&site.node)?;
            let web = node["services"].as_array().into_iter().flatten().find(|one| one["service"] == "web").cloned();
            Ok(web.filter(|web| web["state"] == state).map(drop))
        })
    };
    let before = site.started_at("web")?;
    // The second time there is nothing to do, which is as good.
    for _ in 0..2 {
        done("service.stop", "stopped\n")?;
        ensure!(!runs()?, "it still runs");
    }
    shown("exited")?;
    done("service.start", "started, running since")?;
    ensure!(runs()?, "it does not run");
    shown("running")?;
    let started = site.started_at("web")?;
    assert_ne!(started, before);
    done("service.start", "started, running since")?;
    assert_eq!(site.started_at("web")?, started, "what runs goes on");
    Ok(())
}

#[test]
fn a_restart_that_lost_its_agent_is_unknown_and_is_not_done_again() -> Result<()> {
    let mut site = Site::start(Hub::start()?, "commands-killed", |agent| agent)?;
    let since = site.engine_time()?;
    let restart = site.ask("service.restart", Some("slow"), json!({}))?;
    site.comes_to(&restart, "running")?;
    // The engine waits for the service to stop; nobody waits for the engine.
    site.agent.kill()?;
    site.hub.kill()?;
    site.hub.restart()?;
    site.agent.run()?;
    let unknown = site.comes_to(&restart, "unknown")?;
    assert_eq!(unknown["told"], json!(true), "the node's own word: {unknown}");
    // Later ones are carried out as ever, which also shows that the first is not.
    let later = site.ask("service.restart", Some("web"), json!({}))?;
    site.comes_to(&later, "succeeded")?;
    let twice = site.restarts("slow", &since)?;
    assert!(twice <= 1, "restarted {twice} times");
    Ok(())
}

#[test]
fn clocks_that_are_a_day_off_change_no_deadline() -> Result<()> {
    let mut site = Site::start(Hub::start()?, "commands-clock", |agent| agent)?;
    ensure!(site.agent.stop()?.success());
    let waiting = site.ask("service.restart", Some("web"), json!({ "valid_for_seconds": 600 }))?;
    // The hub comes back with a clock that has jumped, the agent with another. (Backwards, certificates are not valid yet.)
    site.hub.kill()?;
    site.hub.set_clock(Some("+20h"))?;
    site.hub.restart()?;
    assert_eq!(site.command(&waiting)?["state"], "queued", "not expired by a clock that jumped");
    site.agent.set_clock(Some("+30h"))?;
    site.agent.run()?;
    site.comes_to(&waiting, "succeeded")?;
    let late = site.ask("service.restart", Some("web"), json!({ "valid_for_seconds": 60 }))?;
    site.comes_to(&late, "succeeded")?;
    Ok(())
}

#[test]
fn a_script_is_run_when_the_owner_has_named_it_and_else_refused() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("rotate.sh");
    std::fs::write(&script, "#!/bin/sh\necho rotated by $HYPERFACTORY_COMMAND\nexit ${FAIL:-0}\n")?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    let scripts = format!("{{ rotate = {:?} }}", script.display().to_string());
    let site = Site::start(Hub::start()?, "commands-script", |agent| {
        agent.set("commands-scripts", scripts).set("commands-accept", "service.logs")
    })?;
    let run = site.ask("script", None, json!({ "script": "rotate" }))?;
    let done = site.comes_to(&run, "succeeded")?;
    assert_eq!(done["output"], json!(format!("rotated by {run}\n")));
    for (action, more) in [("script", json!({ "script": "other" })), ("drain", json!({}))] {
        let id = site.ask(action, None, more)?;
        assert_eq!(site.comes_to(&id, "failed")?["refused"], json!(true), "{action}");
    }
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o777))?;
    let unsafe_now = site.ask("script", None, json!({ "script": "rotate" }))?;
    let failed = site.comes_to(&unsafe_now, "failed")?;
    assert!(failed["message"].as_str().is_some_and(|said| said.contains("chmod go-w")), "{failed}");
    Ok(())
}

#[test]
fn a_script_that_is_cancelled_cleans_up_and_what_it_says_meanwhile_is_kept() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir()?;
    let (tidy, deaf) = (folder.path().join("tidy.sh"), folder.path().join("deaf.sh"));
    let lock = folder.path().join("lock");
    let waits = "touch lock\necho begun\nwhile true; do sleep 0.1; done\n";
    let body = |trap: &str| format!("#!/bin/sh\ncd {}\n{trap}\n{waits}", folder.path().display());
    std::fs::write(&tidy, body("trap 'echo stopping; echo still >&2; rm lock; echo gone; exit 0' TERM"))?;
    std::fs::write(&deaf, body("trap 'echo no' TERM"))?;
    for script in [&tidy, &deaf] {
        std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755))?;
    }
    let scripts = format!("{{ tidy = {:?}, deaf = {:?} }}", tidy.display().to_string(), deaf.display().to_string());
    let site = Site::start(Hub::start()?, "commands-cancelled", |agent| agent.set("commands-scripts", scripts))?;
    let cancelled = |name: &str| -> Result<Value> {
        let id = site.ask("script", None, json!({ "script": name }))?;
        until("the script to begin", SOON, || Ok(lock.exists().then_some(())))?;
        site.cancel(&id)?;
        site.comes_to(&id, "cancelled")
    };
    let cleaned = cancelled("tidy")?;
    let said = cleaned["output"].as_str().context("no output")?;
    assert!(said.starts_with("begun\n"), "{said:?}");
    for line in ["stopping", "still", "gone"] {
        assert!(said.lines().any(|said| said == line), "{line} is not in {said:?}");
    }
    assert!(!lock.exists(), "it has cleaned up");
    let killed = cancelled("deaf")?;
    let said = killed["output"].as_str().context("no output")?;
    assert!(said.starts_with("begun\n") && said.lines().any(|line| line == "no"), "{said:?}");
    Ok(())
}

#[test]
fn a_backup_that_is_cancelled_or_takes_too_long_is_stopped() -> Result<()> {
    const ENDLESS: &str = r#"
services:
  backup:
    image: IMAGE
    command: ["sh", "-c", "echo table 1; exec sleep infinity"]
    network_mode: none
    pull_policy: never
    stop_signal: SIGKILL
    labels: {com.hyperfactory.backup: "true"}
"#;
    let site = Site::start(Hub::start()?, "commands-backup", |agent| agent.set("commands-backup-within", "12s"))?;
    let endless = site.engine.project("commands-endless", ENDLESS)?;
    endless.compose(&["create"])?;
    let container = endless.container("backup")?;
    let runs = || -> Result<bool> { Ok(site.engine.inspect(&container)?["State"]["Running"] == true) };
    let backup = || -> Result<String> {
        let id = site.ask("backup", None, json!({ "stack": endless.name() }))?;
        until("the backup to run", SOON, || Ok(runs()?.then_some(())))?;
        Ok(id)
    };
    let cancelled = backup()?;
    site.cancel(&cancelled)?;
    let cancelled = site.comes_to(&cancelled, "cancelled")?;
    assert!(cancelled["message"].as_str().is_some_and(|said| said.contains("is not whole")), "{cancelled}");
    assert!(!runs()?, "it is stopped");
    let late = backup()?;
    let late = site.comes_to(&late, "failed")?;
    let said = late["message"].as_str().context("no message")?;
    assert!(said.contains("was stopped after 12s") && said.contains("backup-within"), "{said}");
    assert!(!runs()?, "it is stopped");
    Ok(())
}

#[test]
fn a_hub_alone_cannot_have_done_what_takes_an_operators_signature() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (ann, bob) = (folder.path().join("ann"), folder.path().join("bob"));
    let hub = Hub::start()?;
    let (base, token) = (hub.endpoints().http.clone(), hub.api().token().context("no token")?.to_owned());
    let hfctl = |arguments: &[&str]| -> Result<std::process::Output> {
        let mut command = std::process::Command::new(binary("hfctl")?);
        command.env("HYPERFACTORY_HFCTL_URL", &base).env("HYPERFACTORY_HFCTL_TOKEN", &token);
        Ok(command.args(arguments).output()?)
    };
    let key = |file: &std::path::Path| -> Result<String> {
        let made = hfctl(&["operator-key", "create", file.to_str().context("a path")?])?;
        ensure!(made.status.success(), "{made:?}");
        Ok(String::from_utf8(made.stdout)?.trim().to_owned())
    };
    let (pinned, _) = (key(&ann)?, key(&bob)?);
    for (file, name) in [(&ann, "ann"), (&bob, "bob")] {
        let file = file.to_str().context("a path")?;
        let registered = hfctl(&["operator-key", "register", file, "--name", name, "--reason", "a test"])?;
        ensure!(registered.status.success(), "{registered:?}");
    }
    let site = Site::start(hub, "commands-signed", |agent| {
        agent
            .set("commands-accept", "service.restart,service.stop")
            .set("commands-require-signature", "service.restart")
            .set("commands-operators", pinned)
    })?;
    let before = site.started_at("web")?;
    let unsigned = site.ask("service.restart", Some("web"), json!({}))?;
    let refused = site.comes_to(&unsigned, "failed")?;
    assert!(refused["message"].as_str().is_some_and(|said| said.contains("--sign-with")), "{refused}");

    let service = format!("{}/web", site.project.name());
    let restart = |file: &std::path::Path| {
        let file = file.to_str().context("a path")?;
        hfctl(&["service", "restart", &service, "--node", &site.node, "--reason", "a test", "--sign-with", file])
    };
    let strange = restart(&bob)?;
    let said = String::from_utf8_lossy(&strange.stderr).into_owned();
    assert!(strange.status.code() == Some(3) && said.contains("does not know the key"), "{said}");
    assert_eq!(site.started_at("web")?, before, "nothing has happened so far");
    let done = restart(&ann)?;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_ne!(site.started_at("web")?, before);
    let audit = site.hub.api().get("/api/v1/audit?action=command.refused")?.ok()?;
    assert_eq!(audit["items"].as_array().map(Vec::len), Some(2), "{audit}");
    Ok(())
}

/// Thousands of commands through kills of hub, nodes and agent, on a network that loses and doubles.
fn through_faults(seed: u64, database: Option<&str>) -> Result<()> {
    let outcome = ordeal::run(&Plan { commands: 5_000, herds: 3, herd: 20, rounds: 10, seed }, database)?;
    assert!(outcome.commands >= 5_000);
    assert_eq!((outcome.twice, outcome.lost, outcome.untrue, outcome.strange), (0, 0, 0, 0), "{outcome:#?}");
    assert!(outcome.hub_kills > 0 && outcome.herd_kills > 0 && outcome.agent_kills > 0, "{outcome:#?}");
    assert!(outcome.deaf > 0 && outcome.datagrams_doubled > 0 && outcome.came_again > 0, "{outcome:#?}");
    let ended = |state| outcome.states.get(state).copied().unwrap_or(0);
    assert!(ended("succeeded") > 2_500 && ended("failed") > 0 && ended("cancelled") > 0, "{outcome:#?}");
    Ok(())
}

#[test]
fn of_5000_commands_through_kills_and_lost_acknowledgements_none_is_done_twice_or_lost_on_sqlite() -> Result<()> {
    through_faults(1, None)
}

#[test]
fn of_5000_commands_through_kills_and_lost_acknowledgements_none_is_done_twice_or_lost_on_postgresql() -> Result<()> {
    let database = Postgres::from_environment()?.database()?;
    through_faults(2, Some(database.url()))
}
