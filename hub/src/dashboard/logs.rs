//! A service's log as it is written: the page, and its stream.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use protocol::NodeId;
use serde::Deserialize;

use super::format;
use super::kept_logs;
use super::layout::{Section, crumbs_of};
use super::pages::{Asked, framed, may, unknown};
use super::session::{Away, Visitor};
use super::{OrShown as _, Shown};
use crate::access;
use crate::api::extract::{Path, Query};
use crate::api::follow::follow;
use crate::api::kept_logs::Search;
use crate::api::logs::{Follower, Leave, LogQuery};
use crate::api::resource::{Node, PresenceState};
use crate::web::App;

/// Which service.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Wanted {
    pub(super) stack: String,
    pub(super) service: String,
}

impl Wanted {
    pub(super) fn address(&self, node: &str, page: &str) -> String {
        let (stack, service) = (format::escaped(&self.stack), format::escaped(&self.service));
        format!("/nodes/{node}/{page}?stack={stack}&service={service}")
    }
}

/// Where a service's log is shown.
pub(super) fn address(node: &str, stack: &str, service: &str) -> String {
    Wanted { stack: stack.to_owned(), service: service.to_owned() }.address(node, "logs")
}

/// `GET /nodes/{node}/logs`
pub(super) async fn page(
    State(app): State<App>,
    visitor: Visitor,
    id: Asked<Path<NodeId>>,
    wanted: Asked<Query<Wanted>>,
) -> Result<Response, Shown> {
    let (Path(id), Query(wanted)) = (id.or_shown(&app)?, wanted.or_shown(&app)?);
    may(&visitor, access::Role::Operator).or_shown(&app)?;
    let (node, _) = app.roster.node(visitor.principal(), id).ok_or_else(unknown).or_shown(&app)?;
    let title = format!("Log of {}/{}", wanted.stack, wanted.service);
    framed(&app, &visitor, &title, Section::Fleet, None, &view(&node, &wanted)).await
}

fn view(node: &Node, wanted: &Wanted) -> Markup {
    let key = |key: &str, does: &str| html! { span { kbd { (key) } " " (does) " " } };
    html! {
        div #view {
            (crumbs_of(&node.tenant, (&node.id, &node.name), &[]))
            div.head {
                div {
                    h1 { (wanted.service) " " span.quiet { "of " (wanted.stack) } }
                    p { "Its log as it is written. That you read it is in the audit log; what is kept of it is what its agent ships." }
                }
            }
            @if node.presence.state != PresenceState::Online {
                div.notes { div.note.warning { span.state.warning { (format::mark("warning")) } p { "The node has no session now: its logs can be read once it is back." } } }
            }
            div.logs #logs data-logs=(wanted.address(&node.id, "logs/live")) {
                form.tools #logs-form {
                    div.search {
                        label.visually-hidden for="logs-grep" { "Only lines in which this expression is found" }
                        input #logs-grep type="search" name="grep" maxlength="256" placeholder="Only lines with… (a regular expression)" autocomplete="off" spellcheck="false";
                        kbd { "/" }
                    }
                    (kept_logs::time("logs", ("since", ""), "Nothing before")) (kept_logs::time("logs", ("until", ""), "Nothing after, and not on"))
                    (kept_logs::why("logs", ""))
                    button type="submit" { "Read" }
                    button #logs-pause type="button" aria-pressed="false" { "Pause" }
                    button #logs-end type="button" { "To the end" }
                    p.shown #logs-state role="status" aria-live="polite" { "This page needs its script." }
                }
                div.card { ol.lines #logs-lines tabindex="0" aria-label="Lines" data-follow="true" {} }
                p.hint { (key("/", "search")) (key("p", "pause and go on")) (key("End", "follow")) (key("PgUp PgDn", "scroll")) (key("c", "clear")) (key("s", "search what is kept")) }
            }
            div.logs { (kept_logs::form(&node.id, wanted, &Search::default())) }
        }
    }
}

/// `GET /nodes/{node}/logs/live`: as the API's, for whoever is signed in.
pub(super) async fn live(
    State(app): State<App>,
    visitor: Result<Visitor, Away>,
    id: Asked<Path<NodeId>>,
    wanted: Asked<Query<Wanted>>,
    query: Asked<Query<LogQuery>>,
) -> Response {
    let Ok(visitor) = visitor else { return super::live::once("reload") };
    if let Err(denied) = may(&visitor, access::Role::Operator) {
        return denied.into_response();
    }
    let started = async {
        let (Path(id), Query(wanted), Query(query)) = (id?, wanted?, query?);
        let of = (wanted.stack, wanted.service);
        let leave = Leave::Cookie(visitor.cookie.clone());
        Follower::start(app, visitor.principal(), id, of, query.and_on(), leave).await
    };
    match started.await {
        Ok(follower) => follow(follower).into_response(),
        // A browser does not show a refused stream's body.
        Err(problem) => crate::api::logs::refused(problem).into_response(),
    }
}
