//! What sessions bring, many in one transaction: that commands are handed over, what nodes say of them, what they put out.

use protocol::command::{CHUNK, MAX_OUTPUT};
use protocol::message::CommandOutput;
use protocol::{CommandId, NodeId, Timestamp};
use store::group::Apply;
use store::sqlx;
use store::{StoreError, Transaction};
use tokio::sync::broadcast;

use super::clamped;
use super::said::{self, Word};
use crate::audit;
use crate::rows;

pub(super) enum Operation {
    Delivered { node: NodeId, ids: Vec<CommandId>, at: Timestamp },
    Word(Word),
    Output { node: NodeId, id: CommandId, piece: CommandOutput },
}

pub(super) enum Outcome {
    Stored,
    /// These are no longer to be told: they have expired or were taken back meanwhile.
    Gone(Vec<CommandId>),
}

pub(super) struct Writer {
    changes: broadcast::Sender<NodeId>,
}

impl Writer {
    pub(super) fn new(changes: broadcast::Sender<NodeId>) -> Self {
        Self { changes }
    }
}

impl Apply for Writer {
    type Operation = Operation;
    type Outcome = Outcome;

    async fn apply(
        &mut self,
        transaction: &mut Transaction,
        operations: &[&Operation],
    ) -> Result<Vec<Outcome>, StoreError> {
        hold(transaction, operations).await?;
        let mut outcomes = Vec::with_capacity(operations.len());
        let mut records = Vec::new();
        let mut latest = Timestamp::default();
        // A command's output counts until its end is told: between words, it has its place.
        let mut words = Vec::new();
        for operation in operations {
            if let Operation::Word(word) = operation {
                latest = latest.max(word.at);
                words.push(word);
            } else {
                records.append(&mut said::store(transaction, &std::mem::take(&mut words)).await?);
            }
            outcomes.push(match operation {
                Operation::Delivered { node, ids, at } => delivered(transaction, *node, ids, *at).await?,
                Operation::Word(_) => Outcome::Stored,
                Operation::Output { node, id, piece } => put_out(transaction, *node, *id, piece).await?,
            });
        }
        records.append(&mut said::store(transaction, &words).await?);
        if !records.is_empty() {
            audit::append_all(transaction, latest, records).await?;
        }
        Ok(outcomes)
    }

    fn committed(&mut self, operations: &[&Operation], _: &[Outcome]) {
        for operation in operations {
            let (Operation::Delivered { node, .. }
            | Operation::Word(Word { node, .. })
            | Operation::Output { node, .. }) = operation;
            // Nobody listening is fine.
            let _ = self.changes.send(*node);
        }
    }
}

/// Keeps others from the commands that are handed over, and from those that are spoken of beside them, in the order of their ids:
/// of two that come by the same ones, one waits, and not each for the other.
async fn hold(transaction: &mut Transaction, operations: &[&Operation]) -> Result<(), StoreError> {
    let lock = rows::for_update(transaction);
    let mut ids: Vec<CommandId> = Vec::new();
    let mut handed_over = false;
    for operation in operations {
        match operation {
            Operation::Delivered { ids: fresh, .. } => {
                handed_over = true;
                ids.extend(fresh);
            }
            Operation::Word(word) => ids.push(word.id),
            Operation::Output { .. } => {}
        }
    }
    if lock.is_empty() || !handed_over || ids.len() < 2 {
        return Ok(());
    }
    ids.sort_unstable();
    for part in rows::parts(&ids) {
        let ids = rows::placeholders(1, part.len());
        let sql = format!("SELECT id FROM commands WHERE id IN {ids} ORDER BY id{lock}");
        let query = part.iter().fold(said::statement(transaction, sql), |query, id| query.bind(id.to_string()));
        query.fetch_all(&mut **transaction).await?;
    }
    Ok(())
}

async fn delivered(
    transaction: &mut Transaction,
    node: NodeId,
    ids: &[CommandId],
    at: Timestamp,
) -> Result<Outcome, StoreError> {
    let mut gone = Vec::new();
    for id in ids {
        let updated = sqlx::query(
            "UPDATE commands SET state = 'delivered', delivered_at = $3 WHERE id = $1 AND node = $2 AND state = 'queued'",
        )
        .bind(id.to_string())
        .bind(node.to_string())
        .bind(at.millis())
        .execute(&mut **transaction)
        .await?;
        if updated.rows_affected() == 0 {
            gone.push(*id);
        }
    }
    Ok(if gone.is_empty() { Outcome::Stored } else { Outcome::Gone(gone) })
}

async fn put_out(
    transaction: &mut Transaction,
    node: NodeId,
    id: CommandId,
    piece: &CommandOutput,
) -> Result<Outcome, StoreError> {
    let end = piece.offset.saturating_add(piece.data.len() as u64);
    if piece.data.len() > CHUNK || end > MAX_OUTPUT as u64 {
        // No honest node sends it.
        return Ok(Outcome::Stored);
    }
    // A node that comes back tells its output from the start on, cut in other pieces: what is there already stays, and what
    // goes on from there is new.
    sqlx::query(
        "INSERT INTO command_outputs (command, start, tenant, data)
         SELECT id, stored, tenant, SUBSTR($4, CAST(stored - $3 + 1 AS INTEGER))
         FROM commands, (SELECT COALESCE(MAX(start + LENGTH(data)), 0) AS stored FROM command_outputs WHERE command = $1) AS known
         WHERE id = $1 AND node = $2 AND told_at IS NULL AND stored >= $3 AND stored < $3 + LENGTH($4)",
    )
    .bind(id.to_string())
    .bind(node.to_string())
    .bind(clamped(piece.offset))
    .bind(piece.data.clone())
    .execute(&mut **transaction)
    .await?;
    Ok(Outcome::Stored)
}
