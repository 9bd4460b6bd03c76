//! The node's end of the control stream.

use std::time::Duration;

use super::{ClockReading, HELLO_DEADLINE, MAX_LIVE, RENEW_DEADLINE, SessionError};
use crate::command::{self, Order};
use crate::message::{
    Acknowledge, Goodbye, Hello, KafkaGrant, KafkaRequest, NodeFacts, Refusal, RenewRequest, Renewed, Shipping,
    SpoolRange, ToHub, ToNode, Trust, TrustReport, Unsupported, VersionRange, to_hub, to_node,
};
use crate::tail::Tail;
use crate::{CommandId, SessionId, TailId, Timestamp};

/// Characters of the hub's reason for an advice that are kept.
const MAX_REASON: usize = 300;
/// Kafka roots that are looked at.
const MAX_KAFKA_ROOTS: usize = 4;

/// The node's side of one session, from its Hello on.
#[derive(Debug)]
pub struct NodeSession {
    state: State,
    versions: VersionRange,
}

#[derive(Debug)]
enum State {
    /// Hello is sent.
    Greeting { sent_at: Timestamp },
    Running {
        renewing_since: Option<Timestamp>,
        /// A request for a Kafka certificate is under way.
        kafka_since: Option<Timestamp>,
    },
    /// Refused, or one side said Goodbye.
    Over,
}

/// What a node is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeOutput {
    /// Send this on the control stream.
    Send(ToHub),
    /// The session is up: open the telemetry stream.
    Welcomed(Welcomed),
    /// The hub would not have this node; the session is over.
    Refused(Refusal),
    /// The certificate is renewed.
    Renewed {
        /// DER, leaf first.
        certificate_chain: Vec<Vec<u8>>,
        /// Its number.
        sequence: u64,
        /// When to renew the next time; `None`: by the node's own policy.
        renew_at: Option<Timestamp>,
    },
    /// The hub would not renew the certificate.
    RenewalRefused(Refusal),
    /// The hub did not answer a renewal; ask again.
    RenewalUnanswered,
    /// What to show the tenant's brokers.
    Kafka(Granted),
    /// The hub would give no Kafka certificate.
    KafkaRefused(Refusal),
    /// The hub did not answer a request for a Kafka certificate; ask again.
    KafkaUnanswered,
    /// Ask how the Kafka certificate stands, for this reason.
    KafkaNews(String),
    /// The roots to trust from now on; answer with [`NodeSession::trusts`].
    Trust(Trust),
    /// Renew the certificate then.
    RenewalAdvised {
        /// By the hub's clock; `None`: by the node's own policy.
        renew_at: Option<Timestamp>,
        /// Why, for the log.
        reason: String,
    },
    /// Until then, send every sample at once.
    LiveUntil(Timestamp),
    /// Carry this out.
    Command(Order),
    /// Let go of this command.
    Cancel(CommandId),
    /// The hub has stored how this command ended.
    OutcomeStored(CommandId),
    /// Read a service's log, and tell it on the log stream.
    StartTail(Tail),
    /// Nobody reads this one any more.
    StopTail(TailId),
    /// The hub could not read something of ours; for the log.
    Unsupported(String),
    /// The hub ends the session.
    Goodbye {
        /// Why.
        reason: String,
        /// Come back no sooner than this; `None`: by back-off.
        retry_after: Option<Duration>,
    },
}

/// A certificate for the tenant's brokers, as the hub gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// DER.
    pub certificate: Vec<u8>,
    /// DER of the roots to judge the brokers by.
    pub roots: Vec<Vec<u8>>,
    /// When to ask for the next one; `None`: by the node's own policy.
    pub renew_at: Option<Timestamp>,
}

/// What the hub said in its Welcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Welcomed {
    /// The session's id.
    pub session: SessionId,
    /// Protocol version of this session.
    pub version: u32,
    /// What the hub has of the spool's epoch; `None`: nothing.
    pub stored: Option<Acknowledge>,
    /// Whether the hub takes shipped logs, and what it has of them.
    pub logs: Option<Shipping>,
    /// The hub's own version, for the log.
    pub hub_version: String,
    /// When to renew the certificate; `None`: by the node's own policy.
    pub renew_at: Option<Timestamp>,
    /// The node's clock beside the hub's.
    pub clock: ClockReading,
}

