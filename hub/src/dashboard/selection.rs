//! The same command for several nodes at once: the bar below a list of them, and the pages that ask for what is missing and
//! say what will happen, to how many nodes of whom, before it is done.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use protocol::message::Service;
use protocol::{NodeId, TenantId};
use serde::Deserialize;

use super::commands::{VALID_FOR, consequence, interval, millis};
use super::format;
use super::layout::{Section, Viewer, csrf};
use super::pages::{framed, may, unknown};
use super::rollouts::ACTIONS;
use super::session::{Ours, Sent, Visitor, capital};
use super::{OrShown as _, Shown};
use crate::access::{self, Principal};
use crate::api::commands::{self, CommandRequest, Target};
use crate::api::meant::digest_of;
use crate::api::problem::Problem;
use crate::api::resource::{Kind, Node, PresenceState};
use crate::api::select::NodeQuery;
use crate::rows;
use crate::telemetry::state::NodeView;
use crate::web::App;

/// Most nodes of a selection: over it, a rollout is the way.
const MOST: usize = 1_000;
/// Nodes that are named before it is done; more are counted.
const NAMED: usize = 50;
/// From so many nodes on, a rollout is suggested.
const MANY: usize = 10;

/// The box that selects one node, for whoever may; a bridge and a revoked node carry out nothing.
pub(super) fn pick(node: &Node) -> Markup {
    html! {
        @if node.kind == Kind::Agent && node.revoked_at.is_none() {
            input type="checkbox" name="node" value=(node.id) form="selection" autocomplete="off" aria-label={ "Select " (node.name) };
        }
    }
}

/// The box that selects all that pass the filter, also those that are not shown.
pub(super) fn pick_all(filter: &str) -> Markup {
    html! {
        input type="hidden" name="filter" value=(filter) form="selection";
        label.pick-all { input #pick-all type="checkbox" name="all" value="1" form="selection" autocomplete="off"; "Select all that match" }
    }
}

/// The bar with what can be done to the nodes that are selected; it is there when some are.
pub(super) fn bar(viewer: &Viewer) -> Markup {
    html! {
        @if viewer.operates() {
            form.selection #selection method="post" action="/selection" {
                (csrf(&viewer.csrf))
                p #picked role="status" { "The selected nodes" }
                label.visually-hidden for="do" { "What they are to do" }
                select #do name="action" { @for (action, word) in ACTIONS { option value=(action) { (word) } } }
                button.primary type="submit" { "Go on…" }
                button.plain type="reset" { "Select none" }
                p.keys aria-hidden="true" { kbd { "j" } kbd { "k" } " move, " kbd { "x" } " select, " kbd { "a" } " all, " kbd { "d" } " do, " kbd { "Esc" } " none" }
            }
        }
    }
}

/// A form's fields, of which one may come many times.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn one(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str())
    }
}

impl Ours for Fields {
    fn csrf(&self) -> &str {
        self.one("csrf")
    }
}

/// What the form asks for: what to do, and to which service, stack or script.
struct Wanted<'a> {
    action: &'a str,
    /// `stack/service`, or a stack.
    of: &'a str,
    script: &'a str,
    /// Seconds, as they are written.
    interval: &'a str,
}

impl<'a> Wanted<'a> {
    fn read(fields: &'a Fields) -> Self {
        let [action, of, script, interval] = ["action", "of", "script", "interval"].map(|name| fields.one(name).trim());
        Self { action, of, script, interval }
    }

    fn service(&self) -> bool {
        self.action.starts_with("service.")
    }

    /// Whether it is still to be said to what.
    fn is_open(&self) -> bool {
        match self.action {
            "script" => self.script.is_empty(),
            "telemetry.interval" => self.interval.is_empty(),
            "backup" => self.of.is_empty(),
            _ => self.service() && self.of.is_empty(),
        }
    }

