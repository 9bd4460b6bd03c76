//! End-to-end tests, fleet simulator and benchmarks of Hyperfactory.

pub mod report;
pub mod rig;
