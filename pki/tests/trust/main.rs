//! What the fleet's certificates say, who accepts them, and what a handshake makes of them.

#![expect(clippy::type_complexity, reason = "tables of names, changes and verdicts read best as they are written")]
#![expect(clippy::large_enum_variant, reason = "a handful of keys, for as long as a test runs")]
#![expect(clippy::expect_used, reason = "a test's helpers fail as its assertions do")]

mod certificates;
mod chains;
mod der;
mod draft;
mod fleet;
mod handshake;
mod hostile;
mod judges;
mod lint;
mod lists;
mod matrix;
mod mutations;
mod outside;
mod roots;
mod verdicts;
mod web;
