//! Who did what, newest first.

use maud::{Markup, html};
use protocol::NodeId;
use serde_json::Value;

use super::format::{self, Clock};
use crate::api::resource::AuditEntry;
use crate::audit::action;

/// Kinds of act to choose from: the start of the action's name, and the word for it.
const KINDS: [(&str, &str); 18] = [
    ("", "Everything"),
    ("tenant.", "Tenants"),
    ("token.", "Join tokens"),
    ("enrollment.", "Refused enrollments"),
    ("node.", "Nodes"),
    ("command.", "Commands"),
    ("operator_key.", "Operator keys"),
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
                    table.audit.cards {
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
            td.wide.break.subject {
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
        "command" => match subject.split_once(' ') {
            Some(("rollout", rollout)) => Some(format!("/rollouts/{rollout}")),
            Some(("request", request)) => Some(format!("/requests/{request}")),
            Some(_) => None,
            None if entry.action == action::COMMAND_REQUESTED => Some(format!("/requests/{subject}")),
            None => Some(format!("/commands/{subject}")),
        },
        "rotation" => Some(format!("/trust/rotations/{subject}")),
        "tenant" => Some(format!("/tenants/{subject}")),
        "operator_key" => Some("/operator-keys".to_owned()),
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

/// Texts of a list that are shown; more are counted.
const LISTED: usize = 3;

/// `name: press-2 · kind: agent`.
fn detail(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let each = fields.iter().filter(|(_, value)| !value.is_null());
            each.map(|(name, value)| format!("{}: {}", name.replace('_', " "), brief(value)))
                .collect::<Vec<_>>()
                .join(" · ")
        }
        other => brief(other),
    }
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        _ => true,
    }
}

/// What is within a detail, in a few words: all of it is in the API and in the export.
fn brief(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        // Of a certificate, its serial is enough to read.
        Value::Object(fields) => match fields.get("serial").and_then(Value::as_str) {
            Some(serial) => serial.to_owned(),
            None => {
                let each = fields.iter().filter(|(_, value)| says_something(value));
                each.map(|(name, value)| format!("{name} {}", brief(value))).collect::<Vec<_>>().join(", ")
            }
        },
        // Of commands and their nodes, how many: what was asked for leads to them.
        Value::Array(items) if items.iter().any(Value::is_object) => items.len().to_string(),
        Value::Array(items) => {
            let more = items.len().saturating_sub(LISTED);
            let listed = items.iter().take(LISTED).map(brief).collect::<Vec<_>>().join(", ");
            if more > 0 { format!("{listed} and {more} more") } else { listed }
        }
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn a_detail_is_told_in_a_few_words() {
        let told = super::detail(&json!({
            "why": "a leak", "signed_by": null, "nodes": 7, "commands": [{ "command": "a" }, { "command": "b" }],
            "target": { "nodes": ["a", "b", "c", "d", "e"], "tenant": null, "labels": [], "all": false },
            "certificate": { "serial": "01ab", "sha256": "ff" }, "left": false,
        }));
        let parts: Vec<&str> = told.split(" · ").collect();
        for part in [
            "certificate: 01ab",
            "commands: 2",
            "left: false",
            "nodes: 7",
            "target: nodes a, b, c and 2 more",
            "why: a leak",
        ] {
            assert!(parts.contains(&part), "{part} is not in {told}");
        }
        assert_eq!(parts.len(), 6, "{told}");
    }
}