    /// The form of a rollout of the same.
    fn rollout(&self) -> String {
        let (stack, service) = self.of.split_once('/').unwrap_or((self.of, ""));
        let [action, stack, service, script, interval] =
            [self.action, stack, service, self.script, self.interval].map(format::escaped);
        format!(
            "/rollouts/new?change=1&action={action}&stack={stack}&service={service}&script={script}&interval={interval}"
        )
    }

    fn request(&self, nodes: &[Chosen], reason: &str, expected: Option<String>) -> CommandRequest {
        let (stack, service) = self.of.split_once('/').unwrap_or((self.of, ""));
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        CommandRequest {
            action: self.action.to_owned(),
            stack: given(stack),
            service: given(service),
            lines: None,
            interval_ms: millis(self.interval),
            script: given(self.script),
            target: Target { nodes: nodes.iter().map(|(node, _)| node.id.clone()).collect(), ..Target::default() },
            reason: reason.to_owned(),
            valid_for_seconds: Some(VALID_FOR),
            priority: 0,
            expected,
            signed: None,
        }
    }
}

pub(super) type Chosen = (Arc<Node>, Arc<NodeView>);

/// The nodes that a form means: those that are ticked or named, or all agents that pass the filter.
async fn chosen(app: &App, who: &Principal, fields: &Fields) -> Result<Vec<Chosen>, Problem> {
    let mut chosen: Vec<Chosen> = if fields.one("all").is_empty() {
        let named = fields.all("nodes").flat_map(str::split_ascii_whitespace);
        let ids = fields.all("node").chain(named).map(str::parse::<NodeId>).collect::<Result<Vec<_>, _>>();
        let ids = ids.map_err(|error| Problem::invalid(error.to_string()))?;
        ids.into_iter().map(|id| app.roster.node(who, id).ok_or_else(unknown)).collect::<Result<_, _>>()?
    } else {
        let uri = format!("/?{}", fields.one("filter")).parse::<Uri>();
        let query = uri.ok().and_then(|uri| Query::<NodeQuery>::try_from_uri(&uri).ok());
        let query = query.ok_or_else(|| Problem::malformed("There is no such filter."))?.0;
        let tenant = query.tenant.as_deref().map(str::parse::<TenantId>).transpose();
        let tenant = tenant.map_err(|error| Problem::invalid(error.to_string()))?;
        let query = NodeQuery { kind: Some(Kind::Agent), ..query };
        let labelled = query.labelled(app, who).await?;
        let nodes = app.roster.of(who, tenant.as_ref());
        let nodes = nodes.iter().filter(|node| node.revoked_at.is_none() && query.holds(node) && labelled.holds(node));
        nodes.filter_map(|node| app.roster.node(who, node.id.parse().ok()?)).collect()
    };
    chosen.sort_by(|(a, _), (b, _)| (&a.tenant, &a.name, &a.id).cmp(&(&b.tenant, &b.name, &b.id)));
    chosen.dedup_by(|(a, _), (b, _)| a.id == b.id);
    match chosen.len() {
        0 => Err(Problem::invalid("No node is selected: go back and select some.")),
        1..=MOST => Ok(chosen),
        many => Err(Problem::invalid(format!(
            "{} nodes are selected, and at once it may be {}: filter the list, or start a rollout, which goes in waves.",
            format::thousands(many as u64),
            format::thousands(MOST as u64),
        ))),
    }
}

/// `POST /selection`: asks for what is missing; then says what will happen, and asks whether it shall. Nothing is done.
pub(super) async fn ask(State(app): State<App>, sent: Sent<Fields>) -> Result<Response, Shown> {
    let Sent { visitor, form: fields } = sent;
    may(&visitor, access::Role::Operator).or_shown(&app)?;
    let chosen = chosen(&app, visitor.principal(), &fields).await.or_shown(&app)?;
    let wanted = Wanted::read(&fields);
    let content = if wanted.is_open() {
        missing(&wanted, &chosen, None, &visitor.viewer())
    } else {
        match wanted.request(&chosen, "", None).action() {
            Ok(action) => {
                confirm(&wanted, &format::sentence("", &action.to_string()), &chosen, &rows::uuid(app.now()), &visitor)
            }
            Err(problem) => missing(&wanted, &chosen, Some(&capital(&problem.detail)), &visitor.viewer()),
        }
    };
    framed(&app, &visitor, "Command for several nodes", Section::Fleet, None, &content).await
}

