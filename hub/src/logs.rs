//! Logs that nodes ship: taken in, kept for a while, and searched.

pub mod ingest;
mod loki;
pub mod search;
mod upkeep;
mod words;
mod writer;

pub use ingest::{Ingest, Intake};
pub use loki::{Endpoint, LokiError, Pusher};
pub use upkeep::{Bounds, Upkeep};

use protocol::NodeId;
use store::{Database, StoreError};

use crate::streams::{self, Coverage};

/// Every spool epoch of a node's shipped logs with what is stored of it, and what is lost and why.
///
/// # Errors
/// When the database does not answer.
pub async fn coverage(database: &Database, node: NodeId) -> Result<Vec<Coverage>, StoreError> {
    streams::coverage(database, &writer::TABLES, node).await
}
