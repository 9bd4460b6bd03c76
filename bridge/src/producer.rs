//! A Kafka producer whose reports are gathered, and the settings that make it lose and reorder nothing.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use node::{KafkaCredential, KafkaStore};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig};
use rdkafka::{ClientConfig, Message as _, Statistics};

use crate::config::{Compression, KafkaConfig};
use crate::standing::Standing;

/// Records in a producer's hands, and their bytes: what is on the way, and what waits for its turn. When they are used up,
/// the log is not read.
const MOST_RECORDS: usize = 20_000;
const MOST_KIBIBYTES: usize = 16 << 10;

/// How often it is looked which connections are up.
const LOOK: Duration = Duration::from_secs(2);
/// How long brokers have to take a certificate that is tried, and how long one attempt at them takes.
const TRY_FOR: Duration = Duration::from_secs(10);
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// By what it is seen that a certificate was replaced: a client reads its files once.
type Stamp = Vec<Option<(SystemTime, u64)>>;

/// A producer.
pub struct Producer {
    client: BaseProducer<Reports>,
    /// Of the files that it has read.
    stamp: Stamp,
}

/// A record on its way out.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Its number.
    pub sequence: u64,
    /// The Kafka topic.
    pub topic: &'a str,
    /// The key.
    pub key: &'a str,
    /// The payload.
    pub payload: &'a [u8],
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// Headers.
    pub headers: OwnedHeaders,
}

/// What became of a record.
pub type Report = (u64, Result<(), RDKafkaErrorCode>);

/// Gathers reports, and notes how the brokers are.
#[derive(Debug, Default)]
struct Reports {
    standing: Standing,
    gathered: Mutex<Vec<Report>>,
    complaint: Mutex<Option<String>>,
    ready: AtomicBool,
}

impl Producer {
    /// A producer that begins to connect.
    ///
    /// # Errors
    /// When certificate or key can't be read, or don't fit each other.
    pub fn new(config: &KafkaConfig, bridge: &str) -> Result<Self, KafkaError> {
        Self::with(config, bridge, |_| {})
    }

    /// One for a single record, by which a topic is asked: brokers that don't know the topic are soon believed.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn asking(config: &KafkaConfig, bridge: &str) -> Result<Self, KafkaError> {
        Self::with(config, bridge, |settings| {
            settings.set("topic.metadata.propagation.max.ms", "1000");
        })
    }

    fn with(config: &KafkaConfig, bridge: &str, change: impl FnOnce(&mut ClientConfig)) -> Result<Self, KafkaError> {
        // Before they are read: what is replaced meanwhile is seen as new.
        let stamp = stamp(config);
        let mut settings = client(config)?;
        settings
            .set("client.id", format!("hyperfactory-bridge-{bridge}"))
            .set("acks", "all")
            .set("enable.idempotence", "true")
            // A batch that is refused ends the producer; without it the next one would overtake it.
            .set("enable.gapless.guarantee", "true")
            // Nothing is given up because it takes long.
            .set("message.timeout.ms", "0")
            .set("message.max.bytes", config.max_record.bytes().to_string())
            .set("queue.buffering.max.messages", MOST_RECORDS.to_string())
            .set("queue.buffering.max.kbytes", MOST_KIBIBYTES.to_string())
            .set("linger.ms", config.linger.get().as_millis().to_string())
            .set("compression.codec", codec(config.compression))
            // As Java's clients place keys, so that a topic with other writers has one order.
            .set("partitioner", "murmur2_random")
            .set("socket.timeout.ms", "15000")
            // By these it is seen that a connection is up, also while there is nothing to deliver.
            .set("statistics.interval.ms", LOOK.as_millis().to_string());
        change(&mut settings);
        let reports = Reports { standing: config.standing.clone(), ..Reports::default() };
        Ok(Self { client: BaseProducer::from_config_and_context(&settings, reports)?, stamp })
    }

    /// Whether the certificate that it shows is still the one in the files.
    pub fn is_current(&self, config: &KafkaConfig) -> bool {
        self.stamp == stamp(config)
    }

    /// Whether it is known that it can send; that comes by [`Self::poll`], a little later than it is so.
    pub fn is_ready(&self) -> bool {
        self.client.context().ready.load(Ordering::Relaxed)
    }

    /// Hands over a record; its report comes by [`Self::poll`].
    ///
    /// # Errors
    /// Why it was not taken: [`RDKafkaErrorCode::QueueFull`], or what is wrong with it.
    pub fn send(&self, outgoing: Outgoing<'_>) -> Result<(), RDKafkaErrorCode> {
        let Outgoing { sequence, topic, key, payload, timestamp, headers } = outgoing;
        // The number travels as a pointer's worth of bits; it is not followed.
        let opaque = usize::try_from(sequence).unwrap_or(usize::MAX);
        let record = BaseRecord::with_opaque_to(topic, opaque).key(key).payload(payload).timestamp(timestamp);
        self.client
            .send(record.headers(headers))
            .map_err(|(error, _)| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail))
    }

    /// Gives the reports that came. It does not wait: what librdkafka is told to wait is cut to whole milliseconds, and the
    /// last one before the end is spent asking without a pause.
    pub fn poll(&self) -> Vec<Report> {
        let gathered = || self.client.context().gathered.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let before = gathered().len();
            self.client.poll(Duration::ZERO);
            if gathered().len() == before {
                return std::mem::take(&mut *gathered());
            }
        }
    }

    /// What it complained of last, if that is new.
    pub fn complaint(&self) -> Option<String> {
        self.client.context().complaint.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Lets go of what has not been sent yet: it is reported as [`RDKafkaErrorCode::PurgeQueue`].
    pub fn purge(&self) {
        self.client.purge(PurgeConfig::default().queue());
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, "{message}");
    }

    fn stats(&self, statistics: Statistics) {
        if statistics.brokers.values().any(|broker| broker.state == "UP") {
            self.standing.connected();
        }
        // Without an id from the brokers it sends nothing.
        if statistics.eos.is_some_and(|eos| eos.producer_id >= 0) {
            self.ready.store(true, Ordering::Relaxed);
        }
    }

    fn error(&self, _: KafkaError, reason: &str) {
        self.standing.complained(reason);
        *self.complaint.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, sequence: usize) {
        let outcome = match result {
            Ok(_) => Ok(()),
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                if code == RDKafkaErrorCode::TopicAuthorizationFailed {
                    self.standing.denied(message.topic());
                }
                Err(code)
            }
        };
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner).push((sequence as u64, outcome));
    }
}

