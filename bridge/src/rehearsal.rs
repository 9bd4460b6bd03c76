//! The verb `check --rotate`: has the hub give another Kafka certificate now, and tries it at the brokers beside the one in
//! use, which stays unless they take it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use node::{Backlog, Clock, IdentityStore, Kafka, Link, LinkOptions, Recorder};
use protocol::{SpoolEpoch, Timestamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::Endpoint;

use crate::bridge::SOFTWARE;
use crate::config::Config;
use crate::{host, producer, report};

/// Where a running bridge is asked; whoever may enter the state directory may ask.
const SOCKET: &str = "control.sock";
/// How long hub and brokers may take together.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of telemetry a rehearsal may gather; there is none.
const SPOOL: u64 = 1 << 20;
/// Longest answer.
const LONGEST: u64 = 4096;

/// Rehearses. Gives the lines to show, and whether the brokers took the certificate.
///
/// # Errors
/// When there is nothing to rotate, or it can't be asked for.
pub async fn run(config: &Config) -> anyhow::Result<(String, bool)> {
    let Some(issued) = &config.kafka.issued else {
        anyhow::ensure!(
            config.kafka.certificate.is_some(),
            "there is no Kafka certificate to rotate: this bridge is not enrolled (hyperfactory-bridge enroll), or kafka.tls is \
             \"off\""
        );
        let kafka = config.kafka.clone();
        let tried = tokio::task::spawn_blocking(move || producer::try_files(&kafka)).await?;
        return Ok(told(tried.map(|()| "the brokers take the certificate in the files".to_owned())));
    };
    let answer = match UnixStream::connect(config.state_dir.join(SOCKET)).await {
        Ok(stream) => ask(stream).await?,
        // Nobody else holds the node's session then.
        Err(_) => alone(config).await?,
    };
    let until = issued.load()?.map(|credential| credential.summary().not_after);
    let in_use = until.map_or_else(String::new, |until| format!("; in use is one until {until}"));
    Ok(told(answer.map(|said| said + in_use.as_str()).map_err(|why| why + in_use.as_str())))
}

fn told(outcome: Result<String, String>) -> (String, bool) {
    match outcome {
        Ok(said) => (format!("ok    {said}\n"), true),
        Err(why) => (format!("fail  {why}\n"), false),
    }
}

/// Asks the bridge that runs.
async fn ask(mut stream: UnixStream) -> anyhow::Result<Result<String, String>> {
    stream.write_all(b"rotate\n").await.context("the running bridge can't be asked")?;
    let mut answer = String::new();
    let mut stream = stream.take(LONGEST);
    let read = tokio::time::timeout(PATIENCE * 2, stream.read_to_string(&mut answer)).await;
    read.context("the running bridge does not answer; look at its log")?
        .context("the running bridge broke off; look at its log")?;
    match answer.split_once(' ') {
        Some(("ok", said)) => Ok(Ok(said.to_owned())),
        Some(("fail", why)) => Ok(Err(why.to_owned())),
        _ => anyhow::bail!("the running bridge is of another release; restart it"),
    }
}

/// Holds a session for as long as it takes.
async fn alone(config: &Config) -> anyhow::Result<Result<String, String>> {
    let store = IdentityStore::directory(&config.state_dir);
    let identity = store.load()?.context("this machine is not enrolled: run hyperfactory-bridge enroll")?;
    let kafka = report::kafka(&config.kafka).context("there is no Kafka certificate from the hub to rotate")?;
    // What the service has measured is its own to send.
    let backlog = Backlog::in_memory(SpoolEpoch(rand::random()), SPOOL);
    let options = LinkOptions {
        endpoint: Endpoint::client().context("the bridge can't open a UDP socket")?,
        store,
        identity,
        facts: host::facts(SOFTWARE.into()),
        process: rand::random(),
        recorder: Recorder::new(backlog, node::telemetry::SAMPLES_PER_BATCH),
        commands: None,
        tails: None,
        kafka: Some(kafka.clone()),
        logs: None,
        renew: Arc::<Notify>::default(),
        clock: Clock::system(),
    };
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let link = Link::start(options, &tasks, stop.clone());
    tasks.close();
    let mut status = link.status();
    let up = tokio::time::timeout(PATIENCE, status.wait_for(node::LinkStatus::is_up)).await.is_ok();
    let outcome =
        if up { rotate(&kafka).await } else { Err(format!("no session with the hub: {}", status.borrow().state)) };
    stop.cancel();
    tasks.wait().await;
    IdentityStore::directory(&config.state_dir).hand_over();
    Ok(outcome)
}

/// Has one fetched and tried now; says until when it lasts, or why the one before stays.
async fn rotate(kafka: &Kafka) -> Result<String, String> {
    let mut status = kafka.status.subscribe();
    let (before, first) = {
        let known = status.borrow_and_update();
        (known.attempts, known.not_after.is_none())
    };
    kafka.renew.notify_one();
    let status = {
        let ended = status.wait_for(|status| status.attempts > before);
        match tokio::time::timeout(PATIENCE, ended).await {
            Ok(Ok(status)) => status.clone(),
            _ => return Err("no session with the hub: look at the bridge's log".into()),
        }
    };
    if status.trouble.is_none() && first {
        // The first of all is used without a trial: there is nothing else to use.
        let (store, trial) = (kafka.store.clone(), Arc::clone(&kafka.trial));
        let tried = tokio::task::spawn_blocking(move || match store.load() {
            Ok(Some(credential)) => trial(&credential),
            Ok(None) => Err("the hub gave no Kafka certificate".to_owned()),
            Err(error) => Err(error.to_string()),
        });
        tried.await.map_err(|_| "the process is shutting down".to_owned())??;
    }
    match &status.trouble {
        Some(why) => Err(why.clone()),
        None => {
            let until = status.not_after.map_or_else(String::new, |until: Timestamp| format!(" until {until}"));
            Ok(format!("the brokers take a new certificate{until}"))
        }
    }
}

/// Where a running bridge listens for whoever rehearses.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    kafka: Kafka,
}

impl Control {
    /// Listens in the state directory; one that a killed process left there is replaced.
    ///
    /// # Errors
    /// When no socket can be made there.
    pub fn bind(state_dir: &Path, kafka: Kafka) -> std::io::Result<Self> {
        let path = state_dir.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path, kafka })
    }

    /// Answers one after the other until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        while let Some(Ok((stream, _))) = stop.run_until_cancelled(self.listener.accept()).await {
            // One who hangs up, or says nothing, has no answer.
            let answered = tokio::time::timeout(PATIENCE * 2, answer(stream, &self.kafka));
            let _ = stop.run_until_cancelled(answered).await;
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn answer(mut stream: UnixStream, kafka: &Kafka) -> std::io::Result<()> {
    let mut asked = [0; 7];
    stream.read_exact(&mut asked).await?;
    let answer = match &asked {
        b"rotate\n" => match rotate(kafka).await {
            Ok(said) => format!("ok {said}"),
            Err(why) => format!("fail {why}"),
        },
        _ => String::new(),
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}
