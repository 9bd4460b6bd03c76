//! The fleet's trust at a glance: who issues, until when, for how long, and whose certificate ends first.

use maud::{Markup, html};

use super::format::{self, Clock};
use super::layout::Viewer;
use super::renewal;
use crate::api::authorities::{Authority, Awaited};
use crate::api::certificate_policies::CertificatePolicy;
use crate::api::resource::{Node, Time};

/// A node and the end of its certificate.
pub(super) struct Ending {
    pub(super) node: std::sync::Arc<Node>,
    pub(super) not_after: Time,
}

/// What waits for a signature, authorities by owner with what goes for what they issue, then the nodes whose certificates end first.
pub(super) fn page(
    authorities: &[Authority],
    awaited: &[Awaited],
    policies: impl Fn(Option<&str>) -> Vec<CertificatePolicy>,
    rotations: &Markup,
    ending: &[Ending],
    viewer: &Viewer,
    clock: Clock,
) -> Markup {
    html! {
        div.head { div { h1 { "Trust" } p { "Who issues certificates, and how long they last. The hub follows an intermediate by a new one well before it ends, and tells each node when to renew." } } div.actions { a href="/operator-keys" { "Operator keys" } } }
        @if !awaited.is_empty() { (waiting(awaited, clock)) }
        @for group in authorities.chunk_by(|a, b| a.tenant == b.tenant) {
            @let tenant = group.first().and_then(|one| one.tenant.as_deref());
            section aria-label=(tenant.unwrap_or("The fleet")) {
                header { h2 { @match tenant { Some(tenant) => a href={ "/tenants/" (tenant) } { (tenant) }, None => "The fleet" } } }
                div.card {
                    table.cards {
                        thead { tr { th scope="col" { "Authority" } th scope="col" { "State" } th.num scope="col" { "Certificates" } th scope="col" { "Ends" } th scope="col" { "Followed" } th scope="col" { "Files" } } }
                        tbody { @for one in group { (authority(one, clock)) } }
                    }
                }
                (renewal::table(&policies(tenant)))
                (renewal::form(tenant, viewer))
            }
        }
        (rotations)
        section aria-label="Nodes by remaining life" {
            header { h2 { "Nodes whose certificates end first" } }
            div.card {
                @if ending.is_empty() { div.empty { h2 { "No nodes yet" } p { "A node has a certificate from its enrollment on." } } } @else {
                    table.cards {
                        thead { tr { th scope="col" { "Node" } th scope="col" { "Tenant" } th scope="col" { "State" } th scope="col" { "Ends" } } }
                        tbody {
                            @for one in ending {
                                tr {
                                    th scope="row" { a href={ "/nodes/" (one.node.id) } { (one.node.name) } }
                                    td data-name="Tenant" { (one.node.tenant) }
                                    td { (format::node(&one.node).show()) }
                                    td data-name="Ends" { (clock.ago(one.not_after)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn waiting(awaited: &[Awaited], clock: Clock) -> Markup {
    html! {
        section #awaited aria-label="Signatures awaited" {
            header { h2 { "Signatures awaited" } span.quiet { "the fleet's root is kept offline" } }
            div.card {
                table.cards {
                    thead { tr { th scope="col" { "For" } th scope="col" { "Since" } th scope="col" { "The one before ends" } } }
                    tbody {
                        @for one in awaited {
                            tr {
                                th scope="row" {
                                    @match (one.kind.as_str(), &one.tenant) {
                                        ("nodes", Some(tenant)) => { "Nodes' intermediate of " a href={ "/tenants/" (tenant) } { (tenant) } },
                                        ("hub", _) => "Hub's intermediate",
                                        ("link", _) => "Link to the next root",
                                        _ => "The root's revocation list",
                                    }
                                }
                                td data-name="Since" { (clock.ago(one.since)) }
                                td data-name="The one before ends" { @match one.ends { Some(at) => (clock.ago(at)), None => span.state.warning { (format::mark("warning")) "There is none" } } }
                            }
                        }
                    }
                }
                div.pad { p { "On the hub's machine, " code { "hyperfactory-hub ca root requests --file R" } "; where the root's key is, " code { "hyperfactory-hub ca root sign --key F --requests R --out S" } "; then here " code { "hyperfactory-hub ca root import --file S" } "." } }
            }
        }
    }
}

fn authority(one: &Authority, clock: Clock) -> Markup {
    let what = match one.kind.as_str() {
        "root" => "Fleet root",
        "hub" => "Hub's intermediate",
        "nodes" => "Nodes' intermediate",
        "kafka" => "Kafka root",
        "web" => "HTTPS authority",
        other => other,
    };
    let (class, word) = match one.state.as_str() {
        "active" => ("ok", "Issues"),
        "trusted" => ("away", "Trusted"),
        "awaiting-signature" => ("warning", "Awaits its signature"),
        "pending" => ("away", "Pending"),
        _ => ("away", "Retired"),
    };
    let bundle = match (one.kind.as_str(), &one.tenant) {
        ("root", _) => Some("/pki/fleet-root.pem".to_owned()),
        ("kafka", Some(tenant)) => Some(format!("/pki/{tenant}/kafka-root.pem")),
        ("nodes", Some(tenant)) => Some(format!("/pki/{tenant}/nodes-intermediate.pem")),
        _ => None,
    };
    html! {
        tr {
            th scope="row" { (what) span.sub.mono title=(one.key_sha256) { "generation " (one.generation) " · key " (one.key_sha256.get(..16).unwrap_or_default()) } }
            td { span class={ "state " (class) } { (format::mark(class)) (word) } }
            td.num data-name="Certificates" { (one.certificates) }
            td data-name="Ends" { @match one.not_after { Some(at) => (clock.ago(at)), None => "–" } }
            td data-name="Followed" { @match (one.followed_at, one.renew_by) { (Some(at), _) => (clock.ago(at)), (None, Some(by)) => { "to be rotated " (clock.ago(by)) }, _ => "–" } }
            td data-name="Files" { @if let Some(bundle) = bundle { a href=(bundle) { "Certificate" } " · " } a href=(one.revocation_list) { "Revocations" } }
        }
    }
}
