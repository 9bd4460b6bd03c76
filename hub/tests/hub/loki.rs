//! Lines pushed on: to a stand-in that takes what Loki's documentation of its push API describes, and nothing else.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use hyperfactory_hub::logs::{Bounds, Endpoint, Pusher, Upkeep};
use hyperfactory_hub::metrics::Metrics;
use protocol::message::LogLine;
use serde_json::Value;
use settings::Secret;
use store::testing::TestDatabase;
use store::{Database, Engine, on_both_engines};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::logs::{Logs, batch, deliver, line, source};
use crate::setup::{NOW, World, acme};

/// Long enough for a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the stand-in answers a push with; `None`: it takes it.
type Mood = Box<dyn FnMut(&[Taken]) -> Option<StatusCode> + Send>;

/// A line as the stand-in has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Taken {
    /// Tenant, project, service and stream.
    labels: [String; 4],
    at: i64,
    text: String,
}

#[derive(Clone, Default)]
struct Loki(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    taken: Vec<Taken>,
    requests: usize,
    mood: Option<Mood>,
}

impl Loki {
    async fn start(tasks: &mut JoinSet<()>) -> (Self, String) {
        let loki = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let router = Router::new().route("/loki/api/v1/push", post(take)).with_state(loki.clone());
        tasks.spawn(async move { axum::serve(listener, router).await.expect("served") });
        (loki, url)
    }

    fn mood(&self, mood: impl FnMut(&[Taken]) -> Option<StatusCode> + Send + 'static) {
        self.0.lock().expect("it").mood = Some(Box::new(mood));
    }

    fn texts(&self) -> Vec<String> {
        self.0.lock().expect("it").taken.iter().map(|taken| taken.text.clone()).collect()
    }

    async fn until(&self, what: &str, reached: impl Fn(&Self) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !reached(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(waited.await.is_ok(), "never {what}: {:?}", self.texts());
    }
}

/// The documented shape: `{"streams": [{"stream": {label: value}, "values": [["<ns>", "<line>"], …]}]}`.
async fn take(State(loki): State<Loki>, headers: HeaderMap, body: String) -> StatusCode {
    assert!(headers["content-type"].to_str().expect("text").starts_with("application/json"));
    assert_eq!(
        (&headers["authorization"], &headers["x-scope-orgid"]),
        (&"Bearer s3cret".parse().unwrap(), &"plants".parse().unwrap())
    );
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body.as_object().expect("an object").len(), 1);
    let mut pushed = Vec::new();
    for stream in body["streams"].as_array().expect("streams") {
        let labels = stream["stream"].as_object().expect("labels");
        let mut names: Vec<&str> = labels.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["node", "project", "service", "stream", "tenant"]);
        let label = |name: &str| labels[name].as_str().expect("text").to_owned();
        let mut before = i64::MIN;
        for value in stream["values"].as_array().expect("values") {
            let [at, text] = value.as_array().expect("a pair").as_slice() else { panic!("{value}") };
            let at: i64 = at.as_str().expect("a time as text").parse().expect("nanoseconds");
            assert!(at >= before, "out of order within a stream");
            before = at;
            let labels = [label("tenant"), label("project"), label("service"), label("stream")];
            pushed.push(Taken { labels, at, text: text.as_str().expect("a line").to_owned() });
        }
    }
    let mut inner = loki.0.lock().expect("it");
    inner.requests += 1;
    if let Some(status) = inner.mood.as_mut().and_then(|mood| mood(&pushed)) {
        return status;
    }
    inner.taken.append(&mut pushed);
    StatusCode::NO_CONTENT
}

