//! Rollouts, wave by wave.

use protocol::command::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Time;
use crate::rollouts::{self, Member, Moment, Participant, Standing};

/// How a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// It goes on by itself.
    Running,
    /// Somebody holds it.
    Paused,
    /// It holds itself, and says why.
    Halted,
    /// Given up.
    Aborted,
    /// Every wave is through.
    Done,
}

impl From<rollouts::State> for RolloutState {
    fn from(state: rollouts::State) -> Self {
        match state {
            rollouts::State::Running => Self::Running,
            rollouts::State::Paused => Self::Paused,
            rollouts::State::Halted => Self::Halted,
            rollouts::State::Aborted => Self::Aborted,
            rollouts::State::Done => Self::Done,
        }
    }
}

/// How one wave stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaveState {
    /// Nobody of it was asked.
    Untouched,
    /// Its nodes are being asked, and answer.
    Asking,
    /// All have answered or had their time; it is watched.
    Watched,
    /// Through.
    Done,
}

/// The nodes of a wave, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct WaveCounts {
    /// Not asked.
    pub pending: usize,
    /// Asked and not there: told when they are back, until the command's own deadline, and when a window is open.
    pub waiting: usize,
    /// They have the command.
    pub at_work: usize,
    /// Done.
    pub succeeded: usize,
    /// Failed, or refused.
    pub failed: usize,
    /// Told, and not done in time.
    pub timed_out: usize,
    /// Not back before the command's deadline.
    pub missed: usize,
    /// Taken back.
    pub cancelled: usize,
    /// No part of the fleet any more when their turn came.
    pub skipped: usize,
    /// Well before, and not now, or there before, and gone; counted above as well.
    pub regressed: usize,
}

/// One wave.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Wave {
    /// Its number, from 1.
    pub number: u32,
    /// How it stands.
    pub state: WaveState,
    /// How many nodes it has.
    pub nodes: usize,
    /// The same by how they stand.
    pub counts: WaveCounts,
}

/// One action over many nodes, in waves.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Rollout {
    /// Its number.
    pub id: i64,
    /// Whose nodes all of them are; absent: of several tenants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The action's name.
    pub action: String,
    /// What it does, in words.
    pub what: String,
    /// Why.
    pub reason: String,
    /// Who started it.
    pub started_by: String,
    /// When.
    pub started_at: Time,
    /// When it was done, or aborted.
    pub ended_at: Option<Time>,
    /// How it stands.
    pub state: RolloutState,
    /// Why it stands so: of a rollout that holds itself, what was too much.
    pub why: String,
    /// Since when it stands so.
    pub changed_at: Time,
    /// By whom.
    pub changed_by: String,
    /// The wave that is under way.
    pub wave: u32,
    /// How many there are.
    pub wave_count: u32,
    /// How they were asked for.
    pub shape: String,
    /// Most new commands in a minute.
    pub rate_per_minute: Option<u32>,
    /// When commands may start; none: at any time.
    pub windows: Vec<String>,
    /// How long a node has for its command before it counts as timed out.
    pub settle_seconds: u64,
    /// How long a wave is watched before the next one.
    pub soak_seconds: u64,
    /// Over this share of a wave, failures and time-outs halt it.
    pub max_failed_percent: u8,
    /// Over this share of a wave, nodes that have become unhealthy halt it.
    pub max_regressed_percent: u8,
    /// For how long each command may still start.
    pub valid_for_seconds: u64,
    /// What it waits for, in words; absent in a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// Until when, as far as that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_until: Option<Time>,
    /// Its waves; absent in a list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waves: Vec<Wave>,
    /// Nodes that are not as they should be, the first of them; absent in a list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub troubled: Vec<RolloutNode>,
}

/// One node of a rollout.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RolloutNode {
    /// The node's id.
    pub node: String,
    /// Its name; absent when it has been removed.
    pub name: Option<String>,
    /// Whose it is.
    pub tenant: String,
    /// Its wave.
    pub wave: u32,
    /// `pending`, `skipped`, or how its command stands.
    pub state: &'static str,
    /// Its command.
    pub command: Option<String>,
    /// What came of it.
    pub message: String,
    /// It was told, and did not come to its end in time.
    pub timed_out: bool,
    /// It was well when its command was made, and is not now; or was there, and is gone.
    pub regressed: bool,
    /// Somebody let the rollout go on, whatever is wrong with it.
    pub accepted: bool,
}

/// What a rollout would do. Nothing is done.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RolloutPreview {
    /// What it does, in words.
    pub what: String,
    /// How many nodes are meant.
    pub nodes: usize,
    /// Which they are, and in which waves: started with it as the command's `expected`, nothing is done once others are meant.
    pub digest: String,
    /// In which waves.
    pub waves: Vec<WavePreview>,
}

/// A wave of a rollout that is not started.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct WavePreview {
    /// Its number, from 1.
    pub number: u32,
    /// How many nodes it has.
    pub nodes: usize,
    /// How many of them have a session.
    pub online: usize,
    /// The names of the first of them.
    pub first: Vec<String>,
}

