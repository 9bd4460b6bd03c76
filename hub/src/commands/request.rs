//! Asking for a command: for all the nodes that are meant, in one transaction with its audit record.

mod at_once;

use std::collections::HashMap;
use std::time::Duration;

use pki::OperatorPublicKey;
use protocol::command::{Action, LONGEST, Order, Signature, State};
use protocol::{CommandId, NodeId, TenantId, Timestamp, message};
use serde_json::{Value, json};
use store::sqlx::any::AnyRow;
use store::sqlx::{self, AssertSqlSafe, Row};
use store::{StoreError, Transaction};

use super::{Commands, command_id, unreadable};
use crate::audit::{self, Actor, Record, action};
use crate::gateway::Reserved;
use crate::reason::Reason;
use crate::rows::{self, Bound, Insert};

/// Most nodes of one request.
const MOST_NODES: usize = 10_000;
/// Most commands that may be open for one node: over it, requests are refused.
const MOST_OPEN: i64 = 500;
/// Shortest time to a deadline.
const SHORTEST: Duration = Duration::from_secs(1);
/// Nodes that an audit record names one by one; more are counted.
pub(super) const NAMED: usize = 20;
/// A deadline nearer than this is looked at sooner than others.
const NEAR: Duration = Duration::from_secs(30);
/// Ids that were made for a preview are signed and sent back within this.
const SIGNED_WITHIN: Duration = Duration::from_secs(1_800);

/// What somebody asks for.
#[derive(Clone, Debug)]
pub struct NewRequest {
    /// The nodes that are meant, and whose they are.
    pub nodes: Vec<(NodeId, TenantId)>,
    /// How they were chosen, for the audit log.
    pub target: Value,
    /// What to do.
    pub action: Action,
    /// What is greater goes first.
    pub priority: u32,
    /// For how long it may still start.
    pub valid_for: Duration,
    /// Why.
    pub reason: Reason,
    /// The only tenant the requester acts for.
    pub scope: Option<TenantId>,
    /// Who the requester is, for the key.
    pub caller: String,
    /// With the same key, the same request has one effect.
    pub key: Option<String>,
    /// What tells one request from another under the same key.
    pub fingerprint: Vec<u8>,
    /// An operator's signatures, one for each node.
    pub signed: Option<Signed>,
}

/// An operator's signatures on the commands of a request.
#[derive(Clone, Debug)]
pub struct Signed {
    /// By this key.
    pub key: OperatorPublicKey,
    /// Until when they count.
    pub not_after: Timestamp,
    /// The action as it was signed, byte for byte.
    pub arguments: Vec<u8>,
    /// For each node, the command's id and the signature.
    pub of: HashMap<NodeId, (CommandId, [u8; 64])>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requested {
    /// The request's id.
    pub id: String,
    /// Its commands, one for each node.
    pub commands: Vec<(CommandId, NodeId)>,
    /// It had been asked for before.
    pub replayed: bool,
}

/// A request that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody is meant.
    #[error("no node is meant: see who there is with `hfctl node list`")]
    Nobody,
    /// Too many are.
    #[error("{0} nodes are meant, and a request may be for {MOST_NODES}: narrow it down")]
    TooManyNodes(usize),
    /// The time makes no sense.
    #[error("a command is valid for 1 second to 30 days")]
    ValidFor,
    /// A node has too much to do already.
    #[error("{0} has {1} commands open already: wait for them, or cancel some")]
    Backlog(NodeId, i64),
    /// Nobody known has signed.
    #[error("the key {0} is not registered for these nodes, or was revoked: see `hfctl operator-key list`")]
    Signer(OperatorPublicKey),
    /// A signature is not good.
    #[error("the signature for {0} is missing, or not for this command: sign what a new preview shows")]
    Signature(NodeId),
    /// The key was used for something else.
    #[error("this Idempotency-Key was used for another request: use a new one")]
    Key,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for RequestError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// One command, about to be written.
struct Planned {
    id: CommandId,
    node: NodeId,
    tenant: TenantId,
    signature: Option<Vec<u8>>,
    /// There is a place in its session's queue.
    handed: bool,
}

/// Places in the queues of sessions, by node: their commands are written as handed over, and then are.
pub(crate) struct Places {
    /// When the request came, by the clock that deadlines are of.
    steady: Timestamp,
    by_node: HashMap<NodeId, Reserved>,
}

impl Places {
    /// No place anywhere: sessions look at the rows. `steady`: when the request came, by the clock that deadlines are of.
    pub(crate) fn none(steady: Timestamp) -> Self {
        Self { steady, by_node: HashMap::new() }
    }
}

impl Commands {
    /// An id for a command that may be made soon: what an operator signs.
    pub fn propose(&self) -> CommandId {
        CommandId::new(self.0.clock.now(), rand::random())
    }

