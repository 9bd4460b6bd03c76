//! Why somebody acts. It is in the audit log, and beside what came of the act.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Longest, in characters.
const LONGEST: usize = 500;

/// One line that says why: never empty, and at most 500 characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(Cow<'static, str>);

/// No reason, or none that a line of the audit log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("say why, for the audit log: `reason` is one line of 1 to {LONGEST} characters")]
pub struct ReasonError;

impl Reason {
    /// The hub's own.
    pub(crate) const fn own(text: &'static str) -> Self {
        Self(Cow::Borrowed(text))
    }

    /// Where one may be left out: nothing but spaces is none.
    ///
    /// # Errors
    /// [`ReasonError`].
    pub(crate) fn given(text: &str) -> Result<Option<Self>, ReasonError> {
        if text.trim().is_empty() { Ok(None) } else { text.parse().map(Some) }
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Reason {
    type Err = ReasonError;

    fn from_str(text: &str) -> Result<Self, ReasonError> {
        let text = text.trim();
        let good = (1..=LONGEST).contains(&text.chars().count()) && !text.chars().any(char::is_control);
        if good { Ok(Self(Cow::Owned(text.to_owned()))) } else { Err(ReasonError) }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_that_says_something() {
        let of = |text: &str| text.parse::<Reason>().map(|reason| reason.to_string());
        assert_eq!(of(" it hangs\n"), Ok("it hangs".to_owned()));
        assert_eq!(of(&"ä".repeat(LONGEST)), Ok("ä".repeat(LONGEST)));
        for wrong in ["", " \t\n", "a\nb", "a\u{1b}[2Jb", &"x".repeat(LONGEST + 1)] {
            assert_eq!(of(wrong), Err(ReasonError), "{wrong:?}");
        }
        assert_eq!(Reason::given(" "), Ok(None));
        assert_eq!(Reason::given("a\nb"), Err(ReasonError));
    }
}
