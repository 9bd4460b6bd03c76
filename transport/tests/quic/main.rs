//! Hub and node over loopback: who gets in, what crosses, how it ends.

#![expect(clippy::expect_used, reason = "a test's helpers fail as its assertions do")]

mod admission;
mod identity;
mod lifetime;
mod restart;
mod rig;
mod streams;
