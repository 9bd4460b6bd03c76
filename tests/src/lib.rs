//! End-to-end tests, fleet simulator and benchmarks of Hyperfactory.

pub mod api;
pub mod chaos;
pub mod drill;
pub mod fleet;
pub mod ordeal;
pub mod report;
pub mod rig;
