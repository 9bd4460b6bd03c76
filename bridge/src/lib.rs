//! Carries MQTT messages of a plant to its tenant's Kafka bus, one way, and loses none.
//!
//! A message is acknowledged to its MQTT broker once it is on disk ([`log`]), and let go of once Kafka has confirmed it
//! ([`sink`]). Between the two it has a number; numbers have no hole, and travel in the [`header`]s.

pub mod audit;
pub mod bridge;
pub mod class;
pub mod complaint;
pub mod config;
pub mod connection;
pub mod counters;
pub mod dead_letter;
pub mod dry_run;
pub mod enroll;
pub mod expiry;
pub mod fields;
pub mod filter;
pub mod header;
pub mod host;
pub mod intake;
pub mod kept_routes;
pub mod lanes;
mod latest;
pub mod log;
pub mod mapping;
pub mod pace;
mod plain;
pub mod producer;
pub mod receipts;
pub mod record;
pub mod rehearsal;
pub mod repair;
pub mod report;
pub mod route;
pub mod show;
pub mod sink;
pub mod source;
pub mod sparkplug;
pub mod standing;
pub mod status;
pub mod step;
pub mod subscriptions;
pub mod template;
pub mod unit;
pub mod uns;
pub mod wire;
