//! What may be ordered: a closed list of actions, each with arguments that are checked when they are read.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use prost::Message;

use crate::NodeId;
use crate::message::{self, ServiceTarget, action};

/// Longest name of a stack, a service or a script.
const NAME: usize = 100;
/// Longest name of a Kafka topic, and most topics that a bridge may write to.
const TOPIC: usize = 249;
const TOPICS: usize = 64;
/// Most lines of a log.
const LINES: u32 = 10_000;
/// Shortest and longest time between samples.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3_600));

/// An action with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in hyperfactory.proto, the published contract")]
pub enum Action {
    ServiceStart { stack: String, service: String },
    ServiceStop { stack: String, service: String },
    ServiceRestart { stack: String, service: String },
    ServiceLogs { stack: String, service: String, lines: u32 },
    Diagnostics,
    TelemetryInterval { interval: Duration },
    RenewCertificate,
    Drain,
    Backup { stack: String },
    Script { name: String },
    KafkaAcl { bridge: NodeId, topics: Vec<String> },
}

/// An action without its arguments: what a policy speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "as in hyperfactory.proto, the published contract")]
pub enum Name {
    ServiceStart,
    ServiceStop,
    ServiceRestart,
    ServiceLogs,
    Diagnostics,
    TelemetryInterval,
    RenewCertificate,
    Drain,
    Backup,
    Script,
    KafkaAcl,
}

impl Name {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::ServiceStart,
        Self::ServiceStop,
        Self::ServiceRestart,
        Self::ServiceLogs,
        Self::Diagnostics,
        Self::TelemetryInterval,
        Self::RenewCertificate,
        Self::Drain,
        Self::Backup,
        Self::Script,
        Self::KafkaAcl,
    ];

    /// As on the wire, in the API and in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServiceStart => "service.start",
            Self::ServiceStop => "service.stop",
            Self::ServiceRestart => "service.restart",
            Self::ServiceLogs => "service.logs",
            Self::Diagnostics => "diagnostics",
            Self::TelemetryInterval => "telemetry.interval",
            Self::RenewCertificate => "certificate.renew",
            Self::Drain => "drain",
            Self::Backup => "backup",
            Self::Script => "script",
            Self::KafkaAcl => "kafka.acl",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Name {
    type Err = ActionError;

    fn from_str(text: &str) -> Result<Self, ActionError> {
        Self::ALL.into_iter().find(|name| name.as_str() == text).ok_or(ActionError::Unknown)
    }
}

impl Action {
    /// Which one it is.
    pub fn name(&self) -> Name {
        match self {
            Self::ServiceStart { .. } => Name::ServiceStart,
            Self::ServiceStop { .. } => Name::ServiceStop,
            Self::ServiceRestart { .. } => Name::ServiceRestart,
            Self::ServiceLogs { .. } => Name::ServiceLogs,
            Self::Diagnostics => Name::Diagnostics,
            Self::TelemetryInterval { .. } => Name::TelemetryInterval,
            Self::RenewCertificate => Name::RenewCertificate,
            Self::Drain => Name::Drain,
            Self::Backup { .. } => Name::Backup,
            Self::Script { .. } => Name::Script,
            Self::KafkaAcl { .. } => Name::KafkaAcl,
        }
    }

    /// The Compose project it is about.
    pub fn stack(&self) -> Option<&str> {
        match self {
            Self::ServiceStart { stack, .. }
            | Self::ServiceStop { stack, .. }
            | Self::ServiceRestart { stack, .. }
            | Self::ServiceLogs { stack, .. }
            | Self::Backup { stack } => Some(stack),
            Self::Diagnostics
            | Self::TelemetryInterval { .. }
            | Self::RenewCertificate
            | Self::Drain
            | Self::Script { .. }
            | Self::KafkaAcl { .. } => None,
        }
    }

