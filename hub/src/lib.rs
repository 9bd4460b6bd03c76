//! The centre of a Hyperfactory fleet: enrollment, telemetry, alerts, audit, and who may see them.

pub mod access;
pub mod alerts;
pub mod api;
pub mod audit;
pub mod authorities;
pub mod ca;
pub mod certificate_policy;
pub mod check;
pub mod config;
pub mod dashboard;
pub mod enrollment;
pub mod expiry;
pub mod gateway;
pub mod hub;
pub mod keys;
pub mod metrics;
pub mod quickstart;
pub mod revocation_lists;
mod rows;
pub mod schema;
pub mod service;
pub mod telemetry;
pub mod tenants;
pub mod web;
