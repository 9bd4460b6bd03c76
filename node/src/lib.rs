//! What every Hyperfactory node does, agent or bridge: identity, enrollment, session, spool, health.

pub mod backlog;
pub mod check;
pub mod clock;
pub mod commands;
pub mod enroll;
pub mod file;
pub mod health;
pub mod identity;
pub mod kafka;
pub mod link;
pub mod tails;
pub mod telemetry;
pub mod token;

pub use backlog::Backlog;
pub use clock::Clock;
pub use commands::Commands;
pub use enroll::{Applicant, EnrollError, enroll, enroll_machine};
pub use file::FileError;
pub use identity::{Identity, IdentityStore};
pub use kafka::{Kafka, KafkaCredential, KafkaError, KafkaStatus, KafkaStore};
pub use link::{Link, LinkOptions, LinkState, LinkStatus};
pub use telemetry::{Change, Recorder};
pub use token::{TokenArguments, TokenReadError};
