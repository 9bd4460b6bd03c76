//! Logs that nodes ship: taken in, kept for a while, and searched.

pub mod ingest;
pub mod search;
mod upkeep;
mod words;
mod writer;

pub use ingest::{Ingest, Intake};
pub use upkeep::{Bounds, Upkeep};
