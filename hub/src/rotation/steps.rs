//! A rotation's steps: what has to be so, what one does to the authorities, and whom it has renew.

use std::time::Duration;

use pki::Role;
use protocol::Timestamp;
use serde_json::json;
use store::Transaction;
use store::sqlx::{self, Row};

use super::{Direction, Phase, REASON_MAX, Rotation, RotationError, Rotations, gate, named, rows};
use crate::audit::{Actor, action};
use crate::authorities::Succession;
use crate::enrollment::{ADVICE_WITHIN_MAX, AdviseError, Enrollment};

/// Those left behind whom the audit log names one by one; more are counted.
const NAMED: usize = 100;

/// Time over which renewals are spread unless an operator says otherwise.
pub const RENEW_WITHIN: Duration = Duration::from_secs(3600);

/// A step to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Which way.
    pub direction: Direction,
    /// The phase it is in, as whoever wishes has seen it: a step is not taken twice.
    pub from: Phase,
    /// So many may stay behind, and no more.
    pub leave: usize,
    /// The tenant's brokers have been seen to: they trust both roots, or show certificates of the new one's.
    pub brokers_updated: bool,
    /// Time over which nodes that have to renew do so.
    pub renew_within: Duration,
}

impl Wish {
    /// A step from `from`, with nobody left behind.
    pub fn new(direction: Direction, from: Phase) -> Self {
        Self { direction, from, leave: 0, brokers_updated: false, renew_within: RENEW_WITHIN }
    }
}

impl Rotations {
    /// Takes a step, forward or back.
    ///
    /// # Errors
    /// [`RotationError::NotReady`] when more are not ready than are to be left behind; nothing has changed then, nor on any
    /// other error.
    pub async fn step(&self, id: i64, wish: Wish, actor: &Actor, now: Timestamp) -> Result<Rotation, RotationError> {
        if wish.renew_within > ADVICE_WITHIN_MAX {
            return Err(RotationError::Within);
        }
        let mut transaction = self.database.begin_write().await?;
        // Takes the row, so that of two who step at once the second sees what the first has done.
        let taken =
            sqlx::query("UPDATE rotations SET phase = phase WHERE id = $1").bind(id).execute(&mut *transaction).await?;
        if taken.rows_affected() == 0 {
            return Err(RotationError::Unknown(id));
        }
        let mut rotation = rows::one(&mut transaction, id).await?;
        if rotation.phase.is_open() && rotation.phase != wish.from {
            return Err(RotationError::Elsewhere { id, phase: rotation.phase, from: wish.from });
        }
        let Some(gate) = gate::look(&mut transaction, &rotation, wish.direction, now).await? else {
            return Err(RotationError::Over { id, phase: rotation.phase });
        };
        if gate.unsigned {
            return Err(RotationError::Unsigned { id });
        }
        if gate.missing.len() > wish.leave {
            return Err(RotationError::NotReady { gate: Box::new(gate) });
        }
        if gate.brokers && !wish.brokers_updated {
            return Err(RotationError::Brokers { to: gate.to });
        }
        let (from, to) = (rotation.phase, gate.to);
        self.carry_out(&mut transaction, &rotation, wish.direction, actor, now).await?;
        let renews = matches!(rotation.role, Role::Root | Role::Nodes(_) | Role::Kafka(_))
            && matches!((from, to), (Phase::Trust, Phase::Issue) | (Phase::Issue, Phase::Trust));
        let renew_within = renews.then(|| i64::try_from(wish.renew_within.as_millis()).unwrap_or(i64::MAX));
        sqlx::query("UPDATE rotations SET renew_within = $2 WHERE id = $1")
            .bind(id)
            .bind(renew_within)
            .execute(&mut *transaction)
            .await?;
        let left: Vec<_> =
            gate.missing.iter().take(NAMED).map(|one| json!({ "id": one.id, "name": one.name })).collect();
        let detail = json!({
            "what": named(&rotation.role), "from": from.as_str(), "to": to.as_str(), "old": rotation.old,
            "new": rotation.new, "left_behind": gate.missing.len(), "left": left,
            "brokers_updated": gate.brokers.then_some(true),
        });
        let action = match (wish.direction, to) {
            (_, Phase::Done) => action::ROTATION_ENDED,
            (_, Phase::Aborted) => action::ROTATION_ABORTED,
            (Direction::Forward, _) => action::ROTATION_ADVANCED,
            (Direction::Back, _) => action::ROTATION_WENT_BACK,
        };
        rotation.enter(&mut transaction, to, actor, gate.missing.len(), now).await?;
        rows::record(&mut transaction, &rotation, action, detail, actor, now).await?;
        transaction.commit().await?;
        tracing::info!(rotation = id, what = named(&rotation.role), %from, %to, left = gate.missing.len(), "rotation");
        self.changed(now).await;
        Ok(rotation)
    }

