//! The control stream's state machines: a message and the time go in, what to do comes out.
//!
//! The node says Hello, the hub answers Welcome or Refusal, and then both talk until one says Goodbye. Neither machine
//! does I/O or reads a clock; whoever drives one sends what it is given and calls `tick` at `deadline`.

mod clock;
mod hub;
mod node;

use std::time::Duration;

pub use clock::{ClockReading, SKEW};
pub use hub::{HubOutput, HubSession, NodeHello};
pub use node::{Granted, Held, NodeOutput, NodeSession, Welcomed};

/// How long the hub waits for a Hello, and the node for the answer.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// How long the node waits for a certificate before it may ask again.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(30);
/// Longest that one Pace makes a node send every sample at once.
pub const MAX_LIVE: Duration = Duration::from_secs(600);

/// A break of the control stream's rules. The session ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The peer said nothing in time.
    #[error("no {awaited} came within {} s", deadline.as_secs())]
    Deadline {
        /// The message waited for.
        awaited: &'static str,
        /// How long.
        deadline: Duration,
    },
    /// A message at the wrong time.
    #[error("{found} came where {expected} was due")]
    Unexpected {
        /// The message found.
        found: &'static str,
        /// What should have come.
        expected: &'static str,
    },
    /// A message lacks what it must have.
    #[error("{message} is malformed: {fault}")]
    Malformed {
        /// The message.
        message: &'static str,
        /// What is wrong with it.
        fault: &'static str,
    },
}