/// A hub's pusher; ends with it.
struct Pushing {
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Pushing {
    fn start(database: &Database, url: &str, token_file: &std::path::Path) -> Self {
        let (metrics, stop) = (Arc::new(Metrics::new().expect("metrics")), CancellationToken::new());
        let endpoint = Endpoint {
            url: Secret::new(format!("{url}/")),
            token_file: Some(token_file.to_owned()),
            tenant: Some("plants".into()),
        };
        let pusher = Pusher::new(database.clone(), Arc::clone(&metrics), endpoint).expect("a pusher");
        let mut tasks = JoinSet::new();
        tasks.spawn(pusher.keep(stop.clone()));
        Self { metrics, stop, tasks }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        self.tasks.join_next().await.expect("the task").expect("ended");
    }

    fn counted(&self, name: &str) -> u64 {
        counted(&self.metrics, name)
    }

    /// Waits until lines are counted, which is a moment after it is written down how far it has pushed.
    async fn until_counted(&self) {
        let counted = tokio::time::timeout(PATIENCE, async {
            while self.counted("hyperfactory_hub_loki_lines_total") == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(counted.await.is_ok(), "never counted");
    }
}

/// What a counter has come to.
fn counted(metrics: &Metrics, name: &str) -> u64 {
    let text = metrics.text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name}")).parse().expect("a number")
}

/// A world in which a pusher has begun, with its first line taken.
async fn begun(
    database: &TestDatabase,
) -> (World, Logs, hyperfactory_hub::logs::Intake, Loki, String, tempfile::TempDir, JoinSet<()>) {
    let world = World::new(database).await;
    let (node, _) = world.node().await;
    let logs = Logs::start(&world.database).await;
    let mut tasks = JoinSet::new();
    let (loki, url) = Loki::start(&mut tasks).await;
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("token"), "s3cret\n").expect("written");
    let mut intake = logs.open(&acme(), node).await;
    deliver(&mut intake, [batch(1, vec![source("web")], vec![line(0, "from before it was turned on")])]).await;
    (world, logs, intake, loki, url, directory, tasks)
}

/// Waits until the database says that it has pushed up to this batch: a hub that stops before pushes again.
async fn until_through(world: &World, batch: &str) {
    let sql = "SELECT value FROM hub_settings WHERE name = 'loki.through'";
    let reached = tokio::time::timeout(PATIENCE, async {
        loop {
            let through = store::sqlx::query_scalar::<_, String>(sql).fetch_optional(world.database.reader());
            if through.await.expect("an answer").as_deref() == Some(batch) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(reached.await.is_ok(), "never pushed up to batch {batch}");
}

on_both_engines! {
    async fn lines_are_pushed_on_in_order_and_go_on_where_they_were(database: TestDatabase) {
        let (world, _logs, mut intake, loki, url, directory, _tasks) = begun(database).await;
        let token = directory.path().join("token");
        let pushing = Pushing::start(&world.database, &url, &token);
        until_through(&world, "1").await;
        let lines = vec![
            line(1, "one"),
            LogLine { error: true, ..line(2, "two") },
            LogLine { dropped: 7, until_ns: i64::MAX, ..line(3, "") },
        ];
        deliver(&mut intake, [batch(2, vec![source("web")], lines)]).await;
        loki.until("three lines", |loki| loki.texts().len() >= 3).await;
        until_through(&world, "2").await;
        pushing.stop().await;
        {
            let inner = loki.0.lock().expect("it");
            let mut taken: Vec<_> = inner.taken.iter().map(|taken| (taken.text.as_str(), taken.labels[3].as_str())).collect();
            taken.sort_unstable();
            assert_eq!(taken, [("--- 7 lines dropped ---", "stdout"), ("one", "stdout"), ("two", "stderr")]);
            assert_eq!(inner.taken[0].labels[..3], ["acme", "shop", "web"]);
        }
        // What came while no hub ran.
        deliver(&mut intake, [batch(3, vec![source("web")], vec![line(4, "three")])]).await;
        let pushing = Pushing::start(&world.database, &url, &token);
        loki.until("the fourth", |loki| loki.texts().len() >= 4).await;
        until_through(&world, "3").await;
        assert_eq!(loki.texts()[3..], ["three"]);
        pushing.until_counted().await;
        assert_eq!(pushing.counted("hyperfactory_hub_loki_lines_total"), 1);
        pushing.stop().await;
        world.close().await;
    }

    async fn what_is_deleted_before_it_is_pushed_is_counted(database: TestDatabase) {
        let (world, _logs, mut intake, loki, url, directory, _tasks) = begun(database).await;
        let token = directory.path().join("token");
        let pushing = Pushing::start(&world.database, &url, &token);
        until_through(&world, "1").await;
        pushing.stop().await;
        deliver(&mut intake, [batch(2, vec![source("web")], vec![line(1, "one"), line(2, "two")])]).await;
        deliver(&mut intake, [batch(3, vec![source("web")], vec![line(3, "three")])]).await;
        // Room for the newest alone.
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let bounds = Bounds { retention: Duration::from_secs(3_600), bytes: 5 };
        let upkeep = Upkeep::new(world.database.clone(), bounds, Some(Arc::clone(&metrics)));
        upkeep.run_once(NOW).await.expect("kept up");
        assert_eq!(counted(&metrics, "hyperfactory_hub_loki_lines_missed_total"), 2);
        let pushing = Pushing::start(&world.database, &url, &token);
        until_through(&world, "3").await;
        assert_eq!(loki.texts(), ["three"]);
        upkeep.run_once(NOW.plus(Duration::from_secs(7_200))).await.expect("kept up");
        assert_eq!(counted(&metrics, "hyperfactory_hub_loki_lines_missed_total"), 2, "it has that one");
        pushing.stop().await;
        world.close().await;
    }
}

#[tokio::test]
async fn what_is_put_off_is_pushed_again_and_what_is_refused_stops_nothing() {
    let database = TestDatabase::create(Engine::Sqlite).await;
    let (world, _logs, mut intake, loki, url, directory, _tasks) = begun(&database).await;
    let token = directory.path().join("token");
    // It begins behind what is there.
    let pushing = Pushing::start(&world.database, &url, &token);
    until_through(&world, "1").await;
    pushing.stop().await;
    let mut moods = vec![StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
    loki.mood(move |pushed| match moods.pop() {
        Some(status) => Some(status),
        None => pushed.iter().any(|taken| taken.text == "bad").then_some(StatusCode::BAD_REQUEST),
    });
    let lines = ["a", "b", "bad", "c", "d"].iter().zip(1..).map(|(text, after)| line(after, text)).collect();
    deliver(&mut intake, [batch(2, vec![source("web")], lines)]).await;
    let pushing = Pushing::start(&world.database, &url, &token);
    loki.until("all that can be", |loki| loki.texts().len() >= 4).await;
    assert_eq!(loki.texts(), ["a", "b", "c", "d"]);
    until_through(&world, "2").await;
    pushing.until_counted().await;
    assert_eq!(pushing.counted("hyperfactory_hub_loki_lines_refused_total"), 1);
    assert_eq!(pushing.counted("hyperfactory_hub_loki_failures_total"), 2);
    deliver(&mut intake, [batch(3, vec![source("web")], vec![line(9, "e")])]).await;
    loki.until("what comes after", |loki| loki.texts().len() >= 5).await;
    assert_eq!(loki.texts()[4..], ["e"]);
    pushing.stop().await;
    world.close().await;
}

#[tokio::test]
async fn what_is_pushed_again_counts_once() {
    let database = TestDatabase::create(Engine::Sqlite).await;
    let (world, _logs, mut intake, loki, url, directory, _tasks) = begun(&database).await;
    let token = directory.path().join("token");
    let pushing = Pushing::start(&world.database, &url, &token);
    until_through(&world, "1").await;
    let mut broken = false;
    loki.mood(move |pushed| {
        if pushed.iter().any(|taken| taken.text == "bad") {
            return Some(StatusCode::BAD_REQUEST);
        }
        // It breaks off once, after the refusal.
        let now = pushed.iter().any(|taken| taken.text == "d") && !broken;
        broken |= now;
        now.then_some(StatusCode::SERVICE_UNAVAILABLE)
    });
    let lines = ["a", "b", "bad", "c", "d"].iter().zip(1..).map(|(text, after)| line(after, text)).collect();
    deliver(&mut intake, [batch(2, vec![source("web")], lines)]).await;
    until_through(&world, "2").await;
    pushing.until_counted().await;
    assert_eq!(pushing.counted("hyperfactory_hub_loki_lines_total"), 4);
    assert_eq!(pushing.counted("hyperfactory_hub_loki_lines_refused_total"), 1);
    pushing.stop().await;
    world.close().await;
}
