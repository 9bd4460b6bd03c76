//! What can go wrong with a database, sorted by what a person has to do about it.

use sqlx::Error as SqlxError;

use crate::migrate::MigrateError;

/// A database operation that failed. Nothing of its transaction was kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL names no database this build can open.
    #[error("{url:?} is not a database this hub can use: write sqlite:///path/to/file or postgres://user@host/name")]
    Url {
        /// The URL, without its password.
        url: String,
    },
    /// The database could not be opened.
    #[error("the database {location} could not be opened: {advice}")]
    Open {
        /// Where it is, without a password.
        location: String,
        /// What to look at.
        advice: &'static str,
        /// The engine's words.
        #[source]
        source: SqlxError,
    },
    /// The engine has no room left. Writing works again as soon as there is some.
    #[error("the database has no room left: free space on its disk, and a hub that runs goes on by itself")]
    Full(#[source] SqlxError),
    /// The engine does not answer. The handle reconnects by itself.
    #[error("the database does not answer: see that it runs and can be reached, and a hub that runs goes on by itself")]
    Unavailable(#[source] SqlxError),
    /// The file is damaged, or is no database at all.
    #[error("the database is damaged: stop the hub, keep a copy of the file, and restore it from its backup")]
    Damaged(#[source] SqlxError),
    /// The engine refused the statement: a constraint, or a defect in the statement.
    #[error("the database refused a statement")]
    Statement(#[source] SqlxError),
    /// What was to be written could not be made.
    #[error(transparent)]
    Act(Box<dyn std::error::Error + Send + Sync>),
    /// The tables do not fit this binary.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
}

impl StoreError {
    /// Whether the same statement may succeed later, unchanged: the disk is full or the database is away.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Unavailable(_))
    }

    /// Whether a row with this key is there already.
    pub fn is_duplicate(&self) -> bool {
        match self {
            Self::Statement(SqlxError::Database(error)) => error.is_unique_violation(),
            _ => false,
        }
    }

    /// Whether the engine refused what was to be written, such as a value it does not take or a row that breaks a constraint:
    /// another row may be written, and this one never.
    pub fn is_about_row(&self) -> bool {
        match self {
            Self::Statement(SqlxError::Database(error)) => is_about_row(error.code().as_deref()),
            _ => false,
        }
    }
}

impl From<SqlxError> for StoreError {
    fn from(error: SqlxError) -> Self {
        match &error {
            SqlxError::Database(refused) => match class(refused.code().as_deref()) {
                Class::Full => Self::Full(error),
                Class::Away => Self::Unavailable(error),
                Class::Damaged => Self::Damaged(error),
                Class::Refused => Self::Statement(error),
            },
            SqlxError::Io(cause) if cause.kind() == std::io::ErrorKind::StorageFull => Self::Full(error),
            SqlxError::Io(_)
            | SqlxError::Tls(_)
            | SqlxError::PoolTimedOut
            | SqlxError::PoolClosed
            | SqlxError::WorkerCrashed => Self::Unavailable(error),
            _ => Self::Statement(error),
        }
    }
}

/// Whether the engine says that the file is damaged or no database.
pub(crate) fn is_damage(error: &SqlxError) -> bool {
    matches!(error, SqlxError::Database(refused) if class(refused.code().as_deref()) == Class::Damaged)
}

/// Whether the engine has gone away from a connection.
pub(crate) fn is_away(error: &SqlxError) -> bool {
    match error {
        SqlxError::Io(_) => true,
        SqlxError::Database(refused) => class(refused.code().as_deref()) == Class::Away,
        _ => false,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Class {
    Full,
    Away,
    Damaged,
    Refused,
}

/// SQLite's extended result codes are decimal numbers whose low byte is the primary code (sqlite.org/rescode.html);
/// PostgreSQL's are five characters whose first two are the class (PostgreSQL manual, appendix A).
fn class(code: Option<&str>) -> Class {
    let Some(code) = code else { return Class::Refused };
    if code.len() == 5 {
        return match (code, code.get(..2)) {
            ("53100", _) => Class::Full,
            // data_corrupted, index_corrupted.
            ("XX001" | "XX002", _) => Class::Damaged,
            ("25006", _) | (_, Some("08" | "53" | "57" | "58")) => Class::Away,
            _ => Class::Refused,
        };
    }
    match code.parse::<u32>().map(|code| code & 0xff) {
        // SQLITE_FULL.
        Ok(13) => Class::Full,
        // SQLITE_CORRUPT, NOTADB.
        Ok(11 | 26) => Class::Damaged,
        // SQLITE_BUSY, LOCKED, READONLY, IOERR, CANTOPEN.
        Ok(5 | 6 | 8 | 10 | 14) => Class::Away,
        _ => Class::Refused,
    }
}

fn is_about_row(code: Option<&str>) -> bool {
    match code {
        // Data exception, integrity constraint violation, and program_limit_exceeded: it is too long for an index.
        Some(code) if code.len() == 5 => matches!(code.get(..2), Some("22" | "23")) || code == "54000",
        // SQLITE_TOOBIG, CONSTRAINT, MISMATCH.
        Some(code) => code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 18..=20)),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_codes_are_sorted_by_what_to_do() {
        let cases = [
            (Some("13"), Class::Full),
            (Some("53100"), Class::Full),
            (Some("5"), Class::Away),
            // SQLITE_IOERR_WRITE and SQLITE_BUSY_SNAPSHOT.
            (Some("778"), Class::Away),
            (Some("517"), Class::Away),
            (Some("11"), Class::Damaged),
            // SQLITE_CORRUPT_INDEX.
            (Some("779"), Class::Damaged),
            (Some("26"), Class::Damaged),
            (Some("XX001"), Class::Damaged),
            (Some("57P01"), Class::Away),
            (Some("08006"), Class::Away),
            // SQLITE_CONSTRAINT_UNIQUE, unique_violation, syntax_error.
            (Some("2067"), Class::Refused),
            (Some("23505"), Class::Refused),
            (Some("42601"), Class::Refused),
            (None, Class::Refused),
        ];
        for (code, expected) in cases {
            assert_eq!(class(code), expected, "{code:?}");
        }
    }

    #[test]
    fn what_is_about_the_row_is_told_from_what_is_about_the_database() {
        // SQLITE_CONSTRAINT_FOREIGNKEY, SQLITE_TOOBIG, character_not_in_repertoire, foreign_key_violation.
        for code in ["787", "18", "22021", "23503", "54000"] {
            assert!(is_about_row(Some(code)), "{code}");
        }
        // SQLITE_ERROR, NOMEM, deadlock_detected, serialization_failure, insufficient_privilege, undefined_table.
        for code in ["1", "7", "40P01", "40001", "42501", "42P01"] {
            assert!(!is_about_row(Some(code)), "{code}");
        }
        assert!(!is_about_row(None));
    }
}
