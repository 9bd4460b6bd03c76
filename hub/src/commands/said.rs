//! What nodes say of their commands: many words, one statement that reads and one that writes.

use std::collections::HashMap;

use protocol::command::{MAX_MESSAGE, State};
use protocol::message::{CommandOutcome, CommandState};
use protocol::{CommandId, NodeId, Timestamp};
use serde_json::json;
use store::sqlx::any::AnyRow;
use store::sqlx::{self, AssertSqlSafe, Row};
use store::{StoreError, Transaction};

use super::{clamped, command_id, state, unreadable};
use crate::audit::{Actor, Record, action};
use crate::rows::{self, Bound};

/// A node's word on a command.
pub(super) struct Word {
    pub(super) node: NodeId,
    pub(super) id: CommandId,
    pub(super) word: CommandOutcome,
    pub(super) at: Timestamp,
}

/// A command as it stands, word after word.
struct Standing<'a> {
    id: String,
    node: String,
    state: State,
    told: bool,
    tenant: String,
    action: String,
    requested_by: String,
    /// What words have changed.
    changed: Option<Change<'a>>,
}

/// What words have changed of a command; the times are the hub's.
#[derive(Clone, Copy)]
struct Change<'a> {
    /// The last of them.
    last: &'a Word,
    delivered_at: Timestamp,
    started_at: Option<Timestamp>,
}

/// Takes nodes' words in their order; gives the audit records of refusals. A word on a command of another database, or of
/// another node, changes nothing: there is nothing for its node to keep either.
pub(super) async fn store(transaction: &mut Transaction, words: &[&Word]) -> Result<Vec<Record>, StoreError> {
    if words.is_empty() {
        return Ok(Vec::new());
    }
    let mut commands = standing(transaction, words).await?;
    let mut records = Vec::new();
    for word in words {
        let Some(command) = commands.get_mut(&word.id) else { continue };
        if command.node == word.node.to_string() && command.hear(word) && word.is_refusal() {
            records.push(command.refused(word)?);
        }
    }
    let changed: Vec<_> = commands.values().filter_map(|command| Some((command, command.changed?))).collect();
    write(transaction, &changed).await?;
    Ok(records)
}

/// The commands that are spoken of, kept from others until the transaction ends.
async fn standing<'a>(
    transaction: &mut Transaction,
    words: &[&'a Word],
) -> Result<HashMap<CommandId, Standing<'a>>, StoreError> {
    let mut ids: Vec<CommandId> = words.iter().map(|word| word.id).collect();
    ids.sort_unstable();
    ids.dedup();
    // As many as a power of two: few different statements, each prepared once.
    let last = ids.last().copied();
    ids.extend(std::iter::repeat_n(last, ids.len().next_power_of_two() - ids.len()).flatten());
    // Locked in the order of their ids: of two hubs that come by the same ones, one waits, and not each for the other.
    let sql = format!(
        "SELECT id, node, state, told_at, tenant, action, requested_by FROM commands WHERE id IN {} ORDER BY id{}",
        rows::placeholders(1, ids.len()),
        rows::for_update(transaction)
    );
    let query = ids.iter().fold(statement(transaction, sql), |query, id| query.bind(id.to_string()));
    let rows = query.fetch_all(&mut **transaction).await?;
    Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
}

fn read<'a>(row: &AnyRow) -> Result<(CommandId, Standing<'a>), sqlx::Error> {
    let id: String = row.try_get(0)?;
    let standing = Standing {
        node: row.try_get(1)?,
        state: state(&row.try_get::<String, _>(2)?)?,
        told: row.try_get::<Option<i64>, _>(3)?.is_some(),
        tenant: row.try_get(4)?,
        action: row.try_get(5)?,
        requested_by: row.try_get(6)?,
        changed: None,
        id,
    };
    Ok((command_id(&standing.id)?, standing))
}

/// On PostgreSQL, planned anew each time: a plan that it made while there were few commands, and kept, reads all of them.
pub(super) fn statement<'q>(transaction: &Transaction, sql: String) -> Bound<'q> {
    sqlx::query(AssertSqlSafe(sql)).persistent(transaction.backend_name() != "PostgreSQL")
}

async fn write(transaction: &mut Transaction, changed: &[(&Standing<'_>, Change<'_>)]) -> Result<(), StoreError> {
    for part in rows::parts(changed) {
        // Both engines name the columns of VALUES so.
        let sql = format!(
            "UPDATE commands SET state = said.column2, message = said.column3, refused = said.column4,
               output_bytes = said.column5, output_dropped = said.column6,
               delivered_at = COALESCE(delivered_at, said.column7), started_at = COALESCE(started_at, said.column8),
               ended_at = said.column9, told_at = said.column9
             FROM (VALUES {}) AS said WHERE id = said.column1",
            rows::placeholders(part.len(), 9)
        );
        let query = part.iter().fold(statement(transaction, sql), |query, (command, change)| {
            let Word { word, at, .. } = change.last;
            query
                .bind(command.id.clone())
                .bind(command.state.as_str())
                .bind(change.last.message())
                .bind(i64::from(change.last.is_refusal()))
                .bind(clamped(word.output_bytes))
                .bind(clamped(word.output_dropped))
                .bind(change.delivered_at.millis())
                .bind(change.started_at.map(Timestamp::millis))
                .bind(command.told.then_some(at.millis()))
        });
        query.execute(&mut **transaction).await?;
    }
    Ok(())
}

impl<'a> Standing<'a> {
    /// Takes a word of its node; says whether that changes anything.
    fn hear(&mut self, said: &'a Word) -> bool {
        let word = said.word.state();
        let Some(next) = self.state.after(word, self.told) else { return false };
        let began = (word == CommandState::Running).then_some(said.at);
        self.changed = Some(Change {
            last: said,
            delivered_at: self.changed.map_or(said.at, |before| before.delivered_at),
            started_at: self.changed.and_then(|before| before.started_at).or(began),
        });
        (self.state, self.told) = (next, word.is_end());
        true
    }

    fn refused(&self, said: &Word) -> Result<Record, sqlx::Error> {
        Ok(Record {
            actor: Actor::node(said.node),
            action: action::COMMAND_REFUSED,
            tenant: Some(self.tenant.parse().map_err(unreadable)?),
            subject: self.id.clone(),
            detail: json!({
                "node": self.node, "action": self.action, "requested_by": self.requested_by, "reason": said.message(),
            }),
            remote: None,
        })
    }
}

impl Word {
    fn message(&self) -> String {
        rows::text(&self.word.message).chars().take(MAX_MESSAGE).collect()
    }

    fn is_refusal(&self) -> bool {
        matches!(self.word.state(), CommandState::Refused | CommandState::Unsupported)
    }
}
