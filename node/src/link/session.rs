//! One session, from the first stream to the goodbye.

use std::time::Duration;

use protocol::message::{Refusal, RefusalCode, SpoolRange, ToHub, ToNode, to_hub};
use protocol::session::{Held, NodeOutput, NodeSession, Welcomed};
use protocol::{Timestamp, frame, version};
use tokio::sync::mpsc;
use tokio::time::Instant;
use transport::{CloseCode, Closed, Connection, FrameReader, FrameWriter, StreamError};

use super::kafka::{self, Due, KafkaRenewal};
use super::logs::{self, Tails};
use super::renewal::Renewal;
use super::shipment::{self, Shipment};
use super::upload::{Stream, Upload};
use super::{Actor, LinkState, Trouble, TroubleKind, trust};
use crate::clock::Clock;
use crate::commands::{self, Input};
use crate::identity::Identity;

/// How long a shutdown waits for the hub to store what is in flight.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// How long a goodbye may take to reach the hub.
const GOODBYE_WITHIN: Duration = Duration::from_secs(1);

/// How an attempt ended.
pub(super) enum Ending {
    /// In order, because the process shuts down.
    Shutdown,
    /// With a renewed certificate: connect with it at once.
    Renewed(Box<Identity>),
    /// Not as it should.
    Trouble {
        /// Why.
        trouble: Trouble,
        /// What the hub asked for.
        retry_after: Option<Duration>,
        /// How long the session was up.
        lasted: Duration,
    },
}

/// Why one half of a session can't go on.
pub(super) struct Failure {
    pub(super) trouble: Trouble,
    pub(super) retry_after: Option<Duration>,
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self { trouble, retry_after: None }
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        of_stream(&error).into()
    }
}

/// The wall clock as it was when the session began, moved on by the monotonic one: a clock that is set meanwhile
/// does not disturb the session's deadlines.
#[derive(Clone, Copy)]
struct SteadyClock {
    wall: Timestamp,
    started: Instant,
}

impl SteadyClock {
    fn start(clock: &Clock) -> Self {
        Self { wall: clock.now(), started: Instant::now() }
    }

    fn now(self) -> Timestamp {
        self.wall.plus(self.started.elapsed())
    }

    fn instant(self, at: Timestamp) -> Instant {
        self.started + at.since(self.wall)
    }
}

/// The control stream and its state machine.
struct Control {
    machine: NodeSession,
    writer: FrameWriter,
    reader: FrameReader,
    clock: SteadyClock,
}

impl Actor {
    /// Holds a session over `connection` until it ends.
    pub(super) async fn session(&mut self, connection: Connection) -> Ending {
        let opened = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => {
                connection.close(CloseCode::Done, "the node is shutting down");
                return Ending::Shutdown;
            }
            opened = self.open(&connection) => opened,
        };
        let (mut control, welcomed, held) = match opened {
            Ok(opened) => opened,
            Err(failure) => {
                connection.close(CloseCode::Done, "");
                return ending(failure, Duration::ZERO);
            }
        };
        let up_since = Instant::now();
        self.came_up(&connection, &welcomed);

