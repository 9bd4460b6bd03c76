//! Follows the Docker Engine: its event stream, and a question about a container when an event does not say enough.
//!
//! State is never polled. A full look follows each connection, and events since the last one seen are asked for again,
//! so that nothing is missed between two connections.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error as EngineError;
use bollard::models::{ContainerInspectResponse, ContainerSummary, EventMessage, ImageInspect, SystemInfo};
use bollard::query_parameters::{EventsOptions, InspectContainerOptions, ListContainersOptions};
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use node::{Change, Recorder};
use protocol::Timestamp;
use protocol::message::{Engine, EngineState};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::container::{ACTIONS, ContainerId, Event, Inspected, PROJECT_LABEL, listed};
use crate::engine::{Address, Trouble};
use crate::services::{Next, Running, Services};

/// Longest wait for one answer: beyond it the engine hangs.
const ANSWER: Duration = Duration::from_secs(10);
/// A stream may be silent because nothing happens or because the engine hangs; this often it is asked which.
const PING: Duration = Duration::from_secs(30);
/// Questions under way at once: enough to be quick after a restart, too few to weigh on the engine.
const AT_ONCE: usize = 4;
/// A container that starts and dies many times a second is asked about this often at the most.
const SAME_CONTAINER: Duration = Duration::from_millis(500);
/// After the engine failed to answer about one container.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Between attempts to connect: the first wait, doubled each time up to the last.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// What the engine's follower publishes for whoever reads containers' figures.
#[derive(Debug, Clone, Default)]
pub struct Followed {
    /// The containers that run.
    pub running: Arc<[Running]>,
    /// The engine, while it answers.
    pub engine: Option<bollard::Docker>,
    /// Whether the engine's state is known: connected and looked at, or in trouble.
    pub settled: bool,
}

/// Follows one engine until told to stop.
pub struct Follower {
    address: Address,
    recorder: Recorder,
    followed: watch::Sender<Followed>,
    services: Services,
    /// Time of the newest event seen, in ns by the engine's clock.
    newest: Option<i64>,
}

impl Follower {
    /// A follower of the engine at `address` that tells `recorder` every change at once.
    pub fn new(address: Address, recorder: Recorder) -> (Self, watch::Receiver<Followed>) {
        let (followed, receiver) = watch::channel(Followed::default());
        (Self { address, recorder, followed, services: Services::default(), newest: None }, receiver)
    }

