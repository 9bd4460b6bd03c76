//! `/api/v1/renewals`: nodes are told to renew their certificates before the time.

use std::time::Duration;

use axum::extract::State;
use protocol::{NodeId, TenantId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Caller, Json};
use super::problem::Problem;
use super::resource::Time;
use crate::access::Role;
use crate::enrollment::{self, Whom};
use crate::web::App;

/// Nodes that are named one by one in one call.
const NODES_MOST: usize = 1_000;

/// Who is to renew, and by when. Exactly one of `tenant`, `nodes` and `all`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRenewal {
    /// All nodes of this tenant.
    #[serde(default)]
    tenant: Option<String>,
    /// These nodes, by their ids; at most 1,000.
    #[serde(default)]
    nodes: Vec<String>,
    /// All nodes of the fleet.
    #[serde(default)]
    all: bool,
    /// They are spread evenly over so long, and over as long as it takes at 100 a second; at most 90 days.
    within_seconds: u64,
    /// For the audit log, and for the nodes' logs: one line of at most 200 characters.
    #[serde(default)]
    reason: String,
}

/// What nodes were told.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Advised {
    /// How many are to renew.
    pub nodes: usize,
    /// How many of them heard at once; the others hear of it when they return.
    pub told: usize,
    /// When the last one is to renew.
    pub until: Time,
}

impl From<enrollment::Advised> for Advised {
    fn from(advised: enrollment::Advised) -> Self {
        Self { nodes: advised.nodes, told: advised.told, until: Time(advised.until) }
    }
}

/// Has nodes renew their certificates, spread over a time. Those that are away do so when they return. Nobody renews later
/// than the policy says, and a node that has renewed since is done. Takes the role operator.
#[utoipa::path(post, path = "/api/v1/renewals", tag = "trust", request_body = NewRenewal, responses(
    (status = 200, body = Advised),
))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(new): Json<NewRenewal>,
) -> Result<axum::Json<Advised>, Problem> {
    caller.require(Role::Operator)?;
    let whom = match (new.tenant, new.nodes.as_slice(), new.all) {
        (Some(tenant), [], false) => {
            let tenant: TenantId =
                tenant.parse().map_err(|error: protocol::id::IdError| Problem::invalid(error.to_string()))?;
            caller.require_tenant(&tenant)?;
            app.state.tenants.within(caller.0.tenant.as_ref()).get(&tenant).await?;
            Whom::Tenant(tenant)
        }
        (None, [], true) => {
            caller.require_all()?;
            Whom::All
        }
        (None, nodes @ [_, ..], false) if nodes.len() <= NODES_MOST => Whom::Nodes(named(&app, &caller, nodes)?),
        (None, nodes, false) if nodes.len() > NODES_MOST => {
            return Err(Problem::invalid(format!("Name at most {NODES_MOST} nodes, or a tenant, or all.")));
        }
        _ => return Err(Problem::invalid("Say who is to renew: one of tenant, nodes and all.")),
    };
    let within = Duration::from_secs(new.within_seconds);
    let advised = app.state.enrollment.renew_soon(&whom, within, &caller.actor(), new.reason.trim(), app.now()).await?;
    Ok(axum::Json(advised.into()))
}

/// The nodes of these ids: each there for the caller, and not revoked.
fn named(app: &App, caller: &Caller, ids: &[String]) -> Result<Vec<NodeId>, Problem> {
    let one = |text: &String| {
        let id: NodeId = text.parse().map_err(|error: protocol::id::IdError| Problem::invalid(error.to_string()))?;
        let (node, _) = app.roster.node(&caller.0, id).ok_or_else(|| super::nodes::unknown(id))?;
        if node.revoked_at.is_some() {
            let detail = format!("Node {id} has been revoked: to have it back, enroll it with a new token.");
            return Err(Problem::conflict(detail));
        }
        Ok(id)
    };
    ids.iter().map(one).collect()
}
