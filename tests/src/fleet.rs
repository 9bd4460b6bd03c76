//! A simulated fleet: many nodes in one process, with real certificates and real QUIC sessions, over a few sockets.

mod api;
mod enroll;
mod errand;
mod node;
mod tally;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::node::{Clock, IdentityStore};
use anyhow::Context;
use protocol::CommandId;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::{CloseCode, Endpoint};

pub use api::Api;
pub use enroll::{Tokens, enroll, node_name};
pub use errand::{ACCOUNT, Errand, Errands, Line};
pub use node::SimulatedNode;
pub use tally::{Reconnects, Summary};
pub use workload::{Layout, Workload};

use tally::Tally;

/// How a fleet behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Time between samples.
    pub interval: Duration,
    /// Series per node, about.
    pub series: usize,
    /// Samples in a batch.
    pub samples_per_batch: usize,
    /// Makes one run like another.
    pub seed: u64,
    /// Share of the nodes whose process restarts in a minute.
    pub churn: f64,
    /// Most bytes of a node's backlog in memory.
    pub backlog_bytes: u64,
    /// Sockets the nodes share.
    pub sockets: usize,
    /// Where the nodes find the hub, when it is not what their identities say.
    pub hub: Option<String>,
    /// Told of each command that a node begins; it succeeds at once. `None`: the nodes carry out none.
    pub begun: Option<Begun>,
    /// Where the nodes account for the commands they carry out; then `begun` is told of none.
    pub errands: Option<Errands>,
}

/// Told of each command that a node begins.
#[derive(Clone)]
pub struct Begun(pub Arc<dyn Fn(CommandId) + Send + Sync>);

impl std::fmt::Debug for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Begun(…)")
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            series: 300,
            samples_per_batch: ::node::telemetry::SAMPLES_PER_BATCH,
            seed: 1,
            churn: 0.0,
            backlog_bytes: 1 << 20,
            sockets: 4,
            hub: None,
            begun: None,
            errands: None,
        }
    }
}

/// A running fleet. Dropping it ends the nodes at once; [`Fleet::stop`] lets them deliver what they hold.
pub struct Fleet {
    nodes: Vec<Arc<SimulatedNode>>,
    endpoints: Vec<Endpoint>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    tally: Arc<Tally>,
    started: Instant,
}

impl Fleet {
    /// Starts one node for each identity.
    ///
    /// # Errors
    /// When sockets can't be opened, or a store holds no identity.
    pub fn start(options: &Options, identities: &[IdentityStore]) -> anyhow::Result<Self> {
        let endpoints = endpoints(options.sockets)?;
        let (tasks, shutdown, tally) = (TaskTracker::new(), CancellationToken::new(), Arc::new(Tally::default()));
        let layout = Arc::new(Layout::new(options.series).context("the series make no schema")?);
        let mut random = SmallRng::seed_from_u64(options.seed);
        let mut nodes = Vec::with_capacity(identities.len());
        for (index, store) in identities.iter().enumerate() {
            let workload = Workload::new(Arc::clone(&layout), random.random(), Clock::system().now());
            let endpoint = endpoints[index % endpoints.len()].clone();
            let node = SimulatedNode::new(index, options, store.clone(), endpoint, workload)?;
            let node = Arc::new(node);
            tasks.spawn(node::run(
                Arc::clone(&node),
                node::Pace::of(options, SmallRng::seed_from_u64(random.random())),
                Arc::clone(&tally),
                shutdown.clone(),
            ));
            nodes.push(node);
        }
        tasks.close();
        Ok(Self { nodes, endpoints, tasks, shutdown, tally, started: Instant::now() })
    }

    /// The nodes, in the order of their identities.
    pub fn nodes(&self) -> &[Arc<SimulatedNode>] {
        &self.nodes
    }

    /// Sessions that are up.
    pub fn up(&self) -> usize {
        self.nodes.iter().filter(|node| node.is_up()).count()
    }

    /// What the fleet did so far.
    pub fn summary(&self) -> Summary {
        Summary::of(&self.nodes, &self.tally, self.started.elapsed())
    }

    /// Waits until `count` sessions are up; whether that came within `limit`.
    pub async fn wait_for_sessions(&self, count: usize, limit: Duration) -> bool {
        self.wait_for(limit, || self.up() >= count).await
    }

    /// Waits until every batch is acknowledged; whether that came within `limit`.
    pub async fn wait_until_delivered(&self, limit: Duration) -> bool {
        self.wait_for(limit, || self.nodes.iter().all(|node| node.pending() == 0)).await
    }

    /// Ends every session in order, within `limit`, and gives the summary; `up` in it is from before the end.
    pub async fn stop(self, limit: Duration) -> Summary {
        let up = self.up();
        self.shutdown.cancel();
        let drained = tokio::time::timeout(limit, self.tasks.wait()).await;
        if drained.is_err() {
            tracing::warn!("some nodes did not end in time");
        }
        let summary = Summary { up, ..self.summary() };
        for endpoint in &self.endpoints {
            endpoint.close(CloseCode::Done, "the fleet stops");
        }
        summary
    }

    async fn wait_for(&self, limit: Duration, reached: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + limit;
        // Thousands of watches would cost more than a look ten times a second.
        let mut look = tokio::time::interval(Duration::from_millis(100));
        while !reached() {
            if Instant::now() >= deadline {
                return false;
            }
            look.tick().await;
        }
        true
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Stores for `count` identities: directories under `directory`, or in memory when there is none.
pub fn identity_stores(directory: Option<PathBuf>, count: usize) -> Vec<IdentityStore> {
    (0..count)
        .map(|index| match &directory {
            Some(directory) => IdentityStore::directory(directory.join(format!("{index:05}"))),
            None => IdentityStore::memory(),
        })
        .collect()
}

fn endpoints(count: usize) -> anyhow::Result<Vec<Endpoint>> {
    (0..count.max(1)).map(|_| Endpoint::client().context("cannot open a UDP socket")).collect()
}
