//! Pages of a list: a limit, and an opaque cursor for the page after.

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::problem::Problem;
use super::resource::Page;

/// Items of a page when nothing is asked for.
const DEFAULT: u32 = 100;
/// Most items of a page.
const MAX: u32 = 500;

/// Which page of a list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Paging {
    /// At most so many items: 1 to 500, and 100 unless told otherwise.
    limit: Option<String>,
    /// `next_cursor` of the page before.
    pub(crate) cursor: Option<String>,
}

impl Paging {
    /// How many items.
    pub(crate) fn limit(&self) -> Result<u32, Problem> {
        let Some(text) = &self.limit else { return Ok(DEFAULT) };
        let limit = text.parse().ok().filter(|limit| (1..=MAX).contains(limit));
        limit.ok_or_else(|| Problem::malformed(format!("limit is a number from 1 to {MAX}.")))
    }

    /// The stretch it asks for of a list that is ordered by number.
    pub(crate) fn window(&self) -> Result<Window, Problem> {
        let before = self.after_id()?.map(|id| id.parse().map_err(|_| bad_cursor())).transpose()?;
        Ok(Window { before, limit: self.limit()? })
    }

    /// The id behind the cursor.
    pub(crate) fn after_id(&self) -> Result<Option<String>, Problem> {
        let decoded = |cursor: &String| {
            let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).ok()?;
            String::from_utf8(bytes).ok()
        };
        self.cursor.as_ref().map(|cursor| decoded(cursor).ok_or_else(bad_cursor)).transpose()
    }
}

/// A cursor this hub did not make.
pub(crate) fn bad_cursor() -> Problem {
    Problem::malformed("cursor is the next_cursor of a page of the same list; start without one.")
}

/// What has a number that grows.
pub(crate) trait Numbered {
    /// Its number.
    fn number(&self) -> i64;
}

/// A stretch of a list that is read by number, the newest first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Only what is older than this.
    pub(crate) before: Option<i64>,
    /// At most so many.
    pub(crate) limit: u32,
}

impl Window {
    /// How many to read: one more than is shown, which tells whether there is more.
    pub(crate) fn reach(self) -> u32 {
        self.limit + 1
    }

    /// What is shown of what was read, and the number that the next stretch is before.
    pub(crate) fn cut<T: Numbered>(self, mut read: Vec<T>) -> (Vec<T>, Option<i64>) {
        let more = read.len() > self.limit as usize;
        read.truncate(self.limit as usize);
        let next = read.last().filter(|_| more).map(Numbered::number);
        (read, next)
    }

    /// The same as a page.
    pub(crate) fn page<T: Numbered + ToSchema>(self, read: Vec<T>) -> axum::Json<Page<T>> {
        let (items, next) = self.cut(read);
        axum::Json(Page { items, next_cursor: next.map(|number| cursor(&number.to_string())) })
    }
}

/// A page of a list that is held whole, in an order that does not change.
pub(crate) fn slice<T: ToSchema>(
    items: Vec<T>,
    paging: &Paging,
    id: impl Fn(&T) -> &str,
) -> Result<axum::Json<Page<T>>, Problem> {
    let limit = paging.limit()? as usize;
    let start = match paging.after_id()? {
        None => 0,
        Some(after) => items.iter().position(|item| id(item) == after).ok_or_else(bad_cursor)? + 1,
    };
    let more = items.len() > start + limit;
    let items: Vec<T> = items.into_iter().skip(start).take(limit).collect();
    let next_cursor = items.last().filter(|_| more).map(|last| cursor(id(last)));
    Ok(axum::Json(Page { items, next_cursor }))
}

/// The cursor that stands for an id.
pub(crate) fn cursor(id: &str) -> String {
    BASE64URL_NOPAD.encode(id.as_bytes())
}
