//! Tokens for programs and for `hfctl`: made, shown once, revoked.

use maud::{Markup, html};

use super::format::{self, Clock};
use super::layout::{Viewer, csrf};
use crate::api::resource::{ApiToken, NewApiToken, Tenant};

/// Heading, the fresh token, the list and the form.
pub fn page(
    tokens: &[ApiToken],
    tenants: &[Tenant],
    fresh: Option<&NewApiToken>,
    error: Option<&str>,
    viewer: &Viewer,
    clock: Clock,
) -> Markup {
    html! {
        div.head { div { h1 { "API tokens" } p { "For hfctl and for programs. A token has a role, and may be bound to one tenant. Who may sign commands has a key instead: see " a href="/operator-keys" { "operator keys" } "." } } }
        @if let Some(fresh) = fresh {
            section aria-label="The new token" {
                p { b { (fresh.info.name) } ": copy it now, it is not shown again." }
                div.command { pre #fresh tabindex="0" { (fresh.token) } button type="button" data-copy="fresh" { "Copy" } }
            }
        }
        section aria-label="Tokens" {
            div.card {
                @if tokens.is_empty() { div.empty { h2 { "No API tokens" } p { "Make one below, then run hfctl login and paste it." } } } @else {
                    table.cards {
                        thead { tr { th scope="col" { "Name" } th scope="col" { "Role" } th scope="col" { "Tenant" } th scope="col" { "Made" } th scope="col" { "State" } th scope="col" { span.visually-hidden { "Action" } } } }
                        tbody #rows { @for token in tokens { (row(token, viewer, clock)) } }
                    }
                }
            }
        }
        section aria-labelledby="make" {
            header { h2 #make { "Make an API token" } }
            form.form.card.pad method="post" action="/api-tokens" {
                (csrf(&viewer.csrf))
                @if let Some(error) = error { p.error role="alert" { (error) } }
                div { label for="name" { "Name" } input #name name="name" required maxlength="100" autocomplete="off" placeholder="ada's laptop"; }
                div.two {
                    div { label for="role" { "Role" } select #role name="role" { option value="viewer" { "Viewer: look" } option value="operator" { "Operator: and add nodes" } option value="admin" { "Admin: everything" } } }
                    div { label for="tenant" { "Tenant" } select #tenant name="tenant" { option value="" { "All tenants" } @for tenant in tenants { option value=(tenant.id) { (tenant.name) } } } }
                }
                div { button.primary type="submit" { "Make token" } }
            }
        }
    }
}

fn row(token: &ApiToken, viewer: &Viewer, clock: Clock) -> Markup {
    html! {
        tr {
            th scope="row" { (token.name) }
            td data-name="Role" { (token.role.as_str()) }
            td data-name="Tenant" { @match &token.tenant { Some(tenant) => (tenant), None => span.quiet { "all" } } }
            td data-name="Made" { (clock.ago(token.created_at)) }
            td { @match token.revoked_at {
                Some(at) => { span.state.away { (format::mark("away")) "Revoked" } " " span.quiet { (clock.ago(at)) } },
                None => span.state.ok { (format::mark("ok")) "Valid" },
            } }
            td { @if token.revoked_at.is_none() {
                form method="post" action={ "/api-tokens/" (token.id) "/revoke" } { (csrf(&viewer.csrf)) button.plain type="submit" aria-label={ "Revoke " (token.name) } { "Revoke" } }
            } }
        }
    }
}
