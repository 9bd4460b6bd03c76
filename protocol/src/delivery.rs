//! Numbered delivery: a node's batches reach the hub's store each once and in order, or are accounted for as lost.
//!
//! The node's [`Outbox`] decides what to send next and the hub's [`Inbox`] what to make of it. Both live for one
//! session. What outlives it is the node's spool and the hub's store, and a session starts by comparing the two.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use crate::message::{Acknowledge, Batch, Lost, LostReason, SpoolRange, Upload, upload};
use crate::{Sequence, SpoolEpoch};

/// Most batches sent and not acknowledged; a node then waits.
pub const WINDOW_BATCHES: usize = 64;
/// Most bytes of batches sent and not acknowledged; a single larger batch still goes when nothing else is in flight.
pub const WINDOW_BYTES: usize = 1024 * 1024;

/// The node's side of one session: what of the spool goes next.
///
/// Ask [`Self::next`] for a number, read that number from the spool, and hand what was found to [`Self::batch`] or
/// [`Self::lost`]; send what they give. A batch must be durable in the spool before it is sent: its number must never
/// come to mean something else.
#[derive(Debug)]
pub struct Outbox {
    epoch: SpoolEpoch,
    /// The hub has everything up to here.
    acknowledged: u64,
    /// The next number to send.
    next: u64,
    /// The last number in the spool.
    last: u64,
    /// The hub can't decode the next batch unless it is a key batch.
    needs_key: bool,
    /// Where to go back to when the first batch turns out to be a delta batch.
    rewind: Option<u64>,
    /// Last number and size of each message in flight, oldest first.
    in_flight: VecDeque<(u64, usize)>,
    bytes_in_flight: usize,
    /// Most batches and bytes in flight.
    window: (usize, usize),
}

impl Outbox {
    /// Opens a session. `spool` is what the node said in its Hello, `stored` what the hub answered in its Welcome, and
    /// `key` finds the last key batch at or before a number in the spool.
    ///
    /// # Errors
    /// [`DeliveryError::HubAhead`] when the hub has numbers of this epoch that the spool does not: the spool went back
    /// in time (a restored disk image, a lost write) and its next numbers are taken. It must start a new epoch.
    pub fn open(
        spool: &SpoolRange,
        stored: Option<&Acknowledge>,
        key: impl FnOnce(Sequence) -> Option<Sequence>,
    ) -> Result<Self, DeliveryError> {
        let acknowledged = stored.filter(|stored| stored.epoch == spool.epoch).map_or(0, |stored| stored.through);
        if acknowledged > spool.last {
            return Err(DeliveryError::HubAhead { stored: Sequence(acknowledged), last: Sequence(spool.last) });
        }
        let first = acknowledged + 1;
        Ok(Self {
            epoch: SpoolEpoch(spool.epoch),
            acknowledged,
            next: first,
            last: spool.last,
            needs_key: true,
            rewind: key(Sequence(first)).map(|key| key.0).filter(|key| (1..first).contains(key)),
            in_flight: VecDeque::new(),
            bytes_in_flight: 0,
            window: (WINDOW_BATCHES, WINDOW_BYTES),
        })
    }

    /// The same with a smaller window.
    #[must_use]
    pub fn within(self, batches: usize, bytes: usize) -> Self {
        Self { window: (batches.min(WINDOW_BATCHES), bytes.min(WINDOW_BYTES)), ..self }
    }

    /// The number to send next; `None` when the window is full or everything is sent.
    pub fn next(&self) -> Option<Sequence> {
        let (batches, bytes) = self.window;
        let room = self.in_flight.is_empty() || self.in_flight.len() < batches && self.bytes_in_flight < bytes;
        (room && self.next <= self.last).then_some(Sequence(self.next))
    }

    /// The spool has grown up to `last`.
    pub fn written(&mut self, last: Sequence) {
        self.last = self.last.max(last.0);
    }

