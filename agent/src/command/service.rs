//! What is done to the containers of a Compose service that exist: start, stop, restart, read their logs, run a backup.
//!
//! Nothing is created, changed or removed: that is for `docker compose`.

use std::collections::HashMap;
use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error as EngineError;
use bollard::models::ContainerSummary;
use bollard::query_parameters::{
    InspectContainerOptions, ListContainersOptions, LogsOptions, RestartContainerOptions, StartContainerOptions,
    StopContainerOptions, WaitContainerOptions,
};
use futures_util::StreamExt;
use node::commands::Output;
use protocol::command::{Ending, MAX_OUTPUT};
use protocol::message::CommandState;
use settings::Period;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::secrets::Secrets;
use super::{failed, succeeded, unknown};
use crate::container::{Key, PROJECT_LABEL, SERVICE_LABEL};

/// Longest wait for the engine's answer to a question.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);
/// Longest wait for one thing that the engine is told to do: a service may take its time to stop, and the engine waits for
/// it.
pub(super) const LONGEST: Duration = Duration::from_secs(900);

/// Declares the service that backs up its stack.
const BACKUP_LABEL: &str = "com.hyperfactory.backup";
/// Lines of a backup's log that are kept.
const BACKUP_LINES: &str = "500";

/// What to do to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Start,
    Stop,
    Restart,
}

impl Verb {
    fn done(self) -> &'static str {
        match self {
            Self::Start => "started",
            Self::Stop => "stopped",
            Self::Restart => "restarted",
        }
    }
}

/// One container, as people call it.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) name: String,
    /// Compose's number of it.
    pub(crate) number: u32,
    pub(crate) running: bool,
}

/// Does it to every container of the service, one after the other.
pub(super) async fn act(
    engine: &Docker,
    verb: Verb,
    stack: &str,
    service: &str,
    stop: &CancellationToken,
    output: &Output,
) -> Ending {
    let containers = match find(engine, stack, service).await {
        Ok(containers) => containers,
        Err(ending) => return ending,
    };
    for (index, container) in containers.iter().enumerate() {
        if stop.is_cancelled() {
            let message = format!("{index} of {} containers were {}", containers.len(), verb.done());
            return Ending::new(CommandState::Cancelled, &message);
        }
        // Once told, the engine does it whether or not anybody waits.
        let told = match verb {
            Verb::Start => engine.start_container(&container.id, None::<StartContainerOptions>).await,
            Verb::Stop => engine.stop_container(&container.id, None::<StopContainerOptions>).await,
            Verb::Restart => engine.restart_container(&container.id, None::<RestartContainerOptions>).await,
        };
        if let Err(error) = told {
            return of_error(&container.name, &error);
        }
        let stands = match engine.inspect_container(&container.id, None::<InspectContainerOptions>).await {
            Ok(inspected) => inspected.state.unwrap_or_default(),
            Err(error) => return of_error(&container.name, &error),
        };
        let running = stands.running.unwrap_or(false);
        if running == (verb == Verb::Stop) {
            let code = stands.exit_code.unwrap_or(0);
            return failed(match verb {
                Verb::Stop => format!("{} was stopped, and runs again: see its restart policy", container.name),
                _ => format!("{} was {}, and has ended with code {code}: see its log", container.name, verb.done()),
            });
        }
        let since = stands.started_at.filter(|_| running).map(|at| format!(", running since {at}")).unwrap_or_default();
        output.write(format!("{}: {}{since}\n", container.name, verb.done())).await;
    }
    let count = containers.len();
    succeeded(&if count == 1 {
        format!("{} {}", service, verb.done())
    } else {
        format!("{count} containers {}", verb.done())
    })
}

