//! The store on both engines: migrations, group commit, and what happens when the database refuses.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that can't go on has failed")]

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use crate as store;
use crate::database::RESTED;
use store::group::{Apply, GroupError, Limits, Submitter, group_commit};
use store::sqlx::{self, Row};
use store::testing::TestDatabase;
use store::{Database, Engine, MigrateError, Migration, StoreError, Transaction, on_both_engines};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const FIRST: Migration = Migration {
    version: 1,
    name: "notes",
    sql: "CREATE TABLE notes (id {ID}, text TEXT NOT NULL UNIQUE, body {BLOB});
          CREATE TABLE pairs (a BIGINT, b BIGINT, PRIMARY KEY (a, b)) {CLUSTERED};",
};
const SECOND: Migration = Migration { version: 2, name: "mood", sql: "ALTER TABLE notes ADD COLUMN mood BIGINT" };

/// Comes to no end by itself.
const ENDLESS: &str = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i % 7 + 1 FROM n) SELECT COUNT(*) FROM n";

fn in_time(time: Duration) -> Instant {
    Instant::now() + time
}

/// What a read that has time gives.
async fn echoed(database: &Database) -> String {
    let sql = "SELECT $1 || ' it is'".to_owned();
    let rows = database.read_until(sql, vec!["as".into()], in_time(Duration::from_secs(60))).await.expect("no failure");
    rows.expect("in time")[0].get(0)
}

