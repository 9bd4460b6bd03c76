//! Maintenance windows: days and hours in which a rollout may ask for something.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use protocol::Timestamp;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60;
const WEEK: Duration = Duration::from_secs(7 * 86_400);
/// Farthest offset from UTC, minutes.
const FARTHEST: i64 = 14 * 60;

/// Hours of some days, by the wall clock at an offset from UTC: `Mon-Fri 22:00-04:00 +01:00`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Days on which it opens, Monday first.
    days: [bool; 7],
    /// When it opens, minutes of the day.
    from: i64,
    /// When it closes; at or before `from`, on the day after.
    to: i64,
    /// Minutes that its place is ahead of UTC.
    offset: i64,
}

/// Not a window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a maintenance window: say days, hours and an offset from UTC, as in \"Mon-Fri 22:00-04:00 +01:00\"; days \
     may be left out (every day), or listed (Sat,Sun), and the offset (UTC) as well"
)]
pub struct WindowError(String);

impl Window {
    /// Whether it is open.
    pub fn holds(&self, at: Timestamp) -> bool {
        self.opened(at).is_some()
    }

    /// When it opens next after `at`; `None`: on no day.
    pub fn opens_after(&self, at: Timestamp) -> Option<Timestamp> {
        let minute = self.minute(at);
        let today = minute.div_euclid(DAY);
        let opens = (today..=today + 7).filter(|day| self.opens_on(*day)).map(|day| day * DAY + self.from);
        let opens = opens.into_iter().find(|opens| *opens > minute)?;
        Some(Timestamp::from_millis((opens - self.offset) * MINUTE))
    }

    /// When it closes; `None`: it is not open.
    fn closes_after(&self, at: Timestamp) -> Option<Timestamp> {
        self.opened(at).map(|opened| Timestamp::from_millis((opened + self.length() - self.offset) * MINUTE))
    }

    /// The minute in which it has opened, by the clock at its offset.
    fn opened(&self, at: Timestamp) -> Option<i64> {
        let minute = self.minute(at);
        // It may have opened on the day before.
        [0, 1].into_iter().find_map(|back| {
            let day = minute.div_euclid(DAY) - back;
            let opened = day * DAY + self.from;
            (self.opens_on(day) && (opened..opened + self.length()).contains(&minute)).then_some(opened)
        })
    }

    fn minute(&self, at: Timestamp) -> i64 {
        at.millis().div_euclid(MINUTE) + self.offset
    }

    fn length(&self) -> i64 {
        match self.to - self.from {
            length if length > 0 => length,
            length => length + DAY,
        }
    }

    fn opens_on(&self, day: i64) -> bool {
        // The Unix epoch began on a Thursday.
        let weekday = usize::try_from((day + 3).rem_euclid(7)).unwrap_or(0);
        self.days.get(weekday).copied().unwrap_or(false)
    }
}

/// When none of these is open any more; `None`: none is. A week ahead is enough for those of which one always is.
pub(super) fn closes(windows: &[Window], at: Timestamp) -> Option<Timestamp> {
    let next = |at: Timestamp| windows.iter().filter_map(|window| window.closes_after(at)).max();
    let mut end = next(at)?;
    while end.since(at) < WEEK
        && let Some(later) = next(end)
    {
        end = later;
    }
    Some(end)
}

impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let shown: String = text.chars().take(64).collect();
        read(text).ok_or(WindowError(shown))
    }
}

fn read(text: &str) -> Option<Window> {
    let mut words = text.split_ascii_whitespace().peekable();
    let named = words.next_if(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()));
    let days = named.map_or(Some([true; 7]), days)?;
    let (from, to) = words.next()?.split_once('-')?;
    let offset = words.next().map_or(Some(0), offset)?;
    let window = Window { days, from: time(from)?, to: time(to)?, offset };
    words.next().is_none().then_some(window)
}

fn days(text: &str) -> Option<[bool; 7]> {
    let day = |name: &str| DAYS.iter().position(|known| known.eq_ignore_ascii_case(name));
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut at, last) = (day(first)?, day(last)?);
        loop {
            *days.get_mut(at)? = true;
            if at == last {
                break;
            }
            at = (at + 1) % 7;
        }
    }
    Some(days)
}

/// Minutes of `22:00`, up to `24:00`.
fn time(text: &str) -> Option<i64> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| (text.len() == 2).then(|| text.parse::<u8>().ok()).flatten().map(i64::from);
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let all = hours * 60 + minutes;
    (minutes < 60 && all <= DAY).then_some(all)
}

