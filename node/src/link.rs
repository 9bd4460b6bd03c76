//! The node's connection to its hub.

mod status;

pub(crate) use status::clock_state;
pub use status::{Counted, Counters, LinkState, LinkStatus, Trouble, TroubleKind};
