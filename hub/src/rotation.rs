//! Rotations: from an authority to its successor in phases, each with a gate and a way back. Where one stands is in the
//! database alone; every step is one transaction, with its record in the audit log.

mod gate;
mod gauges;
mod phase;

use std::time::Duration;

use pki::Role;
use protocol::{TenantId, Timestamp};
use serde_json::json;
use store::sqlx::any::AnyRow;
use store::sqlx::{self, AssertSqlSafe, Row};
use store::{Database, StoreError, Transaction};

use crate::audit::{self, Actor, Record, action};
use crate::authorities::{Authorities, AuthoritiesError, Succession, place};
use crate::enrollment::{ADVICE_WITHIN_MAX, AdviseError, Enrollment};

pub use gate::{Gate, Missing};
pub use gauges::Gauges;
pub use phase::{Direction, Phase, PhaseError};

/// Longest reason, characters.
const REASON_MAX: usize = 200;
/// Those left behind whom the audit log names one by one; more are counted.
const NAMED: usize = 100;
/// Those not ready whom an error names.
const SHOWN: usize = 5;

/// Time over which renewals are spread unless an operator says otherwise.
pub const RENEW_WITHIN: Duration = Duration::from_secs(3600);

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

/// A rotation that does not begin, or go on.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// No such rotation.
    #[error("there is no rotation {0}: see `hfctl ca rotate list`")]
    Unknown(i64),
    /// This is not rotated.
    #[error("{0:?} is nothing to rotate: say root, hub, nodes or kafka, the last two with a tenant")]
    What(String),
    /// One is under way.
    #[error("rotation {id} of {what} is under way: end or abort it first, see `hfctl ca rotate status {id}`")]
    UnderWay {
        /// Its number.
        id: i64,
        /// What it rotates.
        what: String,
    },
    /// Not one line of reasonable length.
    #[error("a reason is one line of 1 to {REASON_MAX} characters")]
    Reason,
    /// Too long.
    #[error("renewals are spread over at most {} days", ADVICE_WITHIN_MAX.as_secs() / 86_400)]
    Within,
    /// It is in another phase.
    #[error("rotation {id} is in the phase {phase}, not {from}: somebody was faster; look again")]
    Elsewhere {
        /// Its number.
        id: i64,
        /// Where it is.
        phase: Phase,
        /// Where it was taken to be.
        from: Phase,
    },
    /// It is over.
    #[error("rotation {id} is over ({phase}): there is no way on and none back; begin another one")]
    Over {
        /// Its number.
        id: i64,
        /// How it ended.
        phase: Phase,
    },
    /// The root is kept offline, and has not signed yet.
    #[error(
        "rotation {id} waits for the fleet root, which is kept offline: take `hyperfactory-hub ca root requests` to it, have \
         them signed and import the answers; then go on"
    )]
    Unsigned {
        /// Its number.
        id: i64,
    },
    /// Somebody is not ready.
    #[error("{}", missing(gate))]
    NotReady {
        /// Who, and for what.
        gate: Box<Gate>,
    },
    /// A person has to look first.
    #[error(
        "{}: the hub can't see the tenant's brokers; look, and confirm it with --brokers-updated",
        if *to == Phase::Issue { "every broker must trust both roots (hfctl trust kafka-root) before bridges get certificates of the new one's" }
        else { "every broker must show a certificate of the new root's (hfctl kafka server-certificate) before the old one is trusted no more" }
    )]
    Brokers {
        /// The phase that waits for it.
        to: Phase,
    },
    /// An authority that would issue has ended.
    #[error("the authority that would issue then has ended at {0}: it can't issue any more")]
    Ended(Timestamp),
    /// The authorities could not be had, made or changed.
    #[error(transparent)]
    Authorities(#[from] AuthoritiesError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for RotationError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

fn missing(gate: &Gate) -> String {
    let count = gate.missing.len();
    let named = gate.missing.iter().take(SHOWN).map(|one| {
        let Missing { name, tenant, why, .. } = one;
        format!("{name} of {tenant} ({}{why})", presence(one))
    });
    let (named, more) = (named.collect::<Vec<_>>().join(", "), count.saturating_sub(SHOWN));
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        "{count} not ready for the phase {}: {named}{more}. Wait for them; or leave them behind with --leave {count}: they come \
         back by themselves, by recovery, while the window for it lasts",
        gate.to
    )
}