fn offset(text: &str) -> Option<i64> {
    if matches!(text, "Z" | "UTC") {
        return Some(0);
    }
    let (sign, rest) = match text.strip_prefix('+') {
        Some(rest) => (1, rest),
        None => (-1, text.strip_prefix('-')?),
    };
    time(rest).filter(|minutes| *minutes <= FARTHEST).map(|minutes| sign * minutes)
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days.contains(&false) {
            let named = DAYS.iter().zip(self.days).filter_map(|(name, on)| on.then_some(*name));
            write!(f, "{} ", named.collect::<Vec<_>>().join(","))?;
        }
        let time = |minutes: i64| format!("{:02}:{:02}", minutes / 60, minutes % 60);
        write!(f, "{}-{}", time(self.from), time(self.to))?;
        match self.offset {
            0 => f.write_str(" UTC"),
            offset if offset < 0 => write!(f, " -{}", time(-offset)),
            offset => write!(f, " +{}", time(offset)),
        }
    }
}

/// A wait is never longer than this: the wall clock may be set meanwhile.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    /// A minute of the week that begins on Monday, 2026-11-23.
    fn at(day: i64, hours: i64, minutes: i64) -> Timestamp {
        Timestamp::from_millis(1_795_392_000_000 + ((day * 24 + hours) * 60 + minutes) * MINUTE)
    }

    fn window(text: &str) -> Window {
        text.parse().expect("a window")
    }

    #[test]
    fn a_night_belongs_to_the_day_on_which_it_begins() {
        let nights = window("Mon-Fri 22:00-04:00");
        assert!(nights.holds(at(0, 22, 0)) && nights.holds(at(0, 23, 59)) && nights.holds(at(1, 3, 59)));
        assert!(!nights.holds(at(0, 21, 59)) && !nights.holds(at(1, 4, 0)));
        assert!(nights.holds(at(5, 3, 0)), "Friday's lasts into Saturday");
        assert!(!nights.holds(at(5, 22, 0)) && !nights.holds(at(0, 3, 0)), "none begins on the weekend");
        assert_eq!(nights.opens_after(at(0, 12, 0)), Some(at(0, 22, 0)));
        assert_eq!(nights.opens_after(at(4, 22, 0)), Some(at(7, 22, 0)));
    }

    #[test]
    fn one_that_opens_as_another_closes_goes_on_with_it() {
        let nights = ["Mon-Fri 22:00-04:00", "Tue 03:00-06:00 +01:00", "Tue 05:00-07:30"].map(window);
        assert_eq!(closes(&nights, at(0, 12, 0)), None);
        assert_eq!(closes(&nights[..1], at(0, 23, 59)), Some(at(1, 4, 0)));
        assert_eq!(closes(&nights, at(0, 23, 59)), Some(at(1, 7, 30)));
        assert_eq!(closes(&nights, at(2, 3, 59)), Some(at(2, 4, 0)), "on Wednesday there is the first alone");
        let always = closes(&[window("00:00-24:00")], at(0, 12, 0)).expect("it is open");
        assert!(always >= at(7, 0, 0));
    }

    #[test]
    fn an_offset_moves_the_window_and_every_day_is_said_by_none() {
        let lunch = window("12:00-13:00 +02:00");
        assert!(lunch.holds(at(6, 10, 30)) && !lunch.holds(at(6, 12, 30)));
        assert_eq!(lunch.opens_after(at(6, 10, 0)), Some(at(7, 10, 0)));
        let west = window("Sun 23:00-24:00 -05:00");
        assert!(west.holds(at(7, 4, 30)) && !west.holds(at(6, 4, 30)));
        assert!(window("00:00-24:00").holds(at(3, 17, 1)));
    }

    #[test]
    fn what_is_read_is_shown_so_that_it_can_be_read_again() {
        for text in ["22:00-04:00 UTC", "Mon,Tue,Wed 08:00-09:30 +05:30", "Sat 00:00-24:00 -03:00"] {
            assert_eq!(window(text).to_string(), text);
        }
        assert_eq!(
            window("fri-mon 1:00-2:00".replace("1:", "01:").replace("2:", "02:").as_str()).days,
            [true, false, false, false, true, true, true]
        );
        for bad in
            ["", "Mon", "25:00-26:00", "1:00-2:00", "Someday 01:00-02:00", "01:00-02:00 +15:00", "01:00-02:00 Z x"]
        {
            assert!(bad.parse::<Window>().is_err(), "{bad}");
        }
    }
}
