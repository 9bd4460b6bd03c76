//! The example of a socket proxy, with a real engine behind it: the agent does all it does through it, and nothing else
//! passes.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Agent, Engine, Hub, Process, SOON, binary, until};
use serde_json::{Value, json};

const SERVICES: &str = r#"
services:
  web:
    image: IMAGE
    command: ["sh", "-c", "echo pressure 7 bar; exec sleep infinity"]
    network_mode: none
    pull_policy: never
    stop_signal: SIGKILL
  backup:
    image: IMAGE
    command: ["sh", "-c", "sleep 1; echo 3 tables"]
    network_mode: none
    pull_policy: never
    labels: {com.hyperfactory.backup: "true"}
"#;

/// Any group: its members may connect to the proxy.
const GROUP: u32 = 48_151;

/// What whoever holds the engine's socket would try.
const REFUSED: [(&str, &str); 30] = [
    ("POST", "/v1.41/containers/create"),
    ("POST", "/containers/create?name=x"),
    ("POST", "/v1.41/containers/CONTAINER/exec"),
    ("POST", "/v1.41/exec/0/start"),
    ("POST", "/v1.41/containers/CONTAINER/kill"),
    ("POST", "/v1.41/containers/CONTAINER/attach"),
    ("POST", "/v1.41/containers/CONTAINER/update"),
    ("DELETE", "/v1.41/containers/CONTAINER?force=1"),
    ("GET", "/v1.41/containers/CONTAINER/archive?path=/etc"),
    ("PUT", "/v1.41/containers/CONTAINER/archive?path=/etc"),
    ("GET", "/v1.41/containers/CONTAINER/export"),
    ("GET", "/v1.41/containers/CONTAINER/../CONTAINER/export?/json"),
    ("GET", "/v1.41/containers/CONTAINER%2fexport%3f/json"),
    ("GET", "/v1.41/images/../containers/CONTAINER/archive"),
    ("POST", "/v1.41/images/create?fromImage=x"),
    ("POST", "/v1.41/build"),
    ("GET", "/v1.41/secrets"),
    ("GET", "/v1.41/volumes"),
    ("POST", "/v1.41/volumes/create"),
    ("POST", "/v1.41/networks/create"),
    ("POST", "/v1.41/swarm/init"),
    // What passes, by another method, with more behind or before it, or on a way that leads elsewhere.
    ("POST", "/v1.41/containers/json"),
    ("POST", "/v1.41/containers/CONTAINER/json"),
    ("GET", "/v1.41/containers/CONTAINER/stop"),
    ("POST", "/v1.41/info"),
    ("DELETE", "/v1.41/images/busybox/json"),
    ("POST", "/v1.41/containers/CONTAINER/startle"),
    ("GET", "/v1.41/containers/CONTAINER/logs/all"),
    ("GET", "/x/v1.41/containers/json"),
    ("GET", "/v1.41/images/../containers/json"),
];

/// The status that the answer to a request begins with.
fn status(socket: &Path, method: &str, target: &str) -> Result<u16> {
    let mut connection = UnixStream::connect(socket)?;
    connection.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(connection, "{method} {target} HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    let mut answer = [0; 12];
    connection.read_exact(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    answer
        .strip_prefix("HTTP/1.1 ")
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("{answer:?} is no status"))
}

/// The example's folder.
fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/socket-proxy")
}

