//! Brings the log's records to Kafka, in order, and lets go of them once they are there.
//!
//! There is one sender. What a producer was given and has not confirmed when it ends is sent again by the next, from the
//! first such record on; the sequence in the headers tells what came twice. A record that is refused for good is found by
//! sending its batch again in parts, and becomes a dead letter. So do those of a topic that takes none, as long as they
//! displace no other there; one of them asks it again every two seconds.

mod bookmark;
mod burial;
mod origin;
mod probe;
mod refusals;
mod routing;
mod suspects;
mod window;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use protocol::Timestamp;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use spool::{Entry, LostRange, SpoolError};
use tokio_util::sync::CancellationToken;

use crate::class::{self, Class};
use crate::complaint::Complaint;
use crate::config::KafkaConfig;
use crate::counters::Counters;
use crate::dead_letter::DeadLetters;
use crate::expiry::Expiry;
use crate::header;
use crate::lanes::Lane;
use crate::log::Log;
use crate::pace::Pace;
use crate::producer::{Outgoing, Producer};
use crate::receipts::Receipts;
use crate::record::Record;
use crate::route::Target;
use bookmark::Bookmark;
use burial::{refused_by, takes_none};
use origin::Origin;
use probe::Probe;
use refusals::{Refusals, is_about_record, is_about_topic};
pub use routing::{Change, Routing};
use suspects::Suspects;
use window::Window;

/// How long to wait for records while others are on their way, before their reports are looked at.
const SERVE: Duration = Duration::from_millis(5);
/// Records read from the log at once, and their bytes: those that the producer has no room for wait in memory.
const AHEAD: usize = 512;
const AHEAD_BYTES: usize = 1 << 20;
/// How long to wait for records when none is on its way.
const IDLE: Duration = Duration::from_millis(20);
/// How long a producer that ends may take to get rid of what is on its way.
const DRAIN: Duration = Duration::from_secs(5);
/// A class whose next record is older than this is behind, and how often that is told.
const BEHIND: Duration = Duration::from_secs(5);
const TELL_BEHIND: Duration = Duration::from_secs(60);
/// How often the certificate's files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long the producer with another certificate may take to connect while the one before goes on.
const SUCCEED: Duration = Duration::from_secs(10);
/// What is said of a record whose payload did not fit the log.
const CUT: &str =
    "larger than its log takes, so that the beginning of its payload alone is kept: see log-size and class.size";
/// Pause after a producer failed, from and to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// The sink.
pub struct Sink {
    parts: Parts,
    origin: Origin,
    expiry: Option<Expiry>,
    refusals: Refusals,
    /// The record by which a topic is asked that takes none.
    probe: Option<Probe>,
    /// When it was last told that the class is behind.
    behind: Option<Instant>,
    suspects: Suspects,
    /// Records that are refused, and why; they become dead letters when it is their turn.
    condemned: BTreeMap<u64, String>,
    /// Records that Kafka has although one before them it has not.
    ahead: BTreeSet<u64>,
    /// A producer's end said something about what is refused.
    learnt: bool,
    /// Reasons for dead letters that the log has.
    told: HashSet<String>,
    complaints: Complaints,
    bookmark: Bookmark,
}

/// What the disk does not let it do: it is tried again with every turn, and told now and then.
#[derive(Default)]
struct Complaints {
    burying: Complaint,
    noting: Complaint,
    expiring: Complaint,
    succeeding: Complaint,
}

/// What the sink works with.
pub struct Parts {
    /// Where records come from.
    pub log: Log,
    /// Of which they are.
    pub class: Class,
    /// The rate of all sinks together.
    pub pace: Arc<Mutex<Pace>>,
    /// Where they go.
    pub config: KafkaConfig,
    /// Name of the bridge.
    pub bridge: String,
    /// Which goes where.
    pub routing: Routing,
    /// Where those go that nobody takes.
    pub dead_letters: DeadLetters,
    /// Who hears of what Kafka has.
    pub receipts: Arc<Receipts>,
    /// By which records come; it hears of that, too.
    pub lane: Arc<Lane>,
    /// What to count in.
    pub counters: Arc<Counters>,
}

