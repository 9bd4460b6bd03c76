//! Every error of the API, as RFC 9457 `application/problem+json`: what happened, to what, and what to do.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use store::StoreError;
use utoipa::ToSchema;

use super::denial::Denial;
use crate::access::{AccessError, Principal};
use crate::authorities::AuthoritiesError;
use crate::certificate_policy::PolicyError;
use crate::commands::{CancelError, RequestError};
use crate::enrollment::{AdviseError, RevokeError, TokenError, UnfreezeError};
use crate::kafka_access;
use crate::labels::LabelError;
use crate::logs::search::SearchError;
use crate::operators::OperatorsError;
use crate::reason::ReasonError;
use crate::rollouts::{RolloutError, WavesError, WindowError};
use crate::rotation::RotationError;
use crate::tails::TailsError;
use crate::telemetry::history::HistoryError;
use crate::tenants::TenantError;

/// An error's body (RFC 9457, section 3.1).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Names the kind of problem for programs: `urn:hyperfactory:problem:…`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem, for people.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// This problem, and what to do.
    pub detail: String,
    #[serde(skip)]
    retry_after: Option<Duration>,
    #[serde(skip)]
    denial: Option<Box<Denial>>,
}

impl Problem {
    fn new(status: StatusCode, kind: &str, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:hyperfactory:problem:{kind}"),
            title,
            status: status.as_u16(),
            detail: detail.into(),
            retry_after: None,
            denial: None,
        }
    }

    /// The same as a denial to somebody known: it goes into the audit log.
    pub(crate) fn to(self, principal: &Principal) -> Self {
        Self { denial: Some(Box::new(Denial::of(principal, &self.detail))), ..self }
    }

    /// 400: the request can't be read.
    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", "The request can't be read", detail)
    }

    /// 401: nobody known.
    pub(crate) fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "No valid token", detail)
    }

    /// 403: the role does not reach.
    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Not allowed", detail)
    }

    /// 404: it is not there, or not for this caller.
    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    }

    /// 405: the address knows other methods.
    pub(crate) fn method() -> Self {
        let detail = "This address does not take this method; the Allow header names those it takes.";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Wrong method", detail)
    }

    /// 409: it is in another state.
    pub(crate) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "Conflict", detail)
    }

    /// 413: the body is too large.
    pub(crate) fn too_large(limit: usize) -> Self {
        let detail = format!("A request's body has at most {limit} bytes here.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The request is too large", detail)
    }

    /// 415: the body is not JSON.
    pub(crate) fn media_type() -> Self {
        let detail = "Send JSON, with the header Content-Type: application/json.";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", "Wrong media type", detail)
    }

    /// 422: readable, and wrong.
    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "The request is not valid", detail)
    }

    /// 429: too often.
    pub(crate) fn too_many(detail: impl Into<String>, retry_after: Duration) -> Self {
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many", "Too many requests", detail);
        Self { retry_after: Some(retry_after), ..problem }
    }

    /// 503: not now.
    pub(crate) fn unavailable(detail: impl Into<String>, retry_after: Duration) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Not available now", detail);
        Self { retry_after: Some(retry_after), ..problem }
    }

    /// 500: the hub's own fault. The cause goes to its log.
    pub(crate) fn internal(error: &dyn std::error::Error) -> Self {
        let mut causes = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            causes = format!("{causes}: {cause}");
            source = cause.source();
        }
        tracing::error!(error = causes, "a request failed");
        let detail =
            "The hub could not do this; its log says why. Try again, and if it stays so, see `hyperfactory-hub check`.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The hub failed", detail)
    }

    /// The HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let media_type = HeaderValue::from_static("application/problem+json");
        let mut response = (self.status(), [(header::CONTENT_TYPE, media_type)], body).into_response();
        if self.status() == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"hyperfactory\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(denial) = self.denial {
            response.extensions_mut().insert(*denial);
        }
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response
    }
}

impl From<AccessError> for Problem {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Invalid => Self::unauthorized(error.to_string()),
            AccessError::TooMany { retry_after } => Self::too_many(error.to_string(), retry_after),
            AccessError::Grant(_) => Self::invalid(error.to_string()),
            AccessError::Unknown(_) => Self::not_found(error.to_string()),
            AccessError::Store(error) => error.into(),
        }
    }
}

impl From<TenantError> for Problem {
    fn from(error: TenantError) -> Self {
        match error {
            TenantError::Exists(_) => Self::conflict(error.to_string()),
            TenantError::Unknown(_) => Self::not_found(error.to_string()),
            TenantError::Name => Self::invalid(error.to_string()),
            TenantError::Store(error) => error.into(),
            TenantError::Authorities(error) => error.into(),
        }
    }
}

impl From<AuthoritiesError> for Problem {
    fn from(error: AuthoritiesError) -> Self {
        match error {
            AuthoritiesError::Missing(_) => Self::not_found(error.to_string()),
            AuthoritiesError::KeyElsewhere(_) => Self::conflict(error.to_string()),
            AuthoritiesError::Request(_) | AuthoritiesError::NotABridge { .. } => Self::invalid(error.to_string()),
            AuthoritiesError::RootOffline | AuthoritiesError::AwaitingSignature(_) => Self::conflict(error.to_string()),
            AuthoritiesError::Store(error) => error.into(),
            error => Self::internal(&error),
        }
    }
}

