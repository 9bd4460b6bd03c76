//! One connection to an MQTT broker: takes messages in, and acknowledges them once they are durable or, where that is
//! asked for, delivered.
//!
//! `rumqttc` connects, and knows the packets. Its event loop would take ten packets at a time and write each
//! acknowledgement by itself; what is read and written here goes through the connection directly, as much at once as there is.

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;
use node::Clock;
use rumqttc::{
    ConnectionError, Event, EventLoop, MqttOptions, Packet, PubAck, PubComp, PubRec, Publish, QoS, StateError, SubAck,
    Subscribe, SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport, Unsubscribe,
};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::config::MqttConfig;
use crate::counters::Counters;
use crate::intake::Submission;
use crate::lanes::Lanes;
use crate::record::Record;
use crate::subscriptions::Subscriptions;

/// Messages, and their bytes, that are taken from a connection before they go to the log together.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 256 << 10;
/// How long to wait for more once a message came: brokers write one by one, and each that is read alone wakes a thread.
const GATHER: Duration = Duration::from_millis(1);
/// Largest packet that is read. One that is larger ends the connection, and the broker would send it again for ever: this
/// is above what brokers take, and what the log does not take is told and dropped.
const LARGEST_PACKET: usize = 64 << 20;
/// Pause before the next attempt to connect, from and to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How long a broker may take to take what is written to it.
const WRITE: Duration = Duration::from_secs(10);
/// How long acknowledgements may take when the bridge stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// A connection.
pub struct Source {
    index: usize,
    config: MqttConfig,
    subscriptions: Subscriptions,
    events: EventLoop,
    lanes: Arc<Lanes>,
    acknowledged: watch::Receiver<u64>,
    counters: Arc<Counters>,
    clock: Clock,
    /// Longest record that the log takes.
    longest: usize,
    /// Messages that were read and did not go to the log yet, and their bytes.
    batch: Vec<Submission>,
    batch_bytes: usize,
    /// Number of the last message that was read.
    submitted: u64,
    /// Messages that are not acknowledged, oldest first: acknowledgements have to come in the order of the messages.
    unacknowledged: VecDeque<Owed>,
    /// Packet ids of messages with quality of service 2 that the broker has not released: they are here already.
    unreleased: HashSet<u16>,
    /// Whether a ping waits for its answer.
    pinged: bool,
    up: bool,
    /// Numbers of messages that the connection before left unacknowledged, by their packet ids.
    under_way: HashMap<u16, u64>,
}

/// What a connection works with.
pub struct Parts {
    /// Its place among the connections.
    pub index: usize,
    /// Name of the bridge.
    pub bridge: String,
    /// What to subscribe to.
    pub subscriptions: Subscriptions,
    /// Where messages go.
    pub lanes: Arc<Lanes>,
    /// Up to which number they may be acknowledged.
    pub acknowledged: watch::Receiver<u64>,
    /// What to count in.
    pub counters: Arc<Counters>,
    /// The time of day.
    pub clock: Clock,
    /// Longest record that the log takes.
    pub longest: usize,
}

/// An acknowledgement that is owed to the broker.
struct Owed {
    /// The message's number.
    number: u64,
    packet_id: u16,
    qos: QoS,
}

