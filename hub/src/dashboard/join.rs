//! Adding a node: a form that makes a join token, and the one command to paste.

use maud::{Markup, html};

use super::format::{self, Clock};
use super::layout::{Viewer, crumbs, csrf};
use crate::api::resource::{Kind, NewToken, Node, Tenant, Token, TokenState};

/// How long a token can be valid: seconds, and the words for it.
pub const LIFETIMES: [(u64, &str); 4] =
    [(900, "15 minutes"), (3_600, "1 hour"), (86_400, "1 day"), (604_800, "7 days")];

/// What was chosen, and what was wrong with it.
#[derive(Clone, Debug)]
pub struct Form {
    /// The tenant's id.
    pub tenant: String,
    /// Agent or bridge.
    pub kind: Kind,
    /// The node's name, or empty for its host name.
    pub name: String,
    /// Seconds.
    pub valid_for: u64,
    /// Why it was refused.
    pub error: Option<String>,
}

/// The form.
pub fn form(tenants: &[Tenant], form: &Form, viewer: &Viewer) -> Markup {
    html! {
        div.head { div { h1 { "Add a node" } p { "A join token enrolls one node, once. It carries this hub's address and the fingerprint of its certificate authority." } } }
        @if tenants.is_empty() {
            div.card.empty { h2 { "Begin with a tenant" } p { "Every node belongs to a tenant." } a.button.primary href="/tenants" { "Create a tenant" } }
        } @else {
            form.form.card.pad method="post" action="/join" {
                (csrf(&viewer.csrf))
                @if let Some(error) = &form.error { p.error role="alert" { (error) } }
                div.two {
                    div {
                        label for="tenant" { "Tenant" }
                        select #tenant name="tenant" required { @for tenant in tenants { option value=(tenant.id) selected[tenant.id == form.tenant] { (tenant.name) } } }
                    }
                    div {
                        label for="kind" { "Kind" }
                        select #kind name="kind" {
                            option value="agent" selected[form.kind == Kind::Agent] { "Agent: a machine with its containers" }
                            option value="bridge" selected[form.kind == Kind::Bridge] { "Bridge: a plant's data" }
                        }
                    }
                }
                div.two {
                    div {
                        label for="name" { "Name " span.quiet { "(optional)" } }
                        input #name name="name" maxlength="63" value=(form.name) autocomplete="off" autocapitalize="none" spellcheck="false" placeholder="the machine's host name";
                    }
                    div {
                        label for="valid_for" { "Can be used for" }
                        select #valid_for name="valid_for" { @for (seconds, words) in LIFETIMES { option value=(seconds) selected[seconds == form.valid_for] { (words) } } }
                    }
                }
                div { button.primary type="submit" { "Make join token" } }
            }
        }
    }
}

/// The command, once, and what becomes of it.
pub fn made(token: &NewToken, clock: Clock) -> Markup {
    let kind = token.info.kind.as_str();
    let (of_tenant, join) = (format!("/tenants/{}", token.info.tenant), format!("/join?tenant={}", token.info.tenant));
    html! {
        (crumbs(&[(of_tenant.as_str(), token.info.tenant.as_str()), (join.as_str(), "Add a node")]))
        div.head { div { h1 { "Paste this on the new node" } p { "The token is shown this once. It works for one node" @if let Some(name) = &token.info.name { ", named " (name) "," } " and ends " (clock.ago(token.info.expires_at)) "." } } }
        ol.steps {
            li { div {
                h2 { "Enroll" }
                p.quiet { "As root on the machine that runs the " (kind) "." }
                div.command { pre #command tabindex="0" { (token.command) } button type="button" data-copy="command" { "Copy" } }
            } }
            li { div {
                h2 { "Start" }
                p.quiet { "Where the package is installed, systemd starts it; elsewhere run " code { "hyperfactory-" (kind) " run" } "." }
                div.command { pre #start tabindex="0" { "sudo systemctl enable --now hyperfactory-" (kind) } button type="button" data-copy="start" { "Copy" } }
            } }
            li { div { h2 { "See it here" } (waiting(&token.info, None, clock)) } }
        }
    }
}

/// Whether the node has come; the live part.
pub fn waiting(token: &Token, node: Option<&Node>, clock: Clock) -> Markup {
    html! {
        div.waiting #waiting role="status" {
            @match (token.state, &token.node) {
                (TokenState::Used, Some(id)) => {
                    span.state.ok { (format::mark("ok")) "Enrolled" }
                    @if let Some(node) = node { span { a href={ "/nodes/" (id) } { (node.name) } " " span.quiet { "is " (format::node(node).word.to_lowercase()) } } }
                    @else { a href={ "/nodes/" (id) } { "See the node" } }
                },
                (TokenState::Used, None) => span.state.ok { (format::mark("ok")) "Enrolled" },
                (TokenState::Expired, _) => { span.state.away { (format::mark("away")) "Expired" } a href={ "/join?tenant=" (token.tenant) } { "Make another token" } },
                (TokenState::Open, _) => { span.pulse aria-hidden="true" {} span { "Waiting for the node… " span.quiet { "the token ends " (clock.ago(token.expires_at)) } } },
            }
        }
    }
}
