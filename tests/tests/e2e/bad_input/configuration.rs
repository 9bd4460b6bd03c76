//! Configuration and command lines that are wrong.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::Result;
use hyperfactory_tests::rig::{Hub, binary};
use serde_json::json;
use tempfile::TempDir;

use super::{FAILED, MISUSED, REFUSED, assert_ended, audit};

/// A program with a home of its own, and nothing configured.
struct Program {
    name: &'static str,
    /// What it does when it does its work.
    verb: &'static [&'static str],
    home: TempDir,
}

impl Program {
    fn new(name: &'static str, verb: &'static [&'static str]) -> Result<Self> {
        Ok(Self { name, verb, home: tempfile::tempdir()? })
    }

    fn all() -> Result<[Self; 3]> {
        Ok([
            Self::new("hyperfactory-hub", &["serve"])?,
            Self::new("hyperfactory-agent", &["run"])?,
            Self::new("hfctl", &["node", "list"])?,
        ])
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(binary(self.name)?);
        command.env_clear().env("HOME", self.home.path()).current_dir(self.home.path());
        Ok(command)
    }

    /// Runs it with a configuration file that says `text`.
    fn with_file(&self, text: &str) -> Result<(Output, String)> {
        let path = self.home.path().join("wrong.toml");
        fs::write(&path, text)?;
        let output = self.command()?.arg("--config").arg(&path).args(self.verb).output()?;
        Ok((output, path.display().to_string()))
    }

    /// Runs it with one variable set.
    fn with_variable(&self, name: &str, value: &str) -> Result<Output> {
        Ok(self.command()?.env(name, value).args(self.verb).output()?)
    }
}

#[test]
fn a_misspelt_key_is_refused_with_its_place_and_the_key_that_was_meant() -> Result<()> {
    let [hub, agent, hfctl] = Program::all()?;
    for (program, wrong, meant) in [
        (&hub, "retention = \"7d\"\nquick-listen = \"127.0.0.1:7443\"", "quic-listen"),
        (&hub, "\n\nhttp_listen = \"127.0.0.1:7080\"", "http-listen"),
        (&agent, "interval = \"10s\"\nspool-sise = \"64MiB\"", "spool-size"),
        (&agent, "docker_host = \"unix:///run/docker.sock\"", "docker-host"),
        (&hfctl, "urll = \"http://127.0.0.1:7080\"", "url"),
    ] {
        let (output, path) = program.with_file(wrong)?;
        let line = format!("{path}:{}: there is no key", wrong.lines().count());
        assert_ended(&output, MISUSED, &[&line, &format!("did you mean `{meant}`?")]);
    }
    for (program, wrong, meant) in [
        (&hub, "HYPERFACTORY_HUB_RETENSION", "HYPERFACTORY_HUB_RETENTION"),
        (&hub, "HYPERFACTORY_HUB_DATABSE_FILE", "HYPERFACTORY_HUB_DATABASE_FILE"),
        (&agent, "HYPERFACTORY_AGENT_DOCKER_HOTS", "HYPERFACTORY_AGENT_DOCKER_HOST"),
        (&hfctl, "HYPERFACTORY_HFCTL_TOKN", "HYPERFACTORY_HFCTL_TOKEN"),
    ] {
        let output = program.with_variable(wrong, "x")?;
        assert_ended(&output, MISUSED, &[wrong, &format!("did you mean `{meant}`?")]);
    }
    Ok(())
}

#[test]
fn a_key_like_no_other_is_refused_too() -> Result<()> {
    for program in Program::all()? {
        let (output, path) = program.with_file("colour-of-the-bike-shed = \"green\"")?;
        assert_ended(&output, MISUSED, &[&format!("{path}:1"), "remove it or check its spelling"]);
    }
    Ok(())
}

#[test]
fn a_wrong_value_is_refused_with_what_would_be_right() -> Result<()> {
    let [hub, agent, hfctl] = Program::all()?;
    for (program, wrong, advice) in [
        (&hub, "retention = \"7 parsecs\"", "write a number with its unit"),
        (&hub, "retention = 7", "a time with its unit, like \"10s\" or \"5m\""),
        (&hub, "enrollments-per-second = -1", "`enrollments-per-second` is not usable"),
        (&agent, "spool-size = \"lots\"", "write a number with its unit"),
        (&agent, "interval = ", "wrong.toml:1"),
    ] {
        let (output, path) = program.with_file(wrong)?;
        assert_ended(&output, MISUSED, &[&format!("{path}:1"), advice]);
    }
    for (program, name, wrong, advice) in [
        (&hub, "HYPERFACTORY_HUB_QUIC_LISTEN", "somewhere", "`quic-listen` is not usable"),
        (&hub, "HYPERFACTORY_HUB_DATABASE", "mysql://hub@db/fleet", "write sqlite:///path/to/file or postgres://"),
        (&hub, "HYPERFACTORY_HUB_CONFIG", "/nonexistent/hub.toml", "/nonexistent/hub.toml: check that it exists"),
        (&agent, "HYPERFACTORY_AGENT_INTERVAL", "10ms", "`interval` is not usable: use from 100ms to 1h"),
        (&agent, "HYPERFACTORY_AGENT_DOCKER_HOST", "https://host", "`docker-host` is not usable"),
        (&agent, "HYPERFACTORY_AGENT_TOKEN_FILE", "/nonexistent/token", "HYPERFACTORY_AGENT_TOKEN_FILE names"),
        (&hfctl, "HYPERFACTORY_HFCTL_CONFIG", "/nonexistent/hfctl.toml", "/nonexistent/hfctl.toml"),
    ] {
        let mut command = program.command()?;
        if program.name == "hyperfactory-hub" {
            command.env("HYPERFACTORY_HUB_STATE_DIR", program.home.path());
        }
        assert_ended(&command.env(name, wrong).args(program.verb).output()?, MISUSED, &[advice]);
    }
    Ok(())
}

#[test]
fn a_database_password_is_not_repeated_in_an_error() -> Result<()> {
    let hub = Program::new("hyperfactory-hub", &["serve"])?;
    let mut command = hub.command()?;
    command.env("HYPERFACTORY_HUB_STATE_DIR", hub.home.path()).arg("serve");
    for url in ["mysql://hub:h0rse@db/fleet", "postgres://hub:h0rse@127.0.0.1:1/fleet"] {
        let output = command.env("HYPERFACTORY_HUB_DATABASE", url).output()?;
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("127.0.0.1:1") || said.contains("hub@db"), "{said}");
        assert!(!said.contains("h0rse"), "{said}");
    }
    Ok(())
}

