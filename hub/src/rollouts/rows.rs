//! Rollouts and their nodes as rows.

use std::time::Duration;

use protocol::command::Action;
use protocol::{NodeId, TenantId, Timestamp};
use store::sqlx::any::AnyRow;
use store::sqlx::{self, AnyConnection, AssertSqlSafe, Row};
use store::{StoreError, Transaction};

use super::plan::{AT_ONCE, Health, Limits, Member, Position, Standing};
use super::{Participant, Rollout};
use crate::commands::NewRequest;
use crate::rows::{self, Insert, parsed};

const COLUMNS: &str = "id, tenant, action, arguments, priority, valid_for, target, reason, started_by, started_at, ended_at,
    waves, rate, windows, settle, soak, most_failed, most_regressed, state, wave, wave_count, soaking_since, why, changed_at,
    changed_by";

/// The rollout that a caller started under a key, and what tells its request from another.
pub(super) async fn keyed(
    transaction: &mut Transaction,
    caller: &str,
    key: &str,
) -> Result<Option<(i64, Vec<u8>)>, StoreError> {
    let row = sqlx::query("SELECT id, fingerprint FROM rollouts WHERE caller = $1 AND idempotency_key = $2")
        .bind(caller)
        .bind(key)
        .fetch_optional(&mut **transaction)
        .await?;
    Ok(row.map(|row| Ok::<_, sqlx::Error>((row.try_get(0)?, row.try_get(1)?))).transpose()?)
}

/// A node's wave, from 1, and the node.
pub(super) type Seat<'a> = (usize, &'a (NodeId, TenantId));

pub(super) async fn insert(
    transaction: &mut Transaction,
    rollout: &Rollout,
    command: &NewRequest,
    seats: &[Seat<'_>],
) -> Result<i64, StoreError> {
    let windows: Vec<String> = rollout.limits.windows.iter().map(ToString::to_string).collect();
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO rollouts (tenant, caller, idempotency_key, fingerprint, action, arguments, priority, valid_for, target,
            reason, started_by, started_at, waves, rate, windows, settle, soak, most_failed, most_regressed, state, wave,
            wave_count, why, changed_at, changed_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23,
            $24, $25) RETURNING id",
    )
    .bind(rollout.tenant.as_ref().map(ToString::to_string))
    .bind(&command.caller)
    .bind(command.key.clone())
    .bind(command.fingerprint.clone())
    .bind(&rollout.name)
    .bind(command.action.to_bytes())
    .bind(i64::from(rollout.priority))
    .bind(seconds(rollout.valid_for))
    .bind(rollout.target.to_string())
    .bind(rollout.reason.to_string())
    .bind(&rollout.started_by)
    .bind(rollout.started_at.millis())
    .bind(&rollout.waves)
    .bind(rollout.limits.rate.map(i64::from))
    .bind(windows.join("\n"))
    .bind(seconds(rollout.limits.settle))
    .bind(seconds(rollout.limits.soak))
    .bind(i64::from(rollout.limits.most_failed))
    .bind(i64::from(rollout.limits.most_regressed))
    .bind(rollout.position.state.as_str())
    .bind(i64::from(rollout.position.wave))
    .bind(i64::from(rollout.position.waves))
    .bind(&rollout.why)
    .bind(rollout.changed_at.millis())
    .bind(&rollout.changed_by)
    .fetch_one(&mut **transaction)
    .await?;
    let placed: Vec<(usize, &Seat<'_>)> = seats.iter().enumerate().collect();
    rows::write(transaction, NODES, &placed, |query, (place, (wave, (node, tenant)))| {
        query
            .bind(id)
            .bind(*place as i64)
            .bind(node.to_string())
            .bind(tenant.to_string())
            .bind(*wave as i64)
            .bind(Standing::Pending.as_str())
    })
    .await?;
    Ok(id)
}

const NODES: Insert =
    Insert { into: "rollout_nodes (rollout, place, node, tenant, wave, state)", columns: 6, on_conflict: "" };

/// Stores where it stands.
pub(super) async fn update(transaction: &mut Transaction, rollout: &Rollout) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE rollouts SET state = $2, wave = $3, soaking_since = $4, why = $5, ended_at = $6, changed_at = $7,
            changed_by = $8 WHERE id = $1",
    )
    .bind(rollout.id)
    .bind(rollout.position.state.as_str())
    .bind(i64::from(rollout.position.wave))
    .bind(rollout.position.soaking_since.map(Timestamp::millis))
    .bind(&rollout.why)
    .bind(rollout.ended_at.map(Timestamp::millis))
    .bind(rollout.changed_at.millis())
    .bind(&rollout.changed_by)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// What somebody has let pass of a node.
