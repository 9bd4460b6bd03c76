//! `/api/v1/rollouts`: the same command over many nodes, in waves.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use protocol::{NodeId, Timestamp};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::commands::{CommandRequest, meant, unless_done};
use super::extract::{Caller, Json, Path, Query};
use super::idempotency::IdempotencyKey;
use super::list::{Paging, slice};
use super::meant::{as_seen, digest_of, ids};
use super::problem::Problem;
use super::resource::{Node, Page, PresenceState, Rollout, RolloutNode, RolloutPreview, Time, Wave, WavePreview};
use crate::access::{Principal, Role};
use crate::commands::{NewRequest, RequestError};
use crate::labels;
use crate::reason::Reason;
use crate::rollouts::{self, Act, Limits, Moment, NewRollout, Participant, RolloutError, Verb, Waiting, Waves, Window};
use crate::web::App;

/// What holds a rollout back unless told otherwise.
const SETTLE: u64 = 600;
const SOAK: u64 = 300;
const MOST: u8 = 10;
/// Names of a wave in a preview.
const FIRST: usize = 10;
/// Troubled nodes that a rollout names itself; the rest is in the list of its nodes.
const TROUBLED: usize = 20;

/// A rollout to be started. Takes the role operator.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RolloutRequest {
    /// What to do and on which nodes, as in `/api/v1/commands`: with a reason, and without signatures. `valid_for_seconds` is
    /// the own deadline of each node's command.
    pub(crate) command: CommandRequest,
    /// How far each wave reaches, those before it included: a number of nodes (`5`), a share (`10%`) or a label
    /// (`ring=canary`). The last is `100%`. Unless told otherwise: 1, 10%, 50%, 100%.
    #[serde(default)]
    pub(crate) waves: Vec<String>,
    /// Most new commands in a minute; absent: as fast as it goes.
    pub(crate) rate_per_minute: Option<u32>,
    /// When commands may start, as `Mon-Fri 22:00-04:00 +01:00`; none: at any time. Who is away is asked anew in each window,
    /// while the command's own deadline lasts.
    #[serde(default)]
    pub(crate) windows: Vec<String>,
    /// How long a node has for its command before it counts as timed out: 1 to 604,800, and 600 unless told otherwise.
    pub(crate) settle_seconds: Option<u64>,
    /// How long a wave is watched before the next one: 0 to 604,800, and 300 unless told otherwise.
    pub(crate) soak_seconds: Option<u64>,
    /// Over this share of a wave, failures and time-outs halt the rollout: 0 to 100, and 10 unless told otherwise.
    pub(crate) max_failed_percent: Option<u8>,
    /// Over this share of a wave, nodes that were well before and are not while it is watched halt the rollout: 0 to 100, and
    /// 10 unless told otherwise.
    pub(crate) max_regressed_percent: Option<u8>,
    /// Only say who is meant, in which waves.
    #[serde(default)]
    pub(crate) preview: bool,
}

/// Why something is done to a rollout.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RolloutAct {
    /// For the audit log, and whoever looks at the rollout: one line of 1 to 500 characters.
    #[serde(default)]
    #[schema(required = true, min_length = 1, max_length = 500)]
    reason: String,
}

/// Starts a rollout, or says what it would do. With an Idempotency-Key, the same request has one effect. Takes the role
/// operator.
#[utoipa::path(post, path = "/api/v1/rollouts", tag = "rollouts", request_body = RolloutRequest,
    params(("Idempotency-Key" = Option<String>, Header)), responses(
    (status = 200, body = RolloutPreview, description = "A preview: nothing is done."),
    (status = 201, body = Rollout),
))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    key: IdempotencyKey,
    Json(asked): Json<RolloutRequest>,
) -> Result<Response, Problem> {
    caller.require(Role::Operator)?;
    if asked.preview {
        return Ok(axum::Json(preview(&app, &caller.0, &asked).await?).into_response());
    }
    let rollout = start(&app, &caller.0, &asked, key.into_inner()).await?;
    Ok((StatusCode::CREATED, axum::Json(rollout)).into_response())
}

