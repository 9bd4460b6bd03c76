//! The bridge's session with its hub: what it counts, as telemetry.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use node::backlog::Options;
use node::health::{Server, Vitals};
use node::{Backlog, Clock, Identity, IdentityStore, Kafka, KafkaStatus, Link, LinkOptions, Recorder};
use protocol::Timestamp;
use protocol::message::{BridgeStatus, ClassStatus, KafkaState, RouteStatus};
use protocol::metrics::{self, Known};
use protocol::telemetry::{Row, Schema};
use spool::{LostRange, Status};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::Endpoint;

use crate::bridge::SOFTWARE;
use crate::class::{Class, Overflow};
use crate::config::{Config, KafkaConfig};
use crate::connection::Connection;
use crate::counters::Counters;
use crate::dead_letter::Gone;
use crate::host;
use crate::lanes::Logs;
use crate::log::Log;
use crate::producer;
use crate::rehearsal::Control;
use crate::route::Passed;
use crate::standing::Standing;

/// How long the hub may take to store what is left when the bridge stops.
const DRAIN: Duration = Duration::from_secs(8);

/// Routes that the hub is told of.
const MOST_ROUTES: usize = 64;
/// Connections that it is told of.
const MOST_CONNECTIONS: usize = 64;
/// What the log is told as that is of no class: no class has a name with a space.
const NO_CLASS: &str = "the log";

/// What the hub is told of.
pub struct Told {
    /// The logs.
    pub logs: Logs,
    /// What is gone of dead letters, by class.
    pub gone: Vec<(Class, Gone)>,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// When routes were last taken.
    pub passed: watch::Receiver<Arc<Passed>>,
    /// How connections to MQTT brokers stand.
    pub mqtt: Vec<Connection>,
}

