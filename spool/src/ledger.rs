//! Which numbers are given out, acknowledged and lost: what the cursor file keeps.

use crate::lost::{LostRanges, LostReason};

/// The account of one epoch's numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// The spool's life these numbers belong to.
    pub(crate) epoch: u64,
    /// Everything up to and including this number is acknowledged.
    pub(crate) acknowledged: u64,
    /// The number the next record gets.
    pub(crate) next: u64,
    /// First number of the newest segment, 0 before there is one.
    pub(crate) newest_segment: u64,
    /// Numbers ever lost in this epoch.
    pub(crate) lost_total: u64,
    /// What is lost and not acknowledged.
    pub(crate) lost: LostRanges,
}

impl Ledger {
    /// The ledger of an epoch that begins.
    pub(crate) fn new(epoch: u64) -> Self {
        Self { epoch, acknowledged: 0, next: 1, newest_segment: 0, lost_total: 0, lost: LostRanges::default() }
    }

    /// Gives out a number.
    pub(crate) fn take(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// The last number given out, 0 before there is one.
    pub(crate) fn last(&self) -> u64 {
        self.next - 1
    }

    /// The first number that is not acknowledged.
    pub(crate) fn first(&self) -> u64 {
        self.acknowledged + 1
    }

    /// Notes that these numbers are lost, but for those acknowledged; they are never given out again. Gives back
    /// whether any was new.
    pub(crate) fn lose(&mut self, first: u64, last: u64, reason: LostReason) -> bool {
        let first = first.max(self.first());
        if first > last {
            return false;
        }
        let new = self.lost.add(first..=last, reason);
        self.lost_total += new;
        self.next = self.next.max(last + 1);
        new > 0
    }

    /// Notes that everything up to and including `through` has arrived; gives back whether that is news.
    pub(crate) fn acknowledge(&mut self, through: u64) -> bool {
        if through <= self.acknowledged {
            return false;
        }
        self.acknowledged = through;
        self.next = self.next.max(through + 1);
        self.lost.forget(through);
        true
    }

    /// Records given out, not acknowledged and not lost.
    pub(crate) fn pending(&self) -> u64 {
        self.last() - self.acknowledged - self.lost.count()
    }
}
