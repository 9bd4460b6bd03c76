//! The phases of a rotation, and which follows which.

use crate::words::words;

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

words! {
    Phase {
        Prepare = "prepare", Trust = "trust", Issue = "issue", Retire = "retire", Done = "done", Aborted = "aborted",
    }
    or PhaseError = |text| PhaseError(text.to_owned())
}

impl Phase {
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

/// Not a phase.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no phase of a rotation: prepare, trust, issue, retire, done, aborted")]
pub struct PhaseError(String);
