//! The node's connection to its hub.

mod status;

pub use status::{Counted, Counters, LinkState, LinkStatus, Trouble, TroubleKind};
