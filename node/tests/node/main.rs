//! A node against a hub on the real protocol, certificates and transport.

mod enroll;
mod hub;
mod session;
