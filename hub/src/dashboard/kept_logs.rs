//! A service's lines that are kept, searched: a page per search, the newest line first.

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use protocol::{NodeId, TenantId};
use store::StoreError;

use super::format;
use super::layout::{Section, crumbs_of};
use super::logs::Wanted;
use super::pages::{Asked, framed, unknown};
use super::session::Visitor;
use super::{OrShown as _, Shown};
use crate::api::extract::{Path, Query};
use crate::api::kept_logs::{Search, find};
use crate::api::list::Paging;
use crate::api::resource::{Coverage, KeptLine, Node, Page};
use crate::logs;
use crate::web::App;

/// How far back a search goes, and the words for it.
const SPANS: [(&str, &str); 5] = [
    ("", "All that is kept"),
    ("10m", "10 minutes back"),
    ("1h", "1 hour back"),
    ("24h", "1 day back"),
    ("7d", "7 days back"),
];

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
    let found = find(&app, visitor.principal(), search, &paging).await.or_shown(&app)?;
    let lost = lost(&app, &known.tenant, id).await.or_shown(&app)?;
    let title = format!("Kept log of {}/{}", wanted.stack, wanted.service);
    framed(&app, &visitor, &title, Section::Fleet, None, &view(&node, &wanted, &asked, &found, lost)).await
}

/// Where somebody searches.
pub(super) fn form(node: &str, wanted: &Wanted, asked: &Search) -> Markup {
    let (text, grep, since) = asked.asked();
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
            div {
                label.visually-hidden for="kept-since" { "How far back" }
                select #kept-since name="since" {
                    @for (value, word) in SPANS { option value=(value) selected[value == since] { (word) } }
                }
            }
            button type="submit" { "Search" }
        }
    }
}

/// Batches of the node's lines that are lost, of all its services.
async fn lost(app: &App, tenant: &TenantId, node: NodeId) -> Result<u64, StoreError> {
    let coverage = logs::coverage(&app.state.database.within(Some(tenant.as_str())), node).await?;
    Ok(coverage.into_iter().map(|epoch| Coverage::from(epoch).lost).sum())
}

fn view(node: &Node, wanted: &Wanted, asked: &Search, found: &Page<KeptLine>, lost: u64) -> Markup {
    let (text, grep, since) = asked.asked();
    let older = found.next_cursor.as_ref().map(|cursor| {
        let [text, grep, since] = [text, grep, since].map(format::escaped);
        format!("{}&text={text}&grep={grep}&since={since}&cursor={cursor}", wanted.address(&node.id, "logs/kept"))
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
                div.card {
                    @if found.items.is_empty() {
                        div.empty {
                            h2 { "Nothing found" }
                            p { "No line that is kept has all of this. Words are found whole; an agent ships the logs of services that its configuration names in " code { "[logs]" } "." }
                        }
                    } @else {
                        ol.lines #kept-lines tabindex="0" aria-label="Lines, the newest first" { @for line in &found.items { (row(line)) } }
                    }
                }
                @if let Some(older) = older { p.more { a href=(older) { "Older" } } }
                p.hint { span { kbd { "/" } " search" } }
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
