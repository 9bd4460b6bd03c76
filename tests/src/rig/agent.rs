//! A real agent: the binary, its state, and where it runs.

use std::path::Path;
use std::process::{Command, ExitStatus, Output};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use super::binary::binary;
use super::clock;
use super::engine::Engine;
use super::hub::Hub;
use super::netns::{self, Netns};
use super::process::Process;
use super::wait::{SOON, until};

/// Where a running agent listens, as it writes it to its state directory.
#[derive(Debug, Clone, Deserialize)]
pub struct AgentEndpoints {
    /// Base URL of `/healthz`, `/readyz` and `/metrics`.
    pub health: String,
}

/// An agent with a state directory of its own; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    state: TempDir,
    settings: Vec<(String, String)>,
    netns: Option<String>,
    process: Option<Process>,
}

impl Agent {
    /// One that has not enrolled and does not run.
    pub fn create() -> Result<Self> {
        let settings = vec![("HYPERFACTORY_AGENT_HEALTH_LISTEN".to_owned(), "127.0.0.1:0".to_owned())];
        Ok(Self { state: tempfile::tempdir()?, settings, netns: None, process: None })
    }

    /// Sets a key of the configuration by its environment variable.
    pub fn set(mut self, key: &str, value: impl Into<String>) -> Self {
        self.settings.push((format!("HYPERFACTORY_AGENT_{}", key.to_uppercase().replace('-', "_")), value.into()));
        self
    }

    /// Has it watch this engine.
    pub fn watch(self, engine: &Engine) -> Self {
        self.set("docker-host", format!("unix://{}", engine.socket().display()))
    }

    /// Enrolls it in a tenant, with a token made for it, and runs it.
    pub fn join(mut self, hub: &Hub, tenant: &str) -> Result<Self> {
        self.enroll(&hub.join_token(tenant)?)?;
        self.run()?;
        Ok(self)
    }

    /// Sets its clock off by `offset` (`+365d`, `-5m`), or right again, from its next start on.
    pub fn set_clock(&mut self, offset: Option<&str>) -> Result<()> {
        self.settings.retain(|(name, _)| !clock::VARIABLES.contains(&name.as_str()));
        if let Some(offset) = offset {
            self.settings.extend(clock::off_by(offset)?);
        }
        Ok(())
    }

    /// One that was stopped, once more: with another state directory that holds the same.
    pub fn copy(&self) -> Result<Self> {
        let copy = Self { state: tempfile::tempdir()?, settings: self.settings.clone(), netns: None, process: None };
        for file in std::fs::read_dir(self.state.path())? {
            let file = file?;
            if file.file_type()?.is_file() {
                std::fs::copy(file.path(), copy.state.path().join(file.file_name()))?;
            }
        }
        Ok(copy)
    }

    /// Lets everything it does happen inside a namespace.
    pub fn inside(mut self, netns: &Netns) -> Self {
        self.netns = Some(netns.name().to_owned());
        self
    }

    /// Its state directory.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// Enrolls; fails with what the agent said.
    pub fn enroll(&self, token: &str) -> Result<()> {
        let output = self.command(&["enroll", "--token", token])?;
        if !output.status.success() {
            bail!("enroll ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Runs one of the program's verbs to its end.
    pub fn command(&self, arguments: &[&str]) -> Result<Output> {
        self.program()?.args(arguments).output().context("running the agent's program")
    }

    /// The id it enrolled with.
    pub fn node(&self) -> Result<String> {
        let path = self.state.path().join("identity.json");
        let identity: Value = serde_json::from_slice(&std::fs::read(path).context("reading the agent's identity")?)?;
        Ok(identity["node"].as_str().context("no id in the agent's identity")?.to_owned())
    }

    /// What the running agent says of itself.
    pub fn status(&self) -> Result<Value> {
        let output = self.command(&["status", "--json"])?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("no status: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// Starts it without waiting for anything.
    pub fn launch(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("the agent is running");
        }
        self.process = Some(Process::start(self.program()?.arg("run"), &self.state.path().join("rig.log"))?);
        Ok(())
    }

    /// Starts it and waits until it serves its health.
    pub fn run(&mut self) -> Result<()> {
        let file = self.state.path().join("endpoints.json");
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context("removing the old endpoints");
            }
            _ => {}
        }
        self.launch()?;
        let process = self.process()?;
        let listens = until("the agent to listen", SOON, || {
            process.check()?;
            Ok(file.exists().then_some(()))
        });
        listens.with_context(|| process.last_words())
    }

    /// Where it serves its health; reachable from inside its namespace only, when it has one.
    pub fn endpoints(&self) -> Result<AgentEndpoints> {
        let text = std::fs::read(self.state.path().join("endpoints.json")).context("reading the agent's endpoints")?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Its process; an error when it is stopped.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the agent is stopped")
    }

    /// Kills it as a power cut would.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Stops it by SIGTERM and waits for its end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.take().context("the agent is stopped already")?.stop(SOON)
    }

    fn program(&self) -> Result<Command> {
        let mut command = netns::command(self.netns.as_deref(), binary("hyperfactory-agent")?);
        command
            .env("HYPERFACTORY_AGENT_STATE_DIR", self.state.path())
            .envs(self.settings.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }
}