/// Rollouts, newest first.
#[utoipa::path(get, path = "/api/v1/rollouts", tag = "rollouts", params(Paging), responses(
    (status = 200, body = Page<Rollout>),
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<axum::Json<Page<Rollout>>, Problem> {
    let window = paging.window()?;
    let rollouts = app.state.rollouts.within(caller.0.tenant.as_ref());
    let read = rollouts.list(window.before, window.reach()).await?;
    Ok(window.page(read.iter().map(Rollout::from).collect()))
}

/// One rollout, with its waves and what it waits for.
#[utoipa::path(get, path = "/api/v1/rollouts/{rollout}", tag = "rollouts", params(("rollout" = i64, Path)), responses(
    (status = 200, body = Rollout),
))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
) -> Result<axum::Json<Rollout>, Problem> {
    Ok(axum::Json(shown(&app, &caller.0, id).await?))
}

/// The nodes of a rollout, by wave.
#[utoipa::path(get, path = "/api/v1/rollouts/{rollout}/nodes", tag = "rollouts", params(("rollout" = i64, Path), Paging),
    responses(
    (status = 200, body = Page<RolloutNode>),
))]
pub(crate) async fn nodes(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
    Query(paging): Query<Paging>,
) -> Result<axum::Json<Page<RolloutNode>>, Problem> {
    slice(members(&app, &caller.0, id).await?.1, &paging, |node| &node.node)
}

/// A rollout as a list shows it, and its nodes by wave, as far as `who` sees them.
pub(crate) async fn members(app: &App, who: &Principal, id: i64) -> Result<(Rollout, Vec<RolloutNode>), Problem> {
    let now = app.now();
    let rollouts = app.state.rollouts.within(who.tenant.as_ref());
    let (rollout, participants) = rollouts.get(id).await?;
    let moment = rollouts.moment(now, false);
    let nodes = participants.iter().map(|one| node(app, who, one, &rollout, moment)).collect();
    Ok((Rollout::from(&rollout), nodes))
}

/// Holds a rollout: nobody else is asked. What was asked for goes on. Takes the role operator.
#[utoipa::path(post, path = "/api/v1/rollouts/{rollout}/pause", tag = "rollouts", params(("rollout" = i64, Path)),
    request_body = RolloutAct, responses(
    (status = 200, body = Rollout),
))]
pub(crate) async fn pause(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
    Json(asked): Json<RolloutAct>,
) -> Result<axum::Json<Rollout>, Problem> {
    caller.require(Role::Operator)?;
    Ok(axum::Json(act(&app, &caller.0, id, Verb::Pause, &asked.reason).await?))
}

/// Lets a rollout go on. What was wrong with one that holds itself is accepted, and does not halt it again; what gets wrong
/// afterwards does. Nodes whose commands were taken back when it halted are asked anew. Takes the role operator.
#[utoipa::path(post, path = "/api/v1/rollouts/{rollout}/resume", tag = "rollouts", params(("rollout" = i64, Path)),
    request_body = RolloutAct, responses(
    (status = 200, body = Rollout),
))]
pub(crate) async fn resume(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
    Json(asked): Json<RolloutAct>,
) -> Result<axum::Json<Rollout>, Problem> {
    caller.require(Role::Operator)?;
    Ok(axum::Json(act(&app, &caller.0, id, Verb::Resume, &asked.reason).await?))
}

/// Gives a rollout up: nobody else is asked, and what nobody was told is taken back. Takes the role operator.
#[utoipa::path(post, path = "/api/v1/rollouts/{rollout}/abort", tag = "rollouts", params(("rollout" = i64, Path)),
    request_body = RolloutAct, responses(
    (status = 200, body = Rollout),
))]
pub(crate) async fn abort(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
    Json(asked): Json<RolloutAct>,
) -> Result<axum::Json<Rollout>, Problem> {
    caller.require(Role::Operator)?;
    Ok(axum::Json(act(&app, &caller.0, id, Verb::Abort, &asked.reason).await?))
}

