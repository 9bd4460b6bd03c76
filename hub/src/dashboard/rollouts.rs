//! Rollouts: all of them, the form that starts one and says first who is meant in which wave, and a page on which the waves
//! move, with what can be done to it.

mod start;

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use protocol::command;
use serde::Deserialize;

use super::commands;
use super::format::{self, Clock};
use super::layout::{Section, Viewer, crumbs, csrf};
use super::pages::{Asked, framed, may, still};
use super::session::{Sent, Visitor, capital, ours};
use super::{OrShown as _, Shown};
use crate::access;
use crate::api::extract::{Path, Query};
use crate::api::list::Window;
use crate::api::problem::Problem;
use crate::api::resource::{Rollout, RolloutNode, RolloutState, Wave, WaveState};
use crate::api::rollouts;
use crate::rollouts::Verb;
use crate::web::App;

pub(super) use start::{new, start};

/// Nodes on one page.
const NODES: usize = 1_000;
/// Rollouts on one page.
const ON_A_PAGE: u32 = 100;

/// What can be rolled out, with the words for it.
pub(super) const ACTIONS: [(&str, &str); 9] = [
    ("service.restart", "Restart a service"),
    ("service.start", "Start a service"),
    ("service.stop", "Stop a service"),
    ("backup", "Back up a stack"),
    ("script", "Run a script"),
    ("certificate.renew", "Renew certificates"),
    ("drain", "Hand over telemetry"),
    ("diagnostics", "Diagnostics"),
    ("telemetry.interval", "Measure more or less often"),
];

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Before {
    before: Option<i64>,
}

/// `GET /rollouts`
pub(super) async fn list(
    State(app): State<App>,
    visitor: Visitor,
    asked: Asked<Query<Before>>,
) -> Result<Response, Shown> {
    let Query(Before { before }) = asked.or_shown(&app)?;
    let (rollouts, older) = listed(&app, &visitor, before).await.or_shown(&app)?;
    let content = html! {
        div.head {
            div { h1 { "Rollouts" } p { "The same command over many nodes, in waves. A rollout holds itself when too many fail, or are not well afterwards." } }
            @if visitor.viewer().operates() { div.actions { a.button href="/rollouts/new" { "Start a rollout" } } }
        }
        (table(&rollouts, older, still(&app)))
    };
    framed(&app, &visitor, "Rollouts", Section::Rollouts, before.is_none().then(|| "rollouts".to_owned()), &content)
        .await
}

/// Rollouts of one page, and where the page of older ones begins.
pub(super) async fn listed(
    app: &App,
    visitor: &Visitor,
    before: Option<i64>,
) -> Result<(Vec<Rollout>, Option<i64>), Problem> {
    let window = Window { before, limit: ON_A_PAGE };
    Ok(window.cut(rollouts::listed(app, visitor.principal(), before, window.reach()).await?))
}

/// The live part of the list.
pub(super) fn table(rollouts: &[Rollout], older: Option<i64>, clock: Clock) -> Markup {
    html! {
        div #view {
            div.card.wrap {
                @if rollouts.is_empty() { div.empty { p { "There was none yet." } } } @else {
                    table.cards {
                        caption.visually-hidden { "Rollouts, newest first" }
                        thead { tr { th scope="col" { "What" } th scope="col" { "State" } th.num scope="col" { "Wave" } th scope="col" { "By" } th scope="col" { "Begun" } th scope="col" { "Why it stands so" } } }
                        tbody { @for one in rollouts {
                            tr id={ "r-" (one.id) } {
                                th scope="row" { a href={ "/rollouts/" (one.id) } { (format::sentence("", &one.what)) } span.sub { (one.reason) } }
                                td.wide { (standing(one.state)) }
                                td.num data-name="Wave" { (one.wave) " of " (one.wave_count) }
                                td data-name="By" { (super::audit::actor(&one.started_by)) }
                                td data-name="Begun" { (clock.ago(one.started_at)) }
                                td.wide.said { (one.why) }
                            }
                        } }
                    }
                    @if let Some(before) = older { p.more { a href={ "/rollouts?before=" (before) } { "Older" } } }
                }
            }
        }
    }
}

fn standing(state: RolloutState) -> Markup {
    let (class, said) = match state {
        RolloutState::Running => ("notice", "Runs"),
        RolloutState::Paused => ("away", "Held"),
        RolloutState::Halted => ("critical", "Holds itself"),
        RolloutState::Aborted => ("away", "Given up"),
        RolloutState::Done => ("ok", "Done"),
    };
    html! { span class={ "state " (class) } { (format::mark(class)) (said) } }
}

