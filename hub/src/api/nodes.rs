//! `/api/v1/nodes`.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use protocol::{NodeId, Timestamp};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::extract::{Caller, Json, Path, Query};
use super::list::{Paging, bad_cursor};
use super::problem::Problem;
use super::resource::{Coverage, History, Node, NodeDetail, Page};
use super::select::{Cursor, NodeQuery};
use crate::access::Role;
use crate::telemetry::history::Selector;
use crate::web::App;

/// The range of a history when nothing is asked for.
const RANGE: Duration = Duration::from_secs(3_600);
/// Its points when nothing is asked for.
const POINTS: usize = 240;

/// Which history.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct HistoryQuery {
    /// The metric, such as `cpu.busy`, `memory.used` or `network.received`.
    metric: String,
    /// One target of it (an interface, a mount point, `stack/service/number`); all of them unless given.
    target: Option<String>,
    /// Start, ms since the Unix epoch; an hour before the end unless given.
    from: Option<i64>,
    /// End, ms since the Unix epoch; now unless given.
    to: Option<i64>,
    /// Most points per series: 1 to 2,000, and 240 unless given.
    points: Option<usize>,
}

/// Nodes, filtered and in order; what needs attention comes first unless told otherwise.
#[utoipa::path(get, path = "/api/v1/nodes", tag = "nodes", params(NodeQuery, Paging), responses(
    (status = 200, body = Page<Node>),
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<NodeQuery>,
    Query(paging): Query<Paging>,
) -> Result<axum::Json<Page<Node>>, Problem> {
    let scope = caller.scope(&app, query.tenant.as_deref()).await?;
    let cursor = paging.cursor.as_deref().map(|text| Cursor::decode(text).ok_or_else(bad_cursor)).transpose()?;
    let labelled = query.labelled(&app, &caller.0).await?;
    let mut nodes = app.roster.of(&caller.0, scope.as_ref());
    nodes.retain(|node| labelled.holds(node));
    let (page, next) = query.select(&nodes).page(cursor.as_ref(), paging.limit()? as usize);
    let items = page.iter().map(|node| (**node).clone()).collect();
    Ok(axum::Json(Page { items, next_cursor: next.map(|cursor| cursor.encode()) }))
}

/// One node with its services, certificate, clock and spool.
#[utoipa::path(get, path = "/api/v1/nodes/{node}", tag = "nodes", params(("node" = String, Path)), responses(
    (status = 200, body = NodeDetail),
))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<NodeId>,
) -> Result<axum::Json<NodeDetail>, Problem> {
    let (node, view) = app.roster.node(&caller.0, id).ok_or_else(|| unknown(id))?;
    Ok(axum::Json(NodeDetail::of(&node, &view)))
}

/// What a node measured over time; counters are given as rates.
#[utoipa::path(get, path = "/api/v1/nodes/{node}/history", tag = "nodes",
    params(("node" = String, Path), HistoryQuery), responses(
    (status = 200, body = History),
))]
pub(crate) async fn history(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<NodeId>,
    Query(query): Query<HistoryQuery>,
) -> Result<axum::Json<History>, Problem> {
    let (_, view) = app.roster.node(&caller.0, id).ok_or_else(|| unknown(id))?;
    let to = query.to.map_or_else(|| app.now(), Timestamp::from_millis);
    let from = query.from.map_or_else(|| to.minus(RANGE), Timestamp::from_millis);
    let selector = Selector { metric: query.metric, target: query.target };
    let range = app
        .state
        .history
        .within(view.tenant.as_str())
        .range(id, &[selector], from, to, query.points.unwrap_or(POINTS))
        .await?;
    Ok(axum::Json(range.into()))
}

/// The proof that no batch number of a node is missing, and none counted twice.
#[utoipa::path(get, path = "/api/v1/nodes/{node}/coverage", tag = "nodes", params(("node" = String, Path)), responses(
    (status = 200, body = Vec<Coverage>),
))]
pub(crate) async fn coverage(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<NodeId>,
) -> Result<axum::Json<Vec<Coverage>>, Problem> {
    let (_, view) = app.roster.node(&caller.0, id).ok_or_else(|| unknown(id))?;
    let coverage = app.state.ingest.coverage(&view.tenant, id).await?;
    Ok(axum::Json(coverage.into_iter().map(Coverage::from).collect()))
}

/// Why a node is revoked.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Revocation {
    /// `key_compromise`, `superseded`, `cessation_of_operation`, `privilege_withdrawn` or `unspecified`.
    reason: String,
    /// For the audit log: one line.
    #[serde(default)]
    comment: String,
}

/// Takes a node's trust away: its certificates are denied, its session ends before the answer comes. To have it back, it
/// must be enrolled again. Doing it twice changes nothing. Takes the role operator.
#[utoipa::path(post, path = "/api/v1/nodes/{node}/revoke", tag = "nodes", params(("node" = String, Path)),
    request_body = Revocation, responses(
    (status = 204, description = "It is revoked"),
))]
pub(crate) async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<NodeId>,
    Json(asked): Json<Revocation>,
) -> Result<StatusCode, Problem> {
    caller.require(Role::Operator)?;
    app.roster.node(&caller.0, id).ok_or_else(|| unknown(id))?;
    let reason = asked.reason.parse()?;
    app.state.enrollment.revoke(id, reason, &asked.comment, &caller.actor(), app.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes a node out of the fleet: it is revoked, listed no more, and its name is free. Takes the role operator.
#[utoipa::path(delete, path = "/api/v1/nodes/{node}", tag = "nodes", params(("node" = String, Path)), responses(
    (status = 204, description = "It is gone"),
))]
pub(crate) async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<NodeId>,
) -> Result<StatusCode, Problem> {
    caller.require(Role::Operator)?;
    app.roster.node(&caller.0, id).ok_or_else(|| unknown(id))?;
    app.state.enrollment.remove(id, &caller.actor(), app.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lets a frozen node in again. Wipe the state of the machine that should not have the node's key first: if it uses it once
/// more, the node is frozen again. Takes the role admin.
#[utoipa::path(post, path = "/api/v1/nodes/{node}/unfreeze", tag = "nodes", params(("node" = String, Path)), responses(
    (status = 204, description = "It may connect"),
))]
pub(crate) async fn unfreeze(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<NodeId>,
) -> Result<StatusCode, Problem> {
    caller.require(Role::Admin)?;
    app.roster.node(&caller.0, id).ok_or_else(|| unknown(id))?;
    app.state.enrollment.unfreeze(id, &caller.actor(), app.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) fn unknown(id: NodeId) -> Problem {
    Problem::not_found(format!("There is no node {id}: see `hfctl node list`."))
}
