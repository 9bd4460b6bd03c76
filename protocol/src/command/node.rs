//! A node's commands: what to write down before what, what to carry out, and what to tell the hub.

use std::collections::{BTreeMap, BTreeSet};

use super::{AT_ONCE, Action, CHUNK, MAX_MESSAGE, MAX_OUTPUT, Order, REMEMBERED, WINDOW};
use crate::message::{CommandOutcome, CommandOutput, CommandState, to_hub};
use crate::{CommandId, Timestamp};

/// Commands that are not settled, at the most: those of a session, and those that an earlier one left.
const MAX_OPEN: usize = 2 * WINDOW;

/// The commands a node knows. Times are of a clock that nobody sets.
///
/// Whoever drives it does the [`Step`]s in their order, and only then asks what to tell: so nothing is said or done that
/// is not written down.
#[derive(Debug, Default)]
pub struct NodeCommands {
    known: BTreeMap<CommandId, Known>,
    /// What is not above this and not known was known once.
    floor: Option<CommandId>,
    /// Why anything that is not known may have been known: then nothing is carried out.
    lost: Option<String>,
    /// Of these, the hub is to be told how they stand.
    untold: BTreeSet<CommandId>,
    running: usize,
}

#[derive(Debug)]
enum Known {
    /// Accepted in an earlier life of the process; waits for the hub to say how long it may still start.
    Suspended,
    Waiting {
        action: Action,
        priority: u32,
        deadline: Timestamp,
    },
    Running {
        action: Action,
        output: Output,
        said: bool,
    },
    /// `written`: the journal has it, so it is remembered when the hub has stored it.
    Ended {
        ending: Ending,
        output: Output,
        written: bool,
    },
    /// The hub has stored its end.
    Settled(CommandState),
}

#[derive(Debug, Default)]
struct Output {
    bytes: Vec<u8>,
    told: usize,
    dropped: u64,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// One that [`CommandState::is_end`].
    pub state: CommandState,
    /// What came of it, for a person.
    pub message: String,
}

/// One line of a node's journal: the newest of a command counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of this command.
    pub id: CommandId,
    /// What is known.
    pub phase: Phase,
}

/// What the journal knows of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It will be carried out.
    Accepted,
    /// It may have had an effect from now on.
    Started,
    /// How it ended, and what it put out.
    Ended {
        /// How.
        ending: Ending,
        /// What it put out.
        output: Vec<u8>,
        /// Bytes that were too many.
        dropped: u64,
    },
    /// The hub has stored this end of it.
    Settled(CommandState),
    /// It and all before it are no longer remembered one by one.
    Forgotten,
}

/// What whoever drives the commands is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make this durable. When that fails, call [`NodeCommands::unsaved`] and leave out the steps after it.
    Save(Record),
    /// Carry this out, and call [`NodeCommands::ended`] when it has ended.
    Start {
        /// Which one.
        id: CommandId,
        /// What to do.
        action: Action,
    },
    /// Have this one stop, if it can; its end follows all the same.
    Stop(CommandId),
}

/// The hub has more commands open than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the hub has more than {WINDOW} commands open with this node")]
pub struct TooMany;

impl NodeCommands {
    /// Takes up what an earlier life of the process wrote down. What it had begun and not ended, nobody can tell any more.
    pub fn restore(journal: impl IntoIterator<Item = Record>) -> (Self, Vec<Step>) {
        let mut commands = Self::default();
        let mut begun = BTreeSet::new();
        for Record { id, phase } in journal {
            begun.remove(&id);
            let known = match phase {
                Phase::Accepted => Known::Suspended,
                Phase::Started => {
                    begun.insert(id);
                    continue;
                }
                Phase::Ended { ending, output, dropped } => {
                    let output = Output { bytes: output, told: 0, dropped };
                    Known::Ended { ending, output, written: true }
                }
                Phase::Settled(state) => Known::Settled(state),
                Phase::Forgotten => {
                    commands.known.remove(&id);
                    commands.floor = commands.floor.max(Some(id));
                    continue;
                }
            };
            commands.known.insert(id, known);
        }
        let lost = "the node's process ended while this was under way: it may have been done, wholly or in part";
        let mut steps = Vec::new();
        for id in begun {
            let ending = Ending::new(CommandState::Unknown, lost);
            steps.extend(commands.end(id, ending, Output::default(), true));
        }
        (commands, steps)
    }

