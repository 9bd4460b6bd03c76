//! One request for several nodes: how many have done it, and what came of it on each, as it happens.

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::commands::standing;
use super::format::{self, Clock};
use super::layout::{Section, Viewer, crumbs, csrf};
use super::pages::{Asked, framed, may, still};
use super::session::{Sent, ours};
use super::{OrShown as _, Shown};
use crate::access::{self, Principal};
use crate::api::commands;
use crate::api::extract::{Path, Query};
use crate::api::problem::Problem;
use crate::api::resource::{Command, CommandState};
use crate::commands::Filter;
use crate::reason::Reason;
use crate::web::App;
use protocol::command;

/// Nodes shown; of more, those in one state are.
const ROWS: u32 = 1_000;

/// Which of its commands are shown.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Which {
    pub(super) state: Option<CommandState>,
}

/// A request as it stands.
pub(super) struct Request {
    id: String,
    /// Of the state that is asked for.
    commands: Vec<Command>,
    /// Any of it: what is the same for all.
    any: Command,
    counts: Vec<(CommandState, u64)>,
    state: Option<CommandState>,
}

/// What `who` sees of a request.
pub(super) async fn of(app: &App, who: &Principal, id: &str, state: Option<CommandState>) -> Result<Request, Problem> {
    let counts = app.state.commands.tally(id, who.tenant.as_ref()).await?;
    let filter = |state: Option<CommandState>, limit| Filter {
        tenant: who.tenant.clone(),
        request: Some(id.to_owned()),
        state: state.map(Into::into),
        limit,
        ..Filter::default()
    };
    let list = async |filter| {
        Ok::<_, Problem>(commands::resources(app, who, app.state.commands.list(&filter, app.now()).await?))
    };
    let mut commands = list(filter(state, ROWS)).await?;
    let any = match commands.first() {
        Some(any) => Some(any.clone()),
        None => list(filter(None, 1)).await?.into_iter().next(),
    };
    let any = any.ok_or_else(|| Problem::not_found("There is no such request, or it is not yours to see."))?;
    let name = |command: &Command| command.node_name.clone().unwrap_or_default();
    commands.sort_by_cached_key(|command| (command.tenant.clone(), name(command), command.id.clone()));
    let mut counts: Vec<(CommandState, u64)> = counts.into_iter().map(|(state, count)| (state.into(), count)).collect();
    counts.sort_by_key(|(state, _)| command::State::from(*state));
    Ok(Request { id: id.to_owned(), commands, any, counts, state })
}

impl Request {
    fn total(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count).sum()
    }

    fn count(&self, state: CommandState) -> u64 {
        self.counts.iter().find(|(known, _)| *known == state).map_or(0, |(_, count)| *count)
    }

    fn open(&self) -> u64 {
        self.counts.iter().filter(|(state, _)| command::State::from(*state).is_open()).map(|(_, count)| count).sum()
    }

    /// Ids of its rows on the page, and their content.
    pub(super) fn rows(&self, clock: Clock) -> Vec<(String, Markup)> {
        self.commands.iter().map(|command| (row_id(command), row(command, clock))).collect()
    }
}

fn row_id(command: &Command) -> String {
    format!("c-{}", command.id)
}

/// `GET /requests/{request}`
pub(super) async fn show(
    State(app): State<App>,
    visitor: super::session::Visitor,
    id: Asked<Path<String>>,
    shown: Asked<Query<Which>>,
) -> Result<Response, Shown> {
    let (Path(id), Query(Which { state })) = (id.or_shown(&app)?, shown.or_shown(&app)?);
    let request = of(&app, visitor.principal(), &id, state).await.or_shown(&app)?;
    let clock = still(&app);
    let content = html! {
        (crumbs(&[("/", "Fleet")]))
        (head(&request, clock))
        div.card.wrap {
            table.cards {
                caption.visually-hidden { "What came of it on each node" }
                thead { tr { th scope="col" { "Node" } th scope="col" { "State" } th scope="col" { "What came of it" } th.num scope="col" { "Output" } th.num scope="col" { "Ended" } } }
                tbody #rows { @for (_, row) in request.rows(clock) { (row) } }
            }
            @let left = match state { Some(state) => request.count(state), None => request.total() }.saturating_sub(request.commands.len() as u64);
            @if left > 0 { p.more { (format::thousands(left)) " more: see those in one state." } }
        }
        (acts(&request, &visitor.viewer()))
    };
    let live = match state {
        Some(state) => format!("request&id={}&state={}", format::escaped(&id), command::State::from(state)),
        None => format!("request&id={}", format::escaped(&id)),
    };
    let title = format::sentence("", &request.any.what);
    framed(&app, &visitor, &title, Section::Fleet, Some(live), &content).await
}

