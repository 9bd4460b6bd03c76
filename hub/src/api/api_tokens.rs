//! `/api/v1/api-tokens`: tokens for programs and for `hfctl`. Takes the role admin.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Caller, Json, Path, Query};
use super::idempotency::IdempotencyKey;
use super::list::{Paging, slice};
use super::problem::Problem;
use super::resource::{ApiToken, NewApiToken, Page, Role};
use crate::access::{self, Grant};
use crate::web::App;

/// An API token to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApiTokenRequest {
    /// What it is called.
    name: String,
    /// What it may do.
    role: Role,
    /// The only tenant it may see; all of them unless given.
    tenant: Option<String>,
    /// When it ends by itself, in seconds; never unless given.
    valid_for_seconds: Option<u64>,
}

/// All API tokens, newest first, without their secrets.
#[utoipa::path(get, path = "/api/v1/api-tokens", tag = "api tokens", params(Paging), responses(
    (status = 200, body = Page<ApiToken>),
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<axum::Json<Page<ApiToken>>, Problem> {
    caller.require(access::Role::Admin)?;
    let tokens = app.state.access.within(caller.0.tenant.as_ref()).list_api_tokens().await?;
    let tokens = tokens.into_iter().map(ApiToken::from).collect();
    slice(tokens, &paging, |token| &token.id)
}

/// Makes an API token; its secret is in this answer and nowhere else. A caller bound to a tenant makes tokens bound to it.
#[utoipa::path(post, path = "/api/v1/api-tokens", tag = "api tokens", request_body = ApiTokenRequest,
    params(("Idempotency-Key" = Option<String>, Header)), responses(
    (status = 201, body = NewApiToken),
))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    key: IdempotencyKey,
    Json(new): Json<ApiTokenRequest>,
) -> Result<Response, Problem> {
    caller.require(access::Role::Admin)?;
    let work = make(app.clone(), caller.clone(), new.clone());
    app.answers.once(&caller, key, &("api-tokens", &new), app.now(), work).await
}

async fn make(app: App, caller: Caller, new: ApiTokenRequest) -> Result<NewApiToken, Problem> {
    let tenant = caller.scope(&app, new.tenant.as_deref()).await?;
    let valid_for = new.valid_for_seconds.map(Duration::from_secs);
    let grant = Grant { name: new.name, role: new.role.into(), tenant, valid_for };
    let access = app.state.access.within(caller.0.tenant.as_ref());
    let (info, token) = access.create_api_token(grant, &caller.actor(), app.now()).await?;
    Ok(NewApiToken { info: info.into(), token })
}

/// Ends an API token at once, with every browser session that was opened with it.
#[utoipa::path(delete, path = "/api/v1/api-tokens/{id}", tag = "api tokens", params(("id" = String, Path)), responses(
    (status = 204, description = "It is revoked"),
))]
pub(crate) async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    caller.require(access::Role::Admin)?;
    app.state.access.within(caller.0.tenant.as_ref()).revoke_api_token(&id, &caller.actor(), app.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
