//! A host's figures.

use serde::Serialize;
use utoipa::ToSchema;

use super::Time;

/// An amount of something bounded, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Used {
    /// Bytes in use.
    pub used: f64,
    /// Bytes there are.
    pub total: f64,
}

impl Used {
    /// The share in use, from 0 to 1.
    pub fn ratio(self) -> f64 {
        if self.total > 0.0 { (self.used / self.total).clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// One file system.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Disk {
    /// Where it is mounted.
    pub mount: String,
    /// How full it is.
    #[serde(flatten)]
    pub space: Used,
}

/// The newest figures of a node's host; absent ones were not measured.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Figures {
    /// When they were measured, by the node's clock.
    pub at: Option<Time>,
    /// Share of all CPUs that is busy, from 0 to 1.
    pub cpu: Option<f64>,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: Option<[f64; 3]>,
    /// Memory.
    pub memory: Option<Used>,
    /// Swap, when there is any.
    pub swap: Option<Used>,
    /// File systems, fullest first.
    pub disks: Vec<Disk>,
    /// Seconds since the host started.
    pub uptime_seconds: Option<f64>,
    /// The agent's own memory, bytes.
    pub agent_memory: Option<f64>,
}
