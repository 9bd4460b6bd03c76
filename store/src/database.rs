//! The handle: readers in parallel, writers one at a time where the engine has one writer.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::any::{AnyArguments, AnyConnectOptions, AnyPoolOptions};
use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Any, AnyConnection, AnyPool, AssertSqlSafe, ConnectOptions, Connection, Executor};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{StoreError, is_away, is_damage};
use crate::long::{self, LongReaders};
use crate::migrate::{self, Migration};
use crate::tenancy;

/// An open transaction; dropped without a commit, it is rolled back.
pub type Transaction = sqlx::Transaction<'static, sqlx::Any>;

/// Longest wait for a connection, or for the one writer. Over it, callers get [`StoreError::Unavailable`].
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(15);
/// Readers of a SQLite database: each is a thread with its own page cache.
const SQLITE_READERS: u32 = 4;
/// Connections to a PostgreSQL server, well below its default of 100 with several hubs.
const POSTGRES_READERS: u32 = 8;
const POSTGRES_WRITERS: u32 = 6;
/// A connection to a server is looked at when it was not used for so long.
pub(crate) const RESTED: Duration = Duration::from_secs(1);
/// Between two checkpoints of a SQLite database.
const CHECKPOINTS: Duration = Duration::from_secs(2);

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
pub struct Database {
    inner: Arc<Inner>,
    /// The only tenant whose rows its transactions see and write.
    tenant: Option<Arc<str>>,
}

struct Inner {
    engine: Engine,
    location: String,
    options: AnyConnectOptions,
    readers: AnyPool,
    writers: AnyPool,
    /// For what may take long: nothing else waits for these.
    long_readers: LongReaders,
    migrated: Migrated,
    /// Transactions that are being begun.
    begins: TaskTracker,
}

