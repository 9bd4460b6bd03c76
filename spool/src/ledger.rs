//! Which numbers are given out, acknowledged and lost: what the cursor file keeps.

use crate::lost::{LostRanges, LostReason};

/// The account of one epoch's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// The spool's life these numbers belong to.
    pub(crate) epoch: u64,
    /// Everything up to and including this number is acknowledged.
    pub(crate) acknowledged: u64,
    /// The number the next record gets.
    pub(crate) next: u64,
    /// First number of the newest segment, 0 before there is one.
    pub(crate) newest_segment: u64,
    /// Numbers ever lost in this epoch, but for those that are held.
    pub(crate) lost_total: u64,
    /// What is lost and not acknowledged.
    pub(crate) lost: LostRanges,
    /// Whoever delivers has taken what there was through this number.
    pub(crate) taken: u64,
    /// What was lost after it was taken: it may arrive all the same.
    pub(crate) held: LostRanges,
}

impl Ledger {
    /// The ledger of an epoch that begins.
    pub(crate) fn new(epoch: u64) -> Self {
        Self { epoch, next: 1, ..Self::default() }
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
        let before = self.held.count();
        self.hold(first, last.min(self.taken), reason);
        let new = self.lost.add(first..=last, reason);
        self.lost_total += new.saturating_sub(self.held.count() - before);
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
        self.held.forget(through);
        true
    }

    /// Somebody begins to deliver what is not acknowledged: what is lost of it is not to be had any more.
    pub(crate) fn begin_delivery(&mut self) {
        self.lost_total += std::mem::take(&mut self.held).count();
        self.taken = self.acknowledged;
    }

    /// Holds what of these numbers is not lost yet.
    fn hold(&mut self, mut first: u64, last: u64, reason: LostReason) {
        while first <= last {
            if let Some(known) = self.lost.at(first) {
                first = known.last + 1;
                continue;
            }
            let end = self.lost.next_from(first).map_or(last, |next| last.min(next - 1));
            self.held.add(first..=end, reason);
            first = end + 1;
        }
    }

    /// Records given out, not acknowledged and not lost.
    pub(crate) fn pending(&self) -> u64 {
        self.last() - self.acknowledged - self.lost.count()
    }
}