    /// Connects, follows, and connects again, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        stop.clone()
            .run_until_cancelled(async move {
                let mut wait = RECONNECT.0;
                // A host without an engine is asked for ever, and need not read of it every time.
                let mut said = None;
                loop {
                    let trouble = match self.address.connect(ANSWER).await {
                        Ok(engine) => {
                            let began = Instant::now();
                            let end = self.follow(engine).await;
                            if began.elapsed() > RECONNECT.1 {
                                wait = RECONNECT.0;
                                said = None;
                            }
                            self.followed.send_modify(|followed| followed.engine = None);
                            match end {
                                // A restarting engine ends the stream and is back soon: only if it isn't, something is wrong.
                                End::Stream => None,
                                End::Trouble(trouble) => Some(trouble),
                            }
                        }
                        Err(trouble) => Some(trouble),
                    };
                    if let Some(trouble) = trouble {
                        if said.as_ref() != Some(&trouble) {
                            tracing::warn!(engine = %self.address, "{trouble}");
                            said = Some(trouble.clone());
                        }
                        self.tell(Some(trouble.into())).await;
                        self.followed.send_modify(|followed| followed.settled = true);
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RECONNECT.1);
                }
            })
            .await;
    }

    /// Follows a connected engine to the end of its event stream.
    async fn follow(&mut self, engine: bollard::Docker) -> End {
        let info = match ask(engine.info()).await {
            Ok(info) => info,
            Err(error) if is_unreadable(&error) => SystemInfo::default(),
            Err(error) => return End::Trouble(self.address.trouble(&error)),
        };
        let started = Instant::now();
        // Without the engine's time ours has to do; it is the same machine's in all but odd set-ups.
        let engine_started = info.system_time.as_deref().and_then(crate::container::time).unwrap_or_else(now);
        let connected = Engine {
            state: EngineState::Connected.into(),
            version: info.server_version.unwrap_or_default(),
            message: String::new(),
        };
        let since = self.newest.map_or(engine_started.millis() * 1_000_000, |newest| newest.saturating_add(1));
        let mut events = pin!(events(&engine, since));
        let mut questions = Questions::default();
        let mut answers: FuturesUnordered<Pin<Box<dyn Future<Output = Answer> + Send>>> = FuturesUnordered::new();
        answers.push(Box::pin(list(engine.clone())));
        // The containers of the first look that are still to be asked about; `None` before the list is there.
        let mut first_look: Option<BTreeSet<ContainerId>> = None;
        let mut settled = false;
        let mut ping_due = Instant::now() + PING;

        loop {
            if !settled && first_look.as_ref().is_some_and(BTreeSet::is_empty) {
                settled = true;
                tracing::info!(engine = %self.address, version = connected.version, "following the Docker Engine");
                self.tell(Some(connected.clone())).await;
                self.followed.send_modify(|followed| {
                    followed.engine = Some(engine.clone());
                    followed.settled = true;
                });
            }
            while answers.len() < AT_ONCE
                && let Some(question) = questions.next(Instant::now())
            {
                let asked = engine_started.plus(started.elapsed());
                answers.push(match question {
                    Question::Container(container) => Box::pin(inspect(engine.clone(), container, asked)),
                    Question::Image(image) => Box::pin(inspect_image(engine.clone(), image)),
                });
            }
            let wake = questions.due().filter(|_| answers.len() < AT_ONCE).unwrap_or(ping_due).min(ping_due);
            tokio::select! {
                biased;
                Some(answer) = answers.next() => match self.take(answer, &mut questions, &mut first_look) {
                    Ok(true) if settled => self.tell(None).await,
                    Ok(_) => {}
                    Err(trouble) => return End::Trouble(trouble),
                },
                message = events.next() => match message {
                    None => return End::Stream,
                    Some(Err(error)) if is_unreadable(&error) => tracing::warn!(%error, "an engine event can't be read"),
                    // A timeout while opening is a hang; an error later is the engine going away.
                    Some(Err(EngineError::RequestTimeoutError)) => {
                        return End::Trouble(self.address.trouble(&EngineError::RequestTimeoutError));
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%error, "the engine's event stream broke");
                        return End::Stream;
                    }
                    Some(Ok(message)) => {
                        self.newest = self.newest.max(message.time_nano);
                        let Some(event) = Event::read(message) else { continue };
                        match self.services.event(&event) {
                            Next::Nothing => {}
                            Next::Changed if settled => self.tell(None).await,
                            Next::Changed => {}
                            Next::Ask => questions.container(event.container),
                        }
                    }
                },
                () = sleep_until(wake) => if Instant::now() >= ping_due {
                    ping_due = Instant::now() + PING;
                    answers.push(Box::pin(ping(engine.clone())));
                },
            }
        }
    }

    /// Takes in an answer; says whether a service may have changed.
    fn take(
        &mut self,
        answer: Answer,
        questions: &mut Questions,
        first_look: &mut Option<BTreeSet<ContainerId>>,
    ) -> Result<bool, Trouble> {
        match answer {
            Answer::Ping(Ok(_)) => Ok(false),
            Answer::List(Ok(list)) => {
                let listed = listed(list);
                self.services.keep(&listed);
                listed.iter().cloned().for_each(|container| questions.container(container));
                *first_look = Some(listed.into_iter().collect());
                Ok(true)
            }
            Answer::Container { container, asked, answer } => {
                if let Some(first_look) = first_look {
                    first_look.remove(&container);
                }
                match *answer {
                    Ok(answer) => {
                        if let Some(inspected) = Inspected::read(answer) {
                            self.services.inspected(inspected, asked);
                        }
                        self.services.unknown_images().for_each(|image| questions.image(image));
                    }
                    Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => {
                        self.services.gone(&container);
                    }
                    Err(error) if is_unreadable(&error) => {
                        tracing::warn!(?container, %error, "the engine's answer about a container can't be read");
                    }
                    Err(error @ EngineError::DockerResponseServerError { .. }) => {
                        tracing::warn!(?container, %error, "the engine would not say how a container is");
                        questions.container_later(container);
                    }
                    Err(error) => return Err(self.address.trouble(&error)),
                }
                Ok(true)
            }
            Answer::Image { image, answer } => {
                let digest = match *answer {
                    Ok(inspected) => inspected.repo_digests.unwrap_or_default().into_iter().next(),
                    // It was removed while its container went on.
                    Err(EngineError::DockerResponseServerError { .. }) => None,
                    Err(error) if is_unreadable(&error) => None,
                    Err(error) => return Err(self.address.trouble(&error)),
                };
                let digest = digest.and_then(|name| name.split_once('@').map(|(_, digest)| digest.to_owned()));
                questions.images.remove(&image);
                self.services.digest(&image, digest.unwrap_or_else(|| image.clone()));
                Ok(true)
            }
            Answer::List(Err(error)) | Answer::Ping(Err(error)) => Err(self.address.trouble(&error)),
        }
    }

    /// Hands on what changed, and the engine's state when given.
    async fn tell(&mut self, engine: Option<Engine>) {
        let running = self.services.running();
        self.followed.send_if_modified(|followed| {
            let changed = *followed.running != *running;
            if changed {
                followed.running = running.into();
            }
            changed
        });
        let changes = self.services.changes();
        if engine.is_some() || !changes.changed.is_empty() || !changes.removed.is_empty() {
            self.recorder.change(Change { services: changes.changed, removed: changes.removed, engine }).await;
        }
    }
}

