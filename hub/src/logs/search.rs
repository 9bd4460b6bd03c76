//! Finds kept lines, the newest first.

use std::time::{Duration, Instant};

use protocol::{NodeId, TenantId, Timestamp};
use regex::{Regex, RegexBuilder};
use store::sqlx::any::AnyRow;
use store::sqlx::{self, Row};
use store::{Database, StoreError};

use super::words::Words;

pub use super::words::TooMany;

/// Most bytes that an expression may take once compiled, and most that its search may remember.
const GREP_SIZE: usize = 256 * 1024;
/// Lines read at once where not all that is read is shown.
const PAGE: usize = 500;
/// Most lines that are looked at for one answer, where an expression or a sign no index knows leaves most of them out. A
/// cursor goes on from there.
const MOST_READ: usize = 20_000;
/// How long a search may take. The database then ends it.
pub const LONGEST: Duration = Duration::from_secs(10);

/// What to find.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this tenant alone.
    pub tenant: Option<TenantId>,
    /// Of this node alone.
    pub node: Option<NodeId>,
    /// Of this Compose project alone.
    pub stack: Option<String>,
    /// Of this service alone.
    pub service: Option<String>,
    /// `Some(true)`: written to standard error alone; `Some(false)`: to standard output.
    pub error: Option<bool>,
    /// Not what was written before.
    pub since: Option<Timestamp>,
    /// Not what was written after.
    pub until: Option<Timestamp>,
    /// With all these words, as they are written but for their case.
    pub text: String,
    /// In which this regular expression is found.
    pub grep: Option<String>,
    /// Only what comes after this one.
    pub after: Option<Place>,
    /// At most so many.
    pub limit: usize,
}

/// A line's place in the order of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// When it was written, ns since the Unix epoch.
    pub at: i64,
    /// Its id.
    pub id: i64,
}

/// A line that was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its place.
    pub place: Place,
    /// Whose it is.
    pub tenant: String,
    /// Which node's.
    pub node: String,
    /// Compose project.
    pub stack: String,
    /// Compose service.
    pub service: String,
    /// Compose's number of the container.
    pub number: i64,
    /// Written to standard error.
    pub error: bool,
    /// Without the end of the line.
    pub text: String,
    /// Bytes cut off the end of it.
    pub cut: i64,
    /// No line, but so many that were left out here by the node.
    pub dropped: i64,
    /// When the last of those was written.
    pub until: i64,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The newest first.
    pub lines: Vec<Line>,
    /// From where to go on, when there may be more.
    pub next: Option<Place>,
}

/// A search that can't be answered.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The text is too long.
    #[error(transparent)]
    Text(#[from] TooMany),
    /// The expression is none.
    #[error("{0}")]
    Grep(String),
    /// It took too long.
    #[error(
        "the search took too long and was ended: name a node and a service, search for words that fewer lines have, or in a \
         shorter time"
    )]
    Late,
    /// The database does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Finds lines, `within` a time, [`LONGEST`] but for tests. When it is over, what was found until then is the answer, with a place
/// to go on from.
///
/// # Errors
/// [`SearchError`].
pub async fn find(database: &Database, filter: &Filter, within: Duration) -> Result<Found, SearchError> {
    let words = Words::read(&filter.text)?;
    let grep = filter.grep.as_deref().map(expression).transpose()?;
    let of_text = words.is_some() || grep.is_some();
    let wanted = |line: &Line| {
        words.as_ref().is_none_or(|words| words.are_in(&line.text))
            && grep.as_ref().is_none_or(|grep| grep.is_match(&line.text))
    };
    let database = database.within(filter.tenant.as_ref().map(TenantId::as_str));
    let deadline = Instant::now() + within;
    let (mut lines, mut after, mut read) = (Vec::new(), filter.after, 0);
    loop {
        // One more than is shown tells whether there is more.
        let size = if of_text { PAGE } else { filter.limit + 1 };
        let page = match page(&database, filter, words.as_ref(), after, (size, of_text), deadline).await {
            Err(SearchError::Late) if read > 0 => return Ok(Found { lines, next: after }),
            page => page?,
        };
        let last = page.len() < size;
        read += page.len();
        for line in page {
            if lines.len() == filter.limit {
                // There is one more.
                return Ok(Found { lines, next: after });
            }
            after = Some(line.place);
            if wanted(&line) {
                lines.push(line);
            }
        }
        if last {
            return Ok(Found { lines, next: None });
        }
        if read >= MOST_READ {
            return Ok(Found { lines, next: after });
        }
    }
}

