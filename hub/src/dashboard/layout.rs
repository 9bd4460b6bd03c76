//! What every page has around its content.

use maud::{DOCTYPE, Markup, html};

use super::assets;
use super::format::Clock;
use crate::api::resource::Role;

/// The part of the dashboard a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// All nodes.
    Fleet,
    /// Customers.
    Tenants,
    /// Plants' ways to Kafka.
    Bridges,
    /// Commands over many nodes.
    Rollouts,
    /// What went wrong.
    Alerts,
    /// Who did what.
    Audit,
    /// Who issues certificates, and until when.
    Trust,
    /// Tokens for programs.
    Access,
    /// Making a join token.
    Join,
}

/// Who looks.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// Name in the audit log.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// The only tenant they may see.
    pub tenant: Option<String>,
    /// Goes into every form.
    pub csrf: String,
}

impl Viewer {
    /// May make join tokens.
    pub fn operates(&self) -> bool {
        self.role >= Role::Operator
    }

    /// May create tenants and API tokens.
    pub fn administers(&self) -> bool {
        self.role == Role::Admin && self.tenant.is_none()
    }
}

/// The way to a page: addresses, and the words of their links.
pub(super) fn crumbs(way: &[(&str, &str)]) -> Markup {
    html! { ul.crumbs aria-label="Path" { @for (address, word) in way { li { a href=(address) { (word) } } } } }
}

/// The way to what is a node's.
pub(super) fn crumbs_of(tenant: &str, node: (&str, &str), more: &[(&str, &str)]) -> Markup {
    let (id, name) = node;
    let (of_tenant, of_node) = (format!("/tenants/{tenant}"), format!("/nodes/{id}"));
    let node = [("/", "Fleet"), (of_tenant.as_str(), tenant), (of_node.as_str(), name)];
    crumbs(&[&node[..], more].concat())
}

/// Everything around a page.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Title of the window.
    pub title: &'a str,
    /// Where in the menu.
    pub section: Section,
    /// Who looks.
    pub viewer: &'a Viewer,
    /// Alerts that are open now, for the menu.
    pub open_alerts: usize,
    /// Address of the page's live stream.
    pub live: Option<String>,
    /// The hub's time.
    pub clock: Clock,
}

impl Frame<'_> {
    /// The whole page.
    pub fn page(&self, content: &Markup) -> Markup {
        let item = |section: Section, href: &str, text: Markup| {
            let current = (section == self.section).then_some("page");
            html! { li { a href=(href) aria-current=[current] { (text) } } }
        };
        document(
            self.title,
            self.clock,
            &html! {
                a.skip href="#main" { "Skip to content" }
                header.bar {
                    div.bar-in {
                        (brand())
                        nav aria-label="Main" {
                            ul {
                                (item(Section::Fleet, "/", html! { "Fleet" }))
                                (item(Section::Tenants, "/tenants", html! { "Tenants" }))
                                (item(Section::Bridges, "/bridges", html! { "Bridges" }))
                                (item(Section::Rollouts, "/rollouts", html! { "Rollouts" }))
                                (item(Section::Alerts, "/alerts", html! { "Alerts" (alert_pill(self.open_alerts)) }))
                                (item(Section::Trust, "/trust", html! { "Trust" }))
                                (item(Section::Audit, "/audit", html! { "Audit" }))
                                @if self.viewer.administers() { (item(Section::Access, "/api-tokens", html! { "API tokens" })) }
                            }
                        }
                        div.account {
                            span.nowrap { (self.viewer.name) @if let Some(tenant) = &self.viewer.tenant { " · " (tenant) } }
                            form method="post" action="/sign-out" {
                                (csrf(&self.viewer.csrf))
                                button.plain type="submit" { "Sign out" }
                            }
                        }
                    }
                    p.lost-link #lost-link role="alert" hidden { "No connection to the hub. This page shows what was last known; trying again…" }
                }
                main #main tabindex="-1" data-live=[self.live.as_deref()] { (content) }
                footer.foot { span { "Hyperfactory " (env!("CARGO_PKG_VERSION")) } a href="/api/v1/openapi.json" { "API description" } }
            },
        )
    }
}

/// How many alerts are open, as a fragment of its own.
pub fn alert_pill(open: usize) -> Markup {
    html! { span #alert-count { @if open > 0 { span.pill { (open) span.visually-hidden { " open" } } } } }
}

/// A page for somebody who is not signed in, or an error.
pub fn alone(title: &str, clock: Clock, content: &Markup) -> Markup {
    document(title, clock, &html! { main.alone #main { (brand()) div.card { (content) } } })
}

/// The hidden field that proves a form came from this dashboard.
pub fn csrf(token: &str) -> Markup {
    html! { input type="hidden" name="csrf" value=(token); }
}

fn brand() -> Markup {
    html! {
        a.brand href="/" {
            svg viewBox="0 0 20 20" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" {
                path d="M4 3v14M16 7v10M4 10h12" {}
                circle cx="16" cy="4" r="1.6" fill="currentColor" {}
            }
            "Hyperfactory"
        }
    }
}

fn document(title: &str, clock: Clock, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                title { (title) " · Hyperfactory" }
                link rel="icon" type="image/svg+xml" href=(assets::ICON.url());
                link rel="stylesheet" href=(assets::STYLE.url());
                script src=(assets::SCRIPT.url()) defer {}
            }
            body data-now=(clock.now.millis()) { (body) }
        }
    }
}
