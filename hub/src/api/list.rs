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

    /// The number behind the cursor, for lists that are ordered by one.
    pub(crate) fn before(&self) -> Result<Option<i64>, Problem> {
        self.after_id()?.map(|id| id.parse().map_err(|_| bad_cursor())).transpose()
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

/// The cursor that stands for an id.
pub(crate) fn cursor(id: &str) -> String {
    BASE64URL_NOPAD.encode(id.as_bytes())
}

/// A page of a list that holds one item more than asked for, when there are more.
pub(crate) fn page<T: ToSchema>(mut items: Vec<T>, limit: u32, id: impl Fn(&T) -> String) -> Page<T> {
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    let next_cursor = items.last().filter(|_| more).map(|last| cursor(&id(last)));
    Page { items, next_cursor }
}

/// A page of a list that is held whole, in an order that does not change.
pub(crate) fn slice<T: ToSchema>(
    items: Vec<T>,
    paging: &Paging,
    id: impl Fn(&T) -> String,
) -> Result<Page<T>, Problem> {
    let limit = paging.limit()?;
    let start = match paging.after_id()? {
        None => 0,
        Some(after) => items.iter().position(|item| id(item) == after).ok_or_else(bad_cursor)? + 1,
    };
    Ok(page(items.into_iter().skip(start).take(limit as usize + 1).collect(), limit, id))
}
