//! `/api/v1/rotations`.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use protocol::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Caller, Json, Path, Query, require, require_all, require_tenant};
use super::idempotency::IdempotencyKey;
use super::list::{Numbered, Paging, slice};
use super::problem::Problem;
use super::resource::{Page, Time};
use crate::access::{Principal, Role};
use crate::rotation::{self, Direction, Phase, RENEW_WITHIN, Wish, named};
use crate::web::App;

/// Those not ready that a gate names itself; the rest is in the list of the missing.
const FIRST: usize = 20;

/// From a certificate authority to its successor.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Rotation {
    /// Its number.
    pub id: i64,
    /// `root`: the fleet's; `hub`: the hub's intermediate; `nodes`: a tenant's; `kafka`: a tenant's own root.
    pub kind: &'static str,
    /// Whose it is; absent: the fleet's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The same for a person.
    pub what: String,
    /// `prepare`: the successor is made, nobody is told; `trust`: both are trusted, the old one issues; `issue`: the new one
    /// issues; `retire`: the new one alone is trusted; `done`, `aborted`: over.
    pub phase: &'static str,
    /// Why it was begun.
    pub reason: String,
    /// Number of the authority that issued when it began.
    pub old_authority: i64,
    /// Number of its successor.
    pub new_authority: i64,
    /// When.
    pub started_at: Time,
    /// By whom.
    pub started_by: String,
    /// When it was done or aborted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// Every phase it entered, oldest first.
    pub steps: Vec<Step>,
    /// What the next phase takes. In a list, and when the rotation is over: absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward: Option<Gate>,
    /// What the way back takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub back: Option<Gate>,
}

/// The entering of a phase.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Step {
    /// Which.
    pub phase: &'static str,
    /// When.
    pub at: Time,
    /// By whom.
    pub by: String,
    /// How many nodes and certificates were not ready and left behind.
    pub left_behind: i64,
}

/// What a step takes.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Gate {
    /// The phase it leads to.
    pub to: &'static str,
    /// Whether nobody is missing and nothing is unsigned. An operator may still have to confirm something.
    pub ready: bool,
    /// How many are not ready.
    pub missing_count: usize,
    /// The first of them.
    pub missing: Vec<Missing>,
    /// Whether an operator has to confirm with `brokers_updated` that the tenant's brokers have been seen to.
    pub confirm_brokers: bool,
    /// Whether the fleet root, which is kept offline, has to sign something first.
    pub unsigned: bool,
    /// Unused join tokens that are of no use from then on.
    pub outdated_tokens: i64,
}

/// A node, or a certificate of a tenant's brokers, that is not ready.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Missing {
    /// The node's id, or the serial of the certificate.
    pub id: String,
    /// The node's name, or the names in the certificate.
    pub name: String,
    /// Whose it is.
    pub tenant: String,
    /// `agent`, `bridge` or `broker`.
    pub kind: String,
    /// `online`, `lost`, `left` or `never_seen`; absent for brokers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence: Option<String>,
    /// Since when that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Why it is not ready.
    pub why: String,
}

impl From<rotation::Missing> for Missing {
    fn from(missing: rotation::Missing) -> Self {
        let rotation::Missing { id, name, tenant, kind, presence, since, why } = missing;
        Self { id, name, tenant, kind, presence, since: since.map(Time), why }
    }
}

impl From<rotation::Gate> for Gate {
    fn from(gate: rotation::Gate) -> Self {
        Self {
            to: gate.to.as_str(),
            ready: gate.missing.is_empty() && !gate.unsigned,
            missing_count: gate.missing.len(),
            missing: gate.missing.into_iter().take(FIRST).map(Missing::from).collect(),
            confirm_brokers: gate.brokers,
            unsigned: gate.unsigned,
            outdated_tokens: gate.tokens,
        }
    }
}

impl From<&rotation::Rotation> for Rotation {
    fn from(rotation: &rotation::Rotation) -> Self {
        let (kind, tenant) = crate::authorities::place(&rotation.role);
        let steps = rotation.steps.iter().map(|step| Step {
            phase: step.phase.as_str(),
            at: Time(step.at),
            by: step.by.clone(),
            left_behind: step.left_behind,
        });
        Self {
            id: rotation.id,
            kind,
            tenant: Some(tenant.to_owned()).filter(|tenant| !tenant.is_empty()),
            what: named(&rotation.role),
            phase: rotation.phase.as_str(),
            reason: rotation.reason.clone(),
            old_authority: rotation.old,
            new_authority: rotation.new,
            started_at: Time(rotation.started_at),
            started_by: rotation.started_by.clone(),
            ended_at: rotation.ended_at.map(Time),
            steps: steps.collect(),
            forward: None,
            back: None,
        }
    }
}

