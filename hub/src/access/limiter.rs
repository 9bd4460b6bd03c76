//! Tells an address that fails again and again to stop, and keeps it from filling the audit log, which nobody can shorten.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use protocol::Timestamp;

use crate::gateway::network;

/// Failures that cost nothing yet.
const FREE: u32 = 10;
/// How long failures are remembered.
const WINDOW: Duration = Duration::from_secs(300);
/// Addresses remembered. When full, those whose window is over go, and if none is, all: guessing 256 bits is
/// hopeless anyway, memory is not.
const ADDRESSES: usize = 4096;

/// Failures that are audited within the window, whoever fails: somebody with many addresses does not fill the log.
const AUDITED: u32 = 1000;

/// The failures of those who have shown nothing that would make them somebody.
#[derive(Default)]
pub(crate) struct Limiter {
    failures: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    of: HashMap<IpAddr, Failures>,
    audited: Option<Failures>,
}

struct Failures {
    since: Timestamp,
    count: u32,
}

impl Failures {
    /// Whether its window is over. One that has yet to begin is of a clock that was set back.
    fn over(&self, now: Timestamp) -> bool {
        now < self.since || now.since(self.since) >= WINDOW
    }

    /// Counts one more within the window.
    fn count(&mut self, now: Timestamp) -> u32 {
        if self.over(now) {
            *self = Self { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count
    }
}

/// What a failure calls for.
pub(crate) struct Failed {
    /// It is one too many: the address is to stop for so long. A valid credential is never turned away, so that nobody can be
    /// locked out by a neighbour behind the same address.
    pub(crate) wait: Option<Duration>,
    /// It is to be audited.
    pub(crate) audited: bool,
}

impl Limiter {
    /// Notes a failure.
    pub(crate) fn failed(&self, remote: IpAddr, now: Timestamp) -> Failed {
        let mut known = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { of: failures, audited } = &mut *known;
        if failures.len() >= ADDRESSES {
            failures.retain(|_, failed| !failed.over(now));
            if failures.len() >= ADDRESSES {
                failures.clear();
            }
        }
        let failed = failures.entry(network(remote)).or_insert(Failures { since: now, count: 0 });
        if failed.count(now) > FREE {
            return Failed { wait: Some(WINDOW.saturating_sub(now.since(failed.since))), audited: false };
        }
        let all = audited.get_or_insert(Failures { since: now, count: 0 });
        Failed { wait: None, audited: all.count(now) <= AUDITED }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_failed_while_the_clock_was_ahead_is_free_again_when_it_is_set_back() {
        let (limiter, remote) = (Limiter::default(), "192.0.2.7".parse().expect("an address"));
        let at = |second| Timestamp::from_millis(0).plus(Duration::from_secs(second));
        let fails = |now| {
            let failed = limiter.failed(remote, now);
            (failed.wait.is_some(), failed.audited)
        };
        for _ in 0..FREE {
            assert_eq!(fails(at(86_400)), (false, true));
        }
        assert_eq!(fails(at(86_401)), (true, false), "one too many");
        for _ in 0..FREE {
            assert_eq!(fails(at(100)), (false, true), "the clock is right again");
        }
        assert_eq!(fails(at(101)), (true, false));
        assert_eq!(fails(at(400)), (false, true), "the window is over");
    }
}
