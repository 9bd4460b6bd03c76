//! A real bridge: the binary, its configuration and its state.

use std::process::{Command, Output};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::binary::binary;
use super::process::Process;

/// Nothing answers at these addresses.
const NOWHERE: &str = r#"
interval = "200ms"
health-listen = "127.0.0.1:0"
[[mqtt]]
name = "plant"
address = "127.0.0.1:9"
[kafka]
brokers = ["127.0.0.1:9"]
[[route]]
preset = "umh"
"#;

/// A bridge with a folder of its own.
#[derive(Debug)]
pub struct Bridge {
    folder: TempDir,
}

impl Bridge {
    /// One that reaches neither its MQTT broker nor Kafka: it enrolls, has its certificate, and reports all the same.
    pub fn nowhere() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("bridge.toml"), NOWHERE)?;
        Ok(Self { folder })
    }

    /// Runs its verb `enroll` to its end, whatever that is.
    pub fn enroll(&self, token: &str) -> Result<Output> {
        self.program()?.args(["enroll", "--token", token]).output().context("running the bridge's program")
    }

    /// Starts it without waiting for anything.
    pub fn launch(&self) -> Result<Process> {
        Process::start(self.program()?.arg("run"), &self.folder.path().join("rig.log"))
    }

    fn program(&self) -> Result<Command> {
        let mut command = Command::new(binary("hyperfactory-bridge")?);
        let folder = self.folder.path();
        command.arg("--config").arg(folder.join("bridge.toml")).arg("--state-dir").arg(folder.join("state"));
        Ok(command)
    }
}
