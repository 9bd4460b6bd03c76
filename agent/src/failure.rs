//! Why a verb of the program ended badly, by exit code.

use std::fmt;

/// An error with the exit code that goes with it.
#[derive(Debug)]
pub struct Failure {
    /// What other programs are told.
    pub code: Code,
    error: anyhow::Error,
}

/// The program's exit codes other than 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Something did not work.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// The hub refused: the token, or this node.
    Refused = 3,
}

impl Failure {
    /// Wrong usage or configuration.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { code: Code::Usage, error: error.into() }
    }

    /// The hub refused.
    pub fn refused(error: impl Into<anyhow::Error>) -> Self {
        Self { code: Code::Refused, error: error.into() }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { code: Code::Failed, error: error.into() }
    }
}

/// In one line, causes included; a cause that its effect already tells is left out.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = self.error.to_string();
        for cause in self.error.chain().skip(1) {
            let cause = cause.to_string();
            if !told.contains(&cause) {
                told.push_str(": ");
                told.push_str(&cause);
            }
        }
        f.write_str(&told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_each_cause_once() {
        let error = anyhow::anyhow!("no route").context("no route to the hub").context("not enrolled");
        assert_eq!(Failure::from(error).to_string(), "not enrolled: no route to the hub");
        let refused = Failure::refused(anyhow::anyhow!("used"));
        assert_eq!((refused.code as u8, refused.to_string().as_str()), (3, "used"));
    }
}
