//! The dashboard: pages rendered here, kept live by server-sent events, with a small script and style of our own.

pub mod alerts;
pub mod api_tokens;
pub mod assets;
pub mod audit;
mod bridges;
pub mod chart;
mod commands;
pub mod fleet;
pub mod format;
mod history;
pub mod join;
mod kept_logs;
pub mod layout;
mod live;
mod logs;
pub mod node;
mod operator_keys;
mod pages;
mod pki;
mod renewal;
mod requests;
mod rollouts;
mod rotation;
mod selection;
mod session;
pub mod sign_in;
pub mod tenants;
mod trust;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};

use crate::api::denial::Denial;
use crate::api::problem::Problem;
use crate::web::App;
use format::Clock;

/// Every page, and what pages need.
pub(crate) fn router() -> Router<App> {
    Router::new()
        .route("/", get(pages::fleet))
        .route("/tenants", get(pages::tenants).post(pages::create_tenant))
        .route("/tenants/{tenant}", get(pages::tenant))
        .route("/nodes/{node}", get(pages::node))
        .route("/nodes/{node}/revoke", post(trust::revoke))
        .route("/nodes/{node}/remove", post(trust::remove))
        .route("/nodes/{node}/command", get(commands::ask).post(commands::order))
        .route("/nodes/{node}/commands", get(commands::list))
        .route("/nodes/{node}/logs", get(logs::page))
        .route("/nodes/{node}/logs/live", get(logs::live))
        .route("/nodes/{node}/logs/kept", get(kept_logs::page))
        .route("/commands/{command}", get(commands::show))
        .route("/commands/{command}/cancel", post(commands::cancel))
        .route("/selection", post(selection::ask))
        .route("/requests", post(selection::order))
        .route("/requests/{request}", get(requests::show))
        .route("/requests/{request}/cancel", post(requests::cancel))
        .route("/bridges", get(bridges::list))
        .route("/rollouts", get(rollouts::list).post(rollouts::start))
        .route("/rollouts/new", get(rollouts::new))
        .route("/rollouts/{rollout}", get(rollouts::show))
        .route("/rollouts/{rollout}/nodes", get(rollouts::nodes))
        .route("/rollouts/{rollout}/pause", post(rollouts::pause))
        .route("/rollouts/{rollout}/resume", post(rollouts::resume))
        .route("/rollouts/{rollout}/abort", post(rollouts::abort))
        .route("/nodes/{node}/renew", post(renewal::renew_node))
        .route("/trust", get(pages::trust))
        .route("/trust/renew", post(renewal::renew))
        .route("/trust/rotations", post(rotation::start))
        .route("/trust/rotations/{rotation}", get(pages::rotation))
        .route("/trust/rotations/{rotation}/advance", post(rotation::advance))
        .route("/trust/rotations/{rotation}/back", post(rotation::back))
        .route("/alerts", get(pages::alerts))
        .route("/audit", get(pages::audit))
        .route("/join", get(pages::join).post(pages::create_token))
        .route("/api-tokens", get(pages::api_tokens).post(pages::create_api_token))
        .route("/api-tokens/{id}/revoke", post(pages::revoke_api_token))
        .route("/operator-keys", get(operator_keys::list))
        .route("/sign-in", get(session::page).post(session::sign_in))
        .route("/sign-out", post(session::sign_out))
        .route("/live", get(live::stream))
        .route("/assets/{name}", get(assets::serve))
}

/// A page that says what went wrong.
pub(crate) fn lost(app: &App, status: StatusCode, title: &str, detail: &str) -> Response {
    let clock = Clock { now: app.now(), live: false };
    (status, Html(layout::alone(title, clock, &sign_in::problem(title, detail)).into_string())).into_response()
}

/// A [`Problem`] as a page.
pub(crate) struct Shown {
    app: App,
    problem: Problem,
}

impl IntoResponse for Shown {
    fn into_response(self) -> Response {
        let detail = session::capital(&self.problem.detail);
        let mut response = lost(&self.app, self.problem.status(), self.problem.title, &detail);
        let (mut problem, _) = self.problem.into_response().into_parts();
        if let Some(denial) = problem.extensions.remove::<Denial>() {
            response.extensions_mut().insert(denial);
        }
        if let Some(after) = problem.headers.get(axum::http::header::RETRY_AFTER) {
            response.headers_mut().insert(axum::http::header::RETRY_AFTER, after.clone());
        }
        response
    }
}

/// Turns what a handler answers into a page either way.
trait OrShown<T> {
    /// The value, or the error as a page.
    fn or_shown(self, app: &App) -> Result<T, Shown>;
}

impl<T, E: Into<Problem>> OrShown<T> for Result<T, E> {
    fn or_shown(self, app: &App) -> Result<T, Shown> {
        self.map_err(|error| Shown { app: app.clone(), problem: error.into() })
    }
}
