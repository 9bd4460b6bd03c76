//! The handle: readers in parallel, writers one at a time where the engine has one writer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{AnyConnection, AnyPool, ConnectOptions, Connection, Executor};

use crate::error::{StoreError, is_damage};
use crate::migrate::{self, Migration};

/// An open transaction; dropped without a commit, it is rolled back.
pub type Transaction = sqlx::Transaction<'static, sqlx::Any>;

/// Longest wait for a connection, or for the one writer. Over it, callers get [`StoreError::Unavailable`].
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(15);
/// Readers of a SQLite database: each is a thread with its own page cache.
const SQLITE_READERS: u32 = 4;
/// Connections to a PostgreSQL server, well below its default of 100 with several hubs.
const POSTGRES_READERS: u32 = 8;
const POSTGRES_WRITERS: u32 = 6;

/// Which engine stands behind a [`Database`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// A file, in this process.
    Sqlite,
    /// A server.
    Postgres,
}

/// A database, open for reading and writing. Clones share its connections.
#[derive(Clone)]
pub struct Database(Arc<Inner>);

struct Inner {
    engine: Engine,
    location: String,
    readers: AnyPool,
    writers: AnyPool,
}

impl Database {
    /// Opens `sqlite:///path/to/file` (made when missing, readable by its owner alone) or `postgres://…`.
    ///
    /// # Errors
    /// [`StoreError::Url`] for any other URL, [`StoreError::Open`] when the file or server refuses.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let inner = if let Some(path) = sqlite_path(url) {
            open_sqlite(path).await?
        } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            open_postgres(url).await?
        } else {
            return Err(StoreError::Url { url: without_password(url) });
        };
        Ok(Self(Arc::new(inner)))
    }

    /// The engine in use.
    pub fn engine(&self) -> Engine {
        self.0.engine
    }

    /// Where the database is, fit for a log: without a password.
    pub fn location(&self) -> &str {
        &self.0.location
    }

    /// Brings the tables to the newest of `migrations`, in one transaction.
    ///
    /// # Errors
    /// [`crate::MigrateError`] when the database is newer than this binary or a migration was altered since.
    pub async fn migrate(&self, migrations: &[Migration]) -> Result<(), StoreError> {
        migrate::run(self, migrations).await
    }

    /// Connections for reading; a statement sent to one must not write.
    pub fn reader(&self) -> &AnyPool {
        &self.0.readers
    }

    /// Starts a write transaction, waiting for the one writer where the engine has one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when none is to be had within 15 s.
    pub async fn begin_write(&self) -> Result<Transaction, StoreError> {
        // A deferred SQLite transaction that reads first can't be made a writer's later (SQLITE_BUSY_SNAPSHOT).
        let statement = match self.0.engine {
            Engine::Sqlite => "BEGIN IMMEDIATE",
            Engine::Postgres => "BEGIN",
        };
        Ok(self.0.writers.begin_with(statement).await?)
    }

    /// Starts a transaction whose statements all see the database as it is now, whatever is written meanwhile. Hold
    /// it for moments: a SQLite log can't be cut short under it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when no connection is to be had within 15 s.
    pub async fn begin_read(&self) -> Result<Transaction, StoreError> {
        let statement = match self.0.engine {
            Engine::Sqlite => "BEGIN",
            Engine::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        Ok(self.0.readers.begin_with(statement).await?)
    }

    /// Ends all connections, waiting for those in use.
    pub async fn close(&self) {
        self.0.readers.close().await;
        self.0.writers.close().await;
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Database").field(&self.0.location).finish()
    }
}