    /// The message for the batch that has the number [`Self::next`] gave; `None`: ask for the next number again, since
    /// the session must start at an earlier key batch (a node that makes its first batch of a session a key batch
    /// spares itself that). A delta batch whose predecessor is lost can be decoded by nobody, and goes as lost too.
    pub fn batch(&mut self, key: bool, body: Vec<u8>) -> Option<Upload> {
        if self.needs_key && !key {
            if let Some(earlier) = self.rewind.take() {
                self.next = earlier;
                return None;
            }
            return Some(self.lost(Sequence(self.next), LostReason::Corrupt));
        }
        self.needs_key = false;
        self.rewind = None;
        let sequence = self.next;
        self.advance(sequence, body.len());
        let batch = Batch { epoch: self.epoch.0, sequence, body };
        Some(Upload { message: Some(upload::Message::Batch(batch)) })
    }

    /// The message for numbers the spool no longer has: those from [`Self::next`] through `last`.
    pub fn lost(&mut self, last: Sequence, reason: LostReason) -> Upload {
        self.needs_key = true;
        self.rewind = None;
        let first = self.next;
        let last = last.0.clamp(first, self.last.max(first));
        self.advance(last, 0);
        let lost = Lost { epoch: self.epoch.0, first, last, reason: reason.into() };
        Upload { message: Some(upload::Message::Lost(lost)) }
    }

    /// The hub has stored more. Gives the number up to which the spool may let go, when that is news.
    ///
    /// # Errors
    /// [`DeliveryError`] for another epoch, or for a number that was never sent.
    pub fn acknowledge(&mut self, acknowledge: &Acknowledge) -> Result<Option<Sequence>, DeliveryError> {
        self.check_epoch(acknowledge.epoch)?;
        let through = acknowledge.through;
        if through <= self.acknowledged {
            return Ok(None);
        }
        if through >= self.next {
            return Err(DeliveryError::NeverSent { through: Sequence(through), sent: Sequence(self.next - 1) });
        }
        self.acknowledged = through;
        while let Some((last, bytes)) = self.in_flight.front()
            && *last <= through
        {
            self.bytes_in_flight -= bytes;
            self.in_flight.pop_front();
        }
        Ok(Some(Sequence(through)))
    }

    /// Whether the hub has everything the spool has.
    pub fn is_settled(&self) -> bool {
        self.acknowledged >= self.last
    }

    /// The spool's epoch.
    pub fn epoch(&self) -> SpoolEpoch {
        self.epoch
    }

    fn advance(&mut self, last: u64, bytes: usize) {
        self.next = last.saturating_add(1);
        // What the hub has already is sent for its decoder only and never acknowledged by itself.
        if last > self.acknowledged {
            self.in_flight.push_back((last, bytes));
            self.bytes_in_flight += bytes;
        }
    }

    fn check_epoch(&self, found: u64) -> Result<(), DeliveryError> {
        check_epoch(self.epoch, found)
    }
}

/// The hub's side of one session: what of an upload is new.
#[derive(Debug)]
pub struct Inbox {
    epoch: SpoolEpoch,
    /// Everything up to here is accepted: stored, or on its way into the store.
    accepted: u64,
    /// Everything up to here is stored.
    stored: u64,
    /// The last number of this session, once there is one.
    last: Option<u64>,
    /// The next batch must be a key batch.
    needs_key: bool,
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// New: decode and store it.
    Accept,
    /// Stored already: decode it for the state that later batches continue from, and do nothing else with it.
    Duplicate,
}

impl Inbox {
    /// Opens a session. `stored` is the number up to which the store has `epoch` of this node; `None`: nothing.
    pub fn open(epoch: SpoolEpoch, stored: Option<Sequence>) -> Self {
        let stored = stored.map_or(0, |stored| stored.0);
        Self { epoch, accepted: stored, stored, last: None, needs_key: true }
    }

    /// What to answer in the Welcome.
    pub fn position(&self) -> Option<Acknowledge> {
        (self.stored > 0).then_some(Acknowledge { epoch: self.epoch.0, through: self.stored })
    }

    /// Judges a batch; `key` is what its body says.
    ///
    /// # Errors
    /// [`DeliveryError`] when it is not the batch that follows; the session can't go on.
    pub fn batch(&mut self, batch: &Batch, key: bool) -> Result<Verdict, DeliveryError> {
        self.follow(batch.epoch, batch.sequence, batch.sequence)?;
        if self.needs_key && !key {
            return Err(DeliveryError::NotKey(Sequence(batch.sequence)));
        }
        self.needs_key = false;
        self.last = Some(batch.sequence);
        if batch.sequence <= self.accepted {
            return Ok(Verdict::Duplicate);
        }
        self.accepted = batch.sequence;
        Ok(Verdict::Accept)
    }

