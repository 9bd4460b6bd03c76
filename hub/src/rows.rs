//! What the modules over the tables share: new row ids, text that a column takes, statements over many rows, columns that say one of few things, errors on one line.

use std::str::FromStr;

use protocol::{SessionId, Timestamp};
use store::sqlx::any::{Any, AnyArguments, AnyRow};
use store::sqlx::query::Query;
use store::sqlx::{self, AssertSqlSafe};
use store::{StoreError, Transaction};

/// A UUIDv7 as hyphenated text.
pub(crate) fn uuid(now: Timestamp) -> String {
    SessionId::new(now, rand::random()).to_string()
}

/// What a node says, as a column of text takes it on both engines: PostgreSQL has no text with the character U+0000.
pub(crate) fn text(said: &str) -> String {
    said.replace('\0', "\u{fffd}")
}

/// What follows a SELECT whose rows are kept from others until the transaction ends. SQLite has one writer, who holds
/// the whole file.
pub(crate) fn for_update(transaction: &Transaction) -> &'static str {
    match transaction.backend_name() {
        "PostgreSQL" => " FOR NO KEY UPDATE",
        _ => "",
    }
}

/// What a column of text says, where only the hub itself has written it.
///
/// # Errors
/// The column says something else: the row is damaged, or of a later version.
pub(crate) fn parsed<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    text: String,
) -> Result<T, sqlx::Error> {
    text.parse().map_err(|error: T::Err| sqlx::Error::Decode(error.into()))
}

/// An error and its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !line.ends_with(&cause_text) {
            line.push_str(": ");
            line.push_str(&cause_text);
        }
        source = cause.source();
    }
    line
}

/// An insert of many rows.
#[derive(Clone, Copy)]
pub(crate) struct Insert {
    /// Table and columns.
    pub(crate) into: &'static str,
    /// How many columns.
    pub(crate) columns: usize,
    /// What follows ON CONFLICT, and perhaps RETURNING; empty: a conflict is an error.
    pub(crate) on_conflict: &'static str,
}

/// Rows in one statement: with 9 columns, 1,152 values, far below SQLite's 32,766 and PostgreSQL's 65,535.
const AT_ONCE: usize = 128;

/// A statement and its values.
pub(crate) type Bound<'q> = Query<'q, Any, AnyArguments>;

/// Inserts `rows`, many by each statement, and returns what the statements return.
pub(crate) async fn write<T>(
    transaction: &mut Transaction,
    insert: Insert,
    rows: &[T],
    bind: impl for<'q> Fn(Bound<'q>, &T) -> Bound<'q>,
) -> Result<Vec<AnyRow>, StoreError> {
    let mut returned = Vec::new();
    for part in parts(rows) {
        let placeholders = placeholders(part.len(), insert.columns);
        let mut sql = format!("INSERT INTO {} VALUES {placeholders}", insert.into);
        if !insert.on_conflict.is_empty() {
            sql.push_str(" ON CONFLICT ");
            sql.push_str(insert.on_conflict);
        }
        let query = part.iter().fold(sqlx::query(AssertSqlSafe(sql)), &bind);
        returned.append(&mut query.fetch_all(&mut **transaction).await?);
    }
    Ok(returned)
}

/// `rows` in parts for a statement each. Powers of two: few different statements, each prepared once.
pub(crate) fn parts<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let (part, more) = rows.split_at_checked(AT_ONCE.min(1 << rows.len().checked_ilog2()?))?;
        rows = more;
        Some(part)
    })
}

/// `$7, $8, …`: placeholders for `columns` values, from this one on.
pub(crate) fn placeholders_from(first: usize, columns: usize) -> String {
    let numbers: Vec<String> = (first..first + columns).map(|number| format!("${number}")).collect();
    numbers.join(", ")
}

/// `($1, $2), ($3, $4), …`: placeholders for `rows` rows of `columns` values.
pub(crate) fn placeholders(rows: usize, columns: usize) -> String {
    let mut out = String::with_capacity(rows * columns * 6);
    for row in 0..rows {
        for column in 0..columns {
            out.push_str(if column > 0 {
                ", "
            } else if row > 0 {
                "), ("
            } else {
                "("
            });
            out.push('$');
            out.push_str(&(row * columns + column + 1).to_string());
        }
    }
    out.push(')');
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn placeholders_count_on_across_rows() {
        assert_eq!(super::placeholders(1, 2), "($1, $2)");
        assert_eq!(super::placeholders(2, 3), "($1, $2, $3), ($4, $5, $6)");
    }
}
