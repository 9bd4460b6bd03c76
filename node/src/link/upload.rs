//! The telemetry half of a session: the newest state first, then the backlog as fast as the hub stores it.

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

/// What is read from the spool at a time.
const READ_BATCHES: usize = 16;
const READ_BYTES: usize = 128 * 1024;
/// While the backlog drains, the newest state goes past it this often.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(5);

/// The upload of one session.
pub(super) struct Upload<'a> {
    actor: &'a Actor,
    connection: &'a Connection,
    range: SpoolRange,
    stored: Option<Acknowledge>,
    /// The last number sent in this session.
    sent: Sequence,
    snapshot_at: Instant,
}

struct Stream {
    writer: FrameWriter,
    reader: FrameReader,
}

impl<'a> Upload<'a> {
    pub(super) fn new(actor: &'a Actor, connection: &'a Connection, range: SpoolRange, welcomed: &Welcomed) -> Self {
        let stored = welcomed.stored;
        Self { actor, connection, range, stored, sent: Sequence(0), snapshot_at: Instant::now() }
    }

    /// Runs until shutdown, and then until the hub has stored everything.
    pub(super) async fn run(&mut self) -> Result<(), Failure> {
        let recorder = &self.actor.options.recorder;
        let backlog = recorder.backlog();
        let (writer, reader) = self.connection.open(frame::MAX_TELEMETRY).await.map_err(StreamError::Closed)?;
        // Commands never queue behind telemetry.
        writer.set_priority(-1);
        let mut stream = Stream { writer, reader };
        self.send_snapshot(&mut stream).await?;

        let mut outbox = self.open_outbox().await?;
        if let Some(through) = self.stored.filter(|stored| stored.epoch == self.range.epoch) {
            self.stored_through(Sequence(through.through)).await?;
        }
        let (mut appended, mut snapshot_due) = (backlog.appended(), recorder.snapshot_due());
        // What was gathered while there was no session goes now.
        let mut flush = Box::pin(recorder.flush());
        let (mut flushed, mut draining) = (false, false);
        loop {
            outbox.written(appended.borrow_and_update().last);
            self.pump(&mut outbox, &mut stream).await?;
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
                        self.send_snapshot(&mut stream).await?;
                    }
                }
                Ok(()) = snapshot_due.changed() => self.send_snapshot(&mut stream).await?,
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
        let stored = self.stored.filter(|stored| stored.epoch == self.range.epoch).map_or(0, |stored| stored.through);
        let backlog = self.actor.options.recorder.backlog();
        let key = backlog.last_key_at_or_before(Sequence(stored).next()).await.map_err(of_backlog)?;
        match Outbox::open(&self.range, self.stored.as_ref(), |_| key) {
            Ok(outbox) => Ok(outbox),
            Err(error) => Err(of_delivery(error)),
        }
    }

    /// Sends what the window allows.
    async fn pump(&mut self, outbox: &mut Outbox, stream: &mut Stream) -> Result<(), Failure> {
        let backlog = self.actor.options.recorder.backlog();
        while let Some(from) = outbox.next() {
            let entries = backlog.read(from, READ_BATCHES, READ_BYTES).await.map_err(of_backlog)?;
            let mut uploads = Vec::with_capacity(entries.len());
            for entry in entries {
                if outbox.next() != Some(entry.first()) {
                    break;
                }
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
            if uploads.is_empty() && outbox.next() == Some(from) {
                let message =
                    format!("the spool does not give batch {from}; its directory was changed by another hand");
                return Err(Trouble::new(TroubleKind::Disk, message).into());
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
