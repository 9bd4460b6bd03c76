//! What can go wrong, as a sentence that says what to do, and the exit code it has.

use std::fmt;

/// A verb that did not do what it should.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It could not be done.
    Failed(String),
    /// The hub can't be reached, or not now.
    Away(String),
    /// The arguments or the configuration are wrong.
    Usage(String),
    /// The hub does not let this token do it.
    Refused(String),
    /// The result can't be printed.
    Output(std::io::Error),
}

impl Failure {
    /// The program's exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Away(_) | Self::Output(_) => 1,
            Self::Usage(_) => 2,
            Self::Refused(_) => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(said) | Self::Away(said) | Self::Usage(said) | Self::Refused(said) => f.write_str(said),
            Self::Output(error) => write!(f, "the result can't be printed: {error}"),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error)
    }
}
