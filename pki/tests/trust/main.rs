//! What the fleet's certificates say, who accepts them, and what a handshake makes of them.

#![expect(clippy::expect_used, reason = "a test's helpers fail as its assertions do")]

mod certificates;
mod chains;
mod fleet;
mod handshake;
mod hostile;
mod matrix;
mod outside;
mod roots;
mod web;
