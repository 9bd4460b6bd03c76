//! Bridges: every plant's way from MQTT to Kafka, what waits before it, and how it stands with its brokers.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::Shown;
use super::format::{self, Clock, Standing};
use super::layout::Section;
use super::pages::{framed, still};
use super::session::Visitor;
use crate::access::Principal;
use crate::api::resource::{
    Bridge, KafkaAccess, KafkaAccessState, KafkaState, Kind, Node, PresenceState, Route, Time, TopicClass,
};
use crate::web::App;

/// A certificate that ends within so many days should have been renewed.
const FEW_DAYS: i64 = 14;
const DAY_MS: i64 = 86_400_000;
/// A bridge that enrolled so lately is new, and its data is news when its last record is so near to its session's start.
const NEW_MS: i64 = DAY_MS;
const NEWS_MS: u64 = 600_000;
/// Bridges whose news is told above the others.
const MOST_NEWS: usize = 3;

/// `GET /bridges`
pub(super) async fn list(State(app): State<App>, visitor: Visitor) -> Result<Response, Shown> {
    let bridges = of(&app, visitor.principal());
    let content = html! {
        div.head { div { h1 { "Bridges" } p { "Each carries a plant's MQTT messages to its tenant's Kafka bus." } } }
        (view(&bridges, still(&app)))
    };
    framed(&app, &visitor, "Bridges", Section::Bridges, Some("bridges".into()), &content).await
}

/// The bridges that exist for somebody, by tenant and name.
pub(super) fn of(app: &App, who: &Principal) -> Vec<Arc<Node>> {
    let mut nodes = app.roster.of(who, None);
    nodes.retain(|node| node.kind == Kind::Bridge);
    nodes
}

/// The live part.
pub(super) fn view(bridges: &[Arc<Node>], clock: Clock) -> Markup {
    html! {
        div #view {
            @if bridges.is_empty() {
                div.card.empty {
                    h2 { "No bridges yet" }
                    p { "Make a join token for a bridge and paste its command on a machine of the plant; it appears here within seconds." }
                }
            } @else {
                @let news: Vec<Markup> = bridges.iter().filter_map(|bridge| news(bridge, clock)).take(MOST_NEWS).collect();
                @if !news.is_empty() { div.notes role="status" { @for note in news { (note) } } }
                div.card.wrap {
                    table.cards {
                        caption.visually-hidden { "Bridges by tenant and name" }
                        thead {
                            tr {
                                th scope="col" { "Bridge" } th scope="col" { "MQTT" } th scope="col" { "Kafka" } th.num scope="col" { "Waiting" } th.num scope="col" { "Lag" }
                                th.num scope="col" { "In" } th.num scope="col" { "Out" } th.num scope="col" { "Dead letters" }
                                th.num scope="col" { "Dropped" } th scope="col" { "May write to" }
                                th scope="col" { "Last record" } th scope="col" { "Certificate" }
                            }
                        }
                        tbody #rows { @for bridge in bridges { (row(bridge, clock)) } }
                    }
                }
            }
        }
    }
}

/// A bridge that is new here: whether its first data has come.
fn news(node: &Node, clock: Clock) -> Option<Markup> {
    let since = node.presence.since.filter(|_| node.presence.state == PresenceState::Online)?;
    let bridge = node.bridge.as_ref()?;
    let routes = &bridge.routes;
    let newest = routes.iter().filter(|route| route.last_at.is_some()).max_by_key(|route| route.last_at.map(|at| at.0));
    let link = html! { a href={ "/nodes/" (node.id) } { (node.name) } };
    match newest {
        None if routes.is_empty() => None,
        None => Some(html! {
            div.note.notice {
                (format::mark("notice"))
                p { (link) " waits for its first data: no message that one of its routes takes has come since it started." }
            }
        }),
        Some(route) => {
            let new = clock.now.millis() - node.enrolled_at.0.millis() < NEW_MS;
            // A record has its time before the brokers have it.
            let arrives = bridge.kafka == KafkaState::Connected && bridge.delivered.is_some_and(|count| count > 0.0);
            // The bridge's clock may be behind the hub's.
            let near = |at: &Time| at.0.millis().abs_diff(since.0.millis()) < NEWS_MS;
            let at = route.last_at.filter(|at| new && arrives && near(at))?;
            Some(html! {
                div.note.ok {
                    (format::mark("ok"))
                    p { "First data from " (link) ": records arrive in Kafka, the last one in " span.mono { (route.to) } " " (clock.ago(at)) "." }
                }
            })
        }
    }
}

