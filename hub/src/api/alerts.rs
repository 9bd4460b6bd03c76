//! `/api/v1/alerts`.

use std::collections::HashMap;

use axum::extract::State;
use protocol::NodeId;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::extract::{Caller, Query};
use super::list::Paging;
use super::problem::Problem;
use super::resource::{Alert, Page};
use crate::access::Principal;
use crate::alerts::{self, Filter};
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

/// Alerts, newest first. One is kept for 90 days after its end.
#[utoipa::path(get, path = "/api/v1/alerts", tag = "alerts", params(Which, Paging), responses(
    (status = 200, body = Page<Alert>),
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(which): Query<Which>,
    Query(paging): Query<Paging>,
) -> Result<axum::Json<Page<Alert>>, Problem> {
    let node = which.node.as_deref().map(str::parse::<NodeId>).transpose();
    let window = paging.window()?;
    let filter = Filter {
        tenant: caller.scope(&app, which.tenant.as_deref()).await?,
        node: node.map_err(|error| Problem::invalid(error.to_string()))?,
        open: which.state.map(|state| matches!(state, AlertState::Open)),
        before: window.before,
        limit: window.reach(),
    };
    let found = app.state.alerts.list(&filter).await?;
    Ok(window.page(alert_resources(&app, &caller.0, found)))
}

/// Alerts with the names of their nodes.
pub(crate) fn alert_resources(app: &App, principal: &Principal, found: Vec<alerts::Alert>) -> Vec<Alert> {
    let mut names: HashMap<NodeId, String> = HashMap::new();
    let visible = found.into_iter().filter(|alert| principal.sees_owner(alert.tenant.as_ref()));
    visible
        .map(|alert| {
            let named =
                |id: NodeId| app.state.fleet.node(id).map_or_else(|| id.to_string(), |view| view.name.to_string());
            let name = alert.node.map(|node| names.entry(node).or_insert_with(|| named(node)).clone());
            Alert::of(alert, name)
        })
        .collect()
}
