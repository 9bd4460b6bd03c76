//! `/api/v1/nodes/{node}/services/{stack}/{service}/logs`: a service's log, as it is written.

use axum::extract::State;
use axum::extract::rejection::PathRejection;
use axum::response::sse::{Event, Sse};
use futures_util::{Stream, stream};
use protocol::message::TailLines;
use protocol::tail::{MAX_LINES, Tail};
use protocol::{NodeId, TailId, Timestamp};
use serde::{Deserialize, Serialize};
use settings::Period;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

use super::events::Watch;
use super::extract::{Caller, Query, require};
use super::follow::{Follow, follow};
use super::nodes::unknown;
use super::problem::Problem;
use super::resource::Time;
use crate::access::{Principal, Role};
use crate::reason::Reason;
use crate::tails::{End, EndReason, News, Reading};
use crate::web::{App, Place};

/// Lines of what was written before that are looked at when nothing is asked for.
const LINES: u32 = 100;
const DAY: Duration = Duration::from_secs(86_400);
/// How often it is looked whether the reader may still read.
const CHECK_EVERY: Duration = Duration::from_secs(15);

/// Which lines.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogQuery {
    /// Go on with what is written from now on.
    #[serde(default)]
    follow: bool,
    /// Nothing that was written before: a time (RFC 3339; without a zone UTC, without a day the last one), or for how long,
    /// such as `10m`.
    since: Option<String>,
    /// Nothing that was written after: a time, or how long ago.
    until: Option<String>,
    /// Only lines in which this regular expression is found: at most 256 bytes.
    grep: Option<String>,
    /// Of what each container wrote before, the last lines that are looked at: at most 10,000. 100 unless given, and 10,000
    /// with an expression or a time.
    lines: Option<u32>,
    /// Why, for the audit log, if you want to say it: one line of at most 500 characters.
    #[serde(default)]
    reason: String,
}

impl LogQuery {
    /// The same, and on with what is written from now on, unless it is to end.
    pub(crate) fn and_on(self) -> Self {
        Self { follow: self.until.as_deref().unwrap_or_default().is_empty(), ..self }
    }
}

/// Lines, in the order in which each container wrote them.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct LogLines {
    lines: Vec<LogLine>,
    /// Lines left out after these, because they were more than can be read live.
    dropped: u64,
}

/// One line.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct LogLine {
    /// When it was written, by the node's clock.
    at: Time,
    /// Compose's number of the container.
    number: u32,
    /// Written to standard error.
    error: bool,
    /// Without the end of the line. What is not UTF-8 in it is replaced.
    text: String,
    /// Bytes cut off its end: it has 8 KiB at most.
    cut: u32,
    /// Lines left out directly before this one.
    dropped: u64,
}

/// The end of a log.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct LogEnd {
    /// `complete`: there is no more of what was asked for; `refused`: by the node's own policy; `failed`: the node could not
    /// read it; `gone`: the node's session ended; `stopped`: the hub stops, or the reader may read no more.
    reason: &'static str,
    /// For a person.
    message: String,
    /// Lines left out since the last ones.
    dropped: u64,
}

impl From<TailLines> for LogLines {
    fn from(lines: TailLines) -> Self {
        let line = |line: protocol::message::TailLine| LogLine {
            at: Time(Timestamp::from_millis(line.at_ms)),
            number: line.number,
            error: line.error,
            text: String::from_utf8_lossy(&line.text).into_owned(),
            cut: line.cut,
            dropped: line.dropped,
        };
        Self { lines: lines.lines.into_iter().map(line).collect(), dropped: lines.dropped }
    }
}

impl From<End> for LogEnd {
    fn from(end: End) -> Self {
        let reason = match end.reason {
            EndReason::Complete => "complete",
            EndReason::Refused => "refused",
            EndReason::Failed => "failed",
            EndReason::Gone => "gone",
        };
        Self { reason, message: end.message, dropped: end.dropped }
    }
}

/// A service's log, as server-sent events: `lines`, and one `end`. That it is read is in the audit log. What a service writes
/// faster than it can be read is left out, and the count of lines stands in their place. Takes the role operator, and the
/// leave of the node's owner (`service.logs`).
#[utoipa::path(get, path = "/api/v1/nodes/{node}/services/{stack}/{service}/logs", tag = "nodes",
    params(("node" = String, Path), ("stack" = String, Path), ("service" = String, Path), LogQuery), responses(
    (status = 200, body = LogLines, content_type = "text/event-stream"),
))]
pub(crate) async fn read(
    State(app): State<App>,
    caller: Caller,
    path: Result<axum::extract::Path<(String, String, String)>, PathRejection>,
    Query(query): Query<LogQuery>,
    watch: Watch,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let axum::extract::Path((node, stack, service)) = path.map_err(|error| Problem::malformed(error.body_text()))?;
    let id = node.parse().map_err(|error: protocol::id::IdError| Problem::not_found(error.to_string()))?;
    let follower = Follower::start(app, &caller.0, id, (stack, service), query, Leave::Token(watch)).await?;
    Ok(follow(follower))
}

/// A log that ended before it began, for readers who see events alone.
pub(crate) fn refused(problem: Problem) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let end = LogEnd { reason: "failed", message: problem.detail, dropped: 0 };
    let event = Event::default().event("end").json_data(end).unwrap_or_default();
    Sse::new(stream::iter([Ok(event)]))
}

/// How a reader got in, to be looked at again.
pub(crate) enum Leave {
    /// By an API token.
    Token(Watch),
    /// By a session of the dashboard: its cookie.
    Cookie(String),
}

/// Somebody who reads a log.
pub(crate) struct Follower {
    app: App,
    reading: Reading,
    leave: Leave,
    check: Instant,
    over: bool,
    #[expect(dead_code, reason = "held while the stream lasts")]
    place: Place,
}