/// Where one that is not ready is, for a person.
pub(crate) fn presence(missing: &Missing) -> String {
    match (missing.presence.as_deref(), missing.since) {
        (Some("lost" | "left"), Some(since)) => format!("offline since {since}; "),
        (Some("lost" | "left"), None) => "offline; ".to_owned(),
        (Some("never_seen"), _) => "never seen; ".to_owned(),
        _ => String::new(),
    }
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
        if let Some(other) = in_the_way(&mut transaction, &role).await? {
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
        record(&mut transaction, &rotation, action::ROTATION_STARTED, detail, actor, now).await?;
        transaction.commit().await?;
        self.changed(now).await;
        Ok(rotation)
    }

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
        let mut rotation = one(&mut transaction, id).await?;
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
        record(&mut transaction, &rotation, action, detail, actor, now).await?;
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

    /// Rotations, newest first: all, or those that are open.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list(&self, open: bool, before: Option<i64>, limit: u32) -> Result<Vec<Rotation>, RotationError> {
        let mut reading = self.database.begin_read().await?;
        let wanted = if open { "ended_at IS NULL AND" } else { "" };
        let sql = format!(
            "SELECT {COLUMNS} FROM rotations WHERE {wanted} id < $1 AND ($2 = '' OR tenant = $2) ORDER BY id DESC LIMIT $3"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(before.unwrap_or(i64::MAX))
            .bind(self.database.tenant().unwrap_or_default())
            .bind(i64::from(limit))
            .fetch_all(&mut *reading)
            .await?;
        let mut rotations = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut rotation = read(row)?;
            rotation.steps = steps(&mut reading, rotation.id).await?;
            rotations.push(rotation);
        }
        Ok(rotations)
    }

    /// One rotation.
    ///
    /// # Errors
    /// [`RotationError::Unknown`].
    pub async fn get(&self, id: i64) -> Result<Rotation, RotationError> {
        let mut reading = self.database.begin_read().await?;
        let rotation = one(&mut reading, id).await?;
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

    /// What is committed has to be seen; should it not be now, the next look will.
    async fn changed(&self, now: Timestamp) {
        if let Err(error) = self.authorities.look(now).await {
            tracing::warn!(%error, "a rotation's step is done, and this hub could not read it yet");
        }
    }
}

impl Rotation {
    async fn enter(
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

const COLUMNS: &str = "id, kind, tenant, old_authority, new_authority, phase, reason, started_by, started_at, ended_at";

async fn one(transaction: &mut Transaction, id: i64) -> Result<Rotation, RotationError> {
    let sql = format!("SELECT {COLUMNS} FROM rotations WHERE id = $1");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(id).fetch_optional(&mut **transaction).await?;
    let mut rotation = read(&row.ok_or(RotationError::Unknown(id))?)?;
    rotation.steps = steps(transaction, id).await?;
    Ok(rotation)
}

fn read(row: &AnyRow) -> Result<Rotation, RotationError> {
    let decode = |error: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(error);
    let (kind, tenant): (String, Option<String>) = (row.try_get(1)?, row.try_get(2)?);
    let tenant =
        tenant.map(|tenant| tenant.parse()).transpose().map_err(|error: protocol::id::IdError| decode(error.into()))?;
    Ok(Rotation {
        id: row.try_get(0)?,
        role: role(&kind, tenant)?,
        old: row.try_get(3)?,
        new: row.try_get(4)?,
        phase: row.try_get::<String, _>(5)?.parse().map_err(|error: PhaseError| decode(error.into()))?,
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
            phase: row
                .try_get::<String, _>(0)?
                .parse()
                .map_err(|error: PhaseError| sqlx::Error::Decode(error.into()))?,
            at: Timestamp::from_millis(row.try_get(1)?),
            by: row.try_get(2)?,
            left_behind: row.try_get(3)?,
        })
    };
    Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
}

/// An open rotation that one of `role` can't be beside: of the same authority; and of the fleet root and an intermediate, one
/// at a time, because intermediates follow the root.
async fn in_the_way(transaction: &mut Transaction, role: &Role) -> Result<Option<Rotation>, RotationError> {
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

async fn record(
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