fn row(node: &Node, clock: Clock) -> Markup {
    let gone = node.presence.state != PresenceState::Online;
    let bridge = node.bridge.as_ref();
    let rate = |value: Option<f64>| value.filter(|_| !gone).map(|value| format!("{value:.1}/s"));
    html! {
        tr id={ "b-" (node.id) } {
            th scope="row" { a href={ "/nodes/" (node.id) } { (node.name) } span.sub { (node.tenant) } }
            td data-name="MQTT" { @if !gone { @if let Some(bridge) = bridge { (mqtt(bridge)) } } }
            td.wide {
                @if gone { (format::node(node).show()) } @else if let Some(bridge) = bridge { (kafka(bridge)) (faults(bridge)) }
                @else { span.quiet { "not told yet" } }
            }
            @if let Some(bridge) = bridge {
                td.num data-name="Waiting" {
                    @if let Some(pending) = bridge.pending { (format::thousands(pending as u64)) }
                    @if let Some(bytes) = bridge.bytes { span.sub { (format::bytes(bytes)) } }
                }
                td.num data-name="Lag" { @if let Some(lag) = bridge.lag_seconds { (format::duration(lag)) } }
                td.num data-name="In" { @if let Some(rate) = rate(bridge.received_per_second) { (rate) } }
                td.num data-name="Out" { @if let Some(rate) = rate(bridge.delivered_per_second) { (rate) } }
                td.num data-name="Dead letters" { @if let Some(letters) = bridge.dead_letters { (format::thousands(letters as u64)) } }
                td.num data-name="Dropped" { @if let Some(dropped) = bridge.dropped { (format::thousands(dropped as u64)) } }
                td.wide { (may(node)) }
                td.wide { @for route in &bridge.routes { (last(route, clock)) } }
                td data-name="Certificate" { (certificate(bridge, clock)) }
            } @else {
                td.wide colspan="9" { span.quiet { "Its figures come with its first session." } }
            }
        }
    }
}

/// How its connections to MQTT brokers stand.
fn mqtt(bridge: &Bridge) -> Markup {
    let (up, all) = (bridge.mqtt.iter().filter(|mqtt| mqtt.connected).count(), bridge.mqtt.len());
    let refused = bridge.mqtt.iter().any(|mqtt| !mqtt.refused.is_empty());
    let class = if up == all && !refused { "ok" } else { "warning" };
    html! {
        @if all > 0 {
            span class={ "state " (class) } { (format::mark(class)) (up) " of " (all) }
            @for mqtt in &bridge.mqtt {
                @if !mqtt.connected {
                    @let why = if mqtt.trouble.is_empty() { "not connected yet" } else { mqtt.trouble.as_str() };
                    span.sub.warning { (format::sentence(&mqtt.name, why)) }
                } @else if !mqtt.refused.is_empty() {
                    @let advice = "allow this bridge to read there what its broker refuses it";
                    span.sub.warning { (format::sentence(&mqtt.name, &format!("{advice}: {}", mqtt.refused.join(", ")))) }
                }
            }
        }
    }
}

/// How it stands with its brokers.
fn kafka(bridge: &Bridge) -> Markup {
    html! { (standing(bridge.kafka).show()) @if !bridge.message.is_empty() { span.sub { (format::sentence("", &bridge.message)) } } }
}

/// What is wrong with its logs on disk.
fn faults(bridge: &Bridge) -> Markup {
    html! {
        @for class in bridge.classes.iter().filter(|class| !class.fault.is_empty()) {
            span.sub.warning { (format::sentence(&class.name, &class.fault)) }
        }
    }
}

fn standing(state: KafkaState) -> Standing {
    let (class, word) = match state {
        KafkaState::Unknown => ("away", "Not known yet"),
        KafkaState::Connected => ("ok", "Connected"),
        KafkaState::Waiting => ("notice", "Waits for a certificate"),
        KafkaState::Unreachable => ("warning", "Unreachable"),
        KafkaState::Refused => ("critical", "Refused"),
    };
    Standing { class, word }
}

