//! How often a node may ask for what goes into the audit log, which nobody can shorten.

use std::time::Duration;

use protocol::Timestamp;
use protocol::message::{Refusal, RefusalCode};

/// So many at once: a node in its daily life asks for one in days, and in a rotation for a few.
const MOST: u32 = 20;
/// And one more after each of these, so that nobody is kept waiting for long.
const EACH: Duration = Duration::from_secs(180);

/// What a certificate is for that a node asks for.
#[derive(Clone, Copy)]
pub(super) enum Use {
    /// Its sessions.
    Session,
    /// Its tenant's brokers.
    Kafka,
}

/// What one node may still ask for.
pub(super) struct Patience {
    left: u32,
    /// When the last of them came back.
    at: Timestamp,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self { left: MOST, at: Timestamp::default() }
    }

    /// When none is left, what to tell the node.
    pub(super) fn lost(&mut self, now: Timestamp) -> Option<Refusal> {
        let passed = now.since(self.at);
        let back = u32::try_from(passed.as_millis() / EACH.as_millis()).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(back).min(MOST);
        if self.left == MOST || now < self.at {
            // Also when the clock was set back: what was spent since then is not waited for twice.
            self.at = now;
        } else {
            self.at = self.at.plus(EACH.saturating_mul(back));
        }
        (self.left == 0).then(|| Refusal {
            code: RefusalCode::Busy.into(),
            message:
                "this node asks for certificates again and again; look at its log, and at the audit log for why it \
                      gets none"
                    .into(),
            retry_after_ms: u64::try_from(EACH.saturating_sub(now.since(self.at)).as_millis())
                .unwrap_or(u64::MAX)
                .max(1),
        })
    }

    /// One that is in the audit log.
    pub(super) fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_asks_too_often_waits_for_one_at_a_time_and_is_never_kept_out() {
        let mut now = Timestamp::from_millis(1_790_000_000_000);
        let mut patience = Patience::new();
        for _ in 0..MOST {
            assert!(patience.lost(now).is_none());
            patience.spend();
        }
        for _ in 0..3 {
            let wait = patience.lost(now).unwrap().retry_after_ms;
            assert_eq!(wait, 180_000);
            now = now.plus(Duration::from_millis(wait - 1));
            assert_eq!(patience.lost(now).unwrap().retry_after_ms, 1);
            now = now.plus(Duration::from_millis(1));
            assert!(patience.lost(now).is_none());
            patience.spend();
        }
        // A clock that is set back costs no more than the time for one.
        now = now.minus(Duration::from_secs(86_400));
        assert!(patience.lost(now).is_some_and(|refusal| refusal.retry_after_ms <= 180_000));
        assert!(patience.lost(now.plus(EACH)).is_none());
    }
}
