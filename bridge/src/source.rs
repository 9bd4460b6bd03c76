//! One connection to an MQTT broker: takes messages in, and acknowledges them once they are durable.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use node::Clock;
use rumqttc::{
    AsyncClient, Event, EventLoop, MqttOptions, Packet, Publish, QoS, SubscribeFilter, SubscribeReasonCode,
    TlsConfiguration, Transport,
};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::MqttConfig;
use crate::counters::Counters;
use crate::intake::{Intake, Submission};
use crate::record::Record;
use crate::subscriptions::Subscriptions;

/// Requests to the connection that wait: acknowledgements, and one subscription. More than a broker lets fly.
const REQUESTS: usize = u16::MAX as usize + 64;
/// Largest packet that is read. One that is larger ends the connection, and the broker would send it again for ever: this
/// is above what brokers take, and what the log does not take is told and dropped.
const LARGEST_PACKET: usize = 64 << 20;
/// Pause before the next attempt to connect, from and to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// A connection.
pub struct Source {
    index: usize,
    config: MqttConfig,
    subscriptions: Subscriptions,
    client: AsyncClient,
    events: EventLoop,
    intake: Arc<Intake>,
    durable: watch::Receiver<u64>,
    counters: Arc<Counters>,
    clock: Clock,
    /// Longest record that the log takes.
    longest: usize,
    /// Number of the last message that went to the log.
    submitted: u64,
    /// Messages that wait for the log, oldest first: acknowledgements have to come in the order of the messages.
    unacknowledged: VecDeque<(u64, Publish)>,
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
    pub intake: Arc<Intake>,
    /// Up to which number they are durable.
    pub durable: watch::Receiver<u64>,
    /// What to count in.
    pub counters: Arc<Counters>,
    /// The time of day.
    pub clock: Clock,
    /// Longest record that the log takes.
    pub longest: usize,
}

impl Source {
    /// A connection that is not up yet.
    ///
    /// # Errors
    /// When the authority's certificate can't be used.
    pub fn new(config: MqttConfig, parts: Parts) -> anyhow::Result<Self> {
        let (client, events) = AsyncClient::new(options(&config, &parts.bridge)?, REQUESTS);
        let Parts { index, subscriptions, intake, durable, counters, clock, longest, .. } = parts;
        Ok(Self {
            index,
            config,
            subscriptions,
            client,
            events,
            intake,
            durable,
            counters,
            clock,
            longest,
            submitted: 0,
            unacknowledged: VecDeque::new(),
            up: false,
            under_way: HashMap::new(),
        })
    }