/// What it may do at its brokers, and whether they know.
fn may(node: &Node) -> Markup {
    html! {
        @match &node.kafka_access {
            None => span.quiet { "what its brokers let it" },
            Some(access) => {
                @if access.topics.is_empty() { span.quiet { "nothing" } }
                @for topic in &access.topics { div.mono.small { (topic) } }
                (placed(access).show())
                @if access.state != KafkaAccessState::Placed && !access.message.is_empty() {
                    span.sub { (format::sentence("", &access.message)) }
                }
            }
        }
    }
}

fn placed(access: &KafkaAccess) -> Standing {
    let (class, word) = match access.state {
        KafkaAccessState::Waiting => ("away", "Not at the brokers yet"),
        KafkaAccessState::Asked => ("notice", "On its way"),
        KafkaAccessState::Placed => ("ok", "In place"),
        KafkaAccessState::Refused => ("warning", "Not taken"),
    };
    Standing { class, word }
}

fn last(route: &Route, clock: Clock) -> Markup {
    html! {
        div.nowrap {
            span.mono.small { (route.from) " → " (route.to) } " "
            @match route.last_at { Some(at) => (clock.ago(at)), None => span.quiet { "none since its start" } }
        }
    }
}

fn certificate(bridge: &Bridge, clock: Clock) -> Markup {
    html! {
        @match bridge.certificate_not_after {
            Some(ends) => {
                @let left = (ends.0.millis() - clock.now.millis()) / DAY_MS;
                @let class = if left < 0 { "critical" } else if left < FEW_DAYS { "warning" } else { "ok" };
                span class={ "state " (class) } { (format::mark(class)) (clock.ago(ends)) }
            }
            None => span.quiet { "from its own files" },
        }
        @if !bridge.certificate_trouble.is_empty() { span.sub.warning { (format::sentence("", &bridge.certificate_trouble)) } }
    }
}

/// What a class's count is: what drops nothing loses something only by damage.
fn lost(class: &TopicClass) -> String {
    format!("{} of {}", if class.overflow == "block" { "Lost" } else { "Dropped" }, class.name)
}

/// What its routes made of messages, where there is any of it.
fn figures(bridge: &Bridge) -> impl Iterator<Item = (&'static str, f64)> {
    let figures =
        [("Filtered", bridge.filtered), ("As they came", bridge.unmapped), ("Births wanted", bridge.births_wanted)];
    figures.into_iter().filter_map(|(name, count)| Some((name, count.filter(|count| *count > 0.0)?)))
}

/// A bridge's part of its node's page.
pub(super) fn section(node: &Node, clock: Clock) -> Markup {
    html! {
        div #bridge {
            @if let Some(bridge) = &node.bridge {
                section aria-label="From MQTT to Kafka" {
                    header { h2 { "From MQTT to Kafka" } a.quiet href="/bridges" { "All bridges" } }
                    div.facts {
                        div.card {
                            h3 { "Brokers" }
                            dl {
                                @if !bridge.mqtt.is_empty() { dt { "MQTT" } dd { (mqtt(bridge)) } }
                                dt { "State" } dd { (kafka(bridge)) }
                                dt { "Certificate" } dd { (certificate(bridge, clock)) }
                                dt { "May write to" } dd { (may(node)) }
                                @if let Some(pending) = bridge.pending { dt { "Waiting" } dd { (format::thousands(pending as u64)) " records" } }
                                @if let Some(lag) = bridge.lag_seconds { dt { "Lag" } dd { (format::duration(lag)) } }
                                @if let Some(letters) = bridge.dead_letters { dt { "Dead letters" } dd { (format::thousands(letters as u64)) } }
                                @if let Some(dropped) = bridge.dropped { dt { "Dropped" } dd { (format::thousands(dropped as u64)) } }
                                @for (name, count) in figures(bridge) { dt { (name) } dd { (format::thousands(count as u64)) " messages" } }
                                @for class in &bridge.classes {
                                    dt { (lost(class)) }
                                    dd {
                                        (format::thousands(class.dropped)) span.sub { (class.overflow) }
                                        @if let Some((first, last)) = class.first.zip(class.last) {
                                            span.sub { "last " (format::thousands(first)) "–" (format::thousands(last)) ": " (class.reason) }
                                        }
                                        @if !class.fault.is_empty() { span.sub.warning { (format::sentence("", &class.fault)) } }
                                    }
                                }
                            }
                        }
                        div.card {
                            h3 { "Last records" }
                            @if bridge.routes.is_empty() { p.quiet { "No routes." } }
                            @for route in &bridge.routes { (last(route, clock)) }
                        }
                    }
                }
            }
        }
    }
}
