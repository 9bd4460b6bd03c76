//! `/api/v1/tokens`: join tokens.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use protocol::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Caller, Json, Query};
use super::idempotency::IdempotencyKey;
use super::list::{Paging, slice};
use super::problem::Problem;
use super::resource::{Kind, NewToken, Page, Token};
use crate::access::Role;
use crate::enrollment;
use crate::web::App;

/// How long a token can be used when nothing is asked for.
const LIFETIME: u64 = 3_600;

/// A join token to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenRequest {
    /// Whose node it enrolls.
    tenant: String,
    /// What kind of node; an agent unless told otherwise.
    kind: Option<Kind>,
    /// The node's name; its host name unless told otherwise.
    name: Option<String>,
    /// For how long it can be used: 60 to 2,592,000 seconds, and an hour unless told otherwise.
    valid_for_seconds: Option<u64>,
}

/// Which join tokens.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Only this tenant's.
    tenant: Option<String>,
}

/// The newest 500 join tokens, newest first, without their secrets.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", params(Which, Paging), responses(
    (status = 200, body = Page<Token>),
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(which): Query<Which>,
    Query(paging): Query<Paging>,
) -> Result<axum::Json<Page<Token>>, Problem> {
    let scope = caller.scope(&app, which.tenant.as_deref()).await?;
    let tokens = app.state.enrollment.list_tokens(scope.as_ref()).await?;
    let tokens = tokens.into_iter().map(|token| Token::of(token, app.now())).collect();
    slice(tokens, &paging, |token| &token.id)
}

/// Makes a join token; its secret is in this answer and nowhere else. Takes the role operator.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "tokens", request_body = TokenRequest,
    params(("Idempotency-Key" = Option<String>, Header)), responses(
    (status = 201, body = NewToken),
))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    key: IdempotencyKey,
    Json(new): Json<TokenRequest>,
) -> Result<Response, Problem> {
    caller.require(Role::Operator)?;
    let work = make(app.clone(), caller.clone(), new.clone());
    app.answers.once(&caller, key, &("tokens", &new), app.now(), work).await
}

async fn make(app: App, caller: Caller, new: TokenRequest) -> Result<NewToken, Problem> {
    let tenant: TenantId =
        new.tenant.parse().map_err(|error: protocol::id::IdError| Problem::invalid(error.to_string()))?;
    caller.require_tenant(&tenant)?;
    let wanted = enrollment::NewToken {
        tenant,
        kind: new.kind.unwrap_or(Kind::Agent).into(),
        name: new.name.filter(|name| !name.is_empty()),
        valid_for: Duration::from_secs(new.valid_for_seconds.unwrap_or(LIFETIME)),
    };
    let now = app.now();
    let (info, secret) = app.state.enrollment.create_token(wanted, &caller.actor(), now).await?;
    Ok(NewToken::of(info, &secret.to_string(), now))
}
