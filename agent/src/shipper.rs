//! Ships services' logs: follows the containers that are chosen, and gathers their lines into batches for the spool.
//!
//! A line is in the spool once, or it is counted among those left out: where each container was read to is written down
//! with every batch (`position.rs`), and the engine's own log is where lines wait meanwhile.

mod batch;
mod budget;
mod position;
mod reader;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bollard::Docker;
use bollard::errors::Error as EngineError;
use bollard::models::{ContainerStateStatusEnum, ContainerSummary};
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptions};
use node::backlog::BacklogError;
use node::{Backlog, FileError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::command::service::ANSWER;
use crate::config::Logs;
use crate::container::{ContainerId, Key, PROJECT_LABEL};
use crate::docker::Followed;
use crate::engine::Address;
use crate::entry::Moment;
use batch::Batch;
pub(crate) use budget::Rate;
use position::{Journal, Position, Positions};
use reader::{Item, Reader};

/// Lines between the readers and the spool. When full, readers wait in turn, and lines stay in the engine's log.
const ITEMS_BOUND: usize = 256;
/// Containers that are read at once; of more, the first by their ids, until one of them ends.
pub(crate) const CONTAINERS: usize = 128;
/// Between two looks whether there are other containers by now, at least and at most.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Until the engine is asked again when it did not answer, or ended a log that goes on.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Between attempts to write while the disk refuses.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

/// Ships logs until told to stop.
pub struct Shipper {
    config: Logs,
    engine: Address,
    followed: watch::Receiver<Followed>,
    backlog: Backlog,
    journal: Journal,
    positions: Positions,
    lives: HashMap<ContainerId, Life>,
    reading: HashSet<ContainerId>,
    /// The engine would not say how these are.
    troubled: HashSet<ContainerId>,
    readers: JoinSet<(ContainerId, Position, Result<(), EngineError>)>,
}

/// What is known of a container that is read, or was.
struct Life {
    /// When it was started, as the engine says it.
    started: String,
    /// How far it was read; not all of that may be stored yet.
    position: Position,
    /// There was no more to read.
    over: bool,
}

/// A container to read.
struct Chosen {
    id: ContainerId,
    /// As people call it.
    name: String,
    key: Key,
    running: bool,
}

impl Shipper {
    /// One that keeps where it was in `file`, beside the spool behind `backlog`. Blocks for a moment.
    ///
    /// # Errors
    /// When the file can't be read or written.
    pub fn open(
        config: Logs,
        engine: Address,
        followed: watch::Receiver<Followed>,
        backlog: Backlog,
        file: PathBuf,
    ) -> Result<Self, FileError> {
        let now = Moment::of(SystemTime::now().into());
        let (journal, positions) = Journal::open(file, backlog.newest(), &config.services, now)?;
        Ok(Self {
            config,
            engine,
            followed,
            backlog,
            journal,
            positions,
            lives: HashMap::new(),
            reading: HashSet::new(),
            troubled: HashSet::new(),
            readers: JoinSet::new(),
        })
    }

    /// Follows and gathers until `stop`. What is gathered then and not stored stays in the engine's log.
    pub async fn run(mut self, stop: CancellationToken) {
        let (items, mut gathered) = mpsc::channel(ITEMS_BOUND);
        let mut batch = Batch::new(self.backlog.max_body());
        let mut look_at = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep_until(look_at) => look_at = Instant::now() + self.look(&items).await,
                Some(ended) = self.readers.join_next() => {
                    self.ended(ended);
                    // It may have been started again already.
                    look_at = look_at.min(Instant::now() + ASK_AGAIN);
                }
                // An agent that stops drops what this follows.
                Ok(()) = self.followed.changed() => look_at = look_at.min(Instant::now() + LOOK_AGAIN.0),
                () = batch.due() => {
                    let full = batch.take();
                    if stop.run_until_cancelled(self.store(full)).await.is_none() {
                        return;
                    }
                }
                Some(item) = gathered.recv(), if !batch.is_full() => batch.add(item),
            }
        }
    }

    /// Looks for containers that are to be read and are not; gives when to look again.
    async fn look(&mut self, items: &mpsc::Sender<Item>) -> Duration {
        let looked = async {
            let engine = self.engine.connect(ANSWER).await.map_err(|trouble| trouble.to_string())?;
            let mut chosen = chosen(&self.config, &engine).await.map_err(|error| error.to_string())?;
            self.positions.retain(|id, _| chosen.iter().any(|chosen| chosen.id.as_str() == id));
            self.lives.retain(|id, _| chosen.iter().any(|chosen| chosen.id == *id));
            self.troubled.retain(|id| chosen.iter().any(|chosen| chosen.id == *id));
            // The others do not wait for an answer that did not come the last time.
            chosen.sort_by_key(|chosen| self.troubled.contains(&chosen.id));
            let mut again = LOOK_AGAIN.1;
            for chosen in chosen {
                if self.reading.len() >= CONTAINERS {
                    tracing::warn!(
                        most = CONTAINERS,
                        "more containers than can be read at once: others are not shipped"
                    );
                    break;
                }
                if self.reading.contains(&chosen.id) {
                    continue;
                }
                let (id, name) = (chosen.id.clone(), chosen.name.clone());
                let Err(error) = self.attach(&engine, chosen, items).await else {
                    self.troubled.remove(&id);
                    continue;
                };
                if !is_of_container(&error) {
                    return Err(error.to_string());
                }
                if self.troubled.insert(id) {
                    tracing::warn!(container = name, %error, "its log is not shipped: the engine would not say how it is");
                    again = ASK_AGAIN;
                }
                if matches!(error, EngineError::RequestTimeoutError) {
                    // Lines wait while it is asked.
                    break;
                }
            }
            Ok::<_, String>(again)
        };
        match looked.await {
            Ok(again) => again,
            Err(why) => {
                // The engine's follower warns of an engine that does not answer.
                tracing::debug!("containers' logs: {why}");
                ASK_AGAIN
            }
        }
    }

    async fn attach(&mut self, engine: &Docker, chosen: Chosen, items: &mpsc::Sender<Item>) -> Result<(), EngineError> {
        let Chosen { id, key, .. } = chosen;
        let asked = timeout(ANSWER, engine.inspect_container(id.as_str(), None::<InspectContainerOptions>));
        let inspected = match asked.await.unwrap_or(Err(EngineError::RequestTimeoutError)) {
            // It is being removed.
            Err(EngineError::DockerResponseServerError { status_code: 404 | 409, .. }) => return Ok(()),
            inspected => inspected?,
        };
        let state = inspected.state.unwrap_or_default();
        let started = state.started_at.unwrap_or_default();
        let life = self.lives.get(&id);
        let position = life.map(|life| life.position).or_else(|| self.positions.get(id.as_str()).copied());
        let position = position.unwrap_or_default();
        let known = life.is_some_and(|life| life.over && life.started == started);
        if known && !state.running.unwrap_or(false) || state.status == Some(ContainerStateStatusEnum::CREATED) {
            return Ok(());
        }
        let terminal = inspected.config.and_then(|config| config.tty).unwrap_or(false);
        let begun = Life { started, position, over: terminal };
        let before = self.lives.insert(id.clone(), begun);
        if terminal {
            // What a terminal is sent has no lines that must end somewhere.
            if before.is_none() {
                tracing::warn!(service = key.target(), "its log is not shipped: it writes to a terminal (tty: true)");
            }
            return Ok(());
        }
        self.reading.insert(id.clone());
        let began = self.journal.began(&key);
        let of = (id.clone(), Arc::new(key));
        let reader = Reader::new(of, began, position, self.config.rate(), items.clone());
        let engine = engine.clone();
        self.readers.spawn(async move {
            let (position, read) = reader.run(&engine).await;
            (id, position, read)
        });
        Ok(())
    }

    /// Takes note that a log was read to its end.
    fn ended(&mut self, ended: Result<(ContainerId, Position, Result<(), EngineError>), tokio::task::JoinError>) {
        let Ok((id, position, read)) = ended else {
            tracing::error!("a reader of a container's log ended unexpectedly");
            return;
        };
        self.reading.remove(&id);
        if let Err(error) = &read {
            tracing::debug!(container = id.as_str(), %error, "a container's log broke off");
        }
        if let Some(life) = self.lives.get_mut(&id) {
            (life.position, life.over) = (position, read.is_ok());
        }
    }

    /// Stores a batch, however long the disk takes: readers wait meanwhile.
    async fn store(&mut self, full: batch::Full) {
        let mut after = self.positions.clone();
        after.extend(full.positions);
        loop {
            let (file, saved) = (self.journal.file(), self.journal.next(&self.positions, &after));
            let body = full.body.clone();
            let stored = self.backlog.store(body, move |epoch, sequence| saved.write(&file, epoch, sequence)).await;
            match stored {
                Ok(()) => break,
                // It has its number: it must be durable before the next gets one.
                Err(BacklogError::Spool(error)) => {
                    tracing::warn!("logs: {error}");
                    while self.backlog.settle().await.is_err() {
                        tokio::time::sleep(WRITE_AGAIN).await;
                    }
                    break;
                }
                Err(error) => tracing::warn!("logs: {error}"),
            }
            tokio::time::sleep(WRITE_AGAIN).await;
        }
        self.positions = after;
    }
}

