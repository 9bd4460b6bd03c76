//! What a node is told to do: the form that says first what will happen, the history below its services, and one command's
//! page with what it put out.

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use protocol::id::IdError;
use protocol::{CommandId, NodeId};
use serde::Deserialize;

use super::format::{self, Clock};
use super::layout::{Section, Viewer, crumbs_of, csrf};
use super::logs;
use super::node::is_bridge;
use super::pages::{Asked, framed, may, still, unknown};
use super::session::{Sent, Visitor, ours};
use super::{OrShown as _, Shown};
use crate::access::{self, Principal};
use crate::api::commands::{self, CommandRequest, Target};
use crate::api::extract::{Path, Query};
use crate::api::list::bad_cursor;
use crate::api::problem::Problem;
use crate::api::resource::{Command, CommandDetail, CommandState, Node, NodeDetail, PresenceState, Role};
use crate::commands::Filter;
use crate::reason::Reason;
use crate::rows;
use crate::web::App;

/// Commands shown on a node's page, and on a page of older ones.
const OF_NODE: u32 = 20;
const ON_A_PAGE: u32 = 100;
/// How long a command of the dashboard may still start.
pub(super) const VALID_FOR: u64 = 600;

/// What can be done to a service, with the word on its link.
const OF_SERVICE: [(&str, &str); 3] =
    [("service.restart", "Restart"), ("service.start", "Start"), ("service.stop", "Stop")];

/// What can be done to a node, with the word on its link. A new certificate is asked for below, with the rest of its trust.
const OF_THE_NODE: [(&str, &str); 4] = [
    ("diagnostics", "Diagnostics"),
    ("telemetry.interval", "Measure more or less often"),
    ("drain", "Hand over telemetry"),
    ("script", "Run a script"),
];

/// Links to what can be done to a service, for whoever may.
pub(super) fn service_actions(node: &NodeDetail, stack: &str, service: &str, running: bool) -> Markup {
    html! {
        @for (action, word) in OF_SERVICE {
            @if running || !matches!(action, "service.restart" | "service.stop") {
                @if !(running && action == "service.start") {
                    a.act href={ "/nodes/" (node.node.id) "/command?action=" (action) "&stack=" (format::escaped(stack)) "&service=" (format::escaped(service)) } {
                        (word) span.visually-hidden { " " (service) }
                    }
                    " "
                }
            }
        }
        a.act href=(logs::address(&node.node.id, stack, service)) { "Log" span.visually-hidden { " of " (service) } }
    }
}

/// Links to what can be done to a stack, for whoever may.
pub(super) fn stack_actions(node: &NodeDetail, stack: &str) -> Markup {
    html! {
        a.act href={ "/nodes/" (node.node.id) "/command?action=backup&stack=" (format::escaped(stack)) } {
            "Back up" span.visually-hidden { " " (stack) }
        }
    }
}

/// Commands of a node, newest first, and the one that the page of older ones begins before.
pub(super) type Listed = (Vec<Command>, Option<String>);

/// The newest commands of a node.
pub(super) fn history(node: &NodeDetail, listed: &Listed, viewer: &Viewer, clock: Clock) -> Markup {
    if is_bridge(node) {
        return html! { section #commands hidden {} };
    }
    html! {
        section #commands aria-labelledby="commands-head" {
            header {
                h2 #commands-head { "Commands" }
                @if viewer.role != Role::Viewer && node.node.revoked_at.is_none() {
                    div.actions {
                        @for (action, word) in OF_THE_NODE {
                            a.button href={ "/nodes/" (node.node.id) "/command?action=" (action) } { (word) }
                        }
                    }
                }
            }
            (table(&node.node.id, listed, None, clock))
        }
    }
}

