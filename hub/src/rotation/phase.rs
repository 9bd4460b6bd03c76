//! The phases of a rotation, and which follows which.

use std::fmt;
use std::str::FromStr;

/// Where a rotation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The successor is made, and nobody is told of it.
    Prepare,
    /// Both are trusted; the old one issues.
    Trust,
    /// Both are trusted; the new one issues, and what the old one issued is replaced.
    Issue,
    /// The new one alone is trusted; the old one can still be called back.
    Retire,
    /// Over: there is no way back.
    Done,
    /// Given up before it had begun to matter.
    Aborted,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the next phase.
    Forward,
    /// To the one before.
    Back,
}

impl Phase {
    const ALL: [Self; 6] = [Self::Prepare, Self::Trust, Self::Issue, Self::Retire, Self::Done, Self::Aborted];

    /// As stored and in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Trust => "trust",
            Self::Issue => "issue",
            Self::Retire => "retire",
            Self::Done => "done",
            Self::Aborted => "aborted",
        }
    }

    /// Where one step leads; `None` when the rotation is over.
    pub const fn step(self, direction: Direction) -> Option<Self> {
        match (self, direction) {
            (Self::Prepare, Direction::Forward) | (Self::Issue, Direction::Back) => Some(Self::Trust),
            (Self::Trust, Direction::Forward) | (Self::Retire, Direction::Back) => Some(Self::Issue),
            (Self::Issue, Direction::Forward) => Some(Self::Retire),
            (Self::Retire, Direction::Forward) => Some(Self::Done),
            (Self::Trust, Direction::Back) => Some(Self::Prepare),
            (Self::Prepare, Direction::Back) => Some(Self::Aborted),
            (Self::Done | Self::Aborted, _) => None,
        }
    }

    /// Whether the rotation goes on from here.
    pub const fn is_open(self) -> bool {
        !matches!(self, Self::Done | Self::Aborted)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not a phase.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no phase of a rotation: prepare, trust, issue, retire, done, aborted")]
pub struct PhaseError(String);

impl FromStr for Phase {
    type Err = PhaseError;

    fn from_str(text: &str) -> Result<Self, PhaseError> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == text).ok_or_else(|| PhaseError(text.to_owned()))
    }
}
