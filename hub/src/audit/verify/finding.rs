//! What a verification can find, and what each means.

use std::fmt;

use super::super::chain::Head;

/// Something in a log that should not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A row or a line is no entry.
    Unreadable {
        /// Which.
        place: String,
        /// Why.
        why: String,
    },
    /// A field is not what was hashed.
    Altered {
        /// The entry.
        id: i64,
    },
    /// An entry does not follow the one before it.
    Broken {
        /// The entry.
        id: i64,
    },
    /// Entries are not there.
    Missing {
        /// The first.
        first: i64,
        /// The last.
        last: i64,
    },
    /// An entry stands after a newer one, or twice.
    OutOfOrder {
        /// The entry.
        id: i64,
        /// The one before it.
        after: i64,
    },
    /// The database's own head is not the newest entry.
    Head {
        /// What `audit_head` says.
        head: Head,
        /// The newest entry.
        last: Head,
    },
    /// A published head lies beyond the end.
    Cut {
        /// Its number.
        published: i64,
        /// The newest entry.
        last: i64,
    },
    /// An entry is not the one that was published.
    Rewritten {
        /// What was published.
        published: Head,
    },
    /// An exported event says something else than its entry.
    Differs {
        /// The entry.
        id: i64,
    },
    /// A certificate was never logged.
    Unlogged {
        /// Which.
        what: String,
        /// SHA-256 of it, in hexadecimal.
        sha256: String,
    },
    /// A row says something else of a certificate than the certificate does.
    Mislabelled {
        /// Which.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// A logged certificate is not there any more.
    Gone {
        /// The entry of its issuance.
        entry: i64,
        /// Its serial number.
        serial: String,
    },
}

impl Finding {
    /// The entry it is about.
    pub fn entry(&self) -> Option<i64> {
        match self {
            Self::Altered { id } | Self::Broken { id } | Self::OutOfOrder { id, .. } | Self::Differs { id } => {
                Some(*id)
            }
            Self::Missing { first, .. } => Some(*first),
            Self::Head { last, .. } => Some(last.id),
            Self::Cut { published, .. } => Some(*published),
            Self::Rewritten { published } => Some(published.id),
            Self::Gone { entry, .. } => Some(*entry),
            Self::Unreadable { .. } | Self::Unlogged { .. } | Self::Mislabelled { .. } => None,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { place, why } => write!(f, "{place}: can't be read as an entry: {why}"),
            Self::Altered { id } => {
                write!(f, "entry {id}: altered: its fields do not give its hash")
            }
            Self::Broken { id } => write!(
                f,
                "entry {id}: does not follow the entry before it: one of the two was replaced, or entries between \
                 them were taken out"
            ),
            Self::Missing { first, last } if first == last => write!(f, "entry {first}: missing: it was removed"),
            Self::Missing { first, last } => write!(f, "entries {first} to {last}: missing: they were removed"),
            Self::OutOfOrder { id, after } => {
                write!(f, "entry {id}: stands after entry {after}: it was moved, or copied")
            }
            Self::Head { head, last } if head.id > last.id => write!(
                f,
                "entries {} to {}: missing at the end: the database counts up to {}, so the newest were cut off",
                last.id + 1,
                head.id,
                head.id
            ),
            Self::Head { head, last } => write!(
                f,
                "entry {}: the newest, with hash {}, but the database's head is {head}: entries were added or \
                 replaced behind its back",
                last.id, last.hash
            ),
            Self::Cut { published, last } => write!(
                f,
                "entry {published}: was published as a head, but the log ends at {last}: the newest were cut off, or \
                 this is an older copy"
            ),
            Self::Rewritten { published } => write!(
                f,
                "entry {}: published with hash {}, which it has not now: it, or one before it, was rewritten",
                published.id, published.hash
            ),
            Self::Differs { id } => write!(
                f,
                "entry {id}: its event says something else than the entry under `unmapped`: the event was altered, \
                 or is of another version of the hub"
            ),
            Self::Unlogged { what, sha256 } => {
                write!(
                    f,
                    "{what}: never logged: no entry names SHA-256 {sha256}, so it was not issued by this log's hub"
                )
            }
            Self::Mislabelled { what, why } => write!(f, "{what}: {why}"),
            Self::Gone { entry, serial } => write!(
                f,
                "entry {entry}: certificate {serial} was issued and has not ended, but is not in the database: it was \
                 removed"
            ),
        }
    }
}
