//! A Kafka broker of a test's own: tansu, which keeps in SQLite what it has acknowledged, and so outlives being killed. It speaks
//! no TLS that asks for certificates: a [`super::Front`] does that before it.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rustix::process::Signal;
use tempfile::TempDir;

use super::port::free_port;
use super::process::Process;
use super::wait::{SOON, until};

const HOST: &str = "127.0.0.1";
/// How long one attempt to make a topic may take.
const ANSWER: Duration = Duration::from_secs(5);

/// The broker; it ends with its handle.
pub struct Tansu {
    folder: TempDir,
    address: String,
    process: Option<Process>,
}

impl Tansu {
    /// Starts one without topics.
    pub fn start() -> Result<Self> {
        let mut tansu =
            Self { folder: tempfile::tempdir()?, address: format!("{HOST}:{}", free_port()), process: None };
        tansu.start_again()?;
        Ok(tansu)
    }

    /// Where it listens, without TLS.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Makes a topic.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.address).create()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let options = AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER));
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for made in runtime.block_on(admin.create_topics([&topic], &options))? {
            if let Err((topic, error)) = made {
                bail!("the topic {topic} was not made: {error}");
            }
        }
        Ok(())
    }

    /// Ends it as a power cut of its process would.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("it does not run")?.kill()
    }

    /// Starts it again where it was, with what it had.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "it runs");
        let listener = format!("tcp://{}", self.address);
        let mut command = Command::new("tansu");
        // Its storage is named relative to where it runs.
        command.current_dir(self.folder.path()).args(["broker", "--silent", "--storage-engine", "sqlite://tansu.db"]);
        command.args(["--listener-url", &listener, "--advertised-listener-url", &listener]);
        let mut process = Process::start(&mut command, &self.folder.path().join("log"))?;
        until("tansu", SOON, || {
            process.check()?;
            Ok(TcpStream::connect(&self.address).ok())
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// It hangs: connections stay, and nothing is answered.
    pub fn hang(&mut self) -> Result<()> {
        self.process.as_mut().context("it does not run")?.signal(Signal::STOP)
    }

    /// It goes on.
    pub fn go_on(&mut self) -> Result<()> {
        self.process.as_mut().context("it does not run")?.signal(Signal::CONT)
    }
}
