//! Token buckets: how often something may happen, in all and for each source address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Sources remembered at once. When full, buckets that have filled up again are forgotten first; if none has,
/// new sources share the overall limit alone.
const SOURCES_BOUND: usize = 4096;

/// An overall limit and a smaller one for each source.
pub(super) struct RateLimit {
    per_source: Rate,
    state: Mutex<State>,
    overall: Rate,
}

/// One session's budget: what is spent beyond it is waited for, so that no node can take the hub for itself.
pub(super) struct Budget {
    rate: Rate,
    bucket: Bucket,
}

impl Budget {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, bucket: Bucket::full(rate, now) }
    }

    /// Spends so many, and says how long to wait before the next.
    pub(super) fn spend(&mut self, count: usize, now: Instant) -> Duration {
        self.bucket.refill(self.rate, now);
        self.bucket.tokens -= count as f64;
        if self.bucket.tokens >= 0.0 { Duration::ZERO } else { self.bucket.wait(self.rate) }
    }
}

/// So many a second, and as many at once as two seconds' worth.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate(pub(super) f64);

struct State {
    overall: Bucket,
    sources: HashMap<IpAddr, Bucket>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

impl RateLimit {
    pub(super) fn new(overall: Rate, per_source: Rate, now: Instant) -> Self {
        let state = State { overall: Bucket::full(overall, now), sources: HashMap::new() };
        Self { per_source, state: Mutex::new(state), overall }
    }

    /// Takes one token for `source`, or says after how long there may be one.
    pub(super) fn take(&self, source: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { overall, sources } = &mut *state;
        if sources.len() >= SOURCES_BOUND {
            sources.retain(|_, bucket| !bucket.is_full(self.per_source, now));
        }
        overall.refill(self.overall, now);
        let room = sources.len() < SOURCES_BOUND;
        let key = network(source);
        if room || sources.contains_key(&key) {
            let bucket = sources.entry(key).or_insert_with(|| Bucket::full(self.per_source, now));
            bucket.refill(self.per_source, now);
            if bucket.tokens < 1.0 {
                return Err(bucket.wait(self.per_source));
            }
            if overall.tokens >= 1.0 {
                bucket.tokens -= 1.0;
            }
        }
        if overall.tokens < 1.0 {
            return Err(overall.wait(self.overall));
        }
        overall.tokens -= 1.0;
        Ok(())
    }
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst(), at: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * rate.0).min(rate.burst());
        self.at = now;
    }

    fn is_full(&self, rate: Rate, now: Instant) -> bool {
        self.tokens + now.saturating_duration_since(self.at).as_secs_f64() * rate.0 >= rate.burst()
    }

    fn wait(&self, rate: Rate) -> Duration {
        Duration::try_from_secs_f64((1.0 - self.tokens) / rate.0).unwrap_or(Duration::from_secs(60))
    }
}

impl Rate {
    fn burst(self) -> f64 {
        (self.0 * 2.0).max(1.0)
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 /64, since one host commands all of that.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn one_source_cannot_use_up_the_share_of_another() {
        let start = Instant::now();
        let limit = RateLimit::new(Rate(100.0), Rate(2.0), start);
        let granted = (0..50).filter(|_| limit.take(A, start).is_ok()).count();
        assert_eq!(granted, 4, "two seconds' worth at once");
        assert!(limit.take(B, start).is_ok());
    }

    #[test]
    fn a_refusal_says_when_to_come_back_and_holds_to_it() {
        let start = Instant::now();
        let limit = RateLimit::new(Rate(1.0), Rate(10.0), start);
        assert!(limit.take(A, start).is_ok() && limit.take(A, start).is_ok());
        let wait = limit.take(B, start).expect_err("the overall limit is used up");
        assert_eq!(wait, Duration::from_secs(1));
        assert!(limit.take(B, start + wait).is_ok());
    }

    #[test]
    fn the_memory_of_sources_is_bounded() {
        let start = Instant::now();
        let limit = RateLimit::new(Rate(1e9), Rate(1.0), start);
        for n in 0..20_000u32 {
            assert!(limit.take(IpAddr::V4(n.into()), start).is_ok());
        }
        assert!(limit.state.lock().expect("unpoisoned").sources.len() <= SOURCES_BOUND);
    }

    #[test]
    fn a_session_that_spends_too_much_waits_as_long_as_it_takes() {
        let start = Instant::now();
        let mut budget = Budget::new(Rate(10.0), start);
        assert_eq!(budget.spend(20, start), Duration::ZERO, "two seconds' worth at once");
        let wait = budget.spend(9, start);
        assert_eq!(wait, Duration::from_secs(1), "nine owed, and one for the next");
        assert_eq!(budget.spend(1, start + wait), Duration::ZERO);
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        let (x, y): (IpAddr, IpAddr) =
            ("2001:db8::1".parse().expect("good"), "2001:db8::ffff:1".parse().expect("good"));
        assert_eq!(network(x), network(y));
    }
}
