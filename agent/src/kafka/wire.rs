//! The three requests of the Kafka protocol about access lists, each in version 1, which every broker speaks that has access lists
//! by prefix. A crate for the whole protocol is two hundred times this; the tests judge these frames by one.

use std::collections::BTreeSet;
use std::fmt;

/// One right, as brokers keep it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    /// On what kind of thing.
    pub(super) kind: Kind,
    /// On which, or on all that begin so.
    pub(super) name: String,
    /// Whether it is on all that begin so.
    pub(super) prefixed: bool,
    /// Whose it is: `User:CN=…`.
    pub(super) principal: String,
    /// From where; `*`: anywhere.
    pub(super) host: String,
    /// What may be done, by its number.
    pub(super) operation: i8,
    /// Whether it allows; else it forbids.
    pub(super) allows: bool,
}

/// What a right is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A topic.
    Topic,
    /// The cluster as a whole.
    Cluster,
    /// Something else, by its number.
    Other(i8),
}

/// Writing to a topic.
pub(super) const WRITE: i8 = 4;
/// Writing with numbers by which brokers drop what comes twice.
pub(super) const IDEMPOTENT_WRITE: i8 = 12;
/// The name of the cluster among what rights are on.
pub(super) const CLUSTER: &str = "kafka-cluster";

const DESCRIBE_ACLS: i16 = 29;
const CREATE_ACLS: i16 = 30;
const DELETE_ACLS: i16 = 31;
const VERSION: i16 = 1;
const ANY: i8 = 1;
const LITERAL: i8 = 3;
const PREFIXED: i8 = 4;
const ALLOW: i8 = 3;
const DENY: i8 = 2;

/// What a broker makes of a request that it does not carry out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// It says no.
    #[error("{}", refused(.code, .message))]
    Refused {
        /// Kafka's number for it.
        code: i16,
        /// In the broker's words, perhaps none.
        message: String,
    },
    /// What it says can't be read.
    #[error(
        "what the broker answers can't be read: it speaks no Kafka, or no version of access lists that is known here"
    )]
    Malformed,
}

fn refused(code: &i16, message: &str) -> String {
    let known = match code {
        31 => "the broker does not let this agent change access lists: its certificate has to be of a superuser",
        54 => "the broker keeps no access lists: have it authorize its clients first",
        35 => "the broker knows no access lists of this version",
        _ => "the broker refuses it",
    };
    match message {
        "" => format!("{known} (error {code})"),
        said => format!("{known} (error {code}: {said})"),
    }
}

/// The frame that asks for all rights of a principal.
pub(super) fn describe(id: i32, principal: &str) -> Vec<u8> {
    let mut frame = Frame::of(DESCRIBE_ACLS, id);
    frame.i8(ANY).none().i8(ANY).text(principal).none().i8(ANY).i8(ANY);
    frame.end()
}

/// The frame that adds rights.
pub(super) fn create(id: i32, entries: &[&Entry]) -> Vec<u8> {
    let mut frame = Frame::of(CREATE_ACLS, id);
    frame.count(entries.len());
    entries.iter().for_each(|entry| frame.entry(entry));
    frame.end()
}

/// The frame that takes rights away: these and no others.
pub(super) fn delete(id: i32, entries: &[&Entry]) -> Vec<u8> {
    let mut frame = Frame::of(DELETE_ACLS, id);
    frame.count(entries.len());
    entries.iter().for_each(|entry| frame.entry(entry));
    frame.end()
}

/// The rights in the answer to [`describe`], which is without its length.
///
/// # Errors
/// [`WireError`].
pub(super) fn described(answer: &[u8], id: i32) -> Result<BTreeSet<Entry>, WireError> {
    let mut answer = Answer::of(answer, id)?;
    answer.verdict()?;
    let mut entries = BTreeSet::new();
    for _ in 0..answer.i32()? {
        let (kind, name, pattern) = (Kind::from(answer.i8()?), answer.text()?, answer.i8()?);
        for _ in 0..answer.i32()? {
            let (principal, host) = (answer.text()?, answer.text()?);
            let (operation, permission) = (answer.i8()?, answer.i8()?);
            let (name, prefixed, allows) = (name.clone(), pattern == PREFIXED, permission == ALLOW);
            entries.insert(Entry { kind, name, prefixed, principal, host, operation, allows });
        }
    }
    Ok(entries)
}

/// Whether the answer to [`create`] says that all was done.
///
/// # Errors
/// [`WireError`]: the first thing that was not.
pub(super) fn created(answer: &[u8], id: i32) -> Result<(), WireError> {
    let mut answer = Answer::of(answer, id)?;
    (0..answer.i32()?).try_for_each(|_| answer.verdict())
}

/// Whether the answer to [`delete`] says that all was done.
///
/// # Errors
/// [`WireError`]: the first thing that was not.
pub(super) fn deleted(answer: &[u8], id: i32) -> Result<(), WireError> {
    let mut answer = Answer::of(answer, id)?;
    for _ in 0..answer.i32()? {
        answer.verdict()?;
        for _ in 0..answer.i32()? {
            answer.verdict()?;
            let _ = (answer.i8()?, answer.text()?, answer.i8()?);
            let _ = (answer.text()?, answer.text()?, answer.i8()?, answer.i8()?);
        }
    }
    Ok(())
}

impl From<i8> for Kind {
    fn from(number: i8) -> Self {
        match number {
            2 => Self::Topic,
            4 => Self::Cluster,
            other => Self::Other(other),
        }
    }
}

