//! What a newcomer sees: one command, a live machine, a clean end, and the same machine again.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Api, Process, SOON, binary, until};
use rustix::process::Signal;

struct Quickstart {
    process: Process,
    api: Api,
}

fn start(home: &Path, quic: &str, http: &str) -> Result<Quickstart> {
    let mut command = Command::new(binary("hyperfactory-hub")?);
    command
        .arg("quickstart")
        .arg("--agent")
        .arg(binary("hyperfactory-agent")?)
        .env("XDG_STATE_HOME", home)
        .env("HYPERFACTORY_HUB_QUIC_LISTEN", quic)
        .env("HYPERFACTORY_HUB_HTTP_LISTEN", http)
        .env("HYPERFACTORY_AGENT_HEALTH_LISTEN", "127.0.0.1:0")
        .env("HYPERFACTORY_AGENT_INTERVAL", "1s")
        .env("HYPERFACTORY_AGENT_DOCKER_HOST", "unix:///nonexistent/docker.sock");
    let mut process = Process::start_group(&mut command, &home.join("quickstart.log"))?;
    until("the sign-in link", SOON, || {
        process.check()?;
        let log = process.log();
        let printed = log.rsplit("starting the hub").next().unwrap_or_default();
        Ok(printed.contains("/sign-in?link=hfl_").then_some(()))
    })?;
    let file = std::fs::read_to_string(home.join("hyperfactory/quickstart/hfctl.toml"))?;
    let token = file.split('"').find(|part| part.starts_with("hft_")).context("no token for hfctl")?;
    let api = Api::new(format!("http://{http}")).with_token(token);
    Ok(Quickstart { process, api })
}

/// As a terminal does it: a signal to the whole group, and all of it ends in order.
fn ctrl_c(quickstart: &mut Quickstart) -> Result<()> {
    quickstart.process.signal(Signal::INT)?;
    let status = quickstart.process.wait(SOON)?;
    let log = quickstart.process.log();
    ensure!(status.success() && !log.contains("a second time"), "it ended with {status}: {log}");
    Ok(())
}

/// Waits until this machine is online, and gives its node's id.
fn live(quickstart: &Quickstart) -> Result<String> {
    until("this machine to be live", SOON, || {
        let page = quickstart.api.get("/api/v1/nodes")?.ok()?;
        let node = &page["items"][0];
        ensure!(node["presence"]["state"] == "online" && node["figures"]["cpu"].is_number(), "{page}");
        ensure!(page["items"].as_array().is_some_and(|items| items.len() == 1), "more than one node: {page}");
        Ok(node["id"].as_str().map(str::to_owned))
    })
}

#[test]
fn one_command_shows_this_machine_and_takes_up_where_it_was() -> Result<()> {
    let home = tempfile::tempdir()?;
    let quic = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let mut first = start(home.path(), &quic, &http)?;
    let node = live(&first)?;
    ctrl_c(&mut first)?;

    let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let mut again = start(home.path(), &quic, &http)?;
    assert_eq!(live(&again)?, node, "the same machine is the same node");
    let output = Command::new(binary("hfctl")?)
        .args(["node", "list", "--output", "json"])
        .env("XDG_STATE_HOME", home.path())
        .env("XDG_CONFIG_HOME", home.path())
        .output()?;
    ensure!(output.status.success(), "hfctl: {}", String::from_utf8_lossy(&output.stderr));
    let listed = String::from_utf8_lossy(&output.stdout);
    assert!(listed.contains(&node), "hfctl works without a login, on the hub's new port: {listed}");
    ctrl_c(&mut again)
}

