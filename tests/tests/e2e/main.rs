//! The whole system on real parts: hub, agents, engine, databases, network, browser.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod bad_input;
mod chaos;
mod dashboard;
mod main_job;
mod quickstart;
