//! The fleet at a glance: counts, what needs attention first, and every node.

use std::sync::Arc;

use maud::{Markup, html};

use super::format::{self, Clock};
use super::selection;
use crate::api::resource::{AttentionLevel, Node, NodeCounts, PresenceState, ServiceCounts};
use crate::api::select::{NodeQuery, Sort, StateFilter};

/// Rows shown before somebody asks for more.
pub const ROWS: usize = 300;
/// Most rows on one page; a filter finds the rest.
pub const MAX_ROWS: usize = 2_000;
/// Lines of the attention list.
const ATTENTION: usize = 6;

/// A list of nodes with what is needed to filter it.
#[derive(Debug)]
pub struct View<'a> {
    /// Address of the page.
    pub path: &'a str,
    /// The tenant is in the page's heading already.
    pub one_tenant: bool,
    /// Filter and order.
    pub query: &'a NodeQuery,
    /// All nodes of the page before the filter.
    pub counts: NodeCounts,
    /// The rows shown.
    pub rows: &'a [Arc<Node>],
    /// How many pass the filter.
    pub matched: usize,
    /// The worst of all, worst first.
    pub worst: &'a [Arc<Node>],
    /// May make join tokens, and have nodes do things.
    pub operates: bool,
    /// There are no tenants at all.
    pub no_tenants: bool,
}

/// Title, and the way to add a node.
pub fn heading(view: &View<'_>, tenants: usize) -> Markup {
    html! {
        div.head {
            div {
                h1 { "Fleet" }
                @if tenants > 0 { p { (size(view.counts)) " of " (format::count(tenants, "tenant", "tenants")) } }
            }
            @if view.operates && view.counts.total > 0 { div.actions { a.button.primary href="/join" { "Add a node" } } }
        }
    }
}

/// How many nodes there are, for the heading.
pub fn size(counts: NodeCounts) -> Markup {
    html! { span #fleet-size { (format::count(counts.total as usize, "node", "nodes")) } }
}

/// Everything under the heading.
pub fn view(view: &View<'_>, clock: Clock) -> Markup {
    html! {
        div #view {
            @if view.counts.total == 0 { (empty(view)) } @else {
                (counts(view))
                (attention(view.worst, view.counts, clock))
                (tools(view))
                div.card {
                    table.fleet.cards {
                        caption.visually-hidden { "Nodes. Column headings that are links sort the list." }
                        (columns(view))
                        tbody #rows { @for node in view.rows { (row(node, view, clock)) } }
                    }
                    (remainder(view))
                }
            }
        }
    }
}

/// How many nodes are in which state; each count filters the list.
pub fn counts(view: &View<'_>) -> Markup {
    let c = view.counts;
    let item = |filter: Option<StateFilter>, class: Option<&str>, n: u32, word: &str| {
        let current = (view.query.state == filter).then_some("true");
        html! {
            a href=(link(view, |query| query.state = filter)) data-visit aria-current=[current] {
                @if let Some(class) = class { span.state.(if n > 0 { class } else { "none" }) { (format::mark(class)) } }
                b.none[n == 0] { (format::thousands(u64::from(n))) }
                span.quiet { (word) }
            }
        }
    };
    html! {
        nav.counts #counts aria-label="Nodes by state" {
            (item(None, None, c.total, if c.total == 1 { "node" } else { "nodes" }))
            (item(Some(StateFilter::Online), Some("ok"), c.online, "online"))
            (item(Some(StateFilter::Critical), Some("critical"), c.critical, "critical"))
            (item(Some(StateFilter::Warning), Some("warning"), c.warning, "warning"))
            @if c.notice > 0 || view.query.state == Some(StateFilter::Notice) { (item(Some(StateFilter::Notice), Some("notice"), c.notice, "notice")) }
            (item(Some(StateFilter::Lost), Some("critical"), c.lost, "lost"))
            @if c.left > 0 || view.query.state == Some(StateFilter::Left) { (item(Some(StateFilter::Left), Some("away"), c.left, "signed off")) }
            @if c.never_seen > 0 || view.query.state == Some(StateFilter::NeverSeen) { (item(Some(StateFilter::NeverSeen), Some("away"), c.never_seen, "never seen")) }
            p.visually-hidden role="status" { (c.critical) " critical, " (c.warning) " warning, " (c.lost) " lost of " (c.total) " nodes" }
        }
    }
}

