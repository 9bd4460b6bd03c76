//! Keeps what is sent below a rate, so that a backlog leaves room on the line for others, and says who of several goes first.

use std::time::{Duration, Instant};

use serde::Deserialize;

/// At most what may be sent at once after a pause is what the rate gives in this time.
const BURST: Duration = Duration::from_millis(100);

/// Who goes first when the rate is not enough for all. Within a class all goes in the order in which it came.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum CatchUp {
    /// Nobody: each class with something to send has its share.
    #[default]
    Strict,
    /// Classes that are live; one that is behind has what they leave.
    LiveFirst,
}

/// A rate, and what of it is used up.
#[derive(Debug)]
pub struct Pace {
    catch_up: CatchUp,
    /// Bytes a second; none is no limit.
    rate: Option<f64>,
    /// Bytes that may be sent; below zero, what was sent ahead of its time.
    left: f64,
    since: Instant,
}

impl Pace {
    /// One of so many bytes a second, or without a limit.
    pub fn new(bytes_per_second: Option<u64>, catch_up: CatchUp, now: Instant) -> Self {
        let rate = bytes_per_second.map(|rate| rate.max(1) as f64);
        Self { catch_up, rate, left: rate.map_or(0.0, burst), since: now }
    }

    /// Whether a record may be sent now. A large one may be as soon as anything may; what comes after waits the longer.
    /// `is_behind` is asked when it matters.
    pub fn is_open(&mut self, now: Instant, is_behind: impl FnOnce() -> bool) -> bool {
        let Some(rate) = self.rate else { return true };
        let gained = rate * now.saturating_duration_since(self.since).as_secs_f64();
        self.left = (self.left + gained).min(burst(rate));
        self.since = self.since.max(now);
        // Whoever is live takes what comes in before there is so much of it.
        let reserve = if self.catch_up == CatchUp::LiveFirst && is_behind() { burst(rate) / 2.0 } else { 0.0 };
        self.left > reserve
    }

    /// So many bytes are sent.
    pub fn spend(&mut self, bytes: usize) {
        self.left -= bytes as f64;
    }
}

fn burst(rate: f64) -> f64 {
    rate * BURST.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes sent in so many milliseconds by who always has records of this size, and asks each millisecond.
    fn sent(rate: Option<u64>, record: usize, milliseconds: u64) -> usize {
        let begun = Instant::now();
        let (mut pace, mut sent) = (Pace::new(rate, CatchUp::Strict, begun), 0);
        for passed in 0..milliseconds {
            let now = begun + Duration::from_millis(passed);
            for _ in 0..1000 {
                if !pace.is_open(now, || true) {
                    break;
                }
                pace.spend(record);
                sent += record;
            }
        }
        sent
    }

    #[test]
    fn what_is_sent_keeps_to_the_rate_whatever_the_records_size() {
        for record in [10, 1_000, 150_000] {
            let sent = sent(Some(100_000), record, 10_000);
            assert!((1_000_000..=1_010_000 + record).contains(&sent), "{record}: {sent}");
        }
        assert_eq!(sent(None, 10, 10), 100_000);
    }

    #[test]
    fn a_pause_gives_no_more_than_a_burst() {
        let begun = Instant::now();
        let mut pace = Pace::new(Some(1_000), CatchUp::Strict, begun);
        let mut open = |seconds| pace.is_open(begun + Duration::from_secs(seconds), || true);
        assert!(open(3600));
        pace.spend(100);
        let mut open = |seconds| pace.is_open(begun + Duration::from_secs(seconds), || true);
        assert!(!open(3600) && open(3601));
    }

    #[test]
    fn who_is_live_goes_before_who_is_behind_and_leaves_it_the_rest() {
        let share = |catch_up, live_every: u64| {
            let begun = Instant::now();
            let (mut pace, mut live, mut behind) = (Pace::new(Some(100_000), catch_up, begun), 0, 0);
            for passed in 0..10_000 {
                let now = begun + Duration::from_millis(passed);
                // The one that is behind always asks first.
                if pace.is_open(now, || true) {
                    pace.spend(1000);
                    behind += 1;
                }
                if passed % live_every == 0 && pace.is_open(now, || false) {
                    pace.spend(1000);
                    live += 1;
                }
            }
            (live, behind)
        };
        // Live ones would take all of it, or a third.
        let (live, behind) = share(CatchUp::LiveFirst, 1);
        assert!(live > 990 && behind < 10, "{live} {behind}");
        let (live, behind) = share(CatchUp::LiveFirst, 30);
        assert!(live > 330 && behind > 660, "{live} {behind}");
        let (live, behind) = share(CatchUp::Strict, 1);
        assert!(behind > 400, "{live} {behind}");
    }
}
