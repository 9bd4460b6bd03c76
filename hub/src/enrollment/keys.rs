//! Whose key is whose: one that was denied, or that another node has or had, gets no certificate.

use pki::RequestedKey;
use protocol::NodeId;
use protocol::message::RefusalCode;
use store::Transaction;
use store::sqlx::{self, AssertSqlSafe};

use super::{Failure, refused};

/// How a key stands with this hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nobody's, or the node's own.
    Free,
    /// Somebody else's: two nodes with one key can't be told apart.
    Taken,
}

/// An expression that gives a key's standing: `$1` is the SHA-256 of it, `$2` the node that comes with it, or nothing.
pub(super) const STANDING: &str = "CASE WHEN EXISTS (SELECT 1 FROM revocations WHERE spki_sha256 = $1) THEN 2
    WHEN EXISTS (SELECT 1 FROM certificates WHERE spki_sha256 = $1 AND COALESCE(node, '') <> $2) THEN 1 ELSE 0 END";

/// Refuses a key that was denied, or that another than `node` has or had.
pub(super) async fn be_free(transaction: &mut Transaction, key: &RequestedKey, node: NodeId) -> Result<(), Failure> {
    let found: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {STANDING}")))
        .bind(key.spki_sha256().to_vec())
        .bind(node.to_string())
        .fetch_one(&mut **transaction)
        .await?;
    Standing::of(found)?.free()
}

impl Standing {
    /// What [`STANDING`] gave.
    ///
    /// # Errors
    /// A refusal when the key was denied: its certificate may be gone, but whoever has the key is still the same.
    pub(super) fn of(found: i64) -> Result<Self, Failure> {
        match found {
            0 => Ok(Self::Free),
            1 => Ok(Self::Taken),
            _ => Err(refused(
                RefusalCode::NodeRevoked,
                "this key belonged to a node that has been revoked: delete the node's state directory, so that it makes a \
                 new one, and enroll again"
                    .into(),
            )),
        }
    }

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
