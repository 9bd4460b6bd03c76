//! Whose key is whose: one that was denied, or that another node has or had, gets no certificate.

use pki::RequestedKey;
use protocol::NodeId;
use protocol::message::{Refusal, RefusalCode};
use store::Transaction;
use store::sqlx;

use super::{Failure, refused};

/// How a key stands with this hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nobody's, or the node's own.
    Free,
    /// Somebody else's: two nodes with one key can't be told apart.
    Taken,
}

/// Looks who has or had `key` beside `node`.
///
/// # Errors
/// A refusal when it was denied: its certificate may be gone, but whoever has the key is still the same.
pub(super) async fn standing(
    transaction: &mut Transaction,
    key: &RequestedKey,
    node: Option<NodeId>,
) -> Result<Standing, Failure> {
    let found: i64 = sqlx::query_scalar(
        "SELECT CASE WHEN EXISTS (SELECT 1 FROM revocations WHERE spki_sha256 = $1) THEN 2
                     WHEN EXISTS (SELECT 1 FROM certificates WHERE spki_sha256 = $1 AND COALESCE(node, '') <> $2)
                     THEN 1 ELSE 0 END",
    )
    .bind(key.spki_sha256().to_vec())
    .bind(node.map_or_else(String::new, |node| node.to_string()))
    .fetch_one(&mut **transaction)
    .await?;
    match found {
        0 => Ok(Standing::Free),
        1 => Ok(Standing::Taken),
        _ => {
            let message = "this key belonged to a node that has been revoked: delete the node's state directory, so \
                           that it makes a new one, and enroll again";
            Err(Failure::Refused(Refusal {
                code: RefusalCode::NodeRevoked.into(),
                message: message.into(),
                retry_after_ms: 0,
            }))
        }
    }
}

impl Standing {
    /// Refuses a key that is not free.
    pub(super) fn free(self) -> Result<(), Failure> {
        match self {
            Self::Free => Ok(()),
            Self::Taken => Err(refused(
                RefusalCode::Malformed,
                "another node has this key, or had it: its state was copied. Delete this node's state directory, so that \
                 it makes a key of its own, and enroll it with a new token"
                    .into(),
            )),
        }
    }
}
