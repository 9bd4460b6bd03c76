//! Rollouts: all of them, the form that starts one and says first who is meant in which wave, and a page on which the waves
//! move, with what can be done to it.

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::format::{self, Clock};
use super::layout::{Section, Viewer, csrf};
use super::pages::{Asked, framed, may, still};
use super::session::{Ours, Sent, Visitor, capital};
use super::{OrShown as _, Shown};
use crate::access;
use crate::api::commands::{CommandRequest, Target};
use crate::api::extract::{Path, Query};
use crate::api::list::Window;
use crate::api::problem::Problem;
use crate::api::resource::{Rollout, RolloutNode, RolloutPreview, RolloutState, Wave, WaveState};
use crate::api::rollouts::{self, RolloutRequest};
use crate::rollouts::Verb;
use crate::rows;
use crate::web::App;

/// Rollouts on one page.
const ON_A_PAGE: u32 = 100;

/// What can be rolled out, with the words for it.
pub(super) const ACTIONS: [(&str, &str); 8] = [
    ("service.restart", "Restart a service"),
    ("service.start", "Start a service"),
    ("service.stop", "Stop a service"),
    ("backup", "Back up a stack"),
    ("script", "Run a script"),
    ("certificate.renew", "Renew certificates"),
    ("drain", "Hand over telemetry"),
    ("diagnostics", "Diagnostics"),
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
        ul.crumbs aria-label="Path" { li { a href="/rollouts" { "Rollouts" } } }
        (view(&rollout, still(&app)))
        (acts(&rollout, &visitor.viewer()))
    };
    let title = format::sentence("", &rollout.what);
    framed(&app, &visitor, &title, Section::Rollouts, Some(format!("rollout&id={id}")), &content).await
}