    /// Judges a report of lost numbers; gives those of them that are to be recorded as lost: the ones not stored.
    ///
    /// # Errors
    /// [`DeliveryError`] when they are not the numbers that follow; the session can't go on.
    pub fn lost(&mut self, lost: &Lost) -> Result<Option<RangeInclusive<u64>>, DeliveryError> {
        self.follow(lost.epoch, lost.first, lost.last)?;
        self.needs_key = true;
        self.last = Some(lost.last);
        let new = lost.first.max(self.accepted + 1)..=lost.last;
        self.accepted = self.accepted.max(lost.last);
        Ok((!new.is_empty()).then_some(new))
    }

    /// Everything accepted up to `through` is durable. Gives the acknowledgement to send, when that is news.
    pub fn committed(&mut self, through: Sequence) -> Option<Acknowledge> {
        let through = through.0.min(self.accepted);
        if through <= self.stored {
            return None;
        }
        self.stored = through;
        self.position()
    }

    /// Everything up to here is accepted.
    pub fn accepted(&self) -> Sequence {
        Sequence(self.accepted)
    }

    /// The spool's epoch.
    pub fn epoch(&self) -> SpoolEpoch {
        self.epoch
    }

    /// Checks that `first..=last` of `epoch` is what comes next.
    fn follow(&self, epoch: u64, first: u64, last: u64) -> Result<(), DeliveryError> {
        check_epoch(self.epoch, epoch)?;
        if first == 0 || last < first || last == u64::MAX {
            return Err(DeliveryError::Number { first, last });
        }
        // A session may start at any number the hub has; from there on, number follows number.
        let expected = self.last.unwrap_or(self.accepted) + 1;
        if first > expected || first < expected && self.last.is_some() {
            return Err(DeliveryError::Gap { expected: Sequence(expected), found: Sequence(first) });
        }
        Ok(())
    }
}

/// A break of numbered delivery. The session ends; the next one starts from what is stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliveryError {
    /// The hub has numbers that the spool has not used yet.
    #[error(
        "the hub has batches up to {stored} of this spool, which holds none after {last}: the spool was set back, \
         by a restored disk image or a lost write; start a new spool epoch"
    )]
    HubAhead {
        /// What the hub has.
        stored: Sequence,
        /// Last number of the spool.
        last: Sequence,
    },
    /// An acknowledgement of something not sent.
    #[error("the hub acknowledged batch {through}, and only those up to {sent} were sent")]
    NeverSent {
        /// What it acknowledged.
        through: Sequence,
        /// Last number sent.
        sent: Sequence,
    },
    /// A message of another spool epoch.
    #[error("a message is of spool epoch {found}, and this session is of {expected}")]
    Epoch {
        /// The session's.
        expected: SpoolEpoch,
        /// The message's.
        found: SpoolEpoch,
    },
    /// A number that follows no other.
    #[error("batch {expected} was due and {found} came: batches between them are missing, or came twice")]
    Gap {
        /// Number due.
        expected: Sequence,
        /// Number found.
        found: Sequence,
    },
    /// A delta batch where nothing is there to continue from.
    #[error("batch {0} continues from one that this session did not bring; a session starts at a key batch")]
    NotKey(Sequence),
    /// Numbers that can't be.
    #[error("{first} to {last} is no range of batch numbers")]
    Number {
        /// Claimed first.
        first: u64,
        /// Claimed last.
        last: u64,
    },
}

fn check_epoch(expected: SpoolEpoch, found: u64) -> Result<(), DeliveryError> {
    let found = SpoolEpoch(found);
    if found == expected { Ok(()) } else { Err(DeliveryError::Epoch { expected, found }) }
}

impl SpoolRange {
    /// A spool's range as said in a Hello: `first..=last`, or empty with `first` = `last` + 1.
    pub fn new(epoch: SpoolEpoch, first: Sequence, last: Sequence) -> Self {
        Self { epoch: epoch.0, first: first.0, last: last.0 }
    }
}
