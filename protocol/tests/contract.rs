//! The contract as a peer sees it: bytes on the wire, real samples, hostile input, and both ends against each other.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

extern crate hyperfactory_protocol as protocol;

#[path = "../fixtures/host.rs"]
mod host;

#[path = "contract/codec.rs"]
mod codec;
#[path = "contract/command.rs"]
mod command;
#[path = "contract/delivery.rs"]
mod delivery;
#[path = "contract/golden.rs"]
mod golden;
#[path = "contract/hostile.rs"]
mod hostile;
#[path = "contract/peers.rs"]
mod peers;
#[path = "contract/session.rs"]
mod session;
