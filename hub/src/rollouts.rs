//! Rollouts: the same command over many nodes, in waves that hold themselves when something goes wrong. Where one stands is in
//! the database alone; every step is one transaction with its records in the audit log, and doing it twice does nothing.

mod health;
mod keeper;
pub mod plan;
mod rows;
mod waves;
mod window;

use std::sync::Arc;
use std::time::Duration;

use protocol::command::Action;
use protocol::{CommandId, NodeId, TenantId, Timestamp};
use serde_json::{Value, json};
use store::sqlx;
use store::{Database, StoreError, Transaction};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::alerts::{Alerts, Change, Finding, Rule};
use crate::audit::{self, Actor, Record, action};
use crate::commands::{Commands, NewRequest, RequestError};
use crate::reason::Reason;
use crate::telemetry::state::{Fleet, Level};
use rows::Accepted;

pub use plan::{Act, Cause, Health, Limits, Member, Moment, Position, Standing, State, Waiting, Wrong};
pub use waves::{Reach, Waves, WavesError};
pub use window::{Window, WindowError};

/// Longest time to settle, and to soak.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);
/// Most windows of one rollout.
const MOST_WINDOWS: usize = 20;

/// All rollouts. Clones share them.
#[derive(Clone)]
pub struct Rollouts {
    database: Database,
    commands: Commands,
    fleet: Fleet,
    alerts: Alerts,
    /// There is something to do sooner than was thought.
    sooner: Arc<Notify>,
}

/// One rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Its number.
    pub id: i64,
    /// Whose nodes all of them are; `None`: of several tenants.
    pub tenant: Option<TenantId>,
    /// The action's name.
    pub name: String,
    /// What to do; `None` when a later version of the hub has stored it.
    pub action: Option<Action>,
    /// Of its commands, what is greater goes first.
    pub priority: u32,
    /// For how long each of its commands may still start.
    pub valid_for: Duration,
    /// How the nodes were chosen.
    pub target: Value,
    /// Why.
    pub reason: Reason,
    /// Who started it.
    pub started_by: String,
    /// When.
    pub started_at: Timestamp,
    /// When it was done, or aborted.
    pub ended_at: Option<Timestamp>,
    /// How its waves were asked for.
    pub waves: String,
    /// What holds it back.
    pub limits: Limits,
    /// Where it stands.
    pub position: Position,
    /// Why it stands so.
    pub why: String,
    /// Since when.
    pub changed_at: Timestamp,
    /// By whom.
    pub changed_by: String,
}

/// One node of a rollout, with what came of its command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Participant {
    /// How far it is.
    pub member: Member,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its command, once it is made.
    pub command: Option<CommandId>,
    /// What came of that.
    pub message: String,
}

/// What somebody asks for.
#[derive(Clone, Debug)]
pub struct NewRollout {
    /// The nodes of each wave, and whose they are.
    pub waves: Vec<Vec<(NodeId, TenantId)>>,
    /// How the waves were asked for.
    pub shape: String,
    /// What holds it back.
    pub limits: Limits,
    /// The command for each node; its nodes are those of the waves.
    pub command: NewRequest,
}

/// What somebody does to a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Hold it.
    Pause,
    /// Let it go on.
    Resume,
    /// Give it up: what nobody was told is taken back.
    Abort,
}

