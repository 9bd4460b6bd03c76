//! Commands: rows before packets. What is ordered stands in the database before any node hears of it, and how it stands is
//! judged by rows alone, so the hub may be killed at any moment.

mod cancel;
mod clock;
mod expiry;
mod request;
mod said;
mod tally;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use protocol::command::{Action, Order, State};
use protocol::message::{CommandOutcome, CommandOutput};
use protocol::{CommandId, NodeId, TenantId, Timestamp, message};
use store::group::{GroupError, Limits, Submitter, group_commit};
use store::sqlx::{self, Row, any::AnyRow};
use store::{Database, StoreError};
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::gateway::Registry;

pub use cancel::{CancelError, TakenBack};
pub use clock::SteadyClock;
pub(crate) use request::Places;
pub use request::{NewRequest, RequestError, Requested, Signed};

use said::Word;
use writer::{Operation, Outcome, Writer};

/// Changes a slow reader may fall behind; beyond it, it looks again.
const CHANGES: usize = 1024;

/// The fleet's commands. Clones share them.
#[derive(Clone)]
pub struct Commands(Arc<Inner>);

struct Inner {
    database: Database,
    sessions: Arc<Registry>,
    clock: SteadyClock,
    writer: Submitter<Writer>,
    /// Requests that are being stored, what is being taken back, and keys that are being revoked.
    asking: TaskTracker,
    /// A deadline may have come nearer.
    sooner: Notify,
    changes: broadcast::Sender<NodeId>,
}

/// One command, as its row has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Which one.
    pub id: CommandId,
    /// The request it is part of.
    pub request: String,
    /// Whose node.
    pub tenant: TenantId,
    /// The node.
    pub node: NodeId,
    /// The action's name.
    pub name: String,
    /// What to do; `None` when a later version of the hub has stored it.
    pub action: Option<Action>,
    /// What is greater goes first.
    pub priority: u32,
    /// Why, as the requester says.
    pub reason: String,
    /// Who asked for it.
    pub requested_by: String,
    /// How it stands.
    pub state: State,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Until when it may start, by the wall clock as it is now.
    pub deadline: Timestamp,
    /// When it was handed to a session.
    pub delivered_at: Option<Timestamp>,
    /// When the node said that it began.
    pub started_at: Option<Timestamp>,
    /// When it came to its end, as far as the hub knows.
    pub ended_at: Option<Timestamp>,
    /// Who took it back.
    pub cancelled_by: Option<String>,
    /// The node has told the end: that stands. Without it, an end is the hub's own judgement.
    pub told: bool,
    /// Whether the node's own policy, or its version, did not allow it.
    pub refused: bool,
    /// What came of it, for a person.
    pub message: String,
    /// Bytes of its output.
    pub output_bytes: u64,
    /// Bytes of output that were too many.
    pub output_dropped: u64,
}

/// Which commands to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this tenant alone.
    pub tenant: Option<TenantId>,
    /// Of this node alone.
    pub node: Option<NodeId>,
    /// In this state alone.
    pub state: Option<State>,
    /// Of this request alone.
    pub request: Option<String>,
    /// Asked for before this one: a page further back.
    pub before: Option<String>,
    /// At most so many, and at most 1,000.
    pub limit: u32,
}

/// What a session is to tell its node.
#[derive(Debug)]
pub struct Due {
    /// Which command.
    pub id: CommandId,
    /// It was taken back.
    pub cancelled: bool,
    state: State,
    command: message::Command,
}

const COLUMNS: &str = "id, request, tenant, node, action, arguments, priority, reason, requested_by, state, created_at,
    deadline, delivered_at, started_at, ended_at, cancelled_by, told_at, refused, message, output_bytes, output_dropped";

