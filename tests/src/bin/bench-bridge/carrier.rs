//! The bridges that are compared, and how each is started.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use hyperfactory_tests::rig::{Process, SOON, Usage, binary, until};
use rustix::process::Signal;

use crate::kafka::Kafka;
use crate::message::{FILTER, KAFKA_TOPIC};
use crate::plant::Mosquitto;

/// A bridge.
#[derive(Clone, Debug)]
pub(crate) enum Carrier {
    /// Ours, as it is packaged.
    Ours,
    /// mq-bridge-app, which keeps nothing on disk.
    MqBridge,
    /// mosquitto_sub, and a producer that reads what it prints.
    Subscriber,
}

/// A bridge that runs; ended when dropped.
pub(crate) struct Running {
    command: Command,
    log: PathBuf,
    process: Option<Process>,
}

impl Carrier {
    /// Starts it between the two, with its state in `folder`.
    pub(crate) fn start(&self, folder: &Path, mosquitto: &Mosquitto, kafka: &Kafka) -> Result<Running> {
        let command = match self {
            Self::Ours => {
                let mut command = ours(folder, mosquitto, kafka.brokers(), "")?;
                command.arg("run");
                command
            }
            Self::MqBridge => mq_bridge(folder, mosquitto, kafka)?,
            Self::Subscriber => subscriber(mosquitto, kafka)?,
        };
        Running::start(command, folder)
    }
}

impl Running {
    /// Ours, enrolled at a hub with this token, that has its certificates from there.
    pub(crate) fn enrolled(folder: &Path, mosquitto: &Mosquitto, brokers: &str, token: &str) -> Result<Self> {
        let more = "interval = \"1s\"\nhealth-listen = \"127.0.0.1:0\"\n";
        let command = || ours(folder, mosquitto, brokers, more);
        let enrolled = command()?.args(["enroll", "--token", token]).output()?;
        ensure!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
        let mut command = command()?;
        command.arg("run");
        Self::start(command, folder)
    }

    fn start(command: Command, folder: &Path) -> Result<Self> {
        let mut running = Self { command, log: folder.join("bridge.log"), process: None };
        running.start_again()?;
        Ok(running)
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// Starts it after [`Self::kill`] or [`Self::stop`].
    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.process = Some(Process::start_group(&mut self.command, &self.log)?);
        Ok(())
    }

    /// What it has cost since its start.
    pub(crate) fn usage(&mut self) -> Result<Usage> {
        let Some(process) = &mut self.process else { return Ok(Usage::default()) };
        process.check()?;
        Usage::of_tree(process.id())
    }

    /// As by `kill -9`.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// In order, as far as it knows how.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.signal(Signal::TERM)?;
        let _ = process.wait(Duration::from_secs(10));
        process.kill()
    }

    /// Waits until what is published reaches Kafka.
    pub(crate) fn wait_until_it_carries(&mut self, mosquitto: &Mosquitto, kafka: &Kafka) -> Result<()> {
        let before = kafka.records()?;
        until("a message that is carried", SOON, || {
            if let Some(process) = &mut self.process {
                process.check()?;
            }
            // The number of none that is counted.
            mosquitto.publish(0..=0)?;
            Ok((kafka.records()? > before).then_some(()))
        })
    }
}

/// Without a verb yet.
fn ours(folder: &Path, mosquitto: &Mosquitto, brokers: &str, more: &str) -> Result<Command> {
    let file = folder.join("bridge.toml");
    std::fs::write(
        &file,
        format!(
            "name = \"bench\"\nlog-size = \"64GiB\"\n{more}[[mqtt]]\nname = \"plant\"\naddress = \"127.0.0.1:{}\"\n[kafka]\nbrokers = [{brokers:?}]\n\
             [[route]]\nfrom = {FILTER:?}\nto = {KAFKA_TOPIC:?}\n",
            mosquitto.port()
        ),
    )?;
    let mut command = Command::new(binary("hyperfactory-bridge")?);
    command.arg("--config").arg(file).arg("--state-dir").arg(folder.join("state"));
    Ok(command)
}

/// With its own defaults, but for a session that outlives a kill, as many messages that fly as ours has, and one batch after
/// the other: more at once would not keep their order.
fn mq_bridge(folder: &Path, mosquitto: &Mosquitto, kafka: &Kafka) -> Result<Command> {
    let file = folder.join("mq-bridge.yaml");
    let (port, brokers) = (mosquitto.port(), kafka.brokers());
    std::fs::write(
        &file,
        format!(
            "routes:\n  plant:\n    concurrency: 1\n    input:\n      mqtt:\n        url: 'tcp://127.0.0.1:{port}'\n        \
             topic: '{FILTER}'\n        client_id: bench\n        qos: 1\n        clean_session: false\n        \
             session_expiry_interval: 3600\n        max_inflight: 1000\n        queue_capacity: 1000\n    output:\n      \
             kafka:\n        url: '{brokers}'\n        topic: '{KAFKA_TOPIC}'\n        create_topic: false\n"
        ),
    )?;
    let mut command = Command::new("mq-bridge-app");
    command.args(["--no-ui", "--no-metrics", "--config"]).arg(file).current_dir(folder).env("HOME", folder);
    Ok(command)
}

fn subscriber(mosquitto: &Mosquitto, kafka: &Kafka) -> Result<Command> {
    let own = std::env::current_exe()?;
    let script = format!(
        "mosquitto_sub -h 127.0.0.1 -p {} -i bench -c -q 1 -t '{FILTER}' -F '%t %p' | '{}' forward '{}'",
        mosquitto.port(),
        own.display(),
        kafka.brokers()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    Ok(command)
}
