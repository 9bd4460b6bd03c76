//! Why nothing was issued, and what the node is told of it.

use std::time::Duration;

use pki::{AuthorityError, RequestError};
use protocol::message::{Refusal, RefusalCode};
use store::StoreError;
use store::group::GroupError;
use store::sqlx;

use crate::authorities::AuthoritiesError;

/// When a node is to come again whose tenant's authority is not signed yet. Shorter than a service may take to start: longer,
/// and the node's program would give up and be started again in a few seconds.
const ASK_AGAIN_IN: Duration = Duration::from_secs(20);

/// Why nothing was issued; becomes a [`Refusal`].
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{}", .0.message)]
    Refused(Refusal),
    #[error(transparent)]
    Authorities(#[from] AuthoritiesError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("an issued certificate can't be read back")]
    Unreadable(#[from] pki::TrustError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Group(#[from] GroupError),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

pub(super) fn refused(code: RefusalCode, message: String) -> Failure {
    Failure::Refused(Refusal { code: code.into(), message, retry_after_ms: 0 })
}

pub(super) fn malformed(error: RequestError) -> Failure {
    refused(RefusalCode::Malformed, format!("{error}: bring the node's program up to date, and try again"))
}

/// The hub's own trouble: the node is told to come back, the log says what it was. One that is put off until its tenant's
/// authority is signed is no denial: it is not in the audit log, which it would fill until then.
pub(super) fn internal(error: &Failure, what: &str) -> Refusal {
    if let Failure::Authorities(error @ AuthoritiesError::AwaitingSignature(_)) = error {
        tracing::warn!("a node could not {what}: {error}");
        return Refusal {
            code: RefusalCode::Busy.into(),
            message: format!("{error}. This node may come again with the same token; a service does by itself"),
            retry_after_ms: u64::try_from(ASK_AGAIN_IN.as_millis()).unwrap_or(u64::MAX),
        };
    }
    tracing::error!(error = %crate::rows::chain(error), "a node could not {what}");
    Refusal {
        code: RefusalCode::Internal.into(),
        message: format!("the hub could not do it now: {error}"),
        retry_after_ms: 5_000,
    }
}
