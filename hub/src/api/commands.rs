//! `/api/v1/commands`: what nodes are to do, and what came of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64;
use pki::OperatorKeyError;
use protocol::command::{Action, ActionError};
use protocol::{CommandId, NodeId, TenantId, Timestamp};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::extract::{Caller, Json, Path, Query};
use super::idempotency::{IdempotencyKey, REPLAYED};
use super::list::{Paging, bad_cursor};
use super::meant::{as_seen, digest_of, ids};
use super::nodes::unknown;
use super::problem::Problem;
use super::resource::{Command, CommandDetail, CommandState, Kind, Node, Ordered, OrderedCommand, Page, PresenceState};
use super::select::NodeQuery;
use crate::access::{Principal, Role};
use crate::commands::{self, NewRequest, RequestError, Requested, Signed};
use crate::labels::{self, Label};
use crate::reason::Reason;
use crate::web::App;

/// How long a command may still start when nothing is asked for.
const VALID_FOR: u64 = 3_600;

/// What to do, and on which nodes. Takes the role operator.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommandRequest {
    /// `service.start`, `service.stop`, `service.restart`, `service.logs`, `diagnostics`, `telemetry.interval`,
    /// `certificate.renew`, `drain`, `backup` or `script`.
    pub(crate) action: String,
    /// The Compose project: for `service.…` and `backup`.
    pub(crate) stack: Option<String>,
    /// The service: for `service.…`.
    pub(crate) service: Option<String>,
    /// How many lines: for `service.logs`, 1 to 10,000 and 100 unless told otherwise.
    pub(crate) lines: Option<u32>,
    /// For `telemetry.interval`: 100 to 3,600,000.
    pub(crate) interval_ms: Option<u64>,
    /// The script's name: for `script`.
    pub(crate) script: Option<String>,
    /// Which nodes.
    pub(crate) target: Target,
    /// Why, for the audit log and whoever looks later: one line of 1 to 500 characters.
    #[serde(default)]
    #[schema(required = true, min_length = 1, max_length = 500)]
    pub(crate) reason: String,
    /// For how long it may still start: 1 to 2,592,000, and an hour unless told otherwise.
    pub(crate) valid_for_seconds: Option<u64>,
    /// What is greater goes first; 0 unless told otherwise.
    #[serde(default)]
    pub(crate) priority: u32,
    /// The `digest` of a preview: when other nodes are meant by now, or in other waves, nothing is done (409).
    pub(crate) expected: Option<String>,
    /// An operator's signatures, for nodes that ask for one.
    pub(crate) signed: Option<SignedRequest>,
}

/// An operator's signatures on the commands of a request: see OperatorSignature in hyperfactory.proto.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignedRequest {
    /// The public key: `hfop_…`.
    key: String,
    /// Until when they count, in ms since the Unix epoch.
    not_after_ms: i64,
    /// The encoded Action that was signed, in base64.
    arguments: String,
    /// One for each node that is meant: some 250 fit in a request's body, which has at most 64 KiB.
    commands: Vec<SignedCommand>,
}

/// One node's.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignedCommand {
    /// The node's id.
    node: String,
    /// The command's id, from a preview of less than half an hour ago.
    id: String,
    /// 64 bytes in base64.
    signature: String,
}

impl SignedRequest {
    fn read(&self) -> Result<Signed, Problem> {
        let bytes = |what: &str, text: &str| {
            let decoded = BASE64.decode(text.as_bytes());
            decoded.map_err(|_| Problem::invalid(format!("signed: {what} is not base64.")))
        };
        let mut of = HashMap::with_capacity(self.commands.len());
        for command in &self.commands {
            let unreadable = |error: protocol::id::IdError| Problem::invalid(error.to_string());
            let signature = bytes("a signature", &command.signature)?;
            let signature = signature.try_into().map_err(|_| Problem::invalid("A signature has 64 bytes."))?;
            let node = command.node.parse().map_err(unreadable)?;
            of.insert(node, (command.id.parse().map_err(unreadable)?, signature));
        }
        Ok(Signed {
            key: self.key.parse().map_err(|error: OperatorKeyError| Problem::invalid(error.to_string()))?,
            not_after: Timestamp::from_millis(self.not_after_ms),
            arguments: bytes("arguments", &self.arguments)?,
            of,
        })
    }
}

/// Which nodes are meant: those that are named, or the agents that match all that is given.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Target {
    /// These, by id.
    #[serde(default)]
    pub(crate) nodes: Vec<String>,
    /// All of this tenant.
    pub(crate) tenant: Option<String>,
    /// All that have each of these labels: `ring=canary`.
    #[serde(default)]
    pub(crate) labels: Vec<String>,
    /// All whose name, host name, tenant or id holds this text.
    pub(crate) query: Option<String>,
    /// All of the fleet, as far as the caller sees it.
    #[serde(default)]
    pub(crate) all: bool,
}

