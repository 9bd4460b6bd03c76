//! The running agent: builds its parts, runs them, and drains within a deadline.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use node::backlog::Options;
use node::commands::Work;
use node::health::{Server, Vitals};
use node::{Backlog, Clock, Commands, Identity, IdentityStore, Link, LinkOptions, Recorder};
use protocol::NodeId;
use protocol::command::Order;
use protocol::message::NodeFacts;
use serde::{Deserialize, Serialize};
use settings::Size;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::Endpoint;

use crate::cgroup::Hierarchies;
use crate::command::Carrier;
use crate::config::Config;
use crate::docker::Follower;
use crate::enroll;
use crate::failure::Failure;
use crate::host;
use crate::recent::Recent;
use crate::sample::Sampler;
use crate::service;
use crate::shipper::Shipper;
use crate::tail::Tailer;

/// Name and version of this program.
pub const SOFTWARE: &str = concat!("hyperfactory-agent ", env!("CARGO_PKG_VERSION"));

/// How long a stop may take: the link waits a few seconds for the hub to store what is left.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the first session waits for the engine's services, so that the hub does not take them for gone.
const ENGINE: Duration = Duration::from_secs(5);

/// Where the running agent listens; written to `endpoints.json` in the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Base URL of `/healthz`, `/readyz`, `/status` and `/metrics`.
    pub health: String,
}

impl Endpoints {
    /// File name in the state directory.
    pub const FILE: &str = "endpoints.json";

    /// Where the agent that runs, or last ran, serves its health; as configured when it never did.
    pub fn health(config: &Config) -> SocketAddr {
        let written = std::fs::read(config.state_dir.join(Self::FILE)).ok();
        let endpoints: Option<Self> = written.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let address = endpoints.and_then(|endpoints| endpoints.health.strip_prefix("http://")?.parse().ok());
        address.unwrap_or(config.health_listen)
    }

    fn write(&self, state_dir: &Path) -> Result<(), Failure> {
        let (file, new) = (state_dir.join(Self::FILE), state_dir.join("endpoints.json.new"));
        let written = std::fs::write(&new, serde_json::to_vec(self)?).and_then(|()| std::fs::rename(&new, &file));
        Ok(written.with_context(|| format!("cannot write {}", file.display()))?)
    }
}