/// The numbered batches a node holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Held {
    /// Of telemetry.
    pub telemetry: SpoolRange,
    /// Of log lines; `None`: it ships none.
    pub logs: Option<SpoolRange>,
}

impl From<SpoolRange> for Held {
    fn from(telemetry: SpoolRange) -> Self {
        Self { telemetry, logs: None }
    }
}

impl NodeSession {
    /// Starts a session; gives the first message to send. `process` is random and new at every start of the process,
    /// `roots` are the SHA-256 of the public keys of the roots this node trusts.
    pub fn open(
        versions: VersionRange,
        facts: NodeFacts,
        process: u64,
        held: impl Into<Held>,
        roots: &[[u8; 32]],
        now: Timestamp,
    ) -> (Self, ToHub) {
        let held = held.into();
        let hello = Hello {
            versions: Some(versions),
            facts: Some(facts),
            process,
            sent_at_ms: now.millis(),
            spool: Some(held.telemetry),
            logs: held.logs,
            roots: roots.iter().map(|root| root.to_vec()).collect(),
        };
        (Self { state: State::Greeting { sent_at: now }, versions }, to_hub::Message::Hello(hello).into())
    }

    /// Takes a message of the hub.
    ///
    /// # Errors
    /// [`SessionError`] when the hub breaks the rules; the session is over.
    pub fn receive(&mut self, message: ToNode, now: Timestamp) -> Result<Vec<NodeOutput>, SessionError> {
        let outputs = self.take(message, now);
        if outputs.is_err() {
            self.state = State::Over;
        }
        outputs
    }

