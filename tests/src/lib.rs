//! End-to-end tests, fleet simulator and benchmarks of Hyperfactory.

pub mod rig;