        let (mut stream, mut shipment) = match self.streams(&connection, &welcomed, held.logs).await {
            Ok(streams) => streams,
            Err(failure) => return ending(failure, Duration::ZERO),
        };
        let mut upload = Upload::new(self, held.telemetry, &welcomed);
        let mut renewal = Renewal::new(&self.options, &welcomed, self.renewed);
        let mut kafka = KafkaRenewal::begin(&self.options, welcomed.clock).await;
        let mut outbox = match &self.options.commands {
            Some(commands) => Some(commands.connect().await),
            None => None,
        };
        let (mut tails, mut log) = logs::tails(self.options.tails.clone());
        let ended = tokio::select! {
            biased;
            ended = self.control(&connection, &mut control, (&mut renewal, &mut kafka), &mut outbox, &mut tails) => {
                ended.map(Some)
            }
            ended = upload.run(&mut stream) => ended.map(|()| None),
            ended = shipment::run(&mut shipment) => ended.map(|()| None),
            () = log.run(&connection) => Ok(None),
            () = self.shut_down_and(DRAIN_WITHIN) => Ok(None),
        };
        self.options.identity = renewal.identity().0.clone();
        match ended {
            Ok(renewed) => {
                let reason = if renewed.is_some() { "certificate renewed" } else { "shutting down" };
                control.goodbye(&connection, reason).await;
                renewed.map_or(Ending::Shutdown, |identity| Ending::Renewed(Box::new(identity)))
            }
            Err(failure) => {
                connection.close(CloseCode::Done, "");
                ending(failure, up_since.elapsed())
            }
        }
    }

    /// Says Hello and waits for the Welcome.
    async fn open(&self, connection: &Connection) -> Result<(Control, Welcomed, Held), Failure> {
        let options = &self.options;
        let (mut writer, reader) = connection.open(frame::MAX_CONTROL).await.map_err(StreamError::Closed)?;
        let held = Held {
            telemetry: options.recorder.backlog().range(),
            logs: options.logs.as_ref().map(crate::Backlog::range),
        };
        let (clock, roots) = (SteadyClock::start(&options.clock), options.identity.root_pins());
        let (machine, hello) =
            NodeSession::open(version::SPOKEN, options.facts.clone(), options.process, held, &roots, clock.now());
        writer.send(&hello).await?;
        let mut control = Control { machine, writer, reader, clock };
        loop {
            for output in control.next().await? {
                match output {
                    NodeOutput::Welcomed(welcomed) => return Ok((control, welcomed, held)),
                    NodeOutput::Send(message) => control.writer.send(&message).await?,
                    NodeOutput::Refused(refusal) => return Err(of_refusal(&refusal)),
                    NodeOutput::Goodbye { reason, retry_after } => return Err(of_goodbye(&reason, retry_after)),
                    NodeOutput::Unsupported(text) => tracing::debug!(text, "the hub did not understand"),
                    NodeOutput::Renewed { .. }
                    | NodeOutput::RenewalAdvised { .. }
                    | NodeOutput::Trust(_)
                    | NodeOutput::RenewalRefused(_)
                    | NodeOutput::RenewalUnanswered
                    | NodeOutput::Kafka(_)
                    | NodeOutput::KafkaRefused(_)
                    | NodeOutput::KafkaUnanswered
                    | NodeOutput::KafkaNews(_)
                    | NodeOutput::Command(_)
                    | NodeOutput::Cancel(_)
                    | NodeOutput::OutcomeStored(_)
                    | NodeOutput::StartTail(_)
                    | NodeOutput::StopTail(_)
                    | NodeOutput::LiveUntil(_) => {}
                }
            }
        }
    }

    /// The streams for what is numbered, in the order in which the hub expects them.
    async fn streams(
        &self,
        connection: &Connection,
        welcomed: &Welcomed,
        logs: Option<SpoolRange>,
    ) -> Result<(Stream, Option<Shipment>), Failure> {
        let stream = Stream::open(connection).await?;
        let shipment = match (&self.options.logs, logs, welcomed.logs) {
            (Some(backlog), Some(range), Some(shipping)) => {
                Some(Shipment::open(connection, backlog.clone(), range, shipping).await?)
            }
            _ => None,
        };
        Ok((stream, shipment))
    }

    fn came_up(&self, connection: &Connection, welcomed: &Welcomed) {
        self.counters.session();
        self.options.recorder.clock_measured(welcomed.clock);
        self.status.send_modify(|status| status.clock = Some(welcomed.clock));
        self.publish(LinkState::Up {
            session: welcomed.session,
            remote: connection.remote_address(),
            hub_version: welcomed.hub_version.clone(),
        });
        tracing::info!(
            session = %welcomed.session,
            remote = %connection.remote_address(),
            hub = welcomed.hub_version,
            clock_offset_ms = welcomed.clock.offset_ms,
            "session up"
        );
    }

    /// Drives the control stream until the session ends; gives the new identity when the certificate was renewed.
    async fn control(
        &self,
        connection: &Connection,
        control: &mut Control,
        (renewal, kafka): (&mut Renewal, &mut Option<KafkaRenewal>),
        outbox: &mut Option<mpsc::Receiver<ToHub>>,
        tails: &mut Tails,
    ) -> Result<Identity, Failure> {
        loop {
            let outputs = tokio::select! {
                biased;
                outputs = control.next() => outputs?,
                message = next(outbox) => {
                    control.writer.send(&message).await?;
                    continue;
                }
                () = self.options.renew.notified() => {
                    renewal.now();
                    Vec::new()
                }
                () = renewal.due() => {
                    if let Some((request, sequence)) = renewal.request().await
                        && let Some(message) = control.machine.renew(request, sequence, control.clock.now())
                    {
                        control.writer.send(&message).await?;
                    }
                    Vec::new()
                }
                due = kafka::due(kafka) => {
                    if let Some(kafka) = kafka {
                        match due {
                            Due::Ask => {
                                if let Some((request, in_use)) = kafka.request().await
                                    && let Some(message) = control.machine.kafka(request, in_use, control.clock.now())
                                {
                                    control.writer.send(&message).await?;
                                }
                            }
                            Due::Tried(tried) => kafka.settle(*tried).await,
                        }
                    }
                    Vec::new()
                }
                () = self.options.endpoint.knocked() => {
                    // Anything will do: a hub that has forgotten this connection answers with its end.
                    let reading = self.status.borrow().clock;
                    let report = to_hub::Message::Clock(reading.map(Into::into).unwrap_or_default());
                    control.writer.send(&ToHub { message: Some(report) }).await?;
                    Vec::new()
                }
            };
            for output in outputs {
                match output {
                    NodeOutput::Send(message) => control.writer.send(&message).await?,
                    NodeOutput::Trust(wanted) => {
                        let (now, (identity, store)) = (self.options.clock.now(), renewal.identity());
                        let taken = trust::take(identity, store, wanted, &connection.peer_chain(), now).await;
                        let trouble = taken.err().map_or_else(String::new, |error| error.to_string());
                        if !trouble.is_empty() {
                            tracing::warn!("the fleet's roots stay as they were: {trouble}");
                        }
                        let report = control.machine.trusts(&identity.root_pins(), trouble);
                        control.writer.send(&report).await?;
                    }
                    NodeOutput::Renewed { certificate_chain, sequence, .. } => {
                        if let Some(identity) = renewal.accept(certificate_chain, sequence).await {
                            return Ok(identity);
                        }
                    }
                    NodeOutput::RenewalRefused(refusal) => renewal.refused(&refusal),
                    NodeOutput::RenewalUnanswered => renewal.unanswered(),
                    NodeOutput::Kafka(granted) => {
                        if let Some(kafka) = kafka {
                            kafka.granted(granted).await;
                        }
                    }
                    NodeOutput::KafkaRefused(refusal) => {
                        kafka.iter_mut().for_each(|kafka| kafka.refused(&refusal));
                    }
                    NodeOutput::KafkaUnanswered => kafka.iter_mut().for_each(KafkaRenewal::unanswered),
                    NodeOutput::KafkaNews(reason) => kafka.iter_mut().for_each(|kafka| kafka.news(&reason)),
                    NodeOutput::Command(order) => match &self.options.commands {
                        Some(commands) => commands.give(Input::Order(Box::new(order))).await,
                        None => control.writer.send(&commands::none(&order)).await?,
                    },
                    NodeOutput::Cancel(id) => {
                        if let Some(commands) = &self.options.commands {
                            commands.give(Input::Cancel(id)).await;
                        }
                    }
                    NodeOutput::OutcomeStored(id) => {
                        if let Some(commands) = &self.options.commands {
                            commands.give(Input::Stored(id)).await;
                        }
                    }
                    NodeOutput::StartTail(tail) => tails.start(tail),
                    NodeOutput::StopTail(id) => tails.stop(id),
                    NodeOutput::RenewalAdvised { renew_at, reason } => {
                        renewal.advised(renew_at);
                        tracing::info!(at = %renewal.at(), reason, "the hub advises to renew the certificate");
                    }
                    NodeOutput::LiveUntil(until) => {
                        self.options.recorder.live_for(until.since(control.clock.now()));
                    }
                    NodeOutput::Unsupported(text) => tracing::debug!(text, "the hub did not understand"),
                    NodeOutput::Goodbye { reason, retry_after } => return Err(of_goodbye(&reason, retry_after)),
                    NodeOutput::Refused(refusal) => return Err(of_refusal(&refusal)),
                    NodeOutput::Welcomed(_) => {}
                }
            }
            self.publish_renewal(renewal.at(), renewal.trouble());
        }
    }

    async fn shut_down_and(&self, grace: Duration) {
        self.shutdown.cancelled().await;
        tokio::time::sleep(grace).await;
    }
}

