//! Rotations and their steps as rows.

use pki::Role;
use protocol::Timestamp;
use store::Transaction;
use store::sqlx::any::AnyRow;
use store::sqlx::{self, AssertSqlSafe, Row};

use super::{Phase, Rotation, RotationError, Step, role};
use crate::audit::{self, Actor, Record};
use crate::authorities::place;
use crate::rows::parsed;

const COLUMNS: &str = "id, kind, tenant, old_authority, new_authority, phase, reason, started_by, started_at, ended_at";

impl Rotation {
    /// Stores that it is in a phase.
    pub(super) async fn enter(
        &mut self,
        transaction: &mut Transaction,
        phase: Phase,
        actor: &Actor,
        left_behind: usize,
        now: Timestamp,
    ) -> Result<(), RotationError> {
        let left_behind = i64::try_from(left_behind).unwrap_or(i64::MAX);
        self.phase = phase;
        self.ended_at = (!phase.is_open()).then_some(now);
        sqlx::query("UPDATE rotations SET phase = $2, ended_at = $3 WHERE id = $1")
            .bind(self.id)
            .bind(phase.as_str())
            .bind(self.ended_at.map(Timestamp::millis))
            .execute(&mut **transaction)
            .await?;
        let (_, tenant) = place(&self.role);
        sqlx::query(
            "INSERT INTO rotation_steps (rotation, tenant, phase, at, by_whom, left_behind)
             VALUES ($1, NULLIF($2, ''), $3, $4, $5, $6)",
        )
        .bind(self.id)
        .bind(tenant)
        .bind(phase.as_str())
        .bind(now.millis())
        .bind(actor.to_string())
        .bind(left_behind)
        .execute(&mut **transaction)
        .await?;
        self.steps.push(Step { phase, at: now, by: actor.to_string(), left_behind });
        Ok(())
    }
}

pub(super) async fn one(transaction: &mut Transaction, id: i64) -> Result<Rotation, RotationError> {
    let sql = format!("SELECT {COLUMNS} FROM rotations WHERE id = $1");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(id).fetch_optional(&mut **transaction).await?;
    let mut rotation = read(&row.ok_or(RotationError::Unknown(id))?)?;
    rotation.steps = steps(transaction, id).await?;
    Ok(rotation)
}

pub(super) async fn list(
    transaction: &mut Transaction,
    open: bool,
    tenant: Option<&str>,
    before: Option<i64>,
    limit: u32,
) -> Result<Vec<Rotation>, RotationError> {
    let wanted = if open { "ended_at IS NULL AND" } else { "" };
    let sql = format!(
        "SELECT {COLUMNS} FROM rotations WHERE {wanted} id < $1 AND ($2 = '' OR tenant = $2) ORDER BY id DESC LIMIT $3"
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(before.unwrap_or(i64::MAX))
        .bind(tenant.unwrap_or_default())
        .bind(i64::from(limit))
        .fetch_all(&mut **transaction)
        .await?;
    let mut rotations = Vec::with_capacity(rows.len());
    for row in &rows {
        let mut rotation = read(row)?;
        rotation.steps = steps(transaction, rotation.id).await?;
        rotations.push(rotation);
    }
    Ok(rotations)
}

fn read(row: &AnyRow) -> Result<Rotation, RotationError> {
    let (kind, tenant): (String, Option<String>) = (row.try_get(1)?, row.try_get(2)?);
    let tenant = tenant.map(parsed).transpose()?;
    Ok(Rotation {
        id: row.try_get(0)?,
        role: role(&kind, tenant)?,
        old: row.try_get(3)?,
        new: row.try_get(4)?,
        phase: parsed(row.try_get(5)?)?,
        reason: row.try_get(6)?,
        started_by: row.try_get(7)?,
        started_at: Timestamp::from_millis(row.try_get(8)?),
        ended_at: row.try_get::<Option<i64>, _>(9)?.map(Timestamp::from_millis),
        steps: Vec::new(),
    })
}

async fn steps(transaction: &mut Transaction, rotation: i64) -> Result<Vec<Step>, RotationError> {
    let rows =
        sqlx::query("SELECT phase, at, by_whom, left_behind FROM rotation_steps WHERE rotation = $1 ORDER BY id")
            .bind(rotation)
            .fetch_all(&mut **transaction)
            .await?;
    let read = |row: &AnyRow| {
        Ok(Step {
            phase: parsed(row.try_get(0)?)?,
            at: Timestamp::from_millis(row.try_get(1)?),
            by: row.try_get(2)?,
            left_behind: row.try_get(3)?,
        })
    };
    Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
}

/// An open rotation that one of `role` can't be beside: of the same authority; and of the fleet root and an intermediate, one
/// at a time, because intermediates follow the root.
pub(super) async fn in_the_way(transaction: &mut Transaction, role: &Role) -> Result<Option<Rotation>, RotationError> {
    let sql = format!("SELECT {COLUMNS} FROM rotations WHERE ended_at IS NULL ORDER BY id");
    for row in &sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut **transaction).await? {
        let other = read(row)?;
        let under_root = |role: &Role| matches!(role, Role::Hub | Role::Nodes(_));
        let root_and_under =
            (*role == Role::Root && under_root(&other.role)) || (under_root(role) && other.role == Role::Root);
        if other.role == *role || root_and_under {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

pub(super) async fn record(
    transaction: &mut Transaction,
    rotation: &Rotation,
    action: &'static str,
    detail: serde_json::Value,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), RotationError> {
    let record = Record {
        actor: actor.clone(),
        action,
        tenant: match &rotation.role {
            Role::Nodes(tenant) | Role::Kafka(tenant) => Some(tenant.clone()),
            Role::Root | Role::Hub | Role::Web => None,
        },
        subject: rotation.id.to_string(),
        detail,
        remote: None,
    };
    audit::append(transaction, now, record).await?;
    Ok(())
}
