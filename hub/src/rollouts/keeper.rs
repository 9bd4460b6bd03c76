//! Takes the steps of rollouts: looks what is due, and does it, one transaction each. It remembers nothing, so that it does
//! not matter when a hub ends, or that another one begins.

use std::time::Duration;

use protocol::{NodeId, Timestamp};
use serde_json::json;
use store::sqlx::{self, Row};
use store::{StoreError, Transaction};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::plan::{self, Act, Cause, Health, Member, Moment, State, Wrong};
use super::window::LONGEST_WAIT;
use super::{Participant, Rollout, RolloutError, Rollouts, rows};
use crate::alerts::Change;
use crate::audit::{self, Actor, Record, action};
use crate::commands::{NewRequest, Places, RequestError, Requested};

/// How often it is looked while a rollout runs.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a look that took long, so many times as long passes before the next: large rollouts must not keep the hub busy.
const REST: u32 = 9;
/// How long the nodes of a hub that just started have to come back, before they count as lost.
const COME_BACK_WITHIN: Duration = Duration::from_secs(60);
/// Steps of one rollout before the others have their turn.
const STEPS: usize = 32;
/// Nodes that a sentence names; more are counted.
const NAMED: usize = 5;

/// Takes steps until `stop`.
pub(super) async fn keep(rollouts: Rollouts, wall: impl Fn() -> Timestamp + Sync, stop: CancellationToken) {
    let began = Instant::now();
    loop {
        let fresh = began.elapsed() < COME_BACK_WITHIN;
        let looking = Instant::now();
        let wait = match rollouts.look(&wall, fresh).await {
            Ok(0) => LONGEST_WAIT,
            Ok(_) => LOOK_EVERY.max(looking.elapsed() * REST).min(LONGEST_WAIT),
            Err(error) => {
                warn!(%error, "rollouts were not looked at");
                LOOK_EVERY
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = rollouts.sooner.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

impl Rollouts {
    /// Takes every step that is due, each by what the wall clock `wall` shows then; gives how many rollouts run. `fresh`: the
    /// hub has just started.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn look(&self, wall: impl Fn() -> Timestamp + Sync, fresh: bool) -> Result<usize, StoreError> {
        self.follow().await?;
        let running = sqlx::query("SELECT id FROM rollouts WHERE state = 'running' ORDER BY id")
            .fetch_all(self.database.reader())
            .await?;
        for row in &running {
            let id: i64 = row.try_get(0)?;
            for _ in 0..STEPS {
                match self.step(id, &wall, fresh).await {
                    Ok(Act::Wait(_)) => break,
                    Ok(_) => {}
                    Err(error) => {
                        warn!(rollout = id, %error, "a rollout's step was not taken; it will be tried again");
                        break;
                    }
                }
            }
        }
        Ok(running.len())
    }

    /// Takes note of how commands stand, and that they were handed over: nodes' time to answer begins by that.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn follow(&self) -> Result<(), StoreError> {
        rows::mirror(&self.database, self.commands.clock().now()).await
    }

    /// Takes the step that is due, if one is.
    ///
    /// # Errors
    /// [`RolloutError`]; nothing has changed then.
    pub async fn step(&self, id: i64, wall: impl Fn() -> Timestamp + Sync, fresh: bool) -> Result<Act, RolloutError> {
        // The steady clock first: what is left of a window is then rather too little, and no deadline is after its end.
        let moment = || Moment { steady: self.commands.clock().now(), wall: wall(), fresh };
        // Most looks find nothing to do, and need not keep others from writing.
        let (seen, participants) = self.get(id).await?;
        if let wait @ Act::Wait(_) = plan::step(&seen.position, &seen.limits, &members(&participants), moment()) {
            return Ok(wait);
        }
        let bound = self.within(seen.tenant.as_ref());
        let mut transaction = bound.database.begin_write().await?;
        let rollout = rows::take(&mut transaction, id, None).await?;
        let mut rollout = rollout.ok_or(RolloutError::Unknown(id))?;
        let participants = self.participants(&mut transaction, &rollout).await?;
        // Others may have written for long.
        let moment = moment();
        let now = moment.wall;
        let act = plan::step(&rollout.position, &rollout.limits, &members(&participants), moment);
        let (mut asked, mut halted) = (None, None);
        let mut records = match &act {
            Act::Wait(_) => return Ok(act),
            Act::Ask(_) if rollout.action.is_none() => {
                halted = Some("this version of the hub does not know the rollout's action".to_owned());
                Vec::new()
            }
            Act::Ask(nodes) => match self.ask(&mut transaction, &rollout, &participants, nodes, moment).await {
                Ok((new, requested, records)) => {
                    asked = Some((new, requested));
                    records
                }
                Err(RolloutError::Request(error)) if !matches!(error, RequestError::Store(_)) => {
                    halted = Some(error.to_string());
                    Vec::new()
                }
                Err(error) => return Err(error),
            },
            Act::Skip(nodes) => {
                rows::skip(&mut transaction, id, nodes).await?;
                let named: Vec<String> = nodes.iter().map(ToString::to_string).take(plan::AT_ONCE).collect();
                let detail = json!({ "wave": rollout.position.wave, "nodes": nodes.len(), "named": named });
                vec![rollout.record(action::ROLLOUT_LEFT_OUT, &Actor::system(), detail)]
            }
            Act::Soak => {
                rollout.position.soaking_since = Some(moment.steady);
                let detail = json!({
                    "wave": rollout.position.wave, "soak_seconds": rollout.limits.soak.as_secs(),
                    "nodes": tally(&rollout, &participants),
                });
                vec![rollout.record(action::ROLLOUT_WATCHED, &Actor::system(), detail)]
            }
            Act::Next => {
                rollout.position.wave += 1;
                rollout.position.soaking_since = None;
                let (wave, waves) = (rollout.position.wave, rollout.position.waves);
                let detail = match wave <= waves {
                    true => json!({ "wave": wave, "of": waves }),
                    false => json!({ "of": waves, "waits_for": "nodes that were away" }),
                };
                vec![rollout.record(action::ROLLOUT_ADVANCED, &Actor::system(), detail)]
            }
            Act::Finish => {
                rollout.position.state = State::Done;
                rollout.ended_at = Some(now);
                (rollout.changed_at, rollout.changed_by) = (now, Actor::system().to_string());
                rollout.why = "every wave is through".to_owned();
                let detail = json!({ "waves": rollout.position.waves, "nodes": tally(&rollout, &participants) });
                vec![rollout.record(action::ROLLOUT_ENDED, &Actor::system(), detail)]
            }
            Act::Halt(cause) => {
                halted = Some(self.sentence(cause));
                Vec::new()
            }
        };
        let mut taken_back = Vec::new();
        if let Some(why) = halted {
            (taken_back, records) = self.halt(&mut transaction, &mut rollout, why, now).await?;
        }
        rows::update(&mut transaction, &rollout).await?;
        let halted = rollout.position.state == State::Halted;
        let alert = halted.then(|| Change::Opened(rollout.finding(now)));
        let alert = self.alerts.put(&mut transaction, alert.as_slice()).await?;
        if !records.is_empty() {
            audit::append_all(&mut transaction, now, records).await?;
        }
        transaction.commit().await?;
        self.alerts.announce(alert);
        if let Some((new, requested)) = &asked {
            self.commands.placed(new, requested, self.commands.no_places(), now);
        }
        self.commands.taken_back(&taken_back);
        let (wave, state) = (rollout.position.wave, rollout.position.state);
        match state {
            State::Halted => warn!(rollout = id, wave, why = rollout.why, "a rollout holds itself"),
            _ => info!(rollout = id, wave, %state, asked = asked.map(|(new, _)| new.nodes.len()), "rollout"),
        }
        Ok(act)
    }

    /// Makes the commands of some nodes, as anybody's are made.
    async fn ask(
        &self,
        transaction: &mut Transaction,
        rollout: &Rollout,
        participants: &[Participant],
        nodes: &[NodeId],
        now: Moment,
    ) -> Result<(NewRequest, Requested, Vec<Record>), RolloutError> {
        let id = rollout.id;
        let action = rollout.action.clone().ok_or(RolloutError::Limits("there is nothing to ask for"))?;
        let asked: Vec<&Participant> = participants.iter().filter(|one| nodes.contains(&one.member.node)).collect();
        let first = asked.first().map(|one| &one.member);
        let within = first.and_then(|member| member.within(rollout.limits.open_for(now), now));
        let new = NewRequest {
            nodes: asked.iter().map(|one| (one.member.node, one.tenant.clone())).collect(),
            target: json!({ "rollout": id, "wave": first.map(|member| member.wave) }),
            action,
            priority: rollout.priority,
            valid_for: within.unwrap_or(rollout.valid_for).min(rollout.valid_for),
            reason: rollout.reason.clone(),
            scope: rollout.tenant.clone(),
            caller: format!("rollout {id}"),
            // The rollout's row is taken, and says who was asked.
            key: None,
            fingerprint: Vec::new(),
            signed: None,
        };
        let actor = Actor::again(&rollout.started_by);
        let places = Places::none(now.steady);
        let (requested, records) = self.commands.place(transaction, &new, &places, &actor, now.wall).await?;
        for (command, node) in &requested.commands {
            let health = asked.iter().find(|one| one.member.node == *node).map(|one| one.member.health);
            let updated = sqlx::query(
                "UPDATE rollout_nodes SET state = 'queued', command = $3, asked_at = $4, was_well = $5, was_there = $6,
                   open_until = COALESCE(open_until, $7)
                 WHERE rollout = $1 AND node = $2 AND (command IS NULL OR 'expired' IN
                   (state, (SELECT c.state FROM commands c WHERE c.id = rollout_nodes.command)))",
            )
            .bind(id)
            .bind(node.to_string())
            .bind(command.to_string())
            .bind(now.steady.millis())
            .bind(i64::from(health == Some(Health::Well)))
            .bind(i64::from(health.is_some_and(Health::is_there)))
            .bind(now.steady.plus(rollout.valid_for).millis())
            .execute(&mut **transaction)
            .await?;
            if updated.rows_affected() != 1 {
                return Err(RolloutError::Limits("a node was asked already: nothing is asked twice"));
            }
        }
        Ok((new, requested, records))
    }

    /// Holds a rollout, and says why. What nobody was told is taken back, or it would go on with whoever comes back. Gives
    /// the nodes it is taken back from, and the audit records.
    async fn halt(
        &self,
        transaction: &mut Transaction,
        rollout: &mut Rollout,
        mut why: String,
        now: Timestamp,
    ) -> Result<(Vec<NodeId>, Vec<Record>), StoreError> {
        let system = Actor::system();
        let (nodes, mut records) = self.commands.take_back(transaction, rollout.id, &why, &system, now).await?;
        rows::put_back(transaction, rollout.id, &nodes).await?;
        match nodes.len() {
            0 => {}
            1 => why.push_str("; the command of 1 node that was not told yet is taken back"),
            count => why.push_str(&format!("; the commands of {count} nodes that were not told yet are taken back")),
        }
        rollout.position.state = State::Halted;
        (rollout.changed_at, rollout.changed_by) = (now, system.to_string());
        let detail = json!({
            "wave": rollout.position.wave, "of": rollout.position.waves, "reason": why, "started_by": rollout.started_by,
            "taken_back": nodes.len(),
        });
        rollout.why = why;
        records.push(rollout.record(action::ROLLOUT_HALTED, &system, detail));
        Ok((nodes, records))
    }

    fn sentence(&self, cause: &Cause) -> String {
        let (wave, count, of) = (cause.wave, cause.nodes.len(), cause.of);
        let name = |node: &NodeId| match self.fleet.node(*node) {
            Some(view) => format!("{} of {}", view.name, view.tenant),
            None => node.to_string(),
        };
        let mut named: Vec<String> = cause.nodes.iter().take(NAMED).map(name).collect();
        if count > NAMED {
            named.push(format!("and {} more", count - NAMED));
        }
        let named = named.join(", ");
        let nodes = if of == 1 { "node" } else { "nodes" };
        let because = |some: usize, why: &str| match some {
            0 => String::new(),
            some => format!(", {some} of them because they {why}"),
        };
        match cause.what {
            Wrong::Failed { timed_out, most } => {
                let late = because(timed_out, "did not come to an end in time");
                format!("in wave {wave}, {count} of {of} {nodes} failed{late}; that is more than {most} %: {named}")
            }
            Wrong::Regressed { gone, most } => {
                let what =
                    if gone < count { "were well before and are not now" } else { "were there before and are gone" };
                let gone = because(gone % count, "are gone");
                format!("in wave {wave}, {count} of {of} {nodes} {what}{gone}; that is more than {most} %: {named}")
            }
            Wrong::Nobody { cancelled: 0 } => {
                format!("in wave {wave}, none of {of} {nodes} was there to show how it goes: {named}")
            }
            Wrong::Nobody { cancelled } => {
                let why = because(cancelled, "had the command cancelled");
                format!("in wave {wave}, none of {of} {nodes} has shown how it goes{why}: {named}")
            }
        }
    }
}

fn members(participants: &[Participant]) -> Vec<Member> {
    participants.iter().map(|one| one.member).collect()
}

/// How the nodes of the waves so far stand, counted.
fn tally(rollout: &Rollout, participants: &[Participant]) -> serde_json::Value {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for one in participants.iter().filter(|one| one.member.wave == rollout.position.wave) {
        *counts.entry(one.member.standing.as_str()).or_default() += 1;
    }
    json!(counts)
}
