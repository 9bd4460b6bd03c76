//! The handlers: who looks, at what, and the page around it.

mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use maud::{Markup, html};
use protocol::{NodeId, TenantId};
use serde::Deserialize;

use super::alerts::Which;
use super::format::{Clock, escaped};
use super::layout::{Frame, Section};
use super::session::{Sent, Visitor, capital, ours};
use super::{OrShown as _, Shown, assets, fleet as fleet_views};
use super::{
    alerts as alert_views, audit as audit_views, bridges, commands, history, node as node_views, pki as pki_views,
    rotation as rotation_views, selection, tenants as tenant_views, trust,
};
use crate::access::{self, Principal};
use crate::alerts;
use crate::api::alert_resources;
use crate::api::authorities::{Authority, Awaited};
use crate::api::certificate_policies::CertificatePolicy;
use crate::api::extract::{Path, Query, require, require_all, require_tenant};
use crate::api::list::Window;
use crate::api::problem::Problem;
use crate::api::resource::{Alert, AuditEntry, Coverage, Node, NodeCounts, NodeDetail, Tenant, Time, Token};
use crate::api::rotations::{self, Rotation};
use crate::api::select::{Labelled, NodeQuery, Selected};
use crate::audit::{self, Filter};
use crate::certificate_policy::Source;
use crate::labels;
use crate::web::App;

pub(super) use tokens::{api_tokens, create_api_token, create_token, join, revoke_api_token};

/// Alerts and audit entries on one page.
const ENTRIES: u32 = 100;
/// Alerts shown on a node's page.
const OF_NODE: u32 = 20;
/// Nodes whose certificates end first.
const ENDING: usize = 50;
/// Join tokens shown on a tenant's page.
const TOKENS: usize = 20;

/// An extractor's value, or its problem as a page.
pub(super) type Asked<T> = Result<T, Problem>;

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct More {
    /// All rows rather than the first.
    #[serde(default)]
    all: Option<u8>,
}

impl More {
    fn rows(self) -> usize {
        if self.all.is_some() { fleet_views::MAX_ROWS } else { fleet_views::ROWS }
    }
}

/// A list of nodes: what both the page and its live stream show.
pub(super) struct Listed {
    pub(super) counts: NodeCounts,
    pub(super) rows: Vec<Arc<Node>>,
    pub(super) worst: Vec<Arc<Node>>,
    pub(super) matched: usize,
}

impl Listed {
    pub(super) async fn new(
        app: &App,
        who: &Principal,
        tenant: Option<&TenantId>,
        query: &NodeQuery,
        more: More,
    ) -> Result<Self, Problem> {
        let labelled = match query.labelled(app, who).await {
            // Somebody is still typing: no node has what is no label yet.
            Err(problem) if problem.status().is_client_error() => Labelled::none(),
            labelled => labelled?,
        };
        let nodes = app.roster.of(who, tenant);
        let selected: Selected = query.select(nodes.iter().filter(|node| labelled.holds(node)));
        Ok(Self {
            counts: NodeCounts::of(nodes.iter().map(|node| &**node)),
            rows: selected.page(None, more.rows()).0,
            worst: fleet_views::worst(&nodes),
            matched: selected.len(),
        })
    }

    pub(super) fn view<'a>(
        &'a self,
        path: &'a str,
        query: &'a NodeQuery,
        one_tenant: bool,
        who: &Principal,
    ) -> fleet_views::View<'a> {
        fleet_views::View {
            path,
            one_tenant,
            query,
            counts: self.counts,
            rows: &self.rows,
            matched: self.matched,
            worst: &self.worst,
            operates: who.may(access::Role::Operator),
            no_tenants: false,
        }
    }
}

