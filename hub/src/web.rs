//! The hub's HTTP side: REST API, dashboard, health and metrics, on one router, with HTTPS or without.

mod connections;
mod door;
mod https;
mod pair;

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use protocol::{NodeId, Timestamp};
use store::Database;
use store::sqlx;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{Access, Principal};
use crate::alerts::Alerts;
use crate::api::idempotency::Answers;
use crate::api::problem::Problem;
use crate::api::roster::Roster;
use crate::authorities::Authorities;
use crate::commands::Commands;
use crate::enrollment::Enrollment;
use crate::kafka_access::KafkaAccess;
use crate::revocation_lists::RevocationLists;
use crate::rollouts::Rollouts;
use crate::rotation::Rotations;
use crate::seats::{Seat, Seats};
use crate::tails::Tails;
use crate::telemetry::history::History;
use crate::telemetry::ingest::Ingest;
use crate::telemetry::state::Fleet;
use crate::tenants::Tenants;
use crate::{api, dashboard};

pub(crate) use connections::Server;
pub(crate) use door::Door;
pub use https::{HttpAuthority, http_authority};
pub(crate) use https::{Https, base_url};
pub(crate) use pair::Pair;
pub use pair::PairError;

/// Largest request body, bytes.
pub(crate) const BODY_LIMIT: usize = 64 * 1024;
/// Live streams at once, of pages and of the API. One more is told to come back.
const STREAMS: usize = 512;
/// Of one API token, or of one name without: one more is told that it is too many.
const STREAMS_OF_ONE: usize = STREAMS / 8;
/// How long a node sends every sample at once after somebody looked at it.
const WATCHED_FOR: Duration = Duration::from_secs(60);
/// How long the database may take to answer before the hub is not ready.
const READY_WITHIN: Duration = Duration::from_secs(2);

/// What pages must not do (CSP Level 3): nothing from elsewhere, nothing inline.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Browsers come back over HTTPS alone for a year (RFC 6797).
const STRICT_TRANSPORT_SECURITY: &str = "max-age=31536000";

/// What the HTTP side stands on.
#[derive(Clone)]
pub struct AppState {
    /// The database: readiness, audit.
    pub database: Database,
    /// Tenants.
    pub tenants: Tenants,
    /// Certificates for brokers, and what others have to trust.
    pub authorities: Authorities,
    /// From one authority to the next.
    pub rotations: Rotations,
    /// Commands over many nodes, in waves.
    pub rollouts: Rollouts,
    /// What bridges may do at their brokers.
    pub kafka_access: KafkaAccess,
    /// Join tokens, and who is in.
    pub enrollment: Enrollment,
    /// What authorities no longer stand for.
    pub revocation_lists: RevocationLists,
    /// The nodes as last seen.
    pub fleet: Fleet,
    /// Coverage of batch numbers.
    pub ingest: Ingest,
    /// What was measured.
    pub history: History,
    /// What went wrong.
    pub alerts: Alerts,
    /// What nodes are to do.
    pub commands: Commands,
    /// What is read of nodes' logs.
    pub tails: Tails,
    /// Who may.
    pub access: Access,
    /// `/metrics`, in the Prometheus text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Asks a node to send every sample at once for a while, because somebody looks at it.
    pub watch: Arc<dyn Fn(NodeId, Duration) + Send + Sync>,
    /// Served by TLS, here or by a proxy in front: cookies are then sent over TLS alone.
    pub secure: bool,
    /// Served here with a certificate that browsers trust: they are told to insist on it. With one of the hub's own, or a
    /// proxy's, that is not the hub's to say.
    pub strict: bool,
    /// The wall clock.
    pub clock: fn() -> Timestamp,
    /// What is done to its end also when its caller hangs up. To be waited for before the database is closed.
    pub at_work: TaskTracker,
    /// Ends live streams.
    pub shutdown: CancellationToken,
}

/// What handlers share. Clones share it.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) state: AppState,
    pub(crate) roster: Roster,
    pub(crate) answers: Answers,
    /// Until when nodes send every sample at once.
    watched: Mutex<HashMap<NodeId, Instant>>,
    streams: Arc<Semaphore>,
    readers: Seats<String>,
}