/// Does something to a rollout, for whoever may.
pub(crate) async fn act(app: &App, who: &Principal, id: i64, verb: Verb, reason: &str) -> Result<Rollout, Problem> {
    app.state.rollouts.within(who.tenant.as_ref()).act(id, verb, &reason.parse()?, &who.actor(), app.now()).await?;
    shown(app, who, id).await
}

/// Who would be meant, in which waves.
pub(crate) async fn preview(app: &App, who: &Principal, asked: &RolloutRequest) -> Result<RolloutPreview, Problem> {
    asked.limits()?;
    let action = asked.command.action()?;
    asked.command.reason.parse::<Reason>()?;
    let waves = asked.divided(app, who).await?;
    let wave = |(place, nodes): (usize, &Vec<Arc<Node>>)| WavePreview {
        number: number(place),
        nodes: nodes.len(),
        online: nodes.iter().filter(|node| is_online(node)).count(),
        first: nodes.iter().take(FIRST).map(|node| node.name.clone()).collect(),
    };
    Ok(RolloutPreview {
        what: action.to_string(),
        nodes: waves.iter().map(Vec::len).sum(),
        digest: digest_of(waves.iter().map(|wave| ids(wave))),
        waves: waves.iter().enumerate().map(wave).collect(),
    })
}

/// Starts a rollout, for whoever may.
pub(crate) async fn start(
    app: &App,
    who: &Principal,
    asked: &RolloutRequest,
    key: Option<String>,
) -> Result<Rollout, Problem> {
    let command = &asked.command;
    if command.signed.is_some() {
        return Err(Problem::invalid(
            "A rollout's commands are made later, and can't be signed ahead: leave signed out.",
        ));
    }
    let (waves, refused) = unless_done(asked.waves(app, who).await, key.as_deref())?;
    let fingerprint = serde_json::to_vec(asked).map_err(|error| Problem::internal(&error))?;
    let new = NewRollout {
        waves: waves
            .iter()
            .map(|nodes| nodes.iter().map(|node| meant(node)).collect::<Result<Vec<_>, Problem>>())
            .collect::<Result<_, Problem>>()?,
        shape: asked.shape()?.to_string(),
        limits: asked.limits()?,
        command: NewRequest {
            nodes: Vec::new(),
            target: json!(command.target),
            action: command.action()?,
            priority: command.priority,
            valid_for: command.valid_for(),
            reason: command.reason.parse()?,
            scope: who.tenant.clone(),
            caller: who.token.clone().unwrap_or_else(|| who.name.clone()),
            key,
            fingerprint: digest(&SHA256, &fingerprint).as_ref().to_vec(),
            signed: None,
        },
    };
    let rollouts = app.state.rollouts.within(who.tenant.as_ref());
    let started = rollouts.start(new, &who.actor(), app.now()).await;
    let started = started.map_err(|error| match (error, refused) {
        (RolloutError::Request(RequestError::Nobody), Some(refused)) => refused,
        (error, _) => error.into(),
    })?;
    shown(app, who, started.id).await
}

/// One rollout as it is shown.
pub(crate) async fn shown(app: &App, who: &Principal, id: i64) -> Result<Rollout, Problem> {
    let now = app.now();
    let rollouts = app.state.rollouts.within(who.tenant.as_ref());
    let (rollout, participants) = rollouts.get(id).await?;
    let moment = rollouts.moment(now, false);
    let (waits_for, waits_until) = match rollouts.next(&rollout, &participants, now) {
        Act::Wait(waiting) => words(waiting, |steady| rollouts.shown(steady, now)),
        _ => (Some("its next step"), None),
    };
    let nodes = participants.iter().map(|one| node(app, who, one, &rollout, moment));
    Ok(Rollout {
        waits_for: waits_for.filter(|_| rollout.position.state == rollouts::State::Running).map(str::to_owned),
        waits_until: waits_until.map(Time),
        waves: Wave::of(&rollout, &participants, moment),
        troubled: nodes.filter(RolloutNode::is_troubled).take(TROUBLED).collect(),
        ..Rollout::from(&rollout)
    })
}

