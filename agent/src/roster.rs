//! The parts of a host that come and go, interfaces and disks: which of them have a series.
//!
//! Another set of series costs a key batch, some kilobytes. Tunnels, bridges and cables of namespaces come and go by the
//! minute on some hosts, so what is new has to stay for a while before it has a series, and keeps it for a while after.

use std::time::Duration;

use tokio::time::Instant;

/// How long a part must have been there before it has a series. What is there at the first reading has one at once.
const SETTLE: Duration = Duration::from_secs(120);
/// How long a part that is gone keeps its series.
pub(crate) const LINGER: Duration = Duration::from_secs(600);

/// Parts of one kind with their figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Roster<T> {
    members: Vec<Member<T>>,
    filled: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Member<T> {
    name: Box<str>,
    since: Instant,
    seen: Instant,
    shown: bool,
    /// `None` when the last reading did not find it.
    figures: Option<T>,
}

impl<T> Default for Roster<T> {
    fn default() -> Self {
        Self { members: Vec::new(), filled: false }
    }
}

impl<T> Roster<T> {
    /// Those that have a series, by name, in an order that stays; `None` for one that is gone.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&T>)> {
        self.members.iter().filter(|member| member.shown).map(|member| (&*member.name, member.figures.as_ref()))
    }

    /// Takes a reading: all the parts there are at `now`.
    pub(crate) fn read<'a>(&mut self, now: Instant, found: impl Iterator<Item = (&'a str, T)>) {
        for member in &mut self.members {
            member.figures = None;
        }
        for (place, (name, figures)) in found.enumerate() {
            // They are listed in one order, so that names are rarely searched for, and never copied but once.
            let at_place = self.members.get(place).is_some_and(|member| *member.name == *name);
            let known = if at_place { Some(place) } else { self.members.iter().position(|known| *known.name == *name) };
            match known.and_then(|place| self.members.get_mut(place)) {
                Some(member) => (member.seen, member.figures) = (now, Some(figures)),
                None => self.members.push(Member {
                    name: name.into(),
                    since: now,
                    seen: now,
                    shown: !self.filled,
                    figures: Some(figures),
                }),
            }
        }
        self.filled |= !self.members.is_empty();
        self.members.retain_mut(|member| {
            member.shown |= now.duration_since(member.since) >= SETTLE;
            member.figures.is_some() || member.shown && now.duration_since(member.seen) < LINGER
        });
    }
}

#[cfg(test)]
impl<T> FromIterator<(&'static str, T)> for Roster<T> {
    fn from_iter<I: IntoIterator<Item = (&'static str, T)>>(found: I) -> Self {
        let mut roster = Self::default();
        roster.read(Instant::now(), found.into_iter());
        roster
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(roster: &Roster<i64>) -> Vec<(&str, Option<i64>)> {
        roster.iter().map(|(name, figures)| (name, figures.copied())).collect()
    }

    #[test]
    fn what_comes_later_has_to_stay_before_it_has_a_series() {
        let (mut roster, start) = (Roster::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        roster.read(at(0), [].into_iter());
        roster.read(at(1), [("eth0", 1), ("eth1", 2)].into_iter());
        assert_eq!(shown(&roster), [("eth0", Some(1)), ("eth1", Some(2))], "the first that are found");
        // A cable for a minute, a tunnel for good, listed before what was there.
        roster.read(at(10), [("cable", 7), ("wg0", 3), ("eth0", 4), ("eth1", 5)].into_iter());
        assert_eq!(shown(&roster), [("eth0", Some(4)), ("eth1", Some(5))]);
        roster.read(at(70), [("wg0", 6), ("eth0", 7), ("eth1", 8)].into_iter());
        roster.read(at(129), [("cable", 7), ("wg0", 6), ("eth0", 7), ("eth1", 8)].into_iter());
        assert_eq!(shown(&roster), [("eth0", Some(7)), ("eth1", Some(8))], "the cable's time begins anew");
        roster.read(at(130), [("wg0", 9), ("eth0", 7), ("eth1", 8)].into_iter());
        assert_eq!(shown(&roster), [("eth0", Some(7)), ("eth1", Some(8)), ("wg0", Some(9))]);
    }

    #[test]
    fn what_is_gone_keeps_its_series_for_a_while() {
        let (mut roster, start) = (Roster::default(), Instant::now());
        roster.read(start, [("eth0", 1), ("eth1", 2)].into_iter());
        let later = start + LINGER - Duration::from_millis(1);
        roster.read(later, [("eth1", 3)].into_iter());
        assert_eq!(shown(&roster), [("eth0", None), ("eth1", Some(3))]);
        roster.read(start + LINGER, [("eth1", 4)].into_iter());
        assert_eq!(shown(&roster), [("eth1", Some(4))]);
        roster.read(start + LINGER, [].into_iter());
        assert_eq!(shown(&roster), [("eth1", None)], "a reading that failed takes nothing away");
    }
}
