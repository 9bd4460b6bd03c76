//! Group commit: many small writes from many tasks, few transactions, each writer answered after its commit.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::database::{Database, Transaction};
use crate::error::StoreError;

/// How the operations of one group become statements.
pub trait Apply: Send + 'static {
    /// One submitter's write.
    type Operation: Send + Sync + 'static;
    /// What its submitter gets after the commit.
    type Outcome: Send + 'static;

    /// Writes all of `operations` and returns one outcome for each, in their order. May be called again with a part
    /// of the same operations, in a new transaction, when this one failed.
    fn apply(
        &mut self,
        transaction: &mut Transaction,
        operations: &[&Self::Operation],
    ) -> impl Future<Output = Result<Vec<Self::Outcome>, StoreError>> + Send;

    /// These operations are committed; called before any of their submitters is answered.
    fn committed(&mut self, operations: &[&Self::Operation], outcomes: &[Self::Outcome]) {
        let _ = (operations, outcomes);
    }
}

/// Bounds of a group.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Operations waiting; over it, [`Submitter::submit`] waits, and its caller with it.
    pub queue: usize,
    /// Operations in one transaction.
    pub group: usize,
    /// How long a group waits for company once the one before it had some.
    pub linger: Duration,
    /// How long a lone write waits for company: not at all, but where another is likely to follow at once.
    pub company: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // So many rows hold SQLite's one writer for some 20 ms at most: in between, others have their turn.
        Self { queue: 4096, group: 128, linger: Duration::from_millis(100), company: Duration::ZERO }
    }
}

/// Starts a group commit: a handle to submit to, and the task that commits until `stop` or until the last handle is
/// gone, whichever is first; what is queued then is still committed.
pub fn group_commit<A: Apply>(
    database: Database,
    apply: A,
    limits: Limits,
    stop: CancellationToken,
) -> (Submitter<A>, impl Future<Output = ()> + Send) {
    let (sender, receiver) = mpsc::channel(limits.queue);
    (Submitter { sender }, run(database, apply, limits, receiver, stop))
}

/// Where writes are handed in.
pub struct Submitter<A: Apply> {
    sender: mpsc::Sender<Pending<A>>,
}

impl<A: Apply> Clone for Submitter<A> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone() }
    }
}

impl<A: Apply> Submitter<A> {
    /// Queues a write and waits until it is committed.
    ///
    /// # Errors
    /// [`GroupError`]; the write then left no trace, except that after [`GroupError::Stopped`] it may have.
    pub async fn submit(&self, operation: A::Operation) -> Result<A::Outcome, GroupError> {
        let (reply, outcome) = oneshot::channel();
        self.sender.send(Pending { operation, reply }).await.map_err(|_| GroupError::Stopped)?;
        outcome.await.map_err(|_| GroupError::Stopped)?
    }
}

/// A write that was not committed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GroupError {
    /// The group commit has ended.
    #[error("the hub is stopping")]
    Stopped,
    /// The database refused; shared with the other writers of the group when it refused them all.
    #[error(transparent)]
    Store(Arc<StoreError>),
}

struct Pending<A: Apply> {
    operation: A::Operation,
    reply: oneshot::Sender<Result<A::Outcome, GroupError>>,
}

async fn run<A: Apply>(
    database: Database,
    mut apply: A,
    limits: Limits,
    mut receiver: mpsc::Receiver<Pending<A>>,
    stop: CancellationToken,
) {
    let mut group = Vec::new();
    let mut busy = false;
    loop {
        let received = tokio::select! {
            biased;
            () = stop.cancelled(), if !receiver.is_closed() => {
                receiver.close();
                continue;
            }
            received = receiver.recv_many(&mut group, limits.group) => received,
        };
        if received == 0 {
            return;
        }
        let wait = if busy { limits.linger } else { limits.company };
        if !wait.is_zero() && group.len() < limits.group && !receiver.is_closed() {
            let room = limits.group - group.len();
            if receiver.len() < room {
                // Asleep rather than woken by each that comes.
                tokio::time::sleep(wait).await;
            }
            let room = room.min(receiver.len());
            if room > 0 {
                receiver.recv_many(&mut group, room).await;
            }
        }
        busy = group.len() > 1;
        commit(&database, &mut apply, std::mem::take(&mut group)).await;
    }
}

/// Commits `group`; on a refusal that is not the database's own trouble, halves it until the culprit stands alone.
async fn commit<A: Apply>(database: &Database, apply: &mut A, group: Vec<Pending<A>>) {
    let mut parts = vec![group];
    while let Some(mut part) = parts.pop() {
        match attempt(database, apply, &part).await {
            Ok(outcomes) => {
                for (pending, outcome) in part.into_iter().zip(outcomes) {
                    // A submitter that no longer waits has its write all the same.
                    drop(pending.reply.send(Ok(outcome)));
                }
            }
            Err(error) if part.len() == 1 || error.is_temporary() => {
                tracing::warn!(error = %chain(&error), writes = part.len(), "writes were not committed");
                let error = Arc::new(error);
                for pending in part {
                    drop(pending.reply.send(Err(GroupError::Store(Arc::clone(&error)))));
                }
            }
            Err(_) => {
                let second = part.split_off(part.len() / 2);
                // The last pushed goes first: order is kept.
                parts.push(second);
                parts.push(part);
            }
        }
    }
}

async fn attempt<A: Apply>(
    database: &Database,
    apply: &mut A,
    part: &[Pending<A>],
) -> Result<Vec<A::Outcome>, StoreError> {
    let operations: Vec<&A::Operation> = part.iter().map(|pending| &pending.operation).collect();
    let mut transaction = database.begin_write().await?;
    let outcomes = apply.apply(&mut transaction, &operations).await?;
    transaction.commit().await?;
    apply.committed(&operations, &outcomes);
    Ok(outcomes)
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}