impl Control {
    /// What the next message, or the passing of a deadline, asks for. Cancel-safe.
    async fn next(&mut self) -> Result<Vec<NodeOutput>, Failure> {
        let deadline = self.machine.deadline().map(|at| self.clock.instant(at));
        let expired = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            message = self.reader.recv::<ToNode>() => {
                let message = message?.ok_or_else(|| Failure::from(broken("the hub ended the control stream")))?;
                self.machine.receive(message, self.clock.now()).map_err(|error| broken(&error.to_string()).into())
            }
            () = expired => match self.machine.tick(self.clock.now()) {
                Ok(output) => Ok(output.into_iter().collect()),
                Err(error) => Err(broken(&error.to_string()).into()),
            },
        }
    }

    async fn goodbye(mut self, connection: &Connection, reason: &str) {
        let goodbye = self.machine.goodbye(reason);
        let said = async {
            self.writer.send(&goodbye).await?;
            self.writer.finish().await?;
            self.writer.delivered().await
        };
        // A hub that does not take it finds out by the close, or by silence.
        let _ = tokio::time::timeout(GOODBYE_WITHIN, said).await;
        connection.close(CloseCode::Done, reason);
    }
}

/// The next message of the desk for commands, if there is one.
async fn next(outbox: &mut Option<mpsc::Receiver<ToHub>>) -> ToHub {
    if let Some(messages) = outbox
        && let Some(message) = messages.recv().await
    {
        return message;
    }
    // A desk ends before its link does.
    std::future::pending().await
}

