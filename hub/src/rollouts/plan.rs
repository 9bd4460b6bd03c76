//! What a rollout does next: its rows, the nodes' health and the time in, one act out. No I/O and no clock, so that whoever
//! asks again, also after a kill, is told the same.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use protocol::command::State as Command;
use protocol::{NodeId, Timestamp};

use super::window::{self, Window};
use crate::words::words;

/// Commands made in one step; the rest follows in the next one.
pub const AT_ONCE: usize = 500;
/// Nothing is asked for that could start only for less than this.
const LEAST: Duration = Duration::from_secs(10);
/// What a rate is counted over.
const MINUTE: Duration = Duration::from_secs(60);

/// How a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It goes on by itself.
    Running,
    /// Somebody holds it; what was asked for goes on.
    Paused,
    /// It holds itself.
    Halted,
    /// Given up.
    Aborted,
    /// Every wave is through.
    Done,
}

words! {
    State { Running = "running", Paused = "paused", Halted = "halted", Aborted = "aborted", Done = "done" }
    or StateError = |_| StateError
}

impl State {
    /// Whether it may still ask for something.
    pub const fn is_open(self) -> bool {
        !matches!(self, Self::Aborted | Self::Done)
    }
}

/// Not a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("states of a rollout are running, paused, halted, aborted and done")]
pub struct StateError;

/// What holds a rollout back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most new commands in a minute; `None`: as fast as it goes.
    pub rate: Option<u32>,
    /// When commands may start; none: at any time.
    pub windows: Vec<Window>,
    /// How long a node has for its command before it counts as timed out.
    pub settle: Duration,
    /// How long a wave is watched before the next one.
    pub soak: Duration,
    /// Over this share of a wave, percent, failures and time-outs halt it.
    pub most_failed: u8,
    /// Over this share of a wave, percent, nodes that have become unhealthy halt it.
    pub most_regressed: u8,
}

/// Where a rollout stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Whether it goes on.
    pub state: State,
    /// The wave that is under way, from 1; beyond the last: every wave is through, and who was away may still join.
    pub wave: u32,
    /// How many there are.
    pub waves: u32,
    /// Since when that wave is only watched, by the steady clock.
    pub soaking_since: Option<Timestamp>,
}

impl Limits {
    /// How long a window is still open; `None`: none is.
    pub fn open_for(&self, now: Moment) -> Option<Duration> {
        Some(window::closes(&self.windows, now.wall)?.since(now.wall))
    }
}

impl Position {
    /// Until when the wave is only watched.
    fn soaks_until(&self, limits: &Limits) -> Option<Timestamp> {
        self.soaking_since.map(|since| since.plus(limits.soak))
    }

    /// Whether the time in which the wave is watched is over.
    pub fn has_soaked(&self, limits: &Limits, now: Moment) -> bool {
        self.soaks_until(limits).is_some_and(|end| end <= now.steady)
    }
}

/// How far one node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not asked yet.
    Pending,
    /// Revoked or removed before its turn.
    Skipped,
    /// Asked: how its command stands.
    Asked(Command),
}

impl Standing {
    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Skipped => "skipped",
            Self::Asked(state) => state.as_str(),
        }
    }
}

impl FromStr for Standing {
    type Err = protocol::command::StateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "pending" => Self::Pending,
            "skipped" => Self::Skipped,
            command => Self::Asked(command.parse()?),
        })
    }
}

/// How a node is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It has a session, and its services are well.
    Well,
    /// It has a session, and a service of it is not well.
    Unwell,
    /// It has a session, and a service of it is on its way.
    Unclear,
    /// It has a session, and can't tell how its services are: its container engine does not answer, and may only be restarted.
    Blind,
    /// Its session broke off.
    Lost,
    /// It has none, and has said so or never had one.
    Away,
    /// Revoked or removed.
    Gone,
}

impl Health {
    /// Whether it has a session.
    pub fn is_there(self) -> bool {
        matches!(self, Self::Well | Self::Unwell | Self::Unclear | Self::Blind)
    }
}

