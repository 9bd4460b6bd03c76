//! A page's live stream: its fragments rendered again when something changed, at most once a second, and sent only where
//! they differ. Nothing is queued: a browser that reads slowly skips the states in between.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use axum::extract::State;
use axum::http::Uri;
use axum::response::IntoResponse as _;
use axum::response::Response;
use axum::response::sse::{Event, Sse};
use futures_util::stream;
use maud::Markup;
use protocol::{CommandId, NodeId, NodeKind, TenantId};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::Instant;

use super::format::Clock;
use super::node::Span;
use super::pages::{
    AlertQuery, AuditQuery, Listed, More, Ranged, Seen, acts, alert_list, audit_list, join_tokens, open_alerts,
    tenant_list, version,
};
use super::session::{Away, Visitor};
use super::{
    alerts, audit, bridges, commands, fleet, history, join, layout, node, requests, rollouts, rotation, tenants,
};
use crate::alerts::Change;
use crate::api::extract::query as read;
use crate::api::follow::{Follow, follow};
use crate::api::problem::Problem;
use crate::api::resource::{CommandState, Token};
use crate::api::rotations;
use crate::api::select::NodeQuery;
use crate::web::{App, Place};

/// Least time between two updates of one browser.
const PACE: Duration = Duration::from_secs(1);
/// Least time between two readings of a node's history.
const CHARTS_EVERY: Duration = Duration::from_secs(10);
/// How often the session is looked at again.
const CHECK_EVERY: Duration = Duration::from_secs(30);
/// How often a page of what sends no changes is looked at again (audit, join tokens), and a node is told it is watched.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What a page shows.
enum Watched {
    Fleet { tenant: Option<TenantId>, query: NodeQuery, more: More },
    Node { id: NodeId, range: Span },
    Command { id: CommandId },
    Request { id: String, state: Option<CommandState> },
    Tenants,
    Bridges,
    Alerts(AlertQuery),
    Audit(AuditQuery),
    Join { token: String },
    Rotation { id: i64 },
    Rollouts,
    Rollout { id: i64 },
    RolloutNodes { id: i64, of: rollouts::OfWave },
}

#[derive(Deserialize)]
struct Named {
    page: String,
    #[serde(default)]
    v: String,
}

#[derive(Deserialize)]
struct Identified {
    id: String,
}

#[derive(Deserialize)]
struct NumberedBy {
    id: i64,
}

#[derive(Deserialize)]
struct Tokened {
    token: String,
}

/// `GET /live?page=…`
pub(super) async fn stream(State(app): State<App>, visitor: Result<Visitor, Away>, uri: Uri) -> Response {
    let Ok(visitor) = visitor else { return once("reload") };
    let started = read::<Named>(&uri).and_then(|named| {
        if named.v != version() {
            return Ok(None);
        }
        Ok(Some((Watched::of(&named.page, &uri)?, app.stream(visitor.principal())?)))
    });
    let (watched, place) = match started {
        // The hub was updated: the page and its script are of another version.
        Ok(None) => return once("reload"),
        Ok(Some(started)) => started,
        Err(problem) => return problem.into_response(),
    };
    if let Watched::Node { id, .. } = &watched
        && app.roster.node(visitor.principal(), *id).is_some()
    {
        app.watch(*id);
    }
    let now = Instant::now();
    let live = Live {
        nodes: app.state.fleet.changes(),
        alerts: app.state.alerts.changes(),
        commands: app.state.commands.changes(),
        visitor,
        watched,
        sent: HashMap::new(),
        rows: None,
        dirty: true,
        alerts_dirty: true,
        open_alerts: 0,
        charts: None,
        next: now,
        looked: now,
        checked: now,
        over: false,
        place,
        app,
    };
    follow(live).into_response()
}

pub(super) fn once(event: &'static str) -> Response {
    Sse::new(stream::iter([Ok::<_, Infallible>(Event::default().event(event).data(""))])).into_response()
}