/// Why a connected engine is no longer followed.
enum End {
    /// Its event stream ended.
    Stream,
    Trouble(Trouble),
}

/// What is to be asked, and when.
#[derive(Debug, Default)]
struct Questions {
    containers: BTreeMap<ContainerId, Instant>,
    /// When each container was last asked about; bounded by forgetting what is past [`SAME_CONTAINER`].
    asked: HashMap<ContainerId, Instant>,
    /// Image ids, each asked about once; those under way stay in it, marked.
    images: BTreeMap<String, bool>,
}

enum Question {
    Container(ContainerId),
    Image(String),
}

impl Questions {
    /// Ask about a container at once, or as soon as it isn't too often.
    fn container(&mut self, container: ContainerId) {
        let due = self.asked.get(&container).map_or_else(Instant::now, |&asked| asked + SAME_CONTAINER);
        self.containers.entry(container).or_insert(due);
    }

    fn container_later(&mut self, container: ContainerId) {
        self.containers.entry(container).or_insert_with(|| Instant::now() + ASK_AGAIN);
    }

    fn image(&mut self, image: &str) {
        if !self.images.contains_key(image) {
            self.images.insert(image.to_owned(), false);
        }
    }

    /// What is to be asked now.
    fn next(&mut self, now: Instant) -> Option<Question> {
        if let Some(container) = self.containers.iter().find(|(_, due)| **due <= now).map(|(id, _)| id.clone()) {
            self.containers.remove(&container);
            self.asked.retain(|_, asked| *asked + SAME_CONTAINER > now);
            self.asked.insert(container.clone(), now);
            return Some(Question::Container(container));
        }
        let (image, under_way) = self.images.iter_mut().find(|(_, under_way)| !**under_way)?;
        *under_way = true;
        Some(Question::Image(image.clone()))
    }

    /// When the next container is due.
    fn due(&self) -> Option<Instant> {
        self.containers.values().min().copied()
    }
}