/// What needs somebody first, with the reason.
pub fn attention(worst: &[Arc<Node>], counts: NodeCounts, clock: Clock) -> Markup {
    let total = (counts.critical + counts.warning) as usize;
    html! {
        div #attention {
            @if worst.is_empty() {
                p.note.ok { span.state.ok { (format::mark("ok")) } span { "Nothing needs attention." } }
            } @else {
                section.card aria-label="Needs attention first" {
                    ul.attention {
                        @for node in worst {
                            li {
                                span class={ "state " (format::node(node).class) } { (format::mark(format::node(node).class)) }
                                a.who href={ "/nodes/" (node.id) } { (node.name) }
                                span.quiet { (node.tenant) }
                                span.why { (format::because(&node.attention.reasons)) }
                                @if let Some(at) = node.presence.since.filter(|_| node.presence.state == PresenceState::Lost) {
                                    span.since { (clock.ago(at)) }
                                }
                            }
                        }
                    }
                    @if total > worst.len() { p.more { (total - worst.len()) " more, first in the list below." } }
                }
            }
        }
    }
}

/// The nodes of an attention list: warning or worse, worst first.
pub fn worst(nodes: &[Arc<Node>]) -> Vec<Arc<Node>> {
    let urgent = nodes.iter().filter(|node| node.attention.level >= AttentionLevel::Warning);
    NodeQuery::default().select(urgent).page(None, ATTENTION).0
}

fn tools(view: &View<'_>) -> Markup {
    html! {
        form.tools method="get" action=(view.path) data-filter role="search" {
            div.search {
                input type="search" name="q" value=[view.query.q.as_deref()] aria-label="Filter by name, host or tenant"
                    placeholder="Filter by name, host or tenant" autocomplete="off" spellcheck="false" maxlength="100";
                kbd aria-hidden="true" { "/" }
            }
            input.label type="text" name="label" value=[view.query.label.as_deref()] aria-label="Filter by label"
                placeholder="Label, as site=north" autocomplete="off" spellcheck="false" maxlength="500";
            @if let Some(state) = view.query.state { input type="hidden" name="state" value=(state.as_str()); }
            @if let Some(sort) = view.query.sort { input type="hidden" name="sort" value=(sort.as_str()); }
            noscript { button type="submit" { "Filter" } }
            @if *view.query != (NodeQuery { sort: view.query.sort, tenant: view.query.tenant.clone(), ..NodeQuery::default() }) {
                a href=(view.path) data-visit { "Show all" }
            }
            @if view.operates { (selection::pick_all(&encode(view.query))) }
            p.shown #shown { (shown(view)) }
        }
    }
}

/// `12 of 1,240 nodes`.
pub fn shown(view: &View<'_>) -> String {
    let total = view.counts.total as usize;
    if view.matched == total {
        format::count(total, "node", "nodes")
    } else {
        format!("{} of {}", format::thousands(view.matched as u64), format::count(total, "node", "nodes"))
    }
}

fn columns(view: &View<'_>) -> Markup {
    let order = view.query.order();
    let head = |sort: Sort, class: &str, text: &str| {
        let current = order.forward() == sort;
        let direction = current.then(|| if order.descends() { "descending" } else { "ascending" });
        let next = if current { order.turned() } else { sort };
        html! {
            th scope="col" class=(class) aria-sort=[direction] {
                a href=(link(view, |query| query.sort = Some(next))) data-visit { (text) }
            }
        }
    };
    html! {
        thead {
            tr {
                @if view.operates { th.c-pick scope="col" { span.visually-hidden { "Selected" } } }
                (head(Sort::Attention, "c-state", "State"))
                (head(Sort::Name, "c-name", "Node"))
                @if !view.one_tenant { (head(Sort::Tenant, "c-tenant", "Tenant")) }
                th.c-services scope="col" { "Services" }
                (head(Sort::Cpu, "num c-meter", "CPU"))
                (head(Sort::Memory, "num c-meter", "Memory"))
                (head(Sort::Disk, "num c-meter", "Disk"))
                (head(Sort::Seen, "num c-seen", "Last seen"))
            }
        }
    }
}

