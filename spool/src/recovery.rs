//! What was found when a spool was opened.

use std::fmt;
use std::path::PathBuf;

use crate::lost::LostRange;

/// What was found when a spool was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Why a fresh epoch was begun in a directory that already held something.
    pub fresh_epoch: Option<String>,
    /// The cursor file was unreadable and was made anew from the segments: what was acknowledged is sent again.
    pub cursor_rebuilt: bool,
    /// Bytes cut off the end of the newest segment: a write that a crash interrupted, or damage there.
    pub torn_bytes: u64,
    /// Files that could not be used and were renamed.
    pub quarantined: Vec<PathBuf>,
    /// Everything that is lost and was not acknowledged before, old news included.
    pub lost: Vec<LostRange>,
    /// What of it the cursor knew.
    pub known: Vec<LostRange>,
    /// Records not acknowledged and not lost.
    pub pending: u64,
    /// Records read while opening: those of the newest segment, however large the backlog is.
    pub scanned_records: u64,
    /// Bytes read while opening.
    pub read_bytes: u64,
}

impl Recovery {
    /// Whether everything was as it should be.
    pub fn is_clean(&self) -> bool {
        let Self { fresh_epoch, cursor_rebuilt, torn_bytes, quarantined, lost, .. } = self;
        fresh_epoch.is_none() && !cursor_rebuilt && *torn_bytes == 0 && quarantined.is_empty() && lost.is_empty()
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records waiting", self.pending)?;
        if let Some(why) = &self.fresh_epoch {
            write!(f, "; began a fresh epoch: {why}")?;
        }
        if self.cursor_rebuilt {
            write!(f, "; made the cursor anew from the segments")?;
        }
        if self.torn_bytes > 0 {
            write!(f, "; cut off {} unreadable bytes at the end", self.torn_bytes)?;
        }
        for path in &self.quarantined {
            write!(f, "; set aside {}", path.display())?;
        }
        for range in &self.lost {
            write!(f, "; lost {range}")?;
        }
        Ok(())
    }
}
