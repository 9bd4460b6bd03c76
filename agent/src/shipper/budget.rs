//! How much of a container's log is shipped: so many lines and bytes a second, by the times at which they were written.

/// Lines and bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) lines: u32,
    pub(crate) bytes: u64,
}

/// Seconds' worth that may come at once.
const BURST: f64 = 4.0;
/// A line that is so much older than the one before, in ns, was written after the clock was set back. Those of a container's two
/// streams overtake each other by less.
const SET_BACK: i64 = 5_000_000_000;

/// One container's budget. Counted by the lines' own times, it leaves out the same lines however late they are read: an
/// agent that was away takes all that a calm container wrote meanwhile.
#[derive(Debug)]
pub(super) struct Budget {
    rate: Rate,
    lines: f64,
    bytes: f64,
    /// When the newest line was written, in ns, by the clock as it is now.
    at: i64,
    /// Used up: nothing is admitted before half of it is there again, so that what is left out stands together.
    spent: bool,
}

impl Budget {
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            rate,
            lines: f64::from(rate.lines) * BURST,
            bytes: rate.bytes as f64 * BURST,
            at: i64::MIN,
            spent: false,
        }
    }

    /// Whether a line of so many bytes, written then, may be shipped.
    pub(super) fn admits(&mut self, at: i64, bytes: usize) -> bool {
        let (most_lines, most_bytes) = (f64::from(self.rate.lines) * BURST, self.rate.bytes as f64 * BURST);
        let seconds = at.saturating_sub(self.at).max(0) as f64 / 1e9;
        if at > self.at || at < self.at.saturating_sub(SET_BACK) {
            self.at = at;
        }
        self.lines = (self.lines + f64::from(self.rate.lines) * seconds).min(most_lines);
        self.bytes = (self.bytes + self.rate.bytes as f64 * seconds).min(most_bytes);
        if self.spent && (self.lines < most_lines / 2.0 || self.bytes < most_bytes / 2.0) {
            return false;
        }
        // A line longer than all that may come at once takes all of it.
        let bytes = (bytes as f64).min(most_bytes);
        self.spent = self.lines < 1.0 || self.bytes < bytes;
        if !self.spent {
            self.lines -= 1.0;
            self.bytes -= bytes;
        }
        !self.spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_calm_log_is_shipped_whole_and_a_loud_one_up_to_its_rate() {
        let rate = Rate { lines: 100, bytes: 1 << 20 };
        let mut calm = Budget::new(rate);
        assert!((0..10_000).all(|line| calm.admits(line * SECOND / 100, 80)));
        let mut loud = Budget::new(rate);
        let shipped = (0..100_000).filter(|line| loud.admits(line * SECOND / 10_000, 80)).count();
        // What may come at once, and ten seconds' worth.
        assert!((1_200..=1_400).contains(&shipped), "{shipped}");
        // It is calm again.
        assert!((0..100).all(|line| loud.admits((20 + line) * SECOND, 80)));
    }

    #[test]
    fn what_is_left_out_stands_together() {
        let mut loud = Budget::new(Rate { lines: 100, bytes: 1 << 20 });
        let admitted: Vec<bool> = (0..100_000).map(|line| loud.admits(line * SECOND / 10_000, 80)).collect();
        let gaps = admitted.windows(2).filter(|pair| pair[0] && !pair[1]).count();
        assert!(gaps <= 6, "{gaps} gaps in ten seconds");
    }

    #[test]
    fn bytes_count_too_and_a_line_that_is_too_long_is_not_lost_for_ever() {
        let mut budget = Budget::new(Rate { lines: 1_000, bytes: 1_000 });
        assert!(budget.admits(0, 3_900));
        assert!(!budget.admits(0, 200));
        assert!(budget.admits(10 * SECOND, 8_192));
    }

    #[test]
    fn a_clock_that_is_set_back_gives_nothing_and_takes_nothing() {
        let mut budget = Budget::new(Rate { lines: 1, bytes: 1_000 });
        assert!((0..4).all(|_| budget.admits(100 * SECOND, 1)));
        assert!(!budget.admits(50 * SECOND, 1));
        assert!(!budget.admits(51 * SECOND, 1));
        assert!(budget.admits(54 * SECOND, 1));
        // For a calm log, nothing has happened.
        let mut calm = Budget::new(Rate { lines: 10, bytes: 1 << 20 });
        assert!((0..10).all(|line| calm.admits(1_000 * SECOND + line * SECOND / 10, 80)));
        assert!((0..1_000).all(|line| calm.admits(line * SECOND, 80)));
    }

    #[test]
    fn streams_that_overtake_each_other_give_nothing() {
        let mut budget = Budget::new(Rate { lines: 1, bytes: 1 << 20 });
        let shipped = (0..1_000).filter(|line| budget.admits((100 + 2 * (line % 2)) * SECOND, 1)).count();
        assert!(shipped <= 6, "{shipped} of what may come at once and two seconds' worth");
    }
}
