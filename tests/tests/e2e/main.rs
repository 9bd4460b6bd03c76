//! The whole system on real parts: hub, agents, engine, databases, network, browser.

mod audit;
mod bad_input;
mod bridge;
mod chaos;
mod commands;
mod dashboard;
mod https;
mod kafka_access;
mod kills;
mod logs;
mod main_job;
mod offline;
mod quickstart;
mod recovery;
mod revocation;
mod rollouts;
mod rotation;
mod scripts;
mod service;
mod shipping;
mod socket_proxy;
