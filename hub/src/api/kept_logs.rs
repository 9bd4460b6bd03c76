//! `/api/v1/logs`: logs that were shipped, searched.

use axum::extract::State;
use protocol::{NodeId, Timestamp};
use serde::{Deserialize, Deserializer};
use serde_json::json;
use utoipa::IntoParams;

use super::extract::{Caller, Path, Query, require};
use super::list::{Paging, bad_cursor, cursor};
use super::logs::moment;
use super::nodes::unknown;
use super::problem::Problem;
use super::resource::{Coverage, KeptLine, Page};
use crate::access::{Principal, Role};
use crate::audit::{self, Record, action};
use crate::logs;
use crate::logs::search::{self, Filter, Place};
use crate::reason::Reason;
use crate::web::App;

/// Longest name of a project or service, and longest expression.
const LONGEST: usize = 256;

/// Which lines.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Search {
    /// Only this tenant's.
    #[serde(default, deserialize_with = "given")]
    tenant: Option<String>,
    /// Only this node's: its id.
    #[serde(default, deserialize_with = "given")]
    node: Option<String>,
    /// Only of this Compose project.
    #[serde(default, deserialize_with = "given")]
    stack: Option<String>,
    /// Only of this Compose service.
    #[serde(default, deserialize_with = "given")]
    service: Option<String>,
    /// Only what was written to `stdout` or `stderr`.
    #[serde(default, deserialize_with = "given")]
    stream: Option<String>,
    /// Nothing that was written before: a time (RFC 3339; without a zone UTC, without a day the last one), or for how long,
    /// such as `10m`.
    #[serde(default, deserialize_with = "given")]
    since: Option<String>,
    /// Nothing that was written after: a time, or how long ago.
    #[serde(default, deserialize_with = "given")]
    until: Option<String>,
    /// Lines with all of these words, whole and whatever their case. What stands between the letters of a word, as in
    /// `level=error`, must be there too.
    #[serde(default)]
    text: String,
    /// Lines in which this regular expression is found: at most 256 bytes. It is looked for in what the other conditions
    /// leave.
    #[serde(default, deserialize_with = "given")]
    grep: Option<String>,
    /// Why, for the audit log, if you want to say it: one line of at most 500 characters.
    #[serde(default)]
    reason: String,
}

impl Search {
    /// Of one service of one node.
    pub(crate) fn of(self, node: &str, stack: &str, service: &str) -> Self {
        Self { node: Some(node.into()), stack: Some(stack.into()), service: Some(service.into()), ..self }
    }

    /// What it asks for, by the names of the query, as it was written.
    pub(crate) fn asked(&self) -> [(&'static str, &str); 5] {
        [
            ("text", self.text.as_str()),
            ("grep", self.grep.as_deref().unwrap_or_default()),
            ("since", self.since.as_deref().unwrap_or_default()),
            ("until", self.until.as_deref().unwrap_or_default()),
            ("reason", self.reason.as_str()),
        ]
    }
}

/// Lines of shipped logs, the newest first, and between them how many lines were left out at the node. A page may have fewer
/// than its limit, and a cursor: it then looked at as many lines as it may. That logs are searched is in the audit log. Takes
/// the role operator.
#[utoipa::path(get, path = "/api/v1/logs", tag = "logs", params(Search, Paging), responses(
    (status = 200, body = Page<KeptLine>),
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(search): Query<Search>,
    Query(paging): Query<Paging>,
) -> Result<axum::Json<Page<KeptLine>>, Problem> {
    Ok(axum::Json(find(&app, &caller.0, search, &paging).await?))
}

/// The proof that no batch of a node's shipped logs is missing, but for those that the node reported lost.
#[utoipa::path(get, path = "/api/v1/nodes/{node}/logs/coverage", tag = "logs", params(("node" = String, Path)), responses(
    (status = 200, body = Vec<Coverage>),
))]
pub(crate) async fn coverage(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<NodeId>,
) -> Result<axum::Json<Vec<Coverage>>, Problem> {
    let (_, view) = app.roster.node(&caller.0, id).ok_or_else(|| unknown(id))?;
    let coverage = logs::coverage(&app.state.database.within(Some(view.tenant.as_str())), id).await?;
    Ok(axum::Json(coverage.into_iter().map(Coverage::from).collect()))
}

/// Answers a search, for whoever may.
pub(crate) async fn find(
    app: &App,
    who: &Principal,
    search: Search,
    paging: &Paging,
) -> Result<Page<KeptLine>, Problem> {
    require(who, Role::Operator)?;
    let tenant = Caller(who.clone()).scope(app, search.tenant.as_deref()).await?;
    let now = app.now();
    let short = |what: &str, text: &Option<String>| match text {
        Some(text) if text.len() > LONGEST => Err(Problem::invalid(format!("{what} has at most {LONGEST} bytes."))),
        _ => Ok(()),
    };
    short("stack", &search.stack)?;
    short("service", &search.service)?;
    short("grep", &search.grep)?;
    let node = search.node.as_deref().map(str::parse).transpose();
    let filter = Filter {
        tenant,
        node: node.map_err(|error: protocol::id::IdError| Problem::invalid(format!("node: {error}.")))?,
        stack: search.stack,
        service: search.service,
        error: match search.stream.as_deref() {
            None => None,
            Some("stdout") => Some(false),
            Some("stderr") => Some(true),
            Some(_) => return Err(Problem::invalid("stream is stdout or stderr.")),
        },
        since: moment("since", search.since.as_deref(), now)?,
        until: moment("until", search.until.as_deref(), now)?,
        text: search.text,
        grep: search.grep,
        after: paging.after_id()?.map(|place| read(&place).ok_or_else(bad_cursor)).transpose()?,
        limit: paging.limit()? as usize,
    };
    let reason = Reason::given(&search.reason)?;
    if filter.after.is_none() {
        audit::record(&app.state.database, now, record(who, &filter, reason.as_ref())).await?;
    }
    let found = search::find(&app.state.database, &filter, search::LONGEST).await?;
    let next_cursor = found.next.map(|Place { at, id }| cursor(&format!("{at}.{id}")));
    Ok(Page { items: found.lines.into_iter().map(KeptLine::from).collect(), next_cursor })
}

/// Once for each search: the pages after the first are the same one's.
fn record(who: &Principal, filter: &Filter, reason: Option<&Reason>) -> Record {
    let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let subject = filter.node.map_or_else(|| "logs".to_owned(), |node| node.to_string());
    Record {
        actor: who.actor(),
        action: action::LOGS_SEARCHED,
        tenant: filter.tenant.clone(),
        subject,
        detail: json!({
            "stack": filter.stack,
            "service": filter.service,
            "since": time(filter.since),
            "until": time(filter.until),
            "text": filter.text,
            "grep": filter.grep,
            "stream": filter.error.map(|error| if error { "stderr" } else { "stdout" }),
            "reason": reason.map(Reason::as_str),
        }),
        remote: None,
    }
}

fn read(place: &str) -> Option<Place> {
    let (at, id) = place.split_once('.')?;
    Some(Place { at: at.parse().ok()?, id: id.parse().ok()? })
}

/// An empty value is none: forms send their fields whether or not something is in them.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty()))
}