/// `GET /rollouts/{rollout}`
pub(super) async fn show(State(app): State<App>, visitor: Visitor, id: Asked<Path<i64>>) -> Result<Response, Shown> {
    let Path(id) = id.or_shown(&app)?;
    let rollout = rollouts::shown(&app, visitor.principal(), id).await.or_shown(&app)?;
    let content = html! {
        (crumbs(&[("/rollouts", "Rollouts")]))
        (head(&rollout, still(&app)))
        (acts(&rollout, &visitor.viewer()))
        (view(&rollout))
    };
    let title = format::sentence("", &rollout.what);
    framed(&app, &visitor, &title, Section::Rollouts, Some(format!("rollout&id={id}")), &content).await
}

/// What it is, and how it stands: live as the rest, and above what can be done to it.
pub(super) fn head(rollout: &Rollout, clock: Clock) -> Markup {
    html! {
        div #rollout-head {
            div.head {
                div { h1 { (format::sentence("", &rollout.what)) } p { (rollout.reason) " · begun by " (super::audit::actor(&rollout.started_by)) " " (clock.ago(rollout.started_at)) } }
                div.actions { (standing(rollout.state)) }
            }
            @if !rollout.why.is_empty() {
                @let class = if rollout.state == RolloutState::Halted { "critical" } else { "notice" };
                div.notes { div class={ "note " (class) } { span class={ "state " (class) } { (format::mark(class)) } p {
                    (capital(&rollout.why)) ". " span.quiet { (super::audit::actor(&rollout.changed_by)) ", " (clock.ago(rollout.changed_at)) }
                } } }
            }
            @if let Some(waits) = &rollout.waits_for {
                p { "Waits for " (waits) @if let Some(until) = rollout.waits_until { ", until " (format::exact(until)) } "." }
            }
        }
    }
}

/// Its waves, and who is in trouble.
pub(super) fn view(rollout: &Rollout) -> Markup {
    html! {
        div #view {
            (waves(rollout))
            @if !rollout.troubled.is_empty() { (troubled(rollout)) }
            (limits(rollout))
        }
    }
}

