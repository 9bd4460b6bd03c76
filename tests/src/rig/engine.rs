//! The tests' own Docker Engine, and Compose projects on it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use super::exported;
use super::process::finish;

/// The engine that `./test` started.
#[derive(Debug, Clone)]
pub struct Engine {
    socket: PathBuf,
    cli: PathBuf,
    image: String,
}

impl Engine {
    /// Finds it by what `./test` exports.
    pub fn from_environment() -> Result<Self> {
        Ok(Self {
            socket: exported("HYPERFACTORY_TEST_DOCKER")?.into(),
            cli: exported("HYPERFACTORY_TEST_DOCKER_CLI")?.into(),
            image: exported("HYPERFACTORY_TEST_IMAGE")?,
        })
    }

    /// Its socket, for an agent.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// An image that it has: busybox.
    pub fn image(&self) -> &str {
        &self.image
    }

    /// The docker program, pointed at this engine.
    pub fn docker(&self) -> Command {
        let mut command = Command::new(&self.cli);
        command.env("DOCKER_HOST", format!("unix://{}", self.socket.display())).stdin(Stdio::null());
        command
    }

    /// Runs the docker program and gives what it printed.
    pub fn run<S: AsRef<str>>(&self, arguments: &[S]) -> Result<String> {
        finish(self.docker().args(arguments.iter().map(AsRef::as_ref)))
    }

    /// A container's figures as `docker inspect` tells them.
    pub fn inspect(&self, container: &str) -> Result<Value> {
        let text = self.run(&["inspect", container])?;
        let mut all: Vec<Value> = serde_json::from_str(&text).context("reading docker inspect")?;
        all.pop().context("docker inspect gave nothing")
    }

    /// A Compose project from its file's text, in which `IMAGE` stands for [`Engine::image`]; not yet up.
    pub fn project(&self, name: &str, compose: &str) -> Result<Project> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("compose.yaml"), compose.replace("IMAGE", &self.image))?;
        Ok(Project { engine: self.clone(), name: name.to_owned(), folder })
    }
}

/// A Compose project; dropped, it is taken down.
#[derive(Debug)]
pub struct Project {
    engine: Engine,
    name: String,
    folder: TempDir,
}

impl Project {
    /// The project's name, which is the stack's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Creates and starts everything in it.
    pub fn up(&self) -> Result<()> {
        self.compose(&["up", "--detach"]).map(drop)
    }

    /// Runs `docker compose` with `arguments` on this project, and gives what it printed.
    pub fn compose(&self, arguments: &[&str]) -> Result<String> {
        finish(
            self.engine
                .docker()
                .args(["compose", "--ansi", "never", "--progress", "quiet", "--project-name", &self.name, "--file"])
                .arg(self.folder.path().join("compose.yaml"))
                .args(arguments),
        )
    }

    /// The id of a service's first container, running or not.
    pub fn container(&self, service: &str) -> Result<String> {
        let ids = self.compose(&["ps", "--all", "--quiet", service])?;
        ids.lines().next().map(str::to_owned).with_context(|| format!("{}/{service} has no container", self.name))
    }

    /// Runs a command in a service's container.
    pub fn exec(&self, service: &str, command: &[&str]) -> Result<String> {
        let container = self.container(service)?;
        finish(self.engine.docker().args(["exec", &container]).args(command))
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let _ = self.compose(&["down", "--timeout", "0", "--volumes"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::{SOON, until};

    #[test]
    fn the_engine_runs_services_that_are_healthy_unhealthy_looping_and_out_of_memory() -> Result<()> {
        let engine = Engine::from_environment()?;
        let project = engine.project("rig-states", STATES)?;
        project.up()?;
        let state = |service: &str, pointer: &str| -> Result<Value> {
            let inspected = engine.inspect(&project.container(service)?)?;
            inspected.pointer(pointer).cloned().with_context(|| format!("no {pointer}"))
        };
        let comes_to = |service: &str, pointer: &str, wanted: Value| {
            until(&format!("{service} {pointer} = {wanted}"), SOON, || {
                Ok((state(service, pointer)? == wanted).then_some(()))
            })
        };
        comes_to("well", "/State/Health/Status", "healthy".into())?;
        comes_to("sick", "/State/Health/Status", "unhealthy".into())?;
        comes_to("greedy", "/State/OOMKilled", true.into())?;
        until("a restart", SOON, || Ok(state("looping", "/RestartCount")?.as_i64().filter(|count| *count > 0)))?;
        assert_eq!(project.exec("well", &["cat", "/note"])?.trim(), "hello");
        Ok(())
    }

    const STATES: &str = r#"
services:
  well:
    image: IMAGE
    command: ["sh", "-c", "echo hello > /note; sleep 1000"]
    stop_signal: SIGKILL
    healthcheck: {test: ["CMD", "cat", "/note"], interval: 1s}
  sick:
    image: IMAGE
    command: ["sleep", "1000"]
    stop_signal: SIGKILL
    healthcheck: {test: ["CMD", "false"], interval: 1s, retries: 1}
  looping:
    image: IMAGE
    command: ["false"]
    restart: always
  greedy:
    image: IMAGE
    # The shell waits before it and after it: see compose/test/compose.yaml.
    command: ["sh", "-c", "sleep 1; tail /dev/zero; sleep 1; exit 137"]
    mem_limit: 16m
"#;
}
