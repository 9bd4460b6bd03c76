//! Whether the loop that accepts nodes still turns: it is asked, and answers between two of them.

use tokio::sync::{mpsc, oneshot};

/// Asks the loop.
pub(crate) struct Pulse(mpsc::Sender<oneshot::Sender<()>>);

/// The loop's side.
pub(crate) struct Asked(mpsc::Receiver<oneshot::Sender<()>>);

/// Both sides. One question at a time: a second one waits.
pub(crate) fn pulse() -> (Pulse, Asked) {
    let (sender, receiver) = mpsc::channel(1);
    (Pulse(sender), Asked(receiver))
}

impl Pulse {
    /// Waits for the loop's answer; false when the loop has ended.
    pub(crate) async fn beats(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.0.send(answer).await.is_ok() && answered.await.is_ok()
    }
}

impl Asked {
    /// Waits for a question and answers it; false when nobody will ask any more.
    pub(crate) async fn answer(&mut self) -> bool {
        let Some(asker) = self.0.recv().await else { return false };
        // Whoever asked may have had no patience.
        let _ = asker.send(());
        true
    }
}
