//! The centre of a Hyperfactory fleet: enrollment, telemetry, alerts, audit, and who may see them.

pub mod access;
pub mod audit;
mod ids;
pub mod schema;
