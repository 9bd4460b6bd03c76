//! The running bridge: builds its parts, runs them, and drains within a deadline.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use node::{Clock, IdentityStore};
use spool::{Spool, Status};
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::class::{self, Class};
use crate::config::{Config, ConfigError, KafkaConfig};
use crate::connection::Connection;
use crate::counters::Counters;
use crate::dead_letter::DeadLetters;
use crate::enroll;
use crate::kept_routes::KeptRoutes;
use crate::lanes::{Lanes, Logs, Ways};
use crate::log::{Log, Writer};
use crate::mapping::Mapping;
use crate::pace::Pace;
use crate::receipts::Receipts;
use crate::report::{Report, Told};
use crate::route::Routes;
use crate::sink::{self, Change, Routing, Sink};
use crate::source::{self, Source};
use crate::sparkplug::Tables;
use crate::subscriptions::Subscriptions;

/// Name and version of this program.
pub const SOFTWARE: &str = concat!("hyperfactory-bridge ", env!("CARGO_PKG_VERSION"));

/// How often what was done is logged.
const TELL: Duration = Duration::from_secs(60);

/// Changes of configuration that are held up by a sink that is busy; a further one is refused.
const CHANGES: usize = 4;

/// When to read the configuration again, and how.
pub struct Reloads {
    /// Tells when.
    pub signals: Signal,
    /// Reads it.
    pub load: Box<dyn Fn() -> Result<Config, ConfigError> + Send>,
}