impl Watched {
    fn of(page: &str, uri: &Uri) -> Result<Self, Problem> {
        Ok(match page {
            "fleet" => Self::Fleet { tenant: None, query: read(uri)?, more: read(uri)? },
            "tenant" => {
                let query: NodeQuery = read(uri)?;
                let tenant = query.tenant.as_deref().unwrap_or_default().parse::<TenantId>();
                let tenant = tenant.map_err(|error| Problem::malformed(error.to_string()))?;
                Self::Fleet { tenant: Some(tenant), query, more: read(uri)? }
            }
            "node" => {
                let id = read::<Identified>(uri)?.id.parse();
                let id = id.map_err(|error: protocol::id::IdError| Problem::malformed(error.to_string()))?;
                Self::Node { id, range: read::<Ranged>(uri)?.range }
            }
            "command" => {
                let id = read::<Identified>(uri)?.id.parse();
                Self::Command { id: id.map_err(|error: protocol::id::IdError| Problem::malformed(error.to_string()))? }
            }
            "request" => Self::Request { id: read::<Identified>(uri)?.id, state: read::<requests::Which>(uri)?.state },
            "tenants" => Self::Tenants,
            "bridges" => Self::Bridges,
            "alerts" => Self::Alerts(read(uri)?),
            "audit" => Self::Audit(read(uri)?),
            "join" => Self::Join { token: read::<Tokened>(uri)?.token },
            "rotation" => Self::Rotation { id: read::<NumberedBy>(uri)?.id },
            "rollouts" => Self::Rollouts,
            "rollout" => Self::Rollout { id: read::<NumberedBy>(uri)?.id },
            "rollout-nodes" => Self::RolloutNodes { id: read::<NumberedBy>(uri)?.id, of: read(uri)? },
            other => return Err(Problem::malformed(format!("There is no live page {other:?}."))),
        })
    }
}

struct Live {
    app: App,
    visitor: Visitor,
    watched: Watched,
    nodes: broadcast::Receiver<NodeId>,
    alerts: broadcast::Receiver<Change>,
    commands: broadcast::Receiver<NodeId>,
    /// Hash of each fragment as the browser has it.
    sent: HashMap<String, u64>,
    /// Order of the rows as the browser has it.
    rows: Option<Vec<String>>,
    /// Something on the page may have changed.
    dirty: bool,
    alerts_dirty: bool,
    open_alerts: usize,
    /// When the charts were drawn.
    charts: Option<Instant>,
    next: Instant,
    looked: Instant,
    checked: Instant,
    over: bool,
    #[expect(dead_code, reason = "held while the stream lasts")]
    place: Place,
}

/// Fragments by id, and for a list the order of its rows.
#[derive(Default)]
struct Rendered {
    html: BTreeMap<String, String>,
    rows: Option<Vec<String>>,
}

impl Rendered {
    fn put(&mut self, id: &str, markup: Markup) {
        self.html.insert(id.to_owned(), markup.into_string());
    }
}

impl Follow for Live {
    /// The next update; `None` when the hub stops.
    async fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        loop {
            self.wait().await?;
            if self.checked.elapsed() >= CHECK_EVERY {
                self.checked = Instant::now();
                // Signed out, ended or revoked: the page goes to the sign-in.
                if self.app.state.access.session(&self.visitor.cookie, self.app.now()).await.is_err() {
                    return Some(self.reload());
                }
            }
            if !self.dirty && !self.alerts_dirty {
                continue;
            }
            self.next = Instant::now() + PACE;
            match self.render().await {
                Ok(rendered) => {
                    (self.dirty, self.alerts_dirty) = (false, false);
                    if let Some(event) = self.differences(rendered) {
                        return Some(event);
                    }
                }
                // It is gone, or no longer to be seen.
                Err(problem) if problem.status().is_client_error() => return Some(self.reload()),
                // The database is away for a moment; what is on screen stays.
                Err(_) => {}
            }
        }
    }
}

impl Live {
    fn reload(&mut self) -> Event {
        self.over = true;
        Event::default().event("reload").data("")
    }