/// Which commands.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Only this tenant's.
    tenant: Option<String>,
    /// Only this node's.
    node: Option<String>,
    /// Only those that stand so.
    state: Option<CommandState>,
    /// Only those of this request.
    request: Option<String>,
}

/// Who would be meant. Nothing is done. Takes the role operator.
#[utoipa::path(post, path = "/api/v1/commands/preview", tag = "commands", request_body = CommandRequest, responses(
    (status = 200, body = Ordered),
))]
pub(crate) async fn preview(
    State(app): State<App>,
    caller: Caller,
    Json(asked): Json<CommandRequest>,
) -> Result<axum::Json<Ordered>, Problem> {
    caller.require(Role::Operator)?;
    let (action, nodes) = (asked.action()?, asked.target.nodes(&app, &caller.0).await?);
    asked.reason.parse::<Reason>()?;
    let commands = nodes.iter().map(|node| ordered(node, app.state.commands.propose())).collect::<Vec<_>>();
    let digest = Some(digest_of([ids(&nodes)]));
    Ok(axum::Json(Ordered { request: None, what: action.to_string(), nodes: commands.len(), digest, commands }))
}

/// Has nodes do something. The commands are stored when the answer comes; a node that is away gets its own when it is back,
/// until the deadline. With an Idempotency-Key, the same request has one effect, for as long as commands are kept. Takes the
/// role operator.
#[utoipa::path(post, path = "/api/v1/commands", tag = "commands", request_body = CommandRequest,
    params(("Idempotency-Key" = Option<String>, Header)), responses(
    (status = 201, body = Ordered),
))]
pub(crate) async fn request(
    State(app): State<App>,
    caller: Caller,
    key: IdempotencyKey,
    Json(asked): Json<CommandRequest>,
) -> Result<Response, Problem> {
    caller.require(Role::Operator)?;
    let (ordered, replayed) = order(&app, &caller.0, &asked, key.into_inner()).await?;
    let mut response = (StatusCode::CREATED, axum::Json(ordered)).into_response();
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Commands, newest first.
#[utoipa::path(get, path = "/api/v1/commands", tag = "commands", params(Which, Paging), responses(
    (status = 200, body = Page<Command>),
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(which): Query<Which>,
    Query(paging): Query<Paging>,
) -> Result<axum::Json<Page<Command>>, Problem> {
    let limit = paging.limit()?;
    let before = paging.after_id()?;
    if before.as_ref().is_some_and(|id| id.parse::<CommandId>().is_err()) {
        return Err(bad_cursor());
    }
    let node = which.node.as_deref().map(str::parse::<NodeId>).transpose();
    let filter = commands::Filter {
        tenant: caller.scope(&app, which.tenant.as_deref()).await?,
        node: node.map_err(|error| Problem::invalid(error.to_string()))?,
        state: which.state.map(Into::into),
        request: which.request,
        before,
        limit: limit + 1,
    };
    let mut items = resources(&app, &caller.0, app.state.commands.list(&filter, app.now()).await?);
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    let next_cursor = items.last().filter(|_| more).map(|last| super::list::cursor(&last.id));
    Ok(axum::Json(Page { items, next_cursor }))
}

/// One command with what it put out so far.
#[utoipa::path(get, path = "/api/v1/commands/{command}", tag = "commands", params(("command" = String, Path)), responses(
    (status = 200, body = CommandDetail),
))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<CommandId>,
) -> Result<axum::Json<CommandDetail>, Problem> {
    Ok(axum::Json(detail(&app, &caller.0, id).await?))
}

/// Why a command, or all of a request, is taken back.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cancellation {
    /// For the audit log: one line of 1 to 500 characters.
    #[serde(default)]
    #[schema(required = true, min_length = 1, max_length = 500)]
    pub(super) reason: String,
}

/// Takes a command back. One whose node has not been told is cancelled at once; of another, the node says what came of it:
/// it may have been done already. Doing it twice changes nothing. Takes the role operator.
#[utoipa::path(post, path = "/api/v1/commands/{command}/cancel", tag = "commands", params(("command" = String, Path)),
    request_body = Cancellation, responses(
    (status = 200, body = Command),
))]
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<CommandId>,
    Json(asked): Json<Cancellation>,
) -> Result<axum::Json<Command>, Problem> {
    caller.require(Role::Operator)?;
    let (commands, tenant) = (&app.state.commands, caller.0.tenant.as_ref());
    let command = commands.cancel(id, tenant, &asked.reason.parse()?, &caller.actor(), app.now()).await?;
    Ok(axum::Json(resource(&app, &caller.0, command)))
}

