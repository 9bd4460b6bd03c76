//! What every Hyperfactory node does, agent or bridge: identity, enrollment, session, spool, health.

mod file;
pub mod health;
pub mod link;

pub use file::FileError;