impl Numbered for Rotation {
    fn number(&self) -> i64 {
        self.id
    }
}

/// A rotation to be begun.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRotation {
    /// `root`, `hub`, `nodes` or `kafka`.
    kind: String,
    /// Whose, for `nodes` and `kafka`.
    #[serde(default)]
    tenant: Option<String>,
    /// Why, for the audit log: one line of at most 200 characters.
    reason: String,
}

/// A step to be taken.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewStep {
    /// The phase the rotation is in, as the caller has seen it: sent twice, the step is taken once.
    from: String,
    /// So many that are not ready may be left behind, and no more. They come back by recovery while its window lasts.
    #[serde(default)]
    leave: usize,
    /// Of a Kafka root: the tenant's brokers have been seen to. Every one trusts both roots before the phase `issue`, and
    /// shows a certificate of the new one's before `retire`.
    #[serde(default)]
    brokers_updated: bool,
    /// Seconds over which nodes that have to renew do so; 3600 unless told otherwise.
    #[serde(default)]
    renew_within_seconds: Option<u64>,
}

/// Which rotations.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// `open`: only those that are under way.
    #[serde(default)]
    state: Option<String>,
}

/// Which of those that are not ready.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Whereto {
    /// `forward` (unless told otherwise) or `back`.
    #[serde(default)]
    direction: Option<String>,
}

/// All rotations, newest first.
#[utoipa::path(get, path = "/api/v1/rotations", tag = "trust", params(Which, Paging), responses(
    (status = 200, body = Page<Rotation>),
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(which): Query<Which>,
    Query(paging): Query<Paging>,
) -> Result<axum::Json<Page<Rotation>>, Problem> {
    let open = match which.state.as_deref() {
        None | Some("all") => false,
        Some("open") => true,
        Some(_) => return Err(Problem::malformed("state is open or all.")),
    };
    let window = paging.window()?;
    let rotations = app.state.rotations.within(caller.0.tenant.as_ref());
    let read = rotations.list(open, window.before, window.reach()).await?;
    Ok(window.page(read.iter().map(Rotation::from).collect()))
}

/// One rotation, with what its next step takes, and the way back.
#[utoipa::path(get, path = "/api/v1/rotations/{rotation}", tag = "trust", params(("rotation" = i64, Path)), responses(
    (status = 200, body = Rotation),
))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
) -> Result<axum::Json<Rotation>, Problem> {
    Ok(axum::Json(shown(&app, &caller.0, id).await?))
}

/// Everybody who is not ready for the next step, by tenant and name.
#[utoipa::path(get, path = "/api/v1/rotations/{rotation}/missing", tag = "trust",
    params(("rotation" = i64, Path), Whereto, Paging), responses(
    (status = 200, body = Page<Missing>),
))]
pub(crate) async fn missing(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
    Query(whereto): Query<Whereto>,
    Query(paging): Query<Paging>,
) -> Result<axum::Json<Page<Missing>>, Problem> {
    let direction = match whereto.direction.as_deref() {
        None | Some("forward") => Direction::Forward,
        Some("back") => Direction::Back,
        Some(_) => return Err(Problem::malformed("direction is forward or back.")),
    };
    let rotations = app.state.rotations.within(caller.0.tenant.as_ref());
    let gate = rotations.gate(&rotations.get(id).await?, direction, app.now()).await?;
    let missing = gate.map(|gate| gate.missing).unwrap_or_default();
    slice(missing.into_iter().map(Missing::from).collect(), &paging, |one| &one.id)
}

/// Begins a rotation: the successor is made, and nobody is told of it yet. Takes the role admin; but for a tenant's own Kafka
/// root, unbound.
#[utoipa::path(post, path = "/api/v1/rotations", tag = "trust", request_body = NewRotation,
    params(("Idempotency-Key" = Option<String>, Header)), responses(
    (status = 201, body = Rotation),
))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    key: IdempotencyKey,
    Json(new): Json<NewRotation>,
) -> Result<Response, Problem> {
    let work = begin(app.clone(), caller.clone(), new.clone());
    app.answers.once(&caller, key, &("rotations", &new), app.now(), work).await
}