/// Has nodes do what is asked, for whoever may; says whether it had been asked for before.
pub(crate) async fn order(
    app: &App,
    who: &Principal,
    asked: &CommandRequest,
    key: Option<String>,
) -> Result<(Ordered, bool), Problem> {
    let action = asked.action()?;
    let (nodes, refused) = unless_done(asked.nodes(app, who).await, key.as_deref())?;
    let fingerprint = serde_json::to_vec(asked).map_err(|error| Problem::internal(&error))?;
    let new = NewRequest {
        nodes: nodes.iter().map(|node| meant(node)).collect::<Result<_, Problem>>()?,
        target: json!(asked.target),
        priority: asked.priority,
        valid_for: asked.valid_for(),
        reason: asked.reason.parse()?,
        scope: who.tenant.clone(),
        caller: who.token.clone().unwrap_or_else(|| who.name.clone()),
        key,
        fingerprint: digest(&SHA256, &fingerprint).as_ref().to_vec(),
        signed: asked.signed.as_ref().map(SignedRequest::read).transpose()?,
        action,
    };
    let what = new.action.to_string();
    let requested = app.state.commands.request(new, &who.actor(), app.now()).await;
    let Requested { id, commands, replayed } = requested.map_err(|error| match (error, refused) {
        (RequestError::Nobody, Some(refused)) => refused,
        (error, _) => error.into(),
    })?;
    let commands: Vec<OrderedCommand> = commands
        .into_iter()
        .map(|(id, node)| match app.roster.node(who, node) {
            Some((node, _)) => ordered(&node, id),
            // Removed since it was asked for the first time.
            None => OrderedCommand {
                id: id.to_string(),
                node: node.to_string(),
                name: String::new(),
                tenant: String::new(),
                online: false,
            },
        })
        .collect();
    Ok((Ordered { request: Some(id), what, nodes: commands.len(), digest: None, commands }, replayed))
}

/// Who is meant. What is refused by now may have been done under `key` when it was asked for first: then nobody is meant, which
/// is refused in the end unless the rows say that it was.
pub(super) fn unless_done<T>(
    meant: Result<Vec<T>, Problem>,
    key: Option<&str>,
) -> Result<(Vec<T>, Option<Problem>), Problem> {
    match meant {
        Ok(meant) => Ok((meant, None)),
        Err(refused) if key.is_some() => Ok((Vec::new(), Some(refused))),
        Err(refused) => Err(refused),
    }
}

/// One command with its output, if it is there for `who`.
pub(crate) async fn detail(app: &App, who: &Principal, id: CommandId) -> Result<CommandDetail, Problem> {
    let found = app.state.commands.one(id, who.tenant.as_ref(), app.now()).await?;
    let command = found.ok_or_else(|| Problem::not_found(commands::CancelError::Unknown(id).to_string()))?;
    let output = String::from_utf8_lossy(&app.state.commands.output(&command).await?).into_owned();
    Ok(CommandDetail { command: resource(app, who, command), output })
}

/// Commands as they are shown.
pub(crate) fn resources(app: &App, who: &Principal, commands: Vec<commands::Command>) -> Vec<Command> {
    commands.into_iter().map(|command| resource(app, who, command)).collect()
}

fn resource(app: &App, who: &Principal, command: commands::Command) -> Command {
    let name = app.roster.node(who, command.node).map(|(node, _)| node.name.clone());
    Command::of(command, name)
}

fn ordered(node: &Node, id: CommandId) -> OrderedCommand {
    OrderedCommand {
        id: id.to_string(),
        node: node.id.clone(),
        name: node.name.clone(),
        tenant: node.tenant.clone(),
        online: node.presence.state == PresenceState::Online,
    }
}

pub(super) fn meant(node: &Node) -> Result<(NodeId, TenantId), Problem> {
    let unreadable = |error: protocol::id::IdError| Problem::internal(&error);
    Ok((node.id.parse().map_err(unreadable)?, node.tenant.parse().map_err(unreadable)?))
}

impl CommandRequest {
    /// The nodes that are meant, as they were seen.
    async fn nodes(&self, app: &App, who: &Principal) -> Result<Vec<Arc<Node>>, Problem> {
        let nodes = self.target.nodes(app, who).await?;
        as_seen(self.expected.as_deref(), &digest_of([ids(&nodes)]))?;
        Ok(nodes)
    }

