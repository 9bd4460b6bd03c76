//! Identities and numbers that cross a module: each is a type of its own.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::message;

/// A customer's id: a slug `[a-z0-9-]{1,40}` that never changes and neither starts nor ends with a hyphen,
/// so that it is also one DNS label (RFC 1123, section 2.1).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(Box<str>);

impl TenantId {
    /// Longest id, in bytes.
    pub const MAX: usize = 40;

    /// The slug.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TenantId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let fits = (1..=Self::MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if fits { Ok(Self(text.into())) } else { Err(IdError::Tenant(shown(text))) }
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $error:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// Builds a UUIDv7 (RFC 9562, section 5.7) from a time and 10 random bytes.
            pub fn new(now: Timestamp, random: [u8; 10]) -> Self {
                Self(uuid::Builder::from_unix_timestamp_millis(now.millis().max(0) as u64, &random).into_uuid())
            }

            /// When it was made, by the clock it was made with: the first 48 bits.
            pub fn made_at(self) -> Timestamp {
                let millis = self.0.into_bytes().iter().take(6).fold(0, |millis, byte| millis << 8 | i64::from(*byte));
                Timestamp::from_millis(millis)
            }

            /// The 16 bytes that travel on the wire.
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }

            /// Reads the 16 bytes of the wire.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdError> {
                Uuid::from_slice(bytes).map(Self).map_err(|_| IdError::$error(format!("{} bytes", bytes.len())))
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::try_parse(text).map(Self).map_err(|_| IdError::$error(shown(text)))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
    };
}

uuid_id!(
    /// An enrolled node's id.
    NodeId,
    Node
);
uuid_id!(
    /// One live connection of a node to a hub.
    SessionId,
    Session
);
uuid_id!(
    /// One management action for one node.
    CommandId,
    Command
);
uuid_id!(
    /// One reading of a service's log.
    TailId,
    Tail
);

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeKind {
    /// Runs inside a tenant's stack.
    Agent,
    /// Runs at a customer's plant.
    Bridge,
}

impl NodeKind {
    /// The lower-case word used in names, URLs and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Bridge => "bridge",
        }
    }
}

impl FromStr for NodeKind {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        match text {
            "agent" => Ok(Self::Agent),
            "bridge" => Ok(Self::Bridge),
            _ => Err(IdError::Kind(shown(text))),
        }
    }
}

impl fmt::Display for NodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<NodeKind> for message::NodeKind {
    fn from(kind: NodeKind) -> Self {
        match kind {
            NodeKind::Agent => Self::Agent,
            NodeKind::Bridge => Self::Bridge,
        }
    }
}

impl TryFrom<message::NodeKind> for NodeKind {
    type Error = IdError;

    fn try_from(kind: message::NodeKind) -> Result<Self, IdError> {
        match kind {
            message::NodeKind::Agent => Ok(Self::Agent),
            message::NodeKind::Bridge => Ok(Self::Bridge),
            message::NodeKind::Unspecified => Err(IdError::Kind("unspecified".into())),
        }
    }
}

/// Number of a batch within its spool epoch; the first is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The first number of an epoch.
    pub const FIRST: Self = Self(1);

    /// The number after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One life of a node's spool. A spool that starts afresh takes a new, random epoch and numbers from 1 again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpoolEpoch(pub u64);

impl fmt::Display for SpoolEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SpoolEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A point in time: milliseconds since the Unix epoch, as on the wire and in the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// From RFC 3339 with any fraction and offset; `None` when it is none, or not of the years 1970 to 9999.
    pub fn parse(text: &str) -> Option<Self> {
        let (date, rest) = text.split_once('T')?;
        let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
        let (year, month, day) = (date.next()??, date.next()??, date.next()??);
        let zone = rest.rfind(['Z', '+', '-'])?;
        let (clock, zone) = rest.split_at_checked(zone)?;
        let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
        let mut clock = clock.splitn(3, ':').map(|part| part.parse::<i64>().ok());
        let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
        let offset = offset(zone)?;
        let millis: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
        if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        if !(0..=23).contains(&hour) || !(0..=59).contains(&minute) || !(0..=60).contains(&second) {
            return None;
        }
        // Hinnant, "chrono-Compatible Low-Level Date Algorithms": days_from_civil, for years after 0.
        let (year_of_march, month_of_march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
        let (era, of_era) = (year_of_march / 400, year_of_march % 400);
        let of_year = (153 * month_of_march + 2) / 5 + day - 1;
        let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
        let seconds = days * 86_400 + hour * 3600 + (minute - offset) * 60 + second;
        Some(Self(seconds * 1000 + millis))
    }

    /// Milliseconds since the Unix epoch.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// This time plus `duration`, or the latest representable one.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// This time minus `duration`, or the earliest representable one.
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Time passed since `earlier`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0).max(0) as u64)
    }
}

