//! Services of Compose stacks.

use serde::Serialize;
use utoipa::ToSchema;

use super::{AttentionLevel, Time};

/// How many of a node's services are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct ServiceCounts {
    /// All of them.
    pub total: u32,
    /// Running and not failing a health check.
    pub running: u32,
    /// Failing a health check.
    pub unhealthy: u32,
    /// Being restarted by the engine.
    pub restarting: u32,
    /// Created, paused, exited or dead.
    pub stopped: u32,
}

/// What a service's container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Not one this hub knows.
    Unknown,
    /// Never started.
    Created,
    /// Running.
    Running,
    /// Paused.
    Paused,
    /// Waiting to be started again after it failed.
    Restarting,
    /// Being removed.
    Removing,
    /// Ended.
    Exited,
    /// Could not be ended properly.
    Dead,
}

/// What a service's health check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceHealth {
    /// It has no health check.
    None,
    /// Not decided.
    Starting,
    /// Passing.
    Healthy,
    /// Failing.
    Unhealthy,
}

/// One container of a Compose service.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Service {
    /// Compose project.
    pub stack: String,
    /// Compose service.
    pub service: String,
    /// Container number.
    pub number: u32,
    /// What it is doing.
    pub state: ServiceState,
    /// What its health check says.
    pub health: ServiceHealth,
    /// Last output of a failing health check.
    pub health_output: String,
    /// How much it needs somebody.
    pub attention: AttentionLevel,
    /// Restarts by the engine.
    pub restart_count: u32,
    /// Exit code of the last run that ended.
    pub exit_code: Option<i32>,
    /// The kernel ended the last run for want of memory.
    pub oom_killed: bool,
    /// Image reference.
    pub image: String,
    /// Image digest.
    pub image_digest: String,
    /// When the run began.
    pub started_at: Option<Time>,
    /// When the last run ended.
    pub finished_at: Option<Time>,
    /// When the engine reported the last change.
    pub changed_at: Option<Time>,
    /// CPUs in use (1 is one whole CPU).
    pub cpu: Option<f64>,
    /// Memory in use, bytes.
    pub memory: Option<f64>,
    /// Memory it may use, bytes.
    pub memory_limit: Option<f64>,
}