#[test]
fn the_agent_does_all_it_does_through_the_socket_proxy_and_nothing_else_passes() -> Result<()> {
    let engine = Engine::from_environment()?;
    let project = engine.project("proxied", SERVICES)?;
    project.up()?;
    // As packaging/tmpfiles makes it, for some group that is not the proxy's.
    let folder = tempfile::tempdir()?;
    chown(folder.path(), None, Some(GROUP))?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o2750))?;
    let socket = folder.path().join("docker.sock");
    let mut haproxy = Command::new("/usr/sbin/haproxy");
    haproxy
        .arg("-f")
        .arg(example().join("haproxy.cfg"))
        .env("HYPERFACTORY_ENGINE_SOCKET", engine.socket())
        .env("HYPERFACTORY_PROXY_SOCKET", &socket);
    let mut proxy = Process::start(&mut haproxy, &folder.path().join("haproxy.log"))?;
    until("the proxy's socket", SOON, || {
        proxy.check()?;
        Ok(socket.exists().then_some(()))
    })?;
    let made = fs::metadata(&socket)?;
    assert_eq!((made.gid(), made.mode() & 0o777), (GROUP, 0o660), "who may drive the engine");

    let mut hub = Hub::start()?;
    hub.tenant("acme")?;
    let address = format!("unix://{}", socket.display());
    let all = "service.start,service.stop,service.restart,service.logs,backup,diagnostics";
    let agent = Agent::create()?.set("docker-host", address).set("interval", "1s").set("commands-accept", all);
    let mut agent = agent.join(&hub, "acme")?;
    let node = agent.node()?;
    let service = || -> Result<Option<Value>> {
        let node = hub.node(&node)?;
        let all = node["services"].as_array().cloned().unwrap_or_default();
        Ok(all.into_iter().find(|one| one["stack"] == "proxied" && one["service"] == "web"))
    };
    until("the service with its figures and its image", SOON, || {
        let Some(web) = service()? else { return Ok(None) };
        Ok((web["state"] == "running" && web["memory"].is_number() && web["image_digest"] != "").then_some(()))
    })?;

    let state = || -> Result<Value> { Ok(engine.inspect(&project.container("web")?)?["State"].clone()) };
    let before = state()?["StartedAt"].clone();
    for (action, of, said) in [
        ("service.stop", Some("web"), "stopped"),
        ("service.start", Some("web"), "started, running since"),
        ("service.restart", Some("web"), "restarted, running since"),
        ("service.logs", Some("web"), "pressure 7 bar"),
        // It is waited for: what it says at its end is told.
        ("backup", None, "3 tables"),
        ("diagnostics", None, "proxied"),
    ] {
        let asked = json!({
            "action": action, "target": { "nodes": [node] }, "reason": "a test",
            "stack": (action != "diagnostics").then_some("proxied"), "service": of,
        });
        let made = hub.api().post("/api/v1/commands", &asked)?.ok()?;
        let id = made["commands"][0]["id"].as_str().context("no command")?.to_owned();
        let done = until(action, SOON, || {
            let command: Value = hub.api().get(&format!("/api/v1/commands/{id}"))?.ok()?;
            ensure!(command["state"] != "failed", "{command}");
            Ok((command["state"] == "succeeded").then_some(command))
        })?;
        assert!(done["output"].as_str().is_some_and(|output| output.contains(said)), "{done}");
        assert_eq!(state()?["Running"], json!(action != "service.stop"), "{action}");
    }
    assert_ne!(state()?["StartedAt"], before);

    // A log is followed, through a restart of its service.
    let (mut hfctl, read) = (Command::new(binary("hfctl")?), folder.path().join("hfctl.log"));
    hfctl.env("HYPERFACTORY_HFCTL_URL", &hub.endpoints().http);
    hfctl.env("HYPERFACTORY_HFCTL_TOKEN", hub.api().token().context("no token")?);
    let mut reader = Process::start(hfctl.args(["logs", "-f", "proxied/web", "--tail", "1", "--node", &node]), &read)?;
    let lines = |count: usize| {
        until(&format!("{count} lines"), SOON, || {
            let text = fs::read_to_string(&read)?;
            Ok((text.lines().filter(|line| line.contains("pressure 7 bar")).count() >= count).then_some(()))
        })
    };
    lines(1)?;
    project.compose(&["restart", "--timeout", "0", "web"])?;
    lines(2)?;
    reader.kill()?;

    let container = project.container("web")?;
    for (method, target) in REFUSED {
        let target = target.replace("CONTAINER", &container);
        assert_eq!(status(&socket, method, &target)?, 403, "{method} {target}");
    }
    assert_eq!(status(&socket, "GET", &format!("/v1.41/containers/{container}/json"))?, 200);
    // Nothing of that reached the engine.
    assert_eq!(engine.inspect(&container)?["State"]["Running"], true);

    assert!(agent.stop()?.success() && hub.stop()?.success());
    Ok(())
}

#[test]
fn the_example_of_a_socket_proxy_is_a_compose_file_without_privileges() -> Result<()> {
    let engine = Engine::from_environment()?;
    let file = example().join("compose.yaml");
    let file = file.to_str().context("not UTF-8")?;
    let stack: Value = serde_json::from_str(&engine.run(&["compose", "--file", file, "config", "--format", "json"])?)?;
    let proxy = &stack["services"]["socket-proxy"];
    assert_eq!((&proxy["cap_drop"], &proxy["read_only"]), (&json!(["ALL"]), &json!(true)), "{proxy}");
    let sockets = fs::read_to_string(example().join("haproxy.cfg"))?;
    for (variable, path) in proxy["environment"].as_object().context("no environment")? {
        assert!(sockets.contains(variable.as_str()), "{variable} is not used");
        let path = path.as_str().context("not a path")?;
        let mounted = proxy["volumes"].as_array().is_some_and(|all| {
            all.iter().any(|one| one["target"].as_str().is_some_and(|target| path.starts_with(target)))
        });
        assert!(mounted, "{path} is not there");
    }
    // The socket's folder is there after each boot as the agent's alone, or the proxy does not start.
    let folder = "/run/hyperfactory-docker";
    let mounts = proxy["volumes"].as_array().context("no volumes")?;
    let mount = mounts.iter().find(|one| one["source"] == folder).context("the socket's folder is not mounted")?;
    // Compose says what is the default by leaving it out, and which that is depends on its version.
    assert_ne!(mount["bind"]["create_host_path"], true, "{mount}");
    assert!(fs::read_to_string(file)?.contains("bind: {create_host_path: false}"));
    let made = fs::read_to_string(example().join("../../packaging/tmpfiles/hyperfactory.conf"))?;
    let wanted = ["d", folder, "2750", "root", "hyperfactory-agent", "-"];
    assert!(made.lines().any(|line| line.split_whitespace().eq(wanted)), "{made}");
    Ok(())
}
