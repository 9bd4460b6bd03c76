//! A node's clock beside the hub's, from one exchange of messages.

use std::time::Duration;

use crate::Timestamp;
use crate::message::{ClockReport, ClockState};

/// A node whose clock is further than this from the hub's is told so.
pub const SKEW: Duration = Duration::from_secs(2);

/// Offset and delay of one exchange (RFC 5905, section 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// Node clock minus hub clock, ms; true to within half of `delay_ms`.
    pub offset_ms: i64,
    /// Round trip without the hub's own time, ms.
    pub delay_ms: u64,
}

impl ClockReading {
    /// From the four times of an exchange: sent by the node, received and answered by the hub, received by the node.
    pub fn new(sent: Timestamp, received: Timestamp, answered: Timestamp, arrived: Timestamp) -> Self {
        let [t1, t2, t3, t4] = [sent, received, answered, arrived].map(|time| i128::from(time.millis()));
        let ahead = ((t1 - t2) + (t4 - t3)).div_euclid(2);
        let delay = ((t4 - t1) - (t3 - t2)).max(0);
        Self {
            offset_ms: ahead.clamp(i64::MIN.into(), i64::MAX.into()) as i64,
            delay_ms: u64::try_from(delay).unwrap_or(u64::MAX),
        }
    }

    /// Whether the node's clock is right; unspecified when the delay leaves it open.
    pub fn state(self) -> ClockState {
        let skew = SKEW.as_millis() as u64;
        let away = self.offset_ms.unsigned_abs();
        if away <= skew {
            ClockState::Synchronized
        } else if away - skew <= self.delay_ms / 2 {
            ClockState::Unspecified
        } else if self.offset_ms > 0 {
            ClockState::Ahead
        } else {
            ClockState::Behind
        }
    }
}

impl From<ClockReading> for ClockReport {
    fn from(reading: ClockReading) -> Self {
        Self { offset_ms: reading.offset_ms, delay_ms: reading.delay_ms }
    }
}

impl From<ClockReport> for ClockReading {
    fn from(report: ClockReport) -> Self {
        Self { offset_ms: report.offset_ms, delay_ms: report.delay_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(times: [i64; 4]) -> ClockReading {
        let [a, b, c, d] = times.map(Timestamp::from_millis);
        ClockReading::new(a, b, c, d)
    }

    #[test]
    fn offset_and_delay_are_those_of_rfc_5905() {
        // The node is 5 s ahead; 30 ms there, 7 ms at the hub, 30 ms back.
        let reading = reading([105_000, 100_030, 100_037, 105_067]);
        assert_eq!(reading, ClockReading { offset_ms: 5_000, delay_ms: 60 });
        assert_eq!(reading.state(), ClockState::Ahead);
    }

    #[test]
    fn two_seconds_are_tolerated_and_doubt_is_not_called_skew() {
        let state = |offset_ms, delay_ms| ClockReading { offset_ms, delay_ms }.state();
        assert_eq!(state(2_000, 0), ClockState::Synchronized);
        assert_eq!(state(-2_000, 9_000), ClockState::Synchronized);
        assert_eq!(state(2_001, 0), ClockState::Ahead);
        assert_eq!(state(-2_001, 0), ClockState::Behind);
        assert_eq!(state(2_500, 1_000), ClockState::Unspecified);
        assert_eq!(state(i64::MIN, u64::MAX), ClockState::Unspecified);
        assert_eq!(state(i64::MIN, 0), ClockState::Behind);
    }

    #[test]
    fn a_lying_peer_makes_no_overflow() {
        let reading = reading([i64::MAX, i64::MIN, i64::MAX, i64::MIN]);
        assert_eq!(reading.delay_ms, 0);
        let _ = super::ClockReading::new(
            Timestamp::from_millis(i64::MIN),
            Timestamp::from_millis(i64::MAX),
            Timestamp::from_millis(i64::MIN),
            Timestamp::from_millis(i64::MAX),
        );
    }
}