/// `GET /`
pub(super) async fn fleet(
    State(app): State<App>,
    visitor: Visitor,
    query: Asked<Query<NodeQuery>>,
    more: Asked<Query<More>>,
) -> Result<Response, Shown> {
    let (Query(query), Query(more)) = (query.or_shown(&app)?, more.or_shown(&app)?);
    let tenants = tenant_list(&app, visitor.principal()).await.or_shown(&app)?;
    let listed = Listed::new(&app, visitor.principal(), None, &query, more).await.or_shown(&app)?;
    let view =
        fleet_views::View { no_tenants: tenants.is_empty(), ..listed.view("/", &query, false, visitor.principal()) };
    let content = html! { (fleet_views::heading(&view, tenants.len())) (fleet_views::view(&view, still(&app))) (selection::bar(&visitor.viewer())) };
    let live = format!("fleet&{}{}", fleet_views::encode(&query), more.all.map_or("", |_| "&all=1"));
    framed(&app, &visitor, "Fleet", Section::Fleet, Some(live), &content).await
}

/// `GET /tenants`
pub(super) async fn tenants(State(app): State<App>, visitor: Visitor) -> Result<Response, Shown> {
    tenants_page(&app, &visitor, &tenant_views::Form::default()).await
}

async fn tenants_page(app: &App, visitor: &Visitor, form: &tenant_views::Form) -> Result<Response, Shown> {
    let tenants = tenant_list(app, visitor.principal()).await.or_shown(app)?;
    let content = tenant_views::page(&tenants, form, &visitor.viewer(), still(app));
    framed(app, visitor, "Tenants", Section::Tenants, Some("tenants".into()), &content).await
}

#[derive(Deserialize)]
pub(super) struct TenantForm {
    csrf: String,
    id: String,
    name: String,
}

ours!(TenantForm);

/// `POST /tenants`
pub(super) async fn create_tenant(State(app): State<App>, sent: Sent<TenantForm>) -> Result<Response, Shown> {
    let Sent { visitor, form } = sent;
    may(&visitor, access::Role::Admin).or_shown(&app)?;
    require_all(visitor.principal()).or_shown(&app)?;
    let created = async {
        let id: TenantId =
            form.id.trim().parse().map_err(|error: protocol::id::IdError| Problem::invalid(error.to_string()))?;
        app.state.tenants.create(&id, &form.name, &visitor.principal().actor(), app.now()).await.map_err(Problem::from)
    };
    match created.await {
        Ok(tenant) => Ok(Redirect::to(&format!("/tenants/{}", tenant.id)).into_response()),
        Err(problem) if problem.status().is_client_error() => {
            let form = tenant_views::Form { id: form.id, name: form.name, error: Some(capital(&problem.detail)) };
            let page = tenants_page(&app, &visitor, &form).await?;
            Ok((problem.status(), page).into_response())
        }
        Err(problem) => Err(problem).or_shown(&app),
    }
}

