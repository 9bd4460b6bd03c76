//! The hub's end of the control stream.

use std::time::Duration;

use super::{ClockReading, HELLO_DEADLINE, SessionError};
use crate::message::{
    Acknowledge, CancelCommand, Command, CommandOutcome, CommandOutput, Goodbye, Hello, KafkaGrant, KafkaNews,
    NodeFacts, OutcomeStored, Pace, Refusal, RefusalCode, RenewalAdvice, Renewed, Shipping, SpoolRange, StopTail,
    ToHub, ToNode, Trust, Unsupported, VersionRange, Welcome, to_hub, to_node,
};
use crate::tail::Tail;
use crate::{CommandId, SessionId, TailId, Timestamp, version};

/// Roots of a report that are looked at; a node trusts at most 4.
const MAX_ROOTS: usize = 8;
/// Characters of a node's trouble that are kept.
const MAX_TROUBLE: usize = 300;

/// The hub's side of one session, from the accepted control stream on.
#[derive(Debug)]
pub struct HubSession {
    state: State,
    versions: VersionRange,
    /// What the Welcome says of shipped logs.
    logs: Option<Shipping>,
}

#[derive(Debug)]
enum State {
    AwaitingHello {
        since: Timestamp,
    },
    /// Hello has come, and the hub has yet to say Welcome or Refusal.
    Deciding {
        version: u32,
        received_at: Timestamp,
    },
    Running {
        renewing: bool,
        /// A request for a Kafka certificate waits for its answer.
        kafka: bool,
    },
    Over,
}

/// What a node said in its Hello.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeHello {
    /// Protocol version both speak.
    pub version: u32,
    /// What the node is.
    pub facts: NodeFacts,
    /// New at every start of the node's process.
    pub process: u64,
    /// What the node's spool holds.
    pub spool: SpoolRange,
    /// What its spool for logs holds; `None`: it ships none.
    pub logs: Option<SpoolRange>,
    /// SHA-256 of the public keys of the roots the node trusts.
    pub roots: Vec<[u8; 32]>,
}

/// What a hub is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum HubOutput {
    /// Send this on the control stream.
    Send(ToNode),
    /// Answer with [`HubSession::welcome`] or [`HubSession::refuse`].
    Hello(NodeHello),
    /// The node's clock beside the hub's.
    Clock(ClockReading),
    /// Answer with [`HubSession::renewed`].
    Renew {
        /// PKCS#10, DER.
        certificate_request: Vec<u8>,
        /// Number of the certificate the node uses.
        sequence: u64,
    },
    /// Answer with [`HubSession::kafka`].
    Kafka {
        /// PKCS#10, DER.
        certificate_request: Vec<u8>,
        /// Whether the node uses the certificate for this key.
        in_use: bool,
    },
    /// The roots the node trusts now.
    Trusts {
        /// SHA-256 of their public keys.
        roots: Vec<[u8; 32]>,
        /// Why the node did not take the list it was sent; empty when it did.
        trouble: String,
    },
    /// How a command stands, or went.
    Outcome(CommandOutcome),
    /// What a command put out.
    Output(CommandOutput),
    /// The node could not read something of ours; for the log.
    Unsupported(String),
    /// The session is over, for this reason; close the connection.
    Over(String),
}

impl HubSession {
    /// Starts with the accepted control stream.
    pub fn open(versions: VersionRange, now: Timestamp) -> Self {
        Self { state: State::AwaitingHello { since: now }, versions, logs: None }
    }

    /// Takes a message of the node.
    ///
    /// # Errors
    /// [`SessionError`] when the node breaks the rules; the session is over.
    pub fn receive(&mut self, message: ToHub, now: Timestamp) -> Result<Vec<HubOutput>, SessionError> {
        let outputs = self.take(message, now);
        if outputs.is_err() {
            self.state = State::Over;
        }
        outputs
    }

