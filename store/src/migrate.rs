//! Migrations: numbered, checksummed, applied once, and refused when they don't fit.

use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::{AnyConnection, AssertSqlSafe, Connection, Executor, Row};

use crate::database::{Database, Engine};
use crate::error::StoreError;
use crate::tenancy;

/// One step of the tables. Never altered once released: the next step changes what this one made.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Position; the first is 1, without holes.
    pub version: i64,
    /// A few words, for messages.
    pub name: &'static str,
    /// Statements in the dialect both engines share, with these tokens for the rest: `{BLOB}` a byte string,
    /// `{ID}` a generated 64-bit primary key, `{CLUSTERED}` after a table stored in its primary key's order;
    /// what stands between `{SQLITE}` or `{POSTGRES}` and `{END}` is for that engine alone.
    pub sql: &'static str,
}

/// The tables in the database do not fit this binary.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A newer binary has been here.
    #[error(
        "the database is at schema version {found}, this binary knows {known}: a newer hub has used it; \
         run that version or newer, or restore the backup made before the upgrade"
    )]
    Newer {
        /// Version in the database.
        found: i64,
        /// Newest version of this binary.
        known: i64,
    },
    /// A migration's text is not what was applied.
    #[error(
        "schema version {version} ({name}) was applied with another text than this binary has: the binary was \
         not built from a release, or the database is not a hub's; run the hub that made it"
    )]
    Altered {
        /// Its version.
        version: i64,
        /// Its name.
        name: String,
    },
}

/// Serializes hubs that start at the same time on one PostgreSQL; "hyperfac" in ASCII.
const LOCK: i64 = 0x6879_7065_7266_6163;

pub(crate) async fn run(database: &Database, migrations: &[Migration]) -> Result<(), StoreError> {
    if database.engine() == Engine::Sqlite {
        let mut transaction = database.begin_write().await?;
        bring_forward(&mut transaction, migrations, Engine::Sqlite).await?;
        return Ok(transaction.commit().await?);
    }
    // Not one of the pool's: those work as a role that may change no tables.
    let mut connection = database.connect().await?;
    let mut transaction = connection.begin().await?;
    transaction.execute(tenancy::MIGRATING).await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    bring_forward(&mut transaction, migrations, Engine::Postgres).await?;
    tenancy::secure(&mut transaction).await?;
    transaction.commit().await?;
    connection.close().await?;
    database.migrated();
    Ok(())
}

async fn bring_forward(
    connection: &mut AnyConnection,
    migrations: &[Migration],
    engine: Engine,
) -> Result<(), StoreError> {
    // Not "IF NOT EXISTS", which takes the right to make tables even when it makes none.
    let there = match engine {
        Engine::Sqlite => "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'schema_migrations'",
        Engine::Postgres => {
            "SELECT COUNT(*) FROM pg_class WHERE relname = 'schema_migrations' AND relnamespace = current_schema()::regnamespace"
        }
    };
    if sqlx::query_scalar::<_, i64>(there).fetch_one(&mut *connection).await? == 0 {
        let table = "CREATE TABLE schema_migrations (version BIGINT PRIMARY KEY, name TEXT NOT NULL,
            checksum {BLOB} NOT NULL, applied_at BIGINT NOT NULL)";
        connection.execute(AssertSqlSafe(dialect(table, engine))).await?;
    }
    let applied = sqlx::query("SELECT version, name, checksum FROM schema_migrations ORDER BY version")
        .fetch_all(&mut *connection)
        .await?;
    for row in &applied {
        let version: i64 = row.try_get(0)?;
        let Some(migration) = migrations.iter().find(|migration| migration.version == version) else {
            let known = migrations.last().map_or(0, |migration| migration.version);
            return Err(MigrateError::Newer { found: version, known }.into());
        };
        if row.try_get::<Vec<u8>, _>(2)? != checksum(migration) {
            return Err(MigrateError::Altered { version, name: row.try_get(1)? }.into());
        }
    }
    for migration in migrations.iter().skip(applied.len()) {
        apply(connection, migration, engine).await?;
        tracing::info!(version = migration.version, name = migration.name, "database schema brought forward");
    }
    Ok(())
}

async fn apply(connection: &mut AnyConnection, migration: &Migration, engine: Engine) -> Result<(), StoreError> {
    sqlx::raw_sql(AssertSqlSafe(dialect(migration.sql, engine))).execute(&mut *connection).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    sqlx::query("INSERT INTO schema_migrations (version, name, checksum, applied_at) VALUES ($1, $2, $3, $4)")
        .bind(migration.version)
        .bind(migration.name)
        .bind(checksum(migration))
        .bind(i64::try_from(now).unwrap_or(i64::MAX))
        .execute(connection)
        .await?;
    Ok(())
}

/// `sql` with its tokens in the engine's words.
pub(crate) fn dialect(sql: &str, engine: Engine) -> String {
    let words: [(&str, &str); 3] = match engine {
        Engine::Sqlite => [
            ("{BLOB}", "BLOB"),
            // AUTOINCREMENT: an id is never used twice, even after the newest row is gone.
            ("{ID}", "INTEGER PRIMARY KEY AUTOINCREMENT"),
            ("{CLUSTERED}", "WITHOUT ROWID"),
        ],
        Engine::Postgres => {
            [("{BLOB}", "BYTEA"), ("{ID}", "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"), ("{CLUSTERED}", "")]
        }
    };
    words.iter().fold(of_engine(sql, engine), |sql, (token, word)| sql.replace(token, word))
}

/// `sql` without what is for the other engine alone.
fn of_engine(sql: &str, engine: Engine) -> String {
    let (ours, theirs) = match engine {
        Engine::Sqlite => ("{SQLITE}", "{POSTGRES}"),
        Engine::Postgres => ("{POSTGRES}", "{SQLITE}"),
    };
    let mut out = String::with_capacity(sql.len());
    let mut rest = sql;
    while let Some((before, after)) = rest.split_once(theirs) {
        out.push_str(before);
        rest = after.split_once("{END}").map_or("", |(_, rest)| rest);
    }
    out.push_str(rest);
    out.replace(ours, "").replace("{END}", "")
}

fn checksum(migration: &Migration) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, migration.sql.as_bytes()).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_gets_its_own_words() {
        let sql = "a {SQLITE}b {ID}{END} c {POSTGRES}d {BLOB}{END} e {SQLITE}f{END}";
        assert_eq!(dialect(sql, Engine::Sqlite), "a b INTEGER PRIMARY KEY AUTOINCREMENT c  e f");
        assert_eq!(dialect(sql, Engine::Postgres), "a  c d BYTEA e ");
    }
}
