//! What a fleet did, counted over all its nodes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::SimulatedNode;

/// Most reconnect times kept; beyond that they are counted and no longer told apart.
const MOST_TIMES: usize = 1_000_000;

/// Counts as it happens.
#[derive(Default)]
pub(super) struct Tally {
    samples: AtomicU64,
    reconnects: Mutex<Vec<Duration>>,
}

impl Tally {
    pub(super) fn sampled(&self, series: usize) {
        self.samples.fetch_add(series as u64, Ordering::Relaxed);
    }

    pub(super) fn reconnected(&self, after: Duration) {
        let mut times = self.reconnects.lock().unwrap_or_else(PoisonError::into_inner);
        if times.len() < MOST_TIMES {
            times.push(after);
        }
    }
}

/// What a fleet did.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Seconds since it started.
    pub elapsed_s: f64,
    /// Nodes in it.
    pub nodes: usize,
    /// Sessions that are up.
    pub up: usize,
    /// Sessions that came up, reconnects included.
    pub sessions: u64,
    /// Samples taken: rows times series.
    pub samples: u64,
    /// Batches sent, resends included.
    pub batches_sent: u64,
    /// Batches sent again.
    pub batches_resent: u64,
    /// Bytes of the batches sent.
    pub batch_bytes_sent: u64,
    /// Batches the hub acknowledged.
    pub batches_acknowledged: u64,
    /// Batches the hub has not acknowledged.
    pub batches_pending: u64,
    /// Batches that a full backlog dropped.
    pub batches_lost: u64,
    /// Time from the end of a session to the next one.
    pub reconnects: Reconnects,
    /// Processor time of this process so far, in seconds; absent where it can't be read.
    pub cpu_s: Option<f64>,
}

/// Time from the end of a session to the next one, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Reconnects {
    /// How many.
    pub count: usize,
    /// Half were faster.
    pub p50_ms: f64,
    /// One in a hundred was slower.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

impl Summary {
    pub(super) fn of(nodes: &[Arc<SimulatedNode>], tally: &Tally, elapsed: Duration) -> Self {
        let mut summary = Self {
            elapsed_s: elapsed.as_secs_f64(),
            nodes: nodes.len(),
            up: 0,
            sessions: 0,
            samples: tally.samples.load(Ordering::Relaxed),
            batches_sent: 0,
            batches_resent: 0,
            batch_bytes_sent: 0,
            batches_acknowledged: 0,
            batches_pending: 0,
            batches_lost: 0,
            reconnects: Reconnects::of(tally.reconnects.lock().unwrap_or_else(PoisonError::into_inner).clone()),
            cpu_s: cpu_seconds(),
        };
        for node in nodes {
            let (counted, spool) = (node.counted(), node.spool());
            summary.up += usize::from(node.is_up());
            summary.sessions += counted.sessions;
            summary.batches_sent += counted.sent;
            summary.batches_resent += counted.resent;
            summary.batch_bytes_sent += counted.sent_bytes;
            summary.batches_acknowledged += counted.acknowledged;
            summary.batches_pending += spool.pending_batches;
            summary.batches_lost += spool.lost_batches;
        }
        summary
    }
}

impl Reconnects {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |share: f64| {
            let index = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1)) - 1;
            times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        Self { count: times.len(), p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }
}

/// User and system time of this process (proc(5), `/proc/pid/stat`).
fn cpu_seconds() -> Option<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything, also spaces.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_seen() {
        let times = (1..=200).rev().map(Duration::from_millis).collect();
        let reconnects = Reconnects::of(times);
        assert_eq!(reconnects, Reconnects { count: 200, p50_ms: 100.0, p99_ms: 198.0, max_ms: 200.0 });
        assert_eq!(Reconnects::of(Vec::new()), Reconnects::default());
        let one = Reconnects::of(vec![Duration::from_millis(7)]);
        assert_eq!((one.p50_ms, one.p99_ms, one.max_ms), (7.0, 7.0, 7.0));
    }
}
