//! `/api/v1/tenants/{tenant}/kafka`: the tenant's Kafka plane; and what its bridges may do there.

use std::net::IpAddr;

use axum::extract::State;
use axum::response::Response;
use pki::{ServerNames, pem};
use protocol::{NodeId, TenantId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Caller, Json, Path};
use super::idempotency::IdempotencyKey;
use super::nodes::unknown;
use super::problem::Problem;
use super::resource::Time;
use crate::access::Role;
use crate::web::App;

/// A certificate for a tenant's brokers, to be issued.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewServerCertificate {
    /// A PKCS#10 request in PEM. Its public key is taken and nothing else; P-256, P-384 or Ed25519.
    certificate_request: String,
    /// Host names that clients reach the brokers by; no wildcards.
    #[serde(default)]
    dns_names: Vec<String>,
    /// Addresses that clients reach the brokers by.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    ip_addresses: Vec<IpAddr>,
}

/// A certificate for a tenant's brokers.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ServerCertificate {
    /// Its serial number, in hexadecimal digits.
    serial: String,
    /// The host names and addresses in it.
    names: Vec<String>,
    /// Start of validity.
    not_before: Time,
    /// End of validity.
    not_after: Time,
    /// The certificate, in PEM.
    certificate: String,
    /// The tenant's Kafka root that issued it, in PEM: what clients have to trust.
    root: String,
}

/// Issues a certificate for the tenant's brokers, from the tenant's own Kafka root. Takes the role admin.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/kafka/server-certificate", tag = "kafka",
    request_body = NewServerCertificate,
    params(("tenant" = String, Path), ("Idempotency-Key" = Option<String>, Header)), responses(
    (status = 201, body = ServerCertificate),
))]
pub(crate) async fn server_certificate(
    State(app): State<App>,
    caller: Caller,
    Path(tenant): Path<TenantId>,
    key: IdempotencyKey,
    Json(new): Json<NewServerCertificate>,
) -> Result<Response, Problem> {
    caller.require_tenant(&tenant)?;
    caller.require(Role::Admin)?;
    let work = issue(app.clone(), caller.clone(), tenant.clone(), new.clone());
    app.answers.once(&caller, key, &("kafka-server", tenant.as_str(), &new), app.now(), work).await
}

async fn issue(
    app: App,
    caller: Caller,
    tenant: TenantId,
    new: NewServerCertificate,
) -> Result<ServerCertificate, Problem> {
    app.state.tenants.within(caller.0.tenant.as_ref()).get(&tenant).await?;
    let invalid = |error: &dyn std::error::Error| Problem::invalid(error.to_string());
    let request = pem::request(&new.certificate_request).map_err(|error| invalid(&error))?;
    let names = ServerNames::new(&new.dns_names, &new.ip_addresses).map_err(|error| invalid(&error))?;
    let issued = app.state.authorities.kafka_server(&tenant, &request, &names, &caller.actor(), app.now()).await?;
    Ok(ServerCertificate {
        serial: data_encoding::HEXLOWER.encode(&issued.summary.serial),
        names: names.iter().collect(),
        not_before: issued.summary.not_before.into(),
        not_after: issued.summary.not_after.into(),
        certificate: pem::certificates([&issued.certificate]),
        root: pem::certificates([&issued.root]),
    })
}

/// What a bridge may do at its tenant's brokers.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WantedAccess {
    /// Topics it may write to, at most 64: each by name, or by a beginning and `*`.
    topics: Vec<String>,
}

/// Says which Kafka topics a bridge may write to: these and no others. An agent of the tenant that is configured for the brokers
/// brings their access lists to it. Takes the role admin.
#[utoipa::path(put, path = "/api/v1/nodes/{node}/kafka-access", tag = "kafka", params(("node" = String, Path)),
    request_body = WantedAccess, responses(
    (status = 200, body = WantedAccess),
))]
pub(crate) async fn access(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<NodeId>,
    Json(wanted): Json<WantedAccess>,
) -> Result<axum::Json<WantedAccess>, Problem> {
    caller.require(Role::Admin)?;
    let (_, view) = app.roster.node(&caller.0, id).ok_or_else(|| unknown(id))?;
    app.state.kafka_access.allow(id, &view.tenant, &wanted.topics, &caller.actor(), app.now()).await?;
    Ok(axum::Json(wanted))
}