/// When this program last migrated. Connections from before may lack a role that came with it: they are replaced.
type Migrated = Arc<Mutex<Option<Instant>>>;

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
        Ok(Self { inner: Arc::new(inner), tenant: None })
    }

    /// The same database for one tenant alone: on PostgreSQL, its transactions see and write that tenant's rows and
    /// nothing else, whatever their statements say. With `None`, or when it is bound to a tenant already, as it is.
    /// SQLite has no such means.
    #[must_use]
    pub fn within(&self, tenant: Option<&str>) -> Self {
        Self { inner: Arc::clone(&self.inner), tenant: self.tenant.clone().or_else(|| tenant.map(Arc::from)) }
    }

    /// The tenant this handle is bound to, for statements that say so as well.
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// The engine in use.
    pub fn engine(&self) -> Engine {
        self.inner.engine
    }

    /// Where the database is, fit for a log: without a password.
    pub fn location(&self) -> &str {
        &self.inner.location
    }

    /// Brings the tables to the newest of `migrations`, in one transaction.
    ///
    /// # Errors
    /// [`crate::MigrateError`] when the database is newer than this binary or a migration was altered since.
    pub async fn migrate(&self, migrations: &[Migration]) -> Result<(), StoreError> {
        migrate::run(self, migrations).await
    }

    /// Connections for reading; a statement sent to one must not write. They see all tenants' rows: what is asked for
    /// somebody who may be bound to a tenant goes through [`Database::read`].
    pub fn reader(&self) -> &AnyPool {
        &self.inner.readers
    }

    /// A connection for reading, as [`Database::within`] has it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when none is to be had within 15 s.
    pub async fn read(&self) -> Result<Reading, StoreError> {
        Ok(match (&self.tenant, self.inner.engine) {
            (Some(_), Engine::Postgres) => Reading(Means::Transaction(self.begin_read().await?)),
            _ => Reading(Means::Connection(self.inner.readers.acquire().await?)),
        })
    }

    pub(crate) fn long_readers(&self) -> &LongReaders {
        &self.inner.long_readers
    }

    /// Starts a write transaction, waiting for the one writer where the engine has one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when none is to be had within 15 s.
    pub async fn begin_write(&self) -> Result<Transaction, StoreError> {
        // A deferred SQLite transaction that reads first can't be made a writer's later (SQLITE_BUSY_SNAPSHOT).
        let statement = match self.inner.engine {
            Engine::Sqlite => "BEGIN IMMEDIATE",
            Engine::Postgres => "BEGIN",
        };
        // Should the server have gone only just now, all connections are gone, and are replaced one by one.
        let mut gone = 0;
        loop {
            match self.begin(&self.inner.writers, statement).await {
                Err(error) if self.inner.engine == Engine::Postgres && is_away(&error) && gone < POSTGRES_WRITERS => {
                    gone += 1;
                }
                begun => return Ok(begun?),
            }
        }
    }

    /// Has one statement be a transaction of its own, and gives how many rows it wrote. On PostgreSQL that is one way there and
    /// back, where no tenant is to be said first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when no connection is to be had within 15 s. When the server went away meanwhile, nobody
    /// knows whether it was committed: as with a commit.
    pub async fn write(&self, statement: Query<'_, Any, AnyArguments>) -> Result<u64, StoreError> {
        if self.tenant.is_none() {
            return Ok(statement.execute(&self.inner.writers).await?.rows_affected());
        }
        let mut transaction = self.begin_write().await?;
        let written = statement.execute(&mut *transaction).await?.rows_affected();
        transaction.commit().await?;
        Ok(written)
    }

    /// Starts a transaction whose statements all see the database as it is now, whatever is written meanwhile. Hold
    /// it for moments: a SQLite log can't be cut short under it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when no connection is to be had within 15 s.
    pub async fn begin_read(&self) -> Result<Transaction, StoreError> {
        let statement = match self.inner.engine {
            Engine::Sqlite => "BEGIN",
            Engine::Postgres => POSTGRES_READ,
        };
        Ok(self.begin(&self.inner.readers, statement).await?)
    }

    pub(crate) async fn begin(&self, pool: &AnyPool, statement: &'static str) -> Result<Transaction, sqlx::Error> {
        let pool = pool.clone();
        let statement = match (&self.tenant, self.inner.engine) {
            // One message to the server, so that narrowing costs no way there and back.
            (Some(tenant), Engine::Postgres) => format!("{statement}{}", tenancy::narrowed(tenant)),
            _ => statement.to_owned(),
        };
        // In a task, which goes on when the caller goes away: else PostgreSQL would be in a transaction that the driver knows
        // nothing of, and whoever had the connection next would read the past, or as another tenant.
        let begun = self.inner.begins.spawn(async move { pool.begin_with(AssertSqlSafe(statement)).await });
        begun.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
    }

    /// A connection of its own for migrations: as whoever signed in, who may own the tables.
    pub(crate) async fn connect(&self) -> Result<AnyConnection, StoreError> {
        Ok(AnyConnection::connect_with(&self.inner.options).await?)
    }

    /// Tables and roles are as they should be from now on.
    pub(crate) fn migrated(&self) {
        *self.inner.migrated.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Keeps SQLite's log short until `stop`: what is committed goes into the file while the writer goes on, so that no
    /// commit has to wait for it. PostgreSQL does so by itself.
    pub async fn keep(self, stop: CancellationToken) {
        if self.inner.engine == Engine::Postgres {
            return;
        }
        while stop.run_until_cancelled(tokio::time::sleep(CHECKPOINTS)).await.is_some() {
            // One that is under way is not left: it would go on, and nobody would have its connection.
            if let Err(error) = self.inner.readers.execute("PRAGMA wal_checkpoint(PASSIVE)").await {
                tracing::warn!(%error, "SQLite's log did not go into its file; it will with the next commits");
            }
        }
    }

    /// Ends all connections, waiting for those in use.
    pub async fn close(&self) {
        self.inner.readers.close().await;
        match &self.inner.long_readers {
            LongReaders::Sqlite(pool) => pool.close().await,
            LongReaders::Postgres(pool) => pool.close().await,
        }
        self.inner.writers.close().await;
        self.inner.begins.close();
        self.inner.begins.wait().await;
    }
}

/// A connection for reading: dereferences to one that executes statements.
pub struct Reading(Means);

enum Means {
    Connection(PoolConnection<Any>),
    /// The only way to bind a connection for a while.
    Transaction(Transaction),
}

impl Deref for Reading {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        match &self.0 {
            Means::Connection(connection) => connection,
            Means::Transaction(transaction) => transaction,
        }
    }
}