fn ending(failure: Failure, lasted: Duration) -> Ending {
    Ending::Trouble { trouble: failure.trouble, retry_after: failure.retry_after, lasted }
}

fn broken(message: &str) -> Trouble {
    Trouble::new(TroubleKind::Broken, message)
}

pub(super) fn of_stream(error: &StreamError) -> Trouble {
    let StreamError::Closed(closed) = error else { return broken(&error.to_string()) };
    of_closed(closed)
}

pub(super) fn of_closed(closed: &Closed) -> Trouble {
    let text = || if closed.reason.is_empty() { closed.to_string() } else { closed.reason.clone() };
    match (closed.code, closed.by_peer) {
        (CloseCode::Displaced, true) => Trouble::new(
            TroubleKind::Displaced,
            "another process connected with this node's identity; stop one of the two, and enroll a copied machine \
             with a join token of its own",
        ),
        (CloseCode::Revoked, true) => Trouble::new(TroubleKind::Revoked, text()),
        (CloseCode::Refused, true) if closed.distrust.is_some() => Trouble::new(TroubleKind::Outdated, text()),
        (CloseCode::Draining, true) => Trouble::new(TroubleKind::Goodbye, text()),
        _ => Trouble::new(TroubleKind::Broken, closed.to_string()),
    }
}

pub(super) fn of_refusal(refusal: &Refusal) -> Failure {
    let kind = match refusal.code() {
        RefusalCode::Busy | RefusalCode::Internal => TroubleKind::Busy,
        RefusalCode::NodeRevoked | RefusalCode::NodeUnknown | RefusalCode::RecoveryOver => TroubleKind::Revoked,
        RefusalCode::CertificateReplaced => TroubleKind::Outdated,
        RefusalCode::CertificateUnknown => TroubleKind::Unissued,
        RefusalCode::NodeFrozen => TroubleKind::Frozen,
        _ => TroubleKind::Refused,
    };
    let message = match refusal.message.as_str() {
        "" => format!("the hub refused this node ({:?})", refusal.code()),
        message => format!("the hub refused this node: {message}"),
    };
    let retry_after = (refusal.retry_after_ms > 0).then(|| Duration::from_millis(refusal.retry_after_ms));
    Failure { trouble: Trouble { kind, message }, retry_after }
}

fn of_goodbye(reason: &str, retry_after: Option<Duration>) -> Failure {
    let message = format!("the hub said goodbye: {reason}");
    Failure { trouble: Trouble { kind: TroubleKind::Goodbye, message }, retry_after }
}