    /// What a step does to the authorities.
    async fn carry_out(
        &self,
        transaction: &mut Transaction,
        rotation: &Rotation,
        direction: Direction,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), RotationError> {
        let succession = Succession { role: rotation.role.clone(), old: rotation.old, new: rotation.new };
        let authorities = &self.authorities;
        let forward = direction == Direction::Forward;
        match (rotation.phase, direction) {
            (Phase::Prepare, Direction::Forward) => authorities.tell(transaction, &succession, true).await?,
            (Phase::Prepare, Direction::Back) => authorities.renounce(transaction, &succession).await?,
            (Phase::Trust, Direction::Back) => authorities.tell(transaction, &succession, false).await?,
            (Phase::Trust, Direction::Forward) | (Phase::Issue, Direction::Back) => {
                let next = if forward { rotation.new } else { rotation.old };
                if let Some(end) = authorities.ends(transaction, next).await?.filter(|end| *end <= now) {
                    return Err(RotationError::Ended(end));
                }
                authorities.hand_over(transaction, &succession, forward, actor, now).await?;
            }
            (Phase::Issue, Direction::Forward) => authorities.retire(transaction, &succession, rotation.id).await?,
            (Phase::Retire, Direction::Forward) => authorities.conclude(transaction, &succession).await?,
            (Phase::Retire, Direction::Back) => {
                authorities.restore(transaction, &succession, rotation.id, actor, now).await?;
            }
            (Phase::Done | Phase::Aborted, _) => {}
        }
        Ok(())
    }

    /// Advises nodes to renew where a step has made that due, once. To be called when this hub shows the certificates that
    /// go with the step: so a session that follows a renewal has seen them.
    ///
    /// # Errors
    /// When nobody could be advised; it is still due then.
    pub async fn advise(&self, enrollment: &Enrollment, now: Timestamp) -> Result<(), RotationError> {
        let due =
            sqlx::query("SELECT id, renew_within, phase, kind, tenant FROM rotations WHERE renew_within IS NOT NULL")
                .fetch_all(self.database.reader())
                .await?;
        for row in &due {
            let (id, within): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            let rotation = self.get(id).await?;
            // Back in the phase before, those are to renew who have what they would have to leave again.
            let direction = if rotation.phase == Phase::Trust { Direction::Back } else { Direction::Forward };
            if let Some(gate) = self.gate(&rotation, direction, now).await? {
                // Nobody but a person renews what brokers show.
                let nodes = gate.missing.iter().filter(|one| one.kind != "broker");
                let nodes = nodes.filter_map(|one| one.id.parse().ok()).collect();
                let reason = format!("rotation of {}: {}", named(&rotation.role), rotation.reason);
                let reason: String = reason.chars().take(REASON_MAX).collect();
                let within = Duration::from_millis(within.unsigned_abs());
                let advised = match rotation.role {
                    Role::Kafka(_) => enrollment.renew_kafka_soon(nodes, within, &reason, now).await,
                    _ => enrollment.renew_identities_soon(nodes, within, &reason, now).await,
                };
                advised.map_err(|error| match error {
                    AdviseError::Store(error) => RotationError::Store(error),
                    AdviseError::Within => RotationError::Within,
                    AdviseError::Reason => RotationError::Reason,
                })?;
            }
            let mut transaction = self.database.begin_write().await?;
            sqlx::query("UPDATE rotations SET renew_within = NULL WHERE id = $1 AND phase = $2")
                .bind(id)
                .bind(rotation.phase.as_str())
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
        }
        Ok(())
    }
}
