//! How long certificates live, as a page shows it, and the form that has nodes renew theirs.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use protocol::{NodeId, TenantId};
use serde::Deserialize;
use settings::Period;

use super::layout::{Viewer, csrf};
use super::pages::{Asked, may, unknown};
use super::session::{Sent, ours};
use super::{OrShown as _, Shown};
use crate::access;
use crate::api::certificate_policies::CertificatePolicy;
use crate::api::extract::{Path, require_all, require_tenant};
use crate::api::problem::Problem;
use crate::enrollment::Whom;
use crate::web::App;

/// Over how long a mass renewal can be spread from a page.
const SPREADS: [(u64, &str); 5] =
    [(600, "10 minutes"), (3_600, "1 hour"), (21_600, "6 hours"), (86_400, "1 day"), (604_800, "7 days")];

/// What goes for a tenant, or for the fleet.
pub(super) fn table(policies: &[CertificatePolicy]) -> Markup {
    html! {
        @if !policies.is_empty() {
            div.card {
                table.cards {
                    thead { tr { th scope="col" { "Certificates of" } th.num scope="col" { "Live for" } th.num scope="col" { "Renewed at" } th scope="col" { "Set for" } } }
                    tbody {
                        @for one in policies {
                            tr {
                                th scope="row" { (named(&one.kind)) span.sub.mono { (one.kind) } }
                                td.num data-name="Live for" { (Period(Duration::from_secs(one.lifetime_seconds))) }
                                td.num data-name="Renewed at" { (one.renew_from_percent) "–" (one.renew_until_percent) " %" }
                                td data-name="Set for" { @match one.source.as_str() { "tenant" => "This tenant", "fleet" => "The fleet", _ => span.quiet { "By default" } } @if let Some(by) = &one.changed_by { span.sub { (by) } } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn named(kind: &str) -> &str {
    match kind {
        "root" => "Fleet root",
        "hub-intermediate" => "Hub's intermediate",
        "nodes-intermediate" => "Nodes' intermediate",
        "kafka-root" => "Kafka root",
        "agent" => "Agents",
        "bridge" => "Bridges",
        "kafka-client" => "Bridges, at brokers",
        "kafka-server" => "Brokers",
        other => other,
    }
}

/// The form for a mass renewal of a tenant's nodes, or of all, for whoever may send it.
pub(super) fn form(tenant: Option<&str>, viewer: &Viewer) -> Markup {
    let whose = tenant.unwrap_or("the fleet");
    let id = tenant.unwrap_or("");
    html! {
        @if viewer.operates() && (tenant.is_some() || viewer.tenant.is_none()) {
            details.card.pad {
                summary { "Renew certificates of " (whose) "…" }
                form.form method="post" action="/trust/renew" {
                    (csrf(&viewer.csrf))
                    input type="hidden" name="tenant" value=(id);
                    p { "Every node of " (whose) " renews its certificate, each at its own moment; nobody's session breaks for longer than it takes to connect again. Nodes that are away do it when they return." }
                    div { label for={ "within-" (id) } { "Spread over" } select id={ "within-" (id) } name="within" { @for (seconds, words) in SPREADS { option value=(seconds) selected[seconds == 21_600] { (words) } } } }
                    div { label for={ "reason-" (id) } { "For the audit log" } input id={ "reason-" (id) } name="reason" maxlength="200" autocomplete="off"; }
                    div { button type="submit" { "Renew certificates of " (whose) } }
                }
            }
        }
    }
}

#[derive(Deserialize)]
pub(super) struct RenewForm {
    csrf: String,
    #[serde(default)]
    tenant: String,
    within: u64,
    #[serde(default)]
    reason: String,
}

/// `POST /trust/renew`
pub(super) async fn renew(State(app): State<App>, sent: Sent<RenewForm>) -> Result<Response, Shown> {
    let Sent { visitor, form } = sent;
    let done = async {
        let who = visitor.principal();
        may(&visitor, access::Role::Operator)?;
        let whom = match form.tenant.as_str() {
            "" => {
                require_all(who)?;
                Whom::All
            }
            tenant => {
                let tenant: TenantId =
                    tenant.parse().map_err(|error: protocol::id::IdError| Problem::invalid(error.to_string()))?;
                require_tenant(who, &tenant)?;
                Whom::Tenant(tenant)
            }
        };
        let within = Duration::from_secs(form.within);
        app.state.enrollment.renew_soon(&whom, within, &who.actor(), form.reason.trim(), app.now()).await?;
        Ok::<_, Problem>(())
    };
    done.await.or_shown(&app)?;
    // What was done, and for how many, is in the audit log.
    Ok(Redirect::to("/audit?action=renewal.advised").into_response())
}

#[derive(Deserialize)]
pub(super) struct RenewNodeForm {
    csrf: String,
}

/// `POST /nodes/{node}/renew`
pub(super) async fn renew_node(
    State(app): State<App>,
    id: Asked<Path<NodeId>>,
    sent: Sent<RenewNodeForm>,
) -> Result<Response, Shown> {
    let Path(id) = id.or_shown(&app)?;
    let done = async {
        let who = sent.visitor.principal();
        may(&sent.visitor, access::Role::Operator)?;
        let (node, _) = app.roster.node(who, id).ok_or_else(unknown)?;
        if node.revoked_at.is_some() {
            return Err(Problem::conflict("This node has been revoked: to have it back, enroll it with a new token."));
        }
        let whom = Whom::Nodes(vec![id]);
        app.state.enrollment.renew_soon(&whom, Duration::ZERO, &who.actor(), "", app.now()).await?;
        Ok::<_, Problem>(())
    };
    done.await.or_shown(&app)?;
    Ok(Redirect::to(&format!("/nodes/{id}")).into_response())
}

ours!(RenewForm, RenewNodeForm);
