//! When a certificate is renewed: at about two thirds of its life, spread so that a fleet does not renew at once.

use std::time::Duration;

use protocol::Timestamp;

use crate::serial::Serial;

/// Share of the life after which renewal is due, before jitter.
const DUE: f64 = 2.0 / 3.0;
/// Half-width of the spread, as a share of the life: renewals fall between 57 % and 77 %.
const SPREAD: f64 = 0.1;
/// A node begins to renew when this share of the life is over, whatever it is told: what is left is for attempts that fail.
pub const LATEST: f64 = 0.85;
/// Who is told a moment that has passed spreads over as long as it is late, and over no more than this.
const LATE_WITHIN: Duration = Duration::from_secs(30);

/// When to renew a certificate that is valid from `not_before` to `not_after`.
///
/// `jitter` is random in `0.0..1.0` and the same for one certificate every time it is asked, so that a restart does
/// not move the moment. Values outside are clamped.
pub fn when(not_before: Timestamp, not_after: Timestamp, jitter: f64) -> Timestamp {
    within(not_before, not_after, (DUE - SPREAD, DUE + SPREAD), jitter)
}

/// As [`when`], between two `shares` of the life.
pub fn within(not_before: Timestamp, not_after: Timestamp, shares: (f64, f64), jitter: f64) -> Timestamp {
    at_share(not_before, not_after, shares.0 + (shares.1 - shares.0) * clamped(jitter))
}

/// The jitter of the certificate with this serial, which is random.
pub fn jitter(serial: &Serial) -> f64 {
    let newest = serial.as_bytes().last_chunk::<4>().copied().unwrap_or_default();
    f64::from(u32::from_be_bytes(newest)) / f64::from(u32::MAX)
}

/// When a node renews a certificate that is valid from `not_before` to `not_after` and that a hub says to renew at
/// `advised`: never later than [`LATEST`], and for a moment that has passed soon after `now`, spread by `jitter` (random
/// in `0.0..1.0`) so that a fleet that was away does not renew at once.
pub fn heed(
    advised: Timestamp,
    (not_before, not_after): (Timestamp, Timestamp),
    now: Timestamp,
    jitter: f64,
) -> Timestamp {
    let at = advised.min(at_share(not_before, not_after, LATEST));
    // Close to the certificate's end there is no time to lose.
    let within = now.since(at).min(LATE_WITHIN).min(not_after.since(now) / 10);
    at.max(now).plus(within.mul_f64(clamped(jitter)))
}

/// When each of `count` nodes is to renew, from the start of `within` on: one in each of `count` equal parts of it, at a
/// `random` place (in `0.0..1.0`). So no stretch of time has more than its share, and two more.
pub fn spread(count: usize, within: Duration, mut random: impl FnMut() -> f64) -> impl Iterator<Item = Duration> {
    let part = within.as_secs_f64() / count.max(1) as f64;
    (0..count).map(move |place| {
        let after = Duration::try_from_secs_f64(part * (place as f64 + clamped(random())));
        after.unwrap_or(within).min(within)
    })
}

fn at_share(not_before: Timestamp, not_after: Timestamp, share: f64) -> Timestamp {
    not_before.plus(not_after.since(not_before).mul_f64(share.clamp(0.0, 1.0)))
}

fn clamped(jitter: f64) -> f64 {
    if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.5 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 86_400_000;

    fn after(jitter: f64) -> i64 {
        when(Timestamp::from_millis(DAY), Timestamp::from_millis(101 * DAY), jitter).millis() / DAY - 1
    }

    /// A certificate of 100 days, `now` after `now_days`, told to renew after `advised_days`: after how many.
    fn heeded(advised_days: i64, now_days: i64, jitter: f64) -> f64 {
        let life = (Timestamp::from_millis(0), Timestamp::from_millis(100 * DAY));
        let days = |days: i64| Timestamp::from_millis(days.saturating_mul(DAY));
        heed(days(advised_days), life, days(now_days), jitter).millis() as f64 / DAY as f64
    }

    #[test]
    fn renewals_spread_around_two_thirds_of_the_life() {
        assert_eq!([after(0.0), after(0.5), after(1.0)], [56, 66, 76]);
    }

    #[test]
    fn nonsense_still_gives_a_moment_within_the_life() {
        assert_eq!([after(-5.0), after(f64::NAN), after(9.0)], [56, 66, 76]);
        let (start, end) = (Timestamp::from_millis(5), Timestamp::from_millis(3));
        assert_eq!(when(start, end, 0.5), start);
    }

    #[test]
    fn advice_is_taken_as_it_is_unless_it_would_let_the_certificate_end() {
        assert_eq!(heeded(40, 10, 0.7), 40.0);
        assert_eq!(heeded(86, 10, 0.7), 85.0);
        assert_eq!(heeded(i64::MAX, 10, 0.7), 85.0);
    }

    #[test]
    fn a_moment_that_has_passed_is_soon_and_not_the_same_for_all() {
        let seconds_after = |advised, now, jitter| ((heeded(advised, now, jitter) - now as f64) * 86_400.0).round();
        assert_eq!(
            [seconds_after(9, 10, 0.0), seconds_after(9, 10, 0.5), seconds_after(9, 10, 1.0)],
            [0.0, 15.0, 30.0]
        );
        assert_eq!(seconds_after(i64::MIN, 10, 1.0), 30.0);
        // Of a certificate that has ended, nothing is left to spread over.
        assert_eq!(seconds_after(50, 100, 1.0), 0.0);
        let (second, life) = (Timestamp::from_millis(1000), (Timestamp::from_millis(0), Timestamp::from_millis(DAY)));
        let late = heed(second, life, Timestamp::from_millis(1400), 1.0);
        assert_eq!(late, Timestamp::from_millis(1800), "who is hardly late need not wait long");
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_has_more_than_its_share(
            count in 0usize..600,
            within in 0u64..700_000_000,
            stretch in 0.0f64..1.0,
            places in proptest::collection::vec(-0.5f64..1.5, 1..50),
        ) {
            let within = Duration::from_millis(within);
            let mut places = places.into_iter().cycle();
            let moments: Vec<_> = spread(count, within, || places.next().unwrap_or(f64::NAN)).collect();
            prop_assert_eq!(moments.len(), count);
            prop_assert!(moments.iter().all(|moment| *moment <= within));
            let stretch = within.mul_f64(stretch);
            let share = stretch.as_secs_f64() / within.as_secs_f64().max(f64::MIN_POSITIVE) * count as f64;
            let most = if within.is_zero() { count } else { (share + 0.01) as usize + 2 };
            for (first, from) in moments.iter().enumerate() {
                let inside = moments[first..].iter().filter(|moment| moment.saturating_sub(*from) < stretch).count();
                prop_assert!(inside <= most, "{} within {:?} of {:?}, for {} in all", inside, stretch, within, count);
            }
        }
    }
}