fn waves(rollout: &Rollout) -> Markup {
    html! {
        section aria-labelledby="waves-head" {
            header { h2 #waves-head { "Waves" } }
            div.card.wrap {
                table.cards {
                    thead { tr { th scope="col" { "Wave" } th scope="col" { "State" } th.num scope="col" { "Nodes" } th.num scope="col" { "Done" } th scope="col" { "Progress" } th scope="col" { "The others" } } }
                    tbody { @for wave in &rollout.waves {
                        tr id={ "w-" (wave.number) } aria-current=[(wave.number == rollout.wave && rollout.is_open()).then_some("step")] {
                            th scope="row" { a href={ "/rollouts/" (rollout.id) "/nodes?wave=" (wave.number) } { "Wave " (wave.number) } }
                            td.wide { (wave_state(wave, rollout)) }
                            td.num data-name="Nodes" { (wave.nodes) }
                            td.num data-name="Done" { (wave.counts.succeeded) }
                            td data-name="Progress" { (bar(wave)) }
                            td.wide { (others(wave)) }
                        }
                    } }
                }
            }
        }
    }
}

fn wave_state(wave: &Wave, rollout: &Rollout) -> Markup {
    let halted = rollout.state == RolloutState::Halted && wave.number == rollout.wave;
    let (class, said) = match wave.state {
        _ if halted => ("critical", "Held here"),
        WaveState::Untouched => ("away", "Untouched"),
        WaveState::Asking => ("notice", "Under way"),
        WaveState::Watched => ("notice", "Watched"),
        WaveState::Done => ("ok", "Through"),
    };
    html! { span class={ "state " (class) } { (format::mark(class)) (said) } }
}

/// How much of a wave has its end, drawn; the numbers beside it say the same.
fn bar(wave: &Wave) -> Markup {
    let share = |count: usize| count * 100 / wave.nodes.max(1);
    let (good, bad) = (share(wave.counts.succeeded), share(wave.counts.failed + wave.counts.timed_out));
    html! {
        svg.wave-bar viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label={ (good) " % done, " (bad) " % not" } {
            rect.good x="0" y="0" width=(good) height="6" {}
            rect.bad x=(good) y="0" width=(bad) height="6" {}
        }
    }
}

fn others(wave: &Wave) -> Markup {
    let c = &wave.counts;
    let said = [
        (c.pending, "not asked"),
        (c.waiting, "asked and not there yet"),
        (c.at_work, "at work"),
        (c.failed, "failed"),
        (c.timed_out, "timed out"),
        (c.missed, "not back in time"),
        (c.cancelled, "taken back"),
        (c.skipped, "left out"),
        (c.regressed, "not well any more"),
    ];
    let said: Vec<String> =
        said.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    html! { (said.join(" · ")) }
}

fn troubled(rollout: &Rollout) -> Markup {
    html! {
        section aria-labelledby="troubled-head" {
            header { h2 #troubled-head { "Nodes to look at" } span.quiet { a href={ "/rollouts/" (rollout.id) "/nodes" } { "all nodes" } } }
            div.card.wrap { (nodes_table(&rollout.troubled)) }
        }
    }
}

fn nodes_table(nodes: &[RolloutNode]) -> Markup {
    html! {
        table.cards {
            caption.visually-hidden { "Nodes, and what came of it on each" }
            thead { tr { th scope="col" { "Node" } th scope="col" { "Tenant" } th.num scope="col" { "Wave" } th scope="col" { "Command" } th scope="col" { "What came of it" } } }
            tbody { @for node in nodes {
                tr id={ "t-" (node.node) } {
                    th scope="row" { a href={ "/nodes/" (node.node) } { (node.name.as_deref().unwrap_or(&node.node)) } }
                    td data-name="Tenant" { (node.tenant) }
                    td.num data-name="Wave" { (node.wave) }
                    td.wide { (node_state(node)) }
                    td.wide.said {
                        @if node.regressed { "Was well, or there, and is not. " }
                        @if node.timed_out { "Did not come to an end in time. " }
                        (node.message)
                        @if node.accepted { span.sub { "accepted" } }
                    }
                }
            } }
        }
    }
}

/// How a node's command stands, with the way to it once there is one.
fn node_state(node: &RolloutNode) -> Markup {
    let away = |said: &str| html! { span.state.away { (format::mark("away")) (said) } };
    let said = match node.state.parse::<command::State>() {
        Ok(state) => commands::standing(state.into(), false),
        Err(_) if node.state == "skipped" => away("Left out"),
        Err(_) => away("Not asked"),
    };
    html! { @match &node.command { Some(command) => a href={ "/commands/" (command) } { (said) }, None => (said) } }
}

/// Which of a rollout's nodes.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct OfWave {
    pub(super) wave: Option<u32>,
}

/// `GET /rollouts/{rollout}/nodes`
pub(super) async fn nodes(
    State(app): State<App>,
    visitor: Visitor,
    id: Asked<Path<i64>>,
    of: Asked<Query<OfWave>>,
) -> Result<Response, Shown> {
    let (Path(id), Query(of)) = (id.or_shown(&app)?, of.or_shown(&app)?);
    let (rollout, nodes) = rollouts::members(&app, visitor.principal(), id).await.or_shown(&app)?;
    let title = format::sentence("", &rollout.what);
    let content = html! {
        (crumbs(&[("/rollouts", "Rollouts"), (format!("/rollouts/{id}").as_str(), title.as_str())]))
        (nodes_view(&rollout, &nodes, of))
    };
    let live = format!("rollout-nodes&id={id}{}", of.wave.map(|wave| format!("&wave={wave}")).unwrap_or_default());
    framed(&app, &visitor, &title, Section::Rollouts, Some(live), &content).await
}

/// The live part of a rollout's nodes.
pub(super) fn nodes_view(rollout: &Rollout, nodes: &[RolloutNode], of: OfWave) -> Markup {
    let mut shown: Vec<RolloutNode> =
        nodes.iter().filter(|node| of.wave.is_none_or(|wave| wave == node.wave)).cloned().collect();
    let matched = shown.len();
    shown.truncate(NODES);
    let address = format!("/rollouts/{}/nodes", rollout.id);
    html! {
        div #view {
            div.head {
                div { h1 { (format::count(matched, "node", "nodes")) @if let Some(wave) = of.wave { " of wave " (wave) } } p { (rollout.reason) } }
                div.actions { (standing(rollout.state)) }
            }
            nav.counts aria-label="Waves" {
                a href=(address) aria-current=[of.wave.is_none().then_some("true")] { "All" }
                @for wave in 1..=rollout.wave_count {
                    a href={ (address) "?wave=" (wave) } aria-current=[(of.wave == Some(wave)).then_some("true")] { "Wave " (wave) }
                }
            }
            div.card.wrap {
                (nodes_table(&shown))
                @if matched > shown.len() { p.more { "The first " (format::thousands(shown.len() as u64)) ". All: " code { "hfctl rollout show " (rollout.id) " --nodes" } } }
            }
        }
    }
}