async fn open_sqlite(path: &Path) -> Result<Inner, StoreError> {
    let location = path.display().to_string();
    let failed = |source: sqlx::Error| StoreError::Open {
        location: location.clone(),
        advice: if is_damage(&source) {
            "it is damaged, or is no SQLite database: keep a copy of it, and restore it from its backup"
        } else {
            "see that its directory exists, that this user may write there, and that the disk has room"
        },
        source,
    };
    create_private(path).map_err(|error| failed(error.into()))?;
    let url = format!("sqlite://{}?mode=rw", percent_encoded(path));
    let options = url.parse::<AnyConnectOptions>().map_err(failed)?.disable_statement_logging();
    // A pool goes on trying for its whole time-out, and then tells of that alone.
    let mut probe = AnyConnection::connect_with(&options).await.map_err(failed)?;
    probe.execute(SQLITE_WRITER).await.map_err(failed)?;
    probe.close().await.map_err(failed)?;
    let writers = pool(1, false)
        .after_connect(|connection, _| Box::pin(async { connection.execute(SQLITE_WRITER).await.map(drop) }))
        .connect_with(options.clone())
        .await
        .map_err(failed)?;
    let readers = pool(SQLITE_READERS, false)
        .after_connect(|connection, _| Box::pin(async { connection.execute(SQLITE_READER).await.map(drop) }))
        .connect_with(options)
        .await
        .map_err(failed)?;
    Ok(Inner { engine: Engine::Sqlite, location, readers, writers })
}

/// A commit is on the disk when it returns; a crash costs nothing that was answered.
const SQLITE_WRITER: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
    PRAGMA busy_timeout = 10000; PRAGMA journal_size_limit = 67108864";
const SQLITE_READER: &str = "PRAGMA query_only = ON; PRAGMA busy_timeout = 10000";

async fn open_postgres(url: &str) -> Result<Inner, StoreError> {
    let location = without_password(url);
    let failed = |source| StoreError::Open {
        location: location.clone(),
        advice: "see that the server runs, and that user, password and database name are right",
        source,
    };
    let options = url.parse::<AnyConnectOptions>().map_err(failed)?.disable_statement_logging();
    let writers = pool(POSTGRES_WRITERS, true).connect_with(options.clone()).await.map_err(failed)?;
    let readers = pool(POSTGRES_READERS, true)
        .after_connect(|connection, _| Box::pin(async { connection.execute(POSTGRES_READER).await.map(drop) }))
        .connect_with(options)
        .await
        .map_err(failed)?;
    Ok(Inner { engine: Engine::Postgres, location, readers, writers })
}

const POSTGRES_READER: &str = "SET default_transaction_read_only = on";

/// Connections are tested before use where a server can have gone away in between.
fn pool(connections: u32, test: bool) -> AnyPoolOptions {
    AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(test)
        .before_acquire(|connection, _| Box::pin(async { at_rest(connection).await }))
        .idle_timeout(None)
        .max_lifetime(None)
}

/// Whether a connection is in no transaction. SQLite ends a transaction by itself when the disk is full, the driver
/// then fails to end it again and counts it as open for ever: such a connection is replaced.
async fn at_rest(connection: &mut AnyConnection) -> Result<bool, sqlx::Error> {
    if connection.is_in_transaction() {
        // The rollback of a dropped transaction may still be on its way.
        connection.ping().await?;
    }
    Ok(!connection.is_in_transaction())
}

fn sqlite_path(url: &str) -> Option<&Path> {
    let path = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:"))?;
    (!path.is_empty() && !path.contains('?')).then(|| Path::new(path))
}

/// The file holds hashes of secrets and sealed keys: nobody but its owner need read it.
fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

fn percent_encoded(path: &Path) -> String {
    let mut out = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => out.push(*byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// `postgres://user:secret@host/name` without `:secret`, and without parameters (one may be `password=`).
fn without_password(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    match rest.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}@{host}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        let cases = [
            ("postgres://hub:s3cret@db/fleet", "postgres://hub@db/fleet"),
            ("postgres://hub:p@ss@db/fleet?password=x", "postgres://hub@db/fleet"),
            ("postgres://db/fleet", "postgres://db/fleet"),
            ("mysql://u:p@h/x", "mysql://u@h/x"),
        ];
        for (url, shown) in cases {
            assert_eq!(without_password(url), shown);
        }
    }

    #[test]
    fn sqlite_urls_name_a_file() {
        assert_eq!(sqlite_path("sqlite:///var/lib/hub.db"), Some(Path::new("/var/lib/hub.db")));
        assert_eq!(sqlite_path("sqlite:hub.db"), Some(Path::new("hub.db")));
        assert_eq!(sqlite_path("sqlite://"), None);
        assert_eq!(sqlite_path("postgres://db/fleet"), None);
    }
}