impl From<Kind> for i8 {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Topic => 2,
            Kind::Cluster => 4,
            Kind::Other(other) => other,
        }
    }
}

/// As an operator says it: "WRITE on cologne.*".
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.allows {
            f.write_str("no ")?;
        }
        match self.operation {
            WRITE => f.write_str("WRITE")?,
            IDEMPOTENT_WRITE => f.write_str("IDEMPOTENT_WRITE")?,
            other => write!(f, "operation {other}")?,
        }
        match self.kind {
            Kind::Topic => write!(f, " on {}{}", self.name, if self.prefixed { "*" } else { "" }),
            Kind::Cluster => f.write_str(" on the cluster"),
            Kind::Other(kind) => write!(f, " on {} of kind {kind}", self.name),
        }
    }
}

/// A request, being written.
struct Frame(Vec<u8>);

impl Frame {
    fn of(request: i16, id: i32) -> Self {
        let mut frame = Self(vec![0; 4]);
        frame.0.extend(request.to_be_bytes());
        frame.0.extend(VERSION.to_be_bytes());
        frame.0.extend(id.to_be_bytes());
        frame.text("hyperfactory-agent");
        frame
    }

    fn i8(&mut self, value: i8) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn count(&mut self, count: usize) {
        self.0.extend(i32::try_from(count).unwrap_or(i32::MAX).to_be_bytes());
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.0.extend(i16::try_from(text.len()).unwrap_or(i16::MAX).to_be_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    fn none(&mut self) -> &mut Self {
        self.0.extend((-1i16).to_be_bytes());
        self
    }

    /// A right, and just as well the filter that it alone passes.
    fn entry(&mut self, entry: &Entry) {
        self.i8(entry.kind.into()).text(&entry.name).i8(if entry.prefixed { PREFIXED } else { LITERAL });
        self.text(&entry.principal).text(&entry.host).i8(entry.operation).i8(if entry.allows { ALLOW } else { DENY });
    }

    fn end(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

/// What is left of an answer.
struct Answer<'a>(&'a [u8]);

impl<'a> Answer<'a> {
    /// After its head.
    fn of(bytes: &'a [u8], id: i32) -> Result<Self, WireError> {
        let mut answer = Self(bytes);
        if answer.i32()? != id {
            return Err(WireError::Malformed);
        }
        let _throttled = answer.i32()?;
        Ok(answer)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(WireError::Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn i8(&mut self) -> Result<i8, WireError> {
        self.take().map(i8::from_be_bytes)
    }

    fn i16(&mut self) -> Result<i16, WireError> {
        self.take().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Result<i32, WireError> {
        self.take().map(i32::from_be_bytes)
    }

    /// None is an empty one.
    fn text(&mut self) -> Result<String, WireError> {
        let length = usize::try_from(self.i16()?).unwrap_or(0);
        let (text, rest) = self.0.split_at_checked(length).ok_or(WireError::Malformed)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| WireError::Malformed)
    }

    fn verdict(&mut self) -> Result<(), WireError> {
        match (self.i16()?, self.text()?) {
            (0, _) => Ok(()),
            (code, message) => Err(WireError::Refused { code, message }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            kind: Kind::Topic,
            name: "a.".into(),
            prefixed: true,
            principal: "User:CN=b".into(),
            host: "*".into(),
            operation: WRITE,
            allows: true,
        }
    }

    #[test]
    fn requests_are_these_bytes() {
        let head = |request: u8, length: u8| {
            let mut bytes = vec![0, 0, 0, length, 0, request, 0, 1, 0, 0, 0, 7, 0, 18];
            bytes.extend(b"hyperfactory-agent");
            bytes
        };
        let mut described = head(29, 28 + 18);
        described.extend(*b"\x01\xff\xff\x01\x00\x09User:CN=b\xff\xff\x01\x01");
        described[3] = u8::try_from(described.len() - 4).unwrap();
        assert_eq!(describe(7, "User:CN=b"), described);
        let one = b"\x00\x00\x00\x01\x02\x00\x02a.\x04\x00\x09User:CN=b\x00\x01*\x04\x03";
        for (request, made) in [(30, create(7, &[&entry()])), (31, delete(7, &[&entry()]))] {
            let mut expected = head(request, 0);
            expected.extend(one);
            expected[3] = u8::try_from(expected.len() - 4).unwrap();
            assert_eq!(made, expected);
        }
    }

    #[test]
    fn answers_are_read_and_what_is_none_is_refused() {
        let answer = b"\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\xff\xff\x00\x00\x00\x01\x02\x00\x02a.\x04\x00\x00\x00\x01\x00\x09User:CN=b\x00\x01*\x04\x03";
        assert_eq!(described(answer, 7).unwrap(), BTreeSet::from([entry()]));
        for length in 0..answer.len() {
            assert!(matches!(described(&answer[..length], 7), Err(WireError::Malformed)), "{length} bytes");
        }
        assert!(matches!(described(answer, 8), Err(WireError::Malformed)), "of another request");
        let refused = b"\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\xff\xff\x00\x1f\x00\x02no";
        let error = created(refused, 7).unwrap_err().to_string();
        assert!(error.contains("superuser") && error.contains("31: no"), "{error}");
        let empty = b"\x00\x00\x00\x07\x00\x00\x00\x00\x00\x36\xff\xff\x00\x00\x00\x00";
        assert!(described(empty, 7).unwrap_err().to_string().contains("keeps no access lists"));
    }
}
