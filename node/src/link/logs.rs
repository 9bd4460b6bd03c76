//! The log half of a session: its tails, and a stream of their own for what they read, so that nothing waits behind it.

use std::collections::HashMap;

use protocol::message::{TailEndReason, TailUpload};
use protocol::tail::{AT_ONCE, Tail};
use protocol::{TailId, frame};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use transport::{Connection, FrameWriter, StreamError};

use crate::tails::{self, Lines, Source};

/// Messages that wait for the stream, some 16 KiB each, of all tails; over it, tails leave lines out.
const OUTBOX_BOUND: usize = 8;

/// The tails of one session; they end with it.
pub(super) struct Tails {
    source: Option<Source>,
    outbox: mpsc::Sender<TailUpload>,
    running: JoinSet<()>,
    aborts: HashMap<TailId, AbortHandle>,
}

/// Sends what they read.
pub(super) struct Sender {
    messages: mpsc::Receiver<TailUpload>,
    /// Opened when there is something to send.
    stream: Option<FrameWriter>,
}

/// For one session. A node without a source has no logs, and says so.
pub(super) fn tails(source: Option<Source>) -> (Tails, Sender) {
    let (outbox, messages) = mpsc::channel(OUTBOX_BOUND);
    let tails = Tails { source, outbox, running: JoinSet::new(), aborts: HashMap::new() };
    (tails, Sender { messages, stream: None })
}

impl Tails {
    /// Begins one, or says why not.
    pub(super) fn start(&mut self, tail: Tail) {
        while self.running.try_join_next().is_some() {}
        self.aborts.retain(|_, abort| !abort.is_finished());
        if self.aborts.contains_key(&tail.id) {
            return;
        }
        let Some(source) = &self.source else {
            return self.refuse(tail.id, "this node has no services, and so no logs");
        };
        if self.aborts.len() >= AT_ONCE {
            return self.refuse(tail.id, "as many logs of this node are read as may be at once; try again later");
        }
        tracing::info!(tail = %tail.id, stack = tail.stack, service = tail.service, "a log is read for the hub");
        let id = tail.id;
        let lines = Lines::new(id, self.outbox.clone());
        self.aborts.insert(id, self.running.spawn(source(tail, lines)));
    }

    /// Ends one at once.
    pub(super) fn stop(&mut self, id: TailId) {
        if let Some(abort) = self.aborts.remove(&id) {
            abort.abort();
        }
    }

    fn refuse(&self, id: TailId, why: &str) {
        let end = tails::end(id.to_bytes().to_vec(), TailEndReason::Failed, why.to_owned());
        if self.outbox.try_send(end).is_err() {
            tracing::warn!(tail = %id, "a log is not read, and the hub could not be told: {why}");
        }
    }
}

impl Sender {
    /// Sends until the session ends.
    pub(super) async fn run(&mut self, connection: &Connection) {
        while let Some(message) = self.messages.recv().await {
            match self.send(&message, connection).await {
                Ok(()) => {}
                // Whoever drives the control stream hears of it.
                Err(StreamError::Closed(_)) => break,
                Err(error) => {
                    // The hub opens its hands again, or its readers find out by the numbers that are missing.
                    tracing::warn!(%error, "a part of a log was not sent");
                    self.stream = None;
                }
            }
        }
        std::future::pending().await
    }

    async fn send(&mut self, message: &TailUpload, connection: &Connection) -> Result<(), StreamError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let (writer, _) = connection.open(frame::MAX_LOG).await?;
                // Behind commands, and behind telemetry.
                writer.set_priority(-2);
                self.stream.insert(writer)
            }
        };
        stream.send(message).await
    }
}