    /// Asks for a command for each node that is meant. When this returns, the commands are stored; those whose nodes are
    /// in session are on their way.
    ///
    /// # Errors
    /// [`RequestError`]; nothing was stored then.
    pub async fn request(&self, new: NewRequest, actor: &Actor, now: Timestamp) -> Result<Requested, RequestError> {
        let (commands, actor) = (self.clone(), actor.clone());
        // What is stored as handed over must then be handed over.
        self.wholly(async move {
            let asked = commands.ask(&new, &actor, now).await;
            if let Err(RequestError::Store(_)) = asked {
                // It may be stored although the database has not said so.
                new.nodes.iter().for_each(|(node, _)| commands.changed(*node));
            }
            asked
        })
        .await
    }

    async fn ask(&self, new: &NewRequest, actor: &Actor, now: Timestamp) -> Result<Requested, RequestError> {
        let places = self.places(new);
        let database = self.0.database.within(new.scope.as_ref().map(TenantId::as_str));
        let requested = match at_once::write(&database, new, &places, actor, now).await? {
            Some(requested) => requested,
            None => {
                let mut transaction = database.begin_write().await?;
                if new.key.is_some() || new.signed.is_some() {
                    // Of two who come with one key at once, the second sees what the first has done; and who revokes the key
                    // that signed it sees this, or this sees that it is revoked.
                    audit::lock(&mut transaction).await?;
                }
                let (requested, records) = self.place(&mut transaction, new, &places, actor, now).await?;
                if !records.is_empty() {
                    audit::append_all(&mut transaction, now, records).await?;
                }
                transaction.commit().await?;
                requested
            }
        };
        self.placed(new, &requested, places, now);
        Ok(requested)
    }

    /// Places for its commands with the nodes that are in session here: one commit then does for the row and for its being
    /// handed over. Others, and those that have much to hear, get theirs when a session looks at the rows.
    pub(crate) fn places(&self, new: &NewRequest) -> Places {
        let reserve = |node: NodeId| Some((node, self.0.sessions.reserve(node)?));
        Places { by_node: new.nodes.iter().filter_map(|(node, _)| reserve(*node)).collect(), ..self.no_places() }
    }

    /// No place anywhere, for a request that comes now.
    pub(crate) fn no_places(&self) -> Places {
        Places::none(self.0.clock.now())
    }