/// What it is, and how far it has come.
pub(super) fn head(request: &Request, clock: Clock) -> Markup {
    let (any, total, open) = (&request.any, request.total(), request.open());
    let done = request.count(CommandState::Succeeded);
    let share = |count: u64| count * 100 / total.max(1);
    let (good, bad) = (share(done), share(total - open - done));
    let link = |state: Option<CommandState>, count: u64, said: Markup| {
        let address = match state {
            Some(state) => format!("/requests/{}?state={}", request.id, command::State::from(state)),
            None => format!("/requests/{}", request.id),
        };
        html! { a href=(address) aria-current=[(request.state == state).then_some("true")] { b { (format::thousands(count)) } (said) } }
    };
    html! {
        div #request-head {
            div.head {
                div {
                    h1 { (format::sentence("", &any.what)) }
                    p { @if !any.reason.is_empty() { (any.reason) " · " } "asked for by " (super::audit::actor(&any.requested_by)) " " (clock.ago(any.created_at)) }
                }
                div.actions {
                    @let class = if open > 0 { "notice" } else if done == total { "ok" } else { "critical" };
                    span class={ "state " (class) } role="status" { (format::mark(class)) (format::thousands(done)) " of " (format::thousands(total)) " done" @if open > 0 { ", " (format::thousands(open)) " under way" } }
                }
            }
            nav.counts aria-label="Nodes by what came of it" {
                (link(None, total, html! { span.quiet { (if total == 1 { "node" } else { "nodes" }) } }))
                @for (state, count) in &request.counts { (link(Some(*state), *count, standing(*state, false))) }
            }
            svg.wave-bar viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label={ (good) " % done, " (bad) " % not" } {
                rect.good x="0" y="0" width=(good) height="6" {}
                rect.bad x=(good) y="0" width=(bad) height="6" {}
            }
        }
    }
}

fn row(command: &Command, clock: Clock) -> Markup {
    html! {
        tr id=(row_id(command)) {
            th scope="row" { a href={ "/commands/" (command.id) } { (command.node_name.as_deref().unwrap_or(&command.node)) } span.sub { (command.tenant) } }
            td.wide { (standing(command.state, command.refused)) }
            td.wide.said { (command.message) }
            td.num data-name="Output" { @if command.output_bytes > 0 { (format::bytes(command.output_bytes as f64)) } }
            td.num data-name="Ended" { @if let Some(at) = command.ended_at { (clock.ago(at)) } }
        }
    }
}

/// What can be done to it, for whoever may.
pub(super) fn acts(request: &Request, viewer: &Viewer) -> Markup {
    let open = request.open();
    html! {
        section #acts aria-label="What can be done" {
            @if viewer.operates() && open > 0 {
                div.card.pad {
                    details #act-cancel {
                        summary { "Take it back…" }
                        form.form method="post" action={ "/requests/" (request.id) "/cancel" } {
                            (csrf(&viewer.csrf))
                            p { "Of the " (format::thousands(open)) " that are under way, those that nobody was told of are gone at once. What was begun is stopped where that can be done, and its node says what came of it." }
                            div { label for="why" { "Why, for the audit log" } input #why name="reason" required maxlength="500" autocomplete="off"; }
                            div { button type="submit" { "Take it back" } }
                        }
                    }
                }
            }
        }
    }
}

#[derive(Deserialize)]
pub(super) struct CancelForm {
    csrf: String,
    reason: String,
}

ours!(CancelForm);

/// `POST /requests/{request}/cancel`
pub(super) async fn cancel(
    State(app): State<App>,
    id: Asked<Path<String>>,
    sent: Sent<CancelForm>,
) -> Result<Response, Shown> {
    let Path(id) = id.or_shown(&app)?;
    let Sent { visitor, form } = sent;
    may(&visitor, access::Role::Operator).or_shown(&app)?;
    let (who, actor) = (visitor.principal(), visitor.principal().actor());
    let reason = form.reason.parse::<Reason>().or_shown(&app)?;
    let taken = app.state.commands.cancel_request(&id, who.tenant.as_ref(), &reason, &actor, app.now()).await;
    taken.or_shown(&app)?;
    Ok(Redirect::to(&format!("/requests/{id}")).into_response())
}