impl DerefMut for Reading {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        match &mut self.0 {
            Means::Connection(connection) => connection,
            Means::Transaction(transaction) => transaction,
        }
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Database").field(&self.inner.location).finish()
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
    let migrated = Migrated::default();
    let writers = pool(1, &migrated, Look::InTransaction)
        .after_connect(|connection, _| Box::pin(async { connection.execute(SQLITE_WRITER).await.map(drop) }))
        .connect_with(options.clone())
        .await
        .map_err(failed)?;
    let readers = pool(SQLITE_READERS, &migrated, Look::InTransaction)
        .after_connect(|connection, _| Box::pin(async { connection.execute(SQLITE_READER).await.map(drop) }))
        .connect_with(options.clone())
        .await
        .map_err(failed)?;
    let long_readers = LongReaders::sqlite(SqliteConnectOptions::new().filename(path), ACQUIRE_TIMEOUT);
    Ok(Inner {
        engine: Engine::Sqlite,
        location,
        options,
        readers,
        writers,
        long_readers,
        migrated,
        begins: TaskTracker::new(),
    })
}

/// A commit is on the disk when it returns; a crash costs nothing that was answered. The log goes into the file beside the
/// writer ([`Database::keep`]); where nobody does that, or not often enough, its commits do when it holds 16 MiB.
const SQLITE_WRITER: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
    PRAGMA busy_timeout = 10000; PRAGMA journal_size_limit = 67108864; PRAGMA wal_autocheckpoint = 4096";
/// The system keeps the file in memory once; readers need not keep it four times more.
const SQLITE_READER: &str = "PRAGMA query_only = ON; PRAGMA busy_timeout = 10000; PRAGMA cache_size = -256";

async fn open_postgres(url: &str) -> Result<Inner, StoreError> {
    let location = without_password(url);
    let failed = |source| StoreError::Open {
        location: location.clone(),
        advice: "see that the server runs, and that user, password and database name are right",
        source,
    };
    let options = url.parse::<AnyConnectOptions>().map_err(failed)?.disable_statement_logging();
    let migrated = Migrated::default();
    let writers = pool(POSTGRES_WRITERS, &migrated, Look::Rested)
        .after_connect(|connection, _| Box::pin(async { connection.execute(tenancy::CONNECTED).await.map(drop) }))
        .connect_with(options.clone())
        .await
        .map_err(failed)?;
    let reading = |connections| {
        pool(connections, &migrated, Look::Rested).after_connect(|connection, _| {
            Box::pin(async {
                connection.execute(tenancy::CONNECTED).await?;
                connection.execute(POSTGRES_READER).await.map(drop)
            })
        })
    };
    let readers = reading(POSTGRES_READERS).connect_with(options.clone()).await.map_err(failed)?;
    let long_readers = LongReaders::Postgres(reading(long::READERS).connect_lazy_with(options.clone()));
    Ok(Inner {
        engine: Engine::Postgres,
        location,
        options,
        readers,
        writers,
        long_readers,
        migrated,
        begins: TaskTracker::new(),
    })
}

/// Sees the database as it is now, whatever is written meanwhile.
pub(crate) const POSTGRES_READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
const POSTGRES_READER: &str = "SET default_transaction_read_only = on";

/// How a pool looks at a connection before it gives it away; one that is not good is replaced.
#[derive(Clone, Copy)]
enum Look {
    /// Whether its server is still there, if it was not used for a while: somebody asked only moments ago.
    Rested,
    /// Whether it is in no transaction. SQLite ends one by itself when the disk is full; the driver then fails to end it again
    /// and counts it as open for ever.
    InTransaction,
}

fn pool(connections: u32, migrated: &Migrated, look: Look) -> AnyPoolOptions {
    let migrated = Arc::clone(migrated);
    AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .before_acquire(move |connection, metadata| {
            let since = migrated.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed());
            let current = since.is_none_or(|since| metadata.age < since);
            Box::pin(async move { Ok(current && look.is_good(connection, metadata.idle_for).await?) })
        })
        .idle_timeout(None)
        .max_lifetime(None)
}

impl Look {
    async fn is_good(self, connection: &mut AnyConnection, idle_for: Duration) -> Result<bool, sqlx::Error> {
        match self {
            Self::Rested => {
                if idle_for >= RESTED {
                    connection.ping().await?;
                }
                Ok(true)
            }
            Self::InTransaction => {
                if connection.is_in_transaction() {
                    // The rollback of a dropped transaction may still be on its way.
                    connection.ping().await?;
                }
                Ok(!connection.is_in_transaction())
            }
        }
    }
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