    /// The same as part of a transaction, which is to end with the audit records that this gives. Once it has committed,
    /// [`Commands::placed`] sends them on their way.
    ///
    /// # Errors
    /// [`RequestError`]; but for one of the database's, nothing was written then.
    pub(crate) async fn place(
        &self,
        transaction: &mut Transaction,
        new: &NewRequest,
        places: &Places,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(Requested, Vec<Record>), RequestError> {
        // What was asked for before is told again, whether or not it could be asked for by now.
        if let Some(requested) = asked_before(transaction, new).await? {
            return Ok((requested, Vec::new()));
        }
        new.check()?;
        let steady = places.steady;
        let signer = match &new.signed {
            Some(signed) => Some(judge(transaction, new, signed, steady).await?),
            None => None,
        };
        let request = rows::uuid(now);
        // Most often nobody has too much to do, which the row's own statement sees.
        let span = new.span();
        if !write(transaction, &request, new, now, &span).await? {
            backlog(transaction, new, &span).await?;
            // It was one of the nodes between those that are meant.
            write(transaction, &request, new, now, &Span::default()).await?;
        }
        let commands = new.planned(places);
        let made = Made { request: &request, new, steady, actor, now };
        rows::write(transaction, COMMANDS, &commands, |query, row| made.bind(query, row)).await?;
        let records = records(new, &request, &commands, signer.as_deref(), actor);
        let commands = commands.into_iter().map(|row| (row.id, row.node)).collect();
        Ok((Requested { id: request, commands, replayed: false }, records))
    }

    /// Sends on their way what a committed transaction has placed.
    pub(crate) fn placed(&self, new: &NewRequest, requested: &Requested, mut places: Places, now: Timestamp) {
        for (id, node) in &requested.commands {
            match places.by_node.remove(node) {
                Some(place) if !requested.replayed => {
                    self.0.sessions.hand_over(place, self.message(new, *node, *id, places.steady, now));
                    self.told(*node);
                }
                _ => self.changed(*node),
            }
        }
        if new.valid_for < NEAR {
            self.0.sooner.notify_one();
        }
    }

    /// The message that carries a command which is just being made.
    fn message(
        &self,
        new: &NewRequest,
        node: NodeId,
        id: CommandId,
        asked: Timestamp,
        now: Timestamp,
    ) -> message::Command {
        let signed = new.signed.as_ref();
        let deadline = asked.plus(new.valid_for);
        let mut command = Order::message(
            id,
            new.action.name().as_str().to_owned(),
            signed.map_or_else(|| new.action.to_bytes(), |signed| signed.arguments.clone()),
            new.priority,
            (deadline, self.0.clock.now()),
            Timestamp::from_millis(deadline.millis().saturating_add(self.shift(now))),
        );
        command.signature = signed.and_then(|signed| {
            let (_, signature) = signed.of.get(&node)?;
            Some(message::OperatorSignature {
                public_key: signed.key.to_bytes().to_vec(),
                signature: signature.to_vec(),
                not_after_ms: signed.not_after.millis(),
            })
        });
        command
    }
}

const COMMANDS: Insert = Insert {
    into: "commands (id, request, tenant, node, action, arguments, priority, reason, requested_by, state, created_at, \
           delivered_at, deadline, signer, signature, signed_until)",
    columns: 16,
    on_conflict: "",
};

impl NewRequest {
    /// Whether it may be asked for at all.
    ///
    /// # Errors
    /// [`RequestError`], and never one of the database's.
    pub(crate) fn check(&self) -> Result<(), RequestError> {
        if self.nodes.is_empty() {
            return Err(RequestError::Nobody);
        }
        if self.nodes.len() > MOST_NODES {
            return Err(RequestError::TooManyNodes(self.nodes.len()));
        }
        if !(SHORTEST..=LONGEST).contains(&self.valid_for) {
            return Err(RequestError::ValidFor);
        }
        Ok(())
    }

    /// Its commands. Ids are in the order of their making, however the wall clock is set: nodes count on it.
    fn planned(&self, places: &Places) -> Vec<Planned> {
        let mut ids: Vec<CommandId> =
            self.nodes.iter().map(|_| CommandId::new(places.steady, rand::random())).collect();
        ids.sort_unstable();
        let planned = |(id, (node, tenant)): (CommandId, &(NodeId, TenantId))| {
            let signed = self.signed.as_ref().and_then(|signed| signed.of.get(node));
            let (id, signature) = signed.map_or((id, None), |(id, signature)| (*id, Some(signature.to_vec())));
            Planned { id, node: *node, tenant: tenant.clone(), signature, handed: places.by_node.contains_key(node) }
        };
        ids.into_iter().zip(&self.nodes).map(planned).collect()
    }

