//! The centre of a Hyperfactory fleet: enrollment, telemetry, alerts, audit, and who may see them.

pub mod access;
pub mod api;
pub mod audit;
pub mod dashboard;
mod ids;
pub mod schema;
