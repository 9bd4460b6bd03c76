//! One node's session: its control stream and its telemetry stream, side by side in one task.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use pki::NodeIdentity;
use protocol::frame::{MAX_CONTROL, MAX_SHIPMENT, MAX_TELEMETRY};
use protocol::message::{KafkaGrant, Refusal, RefusalCode, RenewRequest, Renewed, ToHub, ToNode, Upload};
use protocol::session::{HELLO_DEADLINE, HubOutput, HubSession, NodeHello, SessionError};
use protocol::{NodeKind, SessionId, Timestamp, version};
use rand::RngExt;
use serde_json::json;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use transport::{CloseCode, Connection, FrameReader, FrameWriter, StreamError};

use super::Gateway;
use super::courier::{Courier, Words};
use super::rate::{Budget, Rate};
use super::registry::{Directive, REVOKED, Registered};
use super::relay::{Relay, take_logs};
use crate::audit::{self, Actor, Record, action};
use crate::logs;
use crate::streams::{IngestError, TakesIn};
use crate::telemetry::ingest::Intake;
use crate::telemetry::state::Ended;

/// Uploads of one session: a node in its daily life sends one in 10 to 60 s, and one that was away hands over an hour
/// of them in a second.
const UPLOADS: Rate = Rate(500.0);
/// Messages of one session on its control stream: a node says a few an hour, and one that has carried out a window of
/// commands some hundred in a second.
const WORDS: Rate = Rate(500.0);
/// As so many messages counts a report of the roots a node trusts, which is written each time it says something else.
const TRUSTS: usize = 250;
/// Questions of one session about its Kafka certificate: one at its start, and a few when something has changed.
const KAFKA: Rate = Rate(3.0);
/// Batches of shipped logs of one session: a node that ships without a backlog sends one a second.
const SHIPMENTS: Rate = Rate(50.0);
/// How long a session goes on without its logs when they can't be stored. The node then comes back, and sends them again.
const WITHOUT_LOGS: Duration = Duration::from_secs(30);
/// After a restart of the hub, or trouble with its database, nodes come back spread over this long.
const COME_BACK_WITHIN: Duration = Duration::from_secs(3);
/// How long a node may take nothing of what the hub tells it. What it is told fits into its window many times.
const TAKES_WITHIN: Duration = Duration::from_secs(30);
/// What a node hears that takes nothing.
const NOT_TAKEN: &str = "the node does not take what the hub tells it";
/// How long a node may take to acknowledge that the hub says goodbye.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(2);

/// Why a session is over, and what to tell the node.
pub(super) enum Over {
    /// The node said goodbye, or its connection ended.
    Node(Ended),
    /// Close with this code and reason.
    Close(CloseCode, String),
    /// Say goodbye first: the node is to come back.
    Goodbye(&'static str),
}

/// Serves a node from the verified connection to its end.
pub(super) async fn run(
    gateway: Arc<Gateway>,
    connection: Connection,
    identity: NodeIdentity,
    shutdown: CancellationToken,
) {
    let node = identity.node;
    // What is rare in a session is boxed, here and below: thousands of them would each keep room for it all their lives.
    let greeted = tokio::time::timeout(HELLO_DEADLINE, Box::pin(greet(&gateway, &connection, &identity))).await;
    let (session, mut control, mut intakes) = match greeted {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(trouble)) => {
            debug!(%node, remote = %connection.remote_address(), %trouble, "no session");
            connection.close(trouble.code(), &trouble.to_string());
            return;
        }
        Err(_) => {
            connection.close(CloseCode::Timeout, "no Hello came in time");
            return;
        }
    };
    let registered = gateway.registry.register(node, session);
    gateway.metrics.sessions.set(gateway.registry.len() as i64);
    if gateway.enrollment.authorize(&identity).is_err() {
        // Revoked between the handshake and its place among those whose sessions can be ended.
        gateway.registry.remove(node, session);
        connection.close(CloseCode::Revoked, REVOKED);
        gateway.fleet.session_closed(node, session, Ended::Lost, now());
        return;
    }
    info!(%node, tenant = %identity.tenant, %session, remote = %connection.remote_address(), "session opened");
    if let Some(displaced) = registered.displaced {
        Box::pin(record_displacement(&gateway, &connection, &identity, displaced, session)).await;
    }
    if let Err(error) = Box::pin(gateway.enrollment.seen(&identity, now())).await {
        // The older certificate then stays good a little longer: the next session retires it.
        warn!(%node, %error, "the use of a certificate was not recorded");
    }

