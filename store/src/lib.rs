//! One database handle over two engines, SQLite and PostgreSQL, with one SQL text wherever both take it.

mod database;
mod error;
pub mod group;
mod long;
mod migrate;
mod tenancy;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use database::{Database, Engine, Reading, Transaction};
pub use error::StoreError;
pub use migrate::{MigrateError, Migration};
/// The query functions, under one version for everybody who holds a [`Database`].
pub use sqlx;
pub use tenancy::Guard;

#[cfg(test)]
mod tests;
