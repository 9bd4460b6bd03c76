//! What a bridge tells of itself: its way to Kafka, and what waits before it.

use protocol::{Timestamp, message, metrics};
use serde::Serialize;
use utoipa::ToSchema;

use super::Time;
use crate::kafka_access::{Access, State};
use crate::telemetry::state::NodeView;

/// A bridge's way from MQTT to Kafka; what is absent it has not said.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Bridge {
    /// How it stands with its tenant's brokers.
    pub kafka: KafkaState,
    /// What is wrong there and what to do; empty when nothing is.
    pub message: String,
    /// When the Kafka certificate ends that the hub gave it.
    pub certificate_not_after: Option<Time>,
    /// Why it has not the next one, and what to do; empty when all is in order.
    pub certificate_trouble: String,
    /// Records on its disk that Kafka has not confirmed.
    pub pending: Option<f64>,
    /// Bytes of the log that holds them.
    pub bytes: Option<f64>,
    /// How long ago it received the oldest record that Kafka has not confirmed, in seconds; 0 when there is none.
    pub lag_seconds: Option<f64>,
    /// Messages from MQTT a second.
    pub received_per_second: Option<f64>,
    /// Records that Kafka confirmed a second.
    pub delivered_per_second: Option<f64>,
    /// Records that Kafka confirmed, since it started.
    pub delivered: Option<f64>,
    /// Messages that the steps of its routes let go no further, since it started.
    pub filtered: Option<f64>,
    /// Messages that it passed on as they came although their route declares what to do with them, since it started.
    pub unmapped: Option<f64>,
    /// Sparkplug messages by which a host application would ask for a birth, since it started.
    pub births_wanted: Option<f64>,
    /// Records that became dead letters since it started.
    pub dead_letters: Option<f64>,
    /// Records, and dead letters, dropped because their room was used up, or they were too old, since its logs began.
    pub dropped: Option<f64>,
    /// Connections to MQTT brokers that are up.
    pub connected: Option<f64>,
    /// Its connections to MQTT brokers, in the order of its configuration.
    pub mqtt: Vec<MqttConnection>,
    /// Its routes, in the order of its configuration.
    pub routes: Vec<Route>,
    /// Its classes of topics, in the order of its configuration; then `the log`, which is of no class, where something is lost of
    /// it or wrong with it, and `dead letters` that gave way.
    pub classes: Vec<TopicClass>,
}

/// A bridge's connection to an MQTT broker.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MqttConnection {
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub connected: bool,
    /// Why it is not; empty when it is, or was not tried yet.
    pub trouble: String,
    /// Filters of subscriptions that the broker refuses, each with the reason in brackets.
    pub refused: Vec<String>,
}

/// How a bridge stands with its brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KafkaState {
    /// It has not said.
    Unknown,
    /// A broker takes its records.
    Connected,
    /// It waits for a certificate from the hub.
    Waiting,
    /// No broker answers, or none that it trusts.
    Unreachable,
    /// A broker does not let it in, or not write.
    Refused,
}

/// What a bridge may do at its tenant's brokers.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct KafkaAccess {
    /// Topics it may write to, each by name, or by a beginning and `*`; none: it may do nothing.
    pub topics: Vec<String>,
    /// Whether the brokers' access lists say so.
    pub state: KafkaAccessState,
    /// What is wrong or awaited, and what to do; or what was done.
    pub message: String,
}

/// Whether brokers know what a bridge may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KafkaAccessState {
    /// Not yet.
    Waiting,
    /// An agent is on it.
    Asked,
    /// They do.
    Placed,
    /// The last attempt was in vain; there will be another.
    Refused,
}

impl From<&Access> for KafkaAccess {
    fn from(access: &Access) -> Self {
        Self {
            topics: access.topics.clone(),
            state: match access.state {
                State::Waiting => KafkaAccessState::Waiting,
                State::Asked => KafkaAccessState::Asked,
                State::Placed => KafkaAccessState::Placed,
                State::Refused => KafkaAccessState::Refused,
            },
            message: access.message.clone(),
        }
    }
}