/// What every form of a selection carries on.
fn carried(wanted: &Wanted<'_>, chosen: &[Chosen], viewer: &Viewer) -> Markup {
    let nodes: Vec<&str> = chosen.iter().map(|(node, _)| node.id.as_str()).collect();
    html! {
        (csrf(&viewer.csrf))
        input type="hidden" name="action" value=(wanted.action);
        input type="hidden" name="nodes" value=(nodes.join(" "));
    }
}

/// Asks to which service, stack or script, or how often.
fn missing(wanted: &Wanted<'_>, chosen: &[Chosen], error: Option<&str>, viewer: &Viewer) -> Markup {
    let word = ACTIONS.iter().find(|(action, _)| *action == wanted.action).map_or(wanted.action, |(_, word)| *word);
    let known = known(chosen, wanted.service());
    html! {
        div.head { div { h1 { (word) } p { "On " (format::count(chosen.len(), "node", "nodes")) " " (of_whom(chosen)) ". Nothing is done before you confirm it." } } }
        @if let Some(error) = error { div.notes { div.note.critical role="alert" { span.state.critical { (format::mark("critical")) } p { (error) } } } }
        div.card.pad {
            form.form method="post" action="/selection" {
                (carried(wanted, chosen, viewer))
                @if wanted.action == "script" {
                    div { label for="script" { "Script, as the nodes' owners have named it" } input #script name="script" value=(wanted.script) required maxlength="100" autocomplete="off" autofocus; }
                } @else if wanted.action == "telemetry.interval" {
                    (interval(wanted.interval))
                } @else if known.is_empty() {
                    p { "None of them has a service now." }
                } @else {
                    div {
                        label for="of" { @if wanted.service() { "Service" } @else { "Stack" } }
                        select #of name="of" autofocus {
                            @for (name, count) in &known { option value=(name) { (name) " · on " (format::thousands(*count as u64)) " of " (format::thousands(chosen.len() as u64)) } }
                        }
                    }
                }
                div.actions {
                    @if matches!(wanted.action, "script" | "telemetry.interval") || !known.is_empty() { button type="submit" { "Show what will happen" } }
                    a href="/" { "Leave it" }
                }
            }
        }
    }
}

/// Services, or stacks, that the nodes have, with how many have each.
fn known(chosen: &[Chosen], services: bool) -> BTreeMap<String, usize> {
    let mut known = BTreeMap::new();
    for (_, view) in chosen {
        let keys = view.services.iter().filter_map(|service| service.key);
        let mut names: Vec<String> =
            keys.map(|key| if services { format!("{}/{}", key.stack, key.service) } else { key.stack }).collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().for_each(|name| *known.entry(name).or_default() += 1);
    }
    known
}

/// `of acme (8) and zeta (4)`.
pub(super) fn of_whom(chosen: &[Chosen]) -> String {
    let mut tenants: BTreeMap<&str, usize> = BTreeMap::new();
    chosen.iter().for_each(|(node, _)| *tenants.entry(&node.tenant).or_default() += 1);
    let counted: Vec<String> = match tenants.len() {
        1 => tenants.keys().map(|tenant| (*tenant).to_owned()).collect(),
        _ => tenants.iter().map(|(tenant, count)| format!("{tenant} ({count})")).collect(),
    };
    match counted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("of {} and {last}", rest.join(", ")),
        _ => format!("of {}", counted.concat()),
    }
}