    /// One that has lost its journal, and says so of every command: `why` is for a person. It may have carried it out before.
    pub fn without_journal(why: String) -> Self {
        Self { lost: Some(why), ..Self::default() }
    }

    /// What the journal has to hold of all this: a shorter journal that says the same.
    pub fn records(&self) -> Vec<Record> {
        let floor = self.floor.map(|id| Record { id, phase: Phase::Forgotten });
        let known = self.known.iter().filter_map(|(id, known)| {
            let phase = match known {
                Known::Suspended | Known::Waiting { .. } => Phase::Accepted,
                Known::Running { .. } => Phase::Started,
                Known::Ended { written: false, .. } => return None,
                Known::Ended { ending, output, .. } => {
                    Phase::Ended { ending: ending.clone(), output: output.bytes.clone(), dropped: output.dropped }
                }
                Known::Settled(state) => Phase::Settled(*state),
            };
            Some(Record { id: *id, phase })
        });
        floor.into_iter().chain(known).collect()
    }

    /// Takes a command, which may have come before. `verdict` is the node's own policy on it: why not.
    ///
    /// # Errors
    /// [`TooMany`]: the session is to end.
    pub fn order(&mut self, order: Order, verdict: Result<(), String>, now: Timestamp) -> Result<Vec<Step>, TooMany> {
        let Order { id, action, remaining, priority, .. } = order;
        let deadline = now.plus(remaining);
        match self.known.get_mut(&id) {
            Some(Known::Waiting { deadline: known, .. }) => {
                *known = deadline;
                self.untold.insert(id);
                return Ok(self.expire(now));
            }
            Some(Known::Running { said, .. }) => {
                *said = false;
                self.untold.insert(id);
                return Ok(Vec::new());
            }
            Some(Known::Ended { .. } | Known::Settled(_)) => {
                self.untold.insert(id);
                return Ok(Vec::new());
            }
            Some(Known::Suspended) => {}
            None => self.make_room()?,
        }
        let accepted = self.known.contains_key(&id);
        let ending = if let Some(forgotten) = self.forgotten(id) {
            forgotten
        } else if remaining.is_zero() {
            Ending::new(CommandState::Expired, "its deadline came before it could start")
        } else if let Err(why) = verdict {
            Ending::new(CommandState::Refused, &why)
        } else {
            self.known.insert(id, Known::Waiting { action, priority, deadline });
            self.untold.insert(id);
            return Ok(if accepted { Vec::new() } else { vec![Step::Save(Record { id, phase: Phase::Accepted })] });
        };
        Ok(self.end(id, ending, Output::default(), accepted))
    }

    /// Starts the next command, if there is one and room for it: one that collides with another waits for that one's end. To be
    /// called until nothing comes of it.
    pub fn start(&mut self, now: Timestamp) -> Vec<Step> {
        let expired = self.expire(now);
        if !expired.is_empty() || self.running >= AT_ONCE {
            return expired;
        }
        let Some((id, action)) = self.next().map(|(id, action)| (id, action.clone())) else { return Vec::new() };
        let begun = Known::Running { action: action.clone(), output: Output::default(), said: false };
        self.known.insert(id, begun);
        self.running += 1;
        self.untold.insert(id);
        vec![Step::Save(Record { id, phase: Phase::Started }), Step::Start { id, action }]
    }

    /// The most urgent, and of those the oldest, that collides neither with what runs nor with what waits before it.
    fn next(&self) -> Option<(CommandId, &Action)> {
        let (mut ahead, mut waiting) = (Vec::new(), Vec::new());
        for (id, known) in &self.known {
            match known {
                Known::Running { action, .. } => ahead.push(action),
                Known::Waiting { action, priority, .. } => waiting.push((std::cmp::Reverse(*priority), *id, action)),
                _ => {}
            }
        }
        waiting.sort_by_key(|(priority, id, _)| (*priority, *id));
        for (_, id, action) in waiting {
            if !ahead.iter().any(|other| action.collides_with(other)) {
                return Some((id, action));
            }
            ahead.push(action);
        }
        None
    }

