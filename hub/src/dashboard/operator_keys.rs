//! Operators' public keys: whose signatures on commands the hub passes on, of which tenant, and until when.

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::audit::actor;
use super::format::{self, Clock};
use super::layout::Section;
use super::pages::{framed, still};
use super::session::Visitor;
use super::{OrShown as _, Shown};
use crate::api::resource::Time;
use crate::operators::{self, OperatorKey};
use crate::web::App;

/// `GET /operator-keys`
pub(super) async fn list(State(app): State<App>, visitor: Visitor) -> Result<Response, Shown> {
    let keys = operators::list(&app.state.database, visitor.principal().tenant.as_ref()).await.or_shown(&app)?;
    framed(&app, &visitor, "Operator keys", Section::Trust, None, &page(&keys, still(&app))).await
}

fn page(keys: &[OperatorKey], clock: Clock) -> Markup {
    html! {
        div.head { div {
            h1 { "Operator keys" }
            p { "Whose signatures on commands the hub passes on. A node takes those of the keys alone that its owner has pinned." }
        } }
        div.card {
            @if keys.is_empty() {
                div.empty { h2 { "No operator keys" } p { "An operator makes one with: " code { "hfctl operator-key create" } } }
            } @else {
                table.cards {
                    caption.visually-hidden { "Operator keys, oldest first" }
                    thead { tr { th scope="col" { "Name" } th scope="col" { "Tenant" } th scope="col" { "Key" } th scope="col" { "Registered" } th scope="col" { "By" } th scope="col" { "State" } } }
                    tbody #rows { @for key in keys { (row(key, clock)) } }
                }
            }
        }
    }
}

fn row(key: &OperatorKey, clock: Clock) -> Markup {
    html! {
        tr {
            th scope="row" { (key.name) }
            td data-name="Tenant" { @match &key.tenant { Some(tenant) => a href={ "/tenants/" (tenant) } { (tenant) }, None => span.quiet { "all" } } }
            td.wide.break data-name="Key" { span.mono.small { (key.key) } }
            td data-name="Registered" { (clock.ago(Time(key.created_at))) }
            td data-name="By" { (actor(&key.created_by)) }
            td { @match key.revoked_at {
                Some(at) => { span.state.away { (format::mark("away")) "Revoked" } " " span.quiet { (clock.ago(Time(at))) } },
                None => span.state.ok { (format::mark("ok")) "Valid" },
            } }
        }
    }
}