    let Registered { ending, mut directives, commands, tails, .. } = registered;
    let over = tokio::select! {
        biased;
        ending = ending => {
            let (code, reason) = ending.unwrap_or((CloseCode::Timeout, NOT_TAKEN));
            Over::Close(code, reason.into())
        }
        () = shutdown.cancelled() => Over::Goodbye("the hub stops or restarts"),
        Err(over) = attend(&gateway, &identity, session, &mut control, &mut directives, &commands, &tails) => over,
        over = streams(&gateway, &connection, &identity, session, &mut intakes) => over,
    };
    let ended = Box::pin(end(&connection, control, over)).await;
    gateway.registry.remove(node, session);
    gateway.tails.session_ended(node, session, "the node's session has ended; start again once it is back");
    gateway.metrics.sessions.set(gateway.registry.len() as i64);
    info!(%node, %session, ?ended, "session closed");
    gateway.fleet.session_closed(node, session, ended, now());
}

/// Where a session's numbered uploads go.
struct Intakes {
    telemetry: Intake,
    /// Few nodes ship logs.
    logs: Option<Box<logs::Intake>>,
}

/// The control stream and the machine that knows its rules.
struct Control {
    writer: FrameWriter,
    reader: FrameReader,
    machine: HubSession,
}

impl Control {
    /// Sends one message of a running session. A node that does not take it in time is cut off.
    async fn send(&mut self, message: &ToNode) -> Result<(), Over> {
        match tokio::time::timeout(TAKES_WITHIN, self.writer.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Over::Node(Ended::Lost)),
            Err(_) => Err(Over::Close(CloseCode::Timeout, NOT_TAKEN.into())),
        }
    }
}

/// Hello, the decision, and Welcome.
async fn greet(
    gateway: &Gateway,
    connection: &Connection,
    identity: &NodeIdentity,
) -> Result<(SessionId, Control, Intakes), Trouble> {
    let (writer, reader) = connection.accept(MAX_CONTROL).await.map_err(StreamError::from)?;
    let mut control = Control { writer, reader, machine: HubSession::open(version::SPOKEN, now()) };
    let hello = loop {
        let Some(message) = control.reader.recv::<ToHub>().await? else { return Err(Trouble::Gone) };
        let mut hello = None;
        for output in control.machine.receive(message, now())? {
            match output {
                HubOutput::Send(answer) => control.writer.send(&answer).await?,
                HubOutput::Hello(said) => hello = Some(said),
                HubOutput::Over(reason) => return Err(turned_away(&mut control, reason).await),
                _ => {}
            }
        }
        if let Some(hello) = hello {
            break hello;
        }
    };
    if let Err(refusal) = gateway.enrollment.authorize(identity) {
        return Err(refuse(gateway, connection, identity, &mut control, refusal).await);
    }
    let NodeHello { facts, spool, logs, roots, .. } = hello;
    let intake = gateway.ingest.open(identity.node, &identity.tenant, &spool).await.map_err(IngestError::from)?;
    let logs = match logs {
        Some(spool) => {
            let intake = Box::pin(gateway.logs.open(identity.node, &identity.tenant, &spool)).await;
            let intake = intake.map_err(IngestError::from)?;
            control.machine.take_logs(intake.stored());
            Some(Box::new(intake))
        }
        None => None,
    };
    let session = SessionId::new(now(), rand::rng().random());
    let renew_at = gateway.enrollment.renew_at(identity);
    let welcome = control.machine.welcome(session, intake.stored(), env!("CARGO_PKG_VERSION"), Some(renew_at), now());
    if let Some(welcome) = welcome {
        control.writer.send(&welcome).await?;
    }
    trusting(gateway, identity, &roots, "").await;
    let wanted = gateway.enrollment.roots();
    if !wanted.are(&roots)
        && let Some(trust) = control.machine.trust(wanted.trust())
    {
        control.writer.send(&trust).await?;
    }
    gateway.fleet.session_opened(identity.node, session, connection.remote_address(), facts, now());
    Ok((session, control, Intakes { telemetry: intake, logs }))
}