impl From<RotationError> for Problem {
    fn from(error: RotationError) -> Self {
        match error {
            RotationError::Unknown(_) => Self::not_found(error.to_string()),
            RotationError::What(_) | RotationError::Reason | RotationError::Within => Self::invalid(error.to_string()),
            RotationError::UnderWay { .. }
            | RotationError::Elsewhere { .. }
            | RotationError::Over { .. }
            | RotationError::Unsigned { .. }
            | RotationError::NotReady { .. }
            | RotationError::Brokers { .. }
            | RotationError::Ended(_) => Self::conflict(error.to_string()),
            RotationError::Authorities(error) => error.into(),
            RotationError::Store(error) => error.into(),
        }
    }
}

impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Tenant(_) => Self::not_found(error.to_string()),
            TokenError::Name | TokenError::Lifetime => Self::invalid(error.to_string()),
            TokenError::Store(error) => error.into(),
            TokenError::Token(_) => Self::internal(&error),
        }
    }
}

impl From<RevokeError> for Problem {
    fn from(error: RevokeError) -> Self {
        match error {
            RevokeError::Unknown(_) => Self::not_found(error.to_string()),
            RevokeError::Reason(_) | RevokeError::Comment => Self::invalid(error.to_string()),
            RevokeError::Store(error) => error.into(),
        }
    }
}

impl From<UnfreezeError> for Problem {
    fn from(error: UnfreezeError) -> Self {
        match error {
            UnfreezeError::Unknown(_) => Self::not_found(error.to_string()),
            UnfreezeError::Store(error) => error.into(),
        }
    }
}

impl From<RequestError> for Problem {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Backlog(..) => Self::conflict(error.to_string()),
            RequestError::Store(error) => error.into(),
            error => Self::invalid(error.to_string()),
        }
    }
}

impl From<RolloutError> for Problem {
    fn from(error: RolloutError) -> Self {
        match error {
            RolloutError::Unknown(_) => Self::not_found(error.to_string()),
            RolloutError::Over { .. } | RolloutError::Halted(_) => Self::conflict(error.to_string()),
            RolloutError::Limits(_) => Self::invalid(error.to_string()),
            RolloutError::Request(error) => error.into(),
            RolloutError::Store(error) => error.into(),
        }
    }
}

impl From<ReasonError> for Problem {
    fn from(error: ReasonError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<WavesError> for Problem {
    fn from(error: WavesError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<WindowError> for Problem {
    fn from(error: WindowError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<AdviseError> for Problem {
    fn from(error: AdviseError) -> Self {
        match error {
            AdviseError::Within | AdviseError::Reason => Self::invalid(error.to_string()),
            AdviseError::Store(error) => error.into(),
        }
    }
}

impl From<PolicyError> for Problem {
    fn from(error: PolicyError) -> Self {
        match error {
            PolicyError::Kind(_) | PolicyError::Tenant(_) => Self::not_found(error.to_string()),
            PolicyError::Store(error) => error.into(),
            error => Self::invalid(error.to_string()),
        }
    }
}

impl From<OperatorsError> for Problem {
    fn from(error: OperatorsError) -> Self {
        match error {
            OperatorsError::Name => Self::invalid(error.to_string()),
            OperatorsError::Known => Self::conflict(error.to_string()),
            OperatorsError::Unknown(_) => Self::not_found(error.to_string()),
            OperatorsError::Store(error) => error.into(),
        }
    }
}

impl From<LabelError> for Problem {
    fn from(error: LabelError) -> Self {
        match error {
            LabelError::Malformed(_) | LabelError::TooMany => Self::invalid(error.to_string()),
            LabelError::Store(error) => error.into(),
        }
    }
}

impl From<kafka_access::AccessError> for Problem {
    fn from(error: kafka_access::AccessError) -> Self {
        match error {
            kafka_access::AccessError::NotABridge(_) => Self::conflict(error.to_string()),
            kafka_access::AccessError::Topics(_) => Self::invalid(error.to_string()),
            kafka_access::AccessError::Store(error) => error.into(),
        }
    }
}

impl From<CancelError> for Problem {
    fn from(error: CancelError) -> Self {
        match error {
            CancelError::Unknown(_) | CancelError::NoRequest(_) => Self::not_found(error.to_string()),
            CancelError::Store(error) => error.into(),
        }
    }
}

impl From<TailsError> for Problem {
    fn from(error: TailsError) -> Self {
        match error {
            TailsError::Offline => Self::conflict(error.to_string()),
            TailsError::Busy => Self::too_many(error.to_string(), Duration::from_secs(5)),
            TailsError::Store(error) => error.into(),
            TailsError::Tail(_) => Self::invalid(error.to_string()),
        }
    }
}

impl From<SearchError> for Problem {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::Text(_) | SearchError::Grep(_) | SearchError::Late => Self::invalid(error.to_string()),
            SearchError::Store(error) => error.into(),
        }
    }
}

impl From<HistoryError> for Problem {
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::Range => Self::invalid(error.to_string()),
            HistoryError::Stopped => Self::unavailable(error.to_string(), Duration::from_secs(5)),
            HistoryError::Store(error) => error.into(),
        }
    }
}

/// What passes says so itself, and what to do about it: the disk is full, the database is away.
impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let problem = Self::internal(&error);
        if error.is_temporary() { Self::unavailable(error.to_string(), Duration::from_secs(5)) } else { problem }
    }
}
