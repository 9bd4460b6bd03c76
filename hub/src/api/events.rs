//! `/api/v1/events`: the fleet's changes as they happen, at most one event per node and second.

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::response::sse::{Event, Sse};
use futures_util::Stream;
use protocol::{NodeId, TenantId};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

use super::extract::{Caller, Query, Remote, bearer};
use super::follow::{self, Follow};
use super::problem::Problem;
use super::resource::{AttentionLevel, Node, Time};
use crate::access::Principal;
use crate::alerts::Change;
use crate::web::{App, Place};

/// Events of one node are gathered for this long.
const GATHER: Duration = Duration::from_secs(1);
/// How often a stream's token is looked at again.
const CHECK_EVERY: Duration = Duration::from_secs(15);

/// Which changes.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Only this tenant's.
    tenant: Option<String>,
}

/// An alert that began or ended.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct AlertEvent {
    /// It goes on.
    open: bool,
    /// Which rule.
    rule: &'static str,
    /// How bad.
    severity: AttentionLevel,
    /// Whose.
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    /// Which node.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// What of the node.
    subject: String,
    /// What is wrong and what to do.
    message: String,
    /// When it began or ended.
    at: Time,
}

/// Changes of the fleet, as server-sent events: `node` with a node as lists show it, and `alert`. Begins with every
/// node. A reader that falls behind is sent every node again instead of each step between.
#[utoipa::path(get, path = "/api/v1/events", tag = "events", params(Which), responses(
    (status = 200, body = Node, content_type = "text/event-stream"),
))]
pub(crate) async fn stream(
    State(app): State<App>,
    caller: Caller,
    Query(which): Query<Which>,
    watch: Watch,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let tenant = caller.scope(&app, which.tenant.as_deref()).await?;
    let follower = Follower {
        place: app.stream(&caller.0)?,
        changes: app.state.fleet.changes(),
        alerts: app.state.alerts.changes(),
        principal: caller.0,
        tenant,
        watch,
        ready: VecDeque::new(),
        changed: Changed::All,
        next: Instant::now(),
        app,
    };
    Ok(follow::follow(follower))
}

/// Whether a stream's token is still good: looked at again from time to time, as a stream can outlive its token.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    bearer: String,
    remote: IpAddr,
    checked: Instant,
}

impl FromRequestParts<App> for Watch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let Ok(Remote(remote)) = Remote::from_request_parts(parts, app).await;
        let bearer = bearer(parts).unwrap_or_default().to_owned();
        Ok(Self { bearer, remote, checked: Instant::now() })
    }
}

impl Watch {
    /// False once the token was revoked or has ended.
    pub(crate) async fn still_good(&mut self, app: &App) -> bool {
        if self.checked.elapsed() < CHECK_EVERY {
            return true;
        }
        self.checked = Instant::now();
        app.state.access.authenticate(&self.bearer, self.remote, app.now()).await.is_ok()
    }
}

enum Changed {
    All,
    Some(BTreeSet<NodeId>),
}

struct Follower {
    app: App,
    principal: Principal,
    tenant: Option<TenantId>,
    watch: Watch,
    changes: broadcast::Receiver<NodeId>,
    alerts: broadcast::Receiver<Change>,
    changed: Changed,
    /// When the next events may go out.
    next: Instant,
    /// Not yet sent: at most the fleet. Each is rendered when its turn comes, for a reader may be slow.
    ready: VecDeque<Arc<Node>>,
    #[expect(dead_code, reason = "held while the stream lasts")]
    place: Place,
}

impl Follow for Follower {
    async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(node) = self.ready.pop_front() {
                if let Ok(event) = Event::default().event("node").json_data(&*node) {
                    return Some(event);
                }
            }
            let due = match &self.changed {
                Changed::Some(nodes) if nodes.is_empty() => self.watch.checked + CHECK_EVERY,
                _ => self.next,
            };
            tokio::select! {
                biased;
                () = self.app.state.shutdown.cancelled() => return None,
                () = tokio::time::sleep_until(due) => {
                    if !self.watch.still_good(&self.app).await {
                        return None;
                    }
                    self.gather();
                }
                alert = self.alerts.recv() => match alert {
                    Ok(change) => if let Some(event) = self.alert(change) { return Some(event) },
                    // The list of alerts has what was missed.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
                change = self.changes.recv() => match (change, &mut self.changed) {
                    (Ok(node), Changed::Some(nodes)) => drop(nodes.insert(node)),
                    (Ok(_), Changed::All) => {}
                    (Err(broadcast::error::RecvError::Lagged(_)), _) => self.changed = Changed::All,
                    (Err(broadcast::error::RecvError::Closed), _) => return None,
                },
            }
        }
    }
}

impl Follower {
    fn gather(&mut self) {
        let changed = std::mem::replace(&mut self.changed, Changed::Some(BTreeSet::new()));
        match changed {
            Changed::All => self.ready.extend(self.app.roster.of(&self.principal, self.tenant.as_ref())),
            Changed::Some(ids) => {
                let found = ids.into_iter().filter_map(|id| self.app.roster.node(&self.principal, id));
                let of = |tenant: &TenantId| self.tenant.as_ref().is_none_or(|one| one == tenant);
                self.ready.extend(found.filter(|(_, view)| of(&view.tenant)).map(|(node, _)| node));
            }
        }
        self.next = Instant::now() + GATHER;
    }

    fn alert(&self, change: Change) -> Option<Event> {
        let (open, finding) = match change {
            Change::Opened(finding) => (true, finding),
            Change::Closed(finding) => (false, finding),
        };
        let owner = finding.tenant.as_ref();
        if !self.principal.sees_owner(owner) || self.tenant.as_ref().is_some_and(|one| Some(one) != owner) {
            return None;
        }
        let event = AlertEvent {
            open,
            rule: finding.rule.as_str(),
            severity: finding.level.into(),
            tenant: finding.tenant.map(|tenant| tenant.to_string()),
            node: finding.node.map(|node| node.to_string()),
            subject: finding.subject,
            message: finding.message,
            at: Time(finding.at),
        };
        Event::default().event("alert").json_data(event).ok()
    }
}
