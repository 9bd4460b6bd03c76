//! When a certificate is renewed: at about two thirds of its life, spread so that a fleet does not renew at once.

use protocol::Timestamp;

/// Share of the life after which renewal is due, before jitter.
const DUE: f64 = 2.0 / 3.0;
/// Half-width of the spread, as a share of the life: renewals fall between 57 % and 77 %.
const SPREAD: f64 = 0.1;

/// When to renew a certificate that is valid from `not_before` to `not_after`.
///
/// `jitter` is random in `0.0..1.0` and the same for one certificate every time it is asked, so that a restart does
/// not move the moment. Values outside are clamped.
pub fn when(not_before: Timestamp, not_after: Timestamp, jitter: f64) -> Timestamp {
    let jitter = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.5 };
    let life = not_after.since(not_before);
    not_before.plus(life.mul_f64(DUE - SPREAD + 2.0 * SPREAD * jitter))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    fn after(jitter: f64) -> i64 {
        when(Timestamp::from_millis(DAY), Timestamp::from_millis(101 * DAY), jitter).millis() / DAY - 1
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
}
