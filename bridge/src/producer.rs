//! A Kafka producer whose reports are gathered, and the settings that make it lose and reorder nothing.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig};

use crate::config::{Compression, KafkaConfig};

/// Records in a producer's hands, and their bytes: what is on the way, and what waits for its turn. When they are used up,
/// the log is not read.
const MOST_RECORDS: usize = 20_000;
const MOST_KIBIBYTES: usize = 16 << 10;

/// A producer.
pub struct Producer(BaseProducer<Reports>);

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

/// Gathers reports.
#[derive(Debug, Default)]
struct Reports {
    gathered: Mutex<Vec<Report>>,
    complaint: Mutex<Option<String>>,
}

impl Producer {
    /// A producer that begins to connect.
    ///
    /// # Errors
    /// When certificate or key can't be read, or don't fit each other.
    pub fn new(config: &KafkaConfig, bridge: &str) -> Result<Self, KafkaError> {
        let mut settings = client(config);
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
            .set("socket.timeout.ms", "15000");
        BaseProducer::from_config_and_context(&settings, Reports::default()).map(Self)
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
        self.0
            .send(record.headers(headers))
            .map_err(|(error, _)| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail))
    }

    /// Gives the reports that came. It does not wait: what librdkafka is told to wait is cut to whole milliseconds, and the
    /// last one before the end is spent asking without a pause.
    pub fn poll(&self) -> Vec<Report> {
        let gathered = || self.0.context().gathered.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let before = gathered().len();
            self.0.poll(Duration::ZERO);
            if gathered().len() == before {
                return std::mem::take(&mut *gathered());
            }
        }
    }

    /// What it complained of last, if that is new.
    pub fn complaint(&self) -> Option<String> {
        self.0.context().complaint.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Lets go of what has not been sent yet: it is reported as [`RDKafkaErrorCode::PurgeQueue`].
    pub fn purge(&self) {
        self.0.purge(PurgeConfig::default().queue());
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, "{message}");
    }

    fn error(&self, _: KafkaError, reason: &str) {
        *self.complaint.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, sequence: usize) {
        let outcome = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)),
        };
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner).push((sequence as u64, outcome));
    }
}

/// What any client of the bus is set to.
pub fn client(config: &KafkaConfig) -> ClientConfig {
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

/// By what it is seen that a certificate was replaced: a client reads its files once.
pub fn certificate_stamp(config: &KafkaConfig) -> Vec<Option<(SystemTime, u64)>> {
    let stamp = |path: &std::path::PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    [&config.ca, &config.certificate, &config.key].into_iter().flatten().map(stamp).collect()
}

fn codec(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    }
}