/// The last lines of the service's log; of every container when it has several.
pub(super) async fn logs(
    engine: &Docker,
    stack: &str,
    service: &str,
    lines: u32,
    stop: &CancellationToken,
    output: &Output,
) -> Ending {
    let containers = match find(engine, stack, service).await {
        Ok(containers) => containers,
        Err(ending) => return ending,
    };
    let room = MAX_OUTPUT / containers.len();
    for container in &containers {
        if containers.len() > 1 {
            output.write(format!("==> {} <==\n", container.name)).await;
        }
        let options = LogsOptions {
            stdout: true,
            stderr: true,
            timestamps: true,
            tail: lines.to_string(),
            ..LogsOptions::default()
        };
        match stop.run_until_cancelled(tail(engine, &container.id, options, room)).await {
            None => return Ending::new(CommandState::Cancelled, "stopped while it was read"),
            Some(Err(error)) => return of_question(&container.name, &error),
            Some(Ok(text)) => output.write(text).await,
        }
    }
    succeeded("")
}

/// Runs the stack's backup to its end, which is to come `within` this.
pub(super) async fn backup(
    engine: &Docker,
    stack: &str,
    within: Period,
    stop: &CancellationToken,
    output: &Output,
) -> Ending {
    let labels = vec![format!("{PROJECT_LABEL}={stack}"), format!("{BACKUP_LABEL}=true")];
    let containers = match list(engine, labels).await {
        Ok(containers) => containers,
        Err(error) => return of_question(stack, &error),
    };
    let container = match containers.as_slice() {
        [one] => one,
        [] => {
            return failed(format!(
                "{stack} declares no backup: give one of its services the label {BACKUP_LABEL}=true, and create it with \
                 docker compose create"
            ));
        }
        several => {
            return failed(format!("{stack} has {} containers with the label {BACKUP_LABEL}=true", several.len()));
        }
    };
    if container.running {
        return failed(format!("{} is running already", container.name));
    }
    let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    if let Err(error) = engine.start_container(&container.id, None::<StartContainerOptions>).await {
        return of_error(&container.name, &error);
    }
    let mut ended = Box::pin(engine.wait_container(&container.id, None::<WaitContainerOptions>));
    let code = match stop.run_until_cancelled(timeout(within.get(), ended.next())).await {
        None => {
            let message = format!("{} was stopped while it ran: this backup is not whole", container.name);
            return cut_short(engine, container, Ending::new(CommandState::Cancelled, &message)).await;
        }
        Some(Err(_)) => {
            let message = format!(
                "{} was stopped after {within}: this backup is not whole. For more time its owner sets backup-within in \
                 agent.toml, [commands]",
                container.name
            );
            return cut_short(engine, container, failed(message)).await;
        }
        Some(Ok(Some(Ok(answer)))) => answer.status_code,
        Some(Ok(Some(Err(EngineError::DockerContainerWaitError { code, .. })))) => code,
        Some(Ok(Some(Err(error)))) => return of_error(&container.name, &error),
        Some(Ok(None)) => return unknown(format!("the engine no longer tells how {} goes", container.name)),
    };
    let options = LogsOptions {
        stdout: true,
        stderr: true,
        since: i32::try_from(began).unwrap_or(0),
        tail: BACKUP_LINES.into(),
        ..LogsOptions::default()
    };
    match tail(engine, &container.id, options, MAX_OUTPUT).await {
        Ok(text) => output.write(text).await,
        Err(error) => output.write(format!("(its log can't be read: {error})\n")).await,
    }
    match code {
        0 => succeeded(&format!("{} ended well", container.name)),
        code => failed(format!("{} ended with code {code}", container.name)),
    }
}

/// Stops a backup; it has ended so, when it could be stopped.
async fn cut_short(engine: &Docker, container: &Container, ending: Ending) -> Ending {
    match engine.stop_container(&container.id, None::<StopContainerOptions>).await {
        Ok(()) => ending,
        Err(error) => of_error(&container.name, &error),
    }
}

/// The end of a container's log, at most `room` bytes of it.
async fn tail(engine: &Docker, id: &str, options: LogsOptions, room: usize) -> Result<Vec<u8>, EngineError> {
    let mut lines = Box::pin(engine.logs(id, Some(options)));
    let mut text: Vec<u8> = Vec::new();
    while let Some(line) = lines.next().await {
        let message = match line? {
            LogOutput::StdErr { message } | LogOutput::StdOut { message } => message,
            LogOutput::StdIn { message } | LogOutput::Console { message } => message,
        };
        text.extend_from_slice(&message);
        // The oldest give way, now and then and from a line's begin.
        if text.len() > 2 * room {
            cut(&mut text, room);
        }
    }
    cut(&mut text, room);
    Ok(text)
}