    /// From the first to the last of its nodes.
    fn span(&self) -> Span {
        let ids = || self.nodes.iter().map(|(node, _)| node.to_string());
        Span { first: ids().min().unwrap_or_default(), last: ids().max().unwrap_or_default() }
    }
}

/// What this caller asked for under this key before.
async fn asked_before(transaction: &mut Transaction, new: &NewRequest) -> Result<Option<Requested>, RequestError> {
    let Some(key) = &new.key else { return Ok(None) };
    let row = sqlx::query("SELECT id, fingerprint FROM command_requests WHERE caller = $1 AND idempotency_key = $2")
        .bind(&new.caller)
        .bind(key)
        .fetch_optional(&mut **transaction)
        .await?;
    let Some(row) = row else { return Ok(None) };
    if row.try_get::<Vec<u8>, _>(1)? != new.fingerprint {
        return Err(RequestError::Key);
    }
    let id: String = row.try_get(0)?;
    let rows = sqlx::query("SELECT id, node FROM commands WHERE request = $1 ORDER BY id")
        .bind(&id)
        .fetch_all(&mut **transaction)
        .await?;
    let command = |row: &AnyRow| {
        let node = row.try_get::<String, _>(1)?.parse().map_err(unreadable)?;
        Ok((command_id(&row.try_get::<String, _>(0)?)?, node))
    };
    let commands = rows.iter().map(command).collect::<Result<_, sqlx::Error>>()?;
    Ok(Some(Requested { id, commands, replayed: true }))
}

/// Refuses signatures that no node would take; gives whose they are. What they are worth, nodes judge by their own keys.
async fn judge(
    transaction: &mut Transaction,
    new: &NewRequest,
    signed: &Signed,
    steady: Timestamp,
) -> Result<String, RequestError> {
    let row = sqlx::query("SELECT name, tenant FROM operator_keys WHERE public_key = $1 AND revoked_at IS NULL")
        .bind(signed.key.to_bytes().to_vec())
        .fetch_optional(&mut **transaction)
        .await?;
    let row = row.ok_or(RequestError::Signer(signed.key))?;
    let tenant: Option<String> = row.try_get(1)?;
    let ours = |of: &TenantId| tenant.as_deref().is_none_or(|tenant| tenant == of.as_str());
    if !new.nodes.iter().all(|(_, tenant)| ours(tenant)) {
        return Err(RequestError::Signer(signed.key));
    }
    for (node, _) in &new.nodes {
        let bad = || RequestError::Signature(*node);
        let (id, signature) = signed.of.get(node).ok_or_else(bad)?;
        let message = Signature::message(*node, *id, &signed.arguments, signed.not_after);
        let made = id.made_at();
        let fresh = made <= steady && steady.since(made) <= SIGNED_WITHIN;
        if !fresh
            || Action::from_bytes(&signed.arguments).as_ref() != Ok(&new.action)
            || !signed.key.verifies(&message, signature)
        {
            return Err(bad());
        }
        let known = sqlx::query("SELECT 1 FROM commands WHERE id = $1").bind(id.to_string());
        if known.fetch_optional(&mut **transaction).await?.is_some() {
            return Err(bad());
        }
    }
    Ok(row.try_get(0)?)
}

/// What the rows of a request's commands have in common.
struct Made<'a> {
    request: &'a str,
    new: &'a NewRequest,
    steady: Timestamp,
    actor: &'a Actor,
    now: Timestamp,
}

impl Made<'_> {
    /// Binds what [`COMMANDS`] takes.
    fn bind<'q>(&self, query: Bound<'q>, row: &Planned) -> Bound<'q> {
        let (new, signed) = (self.new, self.new.signed.as_ref());
        query
            .bind(row.id.to_string())
            .bind(self.request.to_owned())
            .bind(row.tenant.to_string())
            .bind(row.node.to_string())
            .bind(new.action.name().as_str())
            .bind(signed.map_or_else(|| new.action.to_bytes(), |signed| signed.arguments.clone()))
            .bind(i64::from(new.priority))
            .bind(new.reason.to_string())
            .bind(self.actor.to_string())
            .bind(if row.handed { State::Delivered } else { State::Queued }.as_str())
            .bind(self.now.millis())
            .bind(row.handed.then_some(self.now.millis()))
            .bind(self.steady.plus(new.valid_for).millis())
            .bind(signed.map(|signed| signed.key.to_bytes().to_vec()))
            .bind(row.signature.clone())
            .bind(signed.map(|signed| signed.not_after.millis()))
    }
}

/// Nodes from the first to the last; by itself, none.
#[derive(Default)]
struct Span {
    first: String,
    last: String,
}