    /// A record could not be made durable. What it was to permit is not done.
    pub fn unsaved(&mut self, id: CommandId) {
        let begun = match self.known.get(&id) {
            Some(Known::Waiting { .. }) => false,
            Some(Known::Running { .. }) => true,
            // Its end is told all the same; should the process end before that is stored, it will be unknown.
            _ => return,
        };
        self.running -= usize::from(begun);
        let ending = Ending::new(
            CommandState::Failed,
            "not started: the node's journal can't be written; see its disk's free space",
        );
        self.end(id, ending, Output::default(), false);
    }

    /// A running command has put this out.
    pub fn output(&mut self, id: CommandId, bytes: &[u8]) {
        if let Some(Known::Running { output, .. }) = self.known.get_mut(&id) {
            output.push(bytes);
            self.untold.insert(id);
        }
    }

    /// A running command has ended.
    pub fn ended(&mut self, id: CommandId, ending: Ending) -> Vec<Step> {
        let Some(Known::Running { output, .. }) = self.known.get_mut(&id) else { return Vec::new() };
        let output = std::mem::take(output);
        self.running -= 1;
        self.end(id, ending, output, true)
    }

    /// The hub wants it no more.
    ///
    /// # Errors
    /// [`TooMany`]: the session is to end.
    pub fn cancel(&mut self, id: CommandId) -> Result<Vec<Step>, TooMany> {
        match self.known.get(&id) {
            Some(Known::Running { .. }) => return Ok(vec![Step::Stop(id)]),
            Some(Known::Ended { .. } | Known::Settled(_)) => {
                self.untold.insert(id);
                return Ok(Vec::new());
            }
            Some(Known::Suspended | Known::Waiting { .. }) => {}
            None => self.make_room()?,
        }
        let ending = self.forgotten(id).unwrap_or_else(|| Ending::new(CommandState::Cancelled, "not started"));
        // Written down also when it never came: it may still be on its way.
        Ok(self.end(id, ending, Output::default(), true))
    }

    /// The end of a command that is not known, and may have been.
    fn forgotten(&self, id: CommandId) -> Option<Ending> {
        let below = self.floor.is_some_and(|floor| id <= floor);
        let forgotten = below.then_some("this node has known the command, and forgotten how it ended");
        let why = self.lost.as_deref().or(forgotten).filter(|_| !self.known.contains_key(&id))?;
        Some(Ending::new(CommandState::Unknown, why))
    }

    /// The hub has stored how it ended.
    pub fn stored(&mut self, id: CommandId) -> Vec<Step> {
        self.untold.remove(&id);
        let Some(Known::Ended { ending, written, .. }) = self.known.get(&id) else { return Vec::new() };
        let state = ending.state;
        if !*written {
            self.known.remove(&id);
            return Vec::new();
        }
        self.known.insert(id, Known::Settled(state));
        let mut steps = vec![Step::Save(Record { id, phase: Phase::Settled(state) })];
        let settled = || self.known.iter().filter(|(_, known)| matches!(known, Known::Settled(_)));
        if settled().count() > REMEMBERED
            && let Some(oldest) = settled().map(|(id, _)| *id).next()
        {
            self.known.remove(&oldest);
            self.floor = self.floor.max(Some(oldest));
            steps.push(Step::Save(Record { id: oldest, phase: Phase::Forgotten }));
        }
        steps
    }

    /// A session has begun: everything not settled is told anew.
    pub fn connected(&mut self) {
        self.untold.clear();
        for (id, known) in &mut self.known {
            match known {
                Known::Suspended | Known::Settled(_) => continue,
                Known::Waiting { .. } => {}
                Known::Running { output, said, .. } => (output.told, *said) = (0, false),
                Known::Ended { output, .. } => output.told = 0,
            }
            self.untold.insert(*id);
        }
    }