impl Parts {
    /// Records through this one are in Kafka, dead letters on disk, or dropped as their class says.
    fn delivered(&self, through: u64) {
        self.receipts.delivered(through);
        self.lane.delivered(through);
    }
}

/// Why a producer was ended.
enum End {
    /// The bridge is told to stop.
    Stopped,
    /// Another certificate is there, and a producer that shows it.
    Rotated(Producer),
    /// What it has not sent yet is too old.
    Expired,
    /// It does not work any more, or gave a batch up.
    Failed(RDKafkaErrorCode),
    /// The disk failed.
    Disk(SpoolError),
}

impl Sink {
    /// Starts the sink's thread. It ends when told to stop, within seconds.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(parts: Parts, stop: CancellationToken) -> std::io::Result<JoinHandle<()>> {
        let epoch = header::epoch(parts.log.spool().epoch());
        let origin = Origin { bridge: parts.bridge.clone(), epoch, class: parts.class.name.clone() };
        parts.delivered(parts.log.spool().acknowledged());
        let expiry = parts.class.max_age.map(Expiry::new);
        let sink = Self {
            parts,
            origin,
            expiry,
            refusals: Refusals::default(),
            probe: None,
            behind: None,
            suspects: Suspects::default(),
            condemned: BTreeMap::new(),
            ahead: BTreeSet::new(),
            learnt: false,
            told: HashSet::new(),
            complaints: Complaints::default(),
            bookmark: Bookmark::new(Instant::now()),
        };
        std::thread::Builder::new().name("kafka".into()).spawn(move || sink.run(&stop))
    }

    fn run(mut self, stop: &CancellationToken) {
        let (mut pause, mut successor) = (PAUSE.0, None);
        while !stop.is_cancelled() {
            self.expire();
            let before = self.parts.counters.delivered.now();
            let end = match successor.take().map_or_else(|| self.producer(), Ok) {
                Ok(producer) => {
                    self.parts.counters.producers.add(1);
                    self.pump(&producer, stop)
                }
                Err(error) => {
                    tracing::error!(%error, "no connection to Kafka can be made: look at kafka.ca, kafka.certificate and kafka.key");
                    End::Failed(RDKafkaErrorCode::Fail)
                }
            };
            match end {
                End::Stopped => break,
                End::Rotated(producer) => {
                    tracing::info!("the certificate for Kafka was replaced; going on with the new one");
                    successor = Some(producer);
                    continue;
                }
                End::Expired => {
                    tracing::debug!(class = self.parts.class.name, "what Kafka did not take in time is dropped");
                    continue;
                }
                End::Failed(code) if std::mem::take(&mut self.learnt) => {
                    tracing::warn!(%code, "Kafka refused records; going on without them");
                    continue;
                }
                End::Failed(code) => tracing::warn!(%code, "delivery to Kafka failed; beginning anew"),
                End::Disk(error) => tracing::error!("records can't be read from the log: {error}"),
            }
            if self.parts.counters.delivered.now() > before {
                pause = PAUSE.0;
            }
            let until = Instant::now() + pause;
            while Instant::now() < until && !stop.is_cancelled() {
                std::thread::sleep(IDLE);
            }
            pause = (pause * 2).min(PAUSE.1);
        }
        self.bookmark.save(&self.parts.log);
    }

    fn producer(&self) -> Result<Producer, KafkaError> {
        Producer::new(&self.parts.config, &self.parts.bridge)
    }

    /// Sends by one producer until it ends.
    fn pump(&mut self, producer: &Producer, stop: &CancellationToken) -> End {
        let reader = self.parts.log.spool().deliver();
        let mut window = Window::new(reader);
        let (mut groups, mut looked) = (0, Instant::now());
        // Connects while this one goes on: records would wait for it otherwise.
        let mut successor: Option<(Producer, Instant)> = None;
        let mut ending: Option<(End, Instant)> = None;
        loop {
            if ending.is_none() && looked.elapsed() > LOOK {
                looked = Instant::now();
                self.expire();
                if !successor.as_ref().map_or(producer, |(next, _)| next).is_current(&self.parts.config) {
                    match self.producer() {
                        Ok(next) => {
                            self.complaints.succeeding.is_over();
                            successor = Some((next, Instant::now()));
                        }
                        Err(error) if self.complaints.succeeding.is_due() => {
                            tracing::warn!(%error, "the new certificate for Kafka is of no use, going on with the old one: look at kafka.ca, kafka.certificate and kafka.key");
                        }
                        Err(_) => {}
                    }
                }
                if self.is_late(&window) {
                    producer.purge();
                    ending = Some((End::Expired, Instant::now()));
                }
            }
            if let Some((next, since)) = successor.take_if(|_| ending.is_none()) {
                // It has nothing to report yet but how it connects.
                let _ = next.poll();
                if next.is_ready() || since.elapsed() > SUCCEED {
                    ending = Some((End::Rotated(next), Instant::now()));
                } else {
                    successor = Some((next, since));
                }
            }
            self.parts.routing.hear();
            if ending.is_none() {
                let filled = if stop.is_cancelled() { Err(End::Stopped) } else { self.fill(producer, &mut window) };
                ending = filled.err().map(|end| (end, Instant::now()));
            }
            let patience = if window.under_way == 0 && ending.is_none() { IDLE } else { SERVE };
            groups = self.parts.log.wait(groups, patience);
            for (sequence, outcome) in producer.poll() {
                if let Err(code) = self.reported(&mut window, sequence, outcome)
                    && !matches!(ending, Some((End::Failed(_) | End::Expired, _)))
                {
                    // What is not sent yet need not be: it goes by the next producer, in its turn.
                    producer.purge();
                    ending = Some((End::Failed(code), Instant::now()));
                }
            }
            if let Some(complaint) = producer.complaint() {
                tracing::warn!("Kafka: {complaint}");
            }
            self.ask(&mut window);
            match self.let_go(&mut window) {
                Ok(()) => drop(self.complaints.noting.is_over()),
                Err(error) if self.complaints.noting.is_due() => {
                    tracing::warn!("what Kafka has confirmed can't be noted, and waits in the log: {error}");
                }
                Err(_) => {}
            }
            self.parts.log.waits_since(window.oldest());
            if let Some((end, since)) = ending.take() {
                if window.under_way == 0 || since.elapsed() > DRAIN {
                    // Of what this producer did not come to, Kafka has some by one before.
                    self.ahead.extend(window.ahead());
                    let first = self.parts.log.spool().first();
                    self.ahead = self.ahead.split_off(&first);
                    self.suspects.divide(first);
                    self.probe = None;
                    self.parts.log.waits_since(None);
                    return end;
                }
                ending = Some((end, since));
            }
        }
    }

    /// Hands over what the producer takes.
    fn fill(&mut self, producer: &Producer, window: &mut Window) -> Result<(), End> {
        loop {
            if window.is_full() {
                return Ok(());
            }
            let entry = match window.held.pop_front() {
                Some(entry) => entry,
                None if self.read(window)? => continue,
                None => return Ok(()),
            };
            let (sequence, bytes) = match entry {
                Entry::Record { sequence, bytes, .. } => (sequence, bytes),
                Entry::Lost(LostRange { first, last, reason }) => {
                    if class::is_drop(reason) {
                        window.dropped.push((first, last));
                    } else {
                        tracing::error!(first, last, ?reason, "records of the log are lost");
                        window.done(last);
                    }
                    continue;
                }
            };
            if self.ahead.remove(&sequence) {
                window.done(sequence);
                continue;
            }
            if let Some(reason) = self.condemned.get(&sequence).cloned() {
                if !self.bury(window, sequence, reason, bytes, DeadLetters::put) {
                    return Ok(());
                }
                self.condemned.remove(&sequence);
                continue;
            }
            let group = self.suspects.group(sequence);
            if window.must_wait(group) || !self.is_open(&bytes) {
                window.hold(sequence, bytes);
                return Ok(());
            }
            match self.send(producer, sequence, &window.dropped, &bytes) {
                Ok((target, received)) => {
                    self.pace().spend(bytes.len());
                    window.sent(sequence, group, target, received);
                }
                Err(Unsent::Full) => {
                    window.hold(sequence, bytes);
                    return Ok(());
                }
                Err(Unsent::Failed(code)) => return Err(End::Failed(code)),
                Err(Unsent::Refused(reason)) => {
                    if !self.bury(window, sequence, reason, bytes, DeadLetters::put) {
                        return Ok(());
                    }
                }
                Err(Unsent::Closed(target, received, code)) => {
                    let due = self.probe.is_none() && self.refusals.is_due(&target.topic, Instant::now());
                    if due && window.dropped.is_empty() {
                        window.asks(sequence, received);
                        self.probe = Some(Probe::new(sequence, target, bytes));
                    } else if !self.bury(
                        window,
                        sequence,
                        takes_none(&target.topic, code),
                        bytes,
                        DeadLetters::put_beside,
                    ) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Reads on; gives whether there was anything. While records are on their way it does not wait for the disk.
    fn read(&mut self, window: &mut Window) -> Result<bool, End> {
        let log = &self.parts.log;
        let spool = if window.under_way == 0 { Some(log.spool()) } else { log.try_spool() };
        let Some(mut spool) = spool else { return Ok(false) };
        self.parts.routing.before_reading(&spool);
        let mut bytes = 0;
        while window.held.len() < AHEAD && bytes < AHEAD_BYTES {
            match window.reader.next(&mut spool) {
                Ok(Some(entry)) => {
                    if let Entry::Record { bytes: record, .. } = &entry {
                        bytes += record.len();
                    }
                    window.held.push_back(entry);
                }
                Ok(None) => break,
                // It comes again, after what was read.
                Err(_) if !window.held.is_empty() => break,
                Err(error) => return Err(End::Disk(error)),
            }
        }
        Ok(!window.held.is_empty())
    }

    /// Whether the rate lets this record through.
    fn is_open(&mut self, record: &[u8]) -> bool {
        let pace = Arc::clone(&self.parts.pace);
        let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.is_open(Instant::now(), || {
            let behind = is_older(Record::received(record), BEHIND);
            if behind && self.behind.is_none_or(|told| told.elapsed() > TELL_BEHIND) {
                self.behind = Some(Instant::now());
                tracing::info!(log = self.parts.class.title(), "behind: what is live goes first");
            }
            behind
        })
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.parts.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what is too old.
    fn expire(&mut self) {
        if let Some(expiry) = &mut self.expiry
            && let Err(error) = expiry.check(&self.parts.log, SystemTime::now().into())
            && self.complaints.expiring.is_due()
        {
            tracing::warn!(class = self.parts.class.name, "what is too old can't be dropped: {error}");
        }
    }

    /// Whether the producer has a record that is dropped for its age.
    fn is_late(&self, window: &Window) -> bool {
        let late = |received, expiry: &Expiry| expiry.is_late(received, SystemTime::now().into());
        window.since().zip(self.expiry.as_ref()).is_some_and(|(received, expiry)| late(received, expiry))
    }

    fn send(
        &mut self,
        producer: &Producer,
        sequence: u64,
        dropped: &[(u64, u64)],
        bytes: &[u8],
    ) -> Result<(Arc<Target>, Timestamp), Unsent> {
        let refused = |error: &dyn std::fmt::Display| Unsent::Refused(error.to_string());
        let record = Record::decode(bytes).map_err(|error| refused(&error))?;
        if record.notes.cut.is_some() {
            return Err(refused(&CUT));
        }
        let target = self.parts.routing.target(sequence, &record).map_err(|error| refused(&error))?;
        if let Some(code) = self.refusals.of(&target.topic, Instant::now()) {
            return Err(Unsent::Closed(target, record.received, code));
        }
        // What asks is not overtaken.
        if self.probe.as_ref().is_some_and(|probe| probe.is_for(&target.topic)) {
            return Err(Unsent::Full);
        }
        match producer.send(self.outgoing(sequence, dropped, &record, &target)) {
            Ok(()) => Ok((target, record.received)),
            Err(RDKafkaErrorCode::QueueFull) => Err(Unsent::Full),
            Err(code) if is_about_record(code) => Err(Unsent::Refused(format!("{code}"))),
            Err(code) if is_about_topic(code) && self.is_closed(&target.topic, code) => {
                Err(Unsent::Closed(target, record.received, code))
            }
            Err(code) => Err(Unsent::Failed(code)),
        }
    }

    fn outgoing<'a>(
        &self,
        sequence: u64,
        dropped: &[(u64, u64)],
        record: &Record<'a>,
        target: &'a Target,
    ) -> Outgoing<'a> {
        Outgoing {
            sequence,
            topic: &target.topic,
            key: &target.key,
            payload: record.payload,
            timestamp: record.received.millis(),
            headers: self.origin.headers(sequence, dropped, record, target),
        }
    }

    /// A topic refused a record; gives whether its records are not to wait for it.
    fn is_closed(&mut self, topic: &str, code: RDKafkaErrorCode) -> bool {
        let now = Instant::now();
        self.refusals.note(topic, code, now);
        self.refusals.of(topic, now).is_some()
    }

    /// Takes a report; an error ends the producer.
    fn reported(
        &mut self,
        window: &mut Window,
        sequence: u64,
        outcome: Result<(), RDKafkaErrorCode>,
    ) -> Result<(), RDKafkaErrorCode> {
        let Some(target) = window.settle(sequence, outcome.is_ok()) else { return Ok(()) };
        match outcome {
            Ok(()) => {
                self.parts.counters.delivered.add(1);
                return Ok(());
            }
            Err(code) if is_about_topic(code) => {
                if !self.is_closed(&target.topic, code) {
                    return Err(code);
                }
            }
            Err(code) if is_about_record(code) => {
                if self.suspects.refused(sequence) {
                    self.condemned.insert(sequence, refused_by(&target.topic, code));
                }
            }
            Err(code) => return Err(code),
        }
        self.learnt = true;
        outcome
    }

    /// Lets go of what is delivered or buried, without a gap.
    fn let_go(&mut self, window: &mut Window) -> Result<(), SpoolError> {
        if let Some(through) = window.delivered() {
            // Until it is in one place for good, it stays in the other.
            self.parts.dead_letters.sync()?;
            self.parts.log.spool().acknowledge(through)?;
            self.parts.delivered(through);
            window.forget(through);
            self.parts.routing.forget(through);
            self.bookmark.moves();
        } else if let Some(through) = window.dropped_last() {
            // It stays in the log until a record says so in Kafka; who waits for an acknowledgement is not to wait for that.
            self.parts.delivered(through);
        }
        self.bookmark.keep(&self.parts.log);
        Ok(())
    }
}

/// Why a record was not handed over.
enum Unsent {
    /// The producer has enough for now.
    Full,
    /// The producer does not work.
    Failed(RDKafkaErrorCode),
    /// It will never be delivered.
    Refused(String),
    /// Where it is to go, nothing is taken; received then.
    Closed(Arc<Target>, Timestamp, RDKafkaErrorCode),
}

fn is_older(received: Option<Timestamp>, age: Duration) -> bool {
    let now = Timestamp::from(SystemTime::now()).millis();
    let passed = received.map_or(0, |received| now.saturating_sub(received.millis()));
    u128::try_from(passed).is_ok_and(|passed| passed > age.as_millis())
}
