//! Tails: a service's log as it is written, read for somebody at the hub.
//!
//! What is more than a tail may take is left out, counted, and the count travels in the place of the lines: what was
//! written is what was delivered and what was dropped, at every moment and at both ends.

use crate::command::named;
use crate::message::{ServiceTarget, StartTail, TailLines};
use crate::{TailId, Timestamp};

/// Tails a node has at once; one more is refused.
pub const AT_ONCE: usize = 4;
/// Longest expression, in bytes.
pub const MAX_GREP: usize = 256;
/// Most lines that are looked at of what each container wrote before.
pub const MAX_LINES: u32 = 10_000;
/// Longest text of a line, in bytes; the rest of it is cut off.
pub const MAX_TEXT: usize = 8 * 1024;
/// Most lines in one message.
pub const MAX_BATCH: usize = 512;

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Which one.
    pub id: TailId,
    /// Compose project.
    pub stack: String,
    /// Compose service.
    pub service: String,
    /// Nothing that was written before.
    pub since: Option<Timestamp>,
    /// Nothing that was written after.
    pub until: Option<Timestamp>,
    /// Only lines in which this regular expression is found. Whoever reads the log judges whether it is one.
    pub grep: Option<String>,
    /// Of what was written before, the last lines that are looked at.
    pub lines: u32,
    /// Go on with what is written from now on.
    pub follow: bool,
}

impl Tail {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// [`TailError`], which says what would.
    pub fn checked(self) -> Result<Self, TailError> {
        let bad = |_| "use 1 to 100 letters, digits, '-', '_' and '.'";
        named("stack", &self.stack).map_err(bad).map_err(|why| TailError("stack", why))?;
        named("service", &self.service).map_err(bad).map_err(|why| TailError("service", why))?;
        if self.lines > MAX_LINES {
            return Err(TailError("lines", "use at most 10,000"));
        }
        if self.lines == 0 && !self.follow {
            return Err(TailError("lines", "without following, ask for at least one"));
        }
        if self.grep.as_ref().is_some_and(|grep| grep.len() > MAX_GREP) {
            return Err(TailError("grep", "use an expression of at most 256 bytes"));
        }
        if self.since.zip(self.until).is_some_and(|(since, until)| since > until) {
            return Err(TailError("until", "use a time after since"));
        }
        Ok(self)
    }

    /// The message that has a node begin.
    pub fn message(&self) -> StartTail {
        StartTail {
            tail_id: self.id.to_bytes().to_vec(),
            target: Some(ServiceTarget { stack: self.stack.clone(), service: self.service.clone() }),
            since_ms: self.since.map_or(0, Timestamp::millis),
            until_ms: self.until.map_or(0, Timestamp::millis),
            grep: self.grep.clone().unwrap_or_default(),
            lines: self.lines,
            follow: self.follow,
        }
    }

    /// Reads a message whose id is known to be good.
    ///
    /// # Errors
    /// [`TailError`] when it makes no sense.
    pub fn read(id: TailId, start: StartTail) -> Result<Self, TailError> {
        let ServiceTarget { stack, service } = start.target.unwrap_or_default();
        let time = |millis: i64| (millis != 0).then_some(Timestamp::from_millis(millis));
        let (since, until) = (time(start.since_ms), time(start.until_ms));
        let grep = Some(start.grep).filter(|grep| !grep.is_empty());
        Self { id, stack, service, since, until, grep, lines: start.lines, follow: start.follow }.checked()
    }
}

impl TailLines {
    /// Lines it stands for: those in it, and those it says were left out.
    pub fn count(&self) -> u64 {
        let dropped = self.lines.iter().map(|line| line.dropped).fold(self.dropped, u64::saturating_add);
        dropped.saturating_add(self.lines.len() as u64)
    }

    /// Says of so many more lines that they were left out before all of these.
    pub fn dropped_before(&mut self, lines: u64) {
        let place = self.lines.first_mut().map_or(&mut self.dropped, |first| &mut first.dropped);
        *place = place.saturating_add(lines);
    }
}

/// An argument that makes no sense, and what would.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its {0} is not usable: {1}")]
pub struct TailError(pub &'static str, pub &'static str);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::TailLine;

    fn tail() -> Tail {
        Tail {
            id: TailId::new(Timestamp::from_millis(1), [1; 10]),
            stack: "shop".into(),
            service: "web".into(),
            since: Some(Timestamp::from_millis(1_000)),
            until: None,
            grep: Some("(?i)error".into()),
            lines: 100,
            follow: true,
        }
    }

    #[test]
    fn a_tail_is_read_as_it_was_asked_for_and_one_that_makes_no_sense_is_not() {
        let tail = tail();
        assert_eq!(Tail::read(tail.id, tail.message()), Ok(tail.clone()));
        let wrong = [
            Tail { stack: "../x".into(), ..tail.clone() },
            Tail { service: String::new(), ..tail.clone() },
            Tail { lines: MAX_LINES + 1, ..tail.clone() },
            Tail { lines: 0, follow: false, ..tail.clone() },
            Tail { grep: Some("x".repeat(MAX_GREP + 1)), ..tail.clone() },
            Tail { until: Some(Timestamp::from_millis(999)), ..tail.clone() },
        ];
        for wrong in wrong {
            assert!(Tail::read(wrong.id, wrong.message()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_was_left_out_is_counted_in_its_place() {
        let line = |dropped| TailLine { dropped, ..TailLine::default() };
        let mut lines = TailLines { lines: vec![line(0), line(7)], dropped: 2, ..TailLines::default() };
        assert_eq!(lines.count(), 11);
        lines.dropped_before(5);
        assert_eq!((lines.lines[0].dropped, lines.count()), (5, 16));
        let mut none = TailLines::default();
        none.dropped_before(3);
        assert_eq!((none.dropped, none.count()), (3, 3));
    }
}
