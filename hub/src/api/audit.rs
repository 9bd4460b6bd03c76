//! `/api/v1/audit`: who did what, as a list and as it happens.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::Stream;
use futures_util::stream;
use serde::Deserialize;
use utoipa::IntoParams;

use super::events::Watch;
use super::extract::{Caller, Query};
use super::follow::{self, Follow};
use super::list::Paging;
use super::problem::Problem;
use super::resource::{AuditEntry, AuditHead, Page};
use crate::access::Role;
use crate::audit::publish::Published;
use crate::audit::{self, Filter};
use crate::web::{App, Place};

/// How often a follower looks for new entries.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Entries read at once; a follower that is further behind reads on at its next look.
const AT_ONCE: u32 = 200;

/// Which entries.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Only this tenant's.
    tenant: Option<String>,
    /// Only this action, such as `token.created`; with a trailing dot, all that start so: `token.`.
    action: Option<String>,
}

/// Audit entries, newest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "audit", params(Which, Paging), responses(
    (status = 200, body = Page<AuditEntry>),
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(which): Query<Which>,
    Query(paging): Query<Paging>,
) -> Result<axum::Json<Page<AuditEntry>>, Problem> {
    let window = paging.window()?;
    let filter = Filter {
        tenant: caller.scope(&app, which.tenant.as_deref()).await?,
        action: which.action,
        before: window.before,
        after: None,
        limit: window.reach(),
    };
    let entries = audit::list(&app.state.database, &filter).await?;
    Ok(window.page(entries.into_iter().map(AuditEntry::from).collect()))
}

/// Audit entries as they are written, as server-sent events `audit`. With the header Last-Event-ID, from that one on;
/// else from now on.
#[utoipa::path(get, path = "/api/v1/audit/events", tag = "audit", params(Which), responses(
    (status = 200, body = AuditEntry, content_type = "text/event-stream"),
))]
pub(crate) async fn follow(
    State(app): State<App>,
    caller: Caller,
    Query(which): Query<Which>,
    headers: HeaderMap,
    watch: Watch,
) -> Result<Sse<impl Stream<Item = Result<Event, std::convert::Infallible>>>, Problem> {
    let mut filter = Filter {
        tenant: caller.scope(&app, which.tenant.as_deref()).await?,
        action: which.action,
        before: None,
        after: None,
        limit: 1,
    };
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).and_then(|id| id.parse().ok());
    let newest = match last {
        Some(last) => last,
        // The newest of all, not of the filter: what came before is not asked for.
        None => audit::head(&app.state.database).await?.id,
    };
    filter.after = Some(newest);
    filter.limit = AT_ONCE;
    let follower = Follower { place: app.stream(&caller.0)?, app, filter, watch, waiting: Vec::new() };
    Ok(follow::follow(follower))
}

/// The newest entry's number and hash: noted elsewhere, it shows later whether the log up to it is still the same.
#[utoipa::path(get, path = "/api/v1/audit/head", tag = "audit", responses(
    (status = 200, body = AuditHead),
))]
pub(crate) async fn head(State(app): State<App>, _: Caller) -> Result<axum::Json<AuditHead>, Problem> {
    let published = Published::of(audit::head(&app.state.database).await?, app.now());
    Ok(axum::Json(AuditHead { id: published.id, hash: published.hash.to_string(), at_ms: published.at_ms }))
}

/// Which entries to export.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Exported {
    /// Only this tenant's: such an export is not the whole chain.
    tenant: Option<String>,
    /// Only entries after this number.
    after: Option<i64>,
}

/// The audit log, oldest first, as JSON lines: events of OCSF 1.6, each with the entry as it was hashed under
/// `unmapped`; `hyperfactory-hub audit verify --file` checks them. Takes the role admin. What breaks off is not whole.
#[utoipa::path(get, path = "/api/v1/audit/export", tag = "audit", params(Exported), responses(
    (status = 200, body = String, content_type = "application/x-ndjson"),
))]
pub(crate) async fn export(
    State(app): State<App>,
    caller: Caller,
    Query(exported): Query<Exported>,
) -> Result<Response, Problem> {
    caller.require(Role::Admin)?;
    let tenant = caller.scope(&app, exported.tenant.as_deref()).await?;
    let export = audit::Export::begin(app.state.database.clone(), tenant, exported.after.unwrap_or(0)).await?;
    let lines = stream::unfold((export, app.stream(&caller.0)?, app), async |(mut export, place, app)| {
        // An error, so that the reader does not take a part for the whole.
        let stopping = || std::io::Error::other("the hub is stopping");
        let lines = match app.state.shutdown.is_cancelled() {
            true => Err(stopping()),
            false => export.lines().await.map_err(std::io::Error::other),
        };
        Some((lines.transpose()?, (export, place, app)))
    });
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"audit.jsonl\""),
    ];
    Ok((headers, Body::from_stream(lines)).into_response())
}

struct Follower {
    app: App,
    filter: Filter,
    watch: Watch,
    /// Read and not yet sent, newest first.
    waiting: Vec<AuditEntry>,
    #[expect(dead_code, reason = "held while the stream lasts")]
    place: Place,
}

impl Follow for Follower {
    /// `None` when the hub stops, the token is no longer good, or the database is away.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(entry) = self.waiting.pop() {
                return Event::default().event("audit").id(entry.id.to_string()).json_data(entry).ok();
            }
            tokio::select! {
                biased;
                () = self.app.state.shutdown.cancelled() => return None,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if !self.watch.still_good(&self.app).await {
                return None;
            }
            let found = audit::news(&self.app.state.database, &mut self.filter).await.ok()?;
            self.waiting = found.into_iter().rev().map(AuditEntry::from).collect();
        }
    }
}