    /// Whether it and this one could undo or disturb each other: then they are carried out one after the other.
    pub fn collides_with(&self, other: &Self) -> bool {
        if let (Self::Script { name }, Self::Script { name: other }) = (self, other) {
            return name == other;
        }
        let (Some((stack, service)), Some((others, other))) = (self.touches(), other.touches()) else { return false };
        stack == others && service.zip(other).is_none_or(|(service, other)| service == other)
    }

    /// The stack and the service that it changes; without a service, all of the stack.
    fn touches(&self) -> Option<(&str, Option<&str>)> {
        match self {
            Self::ServiceStart { stack, service }
            | Self::ServiceStop { stack, service }
            | Self::ServiceRestart { stack, service } => Some((stack, Some(service))),
            Self::Backup { stack } => Some((stack, None)),
            Self::ServiceLogs { .. }
            | Self::Diagnostics
            | Self::TelemetryInterval { .. }
            | Self::RenewCertificate
            | Self::Drain
            | Self::Script { .. }
            | Self::KafkaAcl { .. } => None,
        }
    }

    /// Whether its arguments make sense.
    ///
    /// # Errors
    /// [`ActionError::Argument`], which says what would.
    pub fn checked(self) -> Result<Self, ActionError> {
        match &self {
            Self::ServiceStart { stack, service }
            | Self::ServiceStop { stack, service }
            | Self::ServiceRestart { stack, service } => {
                named("stack", stack)?;
                named("service", service)?;
            }
            Self::ServiceLogs { stack, service, lines } => {
                named("stack", stack)?;
                named("service", service)?;
                if !(1..=LINES).contains(lines) {
                    return Err(ActionError::Argument("lines", "use 1 to 10,000"));
                }
            }
            Self::TelemetryInterval { interval } => {
                if !(INTERVAL.0..=INTERVAL.1).contains(interval) {
                    return Err(ActionError::Argument("interval", "use 100 ms to an hour"));
                }
            }
            Self::Backup { stack } => named("stack", stack)?,
            Self::Script { name } => named("script", name)?,
            Self::KafkaAcl { topics, .. } => topics_of(topics)?,
            Self::Diagnostics | Self::RenewCertificate | Self::Drain => {}
        }
        Ok(self)
    }

    /// The `arguments` of a command.
    pub fn to_bytes(&self) -> Vec<u8> {
        let target =
            |stack: &String, service: &String| ServiceTarget { stack: stack.clone(), service: service.clone() };
        let action = match self {
            Self::ServiceStart { stack, service } => action::Action::ServiceStart(target(stack, service)),
            Self::ServiceStop { stack, service } => action::Action::ServiceStop(target(stack, service)),
            Self::ServiceRestart { stack, service } => action::Action::ServiceRestart(target(stack, service)),
            Self::ServiceLogs { stack, service, lines } => action::Action::ServiceLogs(message::ServiceLogs {
                target: Some(target(stack, service)),
                lines: *lines,
            }),
            Self::Diagnostics => action::Action::Diagnostics(message::Diagnostics {}),
            Self::TelemetryInterval { interval } => {
                let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
                action::Action::TelemetryInterval(message::TelemetryInterval { interval_ms })
            }
            Self::RenewCertificate => action::Action::RenewCertificate(message::RenewCertificate {}),
            Self::Drain => action::Action::Drain(message::Drain {}),
            Self::Backup { stack } => action::Action::Backup(message::Backup { stack: stack.clone() }),
            Self::Script { name } => action::Action::Script(message::Script { name: name.clone() }),
            Self::KafkaAcl { bridge, topics } => action::Action::KafkaAcl(message::KafkaAcl {
                bridge: bridge.to_bytes().to_vec(),
                topics: topics.clone(),
            }),
        };
        message::Action { action: Some(action) }.encode_to_vec()
    }