impl Span {
    /// Gives its nodes that have too much to do; `$first` and so on are what [`Span::bind`] binds.
    fn full(first: usize) -> String {
        let (last, most) = (first + 1, first + 2);
        format!(
            "SELECT node, COUNT(*) FROM commands
             WHERE told_at IS NULL AND state IN ('queued', 'delivered', 'running', 'unknown')
               AND node >= ${first} AND node <= ${last}
             GROUP BY node HAVING COUNT(*) >= ${most}"
        )
    }

    fn bind<'q>(&self, query: Bound<'q>) -> Bound<'q> {
        query.bind(self.first.clone()).bind(self.last.clone()).bind(MOST_OPEN)
    }
}

/// A request's row.
const REQUEST: Insert = Insert {
    into: "command_requests (id, tenant, caller, idempotency_key, fingerprint, created_at)",
    columns: 6,
    on_conflict: "",
};

/// Binds what [`REQUEST`] takes.
fn bind_request<'q>(query: Bound<'q>, id: &str, new: &NewRequest, now: Timestamp) -> Bound<'q> {
    query
        .bind(id.to_owned())
        .bind(new.scope.as_ref().map(ToString::to_string))
        .bind(new.caller.clone())
        .bind(new.key.clone())
        .bind(new.fingerprint.clone())
        .bind(now.millis())
}

/// Writes the request's row, unless a node of `span` has too much to do; says whether it did.
async fn write(
    transaction: &mut Transaction,
    id: &str,
    new: &NewRequest,
    now: Timestamp,
    span: &Span,
) -> Result<bool, StoreError> {
    let (values, full) = (rows::placeholders_from(1, REQUEST.columns), Span::full(REQUEST.columns + 1));
    let sql = format!("INSERT INTO {} SELECT {values} WHERE NOT EXISTS ({full})", REQUEST.into);
    let query = span.bind(bind_request(sqlx::query(AssertSqlSafe(sql)), id, new, now));
    Ok(query.execute(&mut **transaction).await?.rows_affected() == 1)
}

/// Refuses to pile up what a node will not get through.
async fn backlog(transaction: &mut Transaction, new: &NewRequest, span: &Span) -> Result<(), RequestError> {
    let rows = span.bind(sqlx::query(AssertSqlSafe(Span::full(1)))).fetch_all(&mut **transaction).await?;
    let full = rows.iter().map(|row| Ok((row.try_get::<String, _>(0)?, row.try_get::<i64, _>(1)?)));
    let full: HashMap<String, i64> = full.collect::<Result<_, sqlx::Error>>()?;
    let refused = new.nodes.iter().find_map(|(node, _)| Some((*node, *full.get(&node.to_string())?)));
    refused.map_or(Ok(()), |(node, count)| Err(RequestError::Backlog(node, count)))
}

/// One record for each tenant, so that each finds in its own log what was asked of its nodes.
fn records(new: &NewRequest, request: &str, commands: &[Planned], signer: Option<&str>, actor: &Actor) -> Vec<Record> {
    let mut tenants: Vec<&TenantId> = commands.iter().map(|row| &row.tenant).collect();
    tenants.sort();
    tenants.dedup();
    let record = |tenant: &TenantId| {
        let ours: Vec<&Planned> = commands.iter().filter(|row| row.tenant == *tenant).collect();
        // Of a few, each is named; of many, the request leads to them.
        let named: Vec<Value> = ours
            .iter()
            .take(NAMED)
            .map(|row| json!({ "command": row.id.to_string(), "node": row.node.to_string() }))
            .collect();
        Record {
            actor: actor.clone(),
            action: action::COMMAND_REQUESTED,
            tenant: Some(tenant.clone()),
            subject: request.to_owned(),
            detail: json!({
                "action": new.action.name().as_str(),
                "what": new.action.to_string(),
                "why": new.reason.as_str(),
                "target": new.target,
                "nodes": ours.len(),
                "commands": named,
                "valid_for_seconds": new.valid_for.as_secs(),
                "signed_by": signer,
            }),
            remote: None,
        }
    };
    tenants.into_iter().map(record).collect()
}