/// One node of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub node: NodeId,
    /// Its wave, from 1.
    pub wave: u32,
    /// How far it is.
    pub standing: Standing,
    /// When its command was made, by the steady clock; also of one that was taken back since.
    pub asked_at: Option<Timestamp>,
    /// When its command was handed over, by the steady clock.
    pub told_at: Option<Timestamp>,
    /// Until when it may be asked again when it was away, by the steady clock.
    pub open_until: Option<Timestamp>,
    /// It had a session when its command was made.
    pub was_there: bool,
    /// It was well when its command was made.
    pub was_well: bool,
    /// Somebody has seen what is wrong with it and let the rollout go on.
    pub accepted: bool,
    /// How it is now.
    pub health: Health,
}

/// The moment of the look.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The steady clock's time: of everything but windows.
    pub steady: Timestamp,
    /// The wall clock's time: of windows.
    pub wall: Timestamp,
    /// The hub has just started: who has no session may only not be back yet.
    pub fresh: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Leave these out: they are part of the fleet no more.
    Skip(Vec<NodeId>),
    /// Make a command for each of these.
    Ask(Vec<NodeId>),
    /// All of the wave have answered, or had their time: watch them from now on.
    Soak,
    /// Go on to the next wave.
    Next,
    /// That was the last one.
    Finish,
    /// Hold, for this cause.
    Halt(Cause),
    /// Nothing now.
    Wait(Waiting),
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Somebody to let it go on; or nothing more.
    Person,
    /// The nodes of a hub that has just started.
    Sessions,
    /// A maintenance window, which opens then by the wall clock; `None`: it never does.
    Window(Option<Timestamp>),
    /// The rate to allow another command.
    Rate(Timestamp),
    /// The nodes that were asked, until then at the latest.
    Answers(Timestamp),
    /// The end of the time in which a wave is watched.
    Soak(Timestamp),
    /// Nodes that are away, until then at the latest.
    Away(Timestamp),
}

/// Why a rollout holds itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The wave it is about.
    pub wave: u32,
    /// What of it is wrong.
    pub what: Wrong,
    /// So many of its nodes had a say.
    pub of: usize,
    /// The nodes it is about.
    pub nodes: Vec<NodeId>,
}

/// What is wrong with a wave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Too many failed or timed out.
    Failed {
        /// So many of them timed out.
        timed_out: usize,
        /// More than this share, percent.
        most: u8,
    },
    /// Too many that were well are not, or were there and are gone.
    Regressed {
        /// So many of them are not there any more.
        gone: usize,
        /// More than this share, percent.
        most: u8,
    },
    /// None of its nodes has shown how it goes: they were not there, or their commands were cancelled.
    Nobody {
        /// So many of the commands were cancelled.
        cancelled: usize,
    },
}

/// What to do now.
pub fn step(position: &Position, limits: &Limits, members: &[Member], now: Moment) -> Act {
    if position.state != State::Running {
        return Act::Wait(Waiting::Person);
    }
    let wave: Vec<&Member> = members.iter().filter(|member| member.wave == position.wave).collect();
    if let Some(cause) = judge(position, limits, members, now) {
        return Act::Halt(cause);
    }
    // Also those of waves before, whose commands were taken back; and after them who was away while a window was open.
    let reached = || members.iter().filter(move |member| member.wave <= position.wave);
    let pending = reached().filter(|member| member.pending());
    let due: Vec<&Member> = pending.chain(reached().filter(|member| member.missed(now))).collect();
    // Of those who are not back yet nobody knows whether they are well, or lost.
    let unknown = now.fresh && wave.iter().chain(&due).any(|member| member.is_missing());
    let gone: Vec<NodeId> = of(&due, |member| member.health == Health::Gone);
    if !gone.is_empty() {
        return Act::Skip(gone);
    }
    if let Some(first) = due.first() {
        match room(limits, members, now) {
            _ if unknown => return Act::Wait(Waiting::Sessions),
            Ok(room) => return Act::Ask(together(first, &due, limits, now).take(room).collect()),
            Err(waiting) if first.pending() => return Act::Wait(waiting),
            // Who was away holds nobody up.
            Err(_) => {}
        }
    }
    let away = || reached().filter(|member| member.may_join(now)).filter_map(|member| member.open_until).max();
    if let Some(end) = position.soaks_until(limits) {
        // Also who was away while its own wave was under way, and is at it now.
        let at_it = || reached().filter_map(|member| member.until(limits.settle)).any(|until| now.steady < until);
        return match position.wave < position.waves {
            _ if now.steady < end => Act::Wait(Waiting::Soak(end)),
            _ if unknown => Act::Wait(Waiting::Sessions),
            true => Act::Next,
            false if away().is_some() || at_it() => Act::Next,
            false => Act::Finish,
        };
    }
    let beyond = position.wave > position.waves;
    let answering = |member: &&Member| beyond || member.wave == position.wave;
    let last = reached().filter(answering).filter_map(|member| member.until(limits.settle)).max();
    if beyond && let Some(until) = away() {
        return Act::Wait(Waiting::Away(until));
    }
    match last {
        Some(until) if now.steady < until => Act::Wait(Waiting::Answers(until)),
        // What it did while the hub was away, a node tells when it is back.
        _ if unknown || (now.fresh && wave.iter().any(|member| member.is_at_it())) => Act::Wait(Waiting::Sessions),
        _ if beyond => Act::Finish,
        _ => nobody(position, &wave).map_or(Act::Soak, Act::Halt),
    }
}

