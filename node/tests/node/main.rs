//! A node against a hub on the real protocol, certificates and transport.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod check;
mod enroll;
mod hub;
mod recovery;
mod session;
mod slow_line;