fn cut(text: &mut Vec<u8>, room: usize) {
    let over = text.len().saturating_sub(room);
    if over > 0 {
        let rest = text.get(over..).unwrap_or_default();
        let line = rest.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        text.drain(..over + line);
    }
}

/// The containers of a service.
pub(crate) async fn find(engine: &Docker, stack: &str, service: &str) -> Result<Vec<Container>, Ending> {
    let labels = vec![format!("{PROJECT_LABEL}={stack}"), format!("{SERVICE_LABEL}={service}")];
    match list(engine, labels).await {
        Ok(containers) if containers.is_empty() => Err(failed(format!(
            "there is no container of the service {service} of {stack}: see docker compose --project-name {stack} ps --all"
        ))),
        Ok(containers) => Ok(containers),
        Err(error) => Err(of_question(stack, &error)),
    }
}

async fn list(engine: &Docker, labels: Vec<String>) -> Result<Vec<Container>, EngineError> {
    let filters = Some(HashMap::from([("label".to_owned(), labels)]));
    let options = ListContainersOptions { all: true, filters, ..ListContainersOptions::default() };
    let asked = timeout(ANSWER, engine.list_containers(Some(options)));
    let found = asked.await.unwrap_or(Err(EngineError::RequestTimeoutError))?;
    let mut found: Vec<(Key, Container)> = found.into_iter().filter_map(read).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found.into_iter().map(|(_, container)| container).collect())
}

/// `None` for what `docker compose run` leaves behind.
fn read(summary: ContainerSummary) -> Option<(Key, Container)> {
    let key = Key::of(summary.labels.as_ref()?)?;
    let name = summary.names.and_then(|names| names.into_iter().next()).unwrap_or_default();
    let running = summary.state.is_some_and(|state| state.to_string() == "running");
    let name = name.trim_start_matches('/').to_owned();
    let container = Container { id: summary.id?, name, number: key.number, running };
    Some((key, container))
}

/// The engine was told to do something, and this came of it: a no is a no, and silence may be anything.
fn of_error(container: &str, error: &EngineError) -> Ending {
    match error {
        EngineError::DockerResponseServerError { message, .. } => failed(format!("{container}: {}", shown(message))),
        error => unknown(format!("{container}: the engine was told, and did not answer ({error})")),
    }
}

/// The engine was asked something, which changes nothing.
fn of_question(what: &str, error: &EngineError) -> Ending {
    match error {
        EngineError::DockerResponseServerError { message, .. } => failed(format!("{what}: {}", shown(message))),
        error => failed(format!("{what}: the engine does not answer: {error}")),
    }
}

/// What the engine says, which may repeat a container's command or environment.
fn shown(message: &str) -> String {
    Secrets::new().map_or_else(|_| "the engine refused; see its log".to_owned(), |secrets| secrets.hide(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_too_long_loses_its_oldest_lines_whole() {
        let mut text = b"one\ntwo\nthree\n".to_vec();
        cut(&mut text, 100);
        assert_eq!(text, b"one\ntwo\nthree\n");
        cut(&mut text, 11);
        assert_eq!(text, b"two\nthree\n");
        cut(&mut text, 7);
        assert_eq!(text, b"three\n");
    }

    #[test]
    fn silence_is_not_taken_for_a_no() {
        let refused = EngineError::DockerResponseServerError { status_code: 500, message: "no such image".into() };
        assert_eq!(of_error("web", &refused).state, CommandState::Failed);
        assert_eq!(of_error("web", &EngineError::RequestTimeoutError).state, CommandState::Unknown);
        assert_eq!(of_question("web", &EngineError::RequestTimeoutError).state, CommandState::Failed);
    }
}