/// Why a connection is down.
#[derive(Debug, thiserror::Error)]
enum Down {
    #[error(transparent)]
    Connect(#[from] ConnectionError),
    #[error(transparent)]
    Session(#[from] StateError),
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
        // Nothing is asked of the event loop but to connect.
        let events = EventLoop::new(options(&config, &parts.bridge)?, 1);
        let Parts { index, subscriptions, lanes, acknowledged, counters, clock, longest, .. } = parts;
        Ok(Self {
            index,
            config,
            subscriptions,
            events,
            lanes,
            acknowledged,
            counters,
            clock,
            longest,
            batch: Vec::new(),
            batch_bytes: 0,
            submitted: 0,
            unacknowledged: VecDeque::new(),
            unreleased: HashSet::new(),
            pinged: false,
            up: false,
            under_way: HashMap::new(),
        })
    }

    /// Takes messages in until `stop`, and connects again whenever that is needed. Then waits a little for
    /// what is under way, and acknowledges it.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pause = PAUSE.0;
        while let Some(connected) = stop.run_until_cancelled(self.events.poll()).await {
            let down = match connected {
                Ok(Event::Incoming(Packet::ConnAck(connack))) => {
                    pause = PAUSE.0;
                    match self.session(connack.session_present, &stop).await {
                        Ok(()) => break,
                        Err(down) => down,
                    }
                }
                Ok(_) => continue,
                Err(error) => error.into(),
            };
            self.is_up(false);
            self.events.clean();
            // An acknowledgement that is late would be taken for another message's. These come again.
            self.under_way.extend(self.unacknowledged.drain(..).map(|owed| (owed.packet_id, owed.number)));
            let (mqtt, broker) = (&self.config.name, &self.config.address);
            tracing::warn!(mqtt, broker, error = %down, "the connection is down");
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSE.1);
        }
        // What is not acknowledged comes again at the next start.
        let _ = tokio::time::timeout(FAREWELL, self.finish()).await;
    }

    /// Takes messages from a connection that is up, until it is down or `stop`.
    async fn session(&mut self, resumed: bool, stop: &CancellationToken) -> Result<(), Down> {
        self.counters.connections.add(1);
        self.is_up(true);
        if !resumed {
            self.under_way.clear();
            self.unreleased.clear();
        }
        tracing::info!(mqtt = self.config.name, broker = self.config.address, resumed, "connected");
        self.subscribe().await?;
        self.pinged = false;
        let mut ping = tokio::time::interval(self.config.keep_alive.get());
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.tick().await;
        loop {
            self.acknowledge().await?;
            let network = self.events.network.as_mut().ok_or(StateError::ConnectionAborted)?;
            let packet = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Ok(()) = self.acknowledged.changed() => continue,
                _ = ping.tick() => {
                    self.ping().await?;
                    continue;
                }
                packet = network.read() => packet?,
            };
            self.take(packet).await?;
            let mut more = self.take_more().await;
            if more.is_ok() && (1..BATCH).contains(&self.batch.len()) {
                tokio::time::sleep(GATHER).await;
                more = self.take_more().await;
            }
            self.hand_over(&mut ping, stop).await?;
            more?;
        }
    }

    /// A broker may have forgotten the session, or know one with other filters.
    async fn subscribe(&mut self) -> Result<(), Down> {
        let qos = match self.config.qos {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        };
        let filters = self.subscriptions.current().iter();
        let mut subscribe =
            Subscribe::new_many(filters.map(|filter| SubscribeFilter::new(filter.as_str().into(), qos)));
        // The broker answers in this order, so the numbers need not tell which is which.
        subscribe.pkid = 1;
        let mut packets = Vec::new();
        if !subscribe.filters.is_empty() {
            packets.push(Packet::Subscribe(subscribe));
        }
        for (filter, packet_id) in self.subscriptions.stale().iter().zip(2..) {
            tracing::info!(mqtt = self.config.name, filter, "no longer subscribed to");
            packets.push(Packet::Unsubscribe(Unsubscribe { pkid: packet_id, topics: vec![filter.clone()] }));
        }
        self.write(packets).await
    }

    /// Whatever else is there already, up to a batch.
    async fn take_more(&mut self) -> Result<(), Down> {
        while self.batch.len() < BATCH && self.batch_bytes < BATCH_BYTES {
            let network = self.events.network.as_mut().ok_or(StateError::ConnectionAborted)?;
            let Some(packet) = network.read().now_or_never() else { break };
            self.take(packet?).await?;
        }
        Ok(())
    }

    async fn take(&mut self, packet: Packet) -> Result<(), Down> {
        match packet {
            Packet::Publish(publish) => self.submit(&publish),
            Packet::PubRel(release) => {
                // One that is not known was received by the process before this one.
                self.unreleased.remove(&release.pkid);
                self.write([Packet::PubComp(PubComp::new(release.pkid))]).await?;
            }
            Packet::PingResp => self.pinged = false,
            Packet::SubAck(suback) => self.subscribed(&suback),
            Packet::UnsubAck(_) => self.subscriptions.given_up(),
            _ => {}
        }
        Ok(())
    }

    fn subscribed(&self, suback: &SubAck) {
        let name = &self.config.name;
        tracing::info!(mqtt = name, filters = self.subscriptions.current().len(), "subscribed");
        for (filter, code) in self.subscriptions.current().iter().zip(&suback.return_codes) {
            if *code == SubscribeReasonCode::Failure {
                tracing::error!(
                    mqtt = name, %filter,
                    "the broker refused the subscription: allow this client to read these topics there"
                );
            }
        }
    }

    fn is_up(&mut self, up: bool) {
        self.counters.connected.shift(i64::from(up) - i64::from(std::mem::replace(&mut self.up, up)));
    }

    fn submit(&mut self, publish: &Publish) {
        self.counters.received.add(1);
        let (packet_id, qos) = (publish.pkid, publish.qos);
        // The broker never had an acknowledgement of this one, so it is the very message that is in the log already.
        if !self.under_way.is_empty()
            && let Some(number) = self.under_way.remove(&packet_id).filter(|_| publish.dup)
        {
            self.unacknowledged.push_back(Owed { number, packet_id, qos });
            return;
        }
        if qos == QoS::ExactlyOnce && !self.unreleased.insert(packet_id) {
            // Its acknowledgement got lost, and its packet id is not free before it is released.
            self.unacknowledged.push_back(Owed { number: self.submitted, packet_id, qos });
            return;
        }
        let mut record = Record {
            mqtt: &self.config.name,
            topic: &publish.topic,
            payload: &publish.payload,
            received: self.clock.now(),
            qos: qos as u8,
            retained: publish.retain,
            duplicate: publish.dup,
        }
        .encoded();
        self.submitted += 1;
        if record.len() > self.longest {
            self.counters.oversize.add(1);
            tracing::error!(
                mqtt = self.config.name,
                topic = publish.topic,
                bytes = publish.payload.len(),
                most = self.longest,
                "a message is too large for the log and is dropped"
            );
            record = Vec::new();
        }
        self.batch_bytes += record.len();
        self.batch.push(Submission { mqtt: self.index, number: self.submitted, record });
        if qos != QoS::AtMostOnce {
            self.unacknowledged.push_back(Owed { number: self.submitted, packet_id, qos });
        }
    }

    /// Gives the batch to the log as soon as there is room for it, whatever becomes of the connection: its messages have
    /// their numbers. Meanwhile nothing is read, but the broker still hears of us.
    async fn hand_over(&mut self, ping: &mut Interval, stop: &CancellationToken) -> Result<(), Down> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.batch_bytes = 0;
        let lanes = Arc::clone(&self.lanes);
        let mut putting = pin!(lanes.put(std::mem::take(&mut self.batch)));
        let mut heard = Ok(());
        loop {
            tokio::select! {
                biased;
                () = &mut putting => return heard,
                // What is not in the log is not acknowledged, and comes again.
                () = stop.cancelled() => return Ok(()),
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
        let count = self.unacknowledged.iter().take_while(|owed| owed.number <= through).count();
        if count == 0 {
            return Ok(());
        }
        let packets: Vec<Packet> = self
            .unacknowledged
            .drain(..count)
            .map(|Owed { packet_id, qos, .. }| match qos {
                QoS::ExactlyOnce => Packet::PubRec(PubRec::new(packet_id)),
                _ => Packet::PubAck(PubAck::new(packet_id)),
            })
            .collect();
        self.write(packets).await
    }

    /// Pings; the answer to the one before has to be here.
    async fn ping(&mut self) -> Result<(), Down> {
        if std::mem::replace(&mut self.pinged, true) {
            return Err(Down::Silent);
        }
        self.write([Packet::PingReq]).await
    }

    async fn write(&mut self, packets: impl IntoIterator<Item = Packet>) -> Result<(), Down> {
        let network = self.events.network.as_mut().ok_or(StateError::ConnectionAborted)?;
        let writing = async {
            for packet in packets {
                network.write(packet).await?;
            }
            network.flush().await
        };
        tokio::time::timeout(WRITE, writing).await.map_err(|_| Down::Stuck)?.map_err(Down::Session)
    }

    /// Waits for what is under way, and takes leave.
    async fn finish(mut self) -> Result<(), Down> {
        while self.unacknowledged.back().is_some_and(|owed| *self.acknowledged.borrow() < owed.number) {
            if self.acknowledged.changed().await.is_err() {
                return Ok(());
            }
        }
        self.acknowledge().await?;
        self.write([Packet::Disconnect]).await?;
        // The acknowledgements go out before the farewell; after it the broker closes.
        while let Some(network) = &mut self.events.network {
            network.read().await?;
        }
        Ok(())
    }
}

fn options(config: &MqttConfig, bridge: &str) -> anyhow::Result<MqttOptions> {
    let (host, port) = config.host_and_port().context("the address is not host:port")?;
    let session = config.client_id.clone().unwrap_or_else(|| format!("hyperfactory-{bridge}-{}", config.name));
    let mut options = MqttOptions::new(session, host, port);
    options
        .set_clean_session(false)
        .set_keep_alive(config.keep_alive.get())
        .set_max_packet_size(LARGEST_PACKET, LARGEST_PACKET);
    if let Some(username) = &config.username {
        options.set_credentials(username, config.password.as_ref().map(settings::Secret::expose).unwrap_or_default());
    }
    if let Some(ca) = &config.ca {
        let mut roots = RootCertStore::empty();
        let read = || {
            anyhow::Context::with_context(CertificateDer::pem_file_iter(ca), || format!("cannot read {}", ca.display()))
        };
        for certificate in read()? {
            roots.add(certificate.with_context(|| format!("{} is not a certificate in PEM", ca.display()))?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let tls = tls.with_root_certificates(roots).with_no_client_auth();
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(tls))));
    }
    Ok(options)
}