fn limits(rollout: &Rollout) -> Markup {
    let long = |seconds: u64| format::duration(seconds as f64);
    html! {
        section.facts aria-label="Plan" {
            div.card {
                h3 { "Plan" }
                dl {
                    dt { "Waves" } dd { (rollout.shape) }
                    dt { "Rate" } dd { @match rollout.rate_per_minute { Some(rate) => { (rate) " commands a minute" }, None => "as fast as it goes" } }
                    dt { "Windows" } dd { @if rollout.windows.is_empty() { "at any time" } @else { (rollout.windows.join("; ")) } }
                }
            }
            div.card {
                h3 { "Holds itself" }
                dl {
                    dt { "Failures" } dd { "over " (rollout.max_failed_percent) " % of a wave" }
                    dt { "Health" } dd { "over " (rollout.max_regressed_percent) " % of a wave, watched for " (long(rollout.soak_seconds)) }
                    dt { "In time" } dd { "within " (long(rollout.settle_seconds)) ", and nodes that are away within " (long(rollout.valid_for_seconds)) }
                }
            }
        }
    }
}

/// What can be done to it, each with what will happen; for whoever may.
pub(super) fn acts(rollout: &Rollout, viewer: &Viewer) -> Markup {
    let left: usize = rollout.waves.iter().map(|wave| wave.counts.pending).sum();
    let waiting: usize = rollout.waves.iter().map(|wave| wave.counts.waiting).sum();
    html! {
        section #acts aria-label="What can be done" {
            @if viewer.operates() && rollout.is_open() {
                div.card.pad {
                    @if rollout.state == RolloutState::Running {
                        (act(rollout, "pause", "Hold it", &format!("Nobody else is asked until it is let go on: {left} nodes are left. What was asked for goes on."), viewer))
                    }
                    @if rollout.state == RolloutState::Paused {
                        (act(rollout, "resume", "Let it go on", &format!("It goes on in wave {}: {left} nodes are left.", rollout.wave), viewer))
                    }
                    @if rollout.state == RolloutState::Halted {
                        (act(rollout, "resume", "Accept this and let it go on", &format!("What is wrong now is accepted, and halts it no more. It goes on in wave {}: {left} nodes are left, those whose commands were taken back among them. What gets wrong from now on halts it again.", rollout.wave), viewer))
                    }
                    (act(rollout, "abort", "Give it up", &format!("The {left} nodes that are left are not asked, and the commands of {waiting} that are not there are taken back. What was begun goes on. There is no way back."), viewer))
                }
            }
        }
    }
}

fn act(rollout: &Rollout, verb: &str, word: &str, happens: &str, viewer: &Viewer) -> Markup {
    let field = format!("why-{verb}");
    html! {
        details id={ "act-" (verb) } {
            summary { (word) "…" }
            form.form method="post" action={ "/rollouts/" (rollout.id) "/" (verb) } {
                (csrf(&viewer.csrf))
                p { (happens) }
                div { label for=(field) { "Why, for the audit log" } input id=(field) name="reason" required maxlength="500" autocomplete="off"; }
                div { button type="submit" { (word) } }
            }
        }
    }
}

#[derive(Deserialize)]
pub(super) struct ActForm {
    csrf: String,
    reason: String,
}

/// `POST /rollouts/{rollout}/pause`
pub(super) async fn pause(
    State(app): State<App>,
    id: Asked<Path<i64>>,
    sent: Sent<ActForm>,
) -> Result<Response, Shown> {
    take(app, id, sent, Verb::Pause).await
}

/// `POST /rollouts/{rollout}/resume`
pub(super) async fn resume(
    State(app): State<App>,
    id: Asked<Path<i64>>,
    sent: Sent<ActForm>,
) -> Result<Response, Shown> {
    take(app, id, sent, Verb::Resume).await
}

/// `POST /rollouts/{rollout}/abort`
pub(super) async fn abort(
    State(app): State<App>,
    id: Asked<Path<i64>>,
    sent: Sent<ActForm>,
) -> Result<Response, Shown> {
    take(app, id, sent, Verb::Abort).await
}

async fn take(app: App, id: Asked<Path<i64>>, sent: Sent<ActForm>, verb: Verb) -> Result<Response, Shown> {
    let Path(id) = id.or_shown(&app)?;
    may(&sent.visitor, access::Role::Operator).or_shown(&app)?;
    rollouts::act(&app, sent.visitor.principal(), id, verb, &sent.form.reason).await.or_shown(&app)?;
    Ok(Redirect::to(&format!("/rollouts/{id}")).into_response())
}

ours!(ActForm);
