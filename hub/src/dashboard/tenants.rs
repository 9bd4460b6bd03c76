//! Tenants: all of them, and the form that creates one.

use maud::{Markup, html};

use super::format::{self, Clock};
use super::layout::{Viewer, crumbs, csrf};
use crate::api::resource::{NodeCounts, Tenant, Token, TokenState};

/// What was typed into the form, and what was wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Form {
    /// The slug.
    pub id: String,
    /// The name.
    pub name: String,
    /// Why it was refused.
    pub error: Option<String>,
}

/// The list and the form.
pub fn page(tenants: &[Tenant], form: &Form, viewer: &Viewer, clock: Clock) -> Markup {
    html! {
        div.head { div { h1 { "Tenants" } p { "A tenant is a customer. Each has a certificate authority of its own." } } }
        (list(tenants, viewer, clock))
        @if viewer.administers() { (create(form, viewer, tenants.is_empty())) }
    }
}

/// The live part.
pub fn list(tenants: &[Tenant], viewer: &Viewer, clock: Clock) -> Markup {
    html! {
        div #view {
            @if tenants.is_empty() {
                div.card.empty {
                    h2 { "No tenants yet" }
                    p { @if viewer.administers() { "Create the first one below; then add its nodes with one pasted command each." } @else { "An administrator creates tenants here, or with hfctl tenant create." } }
                }
            } @else {
                div.card {
                    table.cards {
                        caption.visually-hidden { "Tenants" }
                        thead { tr { th scope="col" { "Tenant" } th scope="col" { "State" } th.num scope="col" { "Nodes" } th.num scope="col" { "Online" } th scope="col" { "Created" } } }
                        tbody #rows {
                            @for tenant in tenants {
                                tr id={ "t-" (tenant.id) } {
                                    th scope="row" { a href={ "/tenants/" (tenant.id) } { (tenant.name) } span.sub.mono { (tenant.id) } }
                                    td.wide { (state(tenant.nodes)) @if tenant.awaits_signature { " " (awaits()) } }
                                    td.num data-name="Nodes" { (tenant.nodes.total) }
                                    td.num data-name="Online" { (tenant.nodes.online) }
                                    td data-name="Created" { (clock.ago(tenant.created_at)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn awaits() -> Markup {
    html! { span.state.warning { (format::mark("warning")) "Awaits a signature" } }
}

/// A tenant's nodes in one word.
pub fn state(counts: NodeCounts) -> Markup {
    let line = |class: &str, n: u32, word: &str| html! { span class={ "state " (class) } { (format::mark(class)) (n) " " (word) } };
    html! {
        @if counts.total == 0 { span.quiet { "no nodes yet" } }
        @else if counts.critical > 0 { (line("critical", counts.critical, "critical")) }
        @else if counts.warning > 0 { (line("warning", counts.warning, "warning")) }
        @else if counts.online == counts.total { span.state.ok { (format::mark("ok")) "All online" } }
        @else { (line("ok", counts.online, "online")) }
    }
}

fn create(form: &Form, viewer: &Viewer, first: bool) -> Markup {
    let bad = form.error.as_ref().map(|_| "true");
    html! {
        section aria-labelledby="create" {
            header { h2 #create { "Create a tenant" } }
            form.form.card.pad method="post" action="/tenants" {
                (csrf(&viewer.csrf))
                div {
                    label for="name" { "Name" }
                    input #name name="name" required maxlength="100" value=(form.name) autocomplete="off" placeholder="Acme Stamping GmbH" autofocus[first || form.error.is_some()];
                }
                div {
                    label for="id" { "Id" }
                    input #id name="id" required maxlength="40" pattern="[a-z0-9]([a-z0-9\\-]*[a-z0-9])?" value=(form.id) autocomplete="off" autocapitalize="none" spellcheck="false"
                        placeholder="acme" aria-describedby="id-hint" aria-invalid=[bad];
                    p.hint #id-hint { "1 to 40 of a-z, 0-9 and hyphen. It stands in certificates and addresses and never changes." }
                    @if let Some(error) = &form.error { p.error role="alert" { (error) } }
                }
                div { button.primary type="submit" { "Create tenant" } }
            }
        }
    }
}

/// A tenant's heading.
pub fn heading(tenant: &Tenant, viewer: &Viewer, clock: Clock) -> Markup {
    html! {
        (crumbs(&[("/tenants", "Tenants")]))
        div.head {
            div {
                h1 { (tenant.name) }
                p { span.mono { (tenant.id) } " · created " (clock.ago(tenant.created_at)) }
                @if tenant.awaits_signature {
                    p { (awaits()) " No node can enroll yet: the fleet's root, which is kept offline, has to sign this tenant's authority. Join tokens can be made; nodes that come with one are told to come again." }
                }
            }
            @if viewer.operates() { div.actions { a.button.primary href={ "/join?tenant=" (tenant.id) } { "Add a node" } } }
        }
    }
}

/// A tenant's join tokens.
pub fn tokens(tokens: &[Token], clock: Clock) -> Markup {
    html! {
        section #tokens aria-label="Join tokens" {
            @if !tokens.is_empty() {
                header { h2 { "Join tokens" } span.quiet { "newest first" } }
                div.card {
                    table.cards {
                        thead { tr { th scope="col" { "For" } th scope="col" { "State" } th scope="col" { "Made" } th scope="col" { "By" } th scope="col" { "Ends" } } }
                        tbody {
                            @for token in tokens {
                                tr {
                                    th scope="row" { (token.kind.as_str()) @if let Some(name) = &token.name { " " (name) } }
                                    td { (token_state(token)) @if let Some(node) = &token.node { " " a href={ "/nodes/" (node) } { "node" } } }
                                    td data-name="Made" { (clock.ago(token.created_at)) }
                                    td data-name="By" { (super::audit::actor(&token.created_by)) }
                                    td data-name="Ends" { @if token.state == TokenState::Open { (clock.ago(token.expires_at)) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn token_state(token: &Token) -> Markup {
    match token.state {
        TokenState::Open => html! { span.state.notice { (format::mark("notice")) "Open" } },
        TokenState::Used => html! { span.state.ok { (format::mark("ok")) "Used" } },
        TokenState::Expired => html! { span.state.away { (format::mark("away")) "Expired" } },
    }
}