/// One node.
pub fn row(node: &Node, view: &View<'_>, clock: Clock) -> Markup {
    let gone = node.presence.state != PresenceState::Online;
    let figure = |value: Option<f64>| if gone { None } else { value };
    let sub = if node.host.hostname.is_empty() || node.host.hostname == node.name {
        node.kind.as_str().to_owned()
    } else {
        format!("{} · {}", node.kind.as_str(), node.host.hostname)
    };
    html! {
        tr id={ "n-" (node.id) } {
            @if view.operates { td.pick { (selection::pick(node)) } }
            td.lead { (format::node(node).show()) }
            th scope="row" { a href={ "/nodes/" (node.id) } { (node.name) } span.sub { (sub) } }
            @if !view.one_tenant { td.wide data-name="Tenant" { a href={ "/tenants/" (node.tenant) } { (node.tenant) } } }
            td.wide { (services(node.service_counts)) }
            td.num data-name="CPU" { (format::meter(figure(node.figures.cpu), 0.85, 0.97)) }
            td.num data-name="Memory" { (format::meter(figure(node.figures.memory.map(|m| m.ratio())), 0.85, 0.95)) }
            td.num data-name="Disk" { (format::meter(figure(node.figures.disks.first().map(|d| d.space.ratio())), 0.85, 0.95)) }
            td.num data-name="Seen" {
                @match node.last_seen { Some(at) => (clock.ago(at)), None => span.quiet { "never" } }
            }
        }
    }
}

fn services(counts: ServiceCounts) -> Markup {
    html! {
        @if counts.total == 0 { span.quiet { "none" } } @else {
            span.nowrap { (counts.running) " of " (counts.total) " running" }
            @if counts.unhealthy > 0 { span.sub.critical { (counts.unhealthy) " unhealthy" } }
            @if counts.restarting > 0 { span.sub.warning { (counts.restarting) " restarting" } }
        }
    }
}

/// What the rows leave out.
pub fn remainder(view: &View<'_>) -> Markup {
    html! {
        div #remainder {
            @if view.matched == 0 {
                div.empty { p { "No node matches. " a href=(view.path) data-visit { "Show all" } } }
            } @else if view.matched > view.rows.len() {
                p.more {
                    "The first " (format::thousands(view.rows.len() as u64)) " of " (format::thousands(view.matched as u64)) ". "
                    @if view.rows.len() < MAX_ROWS { a href={ (link(view, |_| {})) "&all=1" } data-visit { "Show more" } } @else { "Filter to see the others." }
                }
            }
        }
    }
}

fn empty(view: &View<'_>) -> Markup {
    html! {
        div.card.empty {
            @if view.no_tenants {
                h2 { "Begin with a tenant" }
                p { "A tenant is a customer. Its nodes get certificates from an authority of their own, so that no tenant can reach another." }
                a.button.primary href="/tenants" { "Create a tenant" }
            } @else {
                h2 { "No nodes yet" }
                p { "A node is a machine that runs the Hyperfactory agent or bridge. Make a join token and paste one command on that machine; it appears here within seconds." }
                @if view.operates { a.button.primary href={ "/join" @if let (true, Some(t)) = (view.one_tenant, &view.query.tenant) { "?tenant=" (t) } } { "Add a node" } }
                @else { p { "Your role may look but not add: ask an operator for a join token." } }
            }
        }
    }
}

/// The page's address with a changed filter.
fn link(view: &View<'_>, change: impl FnOnce(&mut NodeQuery)) -> String {
    let mut query = view.query.clone();
    change(&mut query);
    if view.one_tenant {
        query.tenant = None;
    }
    format!("{}?{}", view.path, encode(&query))
}

/// A filter as it stands in an address.
pub fn encode(query: &NodeQuery) -> String {
    let mut parts = Vec::new();
    let mut add =
        |name: &str, value: Option<&str>| parts.extend(value.map(|value| format!("{name}={}", format::escaped(value))));
    add("q", query.q.as_deref());
    add("tenant", query.tenant.as_deref());
    add("state", query.state.map(StateFilter::as_str));
    add("kind", query.kind.map(|kind| kind.as_str()));
    add("label", query.label.as_deref());
    add("sort", query.sort.map(Sort::as_str));
    parts.join("&")
}