    /// Until an update is due, or there is something to look at; `None` when the hub stops.
    async fn wait(&mut self) -> Option<()> {
        loop {
            let now = Instant::now();
            if (self.dirty || self.alerts_dirty) && self.next <= now {
                return Some(());
            }
            let mut until = self.checked + CHECK_EVERY;
            if self.dirty || self.alerts_dirty {
                until = until.min(self.next);
            }
            let looks = matches!(
                self.watched,
                Watched::Audit(_)
                    | Watched::Join { .. }
                    | Watched::Node { .. }
                    | Watched::Rotation { .. }
                    | Watched::Rollouts
                    | Watched::Rollout { .. }
                    | Watched::RolloutNodes { .. }
            );
            if looks {
                until = until.min(self.looked + LOOK_EVERY);
            }
            tokio::select! {
                biased;
                () = self.app.state.shutdown.cancelled() => return None,
                () = tokio::time::sleep_until(until) => {
                    if looks && self.looked.elapsed() >= LOOK_EVERY {
                        self.looked = Instant::now();
                        match &self.watched {
                            Watched::Node { id, .. } => self.app.watch(*id),
                            _ => self.dirty = true,
                        }
                    }
                    if self.checked.elapsed() >= CHECK_EVERY || self.dirty || self.alerts_dirty {
                        return Some(());
                    }
                }
                change = self.nodes.recv() => match change {
                    Ok(id) => self.dirty |= self.concerns(id),
                    Err(RecvError::Lagged(_)) => self.dirty = true,
                    Err(RecvError::Closed) => return None,
                },
                change = self.commands.recv() => match (change, &self.watched) {
                    (Ok(node), Watched::Node { id, .. }) => self.dirty |= node == *id,
                    (Ok(_) | Err(RecvError::Lagged(_)), Watched::Node { .. } | Watched::Command { .. } | Watched::Request { .. } | Watched::Rollout { .. }) => {
                        self.dirty = true;
                    }
                    (Err(RecvError::Closed), _) => return None,
                    _ => {}
                },
                change = self.alerts.recv() => match change {
                    Ok(_) | Err(RecvError::Lagged(_)) => self.alerts_dirty = true,
                    Err(RecvError::Closed) => return None,
                },
            }
        }
    }

    fn concerns(&self, changed: NodeId) -> bool {
        let in_tenant =
            |tenant: &TenantId| self.app.state.fleet.node(changed).is_some_and(|view| view.tenant == *tenant);
        match &self.watched {
            Watched::Fleet { tenant: Some(tenant), .. } => in_tenant(tenant),
            Watched::Fleet { tenant: None, .. } | Watched::Tenants => {
                self.visitor.principal().tenant.as_ref().is_none_or(in_tenant)
            }
            Watched::Node { id, .. } => *id == changed,
            Watched::Bridges => {
                let is_bridge = self.app.state.fleet.node(changed).is_none_or(|view| view.kind == NodeKind::Bridge);
                is_bridge && self.visitor.principal().tenant.as_ref().is_none_or(in_tenant)
            }
            // The one it waits for is not known yet.
            Watched::Join { .. } => true,
            Watched::Alerts(_)
            | Watched::Audit(_)
            | Watched::Command { .. }
            | Watched::Request { .. }
            | Watched::Rotation { .. } => false,
            // It is looked at again by itself: not for every sample of every node.
            Watched::Rollouts | Watched::Rollout { .. } | Watched::RolloutNodes { .. } => false,
        }
    }