    /// Takes messages in until `stop`, and connects again whenever that is needed. Then waits for what is under way to be
    /// durable, and acknowledges it.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pause = PAUSE.0;
        while !stop.is_cancelled() {
            match self.next(&stop).await {
                Some(Ok(Event::Incoming(packet))) => {
                    if matches!(packet, Packet::ConnAck(_)) {
                        pause = PAUSE.0;
                    }
                    self.take(packet).await;
                }
                Some(Ok(Event::Outgoing(_))) => {}
                Some(Err(error)) => {
                    self.is_up(false);
                    // An acknowledgement that is late would be taken for another message's. These come again.
                    let left = self.unacknowledged.drain(..).map(|(number, publish)| (publish.pkid, number));
                    self.under_way.extend(left);
                    tracing::warn!(mqtt = self.config.name, broker = self.config.address, %error, "the connection is down");
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(PAUSE.1);
                }
                None => break,
            }
        }
        self.finish().await;
    }

    /// The next event of the connection. Meanwhile messages that became durable are acknowledged: the connection is not
    /// let go of, since it answers pings.
    async fn next(&mut self, stop: &CancellationToken) -> Option<Result<Event, rumqttc::ConnectionError>> {
        let Self { client, events, durable, unacknowledged, .. } = self;
        let event = events.poll();
        tokio::pin!(event);
        loop {
            acknowledge(client, *durable.borrow_and_update(), unacknowledged);
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                event = &mut event => return Some(event),
                Ok(()) = durable.changed() => {}
            }
        }
    }

    async fn take(&mut self, packet: Packet) {
        if let Packet::Publish(publish) = packet {
            return self.submit(publish).await;
        }
        let name = self.config.name.clone();
        match packet {
            Packet::ConnAck(connack) => {
                self.counters.connections.add(1);
                self.is_up(true);
                if !connack.session_present {
                    self.under_way.clear();
                }
                tracing::info!(
                    mqtt = name,
                    broker = self.config.address,
                    resumed = connack.session_present,
                    "connected"
                );
                let qos = if self.config.qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
                let filters =
                    self.subscriptions.current().iter().map(|filter| SubscribeFilter::new(filter.as_str().into(), qos));
                // A broker may have forgotten the session, or know one with other filters.
                if self.client.try_subscribe_many(filters).is_err() {
                    tracing::error!(
                        mqtt = name,
                        "the subscriptions could not be sent; they are at the next connection"
                    );
                }
                for filter in self.subscriptions.stale() {
                    tracing::info!(mqtt = name, filter, "no longer subscribed to");
                    let _ = self.client.try_unsubscribe(filter);
                }
            }
            Packet::UnsubAck(_) => self.subscriptions.given_up(),
            Packet::SubAck(suback) => {
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
            _ => {}
        }
    }

    fn is_up(&mut self, up: bool) {
        self.counters.connected.shift(i64::from(up) - i64::from(std::mem::replace(&mut self.up, up)));
    }

    async fn submit(&mut self, publish: Publish) {
        self.counters.received.add(1);
        // The broker never had an acknowledgement of this one, so it is the very message that is in the log already.
        if let Some(number) = self.under_way.remove(&publish.pkid).filter(|_| publish.dup) {
            self.unacknowledged.push_back((number, publish));
            return;
        }
        let mut record = Record {
            mqtt: &self.config.name,
            topic: &publish.topic,
            payload: &publish.payload,
            received: self.clock.now(),
            qos: publish.qos as u8,
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
        self.intake.put(Submission { mqtt: self.index, number: self.submitted, record }).await;
        if publish.qos != QoS::AtMostOnce {
            // The payload is in the log's hands now.
            self.unacknowledged.push_back((self.submitted, Publish { payload: Vec::new().into(), ..publish }));
        }
    }

    /// Waits a little for what is under way.
    async fn finish(mut self) {
        let wait = async {
            while self.unacknowledged.back().is_some_and(|(last, _)| *self.durable.borrow() < *last) {
                if self.durable.changed().await.is_err() {
                    return;
                }
            }
            acknowledge(&self.client, *self.durable.borrow(), &mut self.unacknowledged);
            let _ = self.client.try_disconnect();
            // The acknowledgements go out before the farewell; after it the broker closes.
            while self.events.poll().await.is_ok() {}
        };
        // What is not acknowledged comes again at the next start.
        let _ = tokio::time::timeout(Duration::from_secs(2), wait).await;
    }
}

/// Acknowledges the messages that are durable. The room for that is there: see [`REQUESTS`].
fn acknowledge(client: &AsyncClient, durable: u64, unacknowledged: &mut VecDeque<(u64, Publish)>) {
    while let Some((number, publish)) = unacknowledged.front() {
        if *number > durable || client.try_ack(publish).is_err() {
            return;
        }
        unacknowledged.pop_front();
    }
}

fn options(config: &MqttConfig, bridge: &str) -> anyhow::Result<MqttOptions> {
    let (host, port) = config.host_and_port().context("the address is not host:port")?;
    let session = config.client_id.clone().unwrap_or_else(|| format!("hyperfactory-{bridge}-{}", config.name));
    let mut options = MqttOptions::new(session, host, port);
    options
        .set_clean_session(false)
        .set_manual_acks(true)
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