/// How many of them are not there, or have no such service or stack.
pub(super) fn absent(action: &str, of: &str, chosen: &[Chosen], back_within: &str) -> Markup {
    let there = |view: &NodeView| match action {
        "backup" => view.services.iter().any(|one| one.key.is_some_and(|key| key.stack == of)),
        _ if action.starts_with("service.") => {
            let named = |one: Service| one.key.is_some_and(|key| format!("{}/{}", key.stack, key.service) == of);
            view.services.iter().any(named)
        }
        _ => true,
    };
    let away = chosen.iter().filter(|(node, _)| node.presence.state != PresenceState::Online).count();
    let without = chosen.iter().filter(|(_, view)| !there(view)).count();
    html! {
        @if away > 0 {
            p { (format::count(away, "node has", "nodes have")) " no session now. Whoever is back within " (back_within) " is told then." }
        }
        @if without > 0 {
            p.warning { (format::count(without, "node does", "nodes do")) " not have it now, and will say that there is no such container." }
        }
    }
}

/// The form that does it, and says what that is.
fn confirm(wanted: &Wanted<'_>, what: &str, chosen: &[Chosen], once: &str, visitor: &Visitor) -> Markup {
    let viewer = visitor.viewer();
    html! {
        div.head { div { h1 { (what) " on " (format::count(chosen.len(), "node", "nodes")) "?" } p #of-whom { (capital(&of_whom(chosen))) } } }
        div.card.pad {
            form.form method="post" action="/requests" {
                (carried(wanted, chosen, &viewer))
                input type="hidden" name="of" value=(wanted.of);
                input type="hidden" name="script" value=(wanted.script);
                input type="hidden" name="interval" value=(wanted.interval);
                input type="hidden" name="expected" value=(digest_of([chosen.iter().map(|(node, _)| node.id.as_str()).collect()]));
                input type="hidden" name="once" value=(once);
                p { (consequence(wanted.action)) " All of them are told at once." }
                (absent(wanted.action, wanted.of, chosen, "ten minutes"))
                div { label for="why" { "Why, for the audit log" } input #why name="reason" required maxlength="500" autocomplete="off" autofocus; }
                div.actions {
                    button type="submit" { (what) " on " (format::count(chosen.len(), "node", "nodes")) }
                    a href="/" { "Leave it" }
                }
                @if chosen.len() >= MANY { p.hint { "In waves, which hold themselves when it goes wrong: " a href=(wanted.rollout()) { "start a rollout" } ", and choose its nodes there." } }
            }
        }
        section aria-labelledby="who-head" {
            header { h2 #who-head { "Who is meant" } }
            div.card.wrap {
                table.cards {
                    thead { tr { th scope="col" { "Node" } th scope="col" { "Tenant" } th scope="col" { "State" } } }
                    tbody { @for (node, _) in chosen.iter().take(NAMED) {
                        tr {
                            th scope="row" { a href={ "/nodes/" (node.id) } { (node.name) } }
                            td data-name="Tenant" { (node.tenant) }
                            td.wide { (format::node(node).show()) }
                        }
                    } }
                }
                @if chosen.len() > NAMED { p.more { "And " (format::thousands((chosen.len() - NAMED) as u64)) " more." } }
            }
        }
    }
}

/// `POST /requests`: has it done.
pub(super) async fn order(State(app): State<App>, sent: Sent<Fields>) -> Result<Response, Shown> {
    let Sent { visitor, form: fields } = sent;
    may(&visitor, access::Role::Operator).or_shown(&app)?;
    let chosen = chosen(&app, visitor.principal(), &fields).await.or_shown(&app)?;
    let (reason, once) = (fields.one("reason"), fields.one("once").to_owned());
    let asked = Wanted::read(&fields).request(&chosen, reason, Some(fields.one("expected").to_owned()));
    let (ordered, _) = commands::order(&app, visitor.principal(), &asked, Some(once)).await.or_shown(&app)?;
    let to = ordered.request.map_or_else(|| "/".to_owned(), |request| format!("/requests/{request}"));
    Ok(Redirect::to(&to).into_response())
}
