//! What the modules over the tables share: new row ids, statements over many rows, errors on one line.

use protocol::{SessionId, Timestamp};

/// A UUIDv7 as hyphenated text.
pub(crate) fn uuid(now: Timestamp) -> String {
    SessionId::new(now, rand::random()).to_string()
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
