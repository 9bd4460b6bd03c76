//! A read that may take long: its engine ends it when its time is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::any::AnyRow;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use sqlx::{Any, AnyPool, AssertSqlSafe, ConnectOptions, Encode, IntoArguments, Sqlite, Type};
use tokio::time::timeout_at;

use crate::database::POSTGRES_READ;
use crate::{Database, StoreError};

/// Long reads at once; whoever comes then waits, until its deadline.
pub(crate) const READERS: u32 = 2;
/// Steps of SQLite's machine between two looks at the clock: microseconds, unless the disk is slow.
const LOOK_AFTER: i32 = 1_000;
/// What engines say of a statement that was ended: SQLITE_INTERRUPT, and query_canceled (PostgreSQL manual, appendix A).
const ENDED: [&str; 2] = ["9", "57014"];

/// Connections of long reads. They are their own, so that nothing else waits for them, and opened when they are wanted.
pub(crate) enum LongReaders {
    /// A statement of these can be ended.
    Sqlite(SqlitePool),
    /// The server ends statements itself.
    Postgres(AnyPool),
}

impl LongReaders {
    pub(crate) fn sqlite(options: SqliteConnectOptions, wait: Duration) -> Self {
        let options = options.busy_timeout(wait).pragma("query_only", "ON").pragma("cache_size", "-256");
        let pool = SqlitePoolOptions::new().max_connections(READERS).acquire_timeout(wait);
        Self::Sqlite(pool.connect_lazy_with(options.disable_statement_logging()))
    }
}

impl Database {
    /// The rows of a statement that may take long, its values bound as text; `None` when it was ended at `deadline`. SQLite
    /// ends it as soon as nobody waits for it any more, too; PostgreSQL goes on until then.
    ///
    /// # Errors
    /// When the database does not answer, or does not understand.
    pub async fn read_until(
        &self,
        sql: String,
        values: Vec<String>,
        deadline: Instant,
    ) -> Result<Option<Vec<AnyRow>>, StoreError> {
        if deadline <= Instant::now() {
            return Ok(None);
        }
        let rows = match self.long_readers() {
            LongReaders::Sqlite(pool) => sqlite(pool, sql, values, deadline).await,
            LongReaders::Postgres(pool) => self.postgres(pool, sql, values, deadline).await,
        };
        match rows {
            Err(StoreError::Statement(error) | StoreError::Unavailable(error)) if is_ended(&error) => Ok(None),
            rows => rows,
        }
    }

    async fn postgres(
        &self,
        pool: &AnyPool,
        sql: String,
        values: Vec<String>,
        deadline: Instant,
    ) -> Result<Option<Vec<AnyRow>>, StoreError> {
        let begun = timeout_at(deadline.into(), self.begin(pool, POSTGRES_READ)).await;
        let Ok(begun) = begun else { return Ok(None) };
        let mut transaction = begun?;
        let left = deadline.saturating_duration_since(Instant::now());
        // 0 would be no bound.
        let bound = format!("SET LOCAL statement_timeout = {}", left.as_millis().max(1));
        sqlx::query(AssertSqlSafe(bound)).execute(&mut *transaction).await?;
        Ok(Some(bound_to::<Any>(sql, values).fetch_all(&mut *transaction).await?))
    }
}

async fn sqlite(
    pool: &SqlitePool,
    sql: String,
    values: Vec<String>,
    deadline: Instant,
) -> Result<Option<Vec<AnyRow>>, StoreError> {
    let Ok(connection) = timeout_at(deadline.into(), pool.acquire()).await else { return Ok(None) };
    let mut connection = connection?;
    // Gone with this future, whoever drops it.
    let waits = Arc::new(());
    let waited_for = Arc::downgrade(&waits);
    let goes_on = move || waited_for.strong_count() > 0 && Instant::now() < deadline;
    connection.lock_handle().await?.set_progress_handler(LOOK_AFTER, goes_on);
    let rows = bound_to::<Sqlite>(sql, values).fetch_all(&mut *connection).await?;
    drop(waits);
    Ok(Some(rows.iter().map(AnyRow::try_from).collect::<Result<_, sqlx::Error>>()?))
}

fn bound_to<D: sqlx::Database>(sql: String, values: Vec<String>) -> Query<'static, D, D::Arguments>
where
    String: Encode<'static, D> + Type<D>,
    D::Arguments: IntoArguments<D>,
{
    values.into_iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, value| query.bind(value))
}

fn is_ended(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| ENDED.contains(&&*code))
}
