//! One simulated node: a workload, a recorder, and a link.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::node::commands::Work;
use ::node::link::{Counted, Link, LinkOptions, LinkState, LinkStatus};
use ::node::{Backlog, Change, Clock, Commands, Identity, IdentityStore, Recorder};
use anyhow::Context;
use protocol::command::Ending;
use protocol::message::{CommandState, NodeFacts, Service, ServiceHealth, SpoolStatus};
use protocol::{NodeId, SpoolEpoch};
use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::Endpoint;

use super::tally::Tally;
use super::{Begun, Errands, Options, Workload};

/// Troubles of a node that are kept.
const MOST_TROUBLES: usize = 16;

/// A node of the fleet, as a test or a benchmark steers it.
pub struct SimulatedNode {
    index: usize,
    identity: Identity,
    store: IdentityStore,
    endpoint: Endpoint,
    recorder: Recorder,
    begun: Option<Begun>,
    errands: Option<Errands>,
    /// Notified, it renews its certificate.
    renew: Arc<Notify>,
    workload: Mutex<Workload>,
    life: Mutex<Option<Life>>,
    /// Whether it is to be there.
    there: watch::Sender<bool>,
    /// What kept it from the hub, or from a new certificate.
    troubles: Mutex<Vec<String>>,
    /// Figures of the lives before this one.
    before: Mutex<Counted>,
}

/// One run of the node's process.
struct Life {
    link: Link,
    status: watch::Receiver<LinkStatus>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl SimulatedNode {
    pub(super) fn new(
        index: usize,
        options: &Options,
        store: IdentityStore,
        endpoint: Endpoint,
        workload: Workload,
    ) -> anyhow::Result<Self> {
        let mut identity = store.load()?.with_context(|| format!("node {index} has no identity; enroll it first"))?;
        if let Some(hub) = &options.hub {
            identity.hub.clone_from(hub);
        }
        let backlog = Backlog::in_memory(SpoolEpoch(rand::random()), options.backlog_bytes);
        let recorder = Recorder::new(backlog, options.samples_per_batch);
        Ok(Self {
            index,
            identity,
            store,
            endpoint,
            recorder,
            begun: options.begun.clone(),
            errands: options.errands.clone(),
            renew: Arc::default(),
            workload: Mutex::new(workload),
            life: Mutex::default(),
            there: watch::Sender::new(true),
            troubles: Mutex::default(),
            before: Mutex::default(),
        })
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        self.identity.node
    }

    /// Whether its session is up.
    pub fn is_up(&self) -> bool {
        lock(&self.life).as_ref().is_some_and(|life| life.status.borrow().is_up())
    }

    /// Where its link stands.
    pub fn status(&self) -> Option<LinkStatus> {
        lock(&self.life).as_ref().map(|life| life.status.borrow().clone())
    }

    /// Where its link stands, as it changes; `None` while its process is down.
    pub fn link(&self) -> Option<watch::Receiver<LinkStatus>> {
        lock(&self.life).as_ref().map(|life| life.status.clone())
    }

    /// What its links counted.
    pub fn counted(&self) -> Counted {
        let now = lock(&self.life).as_ref().map(|life| life.link.counters().read()).unwrap_or_default();
        add(*lock(&self.before), now)
    }

    /// Its backlog's state.
    pub fn spool(&self) -> SpoolStatus {
        self.recorder.backlog().status()
    }

    /// Batches the hub has not acknowledged.
    pub fn pending(&self) -> u64 {
        self.spool().pending_batches
    }

    /// Switches it off, or on again.
    pub fn set_there(&self, there: bool) {
        self.there.send_replace(there);
    }

    /// Has it renew its certificate now, or as soon as it has a session.
    pub fn renew(&self) {
        self.renew.notify_one();
    }

    /// Who it is by now, as its store has it.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn stored(&self) -> anyhow::Result<Identity> {
        self.store.load()?.with_context(|| format!("node {} has lost its identity", self.index))
    }