/// A rollout that does not begin, or go on.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// No such rollout.
    #[error("there is no rollout {0}: see `hfctl rollout list`")]
    Unknown(i64),
    /// It is over.
    #[error("rollout {id} is {state}: it can't go on, and nothing of it can be held; start another one")]
    Over {
        /// Its number.
        id: i64,
        /// How it ended.
        state: State,
    },
    /// It holds itself.
    #[error("rollout {0} holds itself already: look why, then resume or abort it")]
    Halted(i64),
    /// A limit makes no sense.
    #[error("{0}")]
    Limits(&'static str),
    /// Its command can't be asked for.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for RolloutError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Rollouts {
    /// Those in `database`, of the nodes of `fleet`, by `commands`; one that holds itself is among `alerts`.
    pub fn new(database: Database, commands: Commands, fleet: Fleet, alerts: Alerts) -> Self {
        Self { database, commands, fleet, alerts, sooner: Arc::default() }
    }

    /// The same for somebody who is bound to a tenant: nothing else is there.
    #[must_use]
    pub fn within(&self, tenant: Option<&TenantId>) -> Self {
        Self { database: self.database.within(tenant.map(TenantId::as_str)), ..self.clone() }
    }

    /// The task that takes the steps until `stop`; `wall` is the wall clock.
    pub fn keep<C: Fn() -> Timestamp + Send + Sync>(
        &self,
        wall: C,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<C> {
        keeper::keep(self.clone(), wall, stop)
    }

    /// Starts one: its nodes are those that are named now. With the same key, the same request has one effect.
    ///
    /// # Errors
    /// [`RolloutError`]; nothing was stored then.
    pub async fn start(&self, new: NewRollout, actor: &Actor, now: Timestamp) -> Result<Rollout, RolloutError> {
        let NewRollout { waves, shape, limits, command } = new;
        let seats: Vec<rows::Seat<'_>> =
            waves.iter().enumerate().flat_map(|(wave, nodes)| nodes.iter().map(move |node| (wave + 1, node))).collect();
        let command = NewRequest { nodes: seats.iter().map(|(_, node)| (*node).clone()).collect(), ..command };
        check(&limits)?;
        let owner = command.nodes.first().map(|(_, tenant)| tenant.clone());
        let tenant = owner.filter(|owner| command.nodes.iter().all(|(_, tenant)| tenant == owner));
        let mut transaction = self.database.begin_write().await?;
        if let Some(key) = &command.key {
            // Of two who come with one key at once, the second sees what the first has done.
            audit::lock(&mut transaction).await?;
            if let Some((id, fingerprint)) = rows::keyed(&mut transaction, &command.caller, key).await? {
                return match fingerprint == command.fingerprint {
                    true => Ok(rows::one(&mut transaction, id, None).await?.ok_or(RolloutError::Unknown(id))?),
                    false => Err(RequestError::Key.into()),
                };
            }
        }
        command.check()?;
        let count = u32::try_from(waves.len()).unwrap_or(u32::MAX);
        let mut rollout = Rollout {
            id: 0,
            tenant,
            name: command.action.name().as_str().to_owned(),
            action: Some(command.action.clone()),
            priority: command.priority,
            valid_for: command.valid_for,
            target: command.target.clone(),
            reason: command.reason.clone(),
            started_by: actor.to_string(),
            started_at: now,
            ended_at: None,
            waves: shape,
            limits,
            position: Position { state: State::Running, wave: 1, waves: count, soaking_since: None },
            why: String::new(),
            changed_at: now,
            changed_by: actor.to_string(),
        };
        rollout.id = rows::insert(&mut transaction, &rollout, &command, &seats).await?;
        let detail = json!({
            "action": rollout.name,
            "what": command.action.to_string(),
            "why": rollout.reason.as_str(),
            "target": rollout.target,
            "nodes": seats.len(),
            "waves": waves.iter().map(Vec::len).collect::<Vec<_>>(),
            "rate_per_minute": rollout.limits.rate,
            "windows": rollout.limits.windows.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "settle_seconds": rollout.limits.settle.as_secs(),
            "soak_seconds": rollout.limits.soak.as_secs(),
            "most_failed_percent": rollout.limits.most_failed,
            "most_regressed_percent": rollout.limits.most_regressed,
        });
        audit::append(&mut transaction, now, rollout.record(action::ROLLOUT_STARTED, actor, detail)).await?;
        transaction.commit().await?;
        self.sooner.notify_one();
        Ok(rollout)
    }

    /// Rollouts, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list(&self, before: Option<i64>, limit: u32) -> Result<Vec<Rollout>, RolloutError> {
        Ok(rows::list(&mut *self.database.read().await?, self.database.tenant(), before, limit).await?)
    }

    /// One rollout with its nodes, by wave and place, as they are now.
    ///
    /// # Errors
    /// [`RolloutError::Unknown`].
    pub async fn get(&self, id: i64) -> Result<(Rollout, Vec<Participant>), RolloutError> {
        let mut reading = self.database.begin_read().await?;
        let rollout = rows::one(&mut reading, id, self.database.tenant()).await?.ok_or(RolloutError::Unknown(id))?;
        let participants = self.participants(&mut reading, &rollout).await?;
        Ok((rollout, participants))
    }

    /// What a rollout would do now, as far as this hub sees it.
    pub fn next(&self, rollout: &Rollout, participants: &[Participant], now: Timestamp) -> Act {
        let members: Vec<Member> = participants.iter().map(|one| one.member).collect();
        plan::step(&rollout.position, &rollout.limits, &members, self.moment(now, false))
    }

    /// The wall clock's time at a moment of the steady clock, as they are at `now`.
    pub fn shown(&self, steady: Timestamp, now: Timestamp) -> Timestamp {
        Timestamp::from_millis(steady.millis().saturating_add(self.commands.shift(now)))
    }

    /// Holds one, lets it go on, or gives it up. Doing it twice changes nothing.
    ///
    /// # Errors
    /// [`RolloutError`]; nothing has changed then.
    pub async fn act(
        &self,
        id: i64,
        verb: Verb,
        reason: &Reason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Rollout, RolloutError> {
        let mut transaction = self.database.begin_write().await?;
        let rollout = rows::take(&mut transaction, id, self.database.tenant()).await?;
        let mut rollout = rollout.ok_or(RolloutError::Unknown(id))?;
        let state = rollout.position.state;
        let next = match (verb, state) {
            (Verb::Pause, State::Running) => State::Paused,
            (Verb::Resume, State::Paused | State::Halted) => State::Running,
            (Verb::Abort, State::Running | State::Paused | State::Halted) => State::Aborted,
            (Verb::Pause, State::Paused) | (Verb::Resume, State::Running) | (Verb::Abort, State::Aborted) => {
                return Ok(rollout);
            }
            (Verb::Pause, State::Halted) => return Err(RolloutError::Halted(id)),
            (_, State::Aborted | State::Done) => return Err(RolloutError::Over { id, state }),
        };
        let mut detail = json!({ "reason": reason.as_str(), "wave": rollout.position.wave, "state": state.as_str() });
        let (mut nodes, mut records) = (Vec::new(), Vec::new());
        let done = match verb {
            Verb::Pause => action::ROLLOUT_PAUSED,
            Verb::Resume => {
                if state == State::Halted {
                    detail["accepted"] = self.accept(&mut transaction, &mut rollout, now).await?.into();
                    detail["halted_for"] = rollout.why.clone().into();
                }
                action::ROLLOUT_RESUMED
            }
            Verb::Abort => {
                (nodes, records) = self.commands.take_back(&mut transaction, id, reason.as_str(), actor, now).await?;
                rollout.ended_at = Some(now);
                detail["taken_back"] = nodes.len().into();
                action::ROLLOUT_ABORTED
            }
        };
        rollout.position.state = next;
        rollout.why = reason.to_string();
        (rollout.changed_at, rollout.changed_by) = (now, actor.to_string());
        rows::update(&mut transaction, &rollout).await?;
        records.push(rollout.record(done, actor, detail));
        let over = (state == State::Halted).then(|| Change::Closed(rollout.finding(now)));
        let over = self.alerts.put(&mut transaction, over.as_slice()).await?;
        audit::append_all(&mut transaction, now, records).await?;
        transaction.commit().await?;
        self.alerts.announce(over);
        tracing::info!(rollout = id, from = %state, to = %next, by = %actor, "rollout");
        self.commands.taken_back(&nodes);
        self.sooner.notify_one();
        Ok(rollout)
    }

    /// Accepts what is wrong now, so that it does not halt the rollout again. Gives how many nodes that were.
    async fn accept(
        &self,
        transaction: &mut Transaction,
        rollout: &mut Rollout,
        now: Timestamp,
    ) -> Result<usize, RolloutError> {
        let (moment, settle, wave) = (self.moment(now, false), rollout.limits.settle, rollout.position.wave);
        let over = rollout.position.has_soaked(&rollout.limits, moment);
        let participants = self.participants(transaction, rollout).await?;
        let nodes = |which: &dyn Fn(&Member) -> bool| -> Vec<NodeId> {
            let members = participants.iter().map(|one| &one.member);
            members
                .filter(|member| member.wave <= wave && !member.accepted && which(member))
                .map(|one| one.node)
                .collect()
        };
        let told = |member: &Member| member.told_at.is_some();
        let wrong = nodes(&|member| {
            member.failed(settle, moment) || member.regressed(over, moment) || member.cancelled() && told(member)
        });
        // Its command may have been taken back since.
        let silent = nodes(&|member| member.asked_at.is_some() && !told(member));
        rows::accept(transaction, rollout.id, &wrong, Accepted::Wrong).await?;
        rows::accept(transaction, rollout.id, &silent, Accepted::Silent).await?;
        // What was accepted is watched anew: it may get worse. Before, those are asked whose commands were taken back.
        let to_ask = participants.iter().any(|one| one.member.wave == wave && one.member.pending());
        let watched = rollout.position.soaking_since.filter(|_| !to_ask);
        rollout.position.soaking_since = watched.map(|_| moment.steady);
        Ok(wrong.len() + silent.len())
    }

    async fn participants(
        &self,
        connection: &mut sqlx::AnyConnection,
        rollout: &Rollout,
    ) -> Result<Vec<Participant>, StoreError> {
        let steady = self.commands.clock().now();
        let mut participants = rows::participants(connection, rollout.id, steady).await?;
        // How the nodes of other waves are now is nobody's question, but of those who are to be asked.
        let wave = rollout.position.wave;
        let asked_for = |member: &Member| {
            member.wave == wave || member.wave < wave && (member.pending() || member.told_at.is_none())
        };
        for one in participants.iter_mut().filter(|one| asked_for(&one.member)) {
            one.member.health = health::of(&self.fleet, one.member.node);
        }
        Ok(participants)
    }

    /// The moment of a look; `fresh`: the hub has just started.
    pub fn moment(&self, now: Timestamp, fresh: bool) -> Moment {
        Moment { steady: self.commands.clock().now(), wall: now, fresh }
    }
}

impl Rollout {
    /// What it does, for a person.
    pub fn what(&self) -> String {
        self.action.as_ref().map_or_else(|| self.name.clone(), ToString::to_string)
    }

    /// The alert that it holds itself.
    fn finding(&self, at: Timestamp) -> Finding {
        let message =
            format!("the rollout of {} holds itself: {}; look, then resume or abort it", self.what(), self.why);
        Finding {
            tenant: self.tenant.clone(),
            node: None,
            rule: Rule::RolloutHalted,
            subject: format!("rollout/{}", self.id),
            level: Level::Critical,
            message,
            at,
        }
    }

    fn record(&self, action: &'static str, actor: &Actor, detail: Value) -> Record {
        let (actor, tenant) = (actor.clone(), self.tenant.clone());
        Record { actor, action, tenant, subject: self.id.to_string(), detail, remote: None }
    }
}

fn check(limits: &Limits) -> Result<(), RolloutError> {
    let Limits { rate, windows, settle, soak, most_failed, most_regressed } = limits;
    let wrong = if *rate == Some(0) {
        "a rate is at least one command a minute"
    } else if windows.len() > MOST_WINDOWS {
        "a rollout has at most 20 maintenance windows"
    } else if !(Duration::from_secs(1)..=LONGEST).contains(settle) {
        "nodes have 1 second to 7 days to settle"
    } else if *soak > LONGEST {
        "a wave is watched for at most 7 days"
    } else if *most_failed > 100 || *most_regressed > 100 {
        "a share is 0 to 100 percent"
    } else {
        return Ok(());
    };
    Err(RolloutError::Limits(wrong))
}
