//! Carries out the hub's commands: what each action does on this machine, and how it is said to have ended.

mod diagnostics;
mod script;
mod secrets;
pub(crate) mod service;

use std::sync::Arc;
use std::time::Duration;

use node::commands::{Job, Output};
use node::{LinkStatus, Recorder};
use protocol::command::{Action, Ending};
use protocol::message::CommandState;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::engine::Address;
use crate::recent::Recent;

/// How long a renewal may take before its command gives up waiting; the agent goes on trying.
const RENEWED_WITHIN: Duration = Duration::from_secs(60);
/// How long telemetry may take to be handed over.
const DRAINED_WITHIN: Duration = Duration::from_secs(600);

/// What actions work with.
pub struct Carrier {
    /// The configuration, with the local policy.
    pub config: Arc<Config>,
    /// The engine.
    pub engine: Address,
    /// Time between samples.
    pub interval: watch::Sender<Duration>,
    /// The telemetry.
    pub recorder: Recorder,
    /// Notified, it has the certificate renewed.
    pub renew: Arc<Notify>,
    /// Where the link stands, once it is up.
    pub link: watch::Receiver<Option<watch::Receiver<LinkStatus>>>,
    /// What was logged last.
    pub recent: Recent,
}

impl Carrier {
    /// Carries out a job.
    pub async fn carry_out(&self, job: Job) -> Ending {
        let Job { action, stop, output, .. } = job;
        match action {
            Action::ServiceStart { stack, service } => {
                self.service(service::Verb::Start, &stack, &service, &stop, &output).await
            }
            Action::ServiceStop { stack, service } => {
                self.service(service::Verb::Stop, &stack, &service, &stop, &output).await
            }
            Action::ServiceRestart { stack, service } => {
                self.service(service::Verb::Restart, &stack, &service, &stop, &output).await
            }
            Action::ServiceLogs { stack, service, lines } => match self.engine().await {
                Ok(engine) => service::logs(&engine, &stack, &service, lines, &stop, &output).await,
                Err(ending) => ending,
            },
            Action::Backup { stack } => match self.engine().await {
                Ok(engine) => {
                    service::backup(&engine, &stack, self.config.commands.backup_within, &stop, &output).await
                }
                Err(ending) => ending,
            },
            Action::Diagnostics => {
                output.write(diagnostics::gather(self).await).await;
                succeeded("")
            }
            Action::TelemetryInterval { interval } => self.measure_every(interval),
            Action::RenewCertificate => self.renew().await,
            Action::Drain => self.drain(&stop).await,
            Action::Script { name } => match self.config.commands.scripts.get(&name) {
                Some(path) => script::run(path, job.id, &stop, &output).await,
                None => failed(format!("there is no script {name} any more")),
            },
            Action::KafkaAcl { .. } if !self.config.kafka.is_on() => failed(
                "this agent is configured for no Kafka brokers: its owner names them in agent.toml, [kafka] brokers",
            ),
            Action::KafkaAcl { bridge, topics } => match self.config.kafka.allow(bridge, &topics).await {
                Ok(changes) => succeeded(&changes.to_string()),
                Err(error) => failed(error.to_string()),
            },
        }
    }

    async fn service(
        &self,
        verb: service::Verb,
        stack: &str,
        service: &str,
        stop: &CancellationToken,
        output: &Output,
    ) -> Ending {
        match self.engine().await {
            Ok(engine) => service::act(&engine, verb, stack, service, stop, output).await,
            Err(ending) => ending,
        }
    }

    /// A connection of its own: it waits longer than the follower's, and is gone with the command.
    async fn engine(&self) -> Result<bollard::Docker, Ending> {
        let connected = self.engine.connect(service::ANSWER).await;
        connected.map(|engine| engine.with_timeout(service::LONGEST)).map_err(|trouble| failed(trouble.to_string()))
    }

    /// The service manager and the probes know the interval as it is now.
    fn measure_every(&self, interval: Duration) -> Ending {
        // The last sample may be older than the new interval has them be.
        self.recorder.pulse().beat();
        self.interval.send_replace(interval);
        succeeded(&format!("measuring every {} s until the agent restarts", interval.as_secs_f64()))
    }

    async fn renew(&self) -> Ending {
        let mut link = self.link.clone();
        let Ok(mut status) = link.wait_for(Option::is_some).await.map(|link| link.clone()) else { return stopping() };
        let Some(status) = &mut status else { return stopping() };
        let (not_after, trouble) = {
            let now = status.borrow_and_update();
            (now.certificate_not_after, now.renewal_trouble.clone())
        };
        self.renew.notify_one();
        let changed = status.wait_for(|now| {
            now.certificate_not_after != not_after || (now.renewal_trouble.is_some() && now.renewal_trouble != trouble)
        });
        match timeout(RENEWED_WITHIN, changed).await {
            Ok(Ok(now)) if now.certificate_not_after != not_after => {
                succeeded(&format!("the new certificate is good until {}", now.certificate_not_after))
            }
            Ok(Ok(now)) => failed(now.renewal_trouble.clone().unwrap_or_default()),
            Ok(Err(_)) => stopping(),
            Err(_) => failed(format!("not renewed within {} s; the agent goes on trying", RENEWED_WITHIN.as_secs())),
        }
    }

    async fn drain(&self, stop: &CancellationToken) -> Ending {
        self.recorder.flush().await;
        let mut spool = self.recorder.backlog().watch();
        let drained = timeout(DRAINED_WITHIN, spool.wait_for(|spool| spool.pending_batches == 0));
        match stop.run_until_cancelled(drained).await {
            None => Ending::new(CommandState::Cancelled, "the hub takes the rest in its own time"),
            Some(Ok(Ok(_))) => succeeded("the hub has all that was measured"),
            Some(Ok(Err(_))) => stopping(),
            Some(Err(_)) => failed(format!(
                "{} batches are still held after {} s",
                self.recorder.backlog().status().pending_batches,
                DRAINED_WITHIN.as_secs()
            )),
        }
    }
}

fn succeeded(message: &str) -> Ending {
    Ending::new(CommandState::Succeeded, message)
}

fn failed(message: impl AsRef<str>) -> Ending {
    Ending::new(CommandState::Failed, message.as_ref())
}

fn unknown(message: impl AsRef<str>) -> Ending {
    Ending::new(CommandState::Unknown, message.as_ref())
}

fn stopping() -> Ending {
    failed("the agent is stopping")
}