    /// What has kept it from the hub, or from a new certificate, since this was asked last: the first of it.
    pub fn take_troubles(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.troubles))
    }

    fn note(&self, status: &LinkStatus) {
        let waits = match &status.state {
            LinkState::Waiting { trouble, .. } => Some(trouble.to_string()),
            _ => None,
        };
        let mut troubles = lock(&self.troubles);
        for trouble in waits.into_iter().chain(status.renewal_trouble.clone()) {
            if troubles.len() < MOST_TROUBLES && !troubles.contains(&trouble) {
                troubles.push(trouble);
            }
        }
    }

    /// Turns one of its services healthy or unhealthy.
    pub async fn set_health(&self, service: usize, health: ServiceHealth) {
        let changed = lock(&self.workload).set_health(service, health, Clock::system().now());
        self.tell(changed).await;
    }

    /// Lets one of its services fail and start again.
    pub async fn restart_service(&self, service: usize) {
        let changed = lock(&self.workload).restart(service, Clock::system().now());
        self.tell(changed).await;
    }

    /// Stops one of its services.
    pub async fn stop_service(&self, service: usize, exit_code: i32) {
        let changed = lock(&self.workload).stop(service, exit_code, Clock::system().now());
        self.tell(changed).await;
    }

    /// Takes one sample now.
    pub async fn sample(&self) -> usize {
        let (schema, row) = {
            let mut workload = lock(&self.workload);
            (Arc::clone(workload.schema()), workload.row(Clock::system().now()))
        };
        self.recorder.record(&schema, row).await;
        schema.len()
    }

    async fn tell(&self, service: Option<Service>) {
        self.recorder.change(Change { services: service.into_iter().collect(), ..Change::default() }).await;
    }

    async fn start(&self) -> anyhow::Result<watch::Receiver<LinkStatus>> {
        let (services, engine) = {
            let workload = lock(&self.workload);
            (workload.services().to_vec(), workload.engine())
        };
        self.recorder.change(Change { services, removed: Vec::new(), engine: Some(engine) }).await;
        // A renewal in an earlier life is in the store.
        let mut identity = self.store.load()?.unwrap_or_else(|| self.identity.clone());
        identity.hub.clone_from(&self.identity.hub);
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let options = LinkOptions {
            endpoint: self.endpoint.clone(),
            store: self.store.clone(),
            identity,
            facts: self.facts(),
            process: rand::random(),
            recorder: self.recorder.clone(),
            commands: match (&self.errands, &self.begun) {
                (Some(errands), _) => Some(errands.desk(self.index, &tasks, &shutdown)),
                (None, begun) => begun.as_ref().map(|begun| desk(begun.clone(), &tasks, &shutdown)),
            },
            tails: None,
            kafka: None,
            logs: None,
            renew: Arc::clone(&self.renew),
            clock: Clock::system(),
        };
        let link = Link::start(options, &tasks, shutdown.clone());
        tasks.close();
        let status = link.status();
        *lock(&self.life) = Some(Life { link, status: status.clone(), tasks, shutdown });
        Ok(status)
    }

    async fn end(&self) {
        let Some((tasks, shutdown)) = lock(&self.life).as_ref().map(|life| (life.tasks.clone(), life.shutdown.clone()))
        else {
            return;
        };
        shutdown.cancel();
        tasks.wait().await;
        if let Some(life) = lock(&self.life).take() {
            let mut before = lock(&self.before);
            *before = add(*before, life.link.counters().read());
        }
    }

    fn facts(&self) -> NodeFacts {
        NodeFacts {
            hostname: format!("sim-{:05}", self.index),
            os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
            kernel: "6.1.0-28-amd64".to_owned(),
            architecture: "x86_64".to_owned(),
            cpus: 4,
            memory_bytes: 16 << 30,
            software: format!("hyperfactory-fleet {}", env!("CARGO_PKG_VERSION")),
            booted_at_ms: 0,
            keeps_kafka_acls: false,
        }
    }
}

/// A desk whose journal is in memory, that has done everything as soon as it begins.
fn desk(begun: Begun, tasks: &TaskTracker, shutdown: &CancellationToken) -> Commands {
    let work: Work = Arc::new(move |job| {
        (begun.0)(job.id);
        Box::pin(async { Ending::new(CommandState::Succeeded, "") })
    });
    Commands::start(None, Arc::new(|_| Ok(())), work, tasks, shutdown.clone())
}

/// When a node does what.
pub(super) struct Pace {
    interval: Duration,
    /// Chance that the process restarts within one interval.
    restart: f64,
    random: SmallRng,
}

impl Pace {
    pub(super) fn of(options: &Options, random: SmallRng) -> Self {
        let restart = options.churn * options.interval.as_secs_f64() / 60.0;
        Self { interval: options.interval, restart: restart.clamp(0.0, 1.0), random }
    }
}

/// Runs a node until `shutdown`.
pub(super) async fn run(node: Arc<SimulatedNode>, mut pace: Pace, tally: Arc<Tally>, shutdown: CancellationToken) {
    let mut status = match node.start().await {
        Ok(status) => status,
        Err(error) => return tracing::error!(node = node.index, %error, "a simulated node can't start"),
    };
    // A fleet's samples are spread over the interval.
    let first = Instant::now() + pace.interval.mul_f64(pace.random.random());
    let mut ticks = tokio::time::interval_at(first, pace.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut down_since = None;
    let mut there = node.there.subscribe();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Ok(()) = there.changed() => {
                if *there.borrow_and_update() {
                    continue;
                }
                node.end().await;
                down_since = None;
                if shutdown.run_until_cancelled(there.wait_for(|there| *there)).await.is_none() {
                    return;
                }
                match node.start().await {
                    Ok(next) => status = next,
                    Err(error) => return tracing::error!(node = node.index, %error, "a node can't start again"),
                }
            }
            changed = status.changed() => {
                node.note(&status.borrow_and_update());
                let up = changed.is_ok() && status.borrow().is_up();
                match (up, down_since) {
                    (true, Some(since)) => {
                        tally.reconnected(Instant::now().duration_since(since));
                        down_since = None;
                    }
                    (false, None) if node.counted().sessions > 0 => down_since = Some(Instant::now()),
                    _ => {}
                }
                if changed.is_err() {
                    // The link ended by itself, which only a refusal for good can bring about.
                    break;
                }
            }
            _ = ticks.tick() => {
                tally.sampled(node.sample().await);
                if pace.restart > 0.0 && pace.random.random_bool(pace.restart) {
                    node.end().await;
                    down_since = Some(Instant::now());
                    match node.start().await {
                        Ok(next) => status = next,
                        Err(error) => return tracing::error!(node = node.index, %error, "a node can't restart"),
                    }
                }
            }
        }
    }
    node.end().await;
}

fn add(a: Counted, b: Counted) -> Counted {
    Counted {
        sessions: a.sessions + b.sessions,
        sent: a.sent + b.sent,
        resent: a.resent + b.resent,
        sent_bytes: a.sent_bytes + b.sent_bytes,
        acknowledged: a.acknowledged + b.acknowledged,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