    /// For how long it may still start.
    pub(crate) fn valid_for(&self) -> Duration {
        Duration::from_secs(self.valid_for_seconds.unwrap_or(VALID_FOR))
    }

    /// What to do, as nodes take it.
    pub(crate) fn action(&self) -> Result<Action, Problem> {
        let text = |name: &str, value: &Option<String>| {
            let value = value.clone().filter(|value| !value.is_empty());
            value.ok_or_else(|| Problem::invalid(format!("{} takes {name}.", self.action)))
        };
        let name = self.action.parse().map_err(|_: ActionError| {
            let known = protocol::command::Name::ALL.map(protocol::command::Name::as_str).join(", ");
            Problem::invalid(format!("There is no action {:?}: use {known}.", shown(&self.action)))
        })?;
        let target = || Ok::<_, Problem>((text("stack", &self.stack)?, text("service", &self.service)?));
        use protocol::command::Name;
        let action = match name {
            Name::ServiceStart => target().map(|(stack, service)| Action::ServiceStart { stack, service })?,
            Name::ServiceStop => target().map(|(stack, service)| Action::ServiceStop { stack, service })?,
            Name::ServiceRestart => target().map(|(stack, service)| Action::ServiceRestart { stack, service })?,
            Name::ServiceLogs => {
                let (stack, service) = target()?;
                Action::ServiceLogs { stack, service, lines: self.lines.unwrap_or(100) }
            }
            Name::Diagnostics => Action::Diagnostics,
            Name::TelemetryInterval => {
                let millis =
                    self.interval_ms.ok_or_else(|| Problem::invalid("telemetry.interval takes interval_ms."))?;
                Action::TelemetryInterval { interval: Duration::from_millis(millis) }
            }
            Name::RenewCertificate => Action::RenewCertificate,
            Name::Drain => Action::Drain,
            Name::Backup => Action::Backup { stack: text("stack", &self.stack)? },
            Name::Script => Action::Script { name: text("script", &self.script)? },
            Name::KafkaAcl => {
                let said = "kafka.acl is the hub's own: say what a bridge may write to with `hfctl kafka allow`.";
                return Err(Problem::invalid(said));
            }
        };
        action.checked().map_err(|error| Problem::invalid(format!("{}: {error}.", self.action)))
    }
}

impl Target {
    /// The nodes that are meant, by tenant and name.
    pub(crate) async fn nodes(&self, app: &App, who: &Principal) -> Result<Vec<Arc<Node>>, Problem> {
        let filters = self.tenant.is_some() || !self.labels.is_empty() || self.query.is_some() || self.all;
        if self.nodes.is_empty() != filters {
            return Err(Problem::invalid(
                "target names nodes, or gives a tenant, labels, a query or \"all\": one of the two, and not neither.",
            ));
        }
        if filters {
            let tenant = self.tenant.as_deref().map(str::parse::<TenantId>).transpose();
            let tenant = tenant.map_err(|error| Problem::invalid(error.to_string()))?;
            if let Some(tenant) = &tenant {
                super::extract::require_tenant(who, tenant)?;
                app.state.tenants.within(who.tenant.as_ref()).get(tenant).await?;
            }
            let query = NodeQuery { kind: Some(Kind::Agent), q: self.query.clone(), ..NodeQuery::default() };
            let mut nodes = app.roster.of(who, tenant.as_ref());
            nodes.retain(|node| node.revoked_at.is_none() && query.holds(node));
            if !self.labels.is_empty() {
                let wanted = self.labels.iter().map(|label| label.parse::<Label>()).collect::<Result<Vec<_>, _>>()?;
                let labelled = labels::nodes(&app.state.database, who.tenant.as_ref(), &wanted).await?;
                nodes.retain(|node| node.id.parse().is_ok_and(|id| labelled.contains(&id)));
            }
            return Ok(nodes);
        }
        let mut nodes: Vec<Arc<Node>> = Vec::with_capacity(self.nodes.len());
        for text in &self.nodes {
            let id: NodeId =
                text.parse().map_err(|error: protocol::id::IdError| Problem::invalid(error.to_string()))?;
            let (node, _) = app.roster.node(who, id).ok_or_else(|| unknown(id))?;
            if node.revoked_at.is_some() {
                return Err(Problem::conflict(format!("{} is revoked: it carries out nothing any more.", node.name)));
            }
            if node.kind == Kind::Bridge {
                return Err(Problem::conflict(format!(
                    "{} is a bridge, and carries out nothing: only agents do.",
                    node.name
                )));
            }
            if !nodes.iter().any(|known| known.id == node.id) {
                nodes.push(node);
            }
        }
        Ok(nodes)
    }
}

/// At most 64 characters of what was sent.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}
