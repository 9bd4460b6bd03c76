//! One node: what it needs, its figures over time, its services, and how it is connected.

use std::collections::BTreeMap;
use std::time::Duration;

use maud::{Markup, html};

use super::chart::Chart;
use super::commands;
use super::format::{self, Clock};
use super::layout::crumbs;
use crate::api::resource::{
    Alert, AttentionLevel, ClockState, Coverage, EngineState, Kind, NodeDetail, PresenceState, Service, ServiceState,
};

/// How far back the charts go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub enum Span {
    /// One hour.
    #[default]
    #[serde(rename = "1h")]
    Hour,
    /// One day.
    #[serde(rename = "24h")]
    Day,
}

impl Span {
    /// As it stands in a query.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "1h",
            Self::Day => "24h",
        }
    }

    /// How long it is.
    pub fn duration(self) -> Duration {
        match self {
            Self::Hour => Duration::from_secs(3_600),
            Self::Day => Duration::from_secs(86_400),
        }
    }
}

/// Name, place and host.
pub fn heading(node: &NodeDetail, clock: Clock) -> Markup {
    let (host, n) = (&node.node.host, &node.node);
    let facts: Vec<String> = [
        (host.hostname != n.name).then(|| host.hostname.clone()),
        Some(host.os.clone()),
        (!host.kernel.is_empty()).then(|| format!("kernel {}", host.kernel)),
        Some(host.architecture.clone()),
        (host.cpus > 0).then(|| format::count(host.cpus as usize, "CPU", "CPUs")),
        (host.memory_bytes > 0).then(|| format::bytes(host.memory_bytes as f64)),
        Some(host.software.clone()),
    ]
    .into_iter()
    .flatten()
    .filter(|fact| !fact.is_empty())
    .collect();
    html! {
        div #node-head {
            (crumbs(&[("/", "Fleet"), (format!("/tenants/{}", n.tenant).as_str(), n.tenant.as_str())]))
            div.head {
                div {
                    h1 { (n.name) }
                    p { @if facts.is_empty() { (n.kind.as_str()) } @else { (facts.join(" · ")) } }
                }
                div.actions {
                    (format::node(n).show())
                    @if let Some(at) = n.presence.since.or(n.last_seen) {
                        span.quiet { @match n.presence.state { PresenceState::Online => "connected ", _ => "" } (clock.ago(at)) }
                    }
                }
            }
        }
    }
}

/// What it needs, each with what to do.
pub fn notes(node: &NodeDetail, alerts: &[Alert], clock: Clock) -> Markup {
    let n = &node.node;
    html! {
        div.notes #notes {
            @if let Some(at) = n.revoked_at {
                div.note {
                    span.away { (format::mark("away")) }
                    p { "Revoked " (clock.ago(at)) ": it may not connect any more. Everything below is what was last known." }
                }
            }
            @match n.presence.state {
                _ if n.revoked_at.is_some() => {},
                PresenceState::NeverSeen => div.note.notice {
                    (format::mark("notice"))
                    p { "Enrolled " (clock.ago(n.enrolled_at)) " and not connected yet. Start it on its machine: " code { "hyperfactory-" (n.kind.as_str()) " run" } }
                },
                PresenceState::Lost => div.note.critical {
                    (format::mark("critical"))
                    p { "No session. Everything below is what was last known. The node keeps measuring into its spool and catches up when it is back. "
                        "On its machine, " code { "hyperfactory-" (n.kind.as_str()) " check" } " tests the clock, the hub's address, the certificate and the disk, and says what to do." }
                },
                PresenceState::Left => div.note {
                    span.away { (format::mark("away")) }
                    p { "The " (n.kind.as_str()) " was stopped and said goodbye" @if let Some(reason) = n.presence.reason.as_ref().filter(|r| !r.is_empty()) { " (" (reason) ")" } ". Everything below is what was last known." }
                },
                PresenceState::Online => {},
            }
            @for reason in n.attention.reasons.iter().filter(|_| n.presence.state == PresenceState::Online) {
                @let class = format::level(reason.level).class;
                div class={ "note " (class) } { span class={ "state " (class) } { (format::mark(class)) } p { (format::sentence(&reason.subject, &reason.message)) } }
            }
            @for alert in alerts.iter().filter(|alert| !n.attention.reasons.iter().any(|reason| reason.rule == alert.rule && reason.subject == alert.subject) && alert.rule != "node.lost") {
                @let class = format::level(alert.severity).class;
                div class={ "note " (class) } { span class={ "state " (class) } { (format::mark(class)) } p { (format::sentence(&alert.subject, &alert.message)) " " span.quiet { (clock.ago(alert.opened_at)) } } }
            }
        }
    }
}

