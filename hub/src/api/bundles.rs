//! `/pki`: what others have to trust, at addresses that do not change, for anybody.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use data_encoding::HEXLOWER;
use pki::{Role, pem};
use protocol::TenantId;
use ring::digest::{SHA256, digest};

use super::extract::Path;
use super::problem::Problem;
use crate::tenants::TenantError;
use crate::web::App;

/// RFC 8555, section 9.1.
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/pem-certificate-chain");
/// A rotation gives everybody far more time than this to learn of a new root.
const CACHED: HeaderValue = HeaderValue::from_static("public, max-age=300");

/// The fleet's root: what nodes trust.
#[utoipa::path(get, path = "/pki/fleet-root.pem", tag = "trust", security(()), responses(
    (status = 200, body = String, content_type = "application/pem-certificate-chain"),
))]
pub(crate) async fn fleet_root(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    bundle(&app, &headers, &Role::Root, "This hub has no fleet root.".into()).await
}

/// A tenant's Kafka roots: what its brokers and its bridges trust.
#[utoipa::path(get, path = "/pki/{tenant}/kafka-root.pem", tag = "trust", security(()),
    params(("tenant" = String, Path)), responses(
    (status = 200, body = String, content_type = "application/pem-certificate-chain"),
))]
pub(crate) async fn kafka_root(
    State(app): State<App>,
    Path(tenant): Path<TenantId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let unknown = TenantError::Unknown(tenant.clone()).to_string();
    bundle(&app, &headers, &Role::Kafka(tenant), unknown).await
}

/// The intermediates that issue the identities of a tenant's nodes, under the fleet's root.
#[utoipa::path(get, path = "/pki/{tenant}/nodes-intermediate.pem", tag = "trust", security(()),
    params(("tenant" = String, Path)), responses(
    (status = 200, body = String, content_type = "application/pem-certificate-chain"),
))]
pub(crate) async fn nodes_intermediate(
    State(app): State<App>,
    Path(tenant): Path<TenantId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let unknown = TenantError::Unknown(tenant.clone()).to_string();
    bundle(&app, &headers, &Role::Nodes(tenant), unknown).await
}

async fn bundle(app: &App, headers: &HeaderMap, role: &Role, unknown: String) -> Result<Response, Problem> {
    let certificates = app.state.authorities.trusted(role, app.now()).await?;
    if certificates.is_empty() {
        return Err(Problem::not_found(unknown));
    }
    let text = pem::certificates(&certificates);
    let tag = format!("\"{}\"", HEXLOWER.encode(&digest(&SHA256, text.as_bytes()).as_ref()[..16]));
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let tag_header = HeaderValue::from_str(&tag).map_err(|error| Problem::internal(&error))?;
    let fixed = [(header::CACHE_CONTROL, CACHED), (header::ETAG, tag_header)];
    if known.is_some_and(|known| known == "*" || known.split(',').any(|one| one.trim() == tag)) {
        return Ok((StatusCode::NOT_MODIFIED, fixed).into_response());
    }
    Ok((fixed, [(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response())
}
