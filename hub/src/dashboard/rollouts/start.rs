//! Starting a rollout: the form, the page that says who is meant in which wave, and the start.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::ACTIONS;
use crate::access;
use crate::api::commands::{CommandRequest, Target};
use crate::api::extract::Query;
use crate::api::problem::Problem;
use crate::api::resource::RolloutPreview;
use crate::api::rollouts::{self, RolloutRequest};
use crate::dashboard::commands::{consequence, millis};
use crate::dashboard::layout::{Section, Viewer, csrf};
use crate::dashboard::pages::{Asked, framed, may, tenant_list};
use crate::dashboard::selection::{Chosen, absent, of_whom};
use crate::dashboard::session::{Sent, Visitor, capital, ours};
use crate::dashboard::{OrShown as _, Shown, format};
use crate::rows;
use crate::web::App;

/// What the form holds, as text: what is empty is not said.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::dashboard) struct Wanted {
    action: String,
    stack: String,
    service: String,
    script: String,
    /// Seconds, as they are written.
    interval: String,
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
    fn fields(&self) -> [(&'static str, &str); 17] {
        [
            ("action", &self.action),
            ("stack", &self.stack),
            ("service", &self.service),
            ("script", &self.script),
            ("interval", &self.interval),
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

    /// The form, filled in so.
    fn address(&self) -> String {
        let given = self.fields().into_iter().filter(|(_, value)| !value.is_empty());
        given.fold("/rollouts/new?change=1".to_owned(), |address, (name, value)| {
            format!("{address}&{name}={}", format::escaped(value))
        })
    }

    fn request(&self, expected: Option<String>) -> Result<RolloutRequest, Problem> {
        let given = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        let list = |text: &str, at: char| text.split(at).filter_map(given).collect::<Vec<String>>();
        let all = self.tenant.is_empty() && self.labels.trim().is_empty() && self.query.trim().is_empty();
        Ok(RolloutRequest {
            command: CommandRequest {
                action: self.action.clone(),
                stack: given(&self.stack),
                service: given(&self.service),
                lines: None,
                interval_ms: millis(&self.interval),
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
                expected,
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

/// Whether it is still to be changed.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(in crate::dashboard) struct Draft {
    change: Option<u8>,
}

/// `GET /rollouts/new`: the form; filled in, who is meant in which wave, and the button that starts it.
pub(in crate::dashboard) async fn new(
    State(app): State<App>,
    visitor: Visitor,
    wanted: Asked<Query<Wanted>>,
    draft: Asked<Query<Draft>>,
) -> Result<Response, Shown> {
    let (Query(wanted), Query(Draft { change })) = (wanted.or_shown(&app)?, draft.or_shown(&app)?);
    may(&visitor, access::Role::Operator).or_shown(&app)?;
    let content = if wanted.action.is_empty() || change.is_some() {
        form(&wanted, None, &tenants(&app, &visitor).await.or_shown(&app)?)
    } else {
        let asked = wanted.request(None);
        let preview = match &asked {
            Ok(asked) => rollouts::preview(&app, visitor.principal(), asked).await,
            Err(problem) => Err(problem.clone()),
        };
        match preview {
            Ok(preview) if preview.nodes > 0 => {
                let asked = asked.or_shown(&app)?;
                let chosen = chosen(&app, &visitor, &asked).await.or_shown(&app)?;
                let once = rows::uuid(app.now());
                confirm(&wanted, &asked, &preview, &chosen, &once, &visitor.viewer()).or_shown(&app)?
            }
            Ok(_) => form(&wanted, Some("Nobody is meant by that."), &tenants(&app, &visitor).await.or_shown(&app)?),
            Err(problem) if problem.status().is_client_error() => {
                form(&wanted, Some(&capital(&problem.detail)), &tenants(&app, &visitor).await.or_shown(&app)?)
            }
            Err(problem) => return Err(problem).or_shown(&app),
        }
    };
    framed(&app, &visitor, "Start a rollout", Section::Rollouts, None, &content).await
}

/// Those who are meant, as they are now.
async fn chosen(app: &App, visitor: &Visitor, asked: &RolloutRequest) -> Result<Vec<Chosen>, Problem> {
    let nodes = asked.command.target.nodes(app, visitor.principal()).await?;
    Ok(nodes.iter().filter_map(|node| app.roster.node(visitor.principal(), node.id.parse().ok()?)).collect())
}

async fn tenants(app: &App, visitor: &Visitor) -> Result<Vec<String>, Problem> {
    let tenants = tenant_list(app, visitor.principal()).await?;
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
                div.two { (field("script", "Script, as the nodes' owners have named it", "")) (field("interval", "Seconds between two samples, 0.1 to 3600", "")) }
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
fn confirm(
    wanted: &Wanted,
    asked: &RolloutRequest,
    preview: &RolloutPreview,
    chosen: &[Chosen],
    once: &str,
    viewer: &Viewer,
) -> Result<Markup, Problem> {
    let (what, limits) = (format::sentence("", &preview.what), asked.limits()?);
    let long = |duration: Duration| format::duration(duration.as_secs_f64());
    let of = match wanted.service.trim() {
        "" => wanted.stack.trim().to_owned(),
        service => format!("{}/{service}", wanted.stack.trim()),
    };
    Ok(html! {
        div.head { div { h1 { (what) " on " (format::count(preview.nodes, "node", "nodes")) "?" } p #of-whom { (capital(&of_whom(chosen))) ", in " (format::count(preview.waves.len(), "wave", "waves")) } } }
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
            input type="hidden" name="expected" value=(preview.digest);
            input type="hidden" name="once" value=(once);
            p { (consequence(&wanted.action)) }
            (absent(&wanted.action, &of, chosen, &long(asked.command.valid_for())))
            p {
                "The first wave begins " @if limits.windows.is_empty() { "at once" } @else { "when a maintenance window is open, and nothing starts at other times: " (wanted.windows) }
                @if let Some(rate) = limits.rate { ", with at most " (rate) " commands a minute" }
                ". Each is watched for " (long(limits.soak)) " before the next. It holds itself when over " (limits.most_failed) " % of a wave fail or are not done within " (long(limits.settle))
                ", or over " (limits.most_regressed) " % are not well any more."
            }
            p { "Why: " (wanted.reason) }
            div.actions { button type="submit" autofocus { (what) " on " (format::count(preview.nodes, "node", "nodes")) } a href=(wanted.address()) { "Change it" } a href="/rollouts" { "Leave it" } }
        }
    })
}

#[derive(Deserialize)]
pub(in crate::dashboard) struct StartForm {
    csrf: String,
    #[serde(flatten)]
    wanted: Wanted,
    /// What the page has shown.
    expected: String,
    once: String,
}

/// `POST /rollouts`
pub(in crate::dashboard) async fn start(State(app): State<App>, sent: Sent<StartForm>) -> Result<Response, Shown> {
    let Sent { visitor, form } = sent;
    may(&visitor, access::Role::Operator).or_shown(&app)?;
    let asked = form.wanted.request(Some(form.expected)).or_shown(&app)?;
    let rollout = rollouts::start(&app, visitor.principal(), &asked, Some(form.once)).await.or_shown(&app)?;
    Ok(Redirect::to(&format!("/rollouts/{}", rollout.id)).into_response())
}

ours!(StartForm);