async fn refuse(
    gateway: &Gateway,
    connection: &Connection,
    identity: &NodeIdentity,
    control: &mut Control,
    refusal: Refusal,
) -> Trouble {
    let record = Record {
        actor: Actor::node(identity.node),
        action: action::SESSION_REFUSED,
        tenant: Some(identity.tenant.clone()),
        subject: identity.node.to_string(),
        detail: json!({ "reason": refusal.message, "serial": identity.serial.to_string() }),
        remote: Some(connection.remote_address().ip()),
    };
    let refusal = match audit::record(&gateway.database, now(), record).await {
        Ok(_) => refusal,
        Err(error) => {
            // Not before it is audited: the node is told to come back.
            warn!(node = %identity.node, %error, "a session's refusal could not be audited");
            Refusal {
                code: RefusalCode::Internal.into(),
                message: format!("the hub could not do it now: {error}"),
                retry_after_ms: 5_000,
            }
        }
    };
    let reason = refusal.message.clone();
    let answer = control.machine.refuse(refusal);
    match control.writer.send(&answer).await {
        Ok(()) => turned_away(control, reason).await,
        Err(error) => error.into(),
    }
}

/// Waits until the node has the refusal, so that closing does not overtake it.
async fn turned_away(control: &mut Control, reason: String) -> Trouble {
    match control.writer.finish().await {
        Ok(()) => {
            let _ = tokio::time::timeout(GOODBYE_DEADLINE, control.writer.delivered()).await;
            Trouble::Refused(reason)
        }
        Err(error) => error.into(),
    }
}

/// Keeps what a node says of the roots it trusts.
async fn trusting(gateway: &Gateway, identity: &NodeIdentity, roots: &[[u8; 32]], trouble: &str) {
    if !trouble.is_empty() {
        warn!(node = %identity.node, trouble, "the node did not take the fleet's roots");
    }
    if let Err(error) = gateway.enrollment.trusting(identity.node, roots, trouble).await {
        // It says so again in its next session.
        warn!(node = %identity.node, %error, "the roots a node trusts were not recorded");
    }
}

async fn record_displacement(
    gateway: &Gateway,
    connection: &Connection,
    identity: &NodeIdentity,
    displaced: SessionId,
    by: SessionId,
) {
    gateway.metrics.displaced.inc();
    let record = Record {
        actor: Actor::node(identity.node),
        action: action::SESSION_DISPLACED,
        tenant: Some(identity.tenant.clone()),
        subject: identity.node.to_string(),
        detail: json!({ "displaced": displaced.to_string(), "by": by.to_string() }),
        remote: Some(connection.remote_address().ip()),
    };
    if let Err(error) = audit::record(&gateway.database, now(), record).await {
        warn!(node = %identity.node, %error, "a displaced session was not audited");
    }
}