/// Runs until `stop`, then drains. Whenever `reloads` says so, it goes on with the routes and the rate that are configured
/// then.
///
/// # Errors
/// When it can't start: the configuration lacks something, or the state directory can't be used.
pub async fn run(config: Config, stop: CancellationToken, mut reloads: Reloads) -> anyhow::Result<()> {
    let (store, clock) = (IdentityStore::directory(&config.state_dir), Clock::system());
    let enrolled = stop.run_until_cancelled(enroll::identity(&config, &store, &clock)).await;
    let Some(identity) = enrolled.transpose()? else { return Ok(()) };
    let config = config.enrolled(identity.is_some())?;
    let bridge = config.name.clone().or_else(|| identity.as_ref().map(|identity| identity.node.to_string())).context(
        "this bridge has no name: enroll it (hyperfactory-bridge enroll), or set `name` in the configuration; records \
         carry it, so that several bridges can be told apart",
    )?;
    let routes = Routes::new(&config.route)?;
    for lint in routes.lints() {
        tracing::warn!("{lint}");
    }
    for lint in class::lints(&config) {
        tracing::warn!("{lint}");
    }
    tracing::info!(name = bridge, "starting {SOFTWARE}");
    let classes = Class::all(&config);
    let (mut logs, mut letters) = (Vec::new(), Vec::new());
    for class in &classes {
        let (log, recovery) = Log::open(class.options())?;
        tracing::info!("log of {}: {recovery}", class.title());
        logs.push((class.clone(), log));
        let size = config.dead_letter_size.bytes();
        let (dead_letters, recovery) = DeadLetters::open(class.dead_letter_dir.clone(), size)?;
        if !recovery.is_clean() {
            tracing::warn!("dead letters of {}: {recovery}", class.title());
        }
        letters.push(dead_letters);
    }
    let gone: Vec<_> = classes.iter().zip(&letters).map(|(class, letters)| (class.clone(), letters.gone())).collect();
    let longest = logs.iter().map(|(_, log)| log.spool().max_record()).max().unwrap_or_default();
    let logs = Logs::new(logs);
    let mut kept_routes = {
        let held = held(&logs);
        KeptRoutes::begin(&config.state_dir, &config.route, spools(&held))?
    };

    let counters = Arc::<Counters>::default();
    let passed = watch::Sender::new(routes.passed());
    let standings: Vec<Connection> = config.mqtt.iter().map(|mqtt| Connection::new(&mqtt.name)).collect();
    let report = match identity {
        Some(identity) => {
            tracing::info!(node = %identity.node, tenant = %identity.tenant, hub = identity.hub, "reporting to the hub");
            let (logs, counters) = (logs.clone(), Arc::clone(&counters));
            let told = Told { logs, gone, counters, passed: passed.subscribe(), mqtt: standings.clone() };
            Some(Report::start(&config, store, identity, told).await?)
        }
        None => {
            tracing::info!("not enrolled: reporting to no hub");
            None
        }
    };
    let mut lanes = Lanes::new(&classes);
    let mut receipts: Vec<Receipts> = (0..classes.len()).map(Receipts::of).collect();
    let mut heard = Vec::new();
    for mqtt in &config.mqtt {
        let ways = Ways::of(&mqtt.name, &routes, &config);
        let (acknowledged, told) = lanes.connect(&config.state_dir, &mqtt.name, ways)?;
        receipts.iter_mut().for_each(|receipts| receipts.connect(Arc::clone(&told), mqtt.ack));
        heard.push(acknowledged);
    }
    let lanes = Arc::new(lanes);
    let (mut sources, sources_stop) = (Vec::new(), CancellationToken::new());
    let inbound = watch::Sender::new(Arc::new(Routes::new(&config.route)?));
    let mut connections = Vec::new();
    for (((index, mqtt), acknowledged), standing) in config.mqtt.iter().enumerate().zip(heard).zip(standings) {
        let filters = routes.filters(&mqtt.name);
        if filters.is_empty() {
            tracing::warn!(mqtt = mqtt.name, "no route is for this connection");
        }
        let parts = source::Parts {
            index,
            bridge: bridge.clone(),
            subscriptions: Subscriptions::begin(&config.state_dir, &mqtt.name, filters)?,
            mapping: Mapping::new(routes.ways(&mqtt.name), Tables::open(&config.state_dir, &mqtt.name)?),
            routes: inbound.subscribe(),
            lanes: Arc::clone(&lanes),
            acknowledged,
            counters: Arc::clone(&counters),
            standing,
            clock: clock.clone(),
            longest,
        };
        connections.push(Source::new(mqtt.clone(), parts)?);
    }
    let (sink_stop, mut writers, mut sinks) = (CancellationToken::new(), Vec::new(), Vec::new());
    let mut changes = Vec::new();
    let pace = Arc::new(Mutex::new(paced(&config.kafka)));
    for (lane, (((class, log), dead_letters), receipts)) in logs.iter().zip(letters).zip(receipts).enumerate() {
        let lane = lanes.lane(lane).context("a class has no lane")?;
        let receipts = Arc::new(receipts);
        let writer =
            Writer::start(log.clone(), class.clone(), Arc::clone(&lane), Arc::clone(&receipts), Arc::clone(&counters));
        writers.push(writer.context("a log's thread can't be started")?);
        let (change, changed) = mpsc::channel(CHANGES);
        changes.push(change);
        let parts = sink::Parts {
            log: log.clone(),
            class: class.clone(),
            pace: Arc::clone(&pace),
            config: config.kafka.clone(),
            bridge: bridge.clone(),
            routing: Routing::new(
                Routes::new(&config.route)?.noting(routes.passed()),
                kept_routes.former(&class.name),
                changed,
            ),
            dead_letters,
            receipts,
            lane,
            counters: Arc::clone(&counters),
        };
        sinks.push(Sink::start(parts, sink_stop.clone()).context("a sink's thread can't be started")?);
    }
    let ended = CancellationToken::new();
    for connection in connections {
        let source = connection.start(sources_stop.clone(), ended.clone().drop_guard());
        sources.push(source.context("a connection's thread can't be started")?);
    }

    let mut telling = tokio::time::interval(TELL);
    telling.tick().await;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            // None of them ends by itself; without it the bridge is no use, and the service manager starts it anew.
            () = ended.cancelled() => anyhow::bail!("a connection ended unexpectedly"),
            _ = telling.tick() => tell(&logs, &counters),
            Some(()) = reloads.signals.recv() => {
                let reloaded = (reloads.load)().map_err(anyhow::Error::from).and_then(|new| {
                    new.complete()?;
                    carried(&config, &new)?;
                    let ours = Routes::new(&new.route)?.after(&passed.borrow()).passed();
                    // The sinks first: they have to know a route before messages come by it. All of them or none.
                    let permits = changes.iter().map(mpsc::Sender::try_reserve).collect::<Result<Vec<_>, _>>();
                    let permits = permits.map_err(|_| anyhow::anyhow!("the changes before are not made yet: try again"))?;
                    let each = permits.iter().map(|_| Ok(Routes::new(&new.route)?.noting(Arc::clone(&ours))));
                    let each = each.collect::<anyhow::Result<Vec<_>>>()?;
                    // On disk and in memory they are for the same records.
                    let held = held(&logs);
                    kept_routes.change(&new.route, spools(&held))?;
                    for ((permit, routes), (_, spool)) in permits.into_iter().zip(each).zip(&held) {
                        Change::tell(permit, routes, spool);
                    }
                    drop(held);
                    *pace.lock().unwrap_or_else(PoisonError::into_inner) = paced(&new.kafka);
                    passed.send_replace(ours);
                    let routes = Routes::new(&new.route)?;
                    lanes.follow(config.mqtt.iter().map(|mqtt| Ways::of(&mqtt.name, &routes, &new)));
                    inbound.send_replace(Arc::new(Routes::new(&new.route)?));
                    Ok(new)
                });
                match reloaded {
                    Ok(new) => told(&config, &new),
                    Err(error) => tracing::error!("the configuration of before goes on: {error:#}"),
                }
            }
        }
        let ended = writers.iter().chain(&sinks).any(JoinHandle::is_finished);
        anyhow::ensure!(!ended, "a thread of the bridge ended unexpectedly");
    }
    tracing::info!("stopping");
    sources_stop.cancel();
    join(sources).await;
    lanes.close();
    sink_stop.cancel();
    join(sinks).await;
    // The writer may wait for room that does not come any more: what it has is not acknowledged, and comes again.
    if tokio::time::timeout(Duration::from_secs(1), join(writers)).await.is_err() {
        tracing::warn!("messages that the log has no room for stay at their brokers");
    }
    tell(&logs, &counters);
    if let Some(report) = report {
        report.finish().await;
    }
    Ok(())
}