    async fn render(&mut self) -> Result<Rendered, Problem> {
        let (app, who) = (&self.app, self.visitor.principal());
        let clock = Clock { now: app.now(), live: true };
        let mut out = Rendered::default();
        if self.alerts_dirty {
            self.open_alerts = open_alerts(app, who).await?;
        }
        out.put("alert-count", layout::alert_pill(self.open_alerts));
        match &self.watched {
            Watched::Fleet { tenant, query, more } => {
                let listed = Listed::new(app, who, tenant.as_ref(), query, *more).await?;
                let path = tenant.as_ref().map_or_else(|| "/".to_owned(), |tenant| format!("/tenants/{tenant}"));
                let view = listed.view(&path, query, tenant.is_some(), who);
                if listed.counts.total == 0 {
                    let no_tenants = tenant.is_none() && tenant_list(app, who).await?.is_empty();
                    out.put("view", fleet::view(&fleet::View { no_tenants, ..view }, clock));
                } else {
                    out.put("counts", fleet::counts(&view));
                    out.put("attention", fleet::attention(&listed.worst, listed.counts, clock));
                    out.put("shown", maud::html! { p.shown #shown { (fleet::shown(&view)) } });
                    out.put("remainder", fleet::remainder(&view));
                    for node in &listed.rows {
                        out.put(&format!("n-{}", node.id), fleet::row(node, &view, clock));
                    }
                    out.rows = Some(listed.rows.iter().map(|node| format!("n-{}", node.id)).collect());
                }
                if let Some(tenant) = tenant {
                    out.put("tokens", tenants::tokens(&join_tokens(app, tenant).await?, clock));
                } else {
                    out.put("fleet-size", fleet::size(listed.counts));
                }
            }
            Watched::Node { id, range } => {
                let seen = Seen::of(app, who, *id).await?;
                out.put("node-head", node::heading(&seen.detail, clock));
                out.put("notes", node::notes(&seen.detail, &seen.open(), clock));
                out.put("tiles", node::tiles(&seen.detail, clock));
                out.put("bridge", bridges::section(&seen.detail.node, clock));
                out.put("services", node::services(&seen.detail, acts(&self.visitor, &seen.detail), clock));
                let viewer = self.visitor.viewer();
                out.put("commands", commands::history(&seen.detail, &seen.commands, &viewer, clock));
                out.put("facts", node::facts(&seen.detail, &seen.labels, &seen.coverage, clock));
                out.put("node-alerts", alerts::of_node(&seen.alerts, clock));
                if self.charts.is_none_or(|drawn| drawn.elapsed() >= CHARTS_EVERY) {
                    let charts = history::charts(app, *id, &seen.detail.node, *range).await?;
                    out.put("charts", node::charts(&seen.detail, *range, &charts));
                    self.charts = Some(Instant::now());
                }
            }
            Watched::Command { id } => {
                let detail = crate::api::commands::detail(app, who, *id).await?;
                out.put("view", commands::view(&detail, &self.visitor.viewer(), clock));
            }
            Watched::Request { id, state } => {
                let request = requests::of(app, who, id, *state).await?;
                out.put("request-head", requests::head(&request, clock));
                out.put("acts", requests::acts(&request, &self.visitor.viewer()));
                let rows = request.rows(clock);
                out.rows = Some(rows.iter().map(|(id, _)| id.clone()).collect());
                rows.into_iter().for_each(|(id, row)| out.put(&id, row));
            }
            Watched::Bridges => out.put("view", bridges::view(&bridges::of(app, who), clock)),
            Watched::Tenants => {
                let tenants = tenant_list(app, who).await?;
                out.put("view", tenants::list(&tenants, &self.visitor.viewer(), clock));
            }
            Watched::Alerts(query) => {
                let (found, older) = alert_list(app, who, query).await?;
                out.put("view", alerts::view(&found, query.state, older, clock));
            }
            Watched::Rollouts => {
                let (found, older) = rollouts::listed(app, &self.visitor, None).await?;
                out.put("view", rollouts::table(&found, older, clock));
            }
            Watched::Rollout { id } => {
                let shown = crate::api::rollouts::shown(app, who, *id).await?;
                out.put("rollout-head", rollouts::head(&shown, clock));
                out.put("view", rollouts::view(&shown));
                out.put("acts", rollouts::acts(&shown, &self.visitor.viewer()));
            }
            Watched::RolloutNodes { id, of } => {
                let (rollout, nodes) = crate::api::rollouts::members(app, who, *id).await?;
                out.put("view", rollouts::nodes_view(&rollout, &nodes, *of));
            }
            Watched::Rotation { id } => {
                out.put("view", rotation::view(&rotations::shown(app, who, *id).await?, clock));
            }
            Watched::Audit(query) => {
                let (entries, older) = audit_list(app, who, query).await?;
                out.put("view", audit::view(&entries, &query.action, older, clock));
            }
            Watched::Join { token } => {
                let found = app.state.enrollment.token(token, who.tenant.as_ref()).await?;
                let found = found.ok_or_else(|| Problem::not_found("There is no such join token."))?;
                let node = found.node.and_then(|id| app.roster.node(who, id));
                let token = Token::of(found, app.now());
                out.put("waiting", join::waiting(&token, node.as_ref().map(|(node, _)| &**node), clock));
            }
        }
        Ok(out)
    }

    /// What the browser does not have yet.
    fn differences(&mut self, rendered: Rendered) -> Option<Event> {
        let Rendered { mut html, rows } = rendered;
        // The charts are not part of every update; other fragments that are not there any more are forgotten.
        self.sent.retain(|id, _| id == "charts" || html.contains_key(id));
        html.retain(|id, text| {
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            self.sent.insert(id.clone(), hasher.finish()) != Some(hasher.finish())
        });
        let moved = rows.is_some() && rows != self.rows;
        if html.is_empty() && !moved {
            return None;
        }
        self.rows = rows;
        let now = self.app.now().millis();
        let update = match &self.rows {
            Some(rows) if moved => json!({ "now": now, "html": html, "rows": rows }),
            _ => json!({ "now": now, "html": html }),
        };
        Some(Event::default().data(update.to_string()))
    }
}