/// A session that comes back by itself, and the task that samples.
pub struct Report {
    endpoint: Endpoint,
    recorder: Recorder,
    links: TaskTracker,
    link_stop: CancellationToken,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Report {
    /// Starts reporting.
    ///
    /// # Errors
    /// When telemetry can't be kept, no socket opened, or the port for probes is taken.
    pub async fn start(config: &Config, store: IdentityStore, identity: Identity, told: Told) -> anyhow::Result<Self> {
        let clock = Clock::system();
        let options = Options::new(config.state_dir.join("spool"), config.spool_size.bytes());
        let (backlog, recovery) = Backlog::open(options)?;
        if !recovery.is_clean() {
            tracing::warn!("telemetry: {recovery}");
        }
        let recorder = Recorder::new(backlog.clone(), node::telemetry::SAMPLES_PER_BATCH);
        let endpoint = Endpoint::client().context("the bridge can't open a UDP socket")?;
        let kafka = kafka(&config.kafka);
        let control = kafka.clone().map(|kafka| Control::bind(&config.state_dir, kafka)).transpose();
        let control = control.with_context(|| format!("{} takes no socket", config.state_dir.display()))?;
        let certificate = kafka.as_ref().map(|kafka| kafka.status.subscribe());
        let (links, link_stop, stop) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
        let options = LinkOptions {
            endpoint: endpoint.clone(),
            store,
            identity,
            facts: host::facts(SOFTWARE.into()),
            process: rand::random(),
            recorder: recorder.clone(),
            commands: None,
            tails: None,
            kafka,
            logs: None,
            renew: Arc::<Notify>::default(),
            clock: clock.clone(),
        };
        let link = Link::start(options, &links, link_stop.clone());
        links.close();
        let brokers = watch::Sender::default();
        let vitals = Vitals {
            software: SOFTWARE.into(),
            interval: watch::Sender::new(config.interval.get()).subscribe(),
            pulse: recorder.pulse(),
            link: link.status(),
            counters: link.counters(),
            spool: backlog.watch(),
            logs: None,
            bridge: Some(brokers.subscribe()),
        };
        let server = Server::bind(config.health_listen, vitals).await?;
        let mut tasks = JoinSet::new();
        let serving = stop.clone();
        tasks.spawn(async move {
            if let Err(error) = server.serve(serving).await {
                tracing::warn!(%error, "the probes are no longer served");
            }
        });
        if let Some(control) = control {
            tasks.spawn(control.serve(stop.clone()));
        }
        let standing = config.kafka.standing.clone();
        let sampler = Sampler { told, clock, recorder: recorder.clone(), standing, certificate, brokers };
        tasks.spawn(sampler.run(config.interval.get(), stop.clone()));
        Ok(Self { endpoint, recorder, links, link_stop, tasks, stop })
    }

    /// Sends what is left, within a deadline, and ends.
    pub async fn finish(mut self) {
        let drained = tokio::time::timeout(DRAIN, async {
            self.stop.cancel();
            while self.tasks.join_next().await.is_some() {}
            self.recorder.flush().await;
            self.link_stop.cancel();
            self.links.wait().await;
            self.endpoint.wait_idle().await;
        });
        if drained.await.is_err() {
            tracing::warn!("the hub does not have all telemetry yet; it stays in the spool");
        }
    }
}

/// The certificate for the brokers, when it is to come from the hub.
pub(crate) fn kafka(config: &KafkaConfig) -> Option<Kafka> {
    let (store, config) = (config.issued.clone()?, config.clone());
    Some(Kafka {
        store,
        trial: Arc::new(move |credential| producer::try_out(&config, credential)),
        renew: Arc::<Notify>::default(),
        status: watch::Sender::default(),
    })
}

struct Sampler {
    told: Told,
    clock: Clock,
    recorder: Recorder,
    standing: Standing,
    /// The certificate from the hub; `None` when it is to have none from there.
    certificate: Option<watch::Receiver<KafkaStatus>>,
    brokers: watch::Sender<BridgeStatus>,
}

impl Sampler {
    async fn run(self, interval: Duration, stop: CancellationToken) {
        let (names, _): (Vec<Known>, Vec<_>) = self.figures().into_iter().unzip();
        let schema = match Schema::new(names.into_iter().map(|known| (known.into(), vec!["".into()])).collect()) {
            Ok(schema) => Arc::new(schema),
            Err(error) => return tracing::error!(%error, "no telemetry is sent"),
        };
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let last = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                _ = ticks.tick() => false,
            };
            let status = self.status();
            self.brokers.send_if_modified(|known| std::mem::replace(known, status.clone()) != status);
            self.recorder.bridge(status).await;
            let values = self.figures().into_iter().map(|(_, value)| value).collect();
            self.recorder.record(&schema, Row { at: self.clock.now(), values }).await;
            if last {
                return;
            }
        }
    }

    fn status(&self) -> BridgeStatus {
        let certificate = self.certificate.as_ref().map(|certificate| certificate.borrow().clone());
        let (state, message) = match &certificate {
            Some(KafkaStatus { not_after: None, .. }) => {
                (KafkaState::Waiting, "the hub has not given this bridge a Kafka certificate yet".to_owned())
            }
            _ => self.standing.now().told(),
        };
        let certificate = certificate.unwrap_or_default();
        let passed = Arc::clone(&self.told.passed.borrow());
        let routes = passed.ways().iter().take(MOST_ROUTES).map(|way| RouteStatus {
            from: way.from.clone(),
            to: way.to.clone(),
            last_ms: way.last().map_or(0, Timestamp::millis),
        });
        BridgeStatus {
            kafka: state.into(),
            message,
            certificate_not_after_ms: certificate.not_after.map_or(0, Timestamp::millis),
            certificate_trouble: certificate.trouble.unwrap_or_default(),
            routes: routes.collect(),
            classes: self.told.classes(),
            mqtt: self.told.mqtt.iter().take(MOST_CONNECTIONS).map(Connection::status).collect(),
        }
    }

    fn figures(&self) -> Vec<(Known, Option<i64>)> {
        let (pending, bytes, dropped) = self.told.logs.total();
        let gone: u64 = self.told.gone.iter().map(|(_, gone)| gone.now().0).sum();
        let telemetry = self.recorder.backlog().status();
        let counted = |value: u64| i64::try_from(value).ok();
        let Counters { received, filtered, unmapped, births_wanted, .. } = &*self.told.counters;
        let Counters { delivered, refused, connected, .. } = &*self.told.counters;
        let (memory, time) = host::own();
        vec![
            (metrics::AGENT_MEMORY, memory),
            (metrics::AGENT_CPU, time),
            (metrics::SPOOL_PENDING, counted(telemetry.pending_batches)),
            (metrics::SPOOL_BYTES, counted(telemetry.bytes)),
            (metrics::BRIDGE_RECEIVED, counted(received.now())),
            (metrics::BRIDGE_FILTERED, counted(filtered.now())),
            (metrics::BRIDGE_UNMAPPED, counted(unmapped.now())),
            (metrics::BRIDGE_BIRTHS_WANTED, counted(births_wanted.now())),
            (metrics::BRIDGE_DELIVERED, counted(delivered.now())),
            (metrics::BRIDGE_REFUSED, counted(refused.now())),
            (metrics::BRIDGE_PENDING, counted(pending)),
            (metrics::BRIDGE_BYTES, counted(bytes)),
            (metrics::BRIDGE_DROPPED, counted(dropped + gone)),
            (metrics::BRIDGE_LAG, self.told.lag(self.clock.now())),
            (metrics::BRIDGE_CONNECTED, Some(connected.now())),
        ]
    }
}