impl From<&rollouts::Rollout> for Rollout {
    fn from(rollout: &rollouts::Rollout) -> Self {
        let (position, limits) = (&rollout.position, &rollout.limits);
        Self {
            id: rollout.id,
            tenant: rollout.tenant.as_ref().map(ToString::to_string),
            action: rollout.name.clone(),
            what: rollout.what(),
            reason: rollout.reason.to_string(),
            started_by: rollout.started_by.clone(),
            started_at: Time(rollout.started_at),
            ended_at: rollout.ended_at.map(Time),
            state: position.state.into(),
            why: rollout.why.clone(),
            changed_at: Time(rollout.changed_at),
            changed_by: rollout.changed_by.clone(),
            wave: position.wave.min(position.waves),
            wave_count: position.waves,
            shape: rollout.waves.clone(),
            rate_per_minute: limits.rate,
            windows: limits.windows.iter().map(ToString::to_string).collect(),
            settle_seconds: limits.settle.as_secs(),
            soak_seconds: limits.soak.as_secs(),
            max_failed_percent: limits.most_failed,
            max_regressed_percent: limits.most_regressed,
            valid_for_seconds: rollout.valid_for.as_secs(),
            waits_for: None,
            waits_until: None,
            waves: Vec::new(),
            troubled: Vec::new(),
        }
    }
}

impl Rollout {
    /// Whether it may still ask for something.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, RolloutState::Aborted | RolloutState::Done)
    }
}

impl crate::api::list::Numbered for Rollout {
    fn number(&self) -> i64 {
        self.id
    }
}

impl Wave {
    /// Each wave of a rollout, counted.
    pub(crate) fn of(rollout: &rollouts::Rollout, participants: &[Participant], now: Moment) -> Vec<Self> {
        let position = &rollout.position;
        let wave = |number: u32| {
            let members: Vec<&Member> =
                participants.iter().map(|one| &one.member).filter(|member| member.wave == number).collect();
            let mut counts = WaveCounts::default();
            members.iter().for_each(|member| counts.add(member, rollout, now));
            let state = if number < position.wave || position.state == rollouts::State::Done {
                WaveState::Done
            } else if number > position.wave || counts.pending == members.len() {
                WaveState::Untouched
            } else if position.soaking_since.is_some() {
                WaveState::Watched
            } else {
                WaveState::Asking
            };
            Self { number, state, nodes: members.len(), counts }
        };
        (1..=position.waves).map(wave).collect()
    }
}

impl WaveCounts {
    fn add(&mut self, member: &Member, rollout: &rollouts::Rollout, now: Moment) {
        let timed_out = member.timed_out(rollout.limits.settle, now);
        let count = match member.standing {
            Standing::Pending => &mut self.pending,
            Standing::Skipped => &mut self.skipped,
            Standing::Asked(_) if timed_out => &mut self.timed_out,
            Standing::Asked(State::Queued) => &mut self.waiting,
            Standing::Asked(State::Expired) if member.missed(now) => &mut self.waiting,
            Standing::Asked(State::Delivered | State::Running) => &mut self.at_work,
            Standing::Asked(State::Succeeded) => &mut self.succeeded,
            Standing::Asked(State::Failed) => &mut self.failed,
            Standing::Asked(State::Expired) => &mut self.missed,
            Standing::Asked(State::Cancelled) => &mut self.cancelled,
            Standing::Asked(State::Unknown) => &mut self.timed_out,
        };
        *count += 1;
        if regressed(member, rollout, now) {
            self.regressed += 1;
        }
    }
}

/// Of waves that are through nobody asks any more how they are now.
fn regressed(member: &Member, rollout: &rollouts::Rollout, now: Moment) -> bool {
    let position = &rollout.position;
    let watched = member.wave == position.wave && position.soaking_since.is_some();
    let over = position.has_soaked(&rollout.limits, now);
    watched && position.state.is_open() && Member { accepted: false, ..*member }.regressed(over, now)
}

impl RolloutNode {
    /// One node, with its name.
    pub(crate) fn of(one: &Participant, name: Option<String>, rollout: &rollouts::Rollout, now: Moment) -> Self {
        Self {
            node: one.member.node.to_string(),
            name,
            tenant: one.tenant.to_string(),
            wave: one.member.wave,
            state: one.member.standing.as_str(),
            command: one.command.map(|id| id.to_string()),
            message: match one.member.missed(now) {
                true => "it was away while a window was open, and is asked anew in the next one".to_owned(),
                false => one.message.clone(),
            },
            timed_out: one.member.timed_out(rollout.limits.settle, now),
            regressed: regressed(&one.member, rollout, now),
            accepted: one.member.accepted,
        }
    }

    /// Whether somebody should look at it.
    pub fn is_troubled(&self) -> bool {
        self.timed_out || self.regressed || matches!(self.state, "failed" | "unknown" | "expired")
    }
}
