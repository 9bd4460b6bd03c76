//! Where a spool is and how large it may become.

use std::path::PathBuf;

use crate::error::SpoolError;
use crate::segment::PAGE;

/// Smallest segment: one page of records.
const MIN_SEGMENT: u64 = PAGE;
/// Largest segment: it is what is lost at once when all room is used.
const MAX_SEGMENT: u64 = 1 << 30;
/// Most bytes that wait in memory for a sync, unless told otherwise.
const GROUP: usize = 1 << 20;
/// Fewest segments: one written, one spare, two of backlog, so that dropping the oldest leaves something.
const MIN_SEGMENTS: u64 = 4;

/// Where a spool is and how large it may become.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory; it is created when it does not exist, and holds nothing else.
    pub directory: PathBuf,
    /// Most bytes the directory may take, segments, spares and quarantined files together.
    pub capacity_bytes: u64,
    /// Size of one segment, the unit in which room is taken, given back and, when all is full, lost.
    pub segment_bytes: u64,
    /// Bytes kept allocated at all times, so that a disk filled by others does not stop the spool at once. The
    /// segment being written counts.
    pub reserve_bytes: u64,
    /// Most bytes that wait in memory for a sync; half of it is the longest record that is taken.
    pub group_bytes: usize,
    /// What gives way when all room is used.
    pub overflow: Overflow,
    /// Bytes of the disk that are left to others: once the spool has its reserve, all its room is used when there are no more
    /// than these.
    pub leave_bytes: u64,
}

/// What gives way when a spool's capacity is used up, or its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The oldest segment; with a full disk the new record. Both are lost, and reported as lost.
    #[default]
    DropOldest,
    /// The oldest segment; with a full disk nothing: the new record is refused, as [`Self::Refuse`] does.
    OldestOrRefuse,
    /// The new record: it is lost, and reported as lost.
    DropNewest,
    /// Nothing: the new record is refused and uses up no number. Its sender keeps it, and tries again when some of the
    /// backlog is acknowledged, or the disk has room.
    Refuse,
}

impl Options {
    /// A spool of `capacity_bytes` in segments of a sixteenth of it (64 KiB to 16 MiB), with two of them in reserve, that
    /// drops the oldest when it is full.
    pub fn new(directory: impl Into<PathBuf>, capacity_bytes: u64) -> Self {
        let segment_bytes = (capacity_bytes / 16 / PAGE * PAGE).clamp(64 << 10, 16 << 20);
        Self {
            directory: directory.into(),
            capacity_bytes,
            segment_bytes,
            reserve_bytes: 2 * segment_bytes,
            group_bytes: GROUP,
            overflow: Overflow::DropOldest,
            leave_bytes: 0,
        }
    }

    /// Refuses sizes that cannot work.
    pub(crate) fn check(&self) -> Result<(), SpoolError> {
        let Self { capacity_bytes, segment_bytes, reserve_bytes, .. } = *self;
        let wrong = |text| Err(SpoolError::Options(text));
        if !(MIN_SEGMENT..=MAX_SEGMENT).contains(&segment_bytes) || segment_bytes % PAGE != 0 {
            return wrong(format!(
                "a segment of {segment_bytes} bytes is not a multiple of {PAGE} up to {MAX_SEGMENT}"
            ));
        }
        if capacity_bytes < MIN_SEGMENTS * segment_bytes {
            return wrong(format!(
                "{capacity_bytes} bytes hold less than {MIN_SEGMENTS} segments of {segment_bytes}; give it more"
            ));
        }
        if reserve_bytes > capacity_bytes / 2 {
            return wrong(format!("a reserve of {reserve_bytes} bytes is over half of {capacity_bytes}"));
        }
        Ok(())
    }

    /// Spare segments to keep beside the one being written.
    pub(crate) fn spares(&self) -> usize {
        usize::try_from(self.reserve_bytes.div_ceil(self.segment_bytes).saturating_sub(1)).unwrap_or(usize::MAX)
    }

    /// Longest record, in bytes: two have to fit a segment, and a group.
    pub fn max_record(&self) -> usize {
        let segment = usize::try_from(self.segment_bytes / 2 - PAGE / 8).unwrap_or(usize::MAX);
        segment.min(self.group_bytes / 2)
    }

    /// Bytes after which a segment takes no more deltas; the last eighth makes it rare that one does not fit before.
    pub(crate) fn full_at(&self) -> u64 {
        self.segment_bytes / 8 * 7
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_fit_together() {
        for capacity in [1 << 20, 5_000_000, 64 << 20, 10 << 30] {
            let options = Options::new("/x", capacity);
            assert!(options.check().is_ok(), "{options:?}");
            assert_eq!(options.spares(), 1);
        }
    }

    #[test]
    fn sizes_that_cannot_work_are_refused() {
        let good = Options::new("/x", 64 << 20);
        assert!(Options { segment_bytes: 0, ..good.clone() }.check().is_err());
        assert!(Options { segment_bytes: 5000, ..good.clone() }.check().is_err());
        assert!(Options { segment_bytes: 32 << 20, ..good.clone() }.check().is_err());
        assert!(Options { reserve_bytes: 60 << 20, ..good }.check().is_err());
        assert!(Options::new("/x", 1000).check().is_err());
    }
}
