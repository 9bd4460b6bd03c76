//! Shipped logs: each batch stored once, and its lines found by whoever may see them.

use std::sync::Arc;
use std::time::Duration;

use hyperfactory_hub::audit::Actor;
use hyperfactory_hub::logs::search::{self, Filter, Found, SearchError};
use hyperfactory_hub::logs::{Bounds, Ingest, Intake, Upkeep};
use hyperfactory_hub::metrics::Metrics;
use prost::Message;
use protocol::message::{
    Acknowledge, Batch, LogBatch, LogLine, LogSource, Lost, LostReason, SpoolRange, Upload, upload,
};
use protocol::{NodeId, TenantId};
use store::sqlx;
use store::testing::TestDatabase;
use store::{Database, Engine, on_both_engines};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::setup::{NOW, World, acme, at, seconds};

const EPOCH: u64 = u64::MAX - 9;
/// Puts lines in the place of those that are kept which come to no end.
const ENDLESS: &str = "ALTER TABLE log_lines RENAME TO kept_lines;
    CREATE VIEW log_lines AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i % 7 + 1 FROM n)
    SELECT i AS id, 'acme' AS tenant, 1 AS source, 0 AS at, 0 AS error, '' AS text, 0 AS cut, 0 AS dropped, 0 AS until FROM n";

/// A hub's intake of logs; its task ends with it.
pub(crate) struct Logs {
    ingest: Ingest,
    _tasks: JoinSet<()>,
}

impl Logs {
    pub(crate) async fn start(database: &Database) -> Self {
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let started = Ingest::start(database.clone(), metrics, CancellationToken::new()).await;
        let (ingest, task) = started.expect("an intake");
        let mut tasks = JoinSet::new();
        tasks.spawn(task);
        Self { ingest, _tasks: tasks }
    }

    pub(crate) async fn open(&self, tenant: &TenantId, node: NodeId) -> Intake {
        let spool = SpoolRange { epoch: EPOCH, first: 1, last: 9 };
        self.ingest.open(node, tenant, &spool).await.expect("a session")
    }
}

/// What a node ships.
pub(crate) fn batch(sequence: u64, sources: Vec<LogSource>, lines: Vec<LogLine>) -> Upload {
    let raw = LogBatch { sources, lines }.encode_to_vec();
    packed(sequence, zstd::bulk::compress(&raw, 1).expect("packed"))
}

fn packed(sequence: u64, body: Vec<u8>) -> Upload {
    Upload { message: Some(upload::Message::Batch(Batch { epoch: EPOCH, sequence, body })) }
}

pub(crate) fn source(service: &str) -> LogSource {
    LogSource { stack: "shop".into(), service: service.into(), number: 1 }
}

/// A line so many milliseconds after [`NOW`].
pub(crate) fn line(after: i64, text: &str) -> LogLine {
    LogLine { at_ns: (NOW.millis() + after) * 1_000_000, text: text.into(), ..LogLine::default() }
}

fn acknowledge(through: u64) -> Option<Acknowledge> {
    Some(Acknowledge { epoch: EPOCH, through })
}

pub(crate) async fn deliver(intake: &mut Intake, uploads: impl IntoIterator<Item = Upload>) -> Option<Acknowledge> {
    for upload in uploads {
        intake.receive(upload, NOW).expect("taken in");
    }
    intake.commit(NOW).await.expect("stored")
}

async fn find(database: &Database, filter: Filter) -> Found {
    let filter = Filter { limit: if filter.limit == 0 { 100 } else { filter.limit }, ..filter };
    search::find(database, &filter, search::LONGEST).await.expect("an answer")
}

async fn texts(database: &Database, filter: Filter) -> Vec<String> {
    find(database, filter).await.lines.into_iter().map(|line| line.text).collect()
}

fn words(text: &str) -> Filter {
    Filter { text: text.into(), ..Filter::default() }
}

/// A world with these lines of the service `web`.
async fn with(database: &TestDatabase, lines: &[&str]) -> (World, Logs, NodeId) {
    let world = World::new(database).await;
    let (node, _) = world.node().await;
    let logs = Logs::start(&world.database).await;
    let lines = lines.iter().zip(0..).map(|(text, number)| line(number * 1_000, text)).collect();
    deliver(&mut logs.open(&acme(), node).await, [batch(1, vec![source("web")], lines)]).await;
    (world, logs, node)
}