/// The control stream, until the node or a failure ends the session.
async fn attend(
    gateway: &Gateway,
    identity: &NodeIdentity,
    session: SessionId,
    control: &mut Control,
    directives: &mut mpsc::Receiver<Directive>,
    commands: &Notify,
    tails: &Notify,
) -> Result<Infallible, Over> {
    let mut courier = Courier::new(&gateway.commands, identity.node);
    let mut words = Words::new(&gateway.commands, identity.node);
    // What waited for the node, and what an earlier session handed over.
    commands.notify_one();
    let mut relay = Relay::new(&gateway.tails, session);
    tails.notify_one();
    let (mut budget, mut kafka) = (Budget::new(WORDS, Instant::now()), Budget::new(KAFKA, Instant::now()));
    // Until then nothing more is read, and the node waits.
    let mut rests_until = None;
    loop {
        let message = tokio::select! {
            biased;
            directive = directives.recv() => {
                let message = match directive {
                    Some(Directive::Pace(live_for)) => control.machine.live(live_for),
                    Some(Directive::Trust(trust)) => control.machine.trust((*trust).clone()),
                    Some(Directive::Renew(reason)) => {
                        control.machine.advise(gateway.enrollment.renew_at(identity), &reason)
                    }
                    Some(Directive::Kafka(reason)) if identity.kind == NodeKind::Bridge => {
                        control.machine.kafka_news(&reason)
                    }
                    Some(Directive::Kafka(_)) => None,
                    Some(Directive::Command(command)) => courier.handed(*command, &control.machine),
                    // The session is no longer in the registry: why, its end says.
                    None => std::future::pending().await,
                };
                if let Some(message) = message {
                    control.send(&message).await?;
                }
                continue;
            }
            () = courier.due(commands) => {
                for message in Box::pin(courier.collect(&control.machine, now())).await {
                    control.send(&message).await?;
                }
                continue;
            }
            () = tails.notified() => {
                for message in relay.collect(identity, &control.machine) {
                    control.send(&message).await?;
                }
                continue;
            }
            stored = words.stored() => {
                if let Some(ended) = stored? {
                    courier.ended(ended);
                    if let Some(stored) = control.machine.outcome_stored(ended) {
                        control.send(&stored).await?;
                    }
                }
                continue;
            }
            message = async {
                if let Some(until) = rests_until {
                    Box::pin(tokio::time::sleep_until(until)).await;
                }
                control.reader.recv::<ToHub>().await
            }, if words.have_room() => message,
        };
        let malformed = |error: &dyn std::error::Error| Over::Close(CloseCode::Malformed, error.to_string());
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) | Err(StreamError::Closed(_)) => return Err(Over::Node(Ended::Lost)),
            Err(error) => return Err(malformed(&error)),
        };
        let mut cost = 1;
        for output in control.machine.receive(message, now()).map_err(|error| malformed(&error))? {
            let answer = match output {
                HubOutput::Send(answer) => answer,
                HubOutput::Renew { certificate_request, sequence } => {
                    let request = RenewRequest { certificate_request, sequence };
                    let renewed = Box::pin(gateway.enrollment.renew(identity, &request, now())).await;
                    control.machine.renewed(
                        renewed.unwrap_or_else(|refusal| Renewed { refusal: Some(refusal), ..Renewed::default() }),
                    )
                }
                HubOutput::Kafka { certificate_request, in_use } => {
                    let wait = kafka.spend(1, Instant::now());
                    Box::pin(certify_for_kafka(gateway, identity, control, (&certificate_request, in_use), wait)).await
                }
                HubOutput::Trusts { roots, trouble } => {
                    cost = TRUSTS;
                    Box::pin(trusting(gateway, identity, &roots, &trouble)).await;
                    continue;
                }
                HubOutput::Clock(reading) => {
                    gateway.fleet.clock(identity.node, reading.into());
                    continue;
                }
                HubOutput::Outcome(word) => {
                    words.word(word, now())?;
                    continue;
                }
                HubOutput::Output(piece) => {
                    words.piece(piece)?;
                    continue;
                }
                HubOutput::Unsupported(what) => {
                    debug!(node = %identity.node, what, "the node is older and did not know a message");
                    relay.unsupported();
                    continue;
                }
                HubOutput::Over(reason) => return Err(Over::Node(Ended::Goodbye(reason))),
                HubOutput::Hello(_) => continue,
            };
            control.send(&answer).await?;
        }
        let wait = budget.spend(cost, Instant::now());
        rests_until = (!wait.is_zero()).then(|| tokio::time::Instant::now() + wait);
    }
}

/// The answer to a bridge that asks for its Kafka certificate; one that has asked too often is to `wait`.
async fn certify_for_kafka(
    gateway: &Gateway,
    identity: &NodeIdentity,
    control: &mut Control,
    (request, in_use): (&[u8], bool),
    wait: Duration,
) -> ToNode {
    let granted = if wait.is_zero() {
        gateway.enrollment.kafka(identity, request, in_use, now()).await
    } else {
        Err(Refusal {
            code: RefusalCode::Busy.into(),
            message: "this bridge asks for its Kafka certificate again and again; look at its log".into(),
            retry_after_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        })
    };
    let refusal = |refusal| KafkaGrant { refusal: Some(refusal), ..KafkaGrant::default() };
    control.machine.kafka(granted.unwrap_or_else(refusal))
}

