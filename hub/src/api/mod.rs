//! The REST API.
pub mod resource;
pub mod select;
