//! The door for nodes: admission, enrollment, sessions.

mod accept;
mod courier;
mod pulse;
mod rate;
mod registry;
mod relay;
mod session;

use std::sync::Arc;

use store::Database;

use crate::commands::Commands;
use crate::enrollment::Enrollment;
use crate::logs;
use crate::metrics::Metrics;
use crate::tails::Tails;
use crate::telemetry::ingest::Ingest;
use crate::telemetry::state::Fleet;

pub use accept::Admission;
pub(crate) use accept::accept;
pub(crate) use pulse::{Pulse, pulse};
pub(crate) use rate::network;
pub(crate) use registry::Reserved;
pub use registry::{Directive, Registry};

/// What sessions work with.
pub struct Gateway {
    /// Who may start a handshake, and how fast nodes may enroll.
    pub admission: Admission,
    /// For audit records.
    pub database: Database,
    /// From token to certificate.
    pub enrollment: Enrollment,
    /// The nodes as last seen.
    pub fleet: Fleet,
    /// What nodes are to do.
    pub commands: Commands,
    /// What is read of nodes' logs.
    pub tails: Tails,
    /// Where telemetry goes.
    pub ingest: Ingest,
    /// Where shipped logs go.
    pub logs: logs::Ingest,
    /// Live sessions.
    pub registry: Arc<Registry>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}
