//! One entry of a container's log, as the engine hands it over with its time in front.

use bollard::container::LogOutput;
use protocol::Timestamp;
use protocol::message::TailLine;
use protocol::tail::MAX_TEXT;
use serde::{Deserialize, Serialize};

/// Length of the engine's times: `2026-11-23T12:00:00.000000000Z`.
const LENGTH: usize = 30;
/// Where in it the fraction of the second begins.
const FRACTION: usize = 20;

/// A time as the engine writes it, to the nanosecond. Such texts are in the order of their times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Moment([u8; LENGTH]);

impl Moment {
    pub(crate) fn of(at: Timestamp) -> Self {
        let text = format!("{}000000Z", at.to_string().trim_end_matches('Z'));
        Self::read(text.as_bytes()).unwrap_or(Self([b'9'; LENGTH]))
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; LENGTH] = bytes.try_into().ok()?;
        let form = b"0000-00-00T00:00:00.000000000Z";
        let fits = bytes.iter().zip(form).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            form => byte == form,
        });
        fits.then_some(Self(bytes))
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Milliseconds since the Unix epoch.
    pub(crate) fn millis(&self) -> i64 {
        crate::container::time(self.as_str()).map_or(0, Timestamp::millis)
    }

    /// Whole seconds since the Unix epoch.
    pub(crate) fn seconds(&self) -> i64 {
        self.millis() / 1000
    }

    /// Nanoseconds since the Unix epoch.
    pub(crate) fn nanos(&self) -> i64 {
        let below = self.0.get(FRACTION..FRACTION + 9).unwrap_or_default();
        let below = below.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit.saturating_sub(b'0')));
        self.seconds().saturating_mul(1_000_000_000).saturating_add(below)
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> Self {
        moment.as_str().to_owned()
    }
}

impl TryFrom<String> for Moment {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::read(text.as_bytes()).ok_or("a time is not as the engine writes it")
    }
}

/// A line of a log.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// When it was written; `None` where the engine does not say.
    pub(crate) at: Option<Moment>,
    /// Without the end of the line.
    pub(crate) text: &'a [u8],
    /// To standard error.
    pub(crate) error: bool,
    /// The line ends here: the engine hands over long ones in pieces.
    pub(crate) ends: bool,
}

impl<'a> Entry<'a> {
    pub(crate) fn read(output: &'a LogOutput) -> Self {
        let (message, error) = match output {
            LogOutput::StdErr { message } => (message, true),
            LogOutput::StdOut { message } | LogOutput::StdIn { message } | LogOutput::Console { message } => {
                (message, false)
            }
        };
        let ends = message.ends_with(b"\n");
        let message = message.strip_suffix(b"\n").unwrap_or(message);
        let message = message.strip_suffix(b"\r").unwrap_or(message);
        let stamped = message.split_at_checked(LENGTH).and_then(|(at, rest)| Some((Moment::read(at)?, rest)));
        match stamped {
            Some((at, rest)) => Self { at: Some(at), text: rest.strip_prefix(b" ").unwrap_or(rest), error, ends },
            None => Self { at: None, text: message, error, ends },
        }
    }

    /// As it goes to the hub.
    pub(crate) fn line(&self, at: Moment, number: u32) -> TailLine {
        let kept = self.text.get(..MAX_TEXT).unwrap_or(self.text);
        TailLine {
            at_ms: at.millis(),
            number,
            error: self.error,
            text: kept.to_vec(),
            cut: u32::try_from(self.text.len() - kept.len()).unwrap_or(u32::MAX),
            dropped: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(text: &str) -> LogOutput {
        LogOutput::StdErr { message: text.to_owned().into() }
    }

    #[test]
    fn a_line_is_its_time_and_its_text() {
        let output = output("2026-11-23T12:00:00.123456789Z pressure 7 bar\r\n");
        let entry = Entry::read(&output);
        let line = entry.line(entry.at.unwrap(), 2);
        assert_eq!((line.at_ms, line.number, line.error), (1_795_435_200_123, 2, true));
        assert_eq!((&line.text[..], line.cut), (&b"pressure 7 bar"[..], 0));
    }

    #[test]
    fn times_are_in_order_to_the_nanosecond() {
        let moment = |text: &str| Moment::read(text.as_bytes()).unwrap();
        let (a, b) = (moment("2026-11-23T12:00:00.123456788Z"), moment("2026-11-23T12:00:00.123456789Z"));
        let whole = Moment::of(Timestamp::from_millis(1_795_435_200_123));
        assert!(whole < a && a < b, "{whole:?}");
        assert!(b < Moment::of(Timestamp::from_millis(1_795_435_200_124)));
        assert_eq!((b.seconds(), b.nanos()), (1_795_435_200, 1_795_435_200_123_456_789));
    }

    #[test]
    fn what_has_no_time_is_all_text_and_what_is_too_long_is_cut() {
        let plain = output("no time here");
        let entry = Entry::read(&plain);
        assert!(entry.at.is_none() && entry.text == b"no time here");
        let long = output(&"x".repeat(MAX_TEXT + 7));
        let line = Entry::read(&long).line(Moment::of(Timestamp::from_millis(0)), 1);
        assert_eq!((line.text.len(), line.cut), (MAX_TEXT, 7));
    }
}
