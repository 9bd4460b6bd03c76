//! `/api/v1/alerts`.

use axum::extract::State;
use protocol::NodeId;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::extract::{Caller, Query};
use super::list::{Paging, page};
use super::nodes::alert_resources;
use super::problem::Problem;
use super::resource::{Alert, Page};
use crate::alerts::Filter;
use crate::web::App;

/// Which alerts.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Open or closed ones; both unless given.
    state: Option<AlertState>,
    /// Only this tenant's.
    tenant: Option<String>,
    /// Only this node's.
    node: Option<String>,
}

/// Whether an alert goes on.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AlertState {
    /// It does.
    Open,
    /// It has ended.
    Closed,
}

/// Alerts, newest first.
#[utoipa::path(get, path = "/api/v1/alerts", tag = "alerts", params(Which, Paging), responses(
    (status = 200, body = Page<Alert>),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(which): Query<Which>,
    Query(paging): Query<Paging>,
) -> Result<axum::Json<Page<Alert>>, Problem> {
    let node = which.node.as_deref().map(str::parse::<NodeId>).transpose();
    let limit = paging.limit()?;
    let filter = Filter {
        tenant: caller.scope(which.tenant.as_deref())?,
        node: node.map_err(|error| Problem::invalid(error.to_string()))?,
        open: which.state.map(|state| matches!(state, AlertState::Open)),
        before: paging.before()?,
        limit: limit + 1,
    };
    let found = app.state.alerts.list(&filter).await?;
    let alerts = alert_resources(&app, &caller.0, found);
    Ok(axum::Json(page(alerts, limit, |alert| alert.id.to_string())))
}