/// The live part of one rollout.
pub(super) fn view(rollout: &Rollout, clock: Clock) -> Markup {
    html! {
        div #view {
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
            (waves(rollout))
            @if !rollout.troubled.is_empty() { (troubled(&rollout.troubled)) }
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
                            th scope="row" { "Wave " (wave.number) }
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

fn troubled(nodes: &[RolloutNode]) -> Markup {
    html! {
        section aria-labelledby="troubled-head" {
            header { h2 #troubled-head { "Nodes to look at" } }
            div.card.wrap {
                table.cards {
                    thead { tr { th scope="col" { "Node" } th scope="col" { "Tenant" } th.num scope="col" { "Wave" } th scope="col" { "Command" } th scope="col" { "What is wrong" } } }
                    tbody { @for node in nodes {
                        tr id={ "t-" (node.node) } {
                            th scope="row" { a href={ "/nodes/" (node.node) } { (node.name.as_deref().unwrap_or(&node.node)) } }
                            td data-name="Tenant" { (node.tenant) }
                            td.num data-name="Wave" { (node.wave) }
                            td data-name="Command" { @if let Some(command) = &node.command { a href={ "/commands/" (command) } { (node.state) } } }
                            td.wide.said {
                                @if node.regressed { "Was well, and is not. " }
                                @if node.timed_out { "Did not come to an end in time. " }
                                (node.message)
                                @if node.accepted { span.sub { "accepted" } }
                            }
                        }
                    } }
                }
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
                        (act(rollout, "resume", "Accept this and let it go on", &format!("What is wrong now is accepted, and halts it no more. It goes on in wave {}: {left} nodes are left. What gets wrong from now on halts it again.", rollout.wave), viewer))
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

/// What the form holds, as text: what is empty is not said.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wanted {
    action: String,
    stack: String,
    service: String,
    script: String,
    tenant: String,
    labels: String,
    query: String,
    waves: String,
    rate: String,
    windows: String,
    settle: String,
    soak: String,
    failed: String,
    regressed: String,
    valid_for: String,
    reason: String,
}

impl Wanted {
    /// Each field by its name.
    fn fields(&self) -> [(&'static str, &str); 16] {
        [
            ("action", &self.action),
            ("stack", &self.stack),
            ("service", &self.service),
            ("script", &self.script),
            ("tenant", &self.tenant),
            ("labels", &self.labels),
            ("query", &self.query),
            ("waves", &self.waves),
            ("rate", &self.rate),
            ("windows", &self.windows),
            ("settle", &self.settle),
            ("soak", &self.soak),
            ("failed", &self.failed),
            ("regressed", &self.regressed),
            ("valid_for", &self.valid_for),
            ("reason", &self.reason),
        ]
    }

    fn request(&self, expected_nodes: Option<usize>) -> Result<RolloutRequest, Problem> {
        let given = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        let list = |text: &str, at: char| text.split(at).filter_map(given).collect::<Vec<String>>();
        let all = self.tenant.is_empty() && self.labels.trim().is_empty() && self.query.trim().is_empty();
        Ok(RolloutRequest {
            command: CommandRequest {
                action: self.action.clone(),
                stack: given(&self.stack),
                service: given(&self.service),
                lines: None,
                interval_ms: None,
                script: given(&self.script),
                target: Target {
                    nodes: Vec::new(),
                    tenant: given(&self.tenant),
                    labels: list(&self.labels, ','),
                    query: given(&self.query),
                    all,
                },
                reason: self.reason.clone(),
                valid_for_seconds: number("Hours for nodes that are away", &self.valid_for)?
                    .map(|hours: u64| hours * 3600),
                priority: 0,
                expected_nodes,
                signed: None,
            },
            waves: list(&self.waves, ','),
            rate_per_minute: number("The rate", &self.rate)?,
            windows: list(&self.windows, ';'),
            settle_seconds: number("Minutes to settle", &self.settle)?.map(|minutes: u64| minutes * 60),
            soak_seconds: number("Minutes to watch", &self.soak)?.map(|minutes: u64| minutes * 60),
            max_failed_percent: number("The share of failures", &self.failed)?,
            max_regressed_percent: number("The share of unhealthy nodes", &self.regressed)?,
            preview: false,
        })
    }
}

fn number<T: std::str::FromStr + TryFrom<u64>>(what: &str, text: &str) -> Result<Option<T>, Problem> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    // Bounded, so that what it is multiplied with stays a number.
    let read = text.parse::<u32>().ok().and_then(|number| T::try_from(u64::from(number)).ok());
    read.map(Some).ok_or_else(|| {
        Problem::invalid(format!("{what}: {:?} is not a number that fits.", text.chars().take(20).collect::<String>()))
    })
}

/// `GET /rollouts/new`: the form; filled in, who is meant in which wave, and the button that starts it.
pub(super) async fn new(
    State(app): State<App>,
    visitor: Visitor,
    wanted: Asked<Query<Wanted>>,
) -> Result<Response, Shown> {
    let Query(wanted) = wanted.or_shown(&app)?;
    may(&visitor, access::Role::Operator).or_shown(&app)?;
    let content = if wanted.action.is_empty() {
        form(&wanted, None, &tenants(&app, &visitor).await.or_shown(&app)?)
    } else {
        let asked = wanted.request(None);
        let preview = match &asked {
            Ok(asked) => rollouts::preview(&app, visitor.principal(), asked).await,
            Err(problem) => Err(problem.clone()),
        };
        match preview {
            Ok(preview) if preview.nodes > 0 => confirm(&wanted, &preview, &rows::uuid(app.now()), &visitor.viewer()),
            Ok(_) => form(&wanted, Some("Nobody is meant by that."), &tenants(&app, &visitor).await.or_shown(&app)?),
            Err(problem) if problem.status().is_client_error() => {
                form(&wanted, Some(&capital(&problem.detail)), &tenants(&app, &visitor).await.or_shown(&app)?)
            }
            Err(problem) => return Err(problem).or_shown(&app),
        }
    };
    framed(&app, &visitor, "Start a rollout", Section::Rollouts, None, &content).await
}

async fn tenants(app: &App, visitor: &Visitor) -> Result<Vec<String>, Problem> {
    let tenants = super::pages::tenant_list(app, visitor.principal()).await?;
    Ok(tenants.into_iter().map(|tenant| tenant.id).collect())
}

fn form(wanted: &Wanted, error: Option<&str>, tenants: &[String]) -> Markup {
    let field = |name: &'static str, word: &str, hint: &str| {
        let value = wanted.fields().iter().find(|(known, _)| *known == name).map_or("", |(_, value)| *value);
        html! { div { label for=(name) { (word) } input id=(name) name=(name) value=(value) placeholder=(hint) autocomplete="off"; } }
    };
    html! {
        div.head { div { h1 { "Start a rollout" } p { "First you are shown who is meant, in which wave. Nothing is done before you confirm that." } } }
        @if let Some(error) = error { div.notes { div.note.critical role="alert" { span.state.critical { (format::mark("critical")) } p { (error) } } } }
        div.card.pad {
            form.form method="get" action="/rollouts/new" {
                div { label for="action" { "What" } select #action name="action" autofocus {
                    @for (action, word) in ACTIONS { option value=(action) selected[wanted.action == action] { (word) } }
                } }
                div.two { (field("stack", "Stack, for services and backups", "")) (field("service", "Service", "")) }
                (field("script", "Script, as the nodes' owners have named it", ""))
                div.two {
                    div { label for="tenant" { "Of tenant" } select #tenant name="tenant" {
                        option value="" { "all that you see" }
                        @for tenant in tenants { option value=(tenant) selected[wanted.tenant == *tenant] { (tenant) } }
                    } }
                    (field("labels", "With labels", "site=north,line=2"))
                }
                (field("query", "Whose name, host name, tenant or id holds", ""))
                (field("waves", "Waves: how far each reaches", "1,10%,50%,100%"))
                div.two { (field("soak", "Watch each wave for, minutes", "5")) (field("regressed", "Hold when so many are not well, percent", "10")) }
                div.two { (field("settle", "A node has so long, minutes", "10")) (field("failed", "Hold when so many fail, percent", "10")) }
                div.two { (field("rate", "Most commands a minute", "no limit")) (field("windows", "Only at these times", "Mon-Fri 22:00-04:00 +01:00")) }
                (field("valid_for", "Nodes that are away may still start within, hours", "1"))
                div { label for="reason" { "Why, for the audit log" } input #reason name="reason" value=(wanted.reason) required maxlength="500" autocomplete="off"; }
                div.actions { button type="submit" { "Show who is meant" } a href="/rollouts" { "Leave it" } }
            }
        }
    }
}

/// `once` tells this form from the same one opened again: sent twice, it has one effect.
fn confirm(wanted: &Wanted, preview: &RolloutPreview, once: &str, viewer: &Viewer) -> Markup {
    let what = format::sentence("", &preview.what);
    html! {
        div.head { div { h1 { (what) " on " (format::count(preview.nodes, "node", "nodes")) "?" } p { "In " (format::count(preview.waves.len(), "wave", "waves")) ". The first one begins at once, or when its maintenance window opens." } } }
        div.card.wrap {
            table.cards {
                thead { tr { th scope="col" { "Wave" } th.num scope="col" { "Nodes" } th.num scope="col" { "Online" } th scope="col" { "Who" } } }
                tbody { @for wave in &preview.waves {
                    tr {
                        th scope="row" { "Wave " (wave.number) }
                        td.num data-name="Nodes" { (wave.nodes) }
                        td.num data-name="Online" { (wave.online) }
                        td.wide { (wave.first.join(", ")) @if wave.nodes > wave.first.len() { " and " (wave.nodes - wave.first.len()) " more" } }
                    }
                } }
            }
        }
        form.form.pad method="post" action="/rollouts" {
            (csrf(&viewer.csrf))
            @for (name, value) in wanted.fields() { input type="hidden" name=(name) value=(value); }
            input type="hidden" name="expected" value=(preview.nodes);
            input type="hidden" name="once" value=(once);
            p { "Why: " (wanted.reason) }
            div.actions { button type="submit" autofocus { (what) } a href="/rollouts" { "Leave it" } }
        }
    }
}

#[derive(Deserialize)]
pub(super) struct StartForm {
    csrf: String,
    #[serde(flatten)]
    wanted: Wanted,
    /// As text: what is flattened comes as text.
    expected: String,
    once: String,
}

/// `POST /rollouts`
pub(super) async fn start(State(app): State<App>, sent: Sent<StartForm>) -> Result<Response, Shown> {
    let Sent { visitor, form } = sent;
    may(&visitor, access::Role::Operator).or_shown(&app)?;
    let asked = form.wanted.request(form.expected.parse().ok()).or_shown(&app)?;
    let rollout = rollouts::start(&app, visitor.principal(), &asked, Some(form.once)).await.or_shown(&app)?;
    Ok(Redirect::to(&format!("/rollouts/{}", rollout.id)).into_response())
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

macro_rules! ours {
    ($($form:ty),*) => {$(
        impl Ours for $form {
            fn csrf(&self) -> &str {
                &self.csrf
            }
        }
    )*};
}
ours!(StartForm, ActForm);