/// Those whose commands may start for as long as the first one's: they make one request.
fn together(first: &Member, due: &[&Member], limits: &Limits, now: Moment) -> impl Iterator<Item = NodeId> {
    let open_for = limits.open_for(now);
    let within = first.within(open_for, now);
    due.iter().filter(move |member| member.within(open_for, now) == within).map(|member| member.node)
}

/// How many may be asked now; or what that waits for.
fn room(limits: &Limits, members: &[Member], now: Moment) -> Result<usize, Waiting> {
    if !limits.windows.is_empty() && limits.open_for(now).is_none_or(|rest| rest < LEAST) {
        return Err(Waiting::Window(limits.windows.iter().filter_map(|window| window.opens_after(now.wall)).min()));
    }
    let Some(rate) = limits.rate else { return Ok(AT_ONCE) };
    let recent = |at: &Timestamp| now.steady.since(*at) < MINUTE;
    let asked: Vec<Timestamp> = members.iter().filter_map(|member| member.asked_at).filter(recent).collect();
    match AT_ONCE.min((rate as usize).saturating_sub(asked.len())) {
        0 => Err(Waiting::Rate(asked.iter().min().copied().unwrap_or(now.steady).plus(MINUTE))),
        room => Ok(room),
    }
}

/// What is wrong so far: with the commands of any wave, or with the health of the one that is watched.
pub fn judge(position: &Position, limits: &Limits, members: &[Member], now: Moment) -> Option<Cause> {
    let mut waves: BTreeMap<u32, Vec<&Member>> = BTreeMap::new();
    for member in members.iter().filter(|member| member.wave <= position.wave) {
        waves.entry(member.wave).or_default().push(member);
    }
    for (number, wave) in &waves {
        let with_a_say = wave.iter().filter(|member| member.has_a_say(limits.settle, now.steady)).count();
        let failed: Vec<NodeId> = of(wave, |member| member.failed(limits.settle, now));
        if exceeds(failed.len(), limits.most_failed, with_a_say) {
            let timed_out =
                wave.iter().filter(|member| !member.accepted && member.timed_out(limits.settle, now)).count();
            let what = Wrong::Failed { timed_out, most: limits.most_failed };
            return Some(Cause { wave: *number, what, of: with_a_say, nodes: failed });
        }
        let over = position.has_soaked(limits, now);
        let regressed: Vec<NodeId> = of(wave, |member| member.regressed(over, now));
        let watched = *number == position.wave && position.soaking_since.is_some();
        if watched && exceeds(regressed.len(), limits.most_regressed, with_a_say) {
            let gone = wave.iter().filter(|member| member.regressed(over, now) && !member.health.is_there()).count();
            let what = Wrong::Regressed { gone, most: limits.most_regressed };
            return Some(Cause { wave: *number, what, of: with_a_say, nodes: regressed });
        }
    }
    None
}

/// A wave that says nothing at all of how it goes.
fn nobody(position: &Position, wave: &[&Member]) -> Option<Cause> {
    let silent = |member: &Member| matches!(member.standing, Standing::Asked(_)) && member.told_at.is_none();
    let shows_nothing = |member: &Member| silent(member) || member.cancelled();
    let nodes = of(wave, |member| shows_nothing(member) && !member.accepted);
    let all =
        !nodes.is_empty() && wave.iter().all(|member| shows_nothing(member) || member.standing == Standing::Skipped);
    let cancelled = wave.iter().filter(|member| member.cancelled() && !member.accepted).count();
    all.then_some(Cause { wave: position.wave, what: Wrong::Nobody { cancelled }, of: nodes.len(), nodes })
}

