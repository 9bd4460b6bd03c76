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
