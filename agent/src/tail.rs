//! Reads a service's log for the hub, as it is written: of all its containers, also when one is restarted or replaced.
//!
//! Whatever a service writes, this holds one line of it at a time: what is more than a tail may take is counted and let go.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error as EngineError;
use bollard::query_parameters::{InspectContainerOptions, LogsOptions};
use futures_util::stream::{SelectAll, select_all};
use futures_util::{Stream, StreamExt, stream};
use node::tails::{Lines, Source};
use protocol::message::{TailEndReason, TailLine};
use protocol::tail::Tail;
use regex::bytes::{Regex, RegexBuilder};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::command::service::{self, ANSWER, Container};
use crate::config::Config;
use crate::docker::Followed;
use crate::engine::Address;
use crate::entry::{Entry, Moment};

/// Most bytes that an expression may take once compiled, and most that its search may remember.
const GREP_SIZE: usize = 256 * 1024;
/// Containers of one service that are read at once; of more, only the first, and the reader is told.
const CONTAINERS: usize = 8;
/// Between two looks whether a service has other containers by now, at least.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Until the next look when the engine did not say all.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Reads logs.
pub struct Tailer {
    /// The configuration, with the local policy.
    pub config: Arc<Config>,
    /// The engine.
    pub engine: Address,
    /// What the engine's follower knows: a change of it may be a container that came or went.
    pub followed: watch::Receiver<Followed>,
}

/// Why a tail ends.
type End = (TailEndReason, String);

/// A container's log; `None` at its end.
type Log = Pin<Box<dyn Stream<Item = (u32, Option<Result<LogOutput, EngineError>>)> + Send>>;

impl Tailer {
    /// As a node takes it.
    pub fn source(self) -> Source {
        let tailer = Arc::new(self);
        Arc::new(move |tail, mut lines| {
            let tailer = Arc::clone(&tailer);
            Box::pin(async move {
                let (reason, message) = match tailer.read(&tail, &mut lines).await {
                    Ok(()) => (TailEndReason::Complete, String::new()),
                    Err(end) => end,
                };
                lines.end(reason, message).await;
            })
        })
    }

    async fn read(&self, tail: &Tail, lines: &mut Lines) -> Result<(), End> {
        let allowed = self.config.commands.allows_tail(&tail.stack, &tail.service);
        allowed.map_err(|why| {
            tracing::warn!(stack = tail.stack, service = tail.service, "a log is not read for the hub: {why}");
            (TailEndReason::Refused, why)
        })?;
        let grep = tail.grep.as_deref().map(expression).transpose()?;
        // Before the list is made, so that a change after it is one.
        let mut followed = self.followed.clone();
        followed.mark_unchanged();
        let engine = self.engine.connect(ANSWER).await.map_err(failed)?;
        let containers = service::find(&engine, &tail.stack, &tail.service).await;
        let containers = containers.map_err(|ending| failed(ending.message))?;
        lines.begin().await;
        let mut reading = Reading {
            tail,
            engine,
            grep,
            began: Moment::of(SystemTime::now().into()),
            since: tail.since.map(Moment::of),
            until: tail.until.map(Moment::of),
            newest: BTreeMap::new(),
            resumed: BTreeMap::new(),
            attached: BTreeMap::new(),
            unread: 0,
            logs: select_all([]),
        };
        reading.say_unread(containers.len(), lines).await;
        for container in containers.iter().take(CONTAINERS) {
            reading.attach(container).await?;
        }
        reading.run(lines, &mut followed).await
    }
}

/// One tail under way.
struct Reading<'a> {
    tail: &'a Tail,
    engine: Docker,
    grep: Option<Regex>,
    /// What was written until then was there before anybody asked.
    began: Moment,
    since: Option<Moment>,
    until: Option<Moment>,
    /// When each container wrote its last line that was read, by Compose's number.
    newest: BTreeMap<u32, Moment>,
    /// Where the reading of a container was taken up again: the engine is asked for whole seconds.
    resumed: BTreeMap<u32, Moment>,
    /// The containers that are being read.
    attached: BTreeMap<u32, String>,
    /// Those that are not, for they are too many, as the reader was told.
    unread: usize,
    logs: SelectAll<Log>,
}