impl Commands {
    /// Starts them: a handle, and the task that commits what sessions bring and watches deadlines until `stop`.
    pub fn start<C: Fn() -> Timestamp + Send + Sync + 'static>(
        database: Database,
        sessions: Arc<Registry>,
        clock: SteadyClock,
        now: C,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<C>) {
        // Of many at once, nobody has to wait long. A node that does at once what it was asked says that it begins and how it
        // ended one after the other: one commit does for both, and the next command need not wait for two.
        let limits =
            Limits { linger: Duration::from_millis(10), company: Duration::from_millis(10), ..Limits::default() };
        let (changes, _) = broadcast::channel(CHANGES);
        let (writer, committing) = group_commit(database.clone(), Writer::new(changes.clone()), limits, stop.clone());
        let (asking, sooner) = (TaskTracker::new(), Notify::new());
        let inner = Inner { database, sessions, clock, writer, asking: asking.clone(), sooner, changes };
        let commands = Self(Arc::new(inner));
        let watching = expiry::keep(commands.clone(), now, stop);
        (commands, async move {
            tokio::join!(committing, watching);
            asking.close();
            asking.wait().await;
        })
    }

    /// The clock that deadlines are of.
    pub(crate) fn clock(&self) -> &SteadyClock {
        &self.0.clock
    }

    /// The nodes whose commands change from now on.
    pub fn changes(&self) -> broadcast::Receiver<NodeId> {
        self.0.changes.subscribe()
    }

    /// Commands that match `filter`, newest first; `now` is the wall clock's time.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list(&self, filter: &Filter, now: Timestamp) -> Result<Vec<Command>, StoreError> {
        let tenant = filter.tenant.as_ref().map(TenantId::as_str);
        // What is asked for alone is written: SQLite uses no index for what may be empty. A node and a request are found by
        // theirs, and then it is seen whose they are.
        let found = filter.node.is_some() || filter.request.is_some();
        let asked = [
            (if found { "tenant || '' =" } else { "tenant =" }, tenant.map(str::to_owned)),
            ("node =", filter.node.map(|node| node.to_string())),
            ("state =", filter.state.map(|state| state.as_str().to_owned())),
            ("request =", filter.request.clone()),
            ("id <", filter.before.clone()),
        ];
        let (mut conditions, mut values) = (String::new(), Vec::new());
        for (condition, value) in asked {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                values.push(value);
                let word = if values.len() == 1 { "WHERE" } else { "AND" };
                conditions.push_str(&format!("{word} {condition} ${} ", values.len()));
            }
        }
        let limit = filter.limit.min(1000);
        let sql = format!("SELECT {COLUMNS} FROM commands {conditions}ORDER BY id DESC LIMIT {limit}");
        let query = values.into_iter().fold(sqlx::query(sqlx::AssertSqlSafe(sql)), |query, value| query.bind(value));
        let rows = query.fetch_all(&mut *self.0.database.within(tenant).read().await?).await?;
        let shift = self.shift(now);
        Ok(rows.iter().map(|row| read(row, shift)).collect::<Result<_, sqlx::Error>>()?)
    }

    /// One command; `None` when there is none, or not for this tenant.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn one(
        &self,
        id: CommandId,
        tenant: Option<&TenantId>,
        now: Timestamp,
    ) -> Result<Option<Command>, StoreError> {
        let tenant = tenant.map(TenantId::as_str);
        let sql = format!("SELECT {COLUMNS} FROM commands WHERE id = $1 AND ($2 = '' OR tenant = $2)");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.to_string())
            .bind(tenant.unwrap_or_default())
            .fetch_optional(&mut *self.0.database.within(tenant).read().await?)
            .await?;
        Ok(row.map(|row| read(&row, self.shift(now))).transpose()?)
    }

    /// What a command has put out so far.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn output(&self, command: &Command) -> Result<Vec<u8>, StoreError> {
        let rows = sqlx::query("SELECT data FROM command_outputs WHERE command = $1 ORDER BY start")
            .bind(command.id.to_string())
            .fetch_all(&mut *self.0.database.within(Some(command.tenant.as_str())).read().await?)
            .await?;
        let pieces: Vec<Vec<u8>> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        Ok(pieces.concat())
    }

    /// What a node is to be told, the most urgent first: at most `limit`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn due(&self, node: NodeId, limit: usize, now: Timestamp) -> Result<Vec<Due>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, action, arguments, priority, deadline, state, cancelled_by, signer, signature, signed_until
             FROM commands WHERE node = $1 AND told_at IS NULL AND state IN ('queued', 'delivered', 'running', 'unknown')
             ORDER BY (CASE WHEN cancelled_by IS NULL THEN 1 ELSE 0 END), priority DESC, id LIMIT $2",
        )
        .bind(node.to_string())
        .bind(limit as i64)
        .fetch_all(self.0.database.reader())
        .await?;
        let (shift, steady) = (self.shift(now), self.0.clock.now());
        let due = rows.iter().map(|row| {
            let id = command_id(&row.try_get::<String, _>(0)?)?;
            let deadline = Timestamp::from_millis(row.try_get(4)?);
            let mut command = Order::message(
                id,
                row.try_get::<String, _>(1)?,
                row.try_get(2)?,
                u32::try_from(row.try_get::<i64, _>(3)?).unwrap_or(0),
                (deadline, steady),
                Timestamp::from_millis(deadline.millis().saturating_add(shift)),
            );
            if let (Some(public_key), Some(signature), Some(not_after_ms)) =
                (row.try_get::<Option<_>, _>(7)?, row.try_get::<Option<_>, _>(8)?, row.try_get::<Option<_>, _>(9)?)
            {
                command.signature = Some(message::OperatorSignature { public_key, signature, not_after_ms });
            }
            let cancelled = row.try_get::<Option<String>, _>(6)?.is_some();
            Ok(Due { id, cancelled, state: state(&row.try_get::<String, _>(5)?)?, command })
        });
        Ok(due.collect::<Result<_, sqlx::Error>>()?)
    }

    /// Stores that these are handed to a session of `node`, and gives their messages; those that are no longer to be told are
    /// not among them.
    ///
    /// # Errors
    /// When it could not be stored; the node must not be told then.
    pub async fn deliver(
        &self,
        node: NodeId,
        due: Vec<Due>,
        now: Timestamp,
    ) -> Result<Vec<(CommandId, message::Command)>, GroupError> {
        let fresh: Vec<CommandId> = due.iter().filter(|due| due.state == State::Queued).map(|due| due.id).collect();
        let mut gone = Vec::new();
        if !fresh.is_empty() {
            // The row comes before the packet.
            match self.0.writer.submit(Operation::Delivered { node, ids: fresh, at: now }).await? {
                Outcome::Gone(ids) => gone = ids,
                Outcome::Stored => {}
            }
        }
        Ok(due.into_iter().filter(|due| !gone.contains(&due.id)).map(|due| (due.id, due.command)).collect())
    }

    /// Stores a node's word on a command. What the node says of a command that is not its own changes nothing.
    ///
    /// # Errors
    /// When it could not be stored; the node keeps it.
    pub async fn word(
        &self,
        node: NodeId,
        id: CommandId,
        word: CommandOutcome,
        now: Timestamp,
    ) -> Result<(), GroupError> {
        self.0.writer.submit(Operation::Word(Word { node, id, word, at: now })).await.map(drop)
    }

    /// Stores a piece of a command's output.
    ///
    /// # Errors
    /// When it could not be stored; the node keeps it.
    pub async fn piece(&self, node: NodeId, id: CommandId, piece: CommandOutput) -> Result<(), GroupError> {
        self.0.writer.submit(Operation::Output { node, id, piece }).await.map(drop)
    }

    /// Has sessions look that may not have heard of rows which are there: of a commit whose connection broke off before it was
    /// known, or whose task has ended with it, nobody was told.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn remind(&self) -> Result<(), StoreError> {
        let rows = sqlx::query(
            "SELECT DISTINCT node FROM commands
             WHERE told_at IS NULL AND state IN ('queued', 'delivered', 'running', 'unknown')
               AND (state IN ('queued', 'delivered') OR cancelled_by IS NOT NULL)",
        )
        .fetch_all(self.0.database.reader())
        .await?;
        for row in &rows {
            self.0.sessions.wake(row.try_get::<String, _>(0)?.parse().map_err(unreadable)?);
        }
        Ok(())
    }

    /// Does all of it, also when the caller goes away: in a task.
    pub(crate) async fn wholly<T, E>(&self, doing: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<sqlx::Error> + Send + 'static,
    {
        self.0.asking.spawn(doing).await.unwrap_or_else(|_| Err(sqlx::Error::WorkerCrashed.into()))
    }

    /// Has the node's session look, and whoever watches.
    fn changed(&self, node: NodeId) {
        self.told(node);
        self.0.sessions.wake(node);
    }

    /// Tells whoever watches.
    fn told(&self, node: NodeId) {
        // Nobody listening is fine.
        let _ = self.0.changes.send(node);
    }

    /// What the wall clock is ahead of the steady one, in ms: whole seconds, so that what is shown does not tremble.
    pub(crate) fn shift(&self, now: Timestamp) -> i64 {
        let ahead = now.millis().saturating_sub(self.0.clock.now().millis());
        ahead.saturating_add(500).div_euclid(1_000) * 1_000
    }
}

