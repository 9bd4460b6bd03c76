//! Why the spool could not do what was asked.

use std::io;
use std::path::PathBuf;

/// A spool that could not be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The sizes make no sense together.
    #[error("the spool cannot work with these sizes: {0}")]
    Options(String),
    /// The directory cannot be created or written.
    #[error("cannot write to the spool directory {path}: make it writable for the user this program runs as, or name another state directory", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process has the spool open.
    #[error("another process has the spool directory {path} open: stop it, or name another state directory", path = path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// All the room the spool may take is used, and it drops nothing.
    #[error("the spool holds as much as it may, {capacity} bytes: it takes more when some is acknowledged")]
    Full {
        /// Bytes it may take.
        capacity: u64,
    },
    /// The disk is full.
    #[error("the disk that holds the spool directory {path} is full: free some space; writing goes on by itself", path = path.display())]
    NoSpace {
        /// The directory.
        path: PathBuf,
    },
    /// The next record has to be a key: it begins a segment, or follows a loss.
    #[error("the next record has to be a key record, as needs_key() says")]
    NeedsKey,
    /// The spool was opened to be looked at.
    #[error("this spool is only looked at: nothing is written to it")]
    LookedAt,
    /// Another thread is making records durable, and this would have to, too.
    #[error("a sync is under way in another thread: try again after it")]
    Syncing,
    /// The record is larger than a segment takes.
    #[error("a record of {length} bytes is over the spool's limit of {limit}")]
    TooLarge {
        /// Bytes of the record.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The other side has numbers this spool has not given out: its directory was put back to an earlier state.
    /// Numbering goes on after `through`; what was pending is not told apart from what the other side has.
    #[error(
        "record {through} was acknowledged but the last one here is {last}: the spool directory was restored to an earlier state; going on after {through}"
    )]
    Ahead {
        /// The number acknowledged.
        through: u64,
        /// The last number given out here.
        last: u64,
    },
    /// The file system failed.
    #[error("cannot {doing} {path}: check the disk and its file system", path = path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
