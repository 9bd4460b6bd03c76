//! When to try again: exponential back-off with full jitter (Brooker, "Exponential Backoff And Jitter").

use std::time::Duration;

use rand::{Rng, RngExt};

/// Delays between attempts. Each is uniform between zero and a bound that doubles up to a cap, so that a fleet that
/// lost its hub at one moment does not come back at one moment.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
    /// What the server asked for; the next delay is no shorter.
    floor: Duration,
}

impl Backoff {
    /// The first delay is under `base`, none is over `cap` unless the server asks for more.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempt: 0, floor: Duration::ZERO }
    }

    /// How long to wait before the next attempt.
    pub fn next_delay<R: Rng + ?Sized>(&mut self, rng: &mut R) -> Duration {
        let bound = self.bound();
        self.attempt = self.attempt.saturating_add(1);
        std::mem::take(&mut self.floor).saturating_add(bound.mul_f64(rng.random::<f64>()))
    }

    /// Makes the next delay at least `retry_after`. Jitter comes on top: many nodes may have been told the same.
    pub fn after(&mut self, retry_after: Duration) {
        self.floor = self.floor.max(retry_after);
    }

    /// Starts over. Call it when a session has lasted, not when a connection was made: a hub that accepts and then
    /// refuses would otherwise be hammered.
    pub fn reset(&mut self) {
        self.attempt = 0;
        self.floor = Duration::ZERO;
    }

    fn bound(&self) -> Duration {
        let factor = 1u32.checked_shl(self.attempt).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.cap)
    }
}
