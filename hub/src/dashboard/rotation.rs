//! A rotation: where it stands, who is not ready, and the steps there are, each with what will happen.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use protocol::TenantId;
use serde::Deserialize;

use super::format::{self, Clock};
use super::layout::{Viewer, crumbs, csrf};
use super::pages::Asked;
use super::session::{Sent, capital, ours};
use super::{OrShown as _, Shown};
use crate::api::extract::Path;
use crate::api::problem::Problem;
use crate::api::resource::{Role, Tenant};
use crate::api::rotations::{self, Gate, Missing, Rotation};
use crate::rotation::{Direction, Phase, Wish};
use crate::web::App;

const HOUR: u64 = 3600;

/// Rotations under way, and the form that begins one: a part of the page on trust.
pub(super) fn section(open: &[Rotation], tenants: &[Tenant], viewer: &Viewer, clock: Clock) -> Markup {
    html! {
        section aria-labelledby="rotations" {
            header { h2 #rotations { "Rotations" } }
            div.card {
                @if open.is_empty() { div.empty { p { "None is under way." } } } @else {
                    table.cards {
                        thead { tr { th scope="col" { "What" } th scope="col" { "Phase" } th scope="col" { "Begun" } th scope="col" { "Why" } } }
                        tbody { @for one in open {
                            tr {
                                th scope="row" { a href={ "/trust/rotations/" (one.id) } { (capital(&one.what)) } }
                                td data-name="Phase" { (title(one.phase)) }
                                td data-name="Begun" { (clock.ago(one.started_at)) }
                                td data-name="Why" { (one.reason) }
                            }
                        } }
                    }
                }
                @if viewer.role == Role::Admin {
                    details {
                        summary { "Begin a rotation…" }
                        form.form.pad method="post" action="/trust/rotations" {
                            (csrf(&viewer.csrf))
                            p { "An authority gets a successor, in phases. This first one only makes it: nobody is told, and nothing changes. Every later step is one you take, and each has a way back." }
                            div.two {
                                div { label for="kind" { "What" } select #kind name="kind" {
                                    @if viewer.tenant.is_none() {
                                        option value="root" { "The fleet root" }
                                        option value="hub" { "The hub's intermediate" }
                                        option value="nodes" { "A tenant's nodes' intermediate" }
                                    }
                                    option value="kafka" { "A tenant's Kafka root" }
                                } }
                                div { label for="tenant" { "Tenant" } select #tenant name="tenant" {
                                    @if viewer.tenant.is_none() { option value="" { "The fleet" } }
                                    @for tenant in tenants { option value=(tenant.id) { (tenant.name) } }
                                } }
                            }
                            div { label for="reason" { "Why, for the audit log" } input #reason name="reason" required maxlength="200" autocomplete="off"; }
                            div { button type="submit" { "Make the successor" } }
                        }
                    }
                }
            }
        }
    }
}

/// The whole page.
pub(super) fn page(rotation: &Rotation, viewer: &Viewer, clock: Clock) -> Markup {
    html! {
        (crumbs(&[("/trust", "Trust")]))
        (view(rotation, clock))
        (steps(rotation, viewer))
    }
}

/// The live part.
pub(super) fn view(rotation: &Rotation, clock: Clock) -> Markup {
    html! {
        div #view {
            div.head { div { h1 { "Rotation of " (rotation.what) } p { (rotation.reason) " · begun by " (rotation.started_by) } } }
            section aria-label="Phases" {
                div.card {
                    table.cards {
                        thead { tr { th scope="col" { "Phase" } th scope="col" { "Entered" } th scope="col" { "By" } th.num scope="col" { "Left behind" } } }
                        tbody { @for (place, step) in rotation.steps.iter().enumerate() {
                            @let now = place + 1 == rotation.steps.len();
                            @let class = if now && rotation.ended_at.is_none() { "notice" } else { "away" };
                            tr {
                                th scope="row" { span class={ "state " (class) } { (format::mark(class)) (title(step.phase)) } @if now { span.sub { (stands(step.phase)) } } }
                                td data-name="Entered" { (clock.ago(step.at)) }
                                td data-name="By" { (super::audit::actor(&step.by)) }
                                td.num data-name="Left behind" { (step.left_behind) }
                            }
                        } }
                    }
                }
            }
            @if let Some(gate) = &rotation.forward { (waiting(gate, clock)) }
        }
    }
}