/// A live stream's place, until it is dropped.
pub(crate) struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_one: Seat<String>,
}

impl Deref for App {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl App {
    fn new(state: AppState) -> Self {
        let roster = Roster::new(state.fleet.clone());
        let streams = Arc::new(Semaphore::new(STREAMS));
        let answers = Answers::new(state.at_work.clone());
        Self(Arc::new(Inner { state, roster, answers, watched: Mutex::default(), streams, readers: Seats::default() }))
    }

    /// Now.
    pub(crate) fn now(&self) -> Timestamp {
        (self.state.clock)()
    }

    /// Somebody looks at `node`: asks it to send every sample at once, however many look and however often.
    pub(crate) fn watch(&self, node: NodeId) {
        let now = Instant::now();
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|_, until| *until > now);
        // Asked again while it still lasts, so that there is no break.
        if watched.get(&node).is_none_or(|until| *until < now + WATCHED_FOR / 2) {
            watched.insert(node, now + WATCHED_FOR);
            (self.state.watch)(node, WATCHED_FOR);
        }
    }

    /// Room for one more live stream.
    pub(crate) fn stream(&self, who: &Principal) -> Result<Place, Problem> {
        let soon = Duration::from_secs(10);
        let reader = who.token.clone().unwrap_or_else(|| who.name.clone());
        let of_one = self.readers.seat(reader, STREAMS_OF_ONE).ok_or_else(|| {
            Problem::too_many(format!("{:?} has {STREAMS_OF_ONE} live streams already; end one.", who.name), soon)
        })?;
        let full = "This hub serves as many live streams as it can; try again soon.";
        let of_all = Arc::clone(&self.streams).try_acquire_owned();
        let of_all = of_all.map_err(|_| Problem::unavailable(full, soon))?;
        Ok(Place { _of_all: of_all, _of_one: of_one })
    }
}

/// The whole HTTP side. Serve it with `ConnectInfo<SocketAddr>`: failed sign-ins are limited by address.
pub fn router(state: AppState) -> Router {
    let strict = state.strict;
    let app = App::new(state);
    Router::new()
        .merge(api::router())
        .merge(dashboard::router())
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(nowhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), api::denial::recorded))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(map_response(move |response| async move { guarded(response, strict) }))
        .with_state(app)
}

/// Ready when the database answers.
async fn ready(State(app): State<App>) -> Result<&'static str, Problem> {
    let asked = sqlx::query_scalar::<_, i64>("SELECT 1").fetch_one(app.state.database.reader());
    match tokio::time::timeout(READY_WITHIN, asked).await {
        Ok(Ok(_)) => Ok("ready\n"),
        _ => Err(Problem::unavailable("The database does not answer.", Duration::from_secs(5))),
    }
}

async fn metrics(State(app): State<App>) -> Response {
    let media_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, media_type)], (app.state.metrics)()).into_response()
}

async fn nowhere(State(app): State<App>, uri: Uri) -> Response {
    if is_api(&uri) {
        return Problem::not_found(format!("There is nothing at {}; see /api/v1/openapi.json.", uri.path()))
            .into_response();
    }
    dashboard::lost(&app, StatusCode::NOT_FOUND, "Nothing here", "This address leads nowhere.")
}

async fn wrong_method(State(app): State<App>, uri: Uri) -> Response {
    if is_api(&uri) {
        return Problem::method().into_response();
    }
    dashboard::lost(&app, StatusCode::METHOD_NOT_ALLOWED, "Not this way", "This address can't be used like this.")
}

fn is_api(uri: &Uri) -> bool {
    let path = uri.path();
    path == "/api" || ["/api/", "/pki/", "/crl/"].iter().any(|prefix| path.starts_with(prefix))
}

/// The headers that every answer carries.
fn guarded(mut response: Response, strict: bool) -> Response {
    let headers = response.headers_mut();
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if strict {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static(STRICT_TRANSPORT_SECURITY));
    }
    // What is shown depends on who looks, and may hold a secret.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
