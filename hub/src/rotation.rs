//! Rotations: from an authority to its successor in phases, each with a gate and a way back. Where one stands is in the
//! database alone; every step is one transaction, with its record in the audit log.

mod error;
mod gate;
mod gauges;
mod phase;
mod rows;
mod steps;

use pki::Role;
use protocol::{TenantId, Timestamp};
use serde_json::json;
use store::Database;
use store::sqlx;

use crate::audit::{Actor, action};
use crate::authorities::{Authorities, Succession, place};

pub use error::RotationError;
pub use gate::{Gate, Missing};
pub use gauges::Gauges;
pub use phase::{Direction, Phase, PhaseError};
pub use steps::{RENEW_WITHIN, Wish};

/// Longest reason, characters.
const REASON_MAX: usize = 200;

/// All rotations. Clones share them.
#[derive(Clone)]
pub struct Rotations {
    database: Database,
    authorities: Authorities,
}

/// One rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Its number.
    pub id: i64,
    /// What is rotated, and whose.
    pub role: Role,
    /// The row of the authority that issued when it began.
    pub old: i64,
    /// The row of its successor.
    pub new: i64,
    /// Where it stands.
    pub phase: Phase,
    /// Why it was begun.
    pub reason: String,
    /// By whom.
    pub started_by: String,
    /// When.
    pub started_at: Timestamp,
    /// When it was done, or aborted.
    pub ended_at: Option<Timestamp>,
    /// Every phase it entered, oldest first.
    pub steps: Vec<Step>,
}

/// The entering of a phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub phase: Phase,
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub by: String,
    /// How many were not ready.
    pub left_behind: i64,
}

/// What is rotated, for a person.
pub fn named(role: &Role) -> String {
    match role {
        Role::Root => "the fleet root".to_owned(),
        Role::Hub => "the hub's intermediate".to_owned(),
        Role::Nodes(tenant) => format!("the nodes' intermediate of {tenant}"),
        Role::Kafka(tenant) => format!("the Kafka root of {tenant}"),
        Role::Web => "the authority for HTTPS".to_owned(),
    }
}

/// What there is to rotate: `root`, `hub`, `nodes` of a tenant, `kafka` of a tenant.
///
/// # Errors
/// [`RotationError::What`].
pub fn role(kind: &str, tenant: Option<TenantId>) -> Result<Role, RotationError> {
    match (kind, tenant) {
        ("root", None) => Ok(Role::Root),
        ("hub", None) => Ok(Role::Hub),
        ("nodes", Some(tenant)) => Ok(Role::Nodes(tenant)),
        ("kafka", Some(tenant)) => Ok(Role::Kafka(tenant)),
        _ => Err(RotationError::What(kind.to_owned())),
    }
}

impl Rotations {
    /// Those of the authorities in `database`.
    pub fn new(database: Database, authorities: Authorities) -> Self {
        Self { database, authorities }
    }

    /// The same for somebody who is bound to a tenant: nothing else is there.
    #[must_use]
    pub fn within(&self, tenant: Option<&TenantId>) -> Self {
        Self { database: self.database.within(tenant.map(TenantId::as_str)), authorities: self.authorities.clone() }
    }

    /// Begins a rotation, in the phase [`Phase::Prepare`]: the successor is made, its key sealed, and nobody is told.
    ///
    /// # Errors
    /// [`RotationError::UnderWay`] while another one is in the way, or why the successor could not be made.
    pub async fn start(
        &self,
        role: Role,
        reason: &str,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Rotation, RotationError> {
        let reason = reason.trim();
        if !(1..=REASON_MAX).contains(&reason.chars().count()) || reason.chars().any(char::is_control) {
            return Err(RotationError::Reason);
        }
        let mut transaction = self.database.begin_write().await?;
        let Succession { old, new, .. } = self.authorities.succeed(&mut transaction, &role, actor, now).await?;
        // After that has taken the audit log: of two that begin at once, the second sees the first.
        if let Some(other) = rows::in_the_way(&mut transaction, &role).await? {
            return Err(RotationError::UnderWay { id: other.id, what: named(&other.role) });
        }
        let (kind, tenant) = place(&role);
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO rotations
                 (kind, tenant, old_authority, new_authority, phase, reason, started_by, started_at)
             VALUES ($1, NULLIF($2, ''), $3, $4, $5, $6, $7, $8) RETURNING id",
        )
        .bind(kind)
        .bind(tenant)
        .bind(old)
        .bind(new)
        .bind(Phase::Prepare.as_str())
        .bind(reason)
        .bind(actor.to_string())
        .bind(now.millis())
        .fetch_one(&mut *transaction)
        .await?;
        let mut rotation = Rotation {
            id,
            role,
            old,
            new,
            phase: Phase::Prepare,
            reason: reason.to_owned(),
            started_by: actor.to_string(),
            started_at: now,
            ended_at: None,
            steps: Vec::new(),
        };
        rotation.enter(&mut transaction, Phase::Prepare, actor, 0, now).await?;
        let detail = json!({ "what": named(&rotation.role), "reason": reason, "old": old, "new": new });
        rows::record(&mut transaction, &rotation, action::ROTATION_STARTED, detail, actor, now).await?;
        transaction.commit().await?;
        self.changed(now).await;
        Ok(rotation)
    }

    /// Rotations, newest first: all, or those that are open.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list(&self, open: bool, before: Option<i64>, limit: u32) -> Result<Vec<Rotation>, RotationError> {
        let mut reading = self.database.begin_read().await?;
        rows::list(&mut reading, open, self.database.tenant(), before, limit).await
    }

    /// One rotation.
    ///
    /// # Errors
    /// [`RotationError::Unknown`].
    pub async fn get(&self, id: i64) -> Result<Rotation, RotationError> {
        let mut reading = self.database.begin_read().await?;
        let rotation = rows::one(&mut reading, id).await?;
        let own = self.database.tenant().is_none_or(|tenant| place(&rotation.role).1 == tenant);
        if own { Ok(rotation) } else { Err(RotationError::Unknown(id)) }
    }

    /// The gate before the next step in a direction; `None` when the rotation is over.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn gate(
        &self,
        rotation: &Rotation,
        direction: Direction,
        now: Timestamp,
    ) -> Result<Option<Gate>, RotationError> {
        let mut reading = self.database.begin_read().await?;
        gate::look(&mut reading, rotation, direction, now).await
    }

    /// What is committed has to be seen; should it not be now, the next look will.
    async fn changed(&self, now: Timestamp) {
        if let Err(error) = self.authorities.look(now).await {
            tracing::warn!(%error, "a rotation's step is done, and this hub could not read it yet");
        }
    }
}