    fn take(&mut self, message: ToNode, now: Timestamp) -> Result<Vec<NodeOutput>, SessionError> {
        use to_node::Message;
        let Some(message) = message.message else {
            let text = "a control message that this version does not know";
            return Ok(vec![NodeOutput::Send(
                to_hub::Message::Unsupported(Unsupported { message: text.into() }).into(),
            )]);
        };
        match (&mut self.state, message) {
            (State::Over, _) => Ok(Vec::new()),
            (_, Message::Unsupported(unsupported)) => Ok(vec![NodeOutput::Unsupported(unsupported.message)]),
            (_, Message::Goodbye(goodbye)) => {
                self.state = State::Over;
                let retry_after = after(goodbye.retry_after_ms);
                Ok(vec![NodeOutput::Goodbye { reason: goodbye.reason, retry_after }])
            }
            (State::Greeting { sent_at }, Message::Welcome(welcome)) => {
                let (session, clock) = (
                    SessionId::from_bytes(&welcome.session_id)
                        .map_err(|_| malformed("Welcome", "its session id is not 16 bytes"))?,
                    ClockReading::new(
                        *sent_at,
                        Timestamp::from_millis(welcome.received_at_ms),
                        Timestamp::from_millis(welcome.sent_at_ms),
                        now,
                    ),
                );
                if !(self.versions.oldest..=self.versions.newest).contains(&welcome.version) {
                    return Err(malformed("Welcome", "it chose a protocol version that this node did not offer"));
                }
                self.state = State::Running { renewing_since: None, kafka_since: None };
                let welcomed = Welcomed {
                    session,
                    version: welcome.version,
                    stored: welcome.stored,
                    logs: welcome.logs,
                    hub_version: welcome.hub_version,
                    renew_at: time(welcome.renew_at_ms),
                    clock,
                };
                Ok(vec![NodeOutput::Send(to_hub::Message::Clock(clock.into()).into()), NodeOutput::Welcomed(welcomed)])
            }
            (State::Greeting { .. }, Message::Refusal(refusal)) => {
                self.state = State::Over;
                Ok(vec![NodeOutput::Refused(refusal)])
            }
            (State::Greeting { .. }, other) => {
                Err(SessionError::Unexpected { found: name(&other), expected: "Welcome or Refusal" })
            }
            (State::Running { renewing_since, .. }, Message::Renewed(renewed)) => {
                // An answer that came after its deadline is as good as one before.
                *renewing_since = None;
                Ok(vec![renewal(renewed)])
            }
            (State::Running { kafka_since, .. }, Message::Kafka(grant)) => {
                *kafka_since = None;
                Ok(vec![granted(grant)])
            }
            (State::Running { .. }, Message::KafkaNews(news)) => {
                Ok(vec![NodeOutput::KafkaNews(news.reason.chars().take(MAX_REASON).collect())])
            }
            (State::Running { .. }, Message::Command(command)) => {
                let id = command_id("Command", &command.command_id)?;
                Ok(vec![match Order::read(id, &command) {
                    Ok(order) => NodeOutput::Command(order),
                    Err(error) => {
                        let outcome = command::unsupported(id, &command.action, &error);
                        NodeOutput::Send(to_hub::Message::Outcome(outcome).into())
                    }
                }])
            }
            (State::Running { .. }, Message::Cancel(cancel)) => {
                Ok(vec![NodeOutput::Cancel(command_id("CancelCommand", &cancel.command_id)?)])
            }
            (State::Running { .. }, Message::OutcomeStored(stored)) => {
                Ok(vec![NodeOutput::OutcomeStored(command_id("OutcomeStored", &stored.command_id)?)])
            }
            (State::Running { .. }, Message::StartTail(start)) => {
                let id = tail_id("StartTail", &start.tail_id)?;
                Ok(vec![match Tail::read(id, start) {
                    Ok(tail) => NodeOutput::StartTail(tail),
                    Err(error) => {
                        let message = format!("a tail that can't be: {error}");
                        NodeOutput::Send(to_hub::Message::Unsupported(Unsupported { message }).into())
                    }
                }])
            }
            (State::Running { .. }, Message::StopTail(stop)) => {
                Ok(vec![NodeOutput::StopTail(tail_id("StopTail", &stop.tail_id)?)])
            }
            (State::Running { .. }, Message::Trust(trust)) => Ok(vec![NodeOutput::Trust(trust)]),
            (State::Running { .. }, Message::Renewal(advice)) => Ok(vec![NodeOutput::RenewalAdvised {
                renew_at: time(advice.renew_at_ms),
                reason: advice.reason.chars().take(MAX_REASON).collect(),
            }]),
            (State::Running { .. }, Message::Pace(pace)) => {
                let live = Duration::from_millis(pace.live_for_ms).min(MAX_LIVE);
                Ok(vec![NodeOutput::LiveUntil(now.plus(live))])
            }
            (State::Running { .. }, other @ (Message::Welcome(_) | Message::Refusal(_))) => {
                Err(SessionError::Unexpected { found: name(&other), expected: "a message of a running session" })
            }
        }
    }

    /// Asks for a certificate after the one of this number; `None` when the session is not running or a request is under way.
    pub fn renew(&mut self, certificate_request: Vec<u8>, sequence: u64, now: Timestamp) -> Option<ToHub> {
        let State::Running { renewing_since: renewing_since @ None, .. } = &mut self.state else { return None };
        *renewing_since = Some(now);
        Some(to_hub::Message::Renew(RenewRequest { certificate_request, sequence }))
            .map(|message| ToHub { message: Some(message) })
    }

    /// Asks for a Kafka certificate, or how the one stands that is `in_use` for this key; `None` when the session is not running
    /// or such a request is under way.
    pub fn kafka(&mut self, certificate_request: Vec<u8>, in_use: bool, now: Timestamp) -> Option<ToHub> {
        let State::Running { kafka_since: kafka_since @ None, .. } = &mut self.state else { return None };
        *kafka_since = Some(now);
        Some(to_hub::Message::Kafka(KafkaRequest { certificate_request, in_use }).into())
    }

    /// The roots this node trusts now, and why it did not take what it was sent.
    pub fn trusts(&self, roots: &[[u8; 32]], trouble: String) -> ToHub {
        let roots = roots.iter().map(|root| root.to_vec()).collect();
        to_hub::Message::Trust(TrustReport { roots, trouble }).into()
    }

    /// Ends the session; the connection is to be closed once this is sent.
    pub fn goodbye(&mut self, reason: &str) -> ToHub {
        self.state = State::Over;
        to_hub::Message::Goodbye(Goodbye { reason: reason.into(), retry_after_ms: 0 }).into()
    }

