//! The hub's data on both engines: who gets in, what is kept, and what is said about it.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod access;
mod alerts;
mod audit;
mod authorities;
mod ca;
mod certificate_policy;
mod commands;
mod enrollment;
mod history;
mod ingest;
mod kafka;
mod kafka_access;
mod keys;
mod logs;
mod loki;
mod offline;
mod operators;
mod recovery;
mod renewal;
mod revocation;
mod rollouts;
mod rotation;
mod setup;
mod state;
mod tenancy;
