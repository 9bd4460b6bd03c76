//! The scripts at the root: what they say when a port, a disk or a package is not to be had; and the demo stack.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Engine, SOON, until};

fn root() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).context("the workspace has a root")
}

/// Runs `./quickstart --yes` on these addresses, which must fail, and gives what it said.
fn refused(listen: &[(&str, SocketAddr)]) -> Result<String> {
    let variables = listen.iter().map(|(what, at)| (format!("HYPERFACTORY_HUB_{what}_LISTEN"), at.to_string()));
    let output = Command::new(root()?.join("quickstart")).arg("--yes").envs(variables).output()?;
    said_and_failed(&output)
}

/// A function of `packaging/setup.sh`, which must fail, and what it said.
fn set_up(line: &str) -> Result<String> {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &format!(". packaging/setup.sh; _lists_fresh=yes; {line}")])
        .current_dir(root()?)
        .output()?;
    said_and_failed(&output)
}

fn said_and_failed(output: &Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "{:?}: {}{said}", output.status, String::from_utf8_lossy(&output.stdout));
    Ok(said)
}

#[test]
fn a_taken_port_is_told_before_the_build() -> Result<()> {
    let (udp, tcp) = (UdpSocket::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    let (nodes, pages) = (udp.local_addr()?, tcp.local_addr()?);
    // The two are asked for in this order; the default port of the other must not matter.
    let said = refused(&[("QUIC", nodes), ("HTTP", pages)])?;
    assert!(said.contains(&format!("Port {} (UDP) is taken", nodes.port())), "{said}");
    assert!(
        said.contains("ss --listening --udp") && said.contains("HYPERFACTORY_HUB_QUIC_LISTEN=127.0.0.1:"),
        "{said}"
    );
    drop(udp);
    let said = refused(&[("QUIC", nodes), ("HTTP", pages)])?;
    assert!(said.contains(&format!("Port {} (TCP) is taken", pages.port())), "{said}");
    assert!(
        said.contains("ss --listening --tcp") && said.contains("HYPERFACTORY_HUB_HTTP_LISTEN=127.0.0.1:"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_full_disk_is_told_with_the_way_out() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().display();
    let said = set_up(&format!("need_room {path} 999999999 'The build' 'set CARGO_TARGET_DIR'"))?;
    assert!(said.contains("The build needs about 999999999 MB of disk") && said.contains(&path.to_string()), "{said}");
    assert!(said.contains("Free some space, or set CARGO_TARGET_DIR."), "{said}");
    Ok(())
}

#[test]
fn a_package_that_cannot_be_had_is_named() -> Result<()> {
    let said = set_up("need_packages 'hyperfactory-nonesuch|hyperfactory-neither'")?;
    assert!(said.contains("The package hyperfactory-nonesuch or hyperfactory-neither is not to be had"), "{said}");
    assert!(said.contains("/etc/apt/sources.list"), "{said}");
    Ok(())
}

#[test]
fn the_demo_stack_falls_sick_when_told_and_leaves_nothing() -> Result<()> {
    let engine = Engine::from_environment()?;
    let demo = |name: &str| -> Result<bool> {
        let docker = format!("unix://{}", engine.socket().display());
        let output = Command::new(root()?.join("compose/demo").join(name)).env("DOCKER_HOST", docker).output()?;
        Ok(output.status.success())
    };
    let containers = || engine.run(&["ps", "--all", "--filter", PROJECT, "--format", "{{.Names}} {{.Status}}"]);
    let comes_to = |wanted: &str| {
        until(wanted, SOON, || Ok(containers()?.lines().any(|line| line.contains(wanted)).then_some(())))
    };
    ensure!(demo("has-engine")? && demo("has-compose")?, "the engine or Compose is not found");
    ensure!(demo("up")?, "the demo stack does not start");
    ensure!(demo("up")?, "it can be started again while it runs");
    assert_eq!(containers()?.lines().count(), 4);
    engine.run(&["exec", "hyperfactory-demo-web", "touch", "/tmp/sick"])?;
    until("the web page to be sick", SOON, || {
        let listed = containers()?;
        Ok(listed
            .lines()
            .any(|line| line.starts_with("hyperfactory-demo-web ") && line.contains("(unhealthy)"))
            .then_some(()))
    })?;
    comes_to("Exited (0)")?;
    ensure!(demo("down")?, "the demo stack does not stop");
    assert_eq!(containers()?, "");
    assert_eq!(engine.run(&["volume", "ls", "--quiet", "--filter", PROJECT])?, "");
    Ok(())
}

const PROJECT: &str = "label=com.docker.compose.project=hyperfactory-demo";
