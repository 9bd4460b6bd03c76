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
    /// The first delay is at most `base`, none is over `cap` unless the server asks for more.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempt: 0, floor: Duration::ZERO }
    }

    /// How long to wait before the next attempt.
    pub fn next_delay<R: Rng + ?Sized>(&mut self, rng: &mut R) -> Duration {
        let bound = u64::try_from(self.bound().as_micros()).unwrap_or(u64::MAX);
        self.attempt = self.attempt.saturating_add(1);
        std::mem::take(&mut self.floor).saturating_add(Duration::from_micros(rng.random_range(0..=bound)))
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

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const BASE: Duration = Duration::from_secs(1);
    const CAP: Duration = Duration::from_secs(60);

    #[test]
    fn the_bound_doubles_up_to_the_cap() {
        let mut backoff = Backoff::new(BASE, CAP);
        let mut rng = StdRng::seed_from_u64(1);
        let bounds: Vec<u64> = (0..9)
            .map(|_| {
                let bound = backoff.bound();
                assert!(backoff.next_delay(&mut rng) <= bound);
                bound.as_secs()
            })
            .collect();
        assert_eq!(bounds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        backoff.reset();
        assert_eq!(backoff.bound(), BASE);
    }

    #[test]
    fn delays_at_the_cap_fill_the_whole_interval_evenly() {
        let mut rng = StdRng::seed_from_u64(2);
        let mut backoff = Backoff::new(BASE, CAP);
        (0..10).for_each(|_| _ = backoff.next_delay(&mut rng));
        let mut tenths = [0u32; 10];
        for _ in 0..10_000 {
            let delay = backoff.next_delay(&mut rng);
            let tenth = (delay.as_millis() * 10 / CAP.as_millis()).min(9) as usize;
            tenths[tenth] += 1;
        }
        assert!(tenths.iter().all(|count| (850..1150).contains(count)), "{tenths:?}");
    }

    #[test]
    fn a_fleet_that_failed_together_does_not_come_back_together() {
        let first_seconds =
            |seed| Backoff::new(BASE, CAP).next_delay(&mut StdRng::seed_from_u64(seed)).as_millis() / 100;
        let mut tenths = [0u32; 11];
        (0..1000).for_each(|node| tenths[first_seconds(node) as usize] += 1);
        assert!(tenths[..10].iter().all(|count| (60..140).contains(count)), "{tenths:?}");
    }

    #[test]
    fn the_servers_wish_is_a_floor_once_and_jitter_comes_on_top() {
        let mut rng = StdRng::seed_from_u64(3);
        let wish = Duration::from_secs(300);
        let mut delays: Vec<_> = (0..50)
            .map(|_| {
                let mut backoff = Backoff::new(BASE, CAP);
                backoff.after(wish);
                backoff.after(Duration::from_secs(1));
                let delay = backoff.next_delay(&mut rng);
                assert!((wish..=wish + BASE).contains(&delay), "{delay:?}");
                assert!(backoff.next_delay(&mut rng) <= BASE * 2, "asked once");
                delay
            })
            .collect();
        delays.dedup();
        assert!(delays.len() > 40, "many nodes may have been told the same");
    }

    #[test]
    fn no_setting_and_no_number_of_attempts_is_a_panic() {
        let mut rng = StdRng::seed_from_u64(4);
        for (base, cap) in [(Duration::ZERO, CAP), (Duration::MAX, Duration::MAX), (CAP, BASE), (BASE, Duration::MAX)] {
            let mut backoff = Backoff::new(base, cap);
            (0..200).for_each(|_| _ = backoff.next_delay(&mut rng));
            backoff.after(Duration::MAX);
            assert_eq!(backoff.next_delay(&mut rng), Duration::MAX);
        }
    }
}
