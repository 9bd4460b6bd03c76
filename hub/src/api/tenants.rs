//! `/api/v1/tenants`.

use axum::extract::State;
use axum::response::Response;
use protocol::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Caller, Json, Path, Query};
use super::idempotency::IdempotencyKey;
use super::list::{Paging, slice};
use super::problem::Problem;
use super::resource::{NodeCounts, Page, Tenant};
use crate::access::Role;
use crate::web::App;

/// A tenant to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTenant {
    /// The slug that never changes: 1 to 40 of a-z, 0-9 and '-', not starting or ending with '-'.
    id: String,
    /// The name people read; the id unless given.
    name: Option<String>,
}

/// All tenants, by id.
#[utoipa::path(get, path = "/api/v1/tenants", tag = "tenants", params(Paging), responses(
    (status = 200, body = Page<Tenant>),
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<axum::Json<Page<Tenant>>, Problem> {
    let mut counts = app.roster.counts(&caller.0);
    let tenants = app.state.tenants.within(caller.0.tenant.as_ref()).list().await?;
    let tenants = tenants.into_iter().map(|tenant| {
        let counts = counts.remove(tenant.id.as_str()).unwrap_or_default();
        Tenant::of(tenant, counts)
    });
    slice(tenants.collect(), &paging, |tenant| &tenant.id)
}

/// One tenant.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = String, Path)), responses(
    (status = 200, body = Tenant),
))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<TenantId>,
) -> Result<axum::Json<Tenant>, Problem> {
    caller.require_tenant(&id)?;
    let tenant = app.state.tenants.within(caller.0.tenant.as_ref()).get(&id).await?;
    let counts = app.roster.counts(&caller.0).remove(id.as_str()).unwrap_or_default();
    Ok(axum::Json(Tenant::of(tenant, counts)))
}

/// Makes a tenant, with a certificate authority of its own. Takes the role admin, unbound.
#[utoipa::path(post, path = "/api/v1/tenants", tag = "tenants", request_body = NewTenant,
    params(("Idempotency-Key" = Option<String>, Header)), responses(
    (status = 201, body = Tenant),
))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    key: IdempotencyKey,
    Json(new): Json<NewTenant>,
) -> Result<Response, Problem> {
    caller.require(Role::Admin)?;
    caller.require_all()?;
    let work = make(app.clone(), caller.clone(), new.clone());
    app.answers.once(&caller, key, &("tenants", &new), app.now(), work).await
}

async fn make(app: App, caller: Caller, new: NewTenant) -> Result<Tenant, Problem> {
    let id: TenantId = new.id.parse().map_err(|error: protocol::id::IdError| Problem::invalid(error.to_string()))?;
    let name = new.name.as_deref().unwrap_or(&new.id);
    let made = app.state.tenants.create(&id, name, &caller.actor(), app.now()).await?;
    Ok(Tenant::of(made, NodeCounts::default()))
}