impl Told {
    /// How long the oldest record of all logs has waited, in milliseconds; `None` where a sink has nothing of a log in
    /// which something waits: nobody knows how old that is.
    fn lag(&self, now: Timestamp) -> Option<i64> {
        let behind = self.logs.iter().filter(|(_, log)| log.status().pending > 0);
        match behind.map(|(_, log)| log.oldest()).min() {
            None => Some(0),
            Some(oldest) => Some((now.millis() - oldest?.millis()).max(0)),
        }
    }

    /// What is dropped of each class, what is lost of the log of none, and what is gone of dead letters.
    fn classes(&self) -> Vec<ClassStatus> {
        let (classes, none): (Vec<_>, Vec<_>) =
            self.logs.iter().map(class_status).partition(|class| class.name != NO_CLASS);
        let none = none.into_iter().filter(|log| log.dropped > 0 || !log.fault.is_empty());
        classes.into_iter().chain(none).chain(self.gone.iter().filter_map(gone_status)).collect()
    }
}

/// Dead letters that gave way, told as a class is: no class has a name with a space.
fn gone_status((class, gone): &(Class, Gone)) -> Option<ClassStatus> {
    let (dropped, range) = gone.now();
    let of = if class.name.is_empty() { String::new() } else { format!(" of {}", class.name) };
    let overflow = Overflow::DropOldest.to_string();
    (dropped > 0).then(|| dropped_status(format!("dead letters{of}"), overflow, dropped, range))
}

fn class_status((class, log): &(Class, Log)) -> ClassStatus {
    // The disk may be at work; it is told with the next look then.
    let range = log.try_spool().and_then(|spool| spool.lost().last().copied());
    let name = if class.name.is_empty() { NO_CLASS } else { &class.name };
    let Status { lost, fault, .. } = log.status();
    ClassStatus {
        fault: fault.map(|fault| fault.message).unwrap_or_default(),
        ..dropped_status(name.to_owned(), class.overflow.to_string(), lost, range)
    }
}

