//! What sessions bring, many in one transaction: that commands are handed over, what nodes say of them, what they put out.

use protocol::command::{CHUNK, MAX_MESSAGE, MAX_OUTPUT};
use protocol::message::{CommandOutcome, CommandOutput, CommandState};
use protocol::{CommandId, NodeId, Timestamp};
use serde_json::json;
use store::group::Apply;
use store::sqlx::{self, Row};
use store::{StoreError, Transaction};
use tokio::sync::broadcast;

use super::{state, unreadable};
use crate::audit::{self, Actor, Record, action};

pub(super) enum Operation {
    Delivered { node: NodeId, ids: Vec<CommandId>, at: Timestamp },
    Word { node: NodeId, id: CommandId, word: CommandOutcome, at: Timestamp },
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
        let mut outcomes = Vec::with_capacity(operations.len());
        let mut records = Vec::new();
        let mut latest = Timestamp::default();
        for operation in operations {
            outcomes.push(match operation {
                Operation::Delivered { node, ids, at } => delivered(transaction, *node, ids, *at).await?,
                Operation::Word { node, id, word, at } => {
                    latest = latest.max(*at);
                    records.extend(said(transaction, *node, *id, word, *at).await?);
                    Outcome::Stored
                }
                Operation::Output { node, id, piece } => put_out(transaction, *node, *id, piece).await?,
            });
        }
        if !records.is_empty() {
            audit::append_all(transaction, latest, records).await?;
        }
        Ok(outcomes)
    }

    fn committed(&mut self, operations: &[&Operation], _: &[Outcome]) {
        for operation in operations {
            let (Operation::Delivered { node, .. } | Operation::Word { node, .. } | Operation::Output { node, .. }) =
                operation;
            // Nobody listening is fine.
            let _ = self.changes.send(*node);
        }
    }
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

/// Takes a node's word; gives the audit record of a refusal.
async fn said(
    transaction: &mut Transaction,
    node: NodeId,
    id: CommandId,
    word: &CommandOutcome,
    at: Timestamp,
) -> Result<Option<Record>, StoreError> {
    // Held until the transaction ends.
    let row = sqlx::query(
        "UPDATE commands SET priority = priority WHERE id = $1 AND node = $2
         RETURNING state, told_at, tenant, action, requested_by",
    )
    .bind(id.to_string())
    .bind(node.to_string())
    .fetch_optional(&mut **transaction)
    .await?;
    // Of another database, or another node's: there is nothing to keep, and nothing for the node to keep either.
    let Some(row) = row else { return Ok(None) };
    let before = state(&row.try_get::<String, _>(0)?)?;
    let told = row.try_get::<Option<i64>, _>(1)?.is_some();
    let Some(next) = before.after(word.state(), told) else { return Ok(None) };
    let end = word.state().is_end();
    let refused = matches!(word.state(), CommandState::Refused | CommandState::Unsupported);
    let message: String = word.message.chars().take(MAX_MESSAGE).collect();
    let at_end = end.then_some(at.millis());
    sqlx::query(
        "UPDATE commands SET state = $2, message = $3, refused = $4, output_bytes = $5, output_dropped = $6,
           delivered_at = COALESCE(delivered_at, $7), started_at = COALESCE(started_at, $8), ended_at = $9, told_at = $9
         WHERE id = $1",
    )
    .bind(id.to_string())
    .bind(next.as_str())
    .bind(&message)
    .bind(i64::from(refused))
    .bind(clamped(word.output_bytes))
    .bind(clamped(word.output_dropped))
    .bind(at.millis())
    .bind((word.state() == CommandState::Running).then_some(at.millis()))
    .bind(at_end)
    .execute(&mut **transaction)
    .await?;
    if !refused {
        return Ok(None);
    }
    let tenant: String = row.try_get(2)?;
    let (name, requested_by): (String, String) = (row.try_get(3)?, row.try_get(4)?);
    Ok(Some(Record {
        actor: Actor::node(node),
        action: action::COMMAND_REFUSED,
        tenant: Some(tenant.parse().map_err(unreadable)?),
        subject: id.to_string(),
        detail: json!({
            "node": node.to_string(), "action": name, "requested_by": requested_by, "reason": message,
        }),
        remote: None,
    }))
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
    sqlx::query(
        "INSERT INTO command_outputs (command, start, tenant, data)
         SELECT id, $3, tenant, $4 FROM commands WHERE id = $1 AND node = $2 AND told_at IS NULL
         ON CONFLICT (command, start) DO UPDATE SET data = EXCLUDED.data",
    )
    .bind(id.to_string())
    .bind(node.to_string())
    .bind(clamped(piece.offset))
    .bind(piece.data.clone())
    .execute(&mut **transaction)
    .await?;
    Ok(Outcome::Stored)
}

fn clamped(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
