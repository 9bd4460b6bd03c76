//! Records in the hands of one producer, in their order: which of them are done, and up to which all are.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use protocol::Timestamp;
use spool::{Entry, Reader};

use crate::header;
use crate::record::Record;
use crate::route::Target;

/// Records that are done although one before them is not, and those that are under way. When there are so many, no more are
/// taken from the log: beside dead letters, nothing else bounds them.
const MOST: usize = 1 << 16;

/// Records in the hands of one producer.
pub(super) struct Window {
    pub(super) reader: Reader,
    /// Read, and not taken by the producer yet.
    pub(super) held: VecDeque<Entry>,
    /// In order; the first is not done.
    slots: VecDeque<Slot>,
    /// How many of them wait for a report.
    pub(super) under_way: usize,
    /// The group of the last that was given to the producer.
    group: Option<u64>,
    /// Ranges that were dropped as the class asks for; the next record that is sent says so, and they count as done with it.
    pub(super) dropped: Vec<(u64, u64)>,
}

struct Slot {
    /// Its number, or the last one of a range that is lost.
    last: u64,
    state: State,
}

enum State {
    /// The producer has it, for there; received then.
    UnderWay(Arc<Target>, Timestamp),
    /// Delivered, buried or lost.
    Done,
    /// Given up by the producer; received then.
    Failed(Timestamp),
    /// A topic is asked by it; received then.
    Asks(Timestamp),
}

impl Window {
    pub(super) fn new(reader: Reader) -> Self {
        Self { reader, held: VecDeque::new(), slots: VecDeque::new(), under_way: 0, group: None, dropped: Vec::new() }
    }

    /// Keeps a record for later that was read and not sent.
    pub(super) fn hold(&mut self, sequence: u64, bytes: Vec<u8>) {
        self.held.push_front(Entry::Record { sequence, key: true, bytes });
    }

    pub(super) fn sent(&mut self, sequence: u64, group: Option<u64>, target: Arc<Target>, received: Timestamp) {
        self.under_way += 1;
        self.group = group;
        self.dropped.clear();
        self.slots.push_back(Slot { last: sequence, state: State::UnderWay(target, received) });
    }

    pub(super) fn done(&mut self, last: u64) {
        self.slots.push_back(Slot { last, state: State::Done });
    }

    /// A topic is asked by this record: what comes after does not wait for that.
    pub(super) fn asks(&mut self, sequence: u64, received: Timestamp) {
        self.slots.push_back(Slot { last: sequence, state: State::Asks(received) });
    }

    /// The record by which a topic was asked is done.
    pub(super) fn answered(&mut self, sequence: u64) {
        let at = self.slots.partition_point(|slot| slot.last < sequence);
        if let Some(slot) = self.slots.get_mut(at).filter(|slot| slot.last == sequence) {
            slot.state = State::Done;
        }
    }

    /// The reason for a dead letter, and what was dropped before it: it may be the only one to say so.
    pub(super) fn and_dropped(&self, reason: String) -> String {
        if self.dropped.is_empty() {
            reason
        } else {
            format!("{reason}; dropped before it: {}", header::dropped(&self.dropped))
        }
    }

    /// Whether it takes no more.
    pub(super) fn is_full(&self) -> bool {
        self.slots.len() >= MOST
    }

    /// Whether a record of this group may not be sent yet: a group travels alone, and what is after it waits for its reports.
    pub(super) fn must_wait(&self, group: Option<u64>) -> bool {
        self.under_way > 0 && self.group != group
    }

    /// When the first was received that waits for a report.
    pub(super) fn since(&self) -> Option<Timestamp> {
        self.slots.iter().find_map(|slot| match slot.state {
            State::UnderWay(_, received) | State::Asks(received) => Some(received),
            State::Done | State::Failed(_) => None,
        })
    }

    /// The last number that was dropped, when nothing came after.
    pub(super) fn dropped_last(&self) -> Option<u64> {
        self.dropped.last().filter(|_| self.slots.is_empty()).map(|(_, last)| *last)
    }