/// What any client of the bus is set to.
///
/// # Errors
/// When the certificate is to come from the hub, and is not there.
pub fn client(config: &KafkaConfig) -> Result<ClientConfig, KafkaError> {
    let Some(issued) = &config.issued else { return Ok(plain(config)) };
    let broken = |why: &dyn std::fmt::Display| KafkaError::ClientCreation(why.to_string());
    match issued.load() {
        Ok(Some(credential)) => Ok(with(config, &credential)),
        Ok(None) => Err(broken(&"the hub has not given this bridge a Kafka certificate yet")),
        Err(error) => Err(broken(&error)),
    }
}

/// The same for one who shows another certificate, from these files in PEM.
///
/// # Errors
/// As [`client`].
pub fn client_with(config: &KafkaConfig, certificate: &Path, key: &Path) -> Result<ClientConfig, KafkaError> {
    let mut settings = client(config)?;
    settings.remove("ssl.certificate.pem");
    settings.remove("ssl.key.pem");
    settings
        .set("security.protocol", "ssl")
        .set("ssl.certificate.location", certificate.display().to_string())
        .set("ssl.key.location", key.display().to_string());
    Ok(settings)
}

/// Tries a certificate from the hub at the brokers, beside whatever is in use.
///
/// # Errors
/// What a broker made of it, or that none answers.
pub fn try_out(config: &KafkaConfig, credential: &KafkaCredential) -> Result<(), String> {
    connect(&with(config, credential))
}

/// Tries the certificate in the configured files at the brokers.
///
/// # Errors
/// As [`try_out`].
pub fn try_files(config: &KafkaConfig) -> Result<(), String> {
    connect(&plain(config))
}

fn connect(settings: &ClientConfig) -> Result<(), String> {
    let producer = BaseProducer::from_config_and_context(settings, Reports::default());
    let producer: BaseProducer<Reports> = producer.map_err(|error| error.to_string())?;
    let (begun, mut complaint) = (Instant::now(), None);
    loop {
        if producer.client().fetch_metadata(None, TRY_AGAIN).is_ok() {
            return Ok(());
        }
        // What it complained of comes by serving it; that also keeps from asking in a circle.
        producer.poll(TRY_AGAIN / 10);
        complaint = producer.context().complaint.lock().unwrap_or_else(PoisonError::into_inner).take().or(complaint);
        if begun.elapsed() > TRY_FOR {
            return Err(complaint.unwrap_or_else(|| "no broker answers".into()));
        }
    }
}

fn with(config: &KafkaConfig, credential: &KafkaCredential) -> ClientConfig {
    let mut settings = plain(config);
    settings
        .set("security.protocol", "ssl")
        .set("ssl.certificate.pem", credential.certificate_pem())
        .set("ssl.key.pem", credential.key_pem().as_str());
    if config.ca.is_none() {
        settings.set("ssl.ca.pem", credential.roots_pem());
    }
    settings
}

fn plain(config: &KafkaConfig) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", config.brokers.join(","))
        .set("reconnect.backoff.max.ms", "3000")
        .set_log_level(RDKafkaLogLevel::Warning);
    if let Some(ca) = &config.ca {
        settings.set("security.protocol", "ssl").set("ssl.ca.location", ca.display().to_string());
    }
    if let (Some(certificate), Some(key)) = (&config.certificate, &config.key) {
        settings
            .set("ssl.certificate.location", certificate.display().to_string())
            .set("ssl.key.location", key.display().to_string());
    }
    settings
}

fn stamp(config: &KafkaConfig) -> Stamp {
    let stamp = |path: PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    let issued = config.issued.as_ref().map(KafkaStore::path);
    let files = [&config.ca, &config.certificate, &config.key].into_iter().flatten().cloned();
    files.chain(issued).map(stamp).collect()
}

fn codec(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    }
}