/// `GET /tenants/{tenant}`
pub(super) async fn tenant(
    State(app): State<App>,
    visitor: Visitor,
    id: Asked<Path<TenantId>>,
    query: Asked<Query<NodeQuery>>,
    more: Asked<Query<More>>,
) -> Result<Response, Shown> {
    let Path(id) = id.or_shown(&app)?;
    let (Query(query), Query(more)) = (query.or_shown(&app)?, more.or_shown(&app)?);
    let query = NodeQuery { tenant: Some(id.to_string()), ..query };
    let tenant = one_tenant(&app, visitor.principal(), &id).await.or_shown(&app)?;
    let listed = Listed::new(&app, visitor.principal(), Some(&id), &query, more).await.or_shown(&app)?;
    let tokens = join_tokens(&app, &id).await.or_shown(&app)?;
    let path = format!("/tenants/{id}");
    let clock = still(&app);
    let content = html! {
        (tenant_views::heading(&tenant, &visitor.viewer(), clock))
        (fleet_views::view(&listed.view(&path, &query, true, visitor.principal()), clock))
        (selection::bar(&visitor.viewer()))
        (tenant_views::tokens(&tokens, clock))
    };
    let live = format!("tenant&{}{}", fleet_views::encode(&query), more.all.map_or("", |_| "&all=1"));
    framed(&app, &visitor, &tenant.name, Section::Tenants, Some(live), &content).await
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Ranged {
    #[serde(default)]
    pub(super) range: node_views::Span,
}

/// `GET /nodes/{node}`
pub(super) async fn node(
    State(app): State<App>,
    visitor: Visitor,
    id: Asked<Path<NodeId>>,
    ranged: Asked<Query<Ranged>>,
) -> Result<Response, Shown> {
    let (Path(id), Query(Ranged { range })) = (id.or_shown(&app)?, ranged.or_shown(&app)?);
    let seen = Seen::of(&app, visitor.principal(), id).await.or_shown(&app)?;
    let charts = history::charts(&app, id, &seen.detail.node, range).await.or_shown(&app)?;
    let clock = still(&app);
    let content = html! {
        div #view {
            (node_views::heading(&seen.detail, clock))
            (node_views::notes(&seen.detail, &seen.open(), clock))
            (node_views::tiles(&seen.detail, clock))
            (node_views::services(&seen.detail, acts(&visitor, &seen.detail), clock))
            (bridges::section(&seen.detail.node, clock))
            (commands::history(&seen.detail, &seen.commands, &visitor.viewer(), clock))
            (node_views::charts(&seen.detail, range, &charts))
            (node_views::facts(&seen.detail, &seen.labels, &seen.coverage, clock))
            (alert_views::of_node(&seen.alerts, clock))
            (trust::section(&seen.detail, &visitor.viewer(), clock))
        }
    };
    let live = format!("node&id={id}&range={}", range.as_str());
    framed(&app, &visitor, &seen.detail.node.name, Section::Fleet, Some(live), &content).await
}

/// A node's page without its charts.
pub(super) struct Seen {
    pub(super) detail: NodeDetail,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) coverage: Vec<Coverage>,
    pub(super) alerts: Vec<Alert>,
    pub(super) commands: commands::Listed,
}

impl Seen {
    pub(super) async fn of(app: &App, who: &Principal, id: NodeId) -> Result<Self, Problem> {
        let (node, view) = app.roster.node(who, id).ok_or_else(unknown)?;
        let labels = labels::of(&app.state.database, id, &view.tenant).await?;
        let coverage = app.state.ingest.coverage(&view.tenant, id).await?;
        let coverage = coverage.into_iter().map(Coverage::from).rev().collect();
        let tenant = Some(view.tenant.clone());
        let filter = alerts::Filter { tenant, node: Some(id), limit: OF_NODE, ..alerts::Filter::default() };
        let alerts = alert_resources(app, who, app.state.alerts.list(&filter).await?);
        let commands = commands::of_node(app, who, id).await?;
        Ok(Self { detail: NodeDetail::of(&node, &view), labels, coverage, alerts, commands })
    }

