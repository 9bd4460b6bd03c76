//! Lines of logs that are kept.

use protocol::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::logs::search::Line;

/// A line of a log, or a count of lines that were left out.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct KeptLine {
    /// When it was written, by the clock of the node's engine: RFC 3339 with nanoseconds.
    pub at: String,
    /// Whose it is.
    pub tenant: String,
    /// The node's id.
    pub node: String,
    /// Compose project.
    pub stack: String,
    /// Compose service.
    pub service: String,
    /// Compose's number of the container.
    pub number: i64,
    /// Where it was written to: `stdout` or `stderr`.
    pub stream: &'static str,
    /// Without the end of the line. What is not UTF-8 in it is replaced.
    pub text: String,
    /// Bytes cut off its end: it has 8 KiB at most.
    pub cut: i64,
    /// Not 0: no line, but so many that the node left out because they were too many, written from `at` until `until`.
    pub dropped: i64,
    /// See `dropped`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

impl From<Line> for KeptLine {
    fn from(line: Line) -> Self {
        Self {
            at: time(line.place.at),
            tenant: line.tenant,
            node: line.node,
            stack: line.stack,
            service: line.service,
            number: line.number,
            stream: if line.error { "stderr" } else { "stdout" },
            text: line.text,
            cut: line.cut,
            dropped: line.dropped,
            until: (line.dropped > 0).then(|| time(line.until)),
        }
    }
}

/// RFC 3339 with nanoseconds.
fn time(nanos: i64) -> String {
    let at = Timestamp::from_millis(nanos.div_euclid(1_000_000)).to_string();
    format!("{}{:06}Z", at.trim_end_matches('Z'), nanos.rem_euclid(1_000_000))
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_have_nanoseconds() {
        assert_eq!(super::time(1_795_435_200_123_456_789), "2026-11-23T12:00:00.123456789Z");
        assert_eq!(super::time(-1), "1969-12-31T23:59:59.999999999Z");
    }
}