    /// The next thing to tell the hub. What is short goes before output, so that none waits for another's.
    pub fn next_message(&mut self) -> Option<to_hub::Message> {
        loop {
            let short = self.untold.iter().find(|id| self.known.get(id).is_none_or(|known| known.untold() == 0));
            let id = *short.or_else(|| self.untold.first())?;
            let Some(known) = self.known.get_mut(&id) else {
                self.untold.remove(&id);
                continue;
            };
            if let Known::Running { output, .. } | Known::Ended { output, .. } = known
                && let Some((offset, data)) = output.next()
            {
                let command_id = id.to_bytes().to_vec();
                return Some(to_hub::Message::Output(CommandOutput { command_id, offset, data }));
            }
            self.untold.remove(&id);
            let outcome = match known {
                Known::Suspended => continue,
                Known::Running { said: true, .. } => continue,
                Known::Waiting { .. } => outcome(id, CommandState::Accepted, ""),
                Known::Running { said, .. } => {
                    *said = true;
                    outcome(id, CommandState::Running, "")
                }
                Known::Ended { ending, output, .. } => CommandOutcome {
                    output_bytes: output.bytes.len() as u64,
                    output_dropped: output.dropped,
                    ..outcome(id, ending.state, &ending.message)
                },
                Known::Settled(state) => outcome(id, *state, "told before"),
            };
            return Some(to_hub::Message::Outcome(outcome));
        }
    }

    /// When [`Self::start`] wants to be called at the latest: something then expires.
    pub fn deadline(&self) -> Option<Timestamp> {
        let deadlines = self.known.values().filter_map(|known| match known {
            Known::Waiting { deadline, .. } => Some(*deadline),
            _ => None,
        });
        deadlines.min()
    }

    /// How many are being carried out.
    pub fn running(&self) -> usize {
        self.running
    }

    fn expire(&mut self, now: Timestamp) -> Vec<Step> {
        let over = self.known.iter().filter_map(|(id, known)| match known {
            Known::Waiting { deadline, .. } if *deadline <= now => Some(*id),
            _ => None,
        });
        let over: Vec<_> = over.collect();
        let ending = || Ending::new(CommandState::Expired, "its deadline came before it could start");
        over.into_iter().flat_map(|id| self.end(id, ending(), Output::default(), true)).collect()
    }

    fn end(&mut self, id: CommandId, ending: Ending, output: Output, written: bool) -> Vec<Step> {
        let record = written.then(|| {
            let phase = Phase::Ended { ending: ending.clone(), output: output.bytes.clone(), dropped: output.dropped };
            Step::Save(Record { id, phase })
        });
        self.known.insert(id, Known::Ended { ending, output, written });
        self.untold.insert(id);
        record.into_iter().collect()
    }

    /// Room for one more. What waits for a hub that no longer knows of it gives way: it is then never carried out.
    fn make_room(&mut self) -> Result<(), TooMany> {
        let open = self.known.values().filter(|known| !matches!(known, Known::Settled(_))).count();
        if open < MAX_OPEN {
            return Ok(());
        }
        let suspended = self.known.iter().find(|(_, known)| matches!(known, Known::Suspended)).map(|(id, _)| *id);
        let id = suspended.ok_or(TooMany)?;
        self.known.insert(id, Known::Settled(CommandState::Expired));
        Ok(())
    }
}

impl Known {
    /// Bytes of output that are to be told.
    fn untold(&self) -> usize {
        match self {
            Self::Running { output, .. } | Self::Ended { output, .. } => output.bytes.len() - output.told,
            Self::Suspended | Self::Waiting { .. } | Self::Settled(_) => 0,
        }
    }
}

impl Output {
    fn push(&mut self, bytes: &[u8]) {
        let room = (MAX_OUTPUT - self.bytes.len()).min(bytes.len());
        let (kept, dropped) = bytes.split_at(room);
        self.bytes.extend_from_slice(kept);
        self.dropped += dropped.len() as u64;
    }

    fn next(&mut self) -> Option<(u64, Vec<u8>)> {
        let rest = self.bytes.get(self.told..).filter(|rest| !rest.is_empty())?;
        let data = rest.get(..CHUNK).unwrap_or(rest).to_vec();
        let offset = self.told as u64;
        self.told += data.len();
        Some((offset, data))
    }
}

impl Ending {
    /// A message over [`MAX_MESSAGE`] characters is cut.
    pub fn new(state: CommandState, message: &str) -> Self {
        Self { state, message: message.chars().take(MAX_MESSAGE).collect() }
    }
}

fn outcome(id: CommandId, state: CommandState, message: &str) -> CommandOutcome {
    CommandOutcome {
        command_id: id.to_bytes().to_vec(),
        state: state.into(),
        message: message.into(),
        ..CommandOutcome::default()
    }
}
