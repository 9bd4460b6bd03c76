//! Numbers that can no longer be delivered, as a short list of ranges.

use std::fmt;
use std::ops::RangeInclusive;

/// Consecutive numbers that can no longer be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostRange {
    /// The first number.
    pub first: u64,
    /// The last number.
    pub last: u64,
    /// Why.
    pub reason: LostReason,
}

/// Why records are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LostReason {
    /// The spool reached its bound and dropped the oldest.
    Overflow,
    /// A stored record failed its checksum, or needs one that did.
    Corrupt,
    /// The disk took no more.
    DiskFull,
    /// It was kept longer than its owner wants it.
    Expired,
    /// A later record took its place.
    Superseded,
}

impl LostRange {
    /// How many numbers.
    #[expect(clippy::len_without_is_empty, reason = "a range holds at least one number")]
    pub fn len(&self) -> u64 {
        self.last - self.first + 1
    }
}

impl fmt::Display for LostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overflow => "the spool was full",
            Self::Corrupt => "damaged on disk",
            Self::DiskFull => "the disk was full",
            Self::Expired => "too old",
            Self::Superseded => "a later one took its place",
        })
    }
}

impl fmt::Display for LostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}–{} ({})", self.first, self.last, self.reason)
    }
}

/// Sorted ranges that do not meet unless their reasons differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LostRanges(Vec<LostRange>);

impl LostRanges {
    /// Most ranges kept: what a cursor slot holds. Beyond it the two nearest become one, and what is between them is
    /// lost too: a disk that damages more than this many places at once has nothing better to offer.
    pub(crate) const MAX: usize = 128;

    /// Adds what of `range` is not in the list yet; gives back how many numbers are new to it.
    pub(crate) fn add(&mut self, range: RangeInclusive<u64>, reason: LostReason) -> u64 {
        let (mut first, last) = range.into_inner();
        let before = self.count();
        let mut new = Vec::new();
        for known in &self.0 {
            if known.last < first {
                continue;
            }
            if known.first > last {
                break;
            }
            if known.first > first {
                new.push(LostRange { first, last: known.first - 1, reason });
            }
            first = known.last.saturating_add(1);
        }
        if first <= last {
            new.push(LostRange { first, last, reason });
        }
        self.0.extend(new);
        self.0.sort_unstable_by_key(|range| range.first);
        self.0.dedup_by(|next, range| {
            let meet = range.reason == next.reason && range.last + 1 == next.first;
            if meet {
                range.last = next.last;
            }
            meet
        });
        while self.0.len() > Self::MAX {
            let gaps = self.0.windows(2).map(|pair| pair[1].first - pair[0].last);
            let Some((index, _)) = gaps.enumerate().min_by_key(|(_, gap)| *gap) else { break };
            self.0[index].last = self.0.remove(index + 1).last;
        }
        self.count() - before
    }

    /// The range that holds `number`.
    pub(crate) fn at(&self, number: u64) -> Option<LostRange> {
        let index = self.0.partition_point(|range| range.last < number);
        self.0.get(index).filter(|range| range.first <= number).copied()
    }

    /// The first number from `number` on that is lost.
    pub(crate) fn next_from(&self, number: u64) -> Option<u64> {
        let index = self.0.partition_point(|range| range.last < number);
        self.0.get(index).map(|range| range.first.max(number))
    }

    /// Forgets all numbers up to and including `through`.
    pub(crate) fn forget(&mut self, through: u64) {
        self.0.retain(|range| range.last > through);
        if let Some(range) = self.0.first_mut() {
            range.first = range.first.max(through.saturating_add(1));
        }
    }

    /// How many numbers are lost.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(LostRange::len).sum()
    }

    /// The highest number that is lost.
    pub(crate) fn last(&self) -> Option<u64> {
        self.0.last().map(|range| range.last)
    }

    pub(crate) fn as_slice(&self) -> &[LostRange] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn reason() -> impl Strategy<Value = LostReason> {
        prop_oneof![Just(LostReason::Overflow), Just(LostReason::Corrupt), Just(LostReason::Expired)]
    }

    proptest! {
        #[test]
        fn the_list_is_a_set_of_numbers(
            adds in prop::collection::vec((1u64..60, 0u64..12, reason()), 0..20),
            forget in 0u64..60,
        ) {
            let (mut ranges, mut model) = (LostRanges::default(), BTreeMap::new());
            for (first, length, reason) in adds {
                let mut new = 0;
                for number in first..=first + length {
                    model.entry(number).or_insert_with(|| { new += 1; reason });
                }
                prop_assert_eq!(ranges.add(first..=first + length, reason), new);
            }
            ranges.forget(forget);
            model.retain(|number, _| *number > forget);
            for number in 0..80 {
                prop_assert_eq!(ranges.at(number).map(|range| range.reason), model.get(&number).copied());
                let next = model.keys().find(|lost| **lost >= number).copied();
                prop_assert_eq!(ranges.next_from(number), next);
            }
            prop_assert_eq!(ranges.count(), model.len() as u64);
            prop_assert_eq!(ranges.last(), model.keys().last().copied());
            prop_assert!(ranges.0.windows(2).all(|pair| pair[0].last < pair[1].first));
        }
    }

    #[test]
    fn too_many_ranges_become_fewer_by_losing_what_is_between_the_nearest() {
        let mut ranges = LostRanges::default();
        for index in 0..LostRanges::MAX as u64 {
            ranges.add(index * 100 + 1..=index * 100 + 1, LostReason::Corrupt);
        }
        assert_eq!(ranges.add(305..=305, LostReason::Overflow), 1 + 3, "302, 303 and 304 go with it");
        assert_eq!(ranges.0.len(), LostRanges::MAX);
        assert_eq!(ranges.at(303).map(|range| (range.first, range.last)), Some((301, 305)));
        assert_eq!(ranges.at(306), None);
    }
}