/// How many containers that run are chosen.
pub(crate) async fn running(config: &Logs, engine: &Docker) -> Result<usize, EngineError> {
    Ok(chosen(config, engine).await?.iter().filter(|chosen| chosen.running).count())
}

async fn chosen(config: &Logs, engine: &Docker) -> Result<Vec<Chosen>, EngineError> {
    let filters = Some(HashMap::from([("label".to_owned(), vec![PROJECT_LABEL.to_owned()])]));
    let options = ListContainersOptions { all: true, filters, ..ListContainersOptions::default() };
    let asked = timeout(ANSWER, engine.list_containers(Some(options)));
    let found = asked.await.unwrap_or(Err(EngineError::RequestTimeoutError))?;
    let mut chosen: Vec<Chosen> = found.into_iter().filter_map(|summary| choose(config, summary)).collect();
    chosen.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(chosen)
}

fn choose(config: &Logs, summary: ContainerSummary) -> Option<Chosen> {
    let key = Key::of(summary.labels.as_ref()?)?;
    let id = ContainerId::from(summary.id?);
    let name = summary.names.unwrap_or_default().into_iter().next();
    let name = name.map_or_else(|| id.as_str().to_owned(), |name| name.trim_start_matches('/').to_owned());
    let running = summary.state.is_some_and(|state| state.to_string() == "running");
    config.chooses(&key.stack, &key.service).then_some(Chosen { id, name, key, running })
}

/// Whether others may fare better with the engine than the container that was asked about.
fn is_of_container(error: &EngineError) -> bool {
    use EngineError::{DockerResponseServerError, JsonDataError, JsonSerdeError, RequestTimeoutError};
    matches!(
        error,
        DockerResponseServerError { .. } | JsonDataError { .. } | JsonSerdeError { .. } | RequestTimeoutError
    )
}
