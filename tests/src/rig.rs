//! What a whole-system test stands on: the real binaries, a real engine, database, network and browser.
//!
//! `./test` starts the engine and the database and says in the environment where they are; for one test by hand
//! there is `tests/rig/with cargo nextest run …`. Everything a test starts through here ends with its handle.

mod access_lists;
mod agent;
mod binary;
mod bridge;
mod browser;
mod clock;
mod commits;
mod cut_disk;
mod disk;
mod engine;
mod front;
mod hub;
mod kafka_server;
mod netns;
mod port;
mod postgres;
mod process;
mod relay;
mod tansu;
mod usage;
mod wait;

pub use crate::api::{Api, Reply};
pub use access_lists::{AccessEntry, AccessLists};
pub use agent::{Agent, AgentEndpoints};
pub use binary::binary;
pub use bridge::Bridge;
pub use browser::{Browser, Theme, View};
pub use commits::{Commits, Proxy, Side, Trap};
pub use cut_disk::CutDisk;
pub use disk::SmallDisk;
pub use engine::{Engine, Project};
pub use front::Front;
pub use hub::{Endpoints, Hub, HubBuilder};
pub use kafka_server::{kafka_server, kafka_server_that_trusts};
pub use netns::Netns;
pub use port::free_port;
pub use postgres::{Postgres, TestDatabase};
pub use process::Process;
pub use relay::{Relay, Towards};
pub use tansu::Tansu;
pub use usage::Usage;
pub use wait::{SOON, until, until_async};

/// The value that `./test` exports under `name`, or how to get it.
fn exported(name: &str) -> anyhow::Result<String> {
    std::env::var(name).map_err(|_| {
        anyhow::anyhow!(
            "{name} is not set: run the tests by ./test, or one by hand by tests/rig/with cargo nextest run …"
        )
    })
}
