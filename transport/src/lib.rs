//! QUIC between Hyperfactory nodes and hub: endpoints, verified peers, frames over streams, back-off.
//!
//! The only crate that names quinn.

pub mod backoff;
pub mod close;
pub mod connection;
pub mod endpoint;
mod knock;
pub mod peer;
mod settings;
pub mod stream;

pub use backoff::Backoff;
pub use close::{CloseCode, Closed};
pub use connection::{Connection, Statistics};
pub use endpoint::{ConnectError, Endpoint, EndpointError, Incoming, ResetKey, ServerLimits};
pub use peer::{Alpn, Peer};
pub use settings::{IDLE_TIMEOUT, KEEP_ALIVE};
pub use stream::{FrameReader, FrameWriter, StreamError};
