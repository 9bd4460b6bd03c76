//! The node's desk for commands: takes them from the session, writes them down, has them carried out, tells what came of
//! them. It lives on between sessions.

mod journal;

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use protocol::command::{Action, Ending, NodeCommands, Order, Record, Step};
use protocol::message::{CommandState, ToHub};
use protocol::{CommandId, Timestamp};
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use journal::Journal;

pub use journal::JournalError;

/// Inputs waiting for the desk; over it, the session reads no further.
const INPUTS_BOUND: usize = 16;
/// Messages waiting for the session to send them; over it, they wait in the desk, which knows each once.
const OUTBOX_BOUND: usize = 8;
/// Pieces of output waiting for the desk; over it, whoever puts them out waits.
const OUTPUT_BOUND: usize = 8;
/// How long a stop waits for what is being carried out.
const STOP_WITHIN: Duration = Duration::from_secs(4);

/// Why the node's own policy does not allow a command; `Ok` when it does.
pub type Policy = Arc<dyn Fn(&Order) -> Result<(), String> + Send + Sync>;
/// Carries out a job.
pub type Work = Arc<dyn Fn(Job) -> Pin<Box<dyn Future<Output = Ending> + Send>> + Send + Sync>;

/// A command to carry out.
#[derive(Debug)]
pub struct Job {
    /// Which one.
    pub id: CommandId,
    /// What to do.
    pub action: Action,
    /// Cancelled when the hub wants it no more, or the node stops.
    pub stop: CancellationToken,
    /// Where its output goes.
    pub output: Output,
}

/// Takes a job's output; clones write to the same.
#[derive(Clone, Debug)]
pub struct Output {
    id: CommandId,
    pieces: mpsc::Sender<(CommandId, Vec<u8>)>,
}

impl Output {
    /// Puts out some bytes; waits when the desk is behind. What is more than the protocol's bound is counted and dropped.
    pub async fn write(&self, bytes: impl Into<Vec<u8>>) {
        // Fails only when the process goes down.
        let _ = self.pieces.send((self.id, bytes.into())).await;
    }
}

/// The desk's handle; cheap to clone.
#[derive(Clone)]
pub struct Commands(mpsc::Sender<Input>);

pub(crate) enum Input {
    Connected(mpsc::Sender<ToHub>),
    /// Boxed: it is large, and most inputs are not.
    Order(Box<Order>),
    Cancel(CommandId),
    Stored(CommandId),
}

impl Commands {
    /// Starts a desk in `tasks` that keeps its journal in `file`, or in memory when there is none. At `stop` it waits a few
    /// seconds for what is being carried out; what it then leaves is unknown at the next start.
    ///
    /// A journal that can't be read is no reason not to start: then nothing is carried out, every command is unknown, for it
    /// may have been carried out before, and says why.
    pub fn start(
        file: Option<PathBuf>,
        policy: Policy,
        work: Work,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (sender, inputs) = mpsc::channel(INPUTS_BOUND);
        let (pieces, output) = mpsc::channel(OUTPUT_BOUND);
        let opened = file.map_or_else(|| Ok((Journal::in_memory(), Vec::new())), Journal::open);
        let (journal, (machine, steps)) = match opened {
            Ok((journal, records)) => (journal, NodeCommands::restore(records)),
            Err(error) => {
                tracing::error!("no command is carried out: {error}");
                let why = format!("this node carries out nothing now, and may have done this before: {error}");
                (Journal::in_memory(), (NodeCommands::without_journal(why), Vec::new()))
            }
        };
        let desk = Desk {
            machine,
            journal: Some(journal),
            policy,
            work,
            inputs,
            output,
            pieces,
            outbox: None,
            message: None,
            jobs: JoinSet::new(),
            ids: HashMap::new(),
            stops: HashMap::new(),
            began: Instant::now(),
        };
        tasks.spawn(desk.run(steps, stop));
        Self(sender)
    }

    /// A session is up: what is to be told in it.
    pub(crate) async fn connect(&self) -> mpsc::Receiver<ToHub> {
        let (outbox, messages) = mpsc::channel(OUTBOX_BOUND);
        self.give(Input::Connected(outbox)).await;
        messages
    }

    pub(crate) async fn give(&self, input: Input) {
        // Fails only when the process goes down.
        let _ = self.0.send(input).await;
    }
}

/// The answer of a node that has no desk.
pub(crate) fn none(order: &Order) -> ToHub {
    let outcome = protocol::message::CommandOutcome {
        command_id: order.id.to_bytes().to_vec(),
        state: CommandState::Unsupported.into(),
        message: "this node carries out no commands".into(),
        ..Default::default()
    };
    protocol::message::to_hub::Message::Outcome(outcome).into()
}

struct Desk {
    machine: NodeCommands,
    /// Away only while it is written.
    journal: Option<Journal>,
    policy: Policy,
    work: Work,
    inputs: mpsc::Receiver<Input>,
    output: mpsc::Receiver<(CommandId, Vec<u8>)>,
    pieces: mpsc::Sender<(CommandId, Vec<u8>)>,
    outbox: Option<mpsc::Sender<ToHub>>,
    /// What is next to be told, when the outbox had no room for it.
    message: Option<ToHub>,
    jobs: JoinSet<Ending>,
    ids: HashMap<Id, CommandId>,
    stops: HashMap<CommandId, CancellationToken>,
    /// Deadlines count from here, on the monotonic clock.
    began: Instant,
}