async fn page(
    database: &Database,
    filter: &Filter,
    words: Option<&Words>,
    after: Option<Place>,
    (size, of_text): (usize, bool),
    deadline: Instant,
) -> Result<Vec<Line>, SearchError> {
    let since = filter.since.map_or(-i64::MAX, nanos);
    let until = filter.until.map_or(i64::MAX, |until| nanos(until).saturating_add(999_999));
    // Numbers are written out: they are ours, and an engine plans better with them.
    let mut conditions = vec![format!("l.at >= {since} AND l.at <= {until}")];
    let mut values: Vec<String> = Vec::new();
    let mut is = |column: &str, value: Option<String>| {
        if let Some(value) = value {
            values.push(value);
            conditions.push(format!("{column} = ${}", values.len()));
        }
    };
    is("l.tenant", filter.tenant.as_ref().map(ToString::to_string));
    is("s.node", filter.node.as_ref().map(ToString::to_string));
    is("s.stack", filter.stack.clone());
    is("s.service", filter.service.clone());
    if let Some(error) = filter.error {
        conditions.push(format!("l.error = {} AND l.dropped = 0", i64::from(error)));
    }
    if of_text {
        conditions.push("l.dropped = 0".into());
    }
    if let Some(Place { at, id }) = after {
        conditions.push(format!("(l.at < {at} OR l.at = {at} AND l.id < {id})"));
    }
    let indexed = words.and_then(|words| words.condition(database.engine(), values.len() + 1, (since, until)));
    if let Some((condition, words)) = indexed {
        conditions.push(condition);
        values.extend(words);
    }
    let sql = format!(
        "SELECT l.at, l.id, l.tenant, s.node, s.stack, s.service, s.number, l.error, l.text, l.cut, l.dropped, l.until
         FROM log_lines l JOIN log_sources s ON s.id = l.source
         WHERE {} ORDER BY l.at DESC, l.id DESC LIMIT {size}",
        conditions.join(" AND ")
    );
    let rows = database.read_until(sql, values, deadline).await?.ok_or(SearchError::Late)?;
    Ok(rows.iter().map(line).collect::<Result<_, _>>().map_err(StoreError::from)?)
}

fn line(row: &AnyRow) -> Result<Line, sqlx::Error> {
    Ok(Line {
        place: Place { at: row.try_get(0)?, id: row.try_get(1)? },
        tenant: row.try_get(2)?,
        node: row.try_get(3)?,
        stack: row.try_get(4)?,
        service: row.try_get(5)?,
        number: row.try_get(6)?,
        error: row.try_get::<i64, _>(7)? != 0,
        text: row.try_get(8)?,
        cut: row.try_get(9)?,
        dropped: row.try_get(10)?,
        until: row.try_get(11)?,
    })
}

fn nanos(at: Timestamp) -> i64 {
    at.millis().saturating_mul(1_000_000)
}

fn expression(grep: &str) -> Result<Regex, SearchError> {
    let built = RegexBuilder::new(grep).size_limit(GREP_SIZE).dfa_size_limit(GREP_SIZE).build();
    built.map_err(|error| {
        SearchError::Grep(match error {
            regex::Error::CompiledTooBig(_) => format!("{grep:?} takes too much to search for: use a simpler one"),
            // The last line says what is wrong; those before it draw where.
            error => {
                let said = error.to_string();
                let what = said.lines().next_back().unwrap_or_default().trim_start_matches("error: ");
                format!("{grep:?} is no regular expression: {what}")
            }
        })
    })
}