fn waiting(gate: &Gate, clock: Clock) -> Markup {
    html! {
        section aria-label="Who is not ready" {
            header { h2 { @if gate.ready { "All are ready for: " (title(gate.to)) } @else if gate.unsigned { "Waits for the fleet root: " (title(gate.to)) } @else { (gate.missing_count) " not ready for: " (title(gate.to)) } } }
            @if gate.unsigned { p { "The fleet root is kept offline and has to sign first. Take " code { "hyperfactory-hub ca root requests" } " to it, have them signed, and import the answers." } }
            @if gate.outdated_tokens > 0 { p { (gate.outdated_tokens) " unused join tokens name the root that is given up then. They can't be used any more: make new ones." } }
            @if !gate.missing.is_empty() {
                div.card {
                    table.cards {
                        thead { tr { th scope="col" { "Name" } th scope="col" { "Tenant" } th scope="col" { "State" } th scope="col" { "Why" } } }
                        tbody { @for one in &gate.missing { (row(one, clock)) } }
                    }
                }
                @if gate.missing_count > gate.missing.len() { p.quiet { "and " (gate.missing_count - gate.missing.len()) " more: hfctl ca rotate missing" } }
            }
        }
    }
}

fn row(one: &Missing, clock: Clock) -> Markup {
    let (class, word) = match one.presence.as_deref() {
        Some("online") => ("ok", "Online"),
        Some("never_seen") => ("away", "Never seen"),
        Some(_) => ("critical", "Offline"),
        None => ("away", "Not known"),
    };
    html! {
        tr {
            th scope="row" { @if one.kind == "broker" { (one.name) span.sub { "certificate " (one.id) } } @else { a href={ "/nodes/" (one.id) } { (one.name) } } }
            td data-name="Tenant" { (one.tenant) }
            td { span class={ "state " (class) } { (format::mark(class)) (word) } @if let Some(since) = one.since { " " span.quiet { (clock.ago(since)) } } }
            td data-name="Why" { (one.why) }
        }
    }
}

/// The forms, for whoever may send them.
fn steps(rotation: &Rotation, viewer: &Viewer) -> Markup {
    let may = viewer.role == Role::Admin && (viewer.tenant.is_none() || rotation.kind == "kafka");
    html! {
        @if may && rotation.ended_at.is_none() {
            section aria-labelledby="steps" {
                header { h2 #steps { "Steps" } }
                div.card.pad {
                    @if let Some(gate) = &rotation.forward { (form(rotation, gate, Direction::Forward, viewer)) }
                    @if let Some(gate) = &rotation.back { (form(rotation, gate, Direction::Back, viewer)) }
                }
            }
        }
    }
}

fn form(rotation: &Rotation, gate: &Gate, direction: Direction, viewer: &Viewer) -> Markup {
    let (verb, word) = match direction {
        Direction::Forward => ("advance", "Go on"),
        Direction::Back if gate.to == Phase::Aborted.as_str() => ("back", "Abort"),
        Direction::Back => ("back", "Go back"),
    };
    let renews = matches!(rotation.kind, "root" | "nodes")
        && matches!((rotation.phase, gate.to), ("trust", "issue") | ("issue", "trust"));
    html! {
        details {
            summary { (word) @if gate.to != "aborted" { " to: " (title(gate.to)) } "…" }
            form.form method="post" action={ "/trust/rotations/" (rotation.id) "/" (verb) } {
                (csrf(&viewer.csrf))
                input type="hidden" name="from" value=(rotation.phase);
                p { (happens(rotation.kind, rotation.phase, direction)) }
                @if gate.missing_count > 0 {
                    @let field = format!("leave-{verb}");
                    div {
                        label for=(field) { "Leave behind, at most" }
                        input id=(field) name="leave" type="number" min="0" value="0";
                        p.hint { (gate.missing_count) " are not ready. Whoever is left behind comes back by recovery, while its window lasts." }
                    }
                }
                @if renews {
                    @let field = format!("within-{verb}");
                    div { label for=(field) { "Renewals are spread over" } select id=(field) name="renew_within" {
                        option value=(HOUR) { "an hour" } option value=(24 * HOUR) { "a day" } option value=(7 * 24 * HOUR) { "a week" } option value="60" { "a minute" }
                    } }
                }
                @if gate.confirm_brokers {
                    div { label { input type="checkbox" name="brokers_updated" value="yes" required; " I have looked: " @if gate.to == "issue" { "every broker trusts both roots" } @else { "every broker shows a certificate of the new root's" } } }
                }
                div { button type="submit" { (word) } }
            }
        }
    }
}

fn title(phase: &str) -> &'static str {
    match phase {
        "prepare" => "Prepared",
        "trust" => "Both are trusted",
        "issue" => "The new one issues",
        "retire" => "The old one is retired",
        "done" => "Done",
        _ => "Aborted",
    }
}

/// What it means to be there.
fn stands(phase: &str) -> &'static str {
    match phase {
        "prepare" => "The successor is made. Nobody is told of it.",
        "trust" => "The old one still issues.",
        "issue" => "Certificates of the old one are good, and being replaced.",
        "retire" => "It can still be called back.",
        "done" => "There is no way back.",
        _ => "The successor is given up.",
    }
}

