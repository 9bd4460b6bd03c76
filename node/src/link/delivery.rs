//! Numbered batches on their way: what of a backlog goes next, in the window that the hub allows.

use std::collections::VecDeque;

use protocol::Sequence;
use protocol::delivery::{DeliveryError, Outbox};
use protocol::message::{Acknowledge, SpoolRange, Upload};

use super::session::Failure;
use super::{Trouble, TroubleKind};
use crate::backlog::{Backlog, BacklogError, Entry};

/// Bytes of batches read from the spool at a time.
const READ_BYTES: usize = 128 * 1024;

/// One backlog's delivery in one session.
pub(super) struct Delivery<'a> {
    backlog: &'a Backlog,
    outbox: Outbox,
    /// Read from the backlog and not sent yet.
    ahead: VecDeque<Entry>,
    /// The last number sent in this session.
    sent: Sequence,
}

impl<'a> Delivery<'a> {
    /// Opens it: `range` is what Hello said, `stored` what Welcome answered. Gives also how many batches were let go of,
    /// because the hub has them.
    pub(super) async fn open(
        backlog: &'a Backlog,
        range: &SpoolRange,
        stored: Option<Acknowledge>,
    ) -> Result<(Self, u64), Failure> {
        let stored = stored.filter(|stored| stored.epoch == range.epoch);
        let through = Sequence(stored.map_or(0, |stored| stored.through));
        let key = backlog.last_key_at_or_before(through.next()).await?;
        let opened = Outbox::open(range, stored.as_ref(), |_| key);
        // Also when the hub is ahead: then the spool goes on after what the hub has, in the next session.
        let let_go = backlog.acknowledge(through).await?;
        Ok((Self { backlog, outbox: opened?, ahead: VecDeque::new(), sent: Sequence(0) }, let_go))
    }

    /// The same with a smaller window.
    pub(super) fn within(self, (batches, bytes): (usize, usize)) -> Self {
        Self { outbox: self.outbox.within(batches, bytes), ..self }
    }

    /// The backlog has grown up to `last`.
    pub(super) fn written(&mut self, last: Sequence) {
        self.outbox.written(last);
    }

    /// The last number sent in this session.
    pub(super) fn sent(&self) -> Sequence {
        self.sent
    }

    /// Whether the hub has everything the backlog has.
    pub(super) fn is_settled(&self) -> bool {
        self.outbox.is_settled()
    }

    /// What to send now; nothing when the window is full, or all is sent that is durable. `count` is told the number and
    /// size of each batch.
    pub(super) async fn next(&mut self, mut count: impl FnMut(Sequence, usize)) -> Result<Vec<Upload>, Failure> {
        let mut uploads = Vec::new();
        while let Some(from) = self.outbox.next()
            && uploads.is_empty()
        {
            if self.ahead.front().is_none_or(|entry| entry.first() != from) {
                self.ahead = self.backlog.read(from, READ_BYTES).await?.into();
            }
            if self.ahead.front().is_none_or(|entry| entry.first() != from) {
                // Not durable yet: its sync will be heard of.
                break;
            }
            while let Some(entry) = self.ahead.pop_front_if(|entry| self.outbox.next() == Some(entry.first())) {
                match entry {
                    Entry::Batch { sequence, key, body } => {
                        let bytes = body.len();
                        // No message: the outbox goes back to the key batch that this one builds on.
                        let Some(upload) = self.outbox.batch(key, body) else { break };
                        count(sequence, bytes);
                        self.sent = self.sent.max(sequence);
                        uploads.push(upload);
                    }
                    Entry::Lost { first, last, reason } => {
                        tracing::warn!(%first, %last, ?reason, "batches are lost; the hub is told");
                        self.sent = self.sent.max(last);
                        uploads.push(self.outbox.lost(last, reason));
                    }
                }
            }
        }
        Ok(uploads)
    }

    /// The hub has stored more; gives how many batches were let go of.
    pub(super) async fn acknowledged(&mut self, acknowledge: &Acknowledge) -> Result<u64, Failure> {
        match self.outbox.acknowledge(acknowledge)? {
            Some(through) => Ok(self.backlog.acknowledge(through).await?),
            None => Ok(0),
        }
    }
}

impl From<BacklogError> for Failure {
    fn from(error: BacklogError) -> Self {
        Trouble::new(TroubleKind::Disk, error.to_string()).into()
    }
}

impl From<DeliveryError> for Failure {
    fn from(error: DeliveryError) -> Self {
        Trouble::new(TroubleKind::Broken, error.to_string()).into()
    }
}
