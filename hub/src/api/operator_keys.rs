//! `/api/v1/operator-keys`: whose signatures on commands are passed on to nodes.

use axum::extract::State;
use axum::http::StatusCode;
use pki::{OperatorKeyError, OperatorPublicKey};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Caller, Json, Path, Query};
use super::list::{Paging, slice};
use super::problem::Problem;
use super::resource::{Page, Time};
use crate::access::Role;
use crate::operators;
use crate::web::App;

/// An operator's public key.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct OperatorKey {
    /// Its id.
    id: String,
    /// The only tenant whose nodes it may sign for.
    tenant: Option<String>,
    /// Whose it is.
    name: String,
    /// The key: `hfop_…`, as agents pin it.
    public_key: String,
    /// When it was registered.
    created_at: Time,
    /// By whom.
    created_by: String,
    /// When it was revoked.
    revoked_at: Option<Time>,
}

impl From<operators::OperatorKey> for OperatorKey {
    fn from(key: operators::OperatorKey) -> Self {
        Self {
            id: key.id,
            tenant: key.tenant.map(|tenant| tenant.to_string()),
            name: key.name,
            public_key: key.key.to_string(),
            created_at: Time(key.created_at),
            created_by: key.created_by,
            revoked_at: key.revoked_at.map(Time),
        }
    }
}

/// A key to be registered.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewOperatorKey {
    /// Whose it is.
    name: String,
    /// `hfop_…`, as `hfctl operator-key create` prints it.
    public_key: String,
    /// Why, for the audit log: one line of 1 to 500 characters.
    #[serde(default)]
    #[schema(required = true, min_length = 1, max_length = 500)]
    reason: String,
}

/// Why an operator's key is revoked.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OperatorKeyRevocation {
    /// For the audit log, and beside what the key has signed: one line of 1 to 500 characters.
    #[serde(default)]
    #[schema(required = true, min_length = 1, max_length = 500)]
    reason: String,
}

/// Registered keys, oldest first.
#[utoipa::path(get, path = "/api/v1/operator-keys", tag = "commands", params(Paging), responses(
    (status = 200, body = Page<OperatorKey>),
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<axum::Json<Page<OperatorKey>>, Problem> {
    let keys = operators::list(&app.state.database, caller.0.tenant.as_ref()).await?;
    slice(keys.into_iter().map(OperatorKey::from).collect(), &paging, |key| &key.id)
}

/// Registers an operator's public key. Nodes take its signatures once their owners have pinned it as well. Takes the role
/// admin.
#[utoipa::path(post, path = "/api/v1/operator-keys", tag = "commands", request_body = NewOperatorKey, responses(
    (status = 201, body = OperatorKey),
))]
pub(crate) async fn register(
    State(app): State<App>,
    caller: Caller,
    Json(new): Json<NewOperatorKey>,
) -> Result<(StatusCode, axum::Json<OperatorKey>), Problem> {
    caller.require(Role::Admin)?;
    let key: OperatorPublicKey =
        new.public_key.parse().map_err(|error: OperatorKeyError| Problem::invalid(error.to_string()))?;
    let (database, tenant, reason) = (&app.state.database, caller.0.tenant.as_ref(), new.reason.parse()?);
    let key = operators::register(database, &new.name, key, tenant, &reason, &caller.actor(), app.now()).await?;
    Ok((StatusCode::CREATED, axum::Json(key.into())))
}

/// Takes a key back: nothing that it has signed is passed on any more. Commands by it that are not over are taken back, as if
/// each was cancelled. Takes the role admin.
#[utoipa::path(post, path = "/api/v1/operator-keys/{key}/revoke", tag = "commands", params(("key" = String, Path)),
    request_body = OperatorKeyRevocation, responses((status = 204, description = "It is revoked")))]
pub(crate) async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Json(asked): Json<OperatorKeyRevocation>,
) -> Result<StatusCode, Problem> {
    caller.require(Role::Admin)?;
    let (state, tenant, reason) = (&app.state, caller.0.tenant.as_ref(), asked.reason.parse()?);
    operators::revoke(&state.database, &state.commands, &id, tenant, &reason, &caller.actor(), app.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