/// Runs until `stop`, then drains. `recent` is what it logs.
///
/// # Errors
/// When it can't start: not enrolled, the state directory not writable, the port for probes taken.
pub async fn run(config: Config, recent: Recent, stop: CancellationToken) -> Result<(), Failure> {
    let config = Arc::new(config);
    let clock = Clock::system();
    let store = IdentityStore::directory(&config.state_dir);
    let address = config.engine(std::env::var("DOCKER_HOST").ok().as_deref()).map_err(Failure::usage)?;
    let Some(identity) = identity(&config, &store, &clock, &stop).await? else { return Ok(()) };
    tracing::info!(
        node = %identity.node, name = identity.name, tenant = %identity.tenant, hub = identity.hub, engine = %address,
        "starting {SOFTWARE}"
    );

    let backlog = backlog(config.state_dir.join("spool"), config.spool_size)?;
    let logs = match config.logs.is_on() {
        true => Some(self::backlog(config.state_dir.join("logs"), config.logs.spool_size)?),
        false => None,
    };
    let recorder = Recorder::new(backlog.clone(), config.samples_per_batch);
    let endpoint = Endpoint::client().context("the agent can't open a UDP socket")?;

    // Sources end first, so that what they gathered can still be sent.
    let sources_stop = CancellationToken::new();
    let mut sources = JoinSet::new();
    let (follower, mut followed) = Follower::new(address.clone(), recorder.clone());
    let (interval, intervals) = watch::channel(config.interval.get());
    let hierarchies = Hierarchies::of_this_host();
    let sampler = Sampler::new(intervals.clone(), clock.clone(), recorder.clone(), followed.clone(), hierarchies);
    sources.spawn(follower.run(sources_stop.clone()));
    sources.spawn(sampler.run(sources_stop.clone()));
    let _ = tokio::time::timeout(ENGINE, followed.wait_for(|followed| followed.settled)).await;

    if let Some(logs) = &logs {
        let file = config.state_dir.join("logs.json");
        let (engine, followed) = (address.clone(), followed.clone());
        let shipper = Shipper::open(config.logs.clone(), engine, followed, logs.clone(), file)?;
        tracing::info!(services = config.logs.services.join(", "), "logs are shipped");
        sources.spawn(shipper.run(sources_stop.clone()));
    }

    let log_spool = logs.as_ref().map(Backlog::watch);

    let links = TaskTracker::new();
    let link_stop = CancellationToken::new();
    let (link_up, link_known) = watch::channel(None);
    let renew = Arc::<Notify>::default();
    let carrier = Carrier {
        config: Arc::clone(&config),
        engine: address,
        interval,
        recorder: recorder.clone(),
        renew: Arc::clone(&renew),
        link: link_known,
        recent,
    };
    let tailer = Tailer { config: Arc::clone(&config), engine: carrier.engine.clone(), followed };
    let (desks, commands) = commands(carrier, identity.node, clock.clone(), sources_stop.clone());
    let options = LinkOptions {
        endpoint: endpoint.clone(),
        store,
        identity,
        facts: facts(&config),
        process: rand::random(),
        recorder: recorder.clone(),
        commands: Some(commands),
        tails: Some(tailer.source()),
        kafka: None,
        logs,
        renew,
        clock,
    };
    let link = Link::start(options, &links, link_stop.clone());
    link_up.send_replace(Some(link.status()));
    links.close();

    let vitals = Vitals {
        software: SOFTWARE.into(),
        interval: intervals.clone(),
        pulse: recorder.pulse(),
        link: link.status(),
        counters: link.counters(),
        spool: backlog.watch(),
        logs: log_spool,
        bridge: None,
    };
    let server = Server::bind(config.health_listen, vitals).await?;
    if let Err(failure) = (Endpoints { health: format!("http://{}", server.local_addr()?) }.write(&config.state_dir)) {
        // `status` and `check` then ask where the configuration says. A full disk is to be reported, not to end this.
        tracing::warn!("{failure}");
    }
    let mut services = JoinSet::new();
    services.spawn({
        let stop = sources_stop.clone();
        async move {
            if let Err(error) = server.serve(stop).await {
                tracing::warn!(%error, "the probes are no longer served");
            }
        }
    });
    services.spawn(service::attend(recorder.pulse(), intervals, link.status(), sources_stop.clone()));
    service::ready();

    tokio::select! {
        () = stop.cancelled() => {}
        Some(ended) = sources.join_next() => {
            // Neither ends by itself: the process is no use without them, and the service manager starts it anew.
            return Err(anyhow::anyhow!("a part of the agent ended unexpectedly: {ended:?}").into());
        }
    }
    tracing::info!("stopping");
    service::stopping();
    let drained = tokio::time::timeout(DRAIN, async {
        sources_stop.cancel();
        while sources.join_next().await.is_some() {}
        desks.wait().await;
        recorder.flush().await;
        link_stop.cancel();
        links.wait().await;
        endpoint.wait_idle().await;
        while services.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        tracing::warn!(
            "not all was done within {} s; what the hub does not have yet stays in the spool",
            DRAIN.as_secs()
        );
    }
    Ok(())
}

/// The desk for the hub's commands, and its task.
fn commands(carrier: Carrier, node: NodeId, clock: Clock, stop: CancellationToken) -> (TaskTracker, Commands) {
    let desks = TaskTracker::new();
    let config = Arc::clone(&carrier.config);
    let journal = config.state_dir.join("commands");
    let carrier = Arc::new(carrier);
    let policy = Arc::new(move |order: &Order| config.commands.allows(order, node, clock.now()));
    let work: Work = Arc::new(move |job| {
        let carrier = Arc::clone(&carrier);
        Box::pin(async move { carrier.carry_out(job).await })
    });
    let commands = Commands::start(Some(journal), policy, work, &desks, stop);
    desks.close();
    (desks, commands)
}

/// The identity, from an enrollment now if a token is configured and none was yet; `None` when told to stop meanwhile.
async fn identity(
    config: &Config,
    store: &IdentityStore,
    clock: &Clock,
    stop: &CancellationToken,
) -> Result<Option<Identity>, Failure> {
    if let Some(identity) = store.load()? {
        return Ok(Some(identity));
    }
    let Some(token) = &config.token else {
        return Err(Failure::usage(anyhow::anyhow!(
            "this machine is not enrolled: make a join token on the hub's \"Add a node\" page and run the command it \
             shows, or set `token` in the configuration"
        )));
    };
    let token = enroll::parse(token.expose())?;
    match stop.run_until_cancelled(enroll::enroll(config, store, &token, clock)).await {
        Some(enrolled) => enrolled.map(Some),
        None => Ok(None),
    }
}

/// A spool in the state directory.
fn backlog(directory: PathBuf, size: Size) -> Result<Backlog, Failure> {
    let (backlog, recovery) = Backlog::open(Options::new(&directory, size.bytes()))?;
    if recovery.is_clean() {
        tracing::debug!(directory = %directory.display(), "spool: {recovery}");
    } else {
        tracing::warn!(directory = %directory.display(), "spool: {recovery}");
    }
    Ok(backlog)
}

/// What Hello tells of this host, and of what the hub may ask of it.
fn facts(config: &Config) -> NodeFacts {
    NodeFacts { keeps_kafka_acls: config.kafka.is_on(), ..host::facts(SOFTWARE.into()) }
}