impl Desk {
    async fn run(mut self, restored: Vec<Step>, stop: CancellationToken) {
        self.drive(restored).await;
        loop {
            self.tell();
            let deadline = self.machine.deadline();
            let due = deadline.map(|at| self.began + at.since(Timestamp::default()));
            let outbox = self.outbox.clone().filter(|_| self.message.is_some());
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = self.jobs.join_next_with_id() => {
                    self.drain_output();
                    let (task, ending) = match ended {
                        Ok((task, ending)) => (task, ending),
                        // It may have got anywhere.
                        Err(error) => (error.id(), Ending::new(CommandState::Unknown, "the agent broke down over it; see its log")),
                    };
                    if let Some(id) = self.ids.remove(&task) {
                        self.stops.remove(&id);
                        let steps = self.machine.ended(id, ending);
                        self.drive(steps).await;
                    }
                }
                Some((id, bytes)) = self.output.recv() => self.machine.output(id, &bytes),
                Some(input) = self.inputs.recv() => self.take(input).await,
                room = room(outbox) => if !room {
                    // The session has ended; the next one is told all anew.
                    (self.outbox, self.message) = (None, None);
                },
                () = at(due) => {}
            }
            self.start().await;
        }
        self.stop().await;
    }

    async fn take(&mut self, input: Input) {
        let steps = match input {
            Input::Connected(outbox) => {
                (self.outbox, self.message) = (Some(outbox), None);
                self.machine.connected();
                return;
            }
            Input::Order(order) => {
                let verdict = (self.policy)(&order);
                if let Err(why) = &verdict {
                    tracing::warn!(command = %order.id, action = %order.action.name(), "a command is refused: {why}");
                }
                self.machine.order(*order, verdict, self.now())
            }
            Input::Cancel(id) => self.machine.cancel(id),
            Input::Stored(id) => Ok(self.machine.stored(id)),
        };
        match steps {
            Ok(steps) => self.drive(steps).await,
            // It comes again in the next session, and the hub should know better then.
            Err(error) => tracing::warn!("a command is not taken: {error}"),
        }
    }

    async fn start(&mut self) {
        loop {
            // What was accepted is told before the next is written down.
            self.tell();
            let steps = self.machine.start(self.now());
            if steps.is_empty() {
                return;
            }
            self.drive(steps).await;
        }
    }

    /// Does the steps in their order; those after one that failed are left out.
    async fn drive(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Save(record) => {
                    let id = record.id;
                    if let Err(error) = self.save(record).await {
                        tracing::error!(command = %id, "{error}");
                        return self.machine.unsaved(id);
                    }
                }
                Step::Start { id, action } => {
                    tracing::info!(command = %id, "told by the hub to {action}");
                    let stop = CancellationToken::new();
                    self.stops.insert(id, stop.clone());
                    let output = Output { id, pieces: self.pieces.clone() };
                    let task = self.jobs.spawn((self.work)(Job { id, action, stop, output })).id();
                    self.ids.insert(task, id);
                }
                Step::Stop(id) => {
                    if let Some(stop) = self.stops.get(&id) {
                        stop.cancel();
                    }
                }
            }
        }
    }

    async fn save(&mut self, record: Record) -> Result<(), JournalError> {
        let Some(mut journal) = self.journal.take() else { return Err(JournalError::Lost) };
        let shorter = journal.is_long().then(|| self.machine.records());
        let written = tokio::task::spawn_blocking(move || {
            let mut written = journal.append(&record);
            if written.is_ok()
                && let Some(mut records) = shorter
            {
                // What is kept was gathered before this record was written.
                records.push(record);
                written = journal.replace(&records);
            }
            (journal, written)
        });
        let (journal, written) = written.await.map_err(|_| JournalError::Lost)?;
        self.journal = Some(journal);
        written
    }

    /// Tells the session as much as it takes at once.
    fn tell(&mut self) {
        let Some(outbox) = &self.outbox else { return };
        loop {
            let next = || self.machine.next_message().map(ToHub::from);
            let Some(message) = self.message.take().or_else(next) else { return };
            if let Err(error) = outbox.try_send(message) {
                self.message = Some(error.into_inner());
                return;
            }
        }
    }

    fn drain_output(&mut self) {
        while let Ok((id, bytes)) = self.output.try_recv() {
            self.machine.output(id, &bytes);
        }
    }

    async fn stop(&mut self) {
        // The hub has taken back the others.
        self.stops.retain(|_, stop| !stop.is_cancelled());
        self.stops.values().for_each(CancellationToken::cancel);
        let until = Instant::now() + STOP_WITHIN;
        while let Ok(Some(ended)) = tokio::time::timeout_at(until, self.ended_or_output()).await {
            let Ok((task, mut ending)) = ended else { continue };
            if let Some(id) = self.ids.remove(&task) {
                if ending.state == CommandState::Cancelled && self.stops.contains_key(&id) {
                    let why = format!("the node's process was stopped while this was under way: {}", ending.message);
                    ending = Ending::new(CommandState::Unknown, &why);
                }
                let steps = self.machine.ended(id, ending);
                self.drive(steps).await;
                self.tell();
            }
        }
        if self.machine.running() > 0 {
            tracing::warn!(
                commands = self.machine.running(),
                "stopping while commands are under way: they will be unknown"
            );
        }
    }

    /// The next job that ends; `None` when there is none. Output is taken meanwhile, or those who put it out would wait.
    async fn ended_or_output(&mut self) -> Option<Result<(Id, Ending), tokio::task::JoinError>> {
        loop {
            tokio::select! {
                biased;
                Some((id, bytes)) = self.output.recv() => self.machine.output(id, &bytes),
                ended = self.jobs.join_next_with_id() => return ended,
            }
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::default().plus(self.began.elapsed())
    }
}

/// Waits for room in the outbox; false when the session has ended.
async fn room(outbox: Option<mpsc::Sender<ToHub>>) -> bool {
    match outbox {
        Some(outbox) => outbox.reserve().await.is_ok(),
        None => std::future::pending().await,
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
