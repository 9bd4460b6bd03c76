//! Which roots nodes say they trust, many in one transaction: a whole fleet says so when it first comes, and when its root
//! is replaced.

use std::time::Duration;

use protocol::NodeId;
use store::group::{Apply, Limits};
use store::sqlx;
use store::{StoreError, Transaction};

/// Over a thousand that wait, a session waits with its word.
pub(super) const LIMITS: Limits =
    Limits { queue: 1024, group: 64, linger: Duration::from_millis(20), company: Duration::ZERO };

/// What a node says.
pub(super) struct Word {
    pub(super) node: NodeId,
    /// The pins of the roots it trusts, one after the other.
    pub(super) roots: Vec<u8>,
    /// Why it did not take those it was sent; empty when it did.
    pub(super) trouble: String,
}

pub(super) struct Writer;

impl Apply for Writer {
    type Operation = Word;
    type Outcome = ();

    async fn apply(&mut self, transaction: &mut Transaction, words: &[&Word]) -> Result<Vec<()>, StoreError> {
        for word in words {
            sqlx::query("UPDATE nodes SET roots = $2, roots_trouble = NULLIF($3, '') WHERE id = $1")
                .bind(word.node.to_string())
                .bind(word.roots.clone())
                .bind(word.trouble.clone())
                .execute(&mut **transaction)
                .await?;
        }
        Ok(vec![(); words.len()])
    }
}