/// What a step will do.
fn happens(kind: &str, phase: &str, direction: Direction) -> &'static str {
    match (kind, phase, direction) {
        ("root", "prepare", Direction::Forward) => {
            "Every node is told to trust the new root beside the old one. Nothing else changes."
        }
        ("kafka", "prepare", Direction::Forward) => {
            "The tenant's file of Kafka roots holds both from then on. Bridges that have their certificate from the hub are told. Nothing is issued from the new one: first give the file to every broker, and to bridges with files of their own."
        }
        (_, "prepare", Direction::Forward) => {
            "Nobody has to be told: nodes and hub trust what is under the fleet root. Nothing else changes."
        }
        ("root", "trust", Direction::Forward) => {
            "The hub shows a certificate under the new root at once, tenants get intermediates under it, and nodes are told to renew. Both roots stay trusted."
        }
        ("nodes", "trust", Direction::Forward) => {
            "The tenant's nodes are told to renew, and get certificates of the new intermediate. Those of the old one stay good."
        }
        ("hub", "trust", Direction::Forward) => "The hub shows nodes a certificate of the new intermediate at once.",
        (_, "trust", Direction::Forward) => {
            "Bridges are told to renew; give every broker a certificate of the new root. Those of the old one stay good as long as brokers and bridges trust it."
        }
        ("root", "issue", Direction::Forward) => {
            "Nodes are told to trust the new root alone, and the hub takes no certificate under the old one any more: whoever still has one has to recover, which a node does by itself. Join tokens that name the old root can't be used any more."
        }
        ("nodes", "issue", Direction::Forward) => {
            "The hub takes no certificate of the old intermediate any more: whoever still has one has to recover, which a node does by itself."
        }
        (_, "issue", Direction::Forward) => "The old one is given out no more as one to trust.",
        (_, "retire", Direction::Forward) => "The rotation is over. The old one can't be called back any more.",
        (_, "retire", Direction::Back) => "The old one is trusted again, beside the new one, which goes on issuing.",
        ("root" | "nodes", "issue", Direction::Back) => {
            "The old one issues again, and nodes that have a certificate of the new one's are told to renew. Both stay trusted."
        }
        (_, "issue", Direction::Back) => "The old one issues again. Both stay trusted.",
        ("root", "trust", Direction::Back) => "Nodes are told to trust the old root alone.",
        (_, "trust", Direction::Back) => "The new one is given out no more as one to trust.",
        _ => "The successor is given up for good. The rotation is over.",
    }
}

#[derive(Deserialize)]
pub(super) struct StartForm {
    csrf: String,
    kind: String,
    #[serde(default)]
    tenant: String,
    reason: String,
}

/// `POST /trust/rotations`
pub(super) async fn start(State(app): State<App>, sent: Sent<StartForm>) -> Result<Response, Shown> {
    let begun = async {
        let StartForm { kind, tenant, reason, .. } = &sent.form;
        let of_tenant = matches!(kind.as_str(), "nodes" | "kafka") && !tenant.is_empty();
        let tenant = of_tenant.then(|| tenant.parse::<TenantId>()).transpose();
        let tenant = tenant.map_err(|error| Problem::invalid(error.to_string()))?;
        rotations::start(&app, sent.visitor.principal(), kind, tenant, reason).await
    };
    let begun = begun.await.or_shown(&app)?;
    Ok(Redirect::to(&format!("/trust/rotations/{}", begun.id)).into_response())
}

#[derive(Deserialize)]
pub(super) struct StepForm {
    csrf: String,
    from: String,
    #[serde(default)]
    leave: usize,
    #[serde(default)]
    brokers_updated: String,
    #[serde(default)]
    renew_within: u64,
}

/// `POST /trust/rotations/{rotation}/advance`
pub(super) async fn advance(
    State(app): State<App>,
    id: Asked<Path<i64>>,
    sent: Sent<StepForm>,
) -> Result<Response, Shown> {
    take(app, id, sent, Direction::Forward).await
}

/// `POST /trust/rotations/{rotation}/back`
pub(super) async fn back(
    State(app): State<App>,
    id: Asked<Path<i64>>,
    sent: Sent<StepForm>,
) -> Result<Response, Shown> {
    take(app, id, sent, Direction::Back).await
}

async fn take(app: App, id: Asked<Path<i64>>, sent: Sent<StepForm>, direction: Direction) -> Result<Response, Shown> {
    let Path(id) = id.or_shown(&app)?;
    let done = async {
        let from: Phase = sent
            .form
            .from
            .parse()
            .map_err(|error: crate::rotation::PhaseError| Problem::malformed(error.to_string()))?;
        let wish = Wish {
            leave: sent.form.leave,
            brokers_updated: sent.form.brokers_updated == "yes",
            renew_within: Duration::from_secs(if sent.form.renew_within == 0 { HOUR } else { sent.form.renew_within }),
            ..Wish::new(direction, from)
        };
        rotations::take(&app, sent.visitor.principal(), id, wish).await
    };
    done.await.or_shown(&app)?;
    Ok(Redirect::to(&format!("/trust/rotations/{id}")).into_response())
}

ours!(StartForm, StepForm);