    /// Reads the `arguments` of a command.
    ///
    /// # Errors
    /// [`ActionError`] when they are no action of this version, or its arguments make no sense.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ActionError> {
        let action = message::Action::decode(bytes).map_err(|_| ActionError::Malformed)?.action;
        let action = match action.ok_or(ActionError::Unknown)? {
            action::Action::ServiceStart(ServiceTarget { stack, service }) => Self::ServiceStart { stack, service },
            action::Action::ServiceStop(ServiceTarget { stack, service }) => Self::ServiceStop { stack, service },
            action::Action::ServiceRestart(ServiceTarget { stack, service }) => Self::ServiceRestart { stack, service },
            action::Action::ServiceLogs(logs) => {
                let ServiceTarget { stack, service } = logs.target.unwrap_or_default();
                Self::ServiceLogs { stack, service, lines: logs.lines }
            }
            action::Action::Diagnostics(_) => Self::Diagnostics,
            action::Action::TelemetryInterval(wanted) => {
                Self::TelemetryInterval { interval: Duration::from_millis(wanted.interval_ms) }
            }
            action::Action::RenewCertificate(_) => Self::RenewCertificate,
            action::Action::Drain(_) => Self::Drain,
            action::Action::Backup(backup) => Self::Backup { stack: backup.stack },
            action::Action::Script(script) => Self::Script { name: script.name },
            action::Action::KafkaAcl(acl) => {
                let bridge = NodeId::from_bytes(&acl.bridge).map_err(|_| ActionError::Malformed)?;
                Self::KafkaAcl { bridge, topics: acl.topics }
            }
        };
        action.checked()
    }
}

/// In words: "restart the service web of shop".
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServiceStart { stack, service } => write!(f, "start the service {service} of {stack}"),
            Self::ServiceStop { stack, service } => write!(f, "stop the service {service} of {stack}"),
            Self::ServiceRestart { stack, service } => write!(f, "restart the service {service} of {stack}"),
            Self::ServiceLogs { stack, service, lines } => {
                write!(f, "show the last {lines} lines of {service} of {stack}")
            }
            Self::Diagnostics => f.write_str("gather diagnostics"),
            Self::TelemetryInterval { interval } => {
                write!(f, "measure every {} s until the agent restarts", interval.as_secs_f64())
            }
            Self::RenewCertificate => f.write_str("renew the node's certificate"),
            Self::Drain => f.write_str("hand over all telemetry that is held"),
            Self::Backup { stack } => write!(f, "run the backup of {stack}"),
            Self::Script { name } => write!(f, "run the script {name}"),
            Self::KafkaAcl { bridge, topics } if topics.is_empty() => {
                write!(f, "allow the bridge {bridge} nothing any more at the Kafka brokers")
            }
            Self::KafkaAcl { bridge, topics } => {
                write!(
                    f,
                    "allow the bridge {bridge} to write to {} at the Kafka brokers, and nothing else",
                    topics.join(", ")
                )
            }
        }
    }
}

/// Stacks, services and scripts have names that could not pass for anything else.
pub(crate) fn named(what: &'static str, name: &str) -> Result<(), ActionError> {
    let good = (1..=NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if good { Ok(()) } else { Err(ActionError::Argument(what, "use 1 to 100 letters, digits, '-', '_' and '.'")) }
}

/// Topics that a bridge may be allowed to write to, a few and each as Kafka names them.
fn topics_of(topics: &[String]) -> Result<(), ActionError> {
    let good = |topic: &String| {
        let name = topic.strip_suffix('*').unwrap_or(topic);
        (1..=TOPIC).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    if topics.len() > TOPICS {
        return Err(ActionError::Argument("topics", "use at most 64"));
    }
    match topics.iter().all(good) {
        true => Ok(()),
        false => Err(ActionError::Argument("topics", "use names of Kafka topics, or their beginning and '*'")),
    }
}

/// Not an action that can be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// Not one of this version's.
    #[error("this version does not know it; update the software")]
    Unknown,
    /// Its bytes are none of an action.
    #[error("its arguments can't be read")]
    Malformed,
    /// One of its arguments makes no sense; what would.
    #[error("its {0} is not usable: {1}")]
    Argument(&'static str, &'static str),
}
