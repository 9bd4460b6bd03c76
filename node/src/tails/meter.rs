//! How much of a log that is written now a tail takes.

use std::time::Duration;

use tokio::time::Instant;

/// Lines and bytes are counted anew this often.
const WINDOW: Duration = Duration::from_millis(250);
/// Lines within a window: 2,000 a second are more than anybody reads.
pub(super) const LINES: usize = 500;
/// Bytes within a window: 256 KiB a second, which leaves most of a slow line to everything else.
pub(super) const BYTES: usize = 64 * 1024;

/// Counts one tail's lines. What comes after one that was too many in a window is too many as well, so that what is left
/// out stands together.
#[derive(Debug)]
pub(super) struct Meter {
    until: Instant,
    lines: usize,
    bytes: usize,
}

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self { until: now + WINDOW, lines: LINES, bytes: BYTES }
    }

    /// Whether a line of so many bytes may still be taken.
    pub(super) fn admits(&mut self, bytes: usize, now: Instant) -> bool {
        if now >= self.until {
            *self = Self::new(now);
        }
        if self.lines == 0 || self.bytes < bytes {
            self.lines = 0;
            return false;
        }
        self.lines -= 1;
        self.bytes -= bytes;
        true
    }
}