/// A bridge measures no host, looks at no containers and is told no commands: what it does is in its own section.
pub(super) fn is_bridge(node: &NodeDetail) -> bool {
    node.node.kind == Kind::Bridge
}

/// The newest figures.
pub fn tiles(node: &NodeDetail, clock: Clock) -> Markup {
    if is_bridge(node) {
        return html! { div #tiles hidden {} };
    }
    let (f, counts) = (&node.node.figures, node.node.service_counts);
    let tile = |name: &str, value: Option<String>, more: Markup| {
        html! { div { dt { (name) } dd { (value.unwrap_or_else(|| "–".to_owned())) small { (more) } } } }
    };
    let of = |used: crate::api::resource::Used| html! { (format::bytes(used.used)) " of " (format::bytes(used.total)) };
    html! {
        dl.tiles.card #tiles {
            (tile("CPU", f.cpu.map(format::percent), html! { @if let Some([one, five, fifteen]) = f.load { "load " (format!("{one:.2} {five:.2} {fifteen:.2}")) } }))
            (tile("Memory", f.memory.map(|m| format::percent(m.ratio())), html! { @if let Some(m) = f.memory { (of(m)) } }))
            (tile("Fullest disk", f.disks.first().map(|d| format::percent(d.space.ratio())), html! { @if let Some(d) = f.disks.first() { (d.mount) " · " (of(d.space)) } }))
            (tile("Services", Some(counts.total.to_string()), html! { @if counts.total > 0 { (counts.running) " running" @if counts.unhealthy > 0 { ", " (counts.unhealthy) " unhealthy" } @if counts.stopped > 0 { ", " (counts.stopped) " stopped" } } @else { "none reported" } }))
            (tile("Up", f.uptime_seconds.map(format::duration), html! { @if let Some(at) = f.at { "measured " (clock.ago(at)) } }))
        }
    }
}

/// The charts, with the choice of span.
pub fn charts(node: &NodeDetail, span: Span, charts: &[Chart]) -> Markup {
    if is_bridge(node) {
        return html! { section #charts hidden {} };
    }
    html! {
        section #charts aria-label="Figures over time" {
            header {
                h2 { "Host" }
                div.actions {
                    div.choice role="group" aria-label="Time span" {
                        @for (choice, text) in [(Span::Hour, "1 h"), (Span::Day, "24 h")] {
                            a href={ "/nodes/" (node.node.id) "?range=" (choice.as_str()) } data-visit aria-current=[(choice == span).then_some("true")] { (text) }
                        }
                    }
                }
            }
            div.charts { @for chart in charts { (chart.render()) } }
        }
    }
}

