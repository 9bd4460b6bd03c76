//! What nodes report: committed before it is acknowledged, held as last state, kept as history.

pub mod history;
pub mod ingest;
pub mod state;
