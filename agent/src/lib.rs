//! Reports a host and its Compose services to a Hyperfactory hub.

pub mod cgroup;
pub mod container;
pub mod host;
mod kept;
pub mod services;
