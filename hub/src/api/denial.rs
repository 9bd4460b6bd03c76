//! What somebody known was denied is in the audit log before they are told.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use protocol::TenantId;
use serde_json::json;

use super::extract::Remote;
use super::problem::Problem;
use crate::access::Principal;
use crate::audit::{self, Actor, Record, action};
use crate::web::App;

/// Rides on a refusing answer: who is refused, and why.
#[derive(Clone, Debug)]
pub(crate) struct Denial {
    actor: Actor,
    tenant: Option<TenantId>,
    reason: String,
}

impl Denial {
    pub(crate) fn of(principal: &Principal, reason: &str) -> Self {
        Self { actor: principal.actor(), tenant: principal.tenant.clone(), reason: reason.to_owned() }
    }
}

/// Writes a [`Denial`] that an answer carries. When it can't be written, the answer is that the hub can't answer now.
pub(crate) async fn recorded(State(app): State<App>, Remote(remote): Remote, request: Request, next: Next) -> Response {
    let asked = format!("{} {}", request.method(), request.uri().path());
    let mut response = next.run(request).await;
    let Some(denial) = response.extensions_mut().remove::<Denial>() else { return response };
    let record = Record {
        actor: denial.actor,
        action: action::ACCESS_REFUSED,
        tenant: denial.tenant,
        subject: asked,
        detail: json!({ "reason": denial.reason }),
        remote: Some(remote),
    };
    match audit::record(&app.state.database, app.now(), record).await {
        Ok(_) => response,
        Err(error) => Problem::from(error).into_response(),
    }
}