/// Minutes east of Greenwich: `Z` or `±HH:MM`.
fn offset(zone: &str) -> Option<i64> {
    let &[sign, tens, hours, b':', tens_of_minutes, minutes] = zone.as_bytes() else {
        return (zone == "Z").then_some(0);
    };
    let number = |tens: u8, ones: u8| {
        let digit = |byte: u8| char::from(byte).to_digit(10).map(i64::from);
        Some(digit(tens)? * 10 + digit(ones)?)
    };
    let hours = number(tens, hours).filter(|hours| *hours <= 23)?;
    let minutes = hours * 60 + number(tens_of_minutes, minutes).filter(|minutes| *minutes <= 59)?;
    match sign {
        b'+' => Some(minutes),
        b'-' => Some(-minutes),
        _ => None,
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self(i64::try_from(after.as_millis()).unwrap_or(i64::MAX)),
            Err(before) => Self(i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms)),
        }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        let offset = Duration::from_millis(time.0.unsigned_abs());
        if time.0 >= 0 { UNIX_EPOCH + offset } else { UNIX_EPOCH - offset }
    }
}

/// RFC 3339, UTC, with milliseconds: `2026-11-23T12:00:00.000Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, of_day) = (self.seconds().div_euclid(86_400), self.seconds().rem_euclid(86_400));
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        let millis = self.0.rem_euclid(1000);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

/// A value that is not an id of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a tenant slug.
    #[error("{0:?} is not a tenant id: use 1 to 40 of a-z, 0-9 and '-', not starting or ending with '-'")]
    Tenant(String),
    /// Not a node id.
    #[error("{0:?} is not a node id: use the UUID that `hfctl node list` shows")]
    Node(String),
    /// Not a session id.
    #[error("{0:?} is not a session id")]
    Session(String),
    /// Not a command id.
    #[error("{0:?} is not a command id")]
    Command(String),
    /// Not a tail's id.
    #[error("{0:?} is not the id of a tail")]
    Tail(String),
    /// Not a node kind.
    #[error("{0:?} is not a node kind: use agent or bridge")]
    Kind(String),
}

/// At most 64 characters of a rejected value, for an error message.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Days since 1970-01-01 to a proleptic Gregorian date (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenant_ids_are_dns_labels() {
        for good in ["a", "acme", "acme-2", &"x".repeat(40)] {
            assert_eq!(good.parse::<TenantId>().map(|t| t.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "-a", "a-", "Acme", "a.b", "a_b", "ä", &"x".repeat(41)] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn timestamps_print_as_rfc_3339() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_827_696_789, "2000-02-29T12:34:56.789Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (4_102_444_799_999, "2099-12-31T23:59:59.999Z"),
        ];
        for (millis, text) in cases {
            assert_eq!(Timestamp::from_millis(millis).to_string(), text);
        }
    }

    #[test]
    fn timestamps_are_read_from_rfc_3339_and_from_nothing_else() {
        let cases = [
            ("2000-02-29T12:34:56.789Z", Some(951_827_696_789)),
            ("2000-02-29T13:34:56.7891234+01:00", Some(951_827_696_789)),
            ("0001-01-01T00:00:00Z", None),
            ("2000-02-29T24:00:00Z", None),
            ("2000-02-29T00:60:00Z", None),
            ("2000-02-29T9223372036854775807:00:00Z", None),
            ("2000-02-29T00:00:00+9223372036854775:00", None),
            ("2000-02-29T05:34:56.789-07:00", Some(951_827_696_789)),
            ("2000-02-29T13:34:56+0100", None),
            ("2000-02-29T13:34:56+01", None),
            ("2000-02-29T13:34:56+1:00", None),
            ("2000-02-29T13:34:56++1:00", None),
            ("2000-02-29T13:34:56+24:00", None),
            ("2000-02-29T13:34:56+01:60", None),
            ("2000-02-29T13:34:56Z01:00", None),
            ("2000-02-29", None),
            ("", None),
        ];
        for (text, millis) in cases {
            assert_eq!(Timestamp::parse(text).map(Timestamp::millis), millis, "{text}");
        }
    }

    #[test]
    fn node_ids_are_version_7_and_round_trip() {
        let id = NodeId::new(Timestamp::from_millis(1_700_000_000_000), [7; 10]);
        assert_eq!(id.to_string().as_bytes().get(14), Some(&b'7'));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(NodeId::from_bytes(&id.to_bytes()), Ok(id));
        assert_eq!(id.made_at(), Timestamp::from_millis(1_700_000_000_000));
        assert!(NodeId::from_bytes(&[1; 15]).is_err());
    }
}