on_both_engines! {
    async fn migrations_run_once_and_in_order(database: TestDatabase) {
        let opened = database.open().await;
        opened.migrate(&[FIRST]).await.expect("the first");
        opened.migrate(&[FIRST, SECOND]).await.expect("the second alone");
        opened.migrate(&[FIRST, SECOND]).await.expect("nothing");
        let mut transaction = opened.begin_write().await.expect("a transaction");
        let id: i64 = sqlx::query_scalar("INSERT INTO notes (text, body, mood) VALUES ($1, $2, $3) RETURNING id")
            .bind("hello")
            .bind(vec![0u8, 255])
            .bind(None::<i64>)
            .fetch_one(&mut *transaction)
            .await
            .expect("a row");
        transaction.commit().await.expect("committed");
        let row = sqlx::query("SELECT body, mood FROM notes WHERE id = $1")
            .bind(id)
            .fetch_one(opened.reader())
            .await
            .expect("the row");
        assert_eq!(row.get::<Vec<u8>, _>(0), [0, 255]);
        assert_eq!(row.get::<Option<i64>, _>(1), None);
        opened.close().await;
    }

    async fn a_database_newer_than_the_binary_is_refused(database: TestDatabase) {
        let opened = database.open().await;
        opened.migrate(&[FIRST, SECOND]).await.expect("both");
        let refused = opened.migrate(&[FIRST]).await.expect_err("newer");
        assert!(matches!(refused, StoreError::Migrate(MigrateError::Newer { found: 2, known: 1 })), "{refused}");
        assert!(refused.to_string().contains("run that version or newer"), "{refused}");
        opened.close().await;
    }

    async fn an_altered_migration_is_refused(database: TestDatabase) {
        let opened = database.open().await;
        opened.migrate(&[FIRST]).await.expect("the first");
        let altered = Migration { sql: "CREATE TABLE notes (id {ID})", ..FIRST };
        let refused = opened.migrate(&[altered]).await.expect_err("altered");
        assert!(matches!(refused, StoreError::Migrate(MigrateError::Altered { version: 1, .. })), "{refused}");
        opened.close().await;
    }

    async fn a_migration_that_fails_leaves_nothing(database: TestDatabase) {
        let opened = database.open().await;
        let broken = Migration { version: 2, name: "broken", sql: "CREATE TABLE more (id {ID}); SELECT nonsense" };
        opened.migrate(&[FIRST, broken]).await.expect_err("broken");
        opened.migrate(&[FIRST, SECOND]).await.expect("as if it had never been");
        opened.close().await;
    }

    async fn hubs_that_start_together_migrate_once(database: TestDatabase) {
        let (one, two) = (database.open().await, database.open().await);
        let (first, second) = tokio::join!(one.migrate(&[FIRST, SECOND]), two.migrate(&[FIRST, SECOND]));
        first.expect("the one");
        second.expect("the other");
        one.close().await;
        two.close().await;
    }

    async fn what_is_dropped_before_its_commit_never_was(database: TestDatabase) {
        let opened = database.open().await;
        opened.migrate(&[FIRST]).await.expect("tables");
        let mut transaction = opened.begin_write().await.expect("a transaction");
        sqlx::query("INSERT INTO notes (text) VALUES ('gone')").execute(&mut *transaction).await.expect("a row");
        drop(transaction);
        assert_eq!(texts(&opened).await, [""; 0]);
        opened.close().await;
    }

    async fn readers_can_not_write(database: TestDatabase) {
        let opened = database.open().await;
        opened.migrate(&[FIRST]).await.expect("tables");
        sqlx::query("INSERT INTO notes (text) VALUES ('x')").execute(opened.reader()).await.expect_err("read only");
        opened.close().await;
    }

    async fn a_read_that_takes_too_long_is_ended_by_its_engine(database: TestDatabase) {
        let opened = database.open().await;
        // More often than there are connections: one that went on would keep its own.
        for _ in 0..20 {
            let ended = opened.read_until(ENDLESS.into(), Vec::new(), in_time(Duration::from_millis(20))).await;
            assert!(ended.expect("no failure").is_none());
        }
        if opened.engine() == Engine::Postgres {
            none_goes_on(&opened).await;
        }
        assert_eq!(echoed(&opened).await, "as it is");
        opened.close().await;
    }

    async fn a_group_is_one_commit_and_each_is_answered(database: TestDatabase) {
        let (opened, submitter, commits, _stop, mut tasks) = notes(database).await;
        // The writer is held, so that all twenty meet in the queue.
        let held = opened.begin_write().await.expect("the writer");
        let lock = lock_table(&opened, held).await;
        let mut submitted = JoinSet::new();
        for number in 0..20 {
            let submitter = submitter.clone();
            submitted.spawn(async move { submitter.submit(format!("note {number:02}")).await });
        }
        queued().await;
        lock.rollback().await.expect("let go");
        while let Some(answered) = submitted.join_next().await {
            answered.expect("no panic").expect("committed");
        }
        assert_eq!(texts(&opened).await.len(), 20);
        assert!(commits.load(Ordering::Relaxed) <= 3, "{} commits", commits.load(Ordering::Relaxed));
        drop(submitter);
        tasks.join_next().await;
        opened.close().await;
    }

    async fn one_that_waits_for_company_shares_its_commit(database: TestDatabase) {
        let opened = database.open().await;
        opened.migrate(&[FIRST]).await.expect("tables");
        let (commits, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let limits = Limits { company: Duration::from_millis(300), ..Limits::default() };
        let apply = Notes(Arc::clone(&commits));
        let (submitter, task) = group_commit(opened.clone(), apply, limits, stop.clone());
        let mut committing = JoinSet::new();
        committing.spawn(task);
        let second = async {
            // The first has been taken out of the queue by now.
            queued().await;
            submitter.submit("second".into()).await
        };
        let (first, second) = tokio::join!(submitter.submit("first".into()), second);
        first.expect("committed");
        second.expect("committed");
        assert_eq!(commits.load(Ordering::Relaxed), 1);
        stop.cancel();
        committing.join_all().await;
        opened.close().await;
    }

    async fn one_that_is_refused_does_not_take_the_others_along(database: TestDatabase) {
        let (opened, submitter, _, _stop, mut tasks) = notes(database).await;
        submitter.submit("twin".into()).await.expect("the first");
        let texts_in = ["a", "b", "twin", "c", "d", "e"];
        let mut submitted = JoinSet::new();
        let held = opened.begin_write().await.expect("the writer");
        let lock = lock_table(&opened, held).await;
        for text in texts_in {
            let submitter = submitter.clone();
            submitted.spawn(async move { (text, submitter.submit(text.to_owned()).await) });
        }
        queued().await;
        lock.rollback().await.expect("let go");
        while let Some(answered) = submitted.join_next().await {
            let (text, outcome) = answered.expect("no panic");
            match (text, outcome) {
                ("twin", Err(GroupError::Store(error))) => assert!(error.is_duplicate(), "{error}"),
                ("twin", other) => panic!("the twin got in: {other:?}"),
                (_, outcome) => outcome.map(drop).expect("committed"),
            }
        }
        assert_eq!(texts(&opened).await, ["a", "b", "c", "d", "e", "twin"]);
        drop(submitter);
        tasks.join_next().await;
        opened.close().await;
    }

    async fn what_is_queued_at_shutdown_is_still_committed(database: TestDatabase) {
        let (opened, submitter, _, stop, mut tasks) = notes(database).await;
        let held = opened.begin_write().await.expect("the writer");
        let lock = lock_table(&opened, held).await;
        let mut submitted = JoinSet::new();
        for number in 0..5 {
            let submitter = submitter.clone();
            submitted.spawn(async move { submitter.submit(number.to_string()).await });
        }
        queued().await;
        stop.cancel();
        lock.rollback().await.expect("let go");
        while let Some(answered) = submitted.join_next().await {
            answered.expect("no panic").expect("committed");
        }
        tasks.join_next().await.expect("the task").expect("has ended");
        assert!(matches!(submitter.submit("late".into()).await, Err(GroupError::Stopped)));
        assert_eq!(texts(&opened).await.len(), 5);
        opened.close().await;
    }
}

#[tokio::test]
async fn a_full_disk_is_named_and_writing_goes_on_when_there_is_room() {
    let database = TestDatabase::create(Engine::Sqlite).await;
    let (opened, submitter, _, _stop, _tasks) = notes(&database).await;
    submitter.submit("before".into()).await.expect("room");
    page_limit(&opened, "PRAGMA max_page_count = 1").await;
    let error = submitter.submit("x".repeat(100_000)).await.expect_err("no room");
    assert!(error.to_string().contains("free space on its disk"), "{error}");
    let GroupError::Store(error) = error else { panic!("{error}") };
    assert!(error.is_temporary());
    page_limit(&opened, "PRAGMA max_page_count = 1000000").await;
    submitter.submit("y".repeat(100_000)).await.expect("room again");
    submitter.submit("after".into()).await.expect("room again");
    assert_eq!(texts(&opened).await, ["after", "before", &"y".repeat(100_000)]);
}

/// Polls `begin` once: with a connection that was used before, BEGIN is on its way to the server then, and whoever wanted it
/// goes away.
async fn leave(begin: impl Future<Output = Result<Transaction, StoreError>>) {
    // Until what was used before is back.
    sleep(Duration::from_millis(50)).await;
    let mut begin = pin!(begin);
    let polled = poll_fn(|context| Poll::Ready(begin.as_mut().poll(context).is_pending())).await;
    assert!(polled, "answered already");
}

#[tokio::test]
async fn a_transaction_that_was_left_behind_is_nobodys_past() {
    let database = TestDatabase::create(Engine::Postgres).await;
    let opened = database.open().await;
    opened.migrate(&[FIRST]).await.expect("tables");
    assert_eq!(texts(&opened).await, [""; 0]);
    leave(opened.begin_read()).await;
    // A transaction sees what was there when it first looked.
    for _ in 0..20 {
        assert_eq!(texts(&opened).await, [""; 0]);
    }
    let mut transaction = opened.begin_write().await.expect("a transaction");
    sqlx::query("INSERT INTO notes (text) VALUES ('new')").execute(&mut *transaction).await.expect("a row");
    transaction.commit().await.expect("committed");
    // More often than there are readers.
    for _ in 0..20 {
        assert_eq!(texts(&opened).await, ["new"]);
    }
    opened.close().await;
    database.remove().await;
}

#[tokio::test]
async fn a_transaction_that_was_left_behind_binds_no_writer_to_its_tenant() {
    let database = TestDatabase::create(Engine::Postgres).await;
    let opened = database.open().await;
    opened.migrate(&[FIRST]).await.expect("tables");
    opened.begin_write().await.expect("a transaction").commit().await.expect("committed");
    leave(opened.within(Some("a")).begin_write()).await;
    // More often than there are writers.
    for _ in 0..20 {
        let mut transaction = opened.begin_write().await.expect("a transaction");
        let tenant = sqlx::query("SELECT current_setting('hyperfactory.tenant')").fetch_one(&mut *transaction).await;
        assert_eq!(tenant.expect("a setting").get::<String, _>(0), "*");
        transaction.commit().await.expect("committed");
    }
    opened.close().await;
    database.remove().await;
}

#[tokio::test]
async fn what_is_committed_goes_into_the_file_beside_the_writer() {
    let database = TestDatabase::create(Engine::Sqlite).await;
    let (opened, submitter, _, stop, mut tasks) = notes(&database).await;
    tasks.spawn(opened.clone().keep(stop.clone()));
    let file = || std::fs::metadata(opened.location()).expect("the file").len();
    // Less than a commit would put there by itself.
    submitter.submit("x".repeat(1 << 20)).await.expect("committed");
    assert!(file() < 1 << 20, "{} bytes", file());
    while file() < 1 << 20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    while tasks.join_next().await.is_some() {}
}

#[tokio::test]
async fn a_lost_server_is_named_and_found_again() {
    let database = TestDatabase::create(Engine::Postgres).await;
    let (opened, submitter, _, _stop, _tasks) = notes(&database).await;
    submitter.submit("before".into()).await.expect("connected");
    let name = database.url.rsplit_once('/').expect("a name").1.to_owned();
    let admin = Database::open(&std::env::var(store::testing::POSTGRES_VARIABLE).expect("set")).await.expect("admin");
    let kick = || async {
        sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1")
            .bind(&name)
            .execute(&mut *admin.begin_write().await.expect("a transaction"))
            .await
            .expect("kicked");
    };
    // In the middle of a transaction: the error is temporary, and says what to do.
    let mut transaction = opened.begin_write().await.expect("a transaction");
    kick().await;
    let error: StoreError = sqlx::query("INSERT INTO notes (text) VALUES ('lost')")
        .execute(&mut *transaction)
        .await
        .expect_err("the server is gone")
        .into();
    assert!(error.is_temporary(), "{error:?}");
    assert!(error.to_string().contains("see that it runs"), "{error}");
    drop(transaction);
    submitter.submit("after".into()).await.expect("connected again, by itself");
    assert_eq!(texts(&opened).await, ["after", "before"]);
    // Every connection at once, while nobody uses them.
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(opened.begin_write().await.expect("a transaction"));
    }
    for transaction in held {
        transaction.rollback().await.expect("ended");
    }
    kick().await;
    submitter.submit("later".into()).await.expect("connected again, by itself");
    // Who reads is spared a connection that has gone once it has rested.
    sleep(RESTED).await;
    assert_eq!(texts(&opened).await, ["after", "before", "later"]);
    admin.close().await;
    opened.close().await;
    database.remove().await;
}