impl Follower {
    /// Has the log read, for whoever may.
    pub(crate) async fn start(
        app: App,
        who: &Principal,
        node: NodeId,
        (stack, service): (String, String),
        query: LogQuery,
        leave: Leave,
    ) -> Result<Self, Problem> {
        require(who, Role::Operator)?;
        let (_, view) = app.roster.node(who, node).ok_or_else(|| unknown(node))?;
        let now = app.now();
        let grep = query.grep.filter(|grep| !grep.is_empty());
        let narrowed = grep.is_some() || query.since.is_some() || query.until.is_some();
        let tail = Tail {
            id: TailId::new(now, rand::random()),
            stack,
            service,
            since: moment("since", query.since.as_deref(), now)?,
            until: moment("until", query.until.as_deref(), now)?,
            lines: query.lines.unwrap_or(if narrowed { MAX_LINES } else { LINES }),
            grep,
            follow: query.follow,
        };
        let place = app.stream(who)?;
        let of = (node, view.tenant.clone());
        let reason = Reason::given(&query.reason)?;
        let reading = app.state.tails.start(tail, of, reason.as_ref(), &who.actor(), now).await?;
        Ok(Self { app, reading, leave, check: Instant::now() + CHECK_EVERY, over: false, place })
    }

    async fn may(&mut self) -> bool {
        self.check = Instant::now() + CHECK_EVERY;
        match &mut self.leave {
            Leave::Token(watch) => watch.still_good(&self.app).await,
            Leave::Cookie(cookie) => self.app.state.access.session(cookie, self.app.now()).await.is_ok(),
        }
    }

    fn stopped(&mut self, why: &str) -> Option<Event> {
        self.end(LogEnd { reason: "stopped", message: why.to_owned(), dropped: 0 })
    }

    fn end(&mut self, end: LogEnd) -> Option<Event> {
        self.over = true;
        Event::default().event("end").json_data(end).ok()
    }
}

impl Follow for Follower {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if self.over {
                return None;
            }
            tokio::select! {
                biased;
                () = self.app.state.shutdown.cancelled() => return self.stopped("the hub stops or restarts"),
                () = tokio::time::sleep_until(self.check) => if !self.may().await {
                    return self.stopped("your session or token has ended");
                },
                news = self.reading.next() => return match news? {
                    News::Lines(lines) => Event::default().event("lines").json_data(LogLines::from(lines)).ok(),
                    News::End(end) => self.end(end.into()),
                },
            }
        }
    }
}

/// A time, or how long before `now`. Without a zone it is UTC, as logs are shown; without a day, when it was so late last.
pub(super) fn moment(what: &str, text: Option<&str>, now: Timestamp) -> Result<Option<Timestamp>, Problem> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    if let Ok(period) = text.parse::<Period>() {
        return Ok(Some(now.minus(period.get())));
    }
    let wrong = || {
        let said = "use a time such as 2026-11-23T12:00:00Z or 12:00, which is UTC, or how long ago, such as 10m";
        Problem::invalid(format!("{what}: {said}."))
    };
    written(text, now).map(Some).ok_or_else(wrong)
}

fn written(text: &str, now: Timestamp) -> Option<Timestamp> {
    let in_full = |text: &str| {
        [text.to_owned(), format!("{text}Z"), format!("{text}:00Z")].iter().find_map(|text| Timestamp::parse(text))
    };
    let text = text.trim().replacen(' ', "T", 1);
    if text.contains('T') {
        return in_full(&text);
    }
    let at = in_full(&format!("{}T{text}", now.to_string().get(..10)?))?;
    // With a zone, UTC's day may be another one than it was there.
    let day = i64::try_from(DAY.as_millis()).ok()?;
    Some(Timestamp::from_millis(now.millis() - (now.millis() - at.millis()).rem_euclid(day)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_how_long_ago() {
        let now = Timestamp::from_millis(1_795_435_200_000);
        let of = |text| moment("since", Some(text), now).map_err(|problem| problem.detail);
        assert_eq!(of("10m"), Ok(Some(now.minus(Duration::from_secs(600)))));
        assert_eq!(of("2026-11-23T13:00:00+01:00"), Ok(Some(now)));
        assert_eq!(of(""), Ok(None));
        // `now` is 2026-11-23T12:00:00Z.
        for said in ["2026-11-23 12:00", "2026-11-23T12:00:00", "12:00", "12:00:00.000Z", " 12:00 "] {
            assert_eq!(of(said), Ok(Some(now)), "{said}");
        }
        assert_eq!(of("12:01"), Ok(Some(now.minus(DAY - Duration::from_secs(60)))), "yesterday's");
        let at = |now, said| {
            moment("since", Some(said), Timestamp::parse(now).expect("a time")).map_err(|problem| problem.detail)
        };
        for (now, said, meant) in [
            ("2026-11-23T23:45:00Z", "00:30:00+01:00", "2026-11-23T23:30:00Z"),
            ("2026-11-23T23:15:00Z", "00:30:00+01:00", "2026-11-22T23:30:00Z"),
            ("2026-11-23T00:30:00Z", "23:45:00-02:00", "2026-11-22T01:45:00Z"),
            ("2026-11-23T02:00:00Z", "23:45:00-02:00", "2026-11-23T01:45:00Z"),
        ] {
            assert_eq!(at(now, said), Ok(Timestamp::parse(meant)), "{said} at {now}");
        }
        for wrong in ["yesterday", "2026-11-23", "24:00", "12", "2026-11-23T99999999999999999:00:00Z"] {
            assert!(of(wrong).unwrap_err().contains("10m"), "{wrong}");
        }
    }
}