async fn begin(app: App, caller: Caller, new: NewRotation) -> Result<Rotation, Problem> {
    let tenant = new.tenant.as_deref().map(str::parse::<TenantId>).transpose();
    let tenant = tenant.map_err(|error| Problem::invalid(error.to_string()))?;
    let begun = start(&app, &caller.0, &new.kind, tenant, &new.reason).await?;
    shown(&app, &caller.0, begun.id).await
}

/// Goes on to the next phase. Takes the role admin; but for a tenant's own Kafka root, unbound.
#[utoipa::path(post, path = "/api/v1/rotations/{rotation}/advance", tag = "trust", request_body = NewStep,
    params(("rotation" = i64, Path)), responses(
    (status = 200, body = Rotation),
))]
pub(crate) async fn advance(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
    Json(step): Json<NewStep>,
) -> Result<axum::Json<Rotation>, Problem> {
    take(&app, &caller.0, id, step.wish(Direction::Forward)?).await?;
    Ok(axum::Json(shown(&app, &caller.0, id).await?))
}

/// Goes back to the phase before; from `prepare`, the rotation is aborted. Takes the role admin; but for a tenant's own Kafka
/// root, unbound.
#[utoipa::path(post, path = "/api/v1/rotations/{rotation}/back", tag = "trust", request_body = NewStep,
    params(("rotation" = i64, Path)), responses(
    (status = 200, body = Rotation),
))]
pub(crate) async fn back(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
    Json(step): Json<NewStep>,
) -> Result<axum::Json<Rotation>, Problem> {
    take(&app, &caller.0, id, step.wish(Direction::Back)?).await?;
    Ok(axum::Json(shown(&app, &caller.0, id).await?))
}

impl NewStep {
    fn wish(&self, direction: Direction) -> Result<Wish, Problem> {
        let from: Phase =
            self.from.parse().map_err(|error: rotation::PhaseError| Problem::invalid(error.to_string()))?;
        Ok(Wish {
            direction,
            from,
            leave: self.leave,
            brokers_updated: self.brokers_updated,
            renew_within: self.renew_within_seconds.map_or(RENEW_WITHIN, Duration::from_secs),
        })
    }
}

/// Begins a rotation for somebody who may.
pub(crate) async fn start(
    app: &App,
    who: &Principal,
    kind: &str,
    tenant: Option<TenantId>,
    reason: &str,
) -> Result<rotation::Rotation, Problem> {
    let role = rotation::role(kind, tenant.clone())?;
    may(who, &role)?;
    if let Some(tenant) = &tenant {
        app.state.tenants.within(who.tenant.as_ref()).get(tenant).await?;
    }
    let rotations = app.state.rotations.within(who.tenant.as_ref());
    Ok(rotations.start(role, reason, &who.actor(), app.now()).await?)
}

/// Takes a step for somebody who may.
pub(crate) async fn take(app: &App, who: &Principal, id: i64, wish: Wish) -> Result<(), Problem> {
    let rotations = app.state.rotations.within(who.tenant.as_ref());
    may(who, &rotations.get(id).await?.role)?;
    rotations.step(id, wish, &who.actor(), app.now()).await?;
    Ok(())
}

/// One rotation with its gates.
pub(crate) async fn shown(app: &App, who: &Principal, id: i64) -> Result<Rotation, Problem> {
    let rotations = app.state.rotations.within(who.tenant.as_ref());
    let rotation = rotations.get(id).await?;
    let [mut forward, mut back] = [None, None];
    for (gate, direction) in [(&mut forward, Direction::Forward), (&mut back, Direction::Back)] {
        *gate = rotations.gate(&rotation, direction, app.now()).await?.map(Gate::from);
    }
    Ok(Rotation { forward, back, ..Rotation::from(&rotation) })
}

/// Refuses those who may not rotate this: what is under the fleet root takes its key.
fn may(who: &Principal, role: &pki::Role) -> Result<(), Problem> {
    if let pki::Role::Kafka(tenant) | pki::Role::Nodes(tenant) = role {
        require_tenant(who, tenant)?;
    }
    require(who, Role::Admin)?;
    match role {
        pki::Role::Kafka(_) => Ok(()),
        _ => require_all(who),
    }
}