    fn take(&mut self, message: ToHub, now: Timestamp) -> Result<Vec<HubOutput>, SessionError> {
        use to_hub::Message;
        let Some(message) = message.message else {
            let text = "a control message that this version does not know";
            let answer = to_node::Message::Unsupported(Unsupported { message: text.into() });
            return Ok(vec![HubOutput::Send(answer.into())]);
        };
        match (&mut self.state, message) {
            (State::Over, _) => Ok(Vec::new()),
            (_, Message::Unsupported(unsupported)) => Ok(vec![HubOutput::Unsupported(unsupported.message)]),
            (_, Message::Goodbye(goodbye)) => {
                self.state = State::Over;
                Ok(vec![HubOutput::Over(goodbye.reason)])
            }
            (State::AwaitingHello { .. }, Message::Hello(hello)) => self.hello(hello, now),
            (State::AwaitingHello { .. }, other) => {
                Err(SessionError::Unexpected { found: name(&other), expected: "Hello" })
            }
            (_, Message::Hello(_)) => {
                Err(SessionError::Unexpected { found: "Hello", expected: "a message of a running session" })
            }
            (State::Deciding { .. }, other) => {
                Err(SessionError::Unexpected { found: name(&other), expected: "nothing before the Welcome" })
            }
            (State::Running { .. }, Message::Clock(report)) => Ok(vec![HubOutput::Clock(report.into())]),
            (State::Running { kafka, .. }, Message::Kafka(request)) => {
                if std::mem::replace(kafka, true) {
                    let refusal = Some(under_way("a request for a Kafka certificate"));
                    let answer = KafkaGrant { refusal, ..KafkaGrant::default() };
                    return Ok(vec![HubOutput::Send(to_node::Message::Kafka(answer).into())]);
                }
                Ok(vec![HubOutput::Kafka { certificate_request: request.certificate_request, in_use: request.in_use }])
            }
            (State::Running { renewing, .. }, Message::Renew(request)) => {
                if std::mem::replace(renewing, true) {
                    let answer = Renewed { refusal: Some(under_way("a renewal")), ..Renewed::default() };
                    return Ok(vec![HubOutput::Send(to_node::Message::Renewed(answer).into())]);
                }
                Ok(vec![HubOutput::Renew {
                    certificate_request: request.certificate_request,
                    sequence: request.sequence,
                }])
            }
            (State::Running { .. }, Message::Trust(report)) => {
                let trouble = report.trouble.chars().take(MAX_TROUBLE).collect();
                Ok(vec![HubOutput::Trusts { roots: hashes(&report.roots), trouble }])
            }
            (State::Running { .. }, Message::Outcome(outcome)) => Ok(vec![HubOutput::Outcome(outcome)]),
            (State::Running { .. }, Message::Output(output)) => Ok(vec![HubOutput::Output(output)]),
        }
    }

    fn hello(&mut self, hello: Hello, now: Timestamp) -> Result<Vec<HubOutput>, SessionError> {
        let theirs = hello.versions.ok_or(malformed("it names no protocol versions"))?;
        let spool = hello.spool.ok_or(malformed("it does not say what its spool holds"))?;
        let is_range = |spool: &SpoolRange| spool.first > 0 && spool.first - 1 <= spool.last;
        if !is_range(&spool) || !hello.logs.as_ref().is_none_or(is_range) {
            return Err(malformed("its spool's range is none"));
        }
        let Some(version) = version::negotiate(self.versions, theirs) else {
            let refusal = version_refusal(self.versions, theirs);
            let reason = refusal.message.clone();
            let answer = self.refuse(refusal);
            return Ok(vec![HubOutput::Send(answer), HubOutput::Over(reason)]);
        };
        self.state = State::Deciding { version, received_at: now };
        let facts = hello.facts.unwrap_or_default();
        Ok(vec![HubOutput::Hello(NodeHello {
            version,
            facts,
            process: hello.process,
            spool,
            logs: hello.logs,
            roots: hashes(&hello.roots),
        })])
    }

    /// Says in the Welcome that the logs the node told of are taken, and how far they are stored.
    pub fn take_logs(&mut self, stored: Option<Acknowledge>) {
        self.logs = Some(Shipping { stored });
    }

