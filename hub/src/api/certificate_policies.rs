//! `/api/v1/certificate-policies`: how long certificates live, and when they are renewed.

use std::time::Duration;

use axum::extract::State;
use protocol::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Caller, Json, Path, Query};
use super::problem::Problem;
use super::renewals::Advised;
use super::resource::Time;
use crate::access::Role;
use crate::certificate_policy::{Kind, Stated, Terms};
use crate::enrollment::Whom;
use crate::web::App;

/// What the audit log gives as the reason when nodes renew because of a new policy.
const REASON: &str = "the certificate policy has changed";

/// The terms of one kind of certificate.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct CertificatePolicy {
    /// `agent`, `bridge`: a node's identity; `kafka-client`, `kafka-server`: of a tenant's Kafka plane;
    /// `nodes-intermediate`, `kafka-root`: a tenant's authorities; `hub-intermediate`, `root`: the fleet's.
    pub kind: String,
    /// How long a new certificate lives.
    pub lifetime_seconds: u64,
    /// A certificate is renewed between this share of its life, percent …
    pub renew_from_percent: u8,
    /// … and this one. An intermediate is followed by a new one then; a root is to be rotated.
    pub renew_until_percent: u8,
    /// Where the terms come from: `default`, `fleet` or `tenant`.
    pub source: String,
    /// When they were set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<Time>,
    /// By whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_by: Option<String>,
}

impl From<Stated> for CertificatePolicy {
    fn from(stated: Stated) -> Self {
        let Terms { lifetime, renew_from, renew_until } = stated.terms;
        let (changed_at, changed_by) = stated.changed.unzip();
        Self {
            kind: stated.kind.to_string(),
            lifetime_seconds: lifetime.as_secs(),
            renew_from_percent: renew_from,
            renew_until_percent: renew_until,
            source: stated.source.as_str().to_owned(),
            changed_at: changed_at.map(Time),
            changed_by,
        }
    }
}

/// Terms to be set.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTerms {
    /// For this tenant alone; for the fleet unless given.
    #[serde(default)]
    tenant: Option<String>,
    /// How long a certificate lives. Of a node or a Kafka plane 1 hour to 1,095 days, of an intermediate 7 to 3,650 days, of
    /// a root 90 to 10,950 days; and never longer than what its issuer has left at the end of its own window.
    lifetime_seconds: u64,
    /// It is renewed between this share of its life, percent: 10 and more …
    renew_from_percent: u8,
    /// … and this one: at least 5 more, and at most 85.
    renew_until_percent: u8,
    /// Have nodes whose certificates end later than the new policy allows renew them, spread over so long.
    #[serde(default)]
    renew_within_seconds: Option<u64>,
}

/// Terms as they were set.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct SetTerms {
    /// What goes from now on.
    #[serde(flatten)]
    pub policy: CertificatePolicy,
    /// Nodes whose certificates end later than a new one would.
    pub outlived_by: usize,
    /// What they were told, if they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advised: Option<Advised>,
}

/// Whose policy.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Whose {
    /// This tenant's; the fleet's unless given.
    tenant: Option<String>,
}

/// How long each kind of certificate lives, and when it is renewed: of the fleet, or as it goes for one tenant.
#[utoipa::path(get, path = "/api/v1/certificate-policies", tag = "trust", params(Whose), responses(
    (status = 200, body = Vec<CertificatePolicy>),
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(whose): Query<Whose>,
) -> Result<axum::Json<Vec<CertificatePolicy>>, Problem> {
    let tenant = caller.scope(&app, whose.tenant.as_deref()).await?;
    if let Some(tenant) = &tenant {
        app.state.tenants.within(caller.0.tenant.as_ref()).get(tenant).await?;
    }
    let stated = app.state.authorities.policies().list(tenant.as_ref());
    Ok(axum::Json(stated.into_iter().map(CertificatePolicy::from).collect()))
}

/// Sets how long a kind of certificate lives, and when it is renewed, from the next certificate on. Takes the role admin,
/// unbound.
#[utoipa::path(put, path = "/api/v1/certificate-policies/{kind}", tag = "trust", request_body = NewTerms,
    params(("kind" = String, Path)), responses(
    (status = 200, body = SetTerms),
))]
pub(crate) async fn set(
    State(app): State<App>,
    caller: Caller,
    Path(kind): Path<Kind>,
    Json(new): Json<NewTerms>,
) -> Result<axum::Json<SetTerms>, Problem> {
    let terms = Terms {
        lifetime: Duration::from_secs(new.lifetime_seconds),
        renew_from: new.renew_from_percent,
        renew_until: new.renew_until_percent,
    };
    let within = new.renew_within_seconds.map(Duration::from_secs);
    change(&app, &caller, kind, new.tenant.as_deref(), Some(terms), within).await
}

/// Takes terms back: what goes for the fleet, or by default, goes again. Takes the role admin, unbound.
#[utoipa::path(delete, path = "/api/v1/certificate-policies/{kind}", tag = "trust",
    params(("kind" = String, Path), Whose), responses(
    (status = 200, body = SetTerms),
))]
pub(crate) async fn reset(
    State(app): State<App>,
    caller: Caller,
    Path(kind): Path<Kind>,
    Query(whose): Query<Whose>,
) -> Result<axum::Json<SetTerms>, Problem> {
    change(&app, &caller, kind, whose.tenant.as_deref(), None, None).await
}

async fn change(
    app: &App,
    caller: &Caller,
    kind: Kind,
    tenant: Option<&str>,
    terms: Option<Terms>,
    renew_within: Option<Duration>,
) -> Result<axum::Json<SetTerms>, Problem> {
    caller.require(Role::Admin)?;
    caller.require_all()?;
    let tenant = tenant.map(str::parse::<TenantId>).transpose();
    let tenant = tenant.map_err(|error| Problem::invalid(error.to_string()))?;
    let (policies, actor, now) = (app.state.authorities.policies(), caller.actor(), app.now());
    let stated = policies.set(&app.state.database, tenant.as_ref(), kind, terms, &actor, now).await?;
    let longer = app.state.enrollment.outliving(tenant.as_ref(), kind, now);
    let outlived_by = longer.len();
    let advised = match renew_within {
        Some(within) if outlived_by > 0 => {
            let advised = app.state.enrollment.renew_soon(&Whom::Nodes(longer), within, &actor, REASON, now).await?;
            Some(advised.into())
        }
        _ => None,
    };
    Ok(axum::Json(SetTerms { policy: stated.into(), outlived_by, advised }))
}
