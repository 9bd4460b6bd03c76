//! A service's lines that are kept, searched: a page per search, the newest line first.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use protocol::{NodeId, TenantId};
use store::StoreError;

use super::format;
use super::layout::{Section, crumbs_of};
use super::logs::Wanted;
use super::pages::{Asked, framed, unknown};
use super::session::{Visitor, capital};
use super::{OrShown as _, Shown};
use crate::api::extract::{Path, Query};
use crate::api::kept_logs::{Search, find};
use crate::api::list::Paging;
use crate::api::problem::Problem;
use crate::api::resource::{Coverage, KeptLine, Node, Page};
use crate::logs;
use crate::web::App;

/// `GET /nodes/{node}/logs/kept`
pub(super) async fn page(
    State(app): State<App>,
    visitor: Visitor,
    id: Asked<Path<NodeId>>,
    wanted: Asked<Query<Wanted>>,
    search: Asked<Query<Search>>,
    paging: Asked<Query<Paging>>,
) -> Result<Response, Shown> {
    let (Path(id), Query(wanted)) = (id.or_shown(&app)?, wanted.or_shown(&app)?);
    let (Query(search), Query(paging)) = (search.or_shown(&app)?, paging.or_shown(&app)?);
    let (node, known) = app.roster.node(visitor.principal(), id).ok_or_else(unknown).or_shown(&app)?;
    let search = search.of(&node.id, &wanted.stack, &wanted.service);
    let asked = search.clone();
    let found = match find(&app, visitor.principal(), search, &paging).await {
        Ok(found) => Ok(found),
        // It can be put right in the form.
        Err(problem) if problem.status() == StatusCode::UNPROCESSABLE_ENTITY => Err(problem),
        Err(problem) => return Err(problem).or_shown(&app),
    };
    let lost = lost(&app, &known.tenant, id).await.or_shown(&app)?;
    let title = format!("Kept log of {}/{}", wanted.stack, wanted.service);
    let page =
        framed(&app, &visitor, &title, Section::Fleet, None, &view(&node, &wanted, &asked, &found, lost)).await?;
    Ok(match found {
        Ok(_) => page,
        Err(problem) => (problem.status(), page).into_response(),
    })
}

/// Where somebody searches.
pub(super) fn form(node: &str, wanted: &Wanted, asked: &Search) -> Markup {
    let [(_, text), (_, grep), since, until, (_, reason)] = asked.asked();
    html! {
        form.tools method="get" action={ "/nodes/" (node) "/logs/kept" } data-search {
            input type="hidden" name="stack" value=(wanted.stack);
            input type="hidden" name="service" value=(wanted.service);
            div.search {
                label.visually-hidden for="kept-text" { "Lines with all of these words" }
                input #kept-text type="search" name="text" value=(text) maxlength="256" placeholder="Kept lines with these words" autocomplete="off" spellcheck="false";
            }
            div {
                label.visually-hidden for="kept-grep" { "And in which this expression is found" }
                input #kept-grep type="text" name="grep" value=(grep) maxlength="256" placeholder="and (a regular expression)" autocomplete="off" spellcheck="false";
            }
            (time("kept", since, "Nothing before")) (time("kept", until, "Nothing after")) (times()) (why("kept", reason))
            button type="submit" { "Search" }
        }
    }
}

/// Batches of the node's lines that are lost, of all its services.
async fn lost(app: &App, tenant: &TenantId, node: NodeId) -> Result<u64, StoreError> {
    let coverage = logs::coverage(&app.state.database.within(Some(tenant.as_str())), node).await?;
    Ok(coverage.into_iter().map(|epoch| Coverage::from(epoch).lost).sum())
}