    /// Lets the node in; `None` unless a Hello waits for its answer. `stored` is [`crate::delivery::Inbox::position`];
    /// `renew_at`: when the node should renew its certificate, `None` by its own policy.
    pub fn welcome(
        &mut self,
        session: SessionId,
        stored: Option<Acknowledge>,
        hub_version: &str,
        renew_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<ToNode> {
        let State::Deciding { version, received_at } = self.state else { return None };
        self.state = State::Running { renewing: false, kafka: false };
        let welcome = Welcome {
            version,
            session_id: session.to_bytes().to_vec(),
            received_at_ms: received_at.millis(),
            sent_at_ms: now.millis(),
            stored,
            hub_version: hub_version.into(),
            renew_at_ms: renew_at.map_or(0, Timestamp::millis),
            logs: self.logs.take(),
        };
        Some(to_node::Message::Welcome(welcome).into())
    }

    /// Turns the node away; the connection is to be closed once this is sent.
    pub fn refuse(&mut self, refusal: Refusal) -> ToNode {
        self.state = State::Over;
        to_node::Message::Refusal(refusal).into()
    }

    /// The answer to a renewal.
    pub fn renewed(&mut self, renewed: Renewed) -> ToNode {
        if let State::Running { renewing, .. } = &mut self.state {
            *renewing = false;
        }
        to_node::Message::Renewed(renewed).into()
    }

    /// The answer to a request for a Kafka certificate.
    pub fn kafka(&mut self, grant: KafkaGrant) -> ToNode {
        if let State::Running { kafka, .. } = &mut self.state {
            *kafka = false;
        }
        to_node::Message::Kafka(grant).into()
    }

    /// Has a bridge ask how its Kafka certificate stands, and why; `None` unless the session is running.
    pub fn kafka_news(&self, reason: &str) -> Option<ToNode> {
        self.is_running().then(|| to_node::Message::KafkaNews(KafkaNews { reason: reason.into() }).into())
    }

    /// Makes the node send every sample at once for a while; `None` unless the session is running.
    pub fn live(&self, duration: Duration) -> Option<ToNode> {
        let live_for_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.is_running().then(|| to_node::Message::Pace(Pace { live_for_ms }).into())
    }

    /// Tells the node which roots to trust; `None` unless the session is running.
    pub fn trust(&self, trust: Trust) -> Option<ToNode> {
        self.is_running().then(|| to_node::Message::Trust(trust).into())
    }

    /// Has the node carry out a command, or say how it stands; `None` unless the session is running.
    pub fn command(&self, command: Command) -> Option<ToNode> {
        self.is_running().then(|| to_node::Message::Command(command).into())
    }

    /// Has the node let go of a command; `None` unless the session is running.
    pub fn cancel(&self, command: CommandId) -> Option<ToNode> {
        let command_id = command.to_bytes().to_vec();
        self.is_running().then(|| to_node::Message::Cancel(CancelCommand { command_id }).into())
    }

    /// Tells the node that a command's end is stored; `None` unless the session is running.
    pub fn outcome_stored(&self, command: CommandId) -> Option<ToNode> {
        let command_id = command.to_bytes().to_vec();
        self.is_running().then(|| to_node::Message::OutcomeStored(OutcomeStored { command_id }).into())
    }

    /// Has the node read a service's log; `None` unless the session is running.
    pub fn start_tail(&self, tail: &Tail) -> Option<ToNode> {
        self.is_running().then(|| to_node::Message::StartTail(tail.message()).into())
    }

    /// Has the node end a tail; `None` unless the session is running.
    pub fn stop_tail(&self, tail: TailId) -> Option<ToNode> {
        let tail_id = tail.to_bytes().to_vec();
        self.is_running().then(|| to_node::Message::StopTail(StopTail { tail_id }).into())
    }

    /// Advises the node when to renew its certificate, and why; `None` unless the session is running.
    pub fn advise(&self, renew_at: Timestamp, reason: &str) -> Option<ToNode> {
        let advice = RenewalAdvice { renew_at_ms: renew_at.millis(), reason: reason.into() };
        self.is_running().then(|| to_node::Message::Renewal(advice).into())
    }

    /// Ends the session; the connection is to be closed once this is sent. The node comes back after `retry_after`,
    /// or by its back-off.
    pub fn goodbye(&mut self, reason: &str, retry_after: Option<Duration>) -> ToNode {
        self.state = State::Over;
        // Less than a millisecond would say "by back-off".
        let retry_after_ms = retry_after.map_or(0, |after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX).max(1));
        to_node::Message::Goodbye(Goodbye { reason: reason.into(), retry_after_ms }).into()
    }

    /// When [`Self::tick`] wants to be called.
    pub fn deadline(&self) -> Option<Timestamp> {
        match self.state {
            State::AwaitingHello { since } => Some(since.plus(HELLO_DEADLINE)),
            _ => None,
        }
    }

    /// Time has passed.
    ///
    /// # Errors
    /// [`SessionError::Deadline`] when no Hello has come; the session is over.
    pub fn tick(&mut self, now: Timestamp) -> Result<(), SessionError> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        self.state = State::Over;
        Err(SessionError::Deadline { awaited: "Hello", deadline: HELLO_DEADLINE })
    }

    /// Whether the node is welcomed and nobody has ended the session.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }
}

impl From<to_node::Message> for ToNode {
    fn from(message: to_node::Message) -> Self {
        Self { message: Some(message) }
    }
}

/// What can be a hash, and no more than a node may trust.
fn hashes(reported: &[Vec<u8>]) -> Vec<[u8; 32]> {
    reported.iter().filter_map(|hash| hash.as_slice().try_into().ok()).take(MAX_ROOTS).collect()
}

fn version_refusal(ours: VersionRange, theirs: VersionRange) -> Refusal {
    let older = if theirs.newest < ours.oldest { "node" } else { "hub" };
    Refusal {
        code: RefusalCode::Version.into(),
        message: format!(
            "this hub speaks protocol versions {} to {} and the node {} to {}; update the {older}",
            ours.oldest, ours.newest, theirs.oldest, theirs.newest
        ),
        retry_after_ms: 0,
    }
}

fn under_way(what: &str) -> Refusal {
    Refusal {
        code: RefusalCode::Busy.into(),
        message: format!("{what} of this session is under way; wait for its answer"),
        retry_after_ms: 0,
    }
}

fn malformed(fault: &'static str) -> SessionError {
    SessionError::Malformed { message: "Hello", fault }
}

fn name(message: &to_hub::Message) -> &'static str {
    use to_hub::Message;
    match message {
        Message::Hello(_) => "Hello",
        Message::Clock(_) => "ClockReport",
        Message::Renew(_) => "RenewRequest",
        Message::Outcome(_) => "CommandOutcome",
        Message::Unsupported(_) => "Unsupported",
        Message::Goodbye(_) => "Goodbye",
        Message::Trust(_) => "TrustReport",
        Message::Output(_) => "CommandOutput",
        Message::Kafka(_) => "KafkaRequest",
    }
}
