//! A running node's state as JSON, and how another process on the same machine asks for it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use protocol::Timestamp;
use protocol::message::{BridgeStatus, ClassStatus, ClockState, KafkaState, MqttStatus, SpoolFault, SpoolStatus};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Vitals;

/// What `GET /status` answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name and version of the program.
    pub software: String,
    /// Whether a session with the hub is up.
    pub session_up: bool,
    /// The link's state in words, and what to do when it is not up.
    pub link: String,
    /// When the link came to that state, RFC 3339.
    pub since: String,
    /// This clock minus the hub's, in seconds; absent before the first session.
    pub clock_offset_seconds: Option<f64>,
    /// `synchronized`, `ahead`, `behind` or `unknown`.
    pub clock: String,
    /// When the certificate ends, RFC 3339.
    pub certificate_not_after: String,
    /// When it is due to be renewed, RFC 3339.
    pub renew_at: String,
    /// Why renewing failed and what to do; absent when it did not.
    pub renewal_trouble: Option<String>,
    /// Batches the hub has not stored yet.
    pub batches_pending: u64,
    /// Batches that can no longer be delivered.
    pub batches_lost: u64,
    /// Bytes in the spool.
    pub spool_bytes: u64,
    /// What is wrong with the spool and what to do; absent when nothing is.
    pub spool_trouble: Option<String>,
    /// Batches of log lines the hub has not stored yet; absent where no logs are shipped.
    pub log_batches_pending: Option<u64>,
    /// Batches of log lines that can no longer be delivered.
    pub log_batches_lost: Option<u64>,
    /// What is wrong with the spool for logs and what to do; absent when nothing is.
    pub log_spool_trouble: Option<String>,
    /// Seconds since the last sample.
    pub last_sample_seconds: f64,
    /// Why the sampling loop counts as frozen; absent while it is alive.
    pub sampling_trouble: Option<String>,
    /// How a bridge stands with its brokers; absent for any other node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka: Option<KafkaReport>,
}

/// How a bridge stands with its tenant's brokers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KafkaReport {
    /// `connected`, `waiting` (for a certificate from the hub), `unreachable`, `refused` or `unknown`.
    pub state: String,
    /// What is wrong and what to do; absent when nothing is.
    pub trouble: Option<String>,
    /// When the certificate from the hub ends, RFC 3339; absent when it has none from there.
    pub certificate_not_after: Option<String>,
    /// Why it has not the next one, and what to do; absent when all is in order.
    pub certificate_trouble: Option<String>,
    /// What is dropped, by the classes of topics that may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassReport>,
    /// Its connections to MQTT brokers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mqtt: Vec<MqttReport>,
}

/// How a connection to an MQTT broker stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MqttReport {
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub connected: bool,
    /// Why it is not; absent when it is, or was not tried yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Filters of subscriptions that the broker refuses, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
}

/// What is dropped of a class of topics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassReport {
    /// Its name.
    pub name: String,
    /// What gives way when its room is used up.
    pub overflow: String,
    /// Records dropped since its log began.
    pub dropped: u64,
    /// The last range of them that is not told in Kafka yet, and why; absent when there is none.
    pub last: Option<String>,
    /// What is wrong with its log on disk and what to do; absent when nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

impl Report {
    pub(super) fn of(vitals: &Vitals) -> Self {
        let (link, spool) = (vitals.link.borrow().clone(), vitals.spool.borrow().clone());
        let logs = vitals.logs.as_ref().map(|logs| logs.borrow().clone());
        Self {
            software: vitals.software.clone(),
            session_up: link.is_up(),
            link: link.state.to_string(),
            since: link.since.to_string(),
            clock_offset_seconds: link.clock.map(|clock| clock.offset_ms as f64 / 1e3),
            clock: match link.clock_state() {
                ClockState::Unspecified => "unknown",
                ClockState::Synchronized => "synchronized",
                ClockState::Ahead => "ahead",
                ClockState::Behind => "behind",
            }
            .to_owned(),
            certificate_not_after: link.certificate_not_after.to_string(),
            renew_at: link.renew_at.to_string(),
            renewal_trouble: link.renewal_trouble,
            batches_pending: spool.pending_batches,
            batches_lost: spool.lost_batches,
            spool_bytes: spool.bytes,
            spool_trouble: trouble(spool),
            log_batches_pending: logs.as_ref().map(|logs| logs.pending_batches),
            log_batches_lost: logs.as_ref().map(|logs| logs.lost_batches),
            log_spool_trouble: logs.and_then(trouble),
            last_sample_seconds: vitals.pulse.age().as_secs_f64(),
            sampling_trouble: vitals.health().err(),
            kafka: vitals.bridge.as_ref().map(|bridge| kafka(&bridge.borrow())),
        }
    }
}

