//! Keeps what is sent below a rate, so that a backlog leaves room on the line for others.

use std::time::{Duration, Instant};

/// At most what may be sent at once after a pause is what the rate gives in this time.
const BURST: Duration = Duration::from_millis(100);

/// A rate, and what of it is used up.
#[derive(Debug)]
pub struct Pace {
    /// Bytes a second; none is no limit.
    rate: Option<f64>,
    /// Bytes that may be sent; below zero, what was sent ahead of its time.
    left: f64,
    since: Instant,
}

impl Pace {
    /// One of so many bytes a second, or without a limit.
    pub fn new(bytes_per_second: Option<u64>, now: Instant) -> Self {
        let rate = bytes_per_second.map(|rate| rate.max(1) as f64);
        Self { rate, left: rate.map_or(0.0, burst), since: now }
    }

    /// Whether a record may be sent now. A large one may be as soon as anything may; what comes after waits the longer.
    pub fn is_open(&mut self, now: Instant) -> bool {
        let Some(rate) = self.rate else { return true };
        let gained = rate * now.saturating_duration_since(self.since).as_secs_f64();
        self.left = (self.left + gained).min(burst(rate));
        self.since = self.since.max(now);
        self.left > 0.0
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
        let (mut pace, mut sent) = (Pace::new(rate, begun), 0);
        for passed in 0..milliseconds {
            let now = begun + Duration::from_millis(passed);
            for _ in 0..1000 {
                if !pace.is_open(now) {
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
        let mut pace = Pace::new(Some(1_000), begun);
        assert!(pace.is_open(begun + Duration::from_secs(3600)));
        pace.spend(100);
        assert!(!pace.is_open(begun + Duration::from_secs(3600)));
        assert!(pace.is_open(begun + Duration::from_secs(3601)));
    }
}
