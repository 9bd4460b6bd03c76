//! The pages of join tokens and API tokens: made by a form, and shown once.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use protocol::TenantId;
use serde::Deserialize;

use super::{Asked, framed, may, still, tenant_list};
use crate::access::{self, Grant};
use crate::api::extract::{Path, Query, require_all, require_tenant};
use crate::api::problem::Problem;
use crate::api::resource::{ApiToken, Kind, NewApiToken, NewToken, Role};
use crate::dashboard::layout::Section;
use crate::dashboard::session::{Sent, Visitor, capital, ours};
use crate::dashboard::{OrShown as _, Shown, api_tokens as token_views, join as join_views};
use crate::enrollment;
use crate::web::App;

#[derive(Clone, Debug, Default, Deserialize)]
pub(in crate::dashboard) struct JoinQuery {
    #[serde(default)]
    tenant: String,
}

/// `GET /join`
pub(in crate::dashboard) async fn join(
    State(app): State<App>,
    visitor: Visitor,
    query: Asked<Query<JoinQuery>>,
) -> Result<Response, Shown> {
    let Query(query) = query.or_shown(&app)?;
    may(&visitor, access::Role::Operator).or_shown(&app)?;
    let form = join_views::Form {
        tenant: query.tenant,
        kind: Kind::Agent,
        name: String::new(),
        valid_for: 3_600,
        error: None,
    };
    join_page(&app, &visitor, &form).await
}

async fn join_page(app: &App, visitor: &Visitor, form: &join_views::Form) -> Result<Response, Shown> {
    let tenants = tenant_list(app, visitor.principal()).await.or_shown(app)?;
    let content = join_views::form(&tenants, form, &visitor.viewer());
    framed(app, visitor, "Add a node", Section::Join, None, &content).await
}

#[derive(Deserialize)]
pub(in crate::dashboard) struct JoinForm {
    csrf: String,
    tenant: String,
    kind: Kind,
    #[serde(default)]
    name: String,
    valid_for: u64,
}

/// `POST /join`: the only time the token is shown.
pub(in crate::dashboard) async fn create_token(
    State(app): State<App>,
    sent: Sent<JoinForm>,
) -> Result<Response, Shown> {
    let Sent { visitor, form } = sent;
    may(&visitor, access::Role::Operator).or_shown(&app)?;
    let (who, now) = (visitor.principal(), app.now());
    let created = async {
        let tenant: TenantId =
            form.tenant.parse().map_err(|error: protocol::id::IdError| Problem::invalid(error.to_string()))?;
        require_tenant(who, &tenant)?;
        let name = Some(form.name.trim().to_owned()).filter(|name| !name.is_empty());
        let valid_for = Duration::from_secs(form.valid_for);
        let new = enrollment::NewToken { tenant, kind: form.kind.into(), name, valid_for };
        app.state.enrollment.create_token(new, &who.actor(), now).await.map_err(Problem::from)
    };
    match created.await {
        Ok((info, secret)) => {
            let made = NewToken::of(info, &secret.to_string(), now);
            let content = join_views::made(&made, still(&app));
            let live = format!("join&token={}", made.info.id);
            framed(&app, &visitor, "Add a node", Section::Join, Some(live), &content).await
        }
        Err(problem) if problem.status().is_client_error() => {
            let form = join_views::Form {
                tenant: form.tenant,
                kind: form.kind,
                name: form.name,
                valid_for: form.valid_for,
                error: Some(capital(&problem.detail)),
            };
            let page = join_page(&app, &visitor, &form).await?;
            Ok((problem.status(), page).into_response())
        }
        Err(problem) => Err(problem).or_shown(&app),
    }
}

/// `GET /api-tokens`
pub(in crate::dashboard) async fn api_tokens(State(app): State<App>, visitor: Visitor) -> Result<Response, Shown> {
    may(&visitor, access::Role::Admin).or_shown(&app)?;
    require_all(visitor.principal()).or_shown(&app)?;
    api_tokens_page(&app, &visitor, None, None).await
}

async fn api_tokens_page(
    app: &App,
    visitor: &Visitor,
    fresh: Option<&NewApiToken>,
    error: Option<&str>,
) -> Result<Response, Shown> {
    let tenants = tenant_list(app, visitor.principal()).await.or_shown(app)?;
    let tokens = app.state.access.list_api_tokens().await.or_shown(app)?;
    let tokens: Vec<ApiToken> = tokens.into_iter().map(ApiToken::from).collect();
    let content = token_views::page(&tokens, &tenants, fresh, error, &visitor.viewer(), still(app));
    framed(app, visitor, "API tokens", Section::Access, None, &content).await
}

#[derive(Deserialize)]
pub(in crate::dashboard) struct ApiTokenForm {
    csrf: String,
    name: String,
    role: Role,
    #[serde(default)]
    tenant: String,
}

/// `POST /api-tokens`: the only time the token is shown.
pub(in crate::dashboard) async fn create_api_token(
    State(app): State<App>,
    sent: Sent<ApiTokenForm>,
) -> Result<Response, Shown> {
    let Sent { visitor, form } = sent;
    may(&visitor, access::Role::Admin).or_shown(&app)?;
    require_all(visitor.principal()).or_shown(&app)?;
    let created = async {
        let tenant = Some(form.tenant.as_str()).filter(|tenant| !tenant.is_empty()).map(str::parse).transpose();
        let tenant = tenant.map_err(|error: protocol::id::IdError| Problem::invalid(error.to_string()))?;
        let grant = Grant { name: form.name, role: form.role.into(), tenant, valid_for: None };
        let actor = visitor.principal().actor();
        app.state.access.create_api_token(grant, &actor, app.now()).await.map_err(Problem::from)
    };
    match created.await {
        Ok((info, token)) => {
            api_tokens_page(&app, &visitor, Some(&NewApiToken { info: info.into(), token }), None).await
        }
        Err(problem) if problem.status().is_client_error() => {
            let page = api_tokens_page(&app, &visitor, None, Some(&capital(&problem.detail))).await?;
            Ok((problem.status(), page).into_response())
        }
        Err(problem) => Err(problem).or_shown(&app),
    }
}

#[derive(Deserialize)]
pub(in crate::dashboard) struct RevokeForm {
    csrf: String,
}

/// `POST /api-tokens/{id}/revoke`
pub(in crate::dashboard) async fn revoke_api_token(
    State(app): State<App>,
    id: Asked<Path<String>>,
    sent: Sent<RevokeForm>,
) -> Result<Response, Shown> {
    let Path(id) = id.or_shown(&app)?;
    may(&sent.visitor, access::Role::Admin).or_shown(&app)?;
    require_all(sent.visitor.principal()).or_shown(&app)?;
    let actor = sent.visitor.principal().actor();
    app.state.access.revoke_api_token(&id, &actor, app.now()).await.or_shown(&app)?;
    Ok(Redirect::to("/api-tokens").into_response())
}

ours!(JoinForm, ApiTokenForm, RevokeForm);
