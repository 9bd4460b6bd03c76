//! The tests' own PostgreSQL: one new, empty database for each who asks.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

use super::exported;
use super::process::finish;

/// The server that `./test` started.
#[derive(Debug, Clone)]
pub struct Postgres {
    url: String,
}

impl Postgres {
    /// Finds it by what `./test` exports.
    pub fn from_environment() -> Result<Self> {
        Ok(Self { url: exported("HYPERFACTORY_TEST_POSTGRES")? })
    }

    /// Makes an empty database.
    pub fn database(&self) -> Result<TestDatabase> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rig_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        self.run(&format!("CREATE DATABASE {name}"))?;
        let server = self.url.rsplit_once('/').map_or(self.url.as_str(), |(server, _)| server);
        Ok(TestDatabase { url: format!("{server}/{name}"), name, server: self.clone() })
    }

    fn run(&self, statement: &str) -> Result<()> {
        let arguments = ["--no-psqlrc", "--quiet", "--dbname", &self.url, "--command", statement];
        finish(Command::new("psql").args(arguments)).map(drop)
    }
}

/// One database; dropped, it is removed together with the connections it still has.
#[derive(Debug)]
pub struct TestDatabase {
    url: String,
    name: String,
    server: Postgres,
}

impl TestDatabase {
    /// Its URL, for a hub.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let _ = self.server.run(&format!("DROP DATABASE {} WITH (FORCE)", self.name));
        let _ = self.server.run(&format!("DROP ROLE IF EXISTS {}_runtime", self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_database_is_gone() -> Result<()> {
        let server = Postgres::from_environment()?;
        let database = server.database()?;
        let own = Postgres { url: database.url().to_owned() };
        own.run("CREATE TABLE note (text TEXT)")?;
        drop(database);
        assert!(own.run("SELECT 1").is_err());
        Ok(())
    }
}
