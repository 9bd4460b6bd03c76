//! What went wrong, now and before.

use maud::{Markup, html};

use super::format::{self, Clock};
use crate::api::resource::Alert;

/// Which alerts a page shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// Those that go on.
    #[default]
    Open,
    /// Those that ended.
    Closed,
    /// Both.
    All,
}

impl Which {
    /// As it stands in a query.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::All => "all",
        }
    }
}

/// Heading, choice and list.
pub fn page(alerts: &[Alert], which: Which, older: Option<i64>, clock: Clock) -> Markup {
    html! {
        div.head {
            div { h1 { "Alerts" } p { "A node that is lost, a service that is unhealthy or restarts in a loop, a certificate that was not renewed in time. An alert ends by itself when its cause has." } }
        }
        (view(alerts, which, older, clock))
    }
}

/// The live part.
pub fn view(alerts: &[Alert], which: Which, older: Option<i64>, clock: Clock) -> Markup {
    html! {
        div #view {
            div.tools {
                div.choice role="group" aria-label="Which alerts" {
                    @for (choice, word) in [(Which::Open, "Open"), (Which::Closed, "Closed"), (Which::All, "All")] {
                        a href={ "/alerts?state=" (choice.as_str()) } data-visit aria-current=[(choice == which).then_some("true")] { (word) }
                    }
                }
            }
            div.card { (table(alerts, which, clock)) @if let Some(older) = older { p.more { a href={ "/alerts?state=" (which.as_str()) "&before=" (older) } { "Older" } } } }
        }
    }
}

fn table(alerts: &[Alert], which: Which, clock: Clock) -> Markup {
    html! {
        @if alerts.is_empty() {
            div.empty {
                @if which == Which::Open { h2 { "No open alerts" } p { "Nothing is wrong that this hub watches for. Ended alerts are under Closed." } }
                @else { h2 { "No alerts" } p { "Nothing has gone wrong so far." } }
            }
        } @else {
            table.alerts.cards {
                caption.visually-hidden { "Alerts" }
                thead { tr { th scope="col" { "State" } th scope="col" { "What" } th scope="col" { "Node" } th scope="col" { "Tenant" } th scope="col" { "Began" } th scope="col" { "Ended" } } }
                tbody #rows {
                    @for alert in alerts {
                        tr id={ "a-" (alert.id) } {
                            td.lead { @if alert.closed_at.is_some() { span.state.away { (format::mark("away")) "Ended" } } @else { (format::level(alert.severity).show()) } }
                            td.wide.break { (format::sentence(&alert.subject, &alert.message)) span.sub { (alert.rule) } }
                            th.nowrap scope="row" { @match (&alert.node, &alert.node_name) { (Some(node), Some(name)) => a href={ "/nodes/" (node) } { (name) }, _ => (about(&alert.subject)) } }
                            td.half { @if let Some(tenant) = &alert.tenant { a href={ "/tenants/" (tenant) } { (tenant) } } @else { span.quiet { "the fleet" } } }
                            td.nowrap data-name="Began" { (clock.ago(alert.opened_at)) }
                            td.nowrap data-name="Ended" { @if let Some(at) = alert.closed_at { (clock.ago(at)) } }
                        }
                    }
                }
            }
        }
    }
}

/// What an alert is about that is about no node of the fleet.
fn about(subject: &str) -> Markup {
    html! {
        @match subject.split_once('/') {
            Some(("rollout", id)) => a href={ "/rollouts/" (id) } { "Rollout " (id) },
            Some(("bridge", _)) => span.quiet { "a removed bridge" },
            _ => a href="/trust" { "Trust" },
        }
    }
}

/// A node's own alerts.
pub fn of_node(alerts: &[Alert], clock: Clock) -> Markup {
    html! {
        section #node-alerts aria-label="Alerts of this node" {
            @if !alerts.is_empty() {
                header { h2 { "Alerts" } span.quiet { "newest first" } }
                div.card {
                    table.cards {
                        thead { tr { th scope="col" { "State" } th scope="col" { "What" } th scope="col" { "Began" } th scope="col" { "Ended" } } }
                        tbody {
                            @for alert in alerts {
                                tr id={ "a-" (alert.id) } {
                                    td.lead { @if alert.closed_at.is_some() { span.state.away { (format::mark("away")) "Ended" } } @else { (format::level(alert.severity).show()) } }
                                    td.wide.break { (format::sentence(&alert.subject, &alert.message)) }
                                    td.nowrap data-name="Began" { (clock.ago(alert.opened_at)) }
                                    td.nowrap data-name="Ended" { @if let Some(at) = alert.closed_at { (clock.ago(at)) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
