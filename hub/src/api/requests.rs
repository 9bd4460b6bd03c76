//! `/api/v1/requests`: the commands that were asked for together.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::commands::Cancellation;
use super::extract::{Caller, Json, Path};
use super::problem::Problem;
use crate::access::Role;
use crate::commands;
use crate::web::App;

/// What came of taking a request back.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct TakenBack {
    /// So many commands were cancelled: no node had been told of them.
    cancelled: usize,
    /// So many are with their nodes, which are told, and say what comes of them.
    told: usize,
}

impl From<commands::TakenBack> for TakenBack {
    fn from(taken: commands::TakenBack) -> Self {
        Self { cancelled: taken.cancelled, told: taken.told }
    }
}

/// Takes back all commands of a request that are not over, as far as the caller sees them, as if each was cancelled: all of them or,
/// when this fails, none. Doing it twice changes nothing. Takes the role operator.
#[utoipa::path(post, path = "/api/v1/requests/{request}/cancel", tag = "commands", params(("request" = String, Path)),
    request_body = Cancellation, responses(
    (status = 200, body = TakenBack),
))]
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Path(request): Path<String>,
    Json(asked): Json<Cancellation>,
) -> Result<axum::Json<TakenBack>, Problem> {
    caller.require(Role::Operator)?;
    let (commands, tenant) = (&app.state.commands, caller.0.tenant.as_ref());
    let taken = commands.cancel_request(&request, tenant, &asked.reason.parse()?, &caller.actor(), app.now()).await?;
    Ok(axum::Json(taken.into()))
}
