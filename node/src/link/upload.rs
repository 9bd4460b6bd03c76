//! The telemetry half of a session: the newest state first, then the backlog as fast as the hub stores it.

use std::collections::VecDeque;
use std::time::Duration;

use protocol::Sequence;
use protocol::delivery::{DeliveryError, Outbox};
use protocol::frame;
use protocol::message::{self, Acknowledge, SpoolRange, upload};
use protocol::session::Welcomed;
use tokio::time::Instant;
use transport::{Connection, FrameReader, FrameWriter, StreamError};

use super::session::Failure;
use super::{Actor, Trouble, TroubleKind};
use crate::backlog::{BacklogError, Entry};

/// Bytes of batches read from the spool at a time.
const READ_BYTES: usize = 128 * 1024;
/// While the backlog drains, the newest state goes past it this often.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(5);

/// The upload of one session.
pub(super) struct Upload<'a> {
    actor: &'a Actor,
    range: SpoolRange,
    stored: Option<Acknowledge>,
    /// Read from the backlog and not sent yet.
    ahead: VecDeque<Entry>,
    /// The last number sent in this session.
    sent: Sequence,
    snapshot_at: Instant,
}

/// The telemetry stream. It outlives the upload: its end would look to the hub like the session's.
pub(super) struct Stream {
    writer: FrameWriter,
    reader: FrameReader,
}

impl Stream {
    pub(super) async fn open(connection: &Connection) -> Result<Self, Failure> {
        let (writer, reader) = connection.open(frame::MAX_TELEMETRY).await.map_err(StreamError::Closed)?;
        // Commands never queue behind telemetry.
        writer.set_priority(-1);
        Ok(Self { writer, reader })
    }
}

impl<'a> Upload<'a> {
    pub(super) fn new(actor: &'a Actor, range: SpoolRange, welcomed: &Welcomed) -> Self {
        let stored = welcomed.stored;
        Self { actor, range, stored, ahead: VecDeque::new(), sent: Sequence(0), snapshot_at: Instant::now() }
    }

    /// Runs until shutdown, and then until the hub has stored everything.
    pub(super) async fn run(&mut self, stream: &mut Stream) -> Result<(), Failure> {
        let recorder = &self.actor.options.recorder;
        let backlog = recorder.backlog();
        self.send_snapshot(stream).await?;

        let mut outbox = self.open_outbox().await?;
        let (mut appended, mut snapshot_due) = (backlog.known(), recorder.snapshot_due());
        // What was gathered while there was no session goes now.
        let mut flush = Box::pin(recorder.flush());
        let (mut flushed, mut draining) = (false, false);
        loop {
            outbox.written(appended.borrow_and_update().last);
            self.pump(&mut outbox, stream).await?;
            if draining && flushed && outbox.is_settled() {
                return Ok(());
            }
            tokio::select! {
                biased;
                acknowledge = stream.reader.recv::<Acknowledge>() => {
                    let acknowledge = acknowledge?.ok_or(StreamError::Finished)?;
                    if let Some(through) = outbox.acknowledge(&acknowledge).map_err(of_delivery)? {
                        self.stored_through(through).await?;
                    }
                }
                _ = appended.changed() => {
                    let waiting = appended.borrow().last.0.saturating_sub(self.sent.0);
                    if waiting > 1 && self.snapshot_at.elapsed() >= SNAPSHOT_EVERY {
                        self.send_snapshot(stream).await?;
                    }
                }
                Ok(()) = snapshot_due.changed() => self.send_snapshot(stream).await?,
                () = &mut flush, if !flushed => flushed = true,
                () = self.actor.shutdown.cancelled(), if !draining => {
                    draining = true;
                    flushed = false;
                    flush.set(recorder.flush());
                }
            }
        }
    }

    async fn open_outbox(&self) -> Result<Outbox, Failure> {
        let stored = self.stored.filter(|stored| stored.epoch == self.range.epoch);
        let through = Sequence(stored.map_or(0, |stored| stored.through));
        let backlog = self.actor.options.recorder.backlog();
        let key = backlog.last_key_at_or_before(through.next()).await.map_err(of_backlog)?;
        let opened = Outbox::open(&self.range, stored.as_ref(), |_| key);
        // Also when the hub is ahead: then the spool goes on after what the hub has, in the next session.
        self.stored_through(through).await?;
        opened.map_err(of_delivery)
    }

    /// Sends what the window allows.
    async fn pump(&mut self, outbox: &mut Outbox, stream: &mut Stream) -> Result<(), Failure> {
        while let Some(from) = outbox.next() {
            if self.ahead.front().is_none_or(|entry| entry.first() != from) {
                let backlog = self.actor.options.recorder.backlog();
                self.ahead = backlog.read(from, READ_BYTES).await.map_err(of_backlog)?.into();
            }
            if self.ahead.front().is_none_or(|entry| entry.first() != from) {
                // Not durable yet: its sync will be heard of.
                return Ok(());
            }
            let mut uploads = Vec::with_capacity(self.ahead.len());
            while let Some(entry) = self.ahead.pop_front_if(|entry| outbox.next() == Some(entry.first())) {
                match entry {
                    Entry::Batch { sequence, key, body } => {
                        let bytes = body.len();
                        // No message: the outbox goes back to the key batch that this one builds on.
                        let Some(upload) = outbox.batch(key, body) else { break };
                        self.actor.count_sent(sequence.0, bytes);
                        self.sent = self.sent.max(sequence);
                        uploads.push(upload);
                    }
                    Entry::Lost { first, last, reason } => {
                        tracing::warn!(%first, %last, ?reason, "batches are lost; the hub is told");
                        self.sent = self.sent.max(last);
                        uploads.push(outbox.lost(last, reason));
                    }
                }
            }
            stream.writer.send_all(&uploads).await?;
        }
        Ok(())
    }

    async fn stored_through(&self, through: Sequence) -> Result<(), Failure> {
        let backlog = self.actor.options.recorder.backlog();
        let acknowledged = backlog.acknowledge(through).await.map_err(of_backlog)?;
        self.actor.counters.acknowledged(acknowledged);
        Ok(())
    }

    async fn send_snapshot(&mut self, stream: &mut Stream) -> Result<(), Failure> {
        self.snapshot_at = Instant::now();
        let snapshot = upload::Message::Snapshot(self.actor.options.recorder.snapshot());
        Ok(stream.writer.send(&message::Upload { message: Some(snapshot) }).await?)
    }
}

fn of_backlog(error: BacklogError) -> Failure {
    Trouble::new(TroubleKind::Disk, error.to_string()).into()
}

fn of_delivery(error: DeliveryError) -> Failure {
    Trouble::new(TroubleKind::Broken, error.to_string()).into()
}