/// The engine and every service, by stack; with links to what can be done to each when the viewer `acts`.
pub fn services(node: &NodeDetail, acts: bool, clock: Clock) -> Markup {
    if is_bridge(node) {
        return html! { section #services hidden {} };
    }
    let stacks: Vec<&[Service]> = node.services.chunk_by(|a, b| a.stack == b.stack).collect();
    html! {
        section #services aria-label="Services" {
            header {
                h2 { "Services" }
                @if node.engine.state == EngineState::Connected { span.quiet { "Docker Engine " (node.engine.version) } }
            }
            (engine(node))
            @if !stacks.is_empty() {
                div.card.wrap {
                    table.services.cards {
                        caption.visually-hidden { "Services by stack" }
                        thead {
                            tr {
                                th scope="col" { "Service" } th scope="col" { "State" } th.num scope="col" { "CPU" } th.num scope="col" { "Memory" }
                                th.num scope="col" { "Restarts" } th scope="col" { "Last exit" } th scope="col" { "Since" } th scope="col" { "Image" }
                                @if acts { th scope="col" { "Do" } }
                            }
                        }
                        @for stack in stacks {
                            tbody {
                                @if let Some(first) = stack.first() {
                                    tr.group { th.wide colspan=(if acts { 9 } else { 8 }) scope="rowgroup" { (first.stack) " " span.quiet.small { (format::count(stack.len(), "service", "services")) } @if acts { (commands::stack_actions(node, &first.stack)) } } }
                                }
                                @for one in stack { (service(node, one, acts, clock)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn engine(node: &NodeDetail) -> Markup {
    let (class, said) = match node.engine.state {
        EngineState::Connected if node.services.is_empty() => (
            "notice",
            "The engine runs no Compose services. Start a stack with docker compose up -d and it appears here at once.",
        ),
        EngineState::Connected => return html! {},
        EngineState::Unknown if node.node.presence.state == PresenceState::NeverSeen => {
            return html! { p.quiet { "Known once the node has connected." } };
        }
        EngineState::Unknown => ("notice", "The node has not reported on a container engine yet."),
        EngineState::Absent => (
            "notice",
            "No container engine on this machine. Host figures are complete; install Docker Engine to see services.",
        ),
        EngineState::PermissionDenied => (
            "warning",
            "The agent may not use the container engine. Add its user to the docker group, then restart the agent.",
        ),
        EngineState::Unreachable => (
            "warning",
            "The container engine does not answer. Services are shown as last known. Check it with: systemctl status docker",
        ),
    };
    html! {
        div.notes { div class={ "note " (class) } { span class={ "state " (class) } { (format::mark(class)) } p { (said) @if !node.engine.message.is_empty() { " " span.quiet { (format::sentence("", &node.engine.message)) "." } } } } }
    }
}

fn service(node: &NodeDetail, s: &Service, acts: bool, clock: Clock) -> Markup {
    let standing = format::service(s);
    let since = if s.state == ServiceState::Running { s.started_at } else { s.finished_at.or(s.changed_at) };
    html! {
        tr id={ "s-" (s.stack) "/" (s.service) "/" (s.number) } {
            th scope="row" { (s.service) @if s.number > 1 { span.quiet { " #" (s.number) } } }
            td.wide.said { (standing.show()) @if !s.health_output.is_empty() && s.attention > AttentionLevel::Ok { span.sub { (s.health_output) } } }
            td.num data-name="CPU" { @if let Some(cpu) = s.cpu { (format::percent(cpu)) } }
            td.num data-name="Memory" {
                @if let Some(memory) = s.memory {
                    (format::bytes(memory))
                    @if let Some(limit) = s.memory_limit.filter(|limit| *limit > 0.0) { span.sub { "of " (format::bytes(limit)) } }
                }
            }
            td data-name="Restarts" class={ "num" @if s.restart_count > 0 && s.attention > AttentionLevel::Ok { " warning" } } { (s.restart_count) }
            td data-name="Last exit" {
                @if s.oom_killed { span.state.critical { (format::mark("critical")) "Out of memory" } }
                @if let Some(code) = s.exit_code { @if s.oom_killed { span.sub { "code " (code) } } @else { "code " (code) } } @else if !s.oom_killed { span.quiet.drop { "–" } }
            }
            td data-name="Since" { @if let Some(at) = since { (clock.ago(at)) } }
            td.image.wide title={ (s.image) " " (s.image_digest) } { span.mono.small { (s.image) } }
            // A service of several containers is one thing to act on.
            @if acts { td.wide.acts { @if s.number == 1 { (commands::service_actions(node, &s.stack, &s.service, s.state == ServiceState::Running)) } } }
        }
    }
}

/// Session, identity with its labels, clock, spool and batches.
pub fn facts(node: &NodeDetail, labels: &BTreeMap<String, String>, coverage: &[Coverage], clock: Clock) -> Markup {
    let n = &node.node;
    html! {
        section #facts aria-label="Connection and identity" {
            header { h2 { "Connection and identity" } }
            div.facts {
                div.card {
                    h3 { "Session" }
                    dl {
                        dt { "State" } dd { @match n.presence.state { PresenceState::Online => "Connected", PresenceState::Lost => "Broke off", PresenceState::Left => "Signed off", PresenceState::NeverSeen => "Never connected" } @if let Some(at) = n.presence.since { " " span.quiet { (clock.ago(at)) } } }
                        @if let Some(remote) = &n.presence.remote { dt { "From" } dd.mono { (remote) } }
                        @if let Some(session) = &node.session { dt { "Session" } dd.mono.small { (session) } }
                        dt { "Last seen" } dd { @match n.last_seen { Some(at) => (clock.ago(at)), None => "never" } }
                    }
                }
                div.card {
                    h3 { "Identity" }
                    dl {
                        dt { "Node" } dd.mono.small { (n.id) }
                        dt { "Enrolled" } dd { (clock.ago(n.enrolled_at)) }
                        dt { "Labels" }
                        dd {
                            @if labels.is_empty() { span.quiet { "none" } }
                            @for (name, value) in labels {
                                @let label = format!("{name}={value}");
                                a.tag href={ "/?label=" (format::escaped(&label)) } { (label) } " "
                            }
                        }
                        @match &node.certificate {
                            Some(certificate) => {
                                dt { "Certificate" } dd.mono.small { (certificate.serial) }
                                dt { "Ends" } dd { (clock.ago(certificate.not_after)) " " span.quiet { (format::exact(certificate.not_after)) } }
                                dt { "Renewal" } dd { @if certificate.not_after.0 < clock.now { span.state.critical { (format::mark("critical")) "Expired" } } @else { "when the hub tells the node: see " a href="/trust" { "Trust" } } }
                            },
                            None => { dt { "Certificate" } dd.quiet { "not known" } },
                        }
                    }
                }
                div.card {
                    h3 { "Clock" }
                    dl {
                        dt { "State" }
                        dd { @match node.clock.state {
                            ClockState::Synchronized => span.state.ok { (format::mark("ok")) "Synchronized" },
                            ClockState::Ahead => span.state.warning { (format::mark("warning")) "Ahead of the hub" },
                            ClockState::Behind => span.state.warning { (format::mark("warning")) "Behind the hub" },
                            ClockState::Unknown => span.quiet { "Not measured" },
                        } }
                        @if let Some(offset) = node.clock.offset_ms {
                            dt { "Against hub" } dd { (skew(offset)) @if let Some(delay) = node.clock.delay_ms { span.quiet { " ± " (delay.div_ceil(2)) " ms" } } }
                        }
                        @if matches!(node.clock.state, ClockState::Ahead | ClockState::Behind) { dt { "What to do" } dd { "Run a time service on the node, for example: " code { "timedatectl set-ntp true" } } }
                    }
                }
                div.card {
                    h3 { "Spool" }
                    dl {
                        dt { "Waiting" } dd { (format::count(node.spool.pending_batches as usize, "batch", "batches")) }
                        @if node.spool.capacity_bytes > 0 { dt { "On disk" } dd { (format::bytes(node.spool.bytes as f64)) " of " (format::bytes(node.spool.capacity_bytes as f64)) } }
                        dt { "Lost" } dd { @if node.spool.lost_batches == 0 { "none" } @else { span.state.warning { (format::mark("warning")) (format::count(node.spool.lost_batches as usize, "batch", "batches")) } } }
                        @if let Some(fault) = &node.spool.fault { dt { "Fault" } dd { span.state.critical { (format::mark("critical")) (fault.replace('_', " ")) } " " (node.spool.message) } }
                    }
                }
                div.card {
                    h3 { "Batches received" }
                    @if coverage.is_empty() { p.quiet { "None yet." } }
                    @for epoch in coverage {
                        dl {
                            dt { "Numbers" } dd { (format::thousands(epoch.first)) " to " (format::thousands(epoch.through)) " " span.quiet.small.mono { "epoch " (epoch.epoch) } }
                            dt { "Stored" } dd { (format::thousands(epoch.stored)) ", each once" }
                            @if epoch.lost > 0 {
                                dt { "Lost" } dd { (format::thousands(epoch.lost)) " " span.quiet { @for range in &epoch.lost_ranges { (range.first) "–" (range.last) " (" (range.reason.replace('_', " ")) ") " } } }
                            }
                            dt { "Complete" } dd { @if epoch.complete { span.state.ok { (format::mark("ok")) "No number is missing" } } @else { span.state.warning { (format::mark("warning")) "Numbers are missing" } } }
                        }
                    }
                }
            }
        }
    }
}

/// `+12 ms`, `−3.4 s`.
fn skew(offset_ms: i64) -> String {
    let sign = if offset_ms < 0 { "−" } else { "+" };
    let away = offset_ms.unsigned_abs();
    match away {
        0..2_000 => format!("{sign}{away} ms"),
        2_000..120_000 => format!("{sign}{:.1} s", away as f64 / 1000.0),
        _ => format!("{sign}{}", format::duration(away as f64 / 1000.0)),
    }
}
