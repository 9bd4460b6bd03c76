//! A command as the hub's row has it, and which changes of it are true.

use std::fmt;
use std::str::FromStr;

use crate::message::CommandState;

/// How a command stands. The hub judges by rows alone, so what is said of one survives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Stored; its node has not been told.
    Queued,
    /// Handed to a session: the node may have it.
    Delivered,
    /// The node has begun.
    Running,
    /// Done.
    Succeeded,
    /// Not done, or not wholly; refused or unsupported by the node as well.
    Failed,
    /// Its deadline came before it began.
    Expired,
    /// Taken back before it began, or stopped.
    Cancelled,
    /// It may have had its effect, wholly or in part. From the node, that is the last word; from the hub, which has not heard
    /// of it by its deadline, the node's word may still follow.
    Unknown,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Delivered,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Expired,
        Self::Cancelled,
        Self::Unknown,
    ];

    /// The lower-case word used in URLs and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Delivered => "delivered",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        }
    }

    /// Whether more is to come.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Queued | Self::Delivered | Self::Running)
    }

    /// What the node's word makes of it; `None`: nothing new. `told`: the node has told the end before, and that stands.
    pub fn after(self, word: CommandState, told: bool) -> Option<Self> {
        if told {
            return None;
        }
        let next = match word {
            CommandState::Unspecified => return None,
            CommandState::Accepted => Self::Delivered,
            CommandState::Running => Self::Running,
            CommandState::Succeeded => Self::Succeeded,
            CommandState::Failed | CommandState::Unsupported | CommandState::Refused => Self::Failed,
            CommandState::Expired => Self::Expired,
            CommandState::Cancelled => Self::Cancelled,
            CommandState::Unknown => Self::Unknown,
        };
        // The hub may have given it up too early, and the node have begun: that is better news. Going back is not.
        let gave_up = self == Self::Unknown;
        (!next.is_open() || next > self || (gave_up && next == Self::Running)).then_some(next)
    }

    /// What its deadline makes of it, when its node can't be asked.
    pub fn past_deadline(self) -> Self {
        match self {
            Self::Queued => Self::Expired,
            Self::Delivered | Self::Running => Self::Unknown,
            ended => ended,
        }
    }

    /// What taking it back makes of it: only what nobody has been told is gone at once.
    pub fn taken_back(self) -> Self {
        if self == Self::Queued { Self::Cancelled } else { self }
    }
}

/// Whether a node's word ends a command.
impl CommandState {
    /// Nothing follows it.
    pub fn is_end(self) -> bool {
        !matches!(self, Self::Unspecified | Self::Accepted | Self::Running)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for State {
    type Err = StateError;

    fn from_str(text: &str) -> Result<Self, StateError> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(StateError)
    }
}

/// Not a state.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("states are queued, delivered, running, succeeded, failed, expired, cancelled and unknown")]
pub struct StateError;

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: [CommandState; 10] = [
        CommandState::Unspecified,
        CommandState::Accepted,
        CommandState::Running,
        CommandState::Succeeded,
        CommandState::Failed,
        CommandState::Expired,
        CommandState::Unknown,
        CommandState::Unsupported,
        CommandState::Cancelled,
        CommandState::Refused,
    ];

    #[test]
    fn the_nodes_first_end_stands_and_nothing_goes_back() {
        for state in State::ALL {
            for word in WORDS {
                assert_eq!(state.after(word, true), None, "{state} {word:?}");
                let next = state.after(word, false);
                if word.is_end() {
                    assert!(
                        next.is_some_and(|next| !next.is_open()),
                        "{state} {word:?}: an end is told whenever it comes"
                    );
                } else if let Some(next) = next {
                    assert!(next > state || state == State::Unknown, "{state} {word:?} {next}");
                }
            }
        }
        assert_eq!(State::Running.after(CommandState::Accepted, false), None);
        assert_eq!(State::Unknown.after(CommandState::Running, false), Some(State::Running));
        assert_eq!(State::Cancelled.after(CommandState::Running, false), None);
    }

    #[test]
    fn only_what_nobody_was_told_expires_or_is_taken_back_for_certain() {
        assert_eq!(State::ALL.map(State::past_deadline)[..3], [State::Expired, State::Unknown, State::Unknown]);
        assert_eq!(State::ALL.map(State::taken_back)[..3], [State::Cancelled, State::Delivered, State::Running]);
        for ended in &State::ALL[3..] {
            assert_eq!((ended.past_deadline(), ended.taken_back()), (*ended, *ended));
        }
        for state in State::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
    }
}
