//! One connection to an MQTT broker: takes messages in, and acknowledges them once they are durable or, where that is
//! asked for, delivered.
//!
//! What is there is read and acknowledged together; while the log has no room, nothing is read, and the broker keeps what comes.

mod repetitions;

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use node::Clock;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::complaint::Complaint;
use crate::config::MqttConfig;
use crate::connection::Connection;
use crate::counters::Counters;
use crate::filter::Filter;
use crate::intake::Submission;
use crate::lanes::Lanes;
use crate::mapping::{Arrival, Made, Mapped, Mapping};
use crate::record::{Notes, Record};
use crate::route::Routes;
use crate::sparkplug::Saving;
use crate::subscriptions::Subscriptions;
use crate::wire::{Dialer, Incoming, Outgoing, Publish, Welcome, Wire, WireError};
use repetitions::{Coming, Known, Repetitions};

/// Messages, and their bytes, that are taken from a connection before they go to the log together.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 256 << 10;
/// How long to wait for more once a message came: brokers write one by one, and each that is read alone wakes threads, and
/// has a sync of its own.
const GATHER: Duration = Duration::from_millis(2);
/// Pause before the next attempt to connect, from and to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How long a broker may take to take what is written to it.
const WRITE: Duration = Duration::from_secs(10);
/// How long to wait before the disk is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// How long acknowledgements may take when the bridge stops, and how long the farewell.
const FAREWELL: Duration = Duration::from_secs(2);

/// A connection.
pub struct Source {
    index: usize,
    config: MqttConfig,
    subscriptions: Subscriptions,
    mapping: Mapping,
    routes: watch::Receiver<Arc<Routes>>,
    dialer: Dialer,
    wire: Option<Wire>,
    /// Filters of the subscriptions that are not answered yet, in the order of asking.
    asked: VecDeque<Vec<Filter>>,
    /// Packet id of what was asked last.
    packet_id: u16,
    lanes: Arc<Lanes>,
    acknowledged: watch::Receiver<u64>,
    counters: Arc<Counters>,
    clock: Clock,
    /// Longest record that any log takes.
    longest: usize,
    /// Messages that were read and did not go to the log yet, and their bytes.
    batch: Vec<Submission>,
    batch_bytes: usize,
    /// Number of the last message for which an acknowledgement is owed. Others have none.
    submitted: u64,
    /// The last of them that the log was given.
    given: u64,
    /// Messages that are not acknowledged, oldest first: acknowledgements have to come in the order of the messages.
    unacknowledged: VecDeque<Owed>,
    /// Which messages come again.
    repetitions: Repetitions,
    /// Whether a ping waits for its answer.
    pinged: bool,
    up: bool,
    standing: Connection,
}

/// What a connection works with.
pub struct Parts {
    /// Its place among the connections.
    pub index: usize,
    /// Name of the bridge.
    pub bridge: String,
    /// What to subscribe to.
    pub subscriptions: Subscriptions,
    /// What to make of messages.
    pub mapping: Mapping,
    /// Other routes, when there are any.
    pub routes: watch::Receiver<Arc<Routes>>,
    /// Where messages go.
    pub lanes: Arc<Lanes>,
    /// Up to which number they may be acknowledged.
    pub acknowledged: watch::Receiver<u64>,
    /// What to count in.
    pub counters: Arc<Counters>,
    /// Where to tell how it stands.
    pub standing: Connection,
    /// The time of day.
    pub clock: Clock,
    /// Longest record that any log takes.
    pub longest: usize,
}

/// An acknowledgement that is owed to the broker.
struct Owed {
    /// The message, and its number.
    message: Known,
    packet_id: u16,
    /// 1 or 2.
    qos: u8,
}

/// Why a connection is down.
#[derive(Debug, thiserror::Error)]
enum Down {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the broker did not answer a ping")]
    Silent,
    #[error("the broker takes nothing for {} s", WRITE.as_secs())]
    Stuck,
}

impl Source {
    /// A connection that is not up yet.
    ///
    /// # Errors
    /// When the authority's certificate can't be used.
    pub fn new(config: MqttConfig, parts: Parts) -> anyhow::Result<Self> {
        let dialer = Dialer::new(&config, &parts.bridge)?;
        let Parts { index, subscriptions, mapping, routes, lanes, acknowledged, .. } = parts;
        let Parts { counters, standing, clock, longest, .. } = parts;
        Ok(Self {
            index,
            config,
            subscriptions,
            mapping,
            routes,
            dialer,
            wire: None,
            asked: VecDeque::new(),
            packet_id: 0,
            lanes,
            acknowledged,
            counters,
            clock,
            longest,
            batch: Vec::new(),
            batch_bytes: 0,
            submitted: 0,
            given: 0,
            unacknowledged: VecDeque::new(),
            repetitions: Repetitions::default(),
            pinged: false,
            up: false,
            standing,
        })
    }

