//! The contract between nodes and hub: ids, messages, frames, the telemetry codec, and the session, delivery
//! and command state machines. Pure: no I/O, no clock, no runtime.

pub mod command;
pub mod delivery;
pub mod frame;
pub mod id;
pub mod message;
pub mod metrics;
pub mod session;
pub mod shipping;
pub mod tail;
pub mod telemetry;
pub mod version;

pub use id::{CommandId, NodeId, NodeKind, Sequence, SessionId, SpoolEpoch, TailId, TenantId, Timestamp};