#[test]
fn a_killed_hub_takes_its_agent_along() -> Result<()> {
    let home = tempfile::tempdir()?;
    let mut quickstart = start(home.path(), "127.0.0.1:0", "127.0.0.1:0")?;
    let file = home.path().join("hyperfactory/quickstart/agent/endpoints.json");
    let health = until("the agent's probes", SOON, || {
        let written: Option<serde_json::Value> =
            std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(written.and_then(|endpoints| Some(endpoints["health"].as_str()?.strip_prefix("http://")?.to_owned())))
    })?;
    TcpStream::connect(&health)?;
    quickstart.process.kill()?;
    until("the agent's end", SOON, || Ok(TcpStream::connect(&health).is_err().then_some(())))
}

#[test]
fn the_file_of_a_hub_in_use_is_not_read() -> Result<()> {
    let home = tempfile::tempdir()?;
    let own = home.path().join("hyperfactory/quickstart/hub.toml");
    std::fs::create_dir_all(own.parent().context("a file has a folder")?)?;
    std::fs::write(&own, "databse = \"sqlite:///nowhere\"\n")?;
    let output = Command::new(binary("hyperfactory-hub")?)
        .args(["quickstart", "--agent", "/nonexistent"])
        .env("XDG_STATE_HOME", home.path())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    ensure!(said.contains(own.to_str().unwrap_or_default()), "it reads a file of its own: {said}");
    Ok(())
}

#[test]
fn a_taken_port_is_named_with_what_to_do() -> Result<()> {
    let home = tempfile::tempdir()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let output = Command::new(binary("hyperfactory-hub")?)
        .args(["quickstart", "--agent"])
        .arg(binary("hyperfactory-agent")?)
        .env("XDG_STATE_HOME", home.path())
        .env("HYPERFACTORY_HUB_QUIC_LISTEN", "127.0.0.1:0")
        .env("HYPERFACTORY_HUB_HTTP_LISTEN", &address)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&address) && said.contains("HYPERFACTORY_HUB_HTTP_LISTEN"), "{said}");
    Ok(())
}

#[test]
fn a_demo_plant_delivers_its_first_data_and_takes_up_where_it_was() -> Result<()> {
    let home = tempfile::tempdir()?;
    let quic = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let mut quickstart = start(home.path(), &quic, &http)?;
    let mut bridge = None;
    for _ in 0..2 {
        let mut plant = plant(home.path())?;
        let said = until("the first data", SOON, || {
            plant.check()?;
            Ok(Some(plant.log()).filter(|log| log.matches("first data:").count() > usize::from(bridge.is_some())))
        })?;
        // Data can flow by it before the bridge has told of it.
        let page = until("the certificate from the hub", SOON, || {
            let page = quickstart.api.get("/api/v1/nodes?kind=bridge")?.ok()?;
            Ok(page["items"][0]["bridge"]["certificate_not_after"].is_string().then_some(page))
        })?;
        let node = &page["items"][0];
        ensure!(node["bridge"]["routes"][0]["last_at"].is_string(), "{page}");
        let found = node["id"].as_str().map(str::to_owned);
        assert!(bridge.is_none() || bridge == found, "the same bridge: {page}");
        bridge = found;

        plant.signal(Signal::TERM)?;
        plant.wait(SOON)?;
        // Nobody listens any more where it said that something did.
        for port in said
            .lines()
            .rev()
            .find(|line| line.contains("the plant runs"))
            .unwrap_or_default()
            .split("127.0.0.1:")
            .skip(1)
        {
            let port: String = port.chars().take_while(char::is_ascii_digit).collect();
            assert!(TcpStream::connect(format!("127.0.0.1:{port}")).is_err(), "{port} is still there: {said}");
        }
    }
    ctrl_c(&mut quickstart)
}

/// The plant that ./quickstart starts beside a hub.
fn plant(home: &Path) -> Result<Process> {
    let programs = binary("hyperfactory-bridge")?;
    binary("hfctl")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has a root")?;
    let mut command = Command::new(root.join("demo-plant/run"));
    command.arg(programs.parent().context("a program has a folder")?).arg(home.join("plant"));
    command.env("XDG_STATE_HOME", home).env("XDG_CONFIG_HOME", home);
    Process::start_group(&mut command, &home.join("plant.log"))
}