    /// When the first was received that is not done: given up, under way or held.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        let sent = self.slots.iter().find_map(|slot| match slot.state {
            State::UnderWay(_, received) | State::Failed(received) | State::Asks(received) => Some(received),
            State::Done => None,
        });
        sent.or_else(|| {
            self.held.iter().find_map(|entry| match entry {
                Entry::Record { bytes, .. } => Record::received(bytes),
                Entry::Lost(_) => None,
            })
        })
    }

    /// Notes the report on a record, and gives where that was to go; `None` when it is not awaited.
    pub(super) fn settle(&mut self, sequence: u64, delivered: bool) -> Option<Arc<Target>> {
        let at = self.slots.partition_point(|slot| slot.last < sequence);
        let slot = self.slots.get_mut(at).filter(|slot| slot.last == sequence)?;
        match std::mem::replace(&mut slot.state, State::Done) {
            State::UnderWay(target, received) => {
                if !delivered {
                    slot.state = State::Failed(received);
                }
                self.under_way -= 1;
                Some(target)
            }
            settled => {
                slot.state = settled;
                None
            }
        }
    }

    /// The last of those that are done without one before them that is not.
    pub(super) fn delivered(&self) -> Option<u64> {
        self.slots.iter().take_while(|slot| matches!(slot.state, State::Done)).last().map(|slot| slot.last)
    }

    pub(super) fn forget(&mut self, through: u64) {
        while self.slots.front().is_some_and(|slot| slot.last <= through) {
            self.slots.pop_front();
        }
    }

    /// Those that are done although one before them is not.
    pub(super) fn ahead(&self) -> BTreeSet<u64> {
        self.slots.iter().filter(|slot| matches!(slot.state, State::Done)).map(|slot| slot.last).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Notes;
    use crate::sink::suspects::Suspects;
    use spool::LostRange;

    fn window() -> Window {
        let spool = spool::Spool::memory(1 << 20, 1);
        Window::new(spool.read_from(1))
    }

    fn target() -> Arc<Target> {
        Arc::new(Target { topic: "t".into(), key: "k".into(), headers: Vec::new(), route: 1 })
    }

    #[test]
    fn what_is_delivered_before_another_is_not_let_go_before_it() {
        let mut window = window();
        for sequence in 1..=4 {
            window.sent(sequence, None, target(), Timestamp::from_millis(0));
        }
        window.done(9);
        assert!(window.settle(3, true).is_some() && window.settle(2, false).is_some());
        assert_eq!((window.delivered(), window.under_way), (None, 2));
        assert!(window.settle(3, true).is_none(), "a second report changes nothing");
        window.settle(1, true);
        assert_eq!(window.delivered(), Some(1));
        window.forget(1);
        assert_eq!(window.delivered(), None);
        assert_eq!(window.ahead(), [3, 9].into());
        assert_eq!(window.under_way, 1);
    }

    #[test]
    fn suspects_travel_with_their_group_alone() {
        let (mut window, mut suspects) = (window(), Suspects::default());
        [5, 6, 7, 8, 9].into_iter().for_each(|sequence| assert!(!suspects.refused(sequence)));
        suspects.divide(5);
        let group = |sequence| suspects.group(sequence);
        assert!(!window.must_wait(group(5)));
        for sequence in [5, 6] {
            window.sent(sequence, group(sequence), target(), Timestamp::from_millis(0));
        }
        assert!(!window.must_wait(group(6)) && window.must_wait(group(7)) && window.must_wait(group(10)));
        window.settle(6, true);
        assert!(window.must_wait(group(7)), "the other is still under way");
        window.settle(5, true);
        assert!(!window.must_wait(group(7)));
        window.sent(10, group(10), target(), Timestamp::from_millis(0));
        assert!(!window.must_wait(group(11)) && window.must_wait(group(9)));
    }

    #[test]
    fn the_oldest_is_the_first_that_is_not_done_whatever_is_confirmed_after_it() {
        let mut window = window();
        let at = Timestamp::from_millis;
        let record = Record {
            mqtt: "m",
            topic: "t",
            payload: b"1",
            received: at(9),
            qos: 1,
            retained: false,
            duplicate: false,
            notes: Notes::default(),
        };
        assert_eq!(window.oldest(), None);
        window.sent(1, None, target(), at(1));
        window.sent(2, None, target(), at(2));
        window.hold(3, record.encoded());
        window.settle(2, true);
        assert_eq!(window.oldest(), Some(at(1)));
        window.settle(1, false);
        assert_eq!(window.oldest(), Some(at(1)), "what was given up waits for the next producer");
        window.forget(2);
        assert_eq!(window.oldest(), Some(at(9)));
        window.held.push_front(Entry::Lost(LostRange { first: 3, last: 3, reason: spool::LostReason::Overflow }));
        assert_eq!(window.oldest(), Some(at(9)), "what is lost does not wait");
        window.held.clear();
        assert_eq!(window.oldest(), None, "all is delivered");
    }

    #[test]
    fn it_is_full_until_what_it_waits_for_is_done() {
        let mut window = window();
        window.sent(1, None, target(), Timestamp::from_millis(0));
        (2..MOST as u64).for_each(|sequence| window.done(sequence));
        assert!(!window.is_full());
        window.done(MOST as u64);
        assert!(window.is_full());
        window.settle(1, true);
        let through = window.delivered().unwrap();
        window.forget(through);
        assert_eq!((through, window.is_full()), (MOST as u64, false));
    }
}