on_both_engines! {
    async fn batches_of_lines_are_stored_once_and_then_acknowledged(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let logs = Logs::start(&world.database).await;
        let number = |number: u64| batch(number, vec![source("web")], vec![line(number as i64, &format!("line {number}"))]);
        let mut intake = logs.open(&acme(), node).await;
        assert_eq!(intake.stored(), None);
        assert_eq!(deliver(&mut intake, [number(1), number(2)]).await, acknowledge(2));
        // The reply was lost; the hub starts again.
        let logs = Logs::start(&world.database).await;
        let mut intake = logs.open(&acme(), node).await;
        assert_eq!(intake.stored(), acknowledge(2));
        assert_eq!(deliver(&mut intake, [number(2), number(3)]).await, acknowledge(3));
        assert!(intake.receive(number(5), NOW).is_err(), "a hole");
        assert_eq!(texts(&world.database, Filter::default()).await, ["line 3", "line 2", "line 1"]);
        // Two sessions of one node bring the same: the first counts.
        let mut other = logs.open(&acme(), node).await;
        let mut intake = logs.open(&acme(), node).await;
        intake.receive(number(4), NOW).expect("the next");
        for next in [4, 5] {
            other.receive(number(next), NOW).expect("the next");
        }
        assert_eq!(intake.commit(NOW).await.expect("stored"), acknowledge(4));
        assert_eq!(other.commit(NOW).await.expect("stored, in part already"), acknowledge(5));
        assert_eq!(texts(&world.database, Filter::default()).await.len(), 5);
        world.close().await;
    }

    async fn what_is_stored_already_is_not_stored_again_whatever_a_hub_remembers(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        // Two hubs, neither of which knows of what the other stores.
        let (one, two) = (Logs::start(&world.database).await, Logs::start(&world.database).await);
        let (mut one, mut two) = (one.open(&acme(), node).await, two.open(&acme(), node).await);
        let number = |number: u64| batch(number, vec![source("web")], vec![line(number as i64, &format!("line {number}"))]);
        assert_eq!(deliver(&mut one, [number(1), number(2)]).await, acknowledge(2));
        assert_eq!(deliver(&mut two, [number(1), number(2), number(3)]).await, acknowledge(3));
        assert_eq!(texts(&world.database, Filter::default()).await, ["line 3", "line 2", "line 1"]);
        let coverage = hyperfactory_hub::logs::coverage(&world.database, node).await.expect("coverage").remove(0);
        assert!(coverage.is_complete() && coverage.stored == 3, "{coverage:?}");
        world.close().await;
    }

    async fn what_is_lost_or_can_not_be_read_is_on_record_with_its_reason(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let logs = Logs::start(&world.database).await;
        let mut intake = logs.open(&acme(), node).await;
        let lost = Lost { epoch: EPOCH, first: 1, last: 7, reason: LostReason::Overflow.into() };
        let uploads = [
            Upload { message: Some(upload::Message::Lost(lost)) },
            packed(8, b"no zstd".to_vec()),
            batch(9, vec![source("web")], vec![line(0, "whole")]),
        ];
        assert_eq!(deliver(&mut intake, uploads).await, acknowledge(9));
        let coverage = hyperfactory_hub::logs::coverage(&world.database, node).await.expect("coverage").remove(0);
        assert!(coverage.is_complete(), "{coverage:?}");
        assert_eq!((coverage.through, coverage.stored), (9, 1));
        let ranges: Vec<_> = coverage.lost.iter().map(|range| (range.first, range.last, &*range.reason)).collect();
        assert_eq!(ranges, [(1, 7, "overflow"), (8, 8, "corrupt")]);
        assert_eq!(texts(&world.database, Filter::default()).await, ["whole"]);
        world.close().await;
    }

    async fn words_are_found_whole_in_any_order_and_as_they_are_written(database: TestDatabase) {
        let lines = [
            "pressure 7.5 bar in /var/lib/plc, level=ERROR",
            "Druck zu hoch: Überlast an host plc-3.example.com:8080",
            "error level is low",
            "it's a \"quoted\" NEAR miss * of C:\\temp & more | less ! <b>",
            "a\0b \u{1f600} 1e5 0x1F 5mm -3 user@example.com",
            "\u{1b}[31mFATAL\u{1b}[0m: pump\u{1b}[1m4 stands still",
        ];
        let (world, _logs, _) = with(database, &lines).await;
        let found = async |text: &str| -> Vec<usize> {
            let texts = texts(&world.database, words(text)).await;
            let kept = |line: &str| line.replace('\0', "\u{fffd}").replace("\u{1b}[31m", "").replace("\u{1b}[0m", "").replace("\u{1b}[1m", "");
            let place = |text: &String| lines.iter().position(|line| kept(line) == *text).expect("one of them");
            let mut places: Vec<usize> = texts.iter().map(place).collect();
            places.sort_unstable();
            places
        };
        for (text, expected) in [
            ("bar PRESSURE", &[0][..]),
            ("error level", &[0, 2]),
            ("level=error", &[0]),
            ("ERROR", &[0, 2]),
            ("press", &[]),
            ("7.5", &[0]),
            ("7", &[0]),
            ("plc", &[0, 1]),
            ("/var/lib/plc,", &[0]),
            ("Überlast", &[1]),
            ("plc-3.example.com:8080", &[1]),
            ("8080", &[1]),
            ("example", &[1, 4]),
            ("1e5", &[4]),
            ("0x1f", &[4]),
            ("5mm", &[4]),
            ("-3", &[1, 4]),
            ("3", &[1, 4]),
            ("fatal: pump4", &[5]),
            ("31mfatal", &[]),
            // What engines would take for syntax is what it is.
            ("\"quoted\"", &[3]),
            ("\"", &[3]),
            ("it's", &[3]),
            ("'", &[3]),
            ("*", &[3]),
            ("err*", &[]),
            ("NEAR", &[3]),
            ("NEAR(error level)", &[]),
            ("error OR pressure", &[]),
            ("NOT error", &[]),
            ("text:error", &[]),
            ("c:\\temp", &[3]),
            ("& | ! <b>", &[3]),
            ("^pressure", &[]),
            ("{text}", &[]),
            ("');--", &[]),
            ("%", &[]),
            ("\u{1f600}", &[4]),
        ] {
            assert_eq!(found(text).await, expected, "{text:?}");
        }
        world.close().await;
    }

    async fn a_search_is_narrowed_by_everything_that_is_known_of_a_line(database: TestDatabase) {
        let world = World::new(database).await;
        let ((first, _), (second, _)) = (world.node().await, world.node().await);
        let logs = Logs::start(&world.database).await;
        let lines = vec![
            line(0, "one"),
            LogLine { error: true, ..line(1_000, "two") },
            LogLine { source: 1, ..line(2_000, "three") },
            LogLine { dropped: 7, until_ns: (NOW.millis() + 9_000) * 1_000_000, ..line(3_000, "") },
        ];
        deliver(&mut logs.open(&acme(), first).await, [batch(1, vec![source("web"), source("api")], lines)]).await;
        // It comes later, and was written earlier.
        deliver(&mut logs.open(&acme(), second).await, [batch(1, vec![source("web")], vec![line(-1_000, "zero")])]).await;
        let found = async |filter: Filter| texts(&world.database, filter).await;
        assert_eq!(found(Filter::default()).await, ["", "three", "two", "one", "zero"]);
        assert_eq!(found(Filter { node: Some(second), ..Filter::default() }).await, ["zero"]);
        assert_eq!(found(Filter { service: Some("api".into()), ..Filter::default() }).await, ["three"]);
        assert_eq!(found(Filter { stack: Some("other".into()), ..Filter::default() }).await, [""; 0]);
        assert_eq!(found(Filter { error: Some(true), ..Filter::default() }).await, ["two"]);
        assert_eq!(found(Filter { since: Some(at(1)), until: Some(at(2)), ..Filter::default() }).await, ["three", "two"]);
        assert_eq!(found(Filter { grep: Some("^t(w|h)".into()), ..Filter::default() }).await, ["three", "two"]);
        assert_eq!(found(Filter { grep: Some("ee".into()), ..words("three") }).await, ["three"]);
        let refused = search::find(&world.database, &Filter { grep: Some("((".into()), ..Filter::default() }, search::LONGEST).await;
        assert!(matches!(refused, Err(SearchError::Grep(why)) if why.contains("unclosed")));
        let dropped = find(&world.database, Filter { limit: 1, ..Filter::default() }).await;
        assert_eq!((dropped.lines[0].dropped, dropped.lines[0].until), (7, (NOW.millis() + 9_000) * 1_000_000));

        // Page by page, each line once.
        let (mut filter, mut all) = (Filter { limit: 2, ..Filter::default() }, Vec::new());
        loop {
            let page = find(&world.database, filter.clone()).await;
            all.extend(page.lines.into_iter().map(|line| line.text));
            filter.after = page.next;
            if filter.after.is_none() {
                break;
            }
        }
        assert_eq!(all, ["", "three", "two", "one", "zero"]);
        world.close().await;
    }

    async fn a_search_that_takes_too_long_is_ended_and_says_so(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let logs = Logs::start(&world.database).await;
        deliver(&mut logs.open(&acme(), node).await, [batch(1, vec![source("web")], vec![line(0, "one")])]).await;
        let filter = Filter { limit: 10, ..Filter::default() };
        let late = search::find(&world.database, &filter, Duration::ZERO).await;
        assert!(matches!(late, Err(SearchError::Late)), "{late:?}");
        let search = async || {
            let late = search::find(&world.database, &filter, Duration::from_millis(100)).await;
            let said = late.expect_err("too late").to_string();
            assert!(said.contains("name a node and a service"), "{said}");
        };
        let mut holder = world.database.begin_write().await.expect("a transaction");
        if world.database.engine() == Engine::Postgres {
            // It waits for whoever holds the table.
            sqlx::raw_sql("LOCK TABLE log_lines IN ACCESS EXCLUSIVE MODE").execute(&mut *holder).await.expect("the table");
            search().await;
            // `pg_stat_activity` tells the hub's role nothing of it.
            let waiting = "SELECT COUNT(*) FROM pg_locks WHERE relation = 'log_lines'::regclass AND NOT granted
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
            let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(&mut *holder).await.expect("a count");
            assert_eq!(waiting, 0, "the server has ended it");
            holder.rollback().await.expect("let go");
        } else {
            // Lines without an end: a search comes back because it was ended, and each keeps its connection until then.
            sqlx::raw_sql(ENDLESS).execute(&mut *holder).await.expect("a view");
            holder.commit().await.expect("seen");
            for _ in 0..5 {
                search().await;
            }
            let mut whole = world.database.begin_write().await.expect("a transaction");
            let back = "DROP VIEW log_lines; ALTER TABLE kept_lines RENAME TO log_lines";
            sqlx::raw_sql(back).execute(&mut *whole).await.expect("the table");
            whole.commit().await.expect("seen");
        }
        assert_eq!(texts(&world.database, filter).await, ["one"], "the next one is none the worse");
        world.close().await;
    }

    async fn the_oldest_lines_go_by_their_age_and_by_their_tenants_bytes(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let other: TenantId = "other".parse().expect("a tenant");
        world.tenants.create(&other, "Other", &Actor::system(), NOW).await.expect("a tenant");
        let (others, _) = world.node_of(&other).await;
        let logs = Logs::start(&world.database).await;
        // Ten batches of ten bytes each; the other tenant has one of few.
        let mut intake = logs.open(&acme(), node).await;
        for number in 1..=10 {
            // The first, before somebody put the hub's clock right.
            let now = if number == 1 { at(31_536_000) } else { at(number) };
            let upload = batch(number, vec![source("web")], vec![line(0, &format!("number {number:03}"))]);
            intake.receive(upload, now).expect("taken in");
            intake.commit(now).await.expect("stored");
        }
        let mut of_other = logs.open(&other, others).await;
        of_other.receive(batch(1, vec![source("web")], vec![line(0, "number")]), at(9)).expect("taken in");
        of_other.commit(at(9)).await.expect("stored");
        let kept = async || texts(&world.database, Filter { node: Some(node), ..words("number") }).await;
        let upkeep = async |retention: u64, bytes: u64, now: u64| {
            let bounds = Bounds { retention: seconds(retention), bytes };
            Upkeep::new(world.database.clone(), bounds, None).run_once(at(now)).await.expect("kept up");
        };
        upkeep(100, 1_000, 20).await;
        assert_eq!(kept().await.len(), 10, "nothing is over its bounds");
        upkeep(14, 1_000, 20).await;
        assert_eq!(kept().await.last().map(String::as_str), Some("number 006"), "those before had their time");
        upkeep(100, 20, 20).await;
        assert_eq!(kept().await, ["number 010", "number 009"]);
        assert_eq!(texts(&world.database, Filter { node: Some(others), ..words("number") }).await, ["number"]);
        let deleted = sqlx::query_scalar::<_, i64>("SELECT deleted_through FROM log_streams WHERE node = $1");
        let deleted = deleted.bind(node.to_string()).fetch_one(world.database.reader()).await.expect("a stream");
        assert_eq!(deleted, 8);
        // What is gone is gone from the index too.
        assert_eq!(texts(&world.database, words("001")).await, [""; 0]);
        assert_eq!(texts(&world.database, words("010")).await.len(), 1);
        world.close().await;
    }

    async fn lines_of_a_clock_that_was_behind_take_no_others_with_them(database: TestDatabase) {
        let world = World::new(database).await;
        let (node, _) = world.node().await;
        let logs = Logs::start(&world.database).await;
        let mut intake = logs.open(&acme(), node).await;
        for number in 1..=4 {
            // The third, while the hub's clock stood where it begins.
            let now = if number == 3 { protocol::Timestamp::from_millis(0) } else { at(number) };
            intake.receive(batch(number, vec![source("web")], vec![line(number as i64, &format!("{number}"))]), now).expect("taken in");
            intake.commit(now).await.expect("stored");
        }
        let bounds = Bounds { retention: seconds(100), bytes: 1_000_000 };
        let upkeep = Upkeep::new(world.database.clone(), bounds, None);
        let kept = async |now| {
            upkeep.run_once(now).await.expect("kept up");
            texts(&world.database, Filter::default()).await
        };
        assert_eq!(kept(at(20)).await, ["4", "3", "2", "1"], "none that is to be kept has gone");
        assert_eq!(kept(protocol::Timestamp::from_millis(0)).await, ["4", "3", "2", "1"], "while it is behind, none goes");
        assert_eq!(kept(at(103)).await, ["4"], "it goes with those before it");
        assert_eq!(kept(at(1_000)).await, [""; 0]);
        world.close().await;
    }

    async fn small_batches_go_many_at_a_time(database: TestDatabase) {
        let world = World::new(database).await;
        let other: TenantId = "other".parse().expect("a tenant");
        world.tenants.create(&other, "Other", &Actor::system(), NOW).await.expect("a tenant");
        let (nodes, logs) = ([world.node().await.0, world.node_of(&other).await.0], Logs::start(&world.database).await);
        let small = |number: u64| batch(number, vec![source("web")], vec![line(0, "small")]);
        let (mut one, mut two) = (logs.open(&acme(), nodes[0]).await, logs.open(&other, nodes[1]).await);
        deliver(&mut one, (1..=500).map(small)).await;
        deliver(&mut two, (1..=2).map(small)).await;
        deliver(&mut one, (501..=1_000).map(small)).await;
        let bounds = Bounds { retention: seconds(10), bytes: 1_000_000 };
        let steps = Upkeep::new(world.database.clone(), bounds, None).run_once(at(60)).await.expect("kept up");
        assert!(steps < 10, "{steps} transactions");
        assert_eq!(texts(&world.database, words("small")).await, [""; 0]);
        for (node, through) in nodes.iter().zip([1_000, 2]) {
            let coverage = hyperfactory_hub::logs::coverage(&world.database, *node).await.expect("coverage").remove(0);
            assert_eq!((coverage.first, coverage.through, coverage.is_complete()), (through + 1, through, true));
        }
        world.close().await;
    }

    async fn a_tenant_finds_its_own_lines_alone(database: TestDatabase) {
        let (world, logs, _) = with(database, &["secret of acme"]).await;
        let other: TenantId = "other".parse().expect("a tenant");
        world.tenants.create(&other, "Other", &Actor::system(), NOW).await.expect("a tenant");
        let (node, _) = world.node_of(&other).await;
        let lines = vec![line(0, "secret of other")];
        deliver(&mut logs.open(&other, node).await, [batch(1, vec![source("web")], lines)]).await;
        for text in ["", "secret"] {
            let of = |tenant: &TenantId| Filter { tenant: Some(tenant.clone()), ..words(text) };
            assert_eq!(texts(&world.database, of(&acme())).await, ["secret of acme"]);
            assert_eq!(texts(&world.database, of(&other)).await, ["secret of other"]);
            assert_eq!(texts(&world.database, words(text)).await.len(), 2);
        }
        world.close().await;
    }
}

#[tokio::test]
async fn postgresql_finds_words_by_its_index_whoever_asks() {
    let test = TestDatabase::create(store::Engine::Postgres).await;
    let (world, _logs, _) = with(&test, &["pressure lost"]).await;
    let mut admin = world.database.begin_write().await.expect("a transaction");
    // Few rows are read faster without an index; this asks what it can do.
    for sql in ["SET LOCAL enable_seqscan = off", "SET LOCAL hyperfactory.tenant = 'acme'"] {
        sqlx::query(sql).execute(&mut *admin).await.expect("set");
    }
    let sql = "SELECT log_find(to_tsquery('simple', 'pressure'), 0, 9223372036854775807)";
    let before = scans(&mut admin).await;
    sqlx::query(sql).fetch_all(&mut *admin).await.expect("found");
    assert!(scans(&mut admin).await > before, "the index of words was not used");
    drop(admin);
    world.close().await;
}

/// How often the index of words was used, in this transaction too.
async fn scans(transaction: &mut store::Transaction) -> i64 {
    let sql = "SELECT pg_stat_get_xact_numscans('log_lines_words'::regclass)";
    sqlx::query_scalar(sql).fetch_one(&mut **transaction).await.expect("a count")
}