/// The streams beside the control stream, in the order in which a node opens them.
async fn streams(
    gateway: &Gateway,
    connection: &Connection,
    identity: &NodeIdentity,
    session: SessionId,
    intakes: &mut Intakes,
) -> Over {
    let Ok((writer, reader)) = connection.accept(MAX_TELEMETRY).await else { return Over::Node(Ended::Lost) };
    let Intakes { telemetry, logs } = intakes;
    let logs = async {
        let shipped = match logs {
            // A node opens it before that of live logs, and says nothing on it until it has something.
            Some(intake) => match connection.accept(MAX_SHIPMENT).await {
                Ok(stream) => Some((stream, intake)),
                Err(_) => return Over::Node(Ended::Lost),
            },
            None => None,
        };
        let shipped = async {
            match shipped {
                Some(((writer, reader), intake)) => {
                    let over = Box::pin(take_in(writer, reader, &mut **intake, SHIPMENTS)).await;
                    if matches!(over, Over::Goodbye(_)) {
                        // Telemetry goes on meanwhile: what ails the logs may be theirs alone.
                        tokio::time::sleep(WITHOUT_LOGS).await;
                    }
                    over
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            over = shipped => over,
            over = take_logs(gateway, connection, identity, session) => over,
        }
    };
    tokio::select! {
        biased;
        over = take_in(writer, reader, telemetry, UPLOADS) => over,
        over = logs => over,
    }
}

/// A stream of numbered uploads: everything that has arrived is committed together, then acknowledged.
async fn take_in(mut writer: FrameWriter, mut reader: FrameReader, intake: &mut impl TakesIn, rate: Rate) -> Over {
    let mut budget = Budget::new(rate, Instant::now());
    loop {
        let mut taken = 0;
        let mut upload = match reader.recv::<Upload>().await {
            Ok(Some(upload)) => Some(upload),
            // Without uploads there is nothing to do here; the control stream says when the session ends.
            Ok(None) => std::future::pending().await,
            Err(error) => return broken(error),
        };
        while let Some(next) = upload.take() {
            if let Err(error) = intake.receive(next, now()) {
                return refused(error);
            }
            taken += 1;
            if intake.is_full() {
                break;
            }
            match reader.recv::<Upload>().now_or_never() {
                Some(Ok(next)) => upload = next,
                Some(Err(error)) => return broken(error),
                None => {}
            }
        }
        match Box::pin(intake.commit(now())).await {
            Ok(Some(acknowledge)) => {
                if let Err(error) = writer.send(&acknowledge).await {
                    return broken(error);
                }
            }
            Ok(None) => {}
            Err(error) => return refused(error),
        }
        let wait = budget.spend(taken, Instant::now());
        if !wait.is_zero() {
            // What is not read fills the stream's window, and the node waits.
            tokio::time::sleep(wait).await;
        }
    }
}

fn broken(error: StreamError) -> Over {
    match error {
        StreamError::Closed(_) | StreamError::Reset | StreamError::Stopped => Over::Node(Ended::Lost),
        error => Over::Close(CloseCode::Malformed, error.to_string()),
    }
}

fn refused(error: IngestError) -> Over {
    match error {
        error @ (IngestError::Delivery(_) | IngestError::Body { .. }) => {
            Over::Close(CloseCode::Malformed, error.to_string())
        }
        error => {
            warn!(%error, "what a node sent was not stored; it keeps it and comes back");
            Over::Goodbye("the hub can't store what nodes send right now; see the hub's log")
        }
    }
}

/// Tells the node, closes the connection, and says how the session ended.
async fn end(connection: &Connection, control: Control, over: Over) -> Ended {
    let Control { mut writer, mut machine, .. } = control;
    match over {
        Over::Node(ended) => {
            connection.close(CloseCode::Done, "");
            ended
        }
        Over::Close(code, reason) => {
            connection.close(code, &reason);
            Ended::Lost
        }
        Over::Goodbye(reason) => {
            // Spread, so that the nodes of a restarted hub do not all come back in the same second.
            let after = COME_BACK_WITHIN.mul_f64(rand::rng().random_range(0.1..1.0));
            let said = async {
                writer.send(&machine.goodbye(reason, Some(after))).await?;
                writer.finish().await?;
                writer.delivered().await
            };
            let _ = tokio::time::timeout(GOODBYE_DEADLINE, said).await;
            connection.close(CloseCode::Draining, reason);
            Ended::Lost
        }
    }
}

/// Why a connection did not become a session.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("the stream ended before a Hello")]
    Gone,
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Rules(#[from] SessionError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the hub can't open the node's telemetry right now; see the hub's log")]
    Ingest(#[from] IngestError),
}

impl Trouble {
    fn code(&self) -> CloseCode {
        match self {
            Self::Gone | Self::Stream(_) => CloseCode::Done,
            Self::Refused(_) => CloseCode::Refused,
            Self::Rules(SessionError::Deadline { .. }) => CloseCode::Timeout,
            Self::Rules(_) => CloseCode::Malformed,
            Self::Ingest(_) => CloseCode::Internal,
        }
    }
}

pub(super) fn now() -> Timestamp {
    SystemTime::now().into()
}