fn dropped_status(name: String, overflow: String, dropped: u64, range: Option<LostRange>) -> ClassStatus {
    ClassStatus {
        name,
        overflow,
        dropped,
        first: range.map_or(0, |range| range.first),
        last: range.map_or(0, |range| range.last),
        reason: range.map_or_else(String::new, |range| range.reason.to_string()),
        fault: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::{DeadLetter, DeadLetters};

    #[test]
    fn the_lag_is_that_of_the_log_that_is_behind_however_live_another_is() {
        let folder = tempfile::tempdir().unwrap();
        let logs: Vec<_> = ["trends", "states"]
            .into_iter()
            .map(|name| {
                let config = Config { state_dir: folder.path().join(name), ..Config::default() };
                let class = Class::all(&config).remove(0);
                let (log, _) = Log::open(class.options()).unwrap();
                (class, log)
            })
            .collect();
        let ((_, behind), (_, live)) = (logs[0].clone(), logs[1].clone());
        let told = Told {
            logs: Logs::new(logs),
            gone: Vec::new(),
            counters: Arc::default(),
            passed: watch::Sender::<Arc<Passed>>::default().subscribe(),
            mqtt: Vec::new(),
        };
        let now = Timestamp::from_millis(10_000_000);
        let before = |millis| Timestamp::from_millis(now.millis() - millis);
        let append = |log: &Log| {
            let mut spool = log.spool();
            spool.append(b"record", true).unwrap();
            spool.sync().unwrap();
        };
        assert_eq!(told.lag(now), Some(0));
        append(&behind);
        assert_eq!(told.lag(now), None, "nobody has seen how old it is");
        behind.waits_since(Some(before(3_600_000)));
        append(&live);
        live.waits_since(Some(before(5)));
        assert_eq!(told.lag(now), Some(3_600_000));
        behind.spool().acknowledge(1).unwrap();
        behind.waits_since(None);
        assert_eq!(told.lag(now), Some(5));
        append(&behind);
        assert_eq!(told.lag(now), None, "it is not as old as what was delivered before");
    }

    #[test]
    fn damage_to_the_log_of_no_class_is_told_with_its_range_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { state_dir: folder.path().to_owned(), ..Config::default() };
        let class = Class::all(&config).remove(0);
        let told = |log: Log| Told {
            logs: Logs::new(vec![(class.clone(), log)]),
            gone: Vec::new(),
            counters: Arc::default(),
            passed: watch::Sender::<Arc<Passed>>::default().subscribe(),
            mqtt: Vec::new(),
        };
        let whole = told(Log::open(class.options()).unwrap().0);
        {
            let mut spool = whole.logs.iter().next().unwrap().1.spool();
            for _ in 0..9 {
                spool.append(&[7; 1000], true).unwrap();
            }
            spool.sync().unwrap();
        }
        assert!(whole.classes().is_empty());
        drop(whole);
        let segments = std::fs::read_dir(&class.log_dir).unwrap().map(|entry| entry.unwrap().path());
        let segment = segments.filter(|path| path.extension().is_some_and(|ending| ending == "seg")).min().unwrap();
        let mut bytes = std::fs::read(&segment).unwrap();
        let at = bytes.windows(1000).position(|window| window == [7; 1000]).unwrap();
        bytes[at + 1500] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
        let damaged = told(Log::open(class.options()).unwrap().0);
        crate::show::walk(&mut damaged.logs.iter().next().unwrap().1.spool(), |_| {}).unwrap();
        let [log] = damaged.classes().try_into().unwrap();
        assert_eq!((log.name.as_str(), log.overflow.as_str(), log.dropped), ("the log", "block", 1));
        assert_eq!((log.first, log.last, log.reason.as_str()), (2, 2, "damaged on disk"));
        assert!(log.fault.contains("were damaged and are lost; check the disk"), "{}", log.fault);
    }

    #[test]
    fn dead_letters_that_gave_way_are_told_beside_what_classes_drop() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { state_dir: folder.path().to_owned(), ..Config::default() };
        let class = Class::all(&config).remove(0);
        let (mut letters, _) = DeadLetters::open(class.dead_letter_dir.clone(), 1 << 20).unwrap();
        let told = Told {
            logs: Logs::new(Vec::new()),
            gone: vec![(class, letters.gone())],
            counters: Arc::default(),
            passed: watch::Sender::<Arc<Passed>>::default().subscribe(),
            mqtt: Vec::new(),
        };
        let mut put = |count| {
            (0..count).for_each(|sequence| {
                letters.put(&DeadLetter { sequence, reason: "refused".into(), record: vec![0; 1000] }).unwrap();
            });
            letters.sync().unwrap();
        };
        put(10);
        assert!(told.classes().is_empty());
        put(2000);
        let [classes] = told.classes().try_into().unwrap();
        let ClassStatus { name, overflow, dropped, first, last, reason, .. } = classes;
        assert_eq!(
            (name.as_str(), overflow.as_str(), reason.as_str()),
            ("dead letters", "drop-oldest", "the spool was full")
        );
        assert!(dropped > 500 && (first, last) == (1, dropped), "{dropped}: {first} to {last}");
    }
}