    /// When [`Self::tick`] wants to be called.
    pub fn deadline(&self) -> Option<Timestamp> {
        match self.state {
            State::Greeting { sent_at } => Some(sent_at.plus(HELLO_DEADLINE)),
            State::Running { renewing_since, kafka_since } => {
                Some(renewing_since.into_iter().chain(kafka_since).min()?.plus(RENEW_DEADLINE))
            }
            State::Over => None,
        }
    }

    /// Time has passed.
    ///
    /// # Errors
    /// [`SessionError::Deadline`] when the hub has not answered the Hello; the session is over.
    pub fn tick(&mut self, now: Timestamp) -> Result<Option<NodeOutput>, SessionError> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Ok(None);
        }
        match &mut self.state {
            State::Running { renewing_since, kafka_since } => {
                // One that is as late has its turn next: the deadline has passed for it as well.
                let late = |since: &Option<Timestamp>| since.is_some_and(|since| now >= since.plus(RENEW_DEADLINE));
                if late(renewing_since) {
                    *renewing_since = None;
                    return Ok(Some(NodeOutput::RenewalUnanswered));
                }
                *kafka_since = None;
                Ok(Some(NodeOutput::KafkaUnanswered))
            }
            State::Greeting { .. } => {
                self.state = State::Over;
                Err(SessionError::Deadline { awaited: "answer to Hello", deadline: HELLO_DEADLINE })
            }
            State::Over => Ok(None),
        }
    }

    /// Whether the hub has welcomed the node and nobody has ended the session.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }
}

impl From<to_hub::Message> for ToHub {
    fn from(message: to_hub::Message) -> Self {
        Self { message: Some(message) }
    }
}

fn renewal(renewed: Renewed) -> NodeOutput {
    match renewed.refusal {
        Some(refusal) => NodeOutput::RenewalRefused(refusal),
        None => NodeOutput::Renewed {
            certificate_chain: renewed.certificate_chain,
            sequence: renewed.sequence,
            renew_at: time(renewed.renew_at_ms),
        },
    }
}

fn granted(grant: KafkaGrant) -> NodeOutput {
    match grant.refusal {
        Some(refusal) => NodeOutput::KafkaRefused(refusal),
        None => NodeOutput::Kafka(Granted {
            certificate: grant.certificate,
            roots: grant.roots.into_iter().take(MAX_KAFKA_ROOTS).collect(),
            renew_at: time(grant.renew_at_ms),
        }),
    }
}

fn command_id(message: &'static str, bytes: &[u8]) -> Result<CommandId, SessionError> {
    CommandId::from_bytes(bytes).map_err(|_| malformed(message, "its command's id is not 16 bytes"))
}

fn tail_id(message: &'static str, bytes: &[u8]) -> Result<TailId, SessionError> {
    TailId::from_bytes(bytes).map_err(|_| malformed(message, "its tail's id is not 16 bytes"))
}

/// A time on the wire, where 0 stands for none.
fn time(millis: i64) -> Option<Timestamp> {
    (millis != 0).then_some(Timestamp::from_millis(millis))
}

/// A duration on the wire, where 0 stands for none.
fn after(millis: u64) -> Option<Duration> {
    (millis != 0).then_some(Duration::from_millis(millis))
}

fn malformed(message: &'static str, fault: &'static str) -> SessionError {
    SessionError::Malformed { message, fault }
}

fn name(message: &to_node::Message) -> &'static str {
    use to_node::Message;
    match message {
        Message::Welcome(_) => "Welcome",
        Message::Refusal(_) => "Refusal",
        Message::Renewed(_) => "Renewed",
        Message::Command(_) => "Command",
        Message::Unsupported(_) => "Unsupported",
        Message::Goodbye(_) => "Goodbye",
        Message::Pace(_) => "Pace",
        Message::Trust(_) => "Trust",
        Message::Cancel(_) => "CancelCommand",
        Message::OutcomeStored(_) => "OutcomeStored",
        Message::StartTail(_) => "StartTail",
        Message::StopTail(_) => "StopTail",
        Message::Renewal(_) => "RenewalAdvice",
        Message::Kafka(_) => "KafkaGrant",
        Message::KafkaNews(_) => "KafkaNews",
    }
}