fn read(row: &AnyRow, shift: i64) -> Result<Command, sqlx::Error> {
    let time = |column: &str| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(Timestamp::from_millis));
    let count = |column: &str| Ok::<_, sqlx::Error>(row.try_get::<i64, _>(column)?.unsigned_abs());
    let deadline: i64 = row.try_get("deadline")?;
    Ok(Command {
        id: command_id(&row.try_get::<String, _>("id")?)?,
        request: row.try_get("request")?,
        tenant: row.try_get::<String, _>("tenant")?.parse().map_err(unreadable)?,
        node: row.try_get::<String, _>("node")?.parse().map_err(unreadable)?,
        name: row.try_get("action")?,
        action: Action::from_bytes(&row.try_get::<Vec<u8>, _>("arguments")?).ok(),
        priority: u32::try_from(row.try_get::<i64, _>("priority")?).unwrap_or(0),
        reason: row.try_get("reason")?,
        requested_by: row.try_get("requested_by")?,
        state: state(&row.try_get::<String, _>("state")?)?,
        created_at: Timestamp::from_millis(row.try_get("created_at")?),
        deadline: Timestamp::from_millis(deadline.saturating_add(shift)),
        delivered_at: time("delivered_at")?,
        started_at: time("started_at")?,
        ended_at: time("ended_at")?,
        cancelled_by: row.try_get("cancelled_by")?,
        told: time("told_at")?.is_some(),
        refused: row.try_get::<i64, _>("refused")? != 0,
        message: row.try_get("message")?,
        output_bytes: count("output_bytes")?,
        output_dropped: count("output_dropped")?,
    })
}

fn state(text: &str) -> Result<State, sqlx::Error> {
    text.parse().map_err(|error: protocol::command::StateError| sqlx::Error::Decode(error.into()))
}

fn command_id(text: &str) -> Result<CommandId, sqlx::Error> {
    text.parse().map_err(unreadable)
}

fn unreadable(error: protocol::id::IdError) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}

/// The database counts to 2^63 - 1.
fn clamped(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