/// In words, a line each.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: &str| writeln!(f, "{name:<12} {value}");
        let clock = self.clock_offset_seconds.map_or_else(
            || "not compared with the hub's yet".to_owned(),
            |offset| format!("{}, {offset:+.3} s against the hub's", self.clock),
        );
        line("software", &self.software)?;
        line("session", &format!("{}, since {}", self.link, self.since))?;
        line("clock", &clock)?;
        line("certificate", &format!("until {}, due to be renewed at {}", self.certificate_not_after, self.renew_at))?;
        let (pending, kibibytes, lost) = (self.batches_pending, self.spool_bytes / 1024, self.batches_lost);
        line("spool", &format!("{pending} batches, {kibibytes} KiB, {lost} lost"))?;
        if let (Some(pending), Some(lost)) = (self.log_batches_pending, self.log_batches_lost) {
            line("log spool", &format!("{pending} batches, {lost} lost"))?;
        }
        if let Some(kafka) = &self.kafka {
            let until = kafka.certificate_not_after.as_ref().map(|until| format!(", its certificate until {until}"));
            line("kafka", &format!("{}{}", kafka.state, until.unwrap_or_default()))?;
            for mqtt in &kafka.mqtt {
                line("mqtt", &format!("{} {}", mqtt.name, if mqtt.connected { "connected" } else { "not connected" }))?;
            }
            for class in &kafka.classes {
                let last = class.last.as_ref().map(|last| format!(", the last {last}")).unwrap_or_default();
                line("dropped", &format!("{} of {}{last}", class.dropped, class.name))?;
            }
        }
        line("last sample", &format!("{:.0} s ago", self.last_sample_seconds))?;
        let troubles = [&self.renewal_trouble, &self.spool_trouble, &self.log_spool_trouble, &self.sampling_trouble];
        troubles.into_iter().flatten().try_for_each(|trouble| line("trouble", trouble))?;
        let Some(kafka) = &self.kafka else { return Ok(()) };
        let troubles = [&kafka.trouble, &kafka.certificate_trouble].into_iter().flatten();
        troubles
            .chain(kafka.classes.iter().filter_map(|class| class.trouble.as_ref()))
            .try_for_each(|trouble| line("trouble", trouble))?;
        for mqtt in &kafka.mqtt {
            mqtt.trouble.iter().try_for_each(|trouble| line("trouble", &format!("mqtt {}: {trouble}", mqtt.name)))?;
            let refused = mqtt.refused.iter().map(|refused| format!("mqtt {} refuses {refused}", mqtt.name));
            refused.into_iter().try_for_each(|trouble| line("trouble", &trouble))?;
        }
        Ok(())
    }
}

fn trouble(spool: SpoolStatus) -> Option<String> {
    (spool.fault() != SpoolFault::Unspecified).then_some(spool.message)
}

fn kafka(status: &BridgeStatus) -> KafkaReport {
    let said = |text: &String| (!text.is_empty()).then(|| text.clone());
    let ends = Some(status.certificate_not_after_ms).filter(|ends| *ends != 0);
    KafkaReport {
        state: match status.kafka() {
            KafkaState::Unspecified => "unknown",
            KafkaState::Connected => "connected",
            KafkaState::Waiting => "waiting",
            KafkaState::Unreachable => "unreachable",
            KafkaState::Refused => "refused",
        }
        .to_owned(),
        trouble: said(&status.message),
        certificate_not_after: ends.map(|ends| Timestamp::from_millis(ends).to_string()),
        certificate_trouble: said(&status.certificate_trouble),
        classes: status.classes.iter().map(ClassReport::from).collect(),
        mqtt: status.mqtt.iter().map(MqttReport::from).collect(),
    }
}

impl From<&MqttStatus> for MqttReport {
    fn from(MqttStatus { name, connected, trouble, refused }: &MqttStatus) -> Self {
        let trouble = (!trouble.is_empty()).then(|| trouble.clone());
        Self { name: name.clone(), connected: *connected, trouble, refused: refused.clone() }
    }
}

impl From<&ClassStatus> for ClassReport {
    fn from(ClassStatus { name, overflow, dropped, first, last, reason, fault }: &ClassStatus) -> Self {
        let range = (*first > 0).then(|| format!("{first}–{last} ({reason})"));
        let trouble = (!fault.is_empty()).then(|| fault.clone());
        Self { name: name.clone(), overflow: overflow.clone(), dropped: *dropped, last: range, trouble }
    }
}

/// Most bytes of an answer: a report is under 2 KiB.
const MAX_ANSWER: u64 = 64 * 1024;
/// How long a node may take to answer: it never waits for anything itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// Asks the node that serves its probes on `address` for its state.
///
/// # Errors
/// [`ProbeError::NotRunning`] when nothing listens there, [`ProbeError::Answer`] when what answers is not a node.
pub async fn ask(address: SocketAddr) -> Result<Report, ProbeError> {
    let exchange = async {
        let mut stream =
            TcpStream::connect(address).await.map_err(|source| ProbeError::NotRunning { address, source })?;
        let request = format!("GET /status HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        let broken = |_| ProbeError::Answer { address };
        stream.write_all(request.as_bytes()).await.map_err(broken)?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await.map_err(broken)?;
        let body = answer.windows(4).position(|window| window == b"\r\n\r\n").and_then(|at| answer.get(at + 4..));
        body.and_then(|body| serde_json::from_slice(body).ok()).ok_or(ProbeError::Answer { address })
    };
    tokio::time::timeout(ANSWER_WITHIN, exchange).await.unwrap_or(Err(ProbeError::Answer { address }))
}

/// A node's state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nothing listens there.
    #[error("nothing answers on {address}: start the service, or name the address it serves its probes on")]
    NotRunning {
        /// Where it was looked for.
        address: SocketAddr,
        /// Why the connection failed.
        source: io::Error,
    },
    /// Something else answers.
    #[error("what answers on {address} is not a Hyperfactory node: name the address the node serves its probes on")]
    Answer {
        /// Where it was asked.
        address: SocketAddr,
    },
}