/// `keys`: the id that its rows have for the keyboard.
fn table(node: &str, (commands, older): &Listed, keys: Option<&str>, clock: Clock) -> Markup {
    html! {
        @if commands.is_empty() {
            p.quiet { "Nothing has been asked of this node, or it is too long ago to be kept." }
        } @else {
            div.card.wrap {
                table.cards {
                    caption.visually-hidden { "Commands, newest first" }
                    thead { tr { th scope="col" { "What" } th scope="col" { "State" } th scope="col" { "By" } th scope="col" { "Asked for" } th scope="col" { "What came of it" } } }
                    tbody id=[keys] {
                        @for command in commands {
                            tr id={ "c-" (command.id) } {
                                th scope="row" { a href={ "/commands/" (command.id) } { (format::sentence("", &command.what)) } }
                                td.wide { (standing(command.state, command.refused)) }
                                td data-name="By" { (super::audit::actor(&command.requested_by)) @if !command.reason.is_empty() { span.sub { (command.reason) } } }
                                td data-name="Asked for" { (clock.ago(command.created_at)) }
                                td.wide.said { (command.message) }
                            }
                        }
                    }
                }
                @if let Some(before) = older { p.more { a href={ "/nodes/" (node) "/commands?before=" (before) } { "Older" } } }
            }
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Before {
    before: Option<String>,
}

/// `GET /nodes/{node}/commands`: what it was told, a page at a time.
pub(super) async fn list(
    State(app): State<App>,
    visitor: Visitor,
    id: Asked<Path<NodeId>>,
    asked: Asked<Query<Before>>,
) -> Result<Response, Shown> {
    let (Path(id), Query(Before { before })) = (id.or_shown(&app)?, asked.or_shown(&app)?);
    let (node, _) = app.roster.node(visitor.principal(), id).ok_or_else(unknown).or_shown(&app)?;
    let before = before.map(|id| id.parse()).transpose().map_err(|_: IdError| bad_cursor()).or_shown(&app)?;
    let listed = listed(&app, visitor.principal(), id, before, ON_A_PAGE).await.or_shown(&app)?;
    let content = html! {
        div #view {
            (crumbs_of(&node.tenant, (&node.id, &node.name), &[]))
            div.head { div { h1 { "Commands " span.quiet { "of " (node.name) } } p { "What it was told, the newest first." } } }
            (table(&node.id, &listed, Some("rows"), still(&app)))
        }
    };
    framed(&app, &visitor, &format!("Commands of {}", node.name), Section::Fleet, None, &content).await
}

/// How a command stands. `refused`: by its node's own policy.
pub(super) fn standing(state: CommandState, refused: bool) -> Markup {
    let (class, said) = match state {
        CommandState::Queued => ("away", "Waits for the node"),
        CommandState::Delivered => ("notice", "Handed over"),
        CommandState::Running => ("notice", "Runs"),
        CommandState::Succeeded => ("ok", "Done"),
        CommandState::Failed if refused => ("warning", "Refused by the node"),
        CommandState::Failed => ("critical", "Failed"),
        CommandState::Expired => ("warning", "Too late"),
        CommandState::Cancelled => ("away", "Taken back"),
        CommandState::Unknown => ("critical", "May have been done"),
    };
    html! { span class={ "state " (class) } { (format::mark(class)) (said) } }
}

/// The newest commands of a node, for whoever sees it.
pub(super) async fn of_node(app: &App, who: &Principal, node: NodeId) -> Result<Listed, Problem> {
    listed(app, who, node, None, OF_NODE).await
}

async fn listed(
    app: &App,
    who: &Principal,
    node: NodeId,
    before: Option<CommandId>,
    limit: u32,
) -> Result<Listed, Problem> {
    let filter = Filter {
        tenant: who.tenant.clone(),
        node: Some(node),
        before: before.map(|id| id.to_string()),
        // One more tells whether there is more.
        limit: limit + 1,
        ..Filter::default()
    };
    let mut read = commands::resources(app, who, app.state.commands.list(&filter, app.now()).await?);
    let more = read.len() > limit as usize;
    read.truncate(limit as usize);
    let older = read.last().filter(|_| more).map(|last| last.id.clone());
    Ok((read, older))
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Wanted {
    action: String,
    #[serde(default)]
    stack: String,
    #[serde(default)]
    service: String,
    #[serde(default)]
    script: String,
    /// Seconds, as they are written.
    #[serde(default)]
    interval: String,
}

/// `GET /nodes/{node}/command`: says what will happen, and asks.
pub(super) async fn ask(
    State(app): State<App>,
    visitor: Visitor,
    id: Asked<Path<NodeId>>,
    wanted: Asked<Query<Wanted>>,
) -> Result<Response, Shown> {
    let (Path(id), Query(wanted)) = (id.or_shown(&app)?, wanted.or_shown(&app)?);
    may(&visitor, access::Role::Operator).or_shown(&app)?;
    let (node, _) = app.roster.node(visitor.principal(), id).ok_or_else(unknown).or_shown(&app)?;
    let what = match wanted.action.as_str() {
        // Which one, the form asks.
        "script" if wanted.script.is_empty() => "run a script".to_owned(),
        "telemetry.interval" if wanted.interval.is_empty() => "measure at another interval".to_owned(),
        _ => request(id, &wanted, "").action().or_shown(&app)?.to_string(),
    };
    let content = form(&node, &wanted, &what, &rows::uuid(app.now()), &visitor.viewer());
    framed(&app, &visitor, &format::sentence("", &what), Section::Fleet, None, &content).await
}

/// `once` tells this form from the same one opened again: sent twice, it has one effect.
fn form(node: &Node, wanted: &Wanted, what: &str, once: &str, viewer: &Viewer) -> Markup {
    let what = format::sentence("", what);
    html! {
        div.head { div { h1 { (what) "?" } p { "On " a href={ "/nodes/" (node.id) } { (node.name) } " of " (node.tenant) } } }
        div.card.pad {
            form.form method="post" action={ "/nodes/" (node.id) "/command" } {
                (csrf(&viewer.csrf))
                input type="hidden" name="action" value=(wanted.action);
                input type="hidden" name="stack" value=(wanted.stack);
                input type="hidden" name="service" value=(wanted.service);
                input type="hidden" name="once" value=(once);
                p { (consequence(&wanted.action)) }
                @if node.presence.state != PresenceState::Online {
                    p { "The node has no session now. It is told when it is back, if that is within ten minutes." }
                }
                @if wanted.action == "script" {
                    div { label for="script" { "Script, as the node's owner has named it" } input #script name="script" value=(wanted.script) required maxlength="100" autocomplete="off" autofocus; }
                }
                @if wanted.action == "telemetry.interval" { (interval(&wanted.interval)) }
                div { label for="why" { "Why, for the audit log" } input #why name="reason" required maxlength="500" autocomplete="off" autofocus[!matches!(wanted.action.as_str(), "script" | "telemetry.interval")]; }
                div.actions {
                    button type="submit" { (what) }
                    a href={ "/nodes/" (node.id) } { "Leave it" }
                }
            }
        }
    }
}

/// The field for the time between two samples, with the bounds that agents have.
pub(super) fn interval(value: &str) -> Markup {
    html! {
        div { label for="interval" { "Seconds between two samples, 0.1 to 3600" } input #interval type="number" name="interval" value=(value) min="0.1" max="3600" step="0.1" required autocomplete="off" autofocus; }
    }
}

/// What such a field holds, in ms; what is no number is none that an agent takes.
pub(super) fn millis(interval: &str) -> Option<u64> {
    let seconds = Some(interval.trim()).filter(|text| !text.is_empty())?;
    Some(seconds.parse::<f64>().map_or(0, |seconds| (seconds * 1e3).round() as u64))
}

pub(super) fn consequence(action: &str) -> &'static str {
    match action {
        "telemetry.interval" => {
            "It measures so often until its agent restarts, and then as its owner has configured. The shorter the time, the more goes over its line."
        }
        "service.restart" => {
            "Each of its containers is stopped as its Compose file says, and started again. Until it is up, nobody is served by it."
        }
        "service.start" => "Its containers that exist are started.",
        "service.stop" => {
            "Each of its containers is stopped, and stays so until somebody starts it. The owner of the node must have allowed this."
        }
        "service.logs" => {
            "The last 100 lines of its log are kept at the hub with this command, for whoever sees this node."
        }
        "diagnostics" => {
            "Versions, the agent's configuration without secrets, its checks, the containers' states and its last log lines are kept at the hub with this command."
        }
        "backup" => {
            "The stack's backup service is run, if it declares one. What it puts out is kept at the hub with this command."
        }
        "drain" => "The agent hands over all telemetry it holds, and says when the hub has it. Nothing stops.",
        "certificate.renew" => {
            "The node makes a new key and gets a new certificate for it. Its session is opened anew."
        }
        _ => "The node carries it out if its owner has allowed it.",
    }
}

#[derive(Deserialize)]
pub(super) struct CommandForm {
    csrf: String,
    #[serde(flatten)]
    wanted: Wanted,
    once: String,
    #[serde(default)]
    reason: String,
}

/// `POST /nodes/{node}/command`
pub(super) async fn order(
    State(app): State<App>,
    id: Asked<Path<NodeId>>,
    sent: Sent<CommandForm>,
) -> Result<Response, Shown> {
    let Path(id) = id.or_shown(&app)?;
    let Sent { visitor, form } = sent;
    may(&visitor, access::Role::Operator).or_shown(&app)?;
    let asked = request(id, &form.wanted, &form.reason);
    let (ordered, _) = commands::order(&app, visitor.principal(), &asked, Some(form.once)).await.or_shown(&app)?;
    let command = ordered.commands.into_iter().next().map(|command| command.id);
    let to = command.map_or_else(|| format!("/nodes/{id}"), |command| format!("/commands/{command}"));
    Ok(Redirect::to(&to).into_response())
}

/// `GET /commands/{command}`
pub(super) async fn show(
    State(app): State<App>,
    visitor: Visitor,
    id: Asked<Path<CommandId>>,
) -> Result<Response, Shown> {
    let Path(id) = id.or_shown(&app)?;
    let detail = commands::detail(&app, visitor.principal(), id).await.or_shown(&app)?;
    let clock = still(&app);
    let content = html! { (view(&detail, &visitor.viewer(), clock)) };
    let live = format!("command&id={id}");
    let title = format::sentence("", &detail.command.what);
    framed(&app, &visitor, &title, Section::Fleet, Some(live), &content).await
}

/// One command.
pub(super) fn view(detail: &CommandDetail, viewer: &Viewer, clock: Clock) -> Markup {
    let c = &detail.command;
    let when =
        |at: Option<crate::api::resource::Time>| html! { @match at { Some(at) => (clock.ago(at)), None => "–" } };
    html! {
        div #view {
            (crumbs_of(&c.tenant, (&c.node, c.node_name.as_deref().unwrap_or(&c.node)), &[]))
            div.head {
                div { h1 { (format::sentence("", &c.what)) } p { (c.message) } }
                div.actions { (standing(c.state, c.refused)) }
            }
            @if c.state == CommandState::Unknown && !c.told {
                div.notes { div.note.warning { span.state.warning { (format::mark("warning")) } p { "The node went away with it. When it is back, it says what came of it, and this page does." } } }
            }
            div.facts {
                div.card {
                    h3 { "Asked for" }
                    dl {
                        dt { "By" } dd { (super::audit::actor(&c.requested_by)) }
                        dt { "Why" } dd { @if c.reason.is_empty() { span.quiet { "not said" } } @else { (c.reason) } }
                        dt { "When" } dd { (clock.ago(c.created_at)) " " span.quiet { (format::exact(c.created_at)) } }
                        dt { "May start until" } dd { (format::exact(c.deadline)) }
                        @if let Some(by) = &c.cancelled_by { dt { "Taken back by" } dd { (super::audit::actor(by)) } }
                    }
                }
                div.card {
                    h3 { "Went" }
                    dl {
                        dt { "To the node" } dd { (when(c.delivered_at)) }
                        dt { "Began" } dd { (when(c.started_at)) }
                        dt { "Ended" } dd { (when(c.ended_at)) }
                        dt { "Command" } dd.mono.small { (c.id) }
                        dt { "Request" } dd { a href={ "/requests/" (c.request) } { "all nodes it was asked of" } }
                    }
                }
            }
            @if c.is_open() && c.cancelled_by.is_none() && viewer.role != Role::Viewer {
                section #acts aria-label="What can be done" {
                    div.card.pad {
                        details #act-cancel {
                            summary { "Take it back…" }
                            form.form method="post" action={ "/commands/" (c.id) "/cancel" } {
                                (csrf(&viewer.csrf))
                                p { (taking_back(c.state)) }
                                div { label for="why" { "Why, for the audit log" } input #why name="reason" required maxlength="500" autocomplete="off"; }
                                div { button type="submit" { "Take it back" } }
                            }
                        }
                    }
                }
            }
            @if !detail.output.is_empty() {
                section aria-labelledby="output-head" {
                    header {
                        h2 #output-head { "Output" }
                        @if c.output_dropped > 0 { span.quiet { (format::bytes(c.output_dropped as f64)) " more were too many, and are not kept" } }
                    }
                    div.card.wrap { pre.output #output tabindex="0" { (detail.output) } }
                }
            }
        }
    }
}

/// What happens to a command that is taken back.
fn taking_back(state: CommandState) -> &'static str {
    match state {
        CommandState::Queued => "The node has not been told: it is gone at once, and has no effect.",
        _ => {
            "The node has been told. What it has begun is stopped where that can be done, and it says what came of it."
        }
    }
}

#[derive(Deserialize)]
pub(super) struct CancelForm {
    csrf: String,
    #[serde(default)]
    reason: String,
}

/// `POST /commands/{command}/cancel`
pub(super) async fn cancel(
    State(app): State<App>,
    id: Asked<Path<CommandId>>,
    sent: Sent<CancelForm>,
) -> Result<Response, Shown> {
    let Path(id) = id.or_shown(&app)?;
    may(&sent.visitor, access::Role::Operator).or_shown(&app)?;
    let (who, reason) = (sent.visitor.principal(), sent.form.reason.parse::<Reason>().or_shown(&app)?);
    app.state.commands.cancel(id, who.tenant.as_ref(), &reason, &who.actor(), app.now()).await.or_shown(&app)?;
    Ok(Redirect::to(&format!("/commands/{id}")).into_response())
}

/// The request behind the form.
fn request(node: NodeId, wanted: &Wanted, reason: &str) -> CommandRequest {
    let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    CommandRequest {
        action: wanted.action.clone(),
        stack: given(&wanted.stack),
        service: given(&wanted.service),
        lines: None,
        interval_ms: millis(&wanted.interval),
        script: given(&wanted.script),
        target: Target { nodes: vec![node.to_string()], ..Target::default() },
        reason: reason.to_owned(),
        valid_for_seconds: Some(VALID_FOR),
        priority: 0,
        expected: None,
        signed: None,
    }
}

ours!(CommandForm, CancelForm);
