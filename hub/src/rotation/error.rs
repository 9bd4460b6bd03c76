//! Why a rotation does not begin, or go on.

use protocol::Timestamp;
use store::StoreError;
use store::sqlx;

use super::{Gate, Missing, Phase, REASON_MAX};
use crate::authorities::AuthoritiesError;
use crate::enrollment::ADVICE_WITHIN_MAX;

/// Those not ready whom an error names.
const SHOWN: usize = 5;

/// A rotation that does not begin, or go on.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// No such rotation.
    #[error("there is no rotation {0}: see `hfctl ca rotate list`")]
    Unknown(i64),
    /// This is not rotated.
    #[error("{0:?} is nothing to rotate: say root, hub, nodes or kafka, the last two with a tenant")]
    What(String),
    /// One is under way.
    #[error("rotation {id} of {what} is under way: end or abort it first, see `hfctl ca rotate status {id}`")]
    UnderWay {
        /// Its number.
        id: i64,
        /// What it rotates.
        what: String,
    },
    /// Not one line of reasonable length.
    #[error("a reason is one line of 1 to {REASON_MAX} characters")]
    Reason,
    /// Too long.
    #[error("renewals are spread over at most {} days", ADVICE_WITHIN_MAX.as_secs() / 86_400)]
    Within,
    /// It is in another phase.
    #[error("rotation {id} is in the phase {phase}, not {from}: somebody was faster; look again")]
    Elsewhere {
        /// Its number.
        id: i64,
        /// Where it is.
        phase: Phase,
        /// Where it was taken to be.
        from: Phase,
    },
    /// It is over.
    #[error("rotation {id} is over ({phase}): there is no way on and none back; begin another one")]
    Over {
        /// Its number.
        id: i64,
        /// How it ended.
        phase: Phase,
    },
    /// The root is kept offline, and has not signed yet.
    #[error(
        "rotation {id} waits for the fleet root, which is kept offline: take `hyperfactory-hub ca root requests` to it, have \
         them signed and import the answers; then go on"
    )]
    Unsigned {
        /// Its number.
        id: i64,
    },
    /// Somebody is not ready.
    #[error("{}", missing(gate))]
    NotReady {
        /// Who, and for what.
        gate: Box<Gate>,
    },
    /// A person has to look first.
    #[error(
        "{}: the hub can't see the tenant's brokers; look, and confirm it with --brokers-updated",
        if *to == Phase::Issue { "every broker must trust both roots (hfctl trust kafka-root) before bridges get certificates of the new one's" }
        else { "every broker must show a certificate of the new root's (hfctl kafka server-certificate) before the old one is trusted no more" }
    )]
    Brokers {
        /// The phase that waits for it.
        to: Phase,
    },
    /// An authority that would issue has ended.
    #[error("the authority that would issue then has ended at {0}: it can't issue any more")]
    Ended(Timestamp),
    /// The authorities could not be had, made or changed.
    #[error(transparent)]
    Authorities(#[from] AuthoritiesError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for RotationError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

fn missing(gate: &Gate) -> String {
    let count = gate.missing.len();
    let named = gate.missing.iter().take(SHOWN).map(|one| {
        let Missing { name, tenant, why, .. } = one;
        format!("{name} of {tenant} ({}{why})", presence(one))
    });
    let (named, more) = (named.collect::<Vec<_>>().join(", "), count.saturating_sub(SHOWN));
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        "{count} not ready for the phase {}: {named}{more}. Wait for them; or leave them behind with --leave {count}: they come \
         back by themselves, by recovery, while the window for it lasts",
        gate.to
    )
}

/// Where one that is not ready is, for a person.
fn presence(missing: &Missing) -> String {
    match (missing.presence.as_deref(), missing.since) {
        (Some("lost" | "left"), Some(since)) => format!("offline since {since}; "),
        (Some("lost" | "left"), None) => "offline; ".to_owned(),
        (Some("never_seen"), _) => "never seen; ".to_owned(),
        _ => String::new(),
    }
}
