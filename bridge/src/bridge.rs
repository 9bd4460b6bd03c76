//! The running bridge: builds its parts, runs them, and drains within a deadline.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use node::{Clock, IdentityStore};
use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ConfigError};
use crate::counters::Counters;
use crate::dead_letter::DeadLetters;
use crate::enroll;
use crate::intake::Intake;
use crate::log::{Log, Writer};
use crate::mapping::Mapping;
use crate::receipts::Receipts;
use crate::report::Report;
use crate::route::Routes;
use crate::sink::{self, Sink};
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
    let (log, recovery) = Log::open(config.log_dir(), config.log_size.bytes())?;
    tracing::info!(name = bridge, "starting {SOFTWARE}; log: {recovery}");
    let (dead_letters, recovery) = DeadLetters::open(config.dead_letter_dir(), config.dead_letter_size.bytes())?;
    if !recovery.is_clean() {
        tracing::warn!("dead letters: {recovery}");
    }

    let counters = Arc::<Counters>::default();
    let passed = watch::Sender::new(routes.passed());
    let report = match identity {
        Some(identity) => {
            tracing::info!(node = %identity.node, tenant = %identity.tenant, hub = identity.hub, "reporting to the hub");
            Some(Report::start(&config, store, identity, log.clone(), Arc::clone(&counters), passed.subscribe()).await?)
        }
        None => {
            tracing::info!("not enrolled: reporting to no hub");
            None
        }
    };
    let intake = Arc::<Intake>::default();
    let longest = log.spool().max_record();
    let (mut sources, sources_stop) = (JoinSet::new(), CancellationToken::new());
    let (mut connections, mut receipts) = (Vec::new(), Receipts::default());
    let (inbound, (changes, changed)) =
        (watch::Sender::new(Arc::new(Routes::new(&config.route)?)), sync_channel(CHANGES));
    for (index, mqtt) in config.mqtt.iter().enumerate() {
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
            intake: Arc::clone(&intake),
            acknowledged: receipts.connect(mqtt.ack),
            counters: Arc::clone(&counters),
            clock: clock.clone(),
            longest,
        };
        connections.push(Source::new(mqtt.clone(), parts)?);
    }
    let receipts = Arc::new(receipts);
    let writer = Writer::start(log.clone(), Arc::clone(&intake), Arc::clone(&receipts), Arc::clone(&counters))
        .context("the log's thread can't be started")?;
    let parts = sink::Parts {
        log: log.clone(),
        config: config.kafka.clone(),
        bridge,
        routes,
        changes: changed,
        dead_letters,
        receipts,
        counters: Arc::clone(&counters),
    };
    let sink_stop = CancellationToken::new();
    let sink = Sink::start(parts, sink_stop.clone()).context("the sink's thread can't be started")?;
    for connection in connections {
        sources.spawn(connection.run(sources_stop.clone()));
    }

    let mut telling = tokio::time::interval(TELL);
    telling.tick().await;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = telling.tick() => tell(&log, &counters),
            Some(()) = reloads.signals.recv() => {
                let reloaded = (reloads.load)().map_err(anyhow::Error::from).and_then(|new| {
                    new.complete()?;
                    let routes = Routes::new(&new.route)?.after(&passed.borrow());
                    let (ours, theirs) = (routes.passed(), Arc::new(Routes::new(&new.route)?));
                    // The sink first: it has to know a route before messages come by it.
                    changes.try_send((routes, new.kafka.max_rate)).context("the change before is not made yet: try again")?;
                    passed.send_replace(ours);
                    inbound.send_replace(theirs);
                    Ok(new)
                });
                match reloaded {
                    Ok(new) => told(&config, &new),
                    Err(error) => tracing::error!("the configuration of before goes on: {error:#}"),
                }
            }
            // None of them ends by itself; without it the bridge is no use, and the service manager starts it anew.
            Some(ended) = sources.join_next() => anyhow::bail!("a connection ended unexpectedly: {ended:?}"),
        }
        anyhow::ensure!(!writer.is_finished() && !sink.is_finished(), "a thread of the bridge ended unexpectedly");
    }
    tracing::info!("stopping");
    sources_stop.cancel();
    while sources.join_next().await.is_some() {}
    intake.close();
    sink_stop.cancel();
    join(sink).await;
    // The writer may wait for room that does not come any more: what it has is not acknowledged, and comes again.
    if tokio::time::timeout(Duration::from_secs(1), join(writer)).await.is_err() {
        tracing::warn!("messages that the log has no room for stay at their brokers");
    }
    tell(&log, &counters);
    if let Some(report) = report {
        report.finish().await;
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

async fn join(thread: JoinHandle<()>) {
    while !thread.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn tell(log: &Log, counters: &Counters) {
    let status = log.status();
    tracing::info!(
        received = counters.received.now(),
        filtered = counters.filtered.now(),
        unmapped = counters.unmapped.now(),
        stored = counters.stored.now(),
        delivered = counters.delivered.now(),
        dead = counters.refused.now(),
        pending = status.pending,
        bytes = status.bytes,
        "so far"
    );
    if let Some(fault) = status.fault {
        tracing::warn!("{}", fault.message);
    }
}
