//! Reports a host and its Compose services to a Hyperfactory hub.

pub mod agent;
pub mod cgroup;
pub mod check;
pub mod command;
pub mod config;
pub mod container;
pub mod docker;
pub mod engine;
pub mod enroll;
mod entry;
pub mod failure;
pub mod host;
pub mod kafka;
mod kept;
pub mod policy;
pub mod recent;
pub mod roster;
pub mod row;
pub mod sample;
pub mod service;
pub mod services;
pub mod shipper;
pub mod stats;
pub mod tail;