#[test]
fn an_unknown_verb_or_option_is_wrong_usage() -> Result<()> {
    for program in Program::all()? {
        assert_ended(&program.command()?.arg("frobnicate").output()?, MISUSED, &["frobnicate", "--help"]);
        assert_ended(&program.command()?.arg("--frobnicate").output()?, MISUSED, &["--frobnicate", "--help"]);
        assert_ended(&program.command()?.output()?, MISUSED, &["Usage:"]);
    }
    let agent = Program::new("hyperfactory-agent", &["run"])?;
    let output = agent.command()?.env("HYPERFACTORY_AGENT_STATE_DIR", agent.home.path()).arg("run").output()?;
    assert_ended(&output, MISUSED, &["not enrolled", "make a join token"]);
    Ok(())
}

/// `hfctl` as a person has it who has a `token` for `url`.
fn hfctl(home: &Path, url: &str, token: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary("hfctl")?);
    command.env_clear().env("HOME", home).env("HYPERFACTORY_HFCTL_URL", url).env("HYPERFACTORY_HFCTL_TOKEN", token);
    Ok(command.args(arguments).output()?)
}

#[test]
fn hfctl_says_whether_token_address_or_right_is_wrong() -> Result<()> {
    let hub = Hub::start()?;
    hub.tenant("acme")?;
    let home = tempfile::tempdir()?;
    let url = hub.endpoints().http.clone();
    let run = |url: &str, token: &str, arguments: &[&str]| hfctl(home.path(), url, token, arguments);
    let list = &["node", "list"][..];

    // A token that no hub made, one that is something else, and one that may not do it.
    let unknown = format!("hft_{}", "A".repeat(43));
    assert_ended(&run(&url, &unknown, list)?, REFUSED, &["does not take the token", "hfctl login"]);
    assert_ended(&run(&url, "swordfish", list)?, MISUSED, &["not an API token", "api-token"]);
    assert_ended(&run(&url, &hub.join_token("acme")?, list)?, MISUSED, &["this is a join token"]);
    let viewer = hub.command(&["api-token", "--role", "viewer", "--name", "guest"])?;
    assert_ended(&run(&url, viewer.trim(), list)?, 0, &[]);
    let output = run(&url, viewer.trim(), &["tenant", "create", "evil", "--name", "Evil"])?;
    assert_ended(&output, REFUSED, &["admin"]);
    assert_eq!(audit(&hub, "tenant.created")?.len(), 1);

    // Nobody there, somebody else there, and no address at all.
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let output = run(&format!("http://{closed}"), viewer.trim(), list)?;
    assert_ended(&output, FAILED, &["nothing listens at", "is the hub running?"]);
    let output = run("http://no-such-host.invalid:7080", viewer.trim(), list)?;
    assert_ended(&output, FAILED, &["no-such-host.invalid"]);
    let output = run("gopher://hub", viewer.trim(), list)?;
    assert_ended(&output, MISUSED, &["starts with https:// or http://"]);
    let output = run(&format!("{url}/elsewhere"), viewer.trim(), list)?;
    assert_ended(&output, FAILED, &["check the address"]);

    // What is asked for is not there, or is no id.
    let output = run(&url, viewer.trim(), &["node", "show", "0198c0de-0000-7000-8000-000000000000"])?;
    assert_ended(&output, FAILED, &["hfctl node list"]);
    let admin = hub.command(&["api-token", "--name", "chief"])?;
    let output = run(&url, admin.trim(), &["tenant", "create", "Not A Slug", "--name", "x"])?;
    assert_ended(&output, MISUSED, &["Not A Slug"]);
    assert_eq!(hub.api().get("/api/v1/tenants")?.ok()?["items"].as_array().map(Vec::len), Some(1));
    assert!(!home.path().join(".config").exists(), "a refused token was kept");
    let refused = hub.api().with_token(unknown).get("/api/v1/nodes")?;
    assert_eq!((refused.status, &refused.body["status"]), (401, &json!(401)));
    Ok(())
}