#[tokio::test]
async fn a_url_that_is_none_is_refused_without_its_password() {
    let error = Database::open("mysql://hub:s3cret@db/fleet").await.expect_err("not ours");
    assert!(error.to_string().contains("sqlite:///path"), "{error}");
    assert!(!error.to_string().contains("s3cret"), "{error}");
    let error = Database::open("sqlite:///no/such/directory/hub.db").await.expect_err("no directory");
    assert!(error.to_string().contains("/no/such/directory/hub.db"), "{error}");
}

#[cfg(unix)]
#[tokio::test]
async fn the_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let database = TestDatabase::create(Engine::Sqlite).await;
    let opened = database.open().await;
    let mode = std::fs::metadata(opened.location()).expect("the file").permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
}

/// Inserts notes, and counts its commits.
struct Notes(Arc<AtomicUsize>);

impl Apply for Notes {
    type Operation = String;
    type Outcome = ();

    async fn apply(&mut self, transaction: &mut Transaction, texts: &[&String]) -> Result<Vec<()>, StoreError> {
        for text in texts {
            sqlx::query("INSERT INTO notes (text) VALUES ($1)").bind(text.as_str()).execute(&mut **transaction).await?;
        }
        Ok(vec![(); texts.len()])
    }

    fn committed(&mut self, _: &[&String], _: &[()]) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

async fn notes(
    database: &TestDatabase,
) -> (Database, Submitter<Notes>, Arc<AtomicUsize>, CancellationToken, JoinSet<()>) {
    let opened = database.open().await;
    opened.migrate(&[FIRST]).await.expect("tables");
    let (commits, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let apply = Notes(Arc::clone(&commits));
    let (submitter, task) = group_commit(opened.clone(), apply, Limits::default(), stop.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(task);
    (opened, submitter, commits, stop, tasks)
}

/// Waits until PostgreSQL carries out none of [`ENDLESS`]: it says that it ended one a moment before it counts it so.
async fn none_goes_on(database: &Database) {
    let active = "SELECT COUNT(*) FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'active' AND query = $1";
    while 0 < sqlx::query_scalar::<_, i64>(active).bind(ENDLESS).fetch_one(database.reader()).await.expect("a count") {
        sleep(Duration::from_millis(10)).await;
    }
}

/// Lets every task that was just spawned hand in its write: each does so at its first turn.
async fn queued() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Holds the group's writer back: SQLite has one anyway, on PostgreSQL the table is locked.
async fn lock_table(database: &Database, mut transaction: Transaction) -> Transaction {
    if database.engine() == Engine::Postgres {
        sqlx::query("LOCK TABLE notes IN EXCLUSIVE MODE").execute(&mut *transaction).await.expect("locked");
    }
    transaction
}

/// The limit belongs to the connection: it must be the writer's.
async fn page_limit(database: &Database, pragma: &'static str) {
    let mut transaction = database.begin_write().await.expect("the writer");
    sqlx::query(pragma).execute(&mut *transaction).await.expect("set");
    transaction.commit().await.expect("done");
}

async fn texts(database: &Database) -> Vec<String> {
    sqlx::query_scalar("SELECT text FROM notes ORDER BY text").fetch_all(database.reader()).await.expect("texts")
}

#[tokio::test]
async fn a_read_of_sqlite_that_nobody_waits_for_any_more_is_ended() {
    let test = TestDatabase::create(Engine::Sqlite).await;
    let opened = test.open().await;
    // More often than there are connections for them: one that went on would keep its own.
    for _ in 0..5 {
        let read = opened.read_until(ENDLESS.into(), Vec::new(), in_time(Duration::from_secs(86_400)));
        assert!(tokio::time::timeout(Duration::from_millis(50), read).await.is_err(), "it has no end");
    }
    assert_eq!(echoed(&opened).await, "as it is");
    opened.close().await;
    test.remove().await;
}

#[tokio::test]
async fn reads_of_postgresql_that_take_long_leave_connections_to_others() {
    let test = TestDatabase::create(Engine::Postgres).await;
    let opened = test.open().await;
    opened.migrate(&[FIRST]).await.expect("tables");
    let mut holder = opened.begin_write().await.expect("a transaction");
    sqlx::query("LOCK TABLE notes IN ACCESS EXCLUSIVE MODE").execute(&mut *holder).await.expect("the table");
    let mut reads = JoinSet::new();
    let mut read = || {
        let opened = opened.clone();
        let sql = "SELECT text FROM notes".to_owned();
        reads.spawn(async move { opened.read_until(sql, Vec::new(), in_time(Duration::from_secs(60))).await })
    };
    // As many as there are connections, and some whose callers go away: their statements go on all the same.
    for number in 0..12 {
        let read = read();
        while waiting(&mut holder).await < (number + 1).min(2) {
            sleep(Duration::from_millis(10)).await;
        }
        if number < 4 {
            read.abort();
        }
    }
    let asked = tokio::time::timeout(Duration::from_secs(10), sqlx::query("SELECT 1").fetch_one(opened.reader()));
    asked.await.expect("a connection").expect("an answer");
    holder.rollback().await.expect("let go");
    let mut answered = 0;
    while let Some(read) = reads.join_next().await {
        if let Ok(rows) = read {
            assert!(rows.expect("no failure").is_some(), "each has its turn");
            answered += 1;
        }
    }
    assert_eq!(answered, 8);
    opened.close().await;
    test.remove().await;
}

/// How many wait for the table. `pg_stat_activity` tells the hub's role nothing of it.
async fn waiting(holder: &mut Transaction) -> i64 {
    let sql = "SELECT COUNT(*) FROM pg_locks WHERE relation = 'notes'::regclass AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    sqlx::query_scalar(sql).fetch_one(&mut **holder).await.expect("a count")
}
