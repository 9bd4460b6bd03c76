//! Fresh databases for tests, one per engine.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::{Database, Engine};

/// Names the variable that holds a PostgreSQL URL whose user may create databases.
pub const POSTGRES_VARIABLE: &str = "HYPERFACTORY_TEST_POSTGRES";

/// A fresh, empty database; gone after [`TestDatabase::remove`].
pub struct TestDatabase {
    /// How to open it (again).
    pub url: String,
    directory: Option<tempfile::TempDir>,
}

impl TestDatabase {
    /// Makes one on `engine`.
    ///
    /// # Panics
    /// When it can't be made: also when `HYPERFACTORY_TEST_POSTGRES` is not set and a PostgreSQL one is asked for,
    /// because a test that skips an engine proves nothing about it.
    #[expect(clippy::expect_used, clippy::panic, reason = "a test without its database has failed")]
    pub async fn create(engine: Engine) -> Self {
        match engine {
            Engine::Sqlite => {
                let directory = tempfile::tempdir().expect("a temporary directory");
                let url = format!("sqlite://{}", directory.path().join("test.db").display());
                Self { url, directory: Some(directory) }
            }
            Engine::Postgres => {
                let Ok(server) = std::env::var(POSTGRES_VARIABLE) else {
                    panic!("set {POSTGRES_VARIABLE} to the URL of a PostgreSQL server, as ./test does");
                };
                let name = format!("test_{}_{}", std::process::id(), unique());
                on_server(&server, format!("CREATE DATABASE {name}")).await.expect("a fresh PostgreSQL database");
                let (base, _) = server.rsplit_once('/').expect("a database name in the URL");
                Self { url: format!("{base}/{name}"), directory: None }
            }
        }
    }

    /// Opens it.
    ///
    /// # Panics
    /// When it can't be opened.
    #[expect(clippy::expect_used, reason = "a test without its database has failed")]
    pub async fn open(&self) -> Database {
        Database::open(&self.url).await.expect("the test database opens")
    }

    /// Drops it, and whoever is still connected.
    pub async fn remove(self) {
        if self.directory.is_none()
            && let Ok(server) = std::env::var(POSTGRES_VARIABLE)
            && let Some((_, name)) = self.url.rsplit_once('/')
        {
            drop(on_server(&server, format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await);
            // Roles belong to the server, not to one of its databases.
            drop(on_server(&server, format!("DROP ROLE IF EXISTS {name}_runtime")).await);
        }
    }
}

async fn on_server(server: &str, statement: String) -> Result<(), sqlx::Error> {
    sqlx::any::install_default_drivers();
    let mut tries = 0;
    loop {
        let mut connection = sqlx::AnyConnection::connect(server).await?;
        let done = connection.execute(AssertSqlSafe(statement.clone())).await;
        connection.close().await?;
        match done {
            // The template database is in use for a moment while another test copies it.
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55006") && tries < 100 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            done => return done.map(drop),
        }
    }
}

fn unique() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// Makes of one `async fn name(database: TestDatabase)` the two tests `name::sqlite` and `name::postgres`.
#[macro_export]
macro_rules! on_both_engines {
    ($($(#[$attribute:meta])* async fn $name:ident($database:ident: TestDatabase) $body:block)+) => {$(
        $(#[$attribute])*
        mod $name {
            use super::*;

            async fn body($database: &$crate::testing::TestDatabase) $body

            #[tokio::test]
            async fn sqlite() {
                let database = $crate::testing::TestDatabase::create($crate::Engine::Sqlite).await;
                body(&database).await;
                database.remove().await;
            }

            #[tokio::test]
            async fn postgres() {
                let database = $crate::testing::TestDatabase::create($crate::Engine::Postgres).await;
                body(&database).await;
                database.remove().await;
            }
        }
    )+};
}
