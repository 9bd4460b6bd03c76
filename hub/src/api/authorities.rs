//! `/api/v1/authorities`.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Caller, Query};
use super::problem::Problem;
use super::resource::Time;
use crate::authorities::{self, Listed};
use crate::web::App;

/// A certificate authority.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Authority {
    /// Its number.
    pub id: i64,
    /// `root`: the fleet's anchor; `hub`: issues what the hub shows nodes; `nodes`: a tenant's, issues its nodes'
    /// identities; `kafka`: a tenant's own root; `web`: issues the hub's certificate for HTTPS.
    pub kind: String,
    /// Whose it is; absent: the fleet's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Counts from 1 within kind and tenant.
    pub generation: i64,
    /// `awaiting-signature`, `pending`, `trusted`, `active` or `retired`.
    pub state: String,
    /// SHA-256 of its public key, hexadecimal.
    pub key_sha256: String,
    /// When it was made.
    pub created_at: Time,
    /// End of its validity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Time>,
    /// When the hub makes its successor by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub followed_at: Option<Time>,
    /// By when it is to have a successor: an intermediate by the hub, a root by rotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renew_by: Option<Time>,
    /// Certificates of its that are good now.
    pub certificates: i64,
    /// Where its revocation list is.
    pub revocation_list: String,
}

impl From<Listed> for Authority {
    fn from(listed: Listed) -> Self {
        Self {
            revocation_list: format!("/crl/{}", listed.id),
            id: listed.id,
            kind: listed.kind,
            tenant: listed.tenant,
            generation: listed.generation,
            state: listed.state,
            key_sha256: listed.spki_sha256,
            created_at: Time(listed.created_at),
            not_after: listed.not_after.map(Time),
            followed_at: listed.followed_at.map(Time),
            renew_by: listed.renew_by.map(Time),
            certificates: listed.certificates,
        }
    }
}

/// Something that waits for the signature of a fleet root that is kept offline.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Awaited {
    /// `nodes`: a tenant's intermediate; `hub`: the hub's; `link`: the next root's introduction; `revocation-list`: the root's.
    pub kind: String,
    /// Whose it is; absent: the fleet's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Since when.
    pub since: Time,
    /// When the one before it ends; absent when there is none, and nothing goes on without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends: Option<Time>,
}

impl From<authorities::Awaited> for Awaited {
    fn from(awaited: authorities::Awaited) -> Self {
        Self {
            kind: awaited.kind.to_owned(),
            tenant: awaited.tenant,
            since: Time(awaited.since),
            ends: awaited.ends.map(Time),
        }
    }
}

/// Which authorities.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Only this tenant's.
    tenant: Option<String>,
}

/// All certificate authorities: the fleet's first, then by tenant, kind and age.
#[utoipa::path(get, path = "/api/v1/authorities", tag = "trust", params(Which), responses(
    (status = 200, body = Vec<Authority>),
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(which): Query<Which>,
) -> Result<axum::Json<Vec<Authority>>, Problem> {
    let scope = caller.scope(&app, which.tenant.as_deref()).await?;
    let listed = app.state.authorities.list(scope.as_ref(), app.now()).await?;
    Ok(axum::Json(listed.into_iter().map(Authority::from).collect()))
}

/// What waits for the signature of a fleet root that is kept offline; empty while its key is at the hub.
#[utoipa::path(get, path = "/api/v1/authorities/awaited", tag = "trust", params(Which), responses(
    (status = 200, body = Vec<Awaited>),
))]
pub(crate) async fn awaited(
    State(app): State<App>,
    caller: Caller,
    Query(which): Query<Which>,
) -> Result<axum::Json<Vec<Awaited>>, Problem> {
    let scope = caller.scope(&app, which.tenant.as_deref()).await?;
    let awaited = app.state.authorities.awaited(scope.as_ref(), app.now()).await?;
    Ok(axum::Json(awaited.into_iter().map(Awaited::from).collect()))
}