/// A route of a bridge.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Route {
    /// The MQTT topic filter.
    pub from: String,
    /// The Kafka topic, or how its name is made.
    pub to: String,
    /// When a record of it was last handed to the brokers, by the bridge's clock.
    pub last_at: Option<Time>,
}

/// A class of topics of a bridge, which has a log of its own.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TopicClass {
    /// Its name.
    pub name: String,
    /// What gives way when its room is used up: `block`, `drop-oldest`, `drop-newest` or `latest-per-topic`.
    pub overflow: String,
    /// Records dropped since its log began.
    pub dropped: u64,
    /// The first number of the range dropped last, while Kafka's readers are not told of it.
    pub first: Option<u64>,
    /// Its last number.
    pub last: Option<u64>,
    /// Why.
    pub reason: String,
    /// What is wrong with its log on disk, and what to do; empty when nothing is.
    pub fault: String,
}

impl Bridge {
    /// What a node tells; `None` when it is no bridge, or has told nothing yet.
    pub(crate) fn of(view: &NodeView) -> Option<Self> {
        let status = view.status.bridge.as_ref()?;
        let value = |metric: metrics::Known| view.latest.as_ref()?.value(metric.name, "");
        let rate = |metric: metrics::Known| view.latest.as_ref()?.rate(metric.name, "");
        Some(Self {
            kafka: match status.kafka() {
                message::KafkaState::Unspecified => KafkaState::Unknown,
                message::KafkaState::Connected => KafkaState::Connected,
                message::KafkaState::Waiting => KafkaState::Waiting,
                message::KafkaState::Unreachable => KafkaState::Unreachable,
                message::KafkaState::Refused => KafkaState::Refused,
            },
            message: status.message.clone(),
            certificate_not_after: time(status.certificate_not_after_ms),
            certificate_trouble: status.certificate_trouble.clone(),
            pending: value(metrics::BRIDGE_PENDING),
            bytes: value(metrics::BRIDGE_BYTES),
            lag_seconds: value(metrics::BRIDGE_LAG).map(|lag| lag / 1000.0),
            received_per_second: rate(metrics::BRIDGE_RECEIVED),
            delivered_per_second: rate(metrics::BRIDGE_DELIVERED),
            delivered: value(metrics::BRIDGE_DELIVERED),
            filtered: value(metrics::BRIDGE_FILTERED),
            unmapped: value(metrics::BRIDGE_UNMAPPED),
            births_wanted: value(metrics::BRIDGE_BIRTHS_WANTED),
            dead_letters: value(metrics::BRIDGE_REFUSED),
            dropped: value(metrics::BRIDGE_DROPPED),
            connected: value(metrics::BRIDGE_CONNECTED),
            mqtt: status.mqtt.iter().map(MqttConnection::from).collect(),
            routes: status.routes.iter().map(Route::from).collect(),
            classes: status.classes.iter().map(TopicClass::from).collect(),
        })
    }
}

impl From<&message::RouteStatus> for Route {
    fn from(route: &message::RouteStatus) -> Self {
        Self { from: route.from.clone(), to: route.to.clone(), last_at: time(route.last_ms) }
    }
}

impl From<&message::MqttStatus> for MqttConnection {
    fn from(mqtt: &message::MqttStatus) -> Self {
        let message::MqttStatus { name, connected, trouble, refused } = mqtt.clone();
        Self { name, connected, trouble, refused }
    }
}

impl From<&message::ClassStatus> for TopicClass {
    fn from(class: &message::ClassStatus) -> Self {
        let message::ClassStatus { name, overflow, dropped, first, last, reason, fault } = class.clone();
        let number = |number: u64| (number > 0).then_some(number);
        Self { name, overflow, dropped, first: number(first), last: number(last), reason, fault }
    }
}

fn time(millis: i64) -> Option<Time> {
    (millis != 0).then_some(Time(Timestamp::from_millis(millis)))
}