#[derive(Clone, Copy)]
pub(super) enum Accepted {
    /// What was wrong with it.
    Wrong = 1,
    /// That it was not there; what it does once it is told is not meant.
    Silent = 2,
}

const SILENT: i64 = Accepted::Silent as i64;

/// Accepts that of these.
pub(super) async fn accept(
    transaction: &mut Transaction,
    id: i64,
    nodes: &[NodeId],
    accepted: Accepted,
) -> Result<(), StoreError> {
    for node in nodes {
        sqlx::query("UPDATE rollout_nodes SET accepted = $3 WHERE rollout = $1 AND node = $2")
            .bind(id)
            .bind(node.to_string())
            .bind(accepted as i64)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

/// Leaves these out.
pub(super) async fn skip(transaction: &mut Transaction, id: i64, nodes: &[NodeId]) -> Result<(), StoreError> {
    for node in nodes {
        sqlx::query(
            "UPDATE rollout_nodes SET state = 'skipped' WHERE rollout = $1 AND node = $2 AND state = 'pending'",
        )
        .bind(id)
        .bind(node.to_string())
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

/// Counts these as not asked, now that their commands are taken back. When they were asked stays: it was within the rate.
pub(super) async fn put_back(transaction: &mut Transaction, id: i64, nodes: &[NodeId]) -> Result<(), StoreError> {
    for part in nodes.chunks(AT_ONCE) {
        let sql = format!(
            "UPDATE rollout_nodes SET state = 'pending', command = NULL, open_until = NULL WHERE node IN {} AND rollout = ${}",
            rows::placeholders(1, part.len()),
            part.len() + 1
        );
        let query = part.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, node| query.bind(node.to_string()));
        query.bind(id).execute(&mut **transaction).await?;
    }
    Ok(())
}

/// Takes a rollout's row until the transaction ends: of two who act at once, the second sees what the first has done.
pub(super) async fn take(
    transaction: &mut Transaction,
    id: i64,
    tenant: Option<&str>,
) -> Result<Option<Rollout>, StoreError> {
    sqlx::query("UPDATE rollouts SET wave = wave WHERE id = $1").bind(id).execute(&mut **transaction).await?;
    one(transaction, id, tenant).await
}

pub(super) async fn one(
    connection: &mut AnyConnection,
    id: i64,
    tenant: Option<&str>,
) -> Result<Option<Rollout>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM rollouts WHERE id = $1 AND ($2 = '' OR tenant = $2)");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(tenant.unwrap_or_default());
    Ok(row.fetch_optional(connection).await?.map(|row| read(&row)).transpose()?)
}

pub(super) async fn list(
    connection: &mut AnyConnection,
    tenant: Option<&str>,
    before: Option<i64>,
    limit: u32,
) -> Result<Vec<Rollout>, StoreError> {
    let sql =
        format!("SELECT {COLUMNS} FROM rollouts WHERE id < $1 AND ($2 = '' OR tenant = $2) ORDER BY id DESC LIMIT $3");
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(before.unwrap_or(i64::MAX))
        .bind(tenant.unwrap_or_default())
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?;
    Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
}

/// The nodes of a rollout, by wave and place; how they are by now is for the caller to say.
pub(super) async fn participants(
    connection: &mut AnyConnection,
    id: i64,
    steady: Timestamp,
) -> Result<Vec<Participant>, StoreError> {
    let rows = sqlx::query(
        "SELECT n.node, n.tenant, n.wave, COALESCE(c.state, n.state), n.command, n.asked_at, n.was_well, n.accepted,
            n.told_at, c.delivered_at, COALESCE(c.message, ''), n.was_there,
            n.open_until
         FROM rollout_nodes n LEFT JOIN commands c ON c.id = n.command WHERE n.rollout = $1 ORDER BY n.place",
    )
    .bind(id)
    .fetch_all(connection)
    .await?;
    let time =
        |row: &AnyRow, at: usize| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(at)?.map(Timestamp::from_millis));
    let participant = |row: &AnyRow| {
        // Nobody has looked since it was handed over.
        let just_told = time(row, 9)?.map(|_| steady);
        let told_at = time(row, 8)?.or(just_told);
        let member = Member {
            node: parsed(row.try_get(0)?)?,
            wave: number(row.try_get(2)?),
            standing: parsed(row.try_get(3)?)?,
            asked_at: time(row, 5)?,
            told_at,
            open_until: time(row, 12)?,
            was_there: row.try_get::<i64, _>(11)? != 0,
            was_well: row.try_get::<i64, _>(6)? != 0,
            accepted: match row.try_get::<i64, _>(7)? {
                SILENT => told_at.is_none(),
                accepted => accepted != 0,
            },
            health: Health::Unclear,
        };
        Ok(Participant {
            member,
            tenant: parsed(row.try_get(1)?)?,
            command: row.try_get::<Option<String>, _>(4)?.map(parsed).transpose()?,
            message: row.try_get(10)?,
        })
    };
    Ok(rows.iter().map(participant).collect::<Result<_, sqlx::Error>>()?)
}

/// Keeps how commands stand that have changed since it was kept, for a rollout outlives them; and when by the steady clock they
/// were seen to be handed over: their own rows know it by the wall clock.
pub(super) async fn mirror(database: &store::Database, steady: Timestamp) -> Result<(), StoreError> {
    const CHANGED: &str = "state IN ('queued', 'delivered', 'running', 'unknown')
        AND EXISTS (SELECT 1 FROM commands c WHERE c.id = rollout_nodes.command
            AND (c.state <> rollout_nodes.state OR (rollout_nodes.told_at IS NULL AND c.delivered_at IS NOT NULL)))";
    let any = sqlx::query(AssertSqlSafe(format!("SELECT 1 FROM rollout_nodes WHERE {CHANGED} LIMIT 1")));
    if any.fetch_optional(database.reader()).await?.is_none() {
        return Ok(());
    }
    let mut transaction = database.begin_write().await?;
    let sql = format!(
        "UPDATE rollout_nodes SET state = (SELECT c.state FROM commands c WHERE c.id = rollout_nodes.command),
            told_at = COALESCE(told_at, (SELECT CASE WHEN c.delivered_at IS NOT NULL THEN CAST($1 AS BIGINT) END
                FROM commands c WHERE c.id = rollout_nodes.command))
         WHERE {CHANGED}"
    );
    sqlx::query(AssertSqlSafe(sql)).bind(steady.millis()).execute(&mut *transaction).await?;
    Ok(transaction.commit().await?)
}

fn read(row: &AnyRow) -> Result<Rollout, sqlx::Error> {
    let time = |column: &str| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(Timestamp::from_millis));
    let lasting =
        |column: &str| Ok::<_, sqlx::Error>(Duration::from_secs(row.try_get::<i64, _>(column)?.unsigned_abs()));
    let share = |column: &str| Ok::<_, sqlx::Error>(u8::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0));
    let windows: String = row.try_get("windows")?;
    Ok(Rollout {
        id: row.try_get("id")?,
        tenant: row.try_get::<Option<String>, _>("tenant")?.map(parsed).transpose()?,
        name: row.try_get("action")?,
        action: Action::from_bytes(&row.try_get::<Vec<u8>, _>("arguments")?).ok(),
        priority: number(row.try_get("priority")?),
        valid_for: lasting("valid_for")?,
        target: serde_json::from_str(&row.try_get::<String, _>("target")?).unwrap_or_default(),
        reason: parsed(row.try_get("reason")?)?,
        started_by: row.try_get("started_by")?,
        started_at: Timestamp::from_millis(row.try_get("started_at")?),
        ended_at: time("ended_at")?,
        waves: row.try_get("waves")?,
        limits: Limits {
            rate: row.try_get::<Option<i64>, _>("rate")?.map(number),
            windows: windows.lines().map(|line| parsed(line.to_owned())).collect::<Result<_, _>>()?,
            settle: lasting("settle")?,
            soak: lasting("soak")?,
            most_failed: share("most_failed")?,
            most_regressed: share("most_regressed")?,
        },
        position: Position {
            state: parsed(row.try_get("state")?)?,
            wave: number(row.try_get("wave")?),
            waves: number(row.try_get("wave_count")?),
            soaking_since: time("soaking_since")?,
        },
        why: row.try_get("why")?,
        changed_at: Timestamp::from_millis(row.try_get("changed_at")?),
        changed_by: row.try_get("changed_by")?,
    })
}

fn number(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