    /// Starts the connection's thread. It ends when told to stop, within seconds, and lets go of `alive` then.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(self, stop: CancellationToken, alive: DropGuard) -> std::io::Result<JoinHandle<()>> {
        // With a runtime of its own: it sleeps through [`GATHER`], and nobody else is to.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("mqtt".into()).spawn(move || {
            let _alive = alive;
            runtime.block_on(self.run(stop));
        })
    }

    /// Takes messages in until `stop`, and connects again whenever that is needed. Then waits a little for
    /// what is under way, and acknowledges it.
    async fn run(mut self, stop: CancellationToken) {
        let mut pause = PAUSE.0;
        while let Some(connected) = stop.run_until_cancelled(self.dialer.connect()).await {
            let down = match connected {
                Ok((wire, welcome)) => {
                    pause = PAUSE.0;
                    self.wire = Some(wire);
                    match self.session(welcome, &stop).await {
                        Ok(()) => break,
                        Err(down) => down,
                    }
                }
                Err(error) => error.into(),
            };
            self.is_up(false);
            self.standing.down(&down.to_string());
            self.wire = None;
            // An acknowledgement that is late would be taken for another message's. These come again.
            self.repetitions.left(self.unacknowledged.drain(..).map(|owed| (owed.packet_id, owed.message)));
            let (mqtt, broker) = (&self.config.name, &self.config.address);
            tracing::warn!(mqtt, broker, error = %down, "the connection is down");
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSE.1);
        }
        // What is not acknowledged comes again at the next start.
        let _ = tokio::time::timeout(FAREWELL, self.settle()).await;
        let _ = tokio::time::timeout(FAREWELL, self.take_leave()).await;
    }

    /// Takes messages from a connection that is up, until it is down or `stop`.
    async fn session(&mut self, welcome: Welcome, stop: &CancellationToken) -> Result<(), Down> {
        self.counters.connections.add(1);
        self.is_up(true);
        self.standing.up();
        let resumed = welcome.resumed;
        if !resumed {
            self.repetitions.forget();
        }
        tracing::info!(mqtt = self.config.name, broker = self.config.address, resumed, "connected");
        self.asked.clear();
        // A broker may have forgotten the session, or know one with other filters.
        self.subscribe(self.subscriptions.current().to_vec()).await?;
        self.pinged = false;
        let mut ping = tokio::time::interval(welcome.keep_alive);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.tick().await;
        loop {
            self.acknowledge().await?;
            let wire = self.wire.as_mut().ok_or(WireError::Closed)?;
            let packet = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Ok(()) = self.acknowledged.changed() => continue,
                Ok(()) = self.routes.changed() => {
                    self.change().await?;
                    continue;
                }
                _ = ping.tick() => {
                    self.ping().await?;
                    continue;
                }
                packet = wire.read() => packet?,
            };
            self.take(packet).await?;
            let mut more = self.take_more().await;
            if more.is_ok() && (1..BATCH).contains(&self.batch.len()) {
                // Not by the runtime, which each packet that comes meanwhile would wake.
                std::thread::sleep(GATHER);
                more = self.take_more().await;
            }
            self.hand_over(&mut ping, stop).await?;
            more?;
        }
    }

    /// Goes on with other routes.
    async fn change(&mut self) -> Result<(), Down> {
        let routes = Arc::clone(&self.routes.borrow_and_update());
        self.mapping.change(routes.ways(&self.config.name));
        match self.subscriptions.change(routes.filters(&self.config.name)) {
            Ok(new) => self.subscribe(new).await,
            Err(error) => {
                tracing::error!(mqtt = self.config.name, "subscriptions are not changed: {error:#}");
                Ok(())
            }
        }
    }

    /// Subscribes to filters, and gives up those that are no longer wanted.
    async fn subscribe(&mut self, filters: Vec<Filter>) -> Result<(), Down> {
        let mut packets = Vec::new();
        if !filters.is_empty() {
            let texts = filters.iter().map(|filter| filter.as_str().to_owned()).collect();
            packets.push(Outgoing::Subscribe { packet_id: self.next_id(), filters: texts, qos: self.config.qos });
            self.asked.push_back(filters);
        }
        for filter in self.subscriptions.stale().to_vec() {
            tracing::info!(mqtt = self.config.name, filter, "no longer subscribed to");
            self.standing.given_up(&filter);
            packets.push(Outgoing::Unsubscribe { packet_id: self.next_id(), filter });
        }
        self.write(packets).await
    }

    fn next_id(&mut self) -> u16 {
        self.packet_id = self.packet_id.checked_add(1).unwrap_or(1);
        self.packet_id
    }

    /// Whatever else is there already, up to a batch.
    async fn take_more(&mut self) -> Result<(), Down> {
        while self.batch.len() < BATCH && self.batch_bytes < BATCH_BYTES {
            let wire = self.wire.as_mut().ok_or(WireError::Closed)?;
            let Some(packet) = wire.read_now()? else { break };
            self.take(packet).await?;
        }
        Ok(())
    }

    async fn take(&mut self, packet: Incoming) -> Result<(), Down> {
        match packet {
            Incoming::Publish(publish) => self.submit(&publish),
            Incoming::Release(packet_id) => {
                self.repetitions.released(packet_id);
                self.write([Outgoing::Complete(packet_id)]).await?;
            }
            Incoming::Pong => self.pinged = false,
            Incoming::Subscribed(refusals) => self.subscribed(&refusals),
            Incoming::Unsubscribed => self.subscriptions.given_up(),
            Incoming::Other => {}
        }
        Ok(())
    }

    fn subscribed(&mut self, refusals: &[Option<String>]) {
        let name = &self.config.name;
        // The broker answers in the order of asking.
        let filters = self.asked.pop_front().unwrap_or_default();
        tracing::info!(mqtt = name, filters = filters.len(), "subscribed");
        for (filter, why) in filters.iter().zip(refusals).filter_map(|(filter, why)| Some((filter, why.as_ref()?))) {
            tracing::error!(
                mqtt = name, %filter, why,
                "the broker refused the subscription: allow this client to read these topics there"
            );
            self.standing.refused(filter.as_str(), why);
        }
    }

    fn is_up(&mut self, up: bool) {
        self.counters.connected.shift(i64::from(up) - i64::from(std::mem::replace(&mut self.up, up)));
    }

    fn submit(&mut self, publish: &Publish) {
        self.counters.received.add(1);
        let (packet_id, qos) = (publish.packet_id, publish.qos);
        let mut owed = None;
        if qos > 0 {
            let content = match self.repetitions.judge(publish) {
                Coming::New(content) => content,
                Coming::Again(message) => return self.unacknowledged.push_back(Owed { message, packet_id, qos }),
                // Its acknowledgement is on its way, or goes out with what came last.
                Coming::Twice(content) => {
                    let message = Known { number: self.submitted, content };
                    return self.unacknowledged.push_back(Owed { message, packet_id, qos });
                }
            };
            self.submitted += 1;
            owed = Some(Known { number: self.submitted, content });
        }
        let properties: usize = publish.properties.iter().map(|(name, value)| name.len() + value.len()).sum();
        let arrival = Arrival {
            topic: &publish.topic,
            payload: &publish.payload,
            retained: publish.retained,
            duplicate: publish.duplicate,
            beside: properties + publish.content_type.as_ref().map_or(0, String::len),
            received: self.clock.now(),
            now: Instant::now(),
        };
        let (mapped, begun) = (self.mapping.map(&arrival), self.batch.len());
        self.counters.births_wanted.add(self.mapping.births_wanted());
        match mapped {
            Mapped::Same => self.record(&arrival, publish, &Made::default()),
            Mapped::Made(made) => {
                self.counters.filtered.add(u64::from(made.is_empty()));
                self.counters.unmapped.add(u64::from(made.iter().any(|made| made.unmapped.is_some())));
                made.iter().for_each(|made| self.record(&arrival, publish, made));
            }
        }
        number_last(&mut self.batch, begun, self.index, owed.map(|message| message.number));
        if let Some(message) = owed {
            self.unacknowledged.push_back(Owed { message, packet_id, qos });
        }
    }

    /// Puts what became of a message into the batch; of one that is too large for any log, what fits.
    fn record(&mut self, arrival: &Arrival<'_>, publish: &Publish, made: &Made) {
        let notes = Notes {
            uns: made.uns.as_deref(),
            unmapped: made.unmapped.as_deref(),
            birth: made.birth,
            historical: made.historical,
            stale: made.stale,
            transient: made.transient,
            cut: None,
            content_type: publish.content_type.as_deref(),
            properties: publish.properties.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        };
        let record = Record {
            mqtt: &self.config.name,
            topic: arrival.topic,
            payload: made.payload.as_deref().unwrap_or(arrival.payload),
            received: arrival.received,
            qos: publish.qos,
            retained: arrival.retained,
            duplicate: arrival.duplicate,
            notes,
        };
        let mut bytes = record.encoded();
        if bytes.len() > self.longest {
            // It has a number all the same, and the sink says what becomes of it.
            bytes = record.cut_to(self.longest);
        }
        self.batch_bytes += bytes.len();
        self.batch.push(Submission { mqtt: self.index, number: None, record: bytes });
    }

    /// Gives the batch to the log as soon as there is room for it, whatever becomes of the connection: its messages have
    /// their numbers. Meanwhile nothing is read, but the broker still hears of us. After `stop` nobody waits for room any
    /// more: what has none is not acknowledged, and comes again.
    async fn hand_over(&mut self, ping: &mut Interval, stop: &CancellationToken) -> Result<(), Down> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.batch_bytes = 0;
        let (lanes, batch, saving) =
            (Arc::clone(&self.lanes), std::mem::take(&mut self.batch), self.mapping.saving().map(Arc::new));
        let mut putting = pin!(async {
            if let Some(saving) = saving {
                save(&saving).await;
            }
            lanes.put(batch).await;
        });
        let mut heard = Ok(());
        loop {
            tokio::select! {
                biased;
                () = &mut putting => {
                    self.given = self.submitted;
                    return heard;
                }
                () = stop.cancelled() => {
                    self.unacknowledged.retain(|owed| owed.message.number <= self.given);
                    return Ok(());
                }
                Ok(()) = self.acknowledged.changed(), if heard.is_ok() => heard = self.acknowledge().await,
                _ = ping.tick(), if heard.is_ok() => {
                    // The answer to the one before may be behind messages that are not read yet.
                    self.pinged = false;
                    heard = self.ping().await;
                }
            }
        }
    }

    /// Acknowledges what may be.
    async fn acknowledge(&mut self) -> Result<(), Down> {
        let through = *self.acknowledged.borrow_and_update();
        let count = self.unacknowledged.iter().take_while(|owed| owed.message.number <= through).count();
        if count == 0 {
            return Ok(());
        }
        let packets: Vec<Outgoing> = self
            .unacknowledged
            .drain(..count)
            .map(|Owed { packet_id, qos, .. }| match qos {
                2 => Outgoing::Receive(packet_id),
                _ => Outgoing::Acknowledge(packet_id),
            })
            .collect();
        self.write(packets).await
    }

    /// Pings; the answer to the one before has to be here.
    async fn ping(&mut self) -> Result<(), Down> {
        if std::mem::replace(&mut self.pinged, true) {
            return Err(Down::Silent);
        }
        self.write([Outgoing::Ping]).await
    }

    async fn write(&mut self, packets: impl IntoIterator<Item = Outgoing>) -> Result<(), Down> {
        let wire = self.wire.as_mut().ok_or(WireError::Closed)?;
        Ok(tokio::time::timeout(WRITE, wire.write(packets)).await.map_err(|_| Down::Stuck)??)
    }

    /// Waits until all that the log was given may be acknowledged.
    async fn settle(&mut self) {
        while self.unacknowledged.back().is_some_and(|owed| *self.acknowledged.borrow() < owed.message.number) {
            if self.acknowledged.changed().await.is_err() {
                return;
            }
        }
    }

    /// Acknowledges what may be, and takes leave.
    async fn take_leave(mut self) -> Result<(), Down> {
        self.acknowledge().await?;
        self.write([Outgoing::Disconnect]).await?;
        // The acknowledgements go out before the farewell; after it the broker closes.
        while let Some(wire) = &mut self.wire {
            wire.read().await?;
        }
        Ok(())
    }
}

/// Writes what births tell, until it is written: no message that told it is acknowledged before.
async fn save(saving: &Arc<Saving>) {
    let mut complaint = Complaint::default();
    loop {
        let writing = Arc::clone(saving);
        match tokio::task::spawn_blocking(move || writing.write()).await {
            Ok(Err(error)) => {
                if complaint.is_due() {
                    tracing::warn!(
                        "MQTT messages are not acknowledged for now, for what Sparkplug births tell: {error}"
                    );
                }
                tokio::time::sleep(RETRY).await;
            }
            // When there is nobody to write any more, the bridge ends.
            Ok(Ok(())) | Err(_) => return,
        }
    }
}

/// Gives the last record of a message that begins there its number: it is stored after the others, so they are acknowledged
/// with it. What left no record is acknowledged, too.
fn number_last(batch: &mut Vec<Submission>, begun: usize, mqtt: usize, number: Option<u64>) {
    match batch.get_mut(begun..).and_then(<[Submission]>::last_mut) {
        Some(last) => last.number = number,
        None if number.is_some() => batch.push(Submission { mqtt, number, record: Vec::new() }),
        None => {}
    }
}

#[cfg(test)]
mod tests;