    pub(super) fn open(&self) -> Vec<Alert> {
        self.alerts.iter().filter(|alert| alert.closed_at.is_none()).cloned().collect()
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct AlertQuery {
    #[serde(default)]
    pub(super) state: Which,
    #[serde(default)]
    pub(super) before: Option<i64>,
}

/// `GET /alerts`
pub(super) async fn alerts(
    State(app): State<App>,
    visitor: Visitor,
    query: Asked<Query<AlertQuery>>,
) -> Result<Response, Shown> {
    let Query(query) = query.or_shown(&app)?;
    let (found, older) = alert_list(&app, visitor.principal(), &query).await.or_shown(&app)?;
    let content = alert_views::page(&found, query.state, older, still(&app));
    let live = query.before.is_none().then(|| format!("alerts&state={}", query.state.as_str()));
    framed(&app, &visitor, "Alerts", Section::Alerts, live, &content).await
}

/// Alerts of one page, and where the page of older ones begins.
pub(super) async fn alert_list(
    app: &App,
    who: &Principal,
    query: &AlertQuery,
) -> Result<(Vec<Alert>, Option<i64>), Problem> {
    let open = match query.state {
        Which::Open => Some(true),
        Which::Closed => Some(false),
        Which::All => None,
    };
    let window = Window { before: query.before, limit: ENTRIES };
    let (tenant, limit) = (who.tenant.clone(), window.reach());
    let filter = alerts::Filter { tenant, open, before: window.before, limit, node: None };
    Ok(window.cut(alert_resources(app, who, app.state.alerts.list(&filter).await?)))
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct AuditQuery {
    #[serde(default)]
    pub(super) action: String,
    #[serde(default)]
    pub(super) before: Option<i64>,
}

/// `GET /audit`
pub(super) async fn audit(
    State(app): State<App>,
    visitor: Visitor,
    query: Asked<Query<AuditQuery>>,
) -> Result<Response, Shown> {
    let Query(query) = query.or_shown(&app)?;
    let (entries, older) = audit_list(&app, visitor.principal(), &query).await.or_shown(&app)?;
    let content = audit_views::page(&entries, &query.action, older, still(&app));
    let live = query.before.is_none().then(|| format!("audit&action={}", escaped(&query.action)));
    framed(&app, &visitor, "Audit", Section::Audit, live, &content).await
}

/// Entries of one page, and where the page of older ones begins.
pub(super) async fn audit_list(
    app: &App,
    who: &Principal,
    query: &AuditQuery,
) -> Result<(Vec<AuditEntry>, Option<i64>), Problem> {
    let window = Window { before: query.before, limit: ENTRIES };
    let filter = Filter {
        tenant: who.tenant.clone(),
        action: Some(query.action.clone()).filter(|action| !action.is_empty()),
        before: window.before,
        after: None,
        limit: window.reach(),
    };
    let entries = audit::list(&app.state.database, &filter).await?;
    Ok(window.cut(entries.into_iter().map(AuditEntry::from).collect()))
}

/// `GET /trust`
pub(super) async fn trust(State(app): State<App>, visitor: Visitor) -> Result<Response, Shown> {
    let who = visitor.principal();
    let listed = app.state.authorities.list(who.tenant.as_ref(), app.now()).await.or_shown(&app)?;
    let authorities: Vec<Authority> = listed.into_iter().map(Authority::from).collect();
    let awaited = app.state.authorities.awaited(who.tenant.as_ref(), app.now()).await.or_shown(&app)?;
    let awaited: Vec<Awaited> = awaited.into_iter().map(Awaited::from).collect();
    let nodes = app.roster.of(who, None).into_iter().filter(|node| node.revoked_at.is_none());
    let ends = |node: &Node| {
        let view = app.state.fleet.node(node.id.parse().ok()?)?;
        Some(Time(view.certificate?.not_after))
    };
    let mut ending: Vec<_> =
        nodes.filter_map(|node| Some(pki_views::Ending { not_after: ends(&node)?, node })).collect();
    ending.sort_by_key(|one| one.not_after.0);
    ending.truncate(ENDING);
    // For everybody what goes for the fleet, and beside it what a tenant has of its own; for a tenant all that goes for it.
    let policies = |tenant: Option<&str>| {
        let tenant: Option<TenantId> = tenant.and_then(|tenant| tenant.parse().ok());
        let stated = app.state.authorities.policies().list(tenant.as_ref()).into_iter();
        let shown = stated.filter(|one| tenant.is_none() || !who.sees_all() || one.source == Source::Tenant);
        shown.map(CertificatePolicy::from).collect()
    };
    let open = app.state.rotations.within(who.tenant.as_ref()).list(true, None, ENTRIES).await.or_shown(&app)?;
    let open: Vec<Rotation> = open.iter().map(Rotation::from).collect();
    let tenants = tenant_list(&app, who).await.or_shown(&app)?;
    let rotations = rotation_views::section(&open, &tenants, &visitor.viewer(), still(&app));
    let content =
        pki_views::page(&authorities, &awaited, policies, &rotations, &ending, &visitor.viewer(), still(&app));
    framed(&app, &visitor, "Trust", Section::Trust, None, &content).await
}

/// `GET /trust/rotations/{rotation}`
pub(super) async fn rotation(
    State(app): State<App>,
    visitor: Visitor,
    id: Asked<Path<i64>>,
) -> Result<Response, Shown> {
    let Path(id) = id.or_shown(&app)?;
    let shown = rotations::shown(&app, visitor.principal(), id).await.or_shown(&app)?;
    let content = rotation_views::page(&shown, &visitor.viewer(), still(&app));
    let live = format!("rotation&id={id}");
    framed(&app, &visitor, "Rotation", Section::Trust, Some(live), &content).await
}

/// Every tenant somebody sees, with its nodes counted.
pub(super) async fn tenant_list(app: &App, who: &Principal) -> Result<Vec<Tenant>, Problem> {
    let mut counts = app.roster.counts(who);
    let tenants = app.state.tenants.within(who.tenant.as_ref()).list().await?;
    Ok(tenants
        .into_iter()
        .map(|tenant| {
            let counts = counts.remove(tenant.id.as_str()).unwrap_or_default();
            Tenant::of(tenant, counts)
        })
        .collect())
}

async fn one_tenant(app: &App, who: &Principal, id: &TenantId) -> Result<Tenant, Problem> {
    require_tenant(who, id)?;
    let counts = app.roster.counts(who).remove(id.as_str()).unwrap_or_default();
    Ok(Tenant::of(app.state.tenants.within(who.tenant.as_ref()).get(id).await?, counts))
}

/// A tenant's newest join tokens.
pub(super) async fn join_tokens(app: &App, tenant: &TenantId) -> Result<Vec<Token>, Problem> {
    let tokens = app.state.enrollment.list_tokens(Some(tenant)).await?;
    Ok(tokens.into_iter().take(TOKENS).map(|token| Token::of(token, app.now())).collect())
}

/// How many alerts are open that somebody sees.
pub(super) async fn open_alerts(app: &App, who: &Principal) -> Result<usize, Problem> {
    Ok(app.state.alerts.open(who.tenant.as_ref()).await?)
}

/// The version of what browsers hold: a live stream of another one reloads its page.
pub(super) fn version() -> String {
    let (style, script) = (assets::STYLE.url(), assets::SCRIPT.url());
    let hash = |url: &str| url.chars().filter(char::is_ascii_hexdigit).rev().take(8).collect::<String>();
    hash(&style) + &hash(&script)
}

/// Whether somebody may have a node do something.
pub(super) fn acts(visitor: &Visitor, node: &NodeDetail) -> bool {
    visitor.viewer().operates() && node.node.revoked_at.is_none()
}

/// What somebody is told of a node that is none, or another tenant's.
pub(super) fn unknown() -> Problem {
    Problem::not_found("There is no such node, or it is not yours to see.")
}

pub(super) fn still(app: &App) -> Clock {
    Clock { now: app.now(), live: false }
}

pub(super) fn may(visitor: &Visitor, role: access::Role) -> Result<(), Problem> {
    require(visitor.principal(), role)
}

pub(super) async fn framed(
    app: &App,
    visitor: &Visitor,
    title: &str,
    section: Section,
    live: Option<String>,
    content: &Markup,
) -> Result<Response, Shown> {
    let open_alerts = open_alerts(app, visitor.principal()).await.or_shown(app)?;
    let live = live.map(|page| format!("/live?v={}&page={page}", version()));
    let frame = Frame { title, section, viewer: &visitor.viewer(), open_alerts, live, clock: still(app) };
    Ok((StatusCode::OK, Html(frame.page(content).into_string())).into_response())
}
