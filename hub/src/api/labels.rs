//! `/api/v1/nodes/{node}/labels`: what operators call a node, to mean many at once.

use std::collections::BTreeMap;

use axum::extract::State;
use protocol::NodeId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Caller, Json, Path};
use super::nodes::unknown;
use super::problem::Problem;
use crate::access::Role;
use crate::labels::{self, Label};
use crate::web::App;

/// All labels of a node, by name.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Labels {
    /// At most 32.
    labels: BTreeMap<String, String>,
}

/// What a node's labels are to be, and why.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewLabels {
    /// All of them, by name: at most 32.
    labels: BTreeMap<String, String>,
    /// Why, for the audit log: one line of 1 to 500 characters.
    #[serde(default)]
    #[schema(required = true, min_length = 1, max_length = 500)]
    reason: String,
}

/// A node's labels.
#[utoipa::path(get, path = "/api/v1/nodes/{node}/labels", tag = "nodes", params(("node" = String, Path)), responses(
    (status = 200, body = Labels),
))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<NodeId>,
) -> Result<axum::Json<Labels>, Problem> {
    let (_, view) = app.roster.node(&caller.0, id).ok_or_else(|| unknown(id))?;
    let labels = labels::of(&app.state.database, id, &view.tenant).await?;
    Ok(axum::Json(Labels { labels }))
}

/// Gives a node these labels and no others. Takes the role operator.
#[utoipa::path(put, path = "/api/v1/nodes/{node}/labels", tag = "nodes", params(("node" = String, Path)),
    request_body = NewLabels, responses(
    (status = 200, body = Labels),
))]
pub(crate) async fn replace(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<NodeId>,
    Json(asked): Json<NewLabels>,
) -> Result<axum::Json<Labels>, Problem> {
    caller.require(Role::Operator)?;
    let (_, view) = app.roster.node(&caller.0, id).ok_or_else(|| unknown(id))?;
    let wanted = asked.labels.iter().map(|(name, value)| Label::new(name, value)).collect::<Result<Vec<_>, _>>()?;
    let (database, reason) = (&app.state.database, asked.reason.parse()?);
    labels::replace(database, id, &view.tenant, &wanted, &reason, &caller.actor(), app.now()).await?;
    Ok(axum::Json(Labels { labels: asked.labels }))
}