/// The logs of all classes, held still.
fn held(logs: &Logs) -> Vec<(&str, MutexGuard<'_, Spool>)> {
    logs.iter().map(|(class, log)| (class.name.as_str(), log.spool())).collect()
}

fn spools<'a>(held: &'a [(&'a str, MutexGuard<'a, Spool>)]) -> impl Iterator<Item = (&'a str, &'a Spool)> + Clone {
    held.iter().map(|(class, spool)| (*class, &**spool))
}

/// Sees that each route is for a connection that runs. One that is for another would take its topics from whoever reads them
/// now, and nobody would until the start that makes the connection.
fn carried(started: &Config, new: &Config) -> anyhow::Result<()> {
    for (index, route) in new.route.iter().enumerate() {
        let Some(name) = &route.mqtt else { continue };
        anyhow::ensure!(
            started.mqtt.iter().any(|mqtt| mqtt.name == *name),
            "route {} is for the connection {name:?}, which is made at a start alone: restart the bridge",
            index + 1
        );
    }
    Ok(())
}

fn told(started: &Config, new: &Config) {
    tracing::info!(routes = new.route.len(), "going on with the configuration as it is now");
    for lint in Routes::new(&new.route).map(|routes| routes.lints()).unwrap_or_default() {
        tracing::warn!("{lint}");
    }
    for key in started.read_at_start(new) {
        tracing::warn!("{key} is read at a start alone: restart the bridge");
    }
}

fn paced(config: &KafkaConfig) -> Pace {
    Pace::new(config.max_rate.map(settings::Size::bytes), config.catch_up, Instant::now())
}

async fn join(threads: Vec<JoinHandle<()>>) {
    while !threads.iter().all(JoinHandle::is_finished) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn tell(logs: &Logs, counters: &Counters) {
    let (pending, bytes, _) = logs.total();
    tracing::info!(
        received = counters.received.now(),
        filtered = counters.filtered.now(),
        unmapped = counters.unmapped.now(),
        births_wanted = counters.births_wanted.now(),
        stored = counters.stored.now(),
        delivered = counters.delivered.now(),
        dead = counters.refused.now(),
        pending,
        bytes,
        "so far"
    );
    for (class, status) in logs.each() {
        if !class.name.is_empty() {
            let Status { pending, bytes, lost, .. } = status;
            tracing::info!(class = class.name, overflow = %class.overflow, pending, bytes, dropped = lost, "so far");
        }
        if let Some(fault) = status.fault {
            tracing::warn!("{}", fault.message);
        }
    }
}