/// Rollouts that somebody sees, newest first.
pub(crate) async fn listed(
    app: &App,
    who: &Principal,
    before: Option<i64>,
    limit: u32,
) -> Result<Vec<Rollout>, Problem> {
    let read = app.state.rollouts.within(who.tenant.as_ref()).list(before, limit).await?;
    Ok(read.iter().map(Rollout::from).collect())
}

fn words(waiting: Waiting, shown: impl Fn(Timestamp) -> Timestamp) -> (Option<&'static str>, Option<Timestamp>) {
    match waiting {
        Waiting::Person => (None, None),
        Waiting::Sessions => (Some("nodes to come back to a hub that has just started"), None),
        Waiting::Window(opens) => (Some("its maintenance window"), opens),
        Waiting::Rate(until) => (Some("its rate to allow another command"), Some(shown(until))),
        Waiting::Answers(until) => (Some("nodes to answer"), Some(shown(until))),
        Waiting::Away(until) => (Some("nodes that are away"), Some(shown(until))),
        Waiting::Soak(until) => (Some("the end of the time in which the wave is watched"), Some(shown(until))),
    }
}

fn node(app: &App, who: &Principal, one: &Participant, rollout: &rollouts::Rollout, now: Moment) -> RolloutNode {
    let name = app.roster.node(who, one.member.node).map(|(node, _)| node.name.clone());
    RolloutNode::of(one, name, rollout, now)
}

fn number(place: usize) -> u32 {
    u32::try_from(place + 1).unwrap_or(u32::MAX)
}

fn is_online(node: &Node) -> bool {
    node.presence.state == PresenceState::Online
}

impl RolloutRequest {
    fn shape(&self) -> Result<Waves, Problem> {
        if self.waves.is_empty() {
            return Ok(Waves::usual());
        }
        Ok(Waves::new(self.waves.iter().map(|wave| wave.trim().parse()).collect::<Result<_, _>>()?)?)
    }

    /// What holds it back.
    pub(crate) fn limits(&self) -> Result<Limits, Problem> {
        Ok(Limits {
            rate: self.rate_per_minute,
            windows: self.windows.iter().map(|window| window.parse()).collect::<Result<Vec<Window>, _>>()?,
            settle: Duration::from_secs(self.settle_seconds.unwrap_or(SETTLE)),
            soak: Duration::from_secs(self.soak_seconds.unwrap_or(SOAK)),
            most_failed: self.max_failed_percent.unwrap_or(MOST),
            most_regressed: self.max_regressed_percent.unwrap_or(MOST),
        })
    }

    /// The nodes that are meant, by wave, as they were seen.
    async fn waves(&self, app: &App, who: &Principal) -> Result<Vec<Vec<Arc<Node>>>, Problem> {
        let waves = self.divided(app, who).await?;
        as_seen(self.command.expected.as_deref(), &digest_of(waves.iter().map(|wave| ids(wave))))?;
        Ok(waves)
    }

    /// The nodes that are meant, by wave. Those that are there come first: a wave of nodes that are not shows nothing.
    async fn divided(&self, app: &App, who: &Principal) -> Result<Vec<Vec<Arc<Node>>>, Problem> {
        let shape = self.shape()?;
        let mut nodes = self.command.target.nodes(app, who).await?;
        nodes.sort_by_key(|node| !is_online(node));
        let mut labelled: HashMap<String, HashSet<NodeId>> = HashMap::new();
        for label in shape.labels() {
            let of = labels::nodes(&app.state.database, who.tenant.as_ref(), std::slice::from_ref(label)).await?;
            labelled.insert(format!("{}={}", label.name, label.value), of);
        }
        let ids = nodes.iter().map(|node| Ok(meant(node)?.0)).collect::<Result<Vec<NodeId>, Problem>>()?;
        let by_id: HashMap<NodeId, Arc<Node>> = ids.iter().copied().zip(nodes).collect();
        let waves = shape.divide(&ids, |label| labelled.get(&format!("{}={}", label.name, label.value)));
        Ok(waves.iter().map(|wave| wave.iter().filter_map(|id| by_id.get(id).cloned()).collect()).collect())
    }
}
