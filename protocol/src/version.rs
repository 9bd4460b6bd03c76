//! Protocol versions: what this build speaks, and how two peers choose one.

use crate::message::VersionRange;

/// ALPN of an authenticated session.
pub const ALPN_SESSION: &[u8] = b"hyperfactory/1";
/// ALPN of enrollment; beside recovery the only thing a peer without a certificate may do.
pub const ALPN_ENROLL: &[u8] = b"hyperfactory-enroll/1";
/// ALPN of recovery: a node whose certificate is taken no more, and who has its key.
pub const ALPN_RECOVER: &[u8] = b"hyperfactory-recover/1";

/// Oldest and newest protocol version this build speaks.
pub const SPOKEN: VersionRange = VersionRange { oldest: 1, newest: 1 };

/// The newest version both ranges hold, or `None` when they do not meet.
///
/// # Examples
/// ```
/// use hyperfactory_protocol::{message::VersionRange, version};
/// let newer = VersionRange { oldest: 1, newest: 3 };
/// assert_eq!(version::negotiate(version::SPOKEN, newer), Some(1));
/// ```
pub fn negotiate(ours: VersionRange, theirs: VersionRange) -> Option<u32> {
    let newest = ours.newest.min(theirs.newest);
    (newest >= ours.oldest && newest >= theirs.oldest && newest > 0).then_some(newest)
}
