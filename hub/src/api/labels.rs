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
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Labels {
    /// At most 32.
    labels: BTreeMap<String, String>,
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
    request_body = Labels, responses(
    (status = 200, body = Labels),
))]
pub(crate) async fn replace(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<NodeId>,
    Json(asked): Json<Labels>,
) -> Result<axum::Json<Labels>, Problem> {
    caller.require(Role::Operator)?;
    let (_, view) = app.roster.node(&caller.0, id).ok_or_else(|| unknown(id))?;
    let wanted = asked.labels.iter().map(|(name, value)| Label::new(name, value)).collect::<Result<Vec<_>, _>>()?;
    labels::replace(&app.state.database, id, &view.tenant, &wanted, &caller.actor(), app.now()).await?;
    Ok(axum::Json(asked))
}
