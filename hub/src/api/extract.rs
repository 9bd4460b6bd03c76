//! What handlers take out of a request, each with a [`Problem`] for the request it can't be taken out of.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri, header};
use protocol::TenantId;
use serde::de::DeserializeOwned;

use super::problem::Problem;
use crate::access::{Principal, Role};
use crate::audit::Actor;
use crate::tenants::TenantError;
use crate::web::{App, BODY_LIMIT};

/// A JSON body.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        match axum::Json::from_request(request, app).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(JsonRejection::JsonDataError(error)) => Err(Problem::invalid(plain(&error.body_text()))),
            Err(JsonRejection::MissingJsonContentType(_)) => Err(Problem::media_type()),
            Err(other) if other.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(Problem::too_large(BODY_LIMIT)),
            Err(other) => Err(Problem::malformed(plain(&other.body_text()))),
        }
    }
}

/// The query of the address.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Problem> {
        query(&parts.uri).map(Self)
    }
}

/// The query of an address.
pub(crate) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    // PostgreSQL has no text with it, and nothing is called so.
    if uri.query().is_some_and(|query| query.contains("%00")) {
        return Err(Problem::invalid("No part of a query has the character U+0000."));
    }
    axum::extract::Query::try_from_uri(uri)
        .map(|axum::extract::Query(value)| value)
        .map_err(|error: QueryRejection| Problem::malformed(plain(&error.body_text())))
}

/// A part of the path, read as what it should be.
#[derive(Debug)]
pub(crate) struct Path<T>(pub(crate) T);

impl<T: std::str::FromStr<Err: std::fmt::Display> + Send> FromRequestParts<App> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let axum::extract::Path(text): axum::extract::Path<String> =
            axum::extract::Path::from_request_parts(parts, app)
                .await
                .map_err(|error: PathRejection| Problem::malformed(plain(&error.body_text())))?;
        if text.contains('\0') {
            return Err(Problem::not_found("Nothing has the character U+0000 in its name."));
        }
        text.parse().map(Self).map_err(|error: T::Err| Problem::not_found(error.to_string()))
    }
}

/// The address the request comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remote(pub(crate) IpAddr);

impl<S: Sync> FromRequestParts<S> for Remote {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let remote = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_canonical());
        Ok(Self(remote.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))))
    }
}

/// Whoever presents a valid bearer token.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) Principal);

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let remote = match Remote::from_request_parts(parts, app).await {
            Ok(Remote(remote)) => remote,
            Err(never) => match never {},
        };
        let bearer = bearer(parts).ok_or_else(|| {
            Problem::unauthorized("Send the header Authorization: Bearer hft_…; see `hyperfactory-hub api-token`.")
        })?;
        Ok(Self(app.state.access.authenticate(bearer, remote, app.now()).await?.at(remote)))
    }
}

/// The token of the Authorization header (RFC 6750, section 2.1).
pub(crate) fn bearer(parts: &Parts) -> Option<&str> {
    let value = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

impl Caller {
    /// Refuses those whose role does not reach.
    pub(crate) fn require(&self, role: Role) -> Result<(), Problem> {
        require(&self.0, role)
    }

    /// Refuses those who act for one tenant alone.
    pub(crate) fn require_all(&self) -> Result<(), Problem> {
        require_all(&self.0)
    }

    /// Refuses those for whom `tenant` does not exist.
    pub(crate) fn require_tenant(&self, tenant: &TenantId) -> Result<(), Problem> {
        require_tenant(&self.0, tenant)
    }

    /// The tenant a list is of: the caller's own, or the one asked for. Another tenant than the own is not there, and of one
    /// that does not exist no list is empty: who mistypes it is not told that all is well.
    pub(crate) async fn scope(&self, app: &App, asked: Option<&str>) -> Result<Option<TenantId>, Problem> {
        let asked =
            asked.map(str::parse::<TenantId>).transpose().map_err(|error| Problem::invalid(error.to_string()))?;
        if let Some(asked) = &asked {
            self.require_tenant(asked)?;
            app.state.tenants.within(self.0.tenant.as_ref()).get(asked).await?;
        }
        Ok(self.0.tenant.clone().or(asked))
    }

    /// Their name in the audit log.
    pub(crate) fn actor(&self) -> Actor {
        self.0.actor()
    }
}

/// Refuses those whose role does not reach.
pub(crate) fn require(principal: &Principal, role: Role) -> Result<(), Problem> {
    if principal.may(role) {
        return Ok(());
    }
    Err(Problem::forbidden(format!(
        "This takes the role {role}; {:?} has the role {}.",
        principal.name, principal.role
    ))
    .to(principal))
}

/// Refuses those who act for one tenant alone.
pub(crate) fn require_all(principal: &Principal) -> Result<(), Problem> {
    match &principal.tenant {
        None => Ok(()),
        Some(own) => {
            Err(Problem::forbidden(format!("{:?} acts for the tenant {own} alone.", principal.name)).to(principal))
        }
    }
}

/// Refuses those for whom `tenant` does not exist, in the same words as when it does not exist at all.
pub(crate) fn require_tenant(principal: &Principal, tenant: &TenantId) -> Result<(), Problem> {
    if principal.sees(tenant) {
        return Ok(());
    }
    Err(Problem::not_found(TenantError::Unknown(tenant.clone()).to_string()).to(principal))
}

/// A library's message without its own prefix.
fn plain(text: &str) -> String {
    let text = text.split_once(": ").map_or(text, |(_, rest)| rest);
    let mut chars = text.chars();
    let capital = chars.next().map(|first| first.to_uppercase().collect::<String>()).unwrap_or_default();
    let rest: String = chars.take(400).collect();
    format!("{capital}{}.", rest.trim_end_matches('.'))
}
