//! Looks for the records that are refused among those of refused batches: in groups, which are divided until a record that is
//! refused was alone.

use std::collections::BTreeMap;

/// Records of refused batches, in groups that are sent beside no other record.
#[derive(Default)]
pub(super) struct Suspects {
    /// The first and the last of each group; what lies between and is not delivered goes with it.
    groups: BTreeMap<u64, u64>,
    /// Refused since the last division, beside others.
    refused: Vec<u64>,
}

impl Suspects {
    /// The group of a record, by its first; none when it is not suspected.
    pub(super) fn group(&self, sequence: u64) -> Option<u64> {
        let (first, last) = self.groups.range(..=sequence).next_back()?;
        (sequence <= *last).then_some(*first)
    }

    /// Its batch was refused; gives whether it was alone there.
    pub(super) fn refused(&mut self, sequence: u64) -> bool {
        let alone = self.groups.get(&sequence) == Some(&sequence);
        if alone {
            self.groups.remove(&sequence);
        } else {
            self.refused.push(sequence);
        }
        alone
    }

    /// Divides what was refused into about as many groups as each has records: one that is not refused costs a round trip, and
    /// one that is, a producer. What is before `first` is delivered.
    pub(super) fn divide(&mut self, first: u64) {
        self.groups.retain(|_, last| *last >= first);
        let mut refused = std::mem::take(&mut self.refused);
        refused.sort_unstable();
        for group in refused.chunks(refused.len().isqrt().max(1)) {
            if let (Some(first), Some(last)) = (group.first(), group.last()) {
                self.groups.insert(*first, *last);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Sends records 1 to `count` to a broker that refuses each batch with one of these in it. Gives which were found, in how
    /// many producers and batches.
    fn find(count: u64, refused: &BTreeSet<u64>) -> (BTreeSet<u64>, usize, usize) {
        let mut suspects = Suspects::default();
        let (mut left, mut found) = ((1..=count).collect::<Vec<_>>(), BTreeSet::new());
        let (mut producers, mut batches) = (0, 0);
        while !left.is_empty() {
            producers += 1;
            assert!(producers < 1000);
            let parts = left.chunk_by(|one, next| suspects.group(*one) == suspects.group(*next));
            for batch in parts.map(<[u64]>::to_vec).collect::<Vec<_>>() {
                batches += 1;
                if batch.iter().any(|sequence| refused.contains(sequence)) {
                    found.extend(batch.into_iter().filter(|sequence| suspects.refused(*sequence)));
                    left.retain(|sequence| !found.contains(sequence));
                    break;
                }
                left.retain(|sequence| !batch.contains(sequence));
            }
            suspects.divide(left.first().copied().unwrap_or_default());
        }
        (found, producers, batches)
    }

    #[test]
    fn what_is_refused_is_found_without_sending_all_of_its_batch_one_by_one() {
        assert_eq!(find(1, &[1].into()), ([1].into(), 2, 2));
        for refused in [1, 500, 1000] {
            let (found, producers, batches) = find(1000, &[refused].into());
            assert_eq!(found, [refused].into());
            assert!(producers < 10 && batches < 60, "{producers} producers, {batches} batches");
        }
        let refused = [3, 4, 77, 601].into();
        let (found, producers, batches) = find(1000, &refused);
        assert_eq!(found, refused);
        assert!(producers < 25 && batches < 120, "{producers} producers, {batches} batches");
    }
}