/// A field for a time.
pub(super) fn time(form: &str, (name, value): (&str, &str), says: &str) -> Markup {
    let id = format!("{form}-{name}");
    html! {
        div.time {
            label.visually-hidden for=(id) { (says) ": a time, in UTC unless it says otherwise, or how long ago" }
            input id=(id) type="text" name=(name) value=(value) list="times" maxlength="40" placeholder={ (name) " 02:10" } autocomplete="off" spellcheck="false";
        }
    }
}

/// A field for the reason, which may be left out.
pub(super) fn why(form: &str, value: &str) -> Markup {
    let id = format!("{form}-reason");
    html! {
        div {
            label.visually-hidden for=(id) { "Why, for the audit log; may be left out" }
            input id=(id) type="text" name="reason" value=(value) maxlength="500" placeholder="Why (for the audit log)" autocomplete="off";
        }
    }
}

/// What such a field suggests.
fn times() -> Markup {
    html! { datalist #times { @for time in ["10m", "1h", "6h", "24h", "7d"] { option value=(time) { (time) " ago" } } } }
}

fn view(node: &Node, wanted: &Wanted, asked: &Search, found: &Result<Page<KeptLine>, Problem>, lost: u64) -> Markup {
    let older = found.as_ref().ok().and_then(|found| found.next_cursor.as_ref()).map(|cursor| {
        let asked: String =
            asked.asked().iter().map(|(name, value)| format!("&{name}={}", format::escaped(value))).collect();
        format!("{}{asked}&cursor={cursor}", wanted.address(&node.id, "logs/kept"))
    });
    let live = (wanted.address(&node.id, "logs"), format!("{}/{}", wanted.stack, wanted.service));
    html! {
        div #view {
            (crumbs_of(&node.tenant, (&node.id, &node.name), &[(live.0.as_str(), live.1.as_str())]))
            div.head {
                div {
                    h1 { (wanted.service) " " span.quiet { "of " (wanted.stack) ", kept" } }
                    p { "Lines that its agent has shipped, the newest first. That you searched is in the audit log." }
                }
            }
            @if lost > 0 {
                div.notes { div.note.warning { span.state.warning { (format::mark("warning")) } p { (lost) @if lost == 1 { " batch" } @else { " batches" } " of this node's lines, of whichever service, could not be delivered and are lost." } } }
            }
            div.logs {
                (form(&node.id, wanted, asked))
                @match found {
                    Err(problem) => div.notes { div.note.critical role="alert" { span.state.critical { (format::mark("critical")) } p { (capital(&problem.detail)) } } },
                    Ok(found) => div.card {
                        @if found.items.is_empty() { (nothing(older.is_some())) } @else {
                            ol.lines #kept-lines tabindex="0" aria-label="Lines, the newest first" { @for line in &found.items { (row(line)) } }
                        }
                    },
                }
                @if let Some(older) = older { p.more { a href=(older) { "Older" } } }
                p.hint { span { kbd { "/" } " search" } }
            }
        }
    }
}

/// `more`: what was looked at is not all.
fn nothing(more: bool) -> Markup {
    html! {
        div.empty {
            @if more {
                h2 { "Nothing found so far" }
                p { "As many lines were looked at as one search may, and none has all of this. Older ones were not looked at yet." }
            } @else {
                h2 { "Nothing found" }
                p { "No line that is kept has all of this. Words are found whole; an agent ships the logs of services that its configuration names in " code { "[logs]" } "." }
            }
        }
    }
}

fn row(line: &KeptLine) -> Markup {
    let number = (line.number > 1).then(|| format!("#{} ", line.number));
    html! {
        @if line.dropped > 0 {
            li.gap { time datetime=(line.at) { (line.at) } " " (number.unwrap_or_default()) (line.dropped) @if line.dropped == 1 { " line" } @else { " lines" } " dropped: more than may be shipped" }
        } @else {
            li.error[line.stream == "stderr"] {
                time datetime=(line.at) { (line.at) } " " (number.unwrap_or_default()) (line.text)
                @if line.cut > 0 { " … " (line.cut) " bytes more" }
            }
        }
    }
}
