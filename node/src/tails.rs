//! Tails at the node: what reads a service's log, and how much of it a session takes.

mod meter;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use protocol::TailId;
use protocol::message::{TailEnd, TailEndReason, TailLine, TailLines, TailUpload, tail_upload};
use protocol::tail::{MAX_BATCH, Tail};
use tokio::sync::mpsc;
use tokio::time::Instant;

use meter::Meter;

/// Bytes of lines that go out together.
const BATCH: usize = 16 * 1024;
/// What a line takes beside its text, at most.
const OVERHEAD: usize = 32;
/// Longest time that a line waits for others to go with it.
const GATHER: Duration = Duration::from_millis(100);

/// Reads a log until there is no more of it, or nobody wants it.
pub type Source = Arc<dyn Fn(Tail, Lines) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Takes the lines of one tail. It holds one batch of them at the most.
#[derive(Debug)]
pub struct Lines {
    outbox: mpsc::Sender<TailUpload>,
    batch: TailLines,
    bytes: usize,
    /// When the batch goes out.
    due: Option<Instant>,
    /// There are lines in it that are not to be left out.
    earlier: bool,
    meter: Meter,
}

impl Lines {
    pub(crate) fn new(id: TailId, outbox: mpsc::Sender<TailUpload>) -> Self {
        let batch = TailLines { tail_id: id.to_bytes().to_vec(), ..TailLines::default() };
        Self { outbox, batch, bytes: 0, due: None, earlier: false, meter: Meter::new(Instant::now()) }
    }

    /// Says that it is under way.
    pub async fn begin(&mut self) {
        self.hand_over().await;
    }

    /// Takes a line that was written before anybody asked. Nothing of these is left out: whoever reads them waits until the
    /// hub has room.
    pub async fn earlier(&mut self, line: TailLine) {
        self.add(line);
        self.earlier = true;
        self.due.get_or_insert_with(|| Instant::now() + GATHER);
        if self.is_full() {
            self.hand_over().await;
        }
    }

    /// Takes a line of `bytes` that was written just now, if the tail may take it; else it is counted as left out. Never waits.
    pub fn now(&mut self, bytes: usize, line: impl FnOnce() -> TailLine) {
        let now = Instant::now();
        if self.meter.admits(bytes, now) {
            self.add(line());
        } else {
            self.batch.dropped += 1;
        }
        self.due.get_or_insert(now + GATHER);
        if self.is_full() {
            self.let_go();
        }
    }

    /// Waits until it is time to [`Self::flush`]. Cancel-safe.
    pub async fn due(&self) {
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Lets go of what was gathered. Where the session has no room for what was written just now, it is left out, and counted.
    pub async fn flush(&mut self) {
        if self.earlier { self.hand_over().await } else { self.let_go() }
    }

    fn let_go(&mut self) {
        let batch = self.take();
        if let Err(mpsc::error::TrySendError::Full(upload)) = self.outbox.try_send(lines(batch)) {
            let Some(tail_upload::Message::Lines(batch)) = upload.message else { return };
            self.batch.dropped = batch.count();
            self.due = Some(Instant::now() + GATHER);
        }
    }

    /// Ends it: `message` is for a person.
    pub async fn end(mut self, reason: TailEndReason, message: impl Into<String>) {
        self.hand_over().await;
        let _ = self.outbox.send(end(self.batch.tail_id, reason, message.into())).await;
    }

    fn add(&mut self, mut line: TailLine) {
        // What was left out so far stands before this line.
        line.dropped = std::mem::take(&mut self.batch.dropped);
        self.bytes += line.text.len() + OVERHEAD;
        self.batch.lines.push(line);
    }

    fn is_full(&self) -> bool {
        self.bytes >= BATCH || self.batch.lines.len() >= MAX_BATCH
    }

    async fn hand_over(&mut self) {
        let batch = self.take();
        // Fails only when the session has ended, and this with it.
        let _ = self.outbox.send(lines(batch)).await;
    }

    fn take(&mut self) -> TailLines {
        (self.bytes, self.due, self.earlier) = (0, None, false);
        let next = TailLines { tail_id: self.batch.tail_id.clone(), ..TailLines::default() };
        std::mem::replace(&mut self.batch, next)
    }
}

fn lines(batch: TailLines) -> TailUpload {
    TailUpload { message: Some(tail_upload::Message::Lines(batch)) }
}

/// The end of a tail.
pub(crate) fn end(tail_id: Vec<u8>, reason: TailEndReason, message: String) -> TailUpload {
    TailUpload { message: Some(tail_upload::Message::End(TailEnd { tail_id, reason: reason.into(), message })) }
}

#[cfg(test)]
mod tests;