/// Boxed: an answer is large, and many wait in line.
enum Answer {
    List(Result<Vec<ContainerSummary>, EngineError>),
    Container { container: ContainerId, asked: Timestamp, answer: Box<Result<ContainerInspectResponse, EngineError>> },
    Image { image: String, answer: Box<Result<ImageInspect, EngineError>> },
    Ping(Result<String, EngineError>),
}

/// Awaits an answer, its body included, for as long as [`ANSWER`] says.
async fn ask<T>(question: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
    timeout(ANSWER, question).await.unwrap_or(Err(EngineError::RequestTimeoutError))
}

async fn list(engine: bollard::Docker) -> Answer {
    let options = ListContainersOptions {
        all: true,
        filters: Some(HashMap::from([("label".to_owned(), vec![PROJECT_LABEL.to_owned()])])),
        ..ListContainersOptions::default()
    };
    Answer::List(ask(engine.list_containers(Some(options))).await)
}

async fn inspect(engine: bollard::Docker, container: ContainerId, asked: Timestamp) -> Answer {
    let answer = ask(engine.inspect_container(container.as_str(), None::<InspectContainerOptions>)).await;
    Answer::Container { container, asked, answer: Box::new(answer) }
}

async fn inspect_image(engine: bollard::Docker, image: String) -> Answer {
    let answer = Box::new(ask(engine.inspect_image(&image)).await);
    Answer::Image { image, answer }
}

async fn ping(engine: bollard::Docker) -> Answer {
    Answer::Ping(ask(engine.ping()).await)
}

/// The events after `since`, in ns by the engine's clock: only what is reported, and only about Compose services.
fn events(engine: &bollard::Docker, since: i64) -> impl Stream<Item = Result<EventMessage, EngineError>> + use<> {
    let filter = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    engine.events(Some(EventsOptions {
        since: Some(format!("{}.{:09}", since.div_euclid(1_000_000_000), since.rem_euclid(1_000_000_000))),
        until: None,
        filters: Some(HashMap::from([
            ("type".to_owned(), filter(&["container"])),
            ("event".to_owned(), filter(&ACTIONS)),
            ("label".to_owned(), filter(&[PROJECT_LABEL])),
        ])),
    }))
}

/// The engine answered, in words of a version we don't know: no reason to leave it.
fn is_unreadable(error: &EngineError) -> bool {
    matches!(error, EngineError::JsonDataError { .. } | EngineError::JsonSerdeError { .. })
}

fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ContainerId {
        ContainerId::from(name.to_owned())
    }

    fn asked(questions: &mut Questions, now: Instant) -> Option<String> {
        match questions.next(now)? {
            Question::Container(container) => Some(container.as_str().to_owned()),
            Question::Image(image) => Some(image),
        }
    }

    #[test]
    fn a_container_in_a_quick_loop_is_asked_about_at_once_and_then_twice_a_second() {
        let mut questions = Questions::default();
        questions.container(id("looping"));
        questions.container(id("looping"));
        let begin = Instant::now();
        assert_eq!(asked(&mut questions, begin).as_deref(), Some("looping"));
        questions.container(id("looping"));
        questions.container(id("calm"));
        assert_eq!(asked(&mut questions, begin + Duration::from_millis(1)).as_deref(), Some("calm"));
        assert_eq!(asked(&mut questions, begin + Duration::from_millis(1)), None);
        assert_eq!(questions.due(), Some(begin + SAME_CONTAINER));
        assert_eq!(asked(&mut questions, begin + SAME_CONTAINER).as_deref(), Some("looping"));
        assert_eq!((asked(&mut questions, begin + SAME_CONTAINER), questions.due()), (None, None));
    }

    #[test]
    fn an_image_is_asked_about_once_however_many_containers_it_has() {
        let mut questions = Questions::default();
        questions.image("a");
        questions.image("a");
        let now = Instant::now();
        assert_eq!(asked(&mut questions, now).as_deref(), Some("a"));
        questions.image("a");
        assert_eq!(asked(&mut questions, now), None);
    }
}
