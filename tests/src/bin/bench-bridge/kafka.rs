//! The Kafka end: librdkafka's mock cluster in a process of its own, so that its work is not counted as a bridge's.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use hyperfactory_tests::rig::{Process, SOON, until};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::mocking::MockCluster;
use rustix::process::Signal;

use crate::message::KAFKA_TOPIC;

/// Partitions of the topic. The mock keeps 5 MB of each: together enough for whoever reads along.
pub(crate) const PARTITIONS: i32 = 12;

/// The process's side: serves until it is ended, and tells in `file` where.
pub(crate) fn serve(file: &Path) -> Result<()> {
    let cluster = MockCluster::new(1).context("starting librdkafka's mock cluster")?;
    cluster.create_topic(KAFKA_TOPIC, PARTITIONS, 1).context("making the topic")?;
    let new = file.with_extension("new");
    std::fs::write(&new, cluster.bootstrap_servers())?;
    std::fs::rename(&new, file)?;
    loop {
        std::thread::park();
    }
}

/// The cluster; ended when dropped.
pub(crate) struct Kafka {
    process: Process,
    brokers: String,
    asking: BaseConsumer,
}

impl Kafka {
    /// Starts one.
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        let file = folder.join("kafka");
        let own = std::env::current_exe()?;
        let process = Process::start(Command::new(own).arg("kafka").arg(&file), &folder.join("kafka.log"))?;
        let brokers = until("the mock cluster", SOON, || Ok(Some(std::fs::read_to_string(&file)?)))?;
        let asking = ClientConfig::new().set("bootstrap.servers", &brokers).create()?;
        Ok(Self { process, brokers, asking })
    }

    /// Where it listens.
    pub(crate) fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Records that it has taken.
    pub(crate) fn records(&self) -> Result<u64> {
        let mut records = 0;
        for partition in 0..PARTITIONS {
            let (_, end) = self.asking.fetch_watermarks(KAFKA_TOPIC, partition, Duration::from_secs(60))?;
            records += u64::try_from(end).unwrap_or(0);
        }
        Ok(records)
    }

    /// It hangs: connections stay, and nothing is answered.
    pub(crate) fn hang(&mut self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }

    /// It goes on.
    pub(crate) fn go_on(&mut self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }
}
