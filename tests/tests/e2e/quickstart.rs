//! What a newcomer sees: one command, a live machine, a clean end, and the same machine again.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Api, Process, SOON, binary, until};

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
    let status = first.process.stop(SOON)?;
    ensure!(status.success(), "it ended with {status}: {}", first.process.log());

    let mut again = start(home.path(), &quic, &http)?;
    assert_eq!(live(&again)?, node, "the same machine is the same node");
    let output = Command::new(binary("hfctl")?)
        .args(["node", "list", "--output", "json"])
        .env("XDG_STATE_HOME", home.path())
        .env("XDG_CONFIG_HOME", home.path())
        .output()?;
    ensure!(output.status.success(), "hfctl: {}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains(&node), "hfctl works without a login");
    assert!(again.process.stop(SOON)?.success());
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
