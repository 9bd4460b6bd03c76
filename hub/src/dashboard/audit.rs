//! Who did what, newest first.

use maud::{Markup, html};
use protocol::NodeId;
use serde_json::Value;

use super::format::{self, Clock};
use crate::api::resource::AuditEntry;
use crate::audit::action;

/// Kinds of act to choose from: the start of the action's name, and the word for it.
const KINDS: [(&str, &str); 17] = [
    ("", "Everything"),
    ("tenant.", "Tenants"),
    ("token.", "Join tokens"),
    ("enrollment.", "Refused enrollments"),
    ("node.", "Nodes"),
    ("command.", "Commands"),
    ("rollout.", "Rollouts"),
    ("tail.", "Logs read live"),
    ("logs.", "Logs searched"),
    ("certificate.", "Certificates"),
    ("authority.", "Authorities"),
    ("rotation.", "Rotations"),
    ("renewal.", "Renewals"),
    ("kafka_access.", "Rights at brokers"),
    ("session.", "Sessions"),
    ("access.", "Denied access"),
    ("signin", "Sign-ins"),
];

/// Heading and list.
pub fn page(entries: &[AuditEntry], action: &str, older: Option<i64>, clock: Clock) -> Markup {
    html! {
        div.head { div { h1 { "Audit" } p { "Every act of a person, a program or a node that changed something, or tried to." } } }
        (view(entries, action, older, clock))
    }
}

/// The live part.
pub fn view(entries: &[AuditEntry], action: &str, older: Option<i64>, clock: Clock) -> Markup {
    html! {
        div #view {
            form.tools method="get" action="/audit" data-filter {
                label.visually-hidden for="action" { "Show" }
                div { select #action name="action" {
                    @for (value, word) in KINDS { option value=(value) selected[value == action] { (word) } }
                    @if !KINDS.iter().any(|(value, _)| *value == action) { option value=(action) selected { (action) } }
                } }
                noscript { button type="submit" { "Show" } }
            }
            div.card {
                @if entries.is_empty() { div.empty { h2 { "Nothing here" } p { "No act of this kind has been recorded." } } } @else {
                    table.cards {
                        caption.visually-hidden { "Audit entries, newest first" }
                        thead { tr { th scope="col" { "When" } th scope="col" { "Who" } th scope="col" { "Did" } th scope="col" { "To" } th scope="col" { "More" } th scope="col" { "From" } } }
                        tbody #rows { @for entry in entries { (row(entry, clock)) } }
                    }
                    @if let Some(before) = older { p.more { a href={ "/audit?action=" (format::escaped(action)) "&before=" (before) } { "Older" } } }
                }
            }
        }
    }
}

fn row(entry: &AuditEntry, clock: Clock) -> Markup {
    let refused = entry.action.ends_with("refused") || entry.action.ends_with("displaced");
    html! {
        tr id={ "e-" (entry.id) } {
            td.nowrap { (clock.ago(entry.at)) }
            td.nowrap data-name="By" { (actor(&entry.actor)) }
            th.nowrap scope="row" { @if refused { span.state.warning { (format::mark("warning")) (entry.action) } } @else { (entry.action) } }
            td.wide.break {
                (subject(entry))
                @if let Some(tenant) = entry.tenant.as_ref().filter(|tenant| **tenant != entry.subject) { span.sub { "in " (tenant) } }
            }
            td.wide.break.small.quiet { (detail(&entry.detail)) }
            td.nowrap data-name="From" { @if let Some(remote) = &entry.remote { span.mono.small { (remote) } } }
        }
    }
}

/// What an act was done to, with the way there where it has a page.
fn subject(entry: &AuditEntry) -> Markup {
    let subject = entry.subject.as_str();
    let kind = entry.action.split('.').next().unwrap_or_default();
    let page = match kind {
        "rollout" => Some(format!("/rollouts/{subject}")),
        "command" => Some(match subject.strip_prefix("rollout ") {
            Some(rollout) => format!("/rollouts/{rollout}"),
            None if entry.action == action::COMMAND_REQUESTED => format!("/requests/{subject}"),
            None => format!("/commands/{subject}"),
        }),
        "rotation" => Some(format!("/trust/rotations/{subject}")),
        "tenant" => Some(format!("/tenants/{subject}")),
        "node" | "certificate" | "renewal" | "session" | "tail" | "logs" | "kafka_access" => {
            subject.parse::<NodeId>().is_ok().then(|| format!("/nodes/{subject}"))
        }
        _ => None,
    };
    html! { @match page { Some(page) => a href=(page) { (subject) }, None => (subject) } }
}

/// `operator:ada` reads `ada`; a node links to its page.
pub(super) fn actor(actor: &str) -> Markup {
    html! {
        @match actor.split_once(':') {
            Some(("operator", name)) => (name),
            Some(("node", id)) => a href={ "/nodes/" (id) } { "node " (id.get(..13).unwrap_or(id)) "…" },
            _ => span.quiet { (actor) },
        }
    }
}

/// `name: press-2 · kind: agent`.
fn detail(value: &Value) -> String {
    // Of a certificate, its serial is enough to read.
    let text = |value: &Value| {
        value.as_str().or_else(|| value["serial"].as_str()).map_or_else(|| value.to_string(), str::to_owned)
    };
    match value {
        Value::Object(fields) => {
            let each = fields.iter().filter(|(_, value)| !value.is_null());
            each.map(|(name, value)| format!("{}: {}", name.replace('_', " "), text(value)))
                .collect::<Vec<_>>()
                .join(" · ")
        }
        Value::Null => String::new(),
        other => text(other),
    }
}