fn of(wave: &[&Member], which: impl Fn(&Member) -> bool) -> Vec<NodeId> {
    wave.iter().filter(|member| which(member)).map(|member| member.node).collect()
}

fn exceeds(count: usize, most: u8, of: usize) -> bool {
    count > 0 && count * 100 > usize::from(most) * of
}

impl Member {
    /// Its turn is still to come.
    pub fn pending(&self) -> bool {
        self.standing == Standing::Pending
    }

    /// Asked, and not there to hear of it: it does when it is back, until its own deadline.
    pub fn waits(&self) -> bool {
        self.standing == Standing::Asked(Command::Queued)
    }

    /// It was away while the window was open in which it was asked: it is asked anew in the next one.
    pub fn missed(&self, now: Moment) -> bool {
        let again = self.open_until.is_some_and(|until| now.steady.plus(LEAST) <= until);
        let away = self.told_at.is_none() && self.health != Health::Gone;
        self.standing == Standing::Asked(Command::Expired) && away && again
    }

    /// It is away, and may still do it: it has its command until the deadline of that, or is asked anew in another window.
    fn may_join(&self, now: Moment) -> bool {
        self.health != Health::Gone && self.waits() || self.missed(now)
    }

    /// For how long its command may still start, where that is less than the rollout says: not when no window is open any more,
    /// and not when its own time is over.
    pub fn within(&self, open_for: Option<Duration>, now: Moment) -> Option<Duration> {
        let own = self.open_until.map(|until| until.since(now.steady));
        open_for.into_iter().chain(own).min()
    }

    /// When its time is over; `None` when there is nothing to wait for.
    fn until(&self, settle: Duration) -> Option<Timestamp> {
        let Standing::Asked(state) = self.standing else { return None };
        let from = self.told_at.or(self.asked_at)?;
        state.is_open().then(|| from.plus(settle))
    }

    /// It has its command, and has not told the end.
    fn is_at_it(&self) -> bool {
        matches!(self.standing, Standing::Asked(Command::Delivered | Command::Running))
    }

    /// Somebody has taken its command back; what the rollout itself takes back, it asks for anew.
    pub fn cancelled(&self) -> bool {
        self.standing == Standing::Asked(Command::Cancelled)
    }

    /// It was told, and did not come to its end in time.
    pub fn timed_out(&self, settle: Duration, now: Moment) -> bool {
        match (self.standing, self.told_at) {
            (Standing::Asked(Command::Unknown | Command::Expired), Some(_)) => true,
            (_, Some(told)) => self.is_at_it() && !now.fresh && now.steady.since(told) >= settle,
            _ => false,
        }
    }

    /// It failed or timed out, and nobody has accepted that.
    pub fn failed(&self, settle: Duration, now: Moment) -> bool {
        let failed = self.standing == Standing::Asked(Command::Failed) || self.timed_out(settle, now);
        failed && !self.accepted
    }

    /// It was well before and is not now, or was there and is gone, and nobody has accepted that. Who said goodbye may be back
    /// in a moment, as an agent that is updated is: it is gone when the time in which it is watched is over. An engine that is
    /// restarted is back in a moment, too.
    pub fn regressed(&self, over: bool, now: Moment) -> bool {
        let regressed = match self.health {
            Health::Unwell => self.was_well,
            Health::Blind => self.was_well && over,
            Health::Lost => self.was_there && !now.fresh,
            Health::Away => self.was_there && over && !now.fresh,
            Health::Well | Health::Unclear | Health::Gone => false,
        };
        regressed && self.told_at.is_some() && !self.accepted
    }

    /// It has no session, and may only not be back yet at a hub that has just started.
    fn is_missing(&self) -> bool {
        self.health == Health::Lost || self.health == Health::Away && self.was_there
    }

    /// Whether it counts among those whose share is judged: not who is left out, taken back, or not there.
    fn has_a_say(&self, settle: Duration, now: Timestamp) -> bool {
        match self.standing {
            Standing::Skipped | Standing::Asked(Command::Cancelled) => false,
            Standing::Asked(Command::Queued | Command::Expired) if self.told_at.is_none() => {
                self.standing == Standing::Asked(Command::Queued)
                    && self.asked_at.is_none_or(|asked| now.since(asked) < settle)
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests;
