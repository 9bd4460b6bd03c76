//! New ids for rows that are not on the wire.

use protocol::{SessionId, Timestamp};

/// A UUIDv7 as hyphenated text.
pub(crate) fn uuid(now: Timestamp) -> String {
    SessionId::new(now, rand::random()).to_string()
}
