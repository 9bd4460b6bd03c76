//! Reports a host and its Compose services to a Hyperfactory hub.

pub mod cgroup;
pub mod container;
pub mod docker;
pub mod engine;
pub mod host;
mod kept;
pub mod row;
pub mod sample;
pub mod services;
pub mod stats;
