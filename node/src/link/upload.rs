//! The telemetry half of a session: the newest state first, then the backlog as fast as the hub stores it.

use std::time::Duration;

use protocol::frame;
use protocol::message::{self, Acknowledge, SpoolRange, upload};
use protocol::session::Welcomed;
use tokio::time::Instant;
use transport::{Connection, FrameReader, FrameWriter, StreamError};

use super::Actor;
use super::delivery::Delivery;
use super::session::Failure;

/// While the backlog drains, the newest state goes past it this often.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(5);

/// The upload of one session.
pub(super) struct Upload<'a> {
    actor: &'a Actor,
    range: SpoolRange,
    stored: Option<Acknowledge>,
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
        Self { actor, range, stored: welcomed.stored, snapshot_at: Instant::now() }
    }

    /// Runs until shutdown, and then until the hub has stored everything.
    pub(super) async fn run(&mut self, stream: &mut Stream) -> Result<(), Failure> {
        let recorder = &self.actor.options.recorder;
        let backlog = recorder.backlog();
        self.send_snapshot(stream).await?;

        let (mut delivery, let_go) = Delivery::open(backlog, &self.range, self.stored).await?;
        self.actor.counters.acknowledged(let_go);
        let (mut appended, mut snapshot_due) = (backlog.known(), recorder.snapshot_due());
        // What was gathered while there was no session goes now.
        let mut flush = Box::pin(recorder.flush());
        let (mut flushed, mut draining) = (false, false);
        loop {
            delivery.written(appended.borrow_and_update().last);
            self.pump(&mut delivery, stream).await?;
            if draining && flushed && delivery.is_settled() {
                return Ok(());
            }
            tokio::select! {
                biased;
                acknowledge = stream.reader.recv::<Acknowledge>() => {
                    let acknowledge = acknowledge?.ok_or(StreamError::Finished)?;
                    let let_go = delivery.acknowledged(&acknowledge).await?;
                    self.actor.counters.acknowledged(let_go);
                }
                _ = appended.changed() => {
                    let waiting = appended.borrow().last.0.saturating_sub(delivery.sent().0);
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

    /// Sends what the window allows.
    async fn pump(&mut self, delivery: &mut Delivery<'_>, stream: &mut Stream) -> Result<(), Failure> {
        loop {
            let uploads = delivery.next(|sequence, bytes| self.actor.count_sent(sequence.0, bytes)).await?;
            if uploads.is_empty() {
                return Ok(());
            }
            stream.writer.send_all(&uploads).await?;
        }
    }

    async fn send_snapshot(&mut self, stream: &mut Stream) -> Result<(), Failure> {
        self.snapshot_at = Instant::now();
        let snapshot = upload::Message::Snapshot(self.actor.options.recorder.snapshot());
        Ok(stream.writer.send(&message::Upload { message: Some(snapshot) }).await?)
    }
}