impl Reading<'_> {
    async fn run(&mut self, lines: &mut Lines, followed: &mut watch::Receiver<Followed>) -> Result<(), End> {
        let until = self.tail.until.filter(|_| self.tail.follow);
        let over = async {
            match until {
                Some(until) => tokio::time::sleep(until.since(SystemTime::now().into())).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(over);
        let mut look_at = None;
        loop {
            if self.logs.is_empty() && !self.tail.follow {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = lines.due() => lines.flush().await,
                () = &mut over => return Ok(()),
                () = at(look_at) => {
                    let all = self.look_again(lines).await;
                    look_at = (!all).then(|| Instant::now() + ASK_AGAIN);
                }
                output = self.logs.next(), if !self.logs.is_empty() => match output {
                    Some((number, Some(Ok(output)))) => self.take(number, &output, lines).await,
                    // It is being removed; perhaps another takes its place.
                    Some((_, Some(Err(EngineError::DockerResponseServerError { status_code: 404 | 409, .. }))))
                        if self.tail.follow => {}
                    Some((_, Some(Err(error)))) => return Err(failed(format!("the engine does not go on with the log: {error}"))),
                    Some((number, None)) => drop(self.attached.remove(&number)),
                    None => {}
                },
                changed = followed.changed(), if self.tail.follow => {
                    changed.map_err(|_| failed("the agent is stopping"))?;
                    let soon = Instant::now() + LOOK_AGAIN;
                    look_at = Some(look_at.map_or(soon, |at: Instant| at.min(soon)));
                }
            }
        }
    }

    async fn take(&mut self, number: u32, output: &LogOutput, lines: &mut Lines) {
        let entry = Entry::read(output);
        let at = entry.at.unwrap_or_else(|| Moment::of(SystemTime::now().into()));
        if self.resumed.get(&number).is_some_and(|newest| at <= *newest) {
            return;
        }
        self.newest.insert(number, at);
        let unwanted = self.since.is_some_and(|since| at < since) || self.until.is_some_and(|until| at > until);
        if unwanted || self.grep.as_ref().is_some_and(|grep| !grep.is_match(entry.text)) {
            return;
        }
        if at <= self.began {
            lines.earlier(entry.line(at, number)).await;
        } else {
            lines.now(entry.text.len(), || entry.line(at, number));
        }
    }

    /// Goes on with containers that were started or replaced; false when that is not all of them yet.
    async fn look_again(&mut self, lines: &mut Lines) -> bool {
        // None for a moment, while it is created anew.
        let Ok(containers) = service::find(&self.engine, &self.tail.stack, &self.tail.service).await else {
            return false;
        };
        let running: Vec<&Container> = containers.iter().filter(|container| container.running).collect();
        self.say_unread(running.len(), lines).await;
        let mut all = true;
        for container in running.into_iter().take(CONTAINERS) {
            if self.attached.get(&container.number) != Some(&container.id)
                && let Err((_, why)) = self.attach(container).await
            {
                tracing::debug!("a container's log is not read: {why}");
                all = false;
            }
        }
        all
    }

    /// Tells the reader when there are more containers than are read.
    async fn say_unread(&mut self, containers: usize, lines: &mut Lines) {
        let unread = containers.saturating_sub(CONTAINERS);
        if unread > self.unread {
            let Tail { stack, service, .. } = self.tail;
            let text =
                format!("--- only {CONTAINERS} of the {containers} containers of {stack}/{service} are read ---");
            let at_ms = Moment::of(SystemTime::now().into()).millis();
            lines.earlier(TailLine { at_ms, text: text.into_bytes(), ..TailLine::default() }).await;
        }
        self.unread = unread;
    }

    async fn attach(&mut self, container: &Container) -> Result<(), End> {
        let inspected = self.engine.inspect_container(&container.id, None::<InspectContainerOptions>);
        let inspected = timeout(ANSWER, inspected).await.unwrap_or(Err(EngineError::RequestTimeoutError));
        let inspected = inspected.map_err(|error| failed(format!("{}: {error}", container.name)))?;
        if inspected.config.and_then(|config| config.tty).unwrap_or(false) {
            // What a terminal is sent has no lines that must end somewhere.
            return Err(failed(format!("{} writes to a terminal (tty: true), which is not followed", container.name)));
        }
        let again = self.newest.get(&container.number).copied();
        self.resumed.extend(again.map(|newest| (container.number, newest)));
        let from = again.map(|newest| newest.seconds()).or(self.tail.since.map(|since| since.millis() / 1000));
        let options = LogsOptions {
            follow: self.tail.follow,
            stdout: true,
            stderr: true,
            timestamps: true,
            since: from.map_or(0, whole),
            // A second more: the engine's own bound is a whole second, and lines are judged here.
            until: self.tail.until.map_or(0, |until| whole(until.millis() / 1000 + 1)),
            tail: if again.is_some() { "all".into() } else { self.tail.lines.to_string() },
        };
        let number = container.number;
        let log = self.engine.logs(&container.id, Some(options)).map(move |output| (number, Some(output)));
        self.logs.push(Box::pin(log.chain(stream::once(async move { (number, None) }))));
        self.attached.insert(number, container.id.clone());
        Ok(())
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn expression(grep: &str) -> Result<Regex, End> {
    let built = RegexBuilder::new(grep).size_limit(GREP_SIZE).dfa_size_limit(GREP_SIZE).build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => failed(format!("{grep:?} takes too much to search for: use a simpler one")),
        error => failed(error.to_string()),
    })
}

fn failed(message: impl ToString) -> End {
    (TailEndReason::Failed, message.to_string())
}

/// Seconds as the engine's client takes them, until 2038.
fn whole(seconds: i64) -> i32 {
    i32::try_from(seconds).unwrap_or(i32::MAX)
}
