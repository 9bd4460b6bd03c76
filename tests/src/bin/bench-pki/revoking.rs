//! Revocations: from the call to the session that the node sees closed, and behind a long list of earlier ones.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::fleet::{Fleet, Options, SimulatedNode};
use hyperfactory_tests::report::{Report, Target};
use hyperfactory_tests::rig::{Api, Hub, TestDatabase};
use node::IdentityStore;
use protocol::{NodeId, Timestamp};
use serde_json::json;
use store::sqlx::{self, AssertSqlSafe, Row};
use store::{Database, Transaction};

use crate::{REVOKED_WITHIN_MS, core};

/// Longest wait for sessions, and for their end.
const PATIENCE: Duration = Duration::from_secs(120);
/// Revocations behind the long list.
const BEHIND: usize = 20;
/// Rows in one statement.
const ROWS: usize = 100;

/// Revokes `count` nodes, one after the other, while all others are in session and send telemetry.
pub(crate) async fn from_call_to_close(
    report: &mut Report,
    engine: &str,
    hub: &Hub,
    stores: &[IdentityStore],
    count: usize,
) -> Result<()> {
    ensure!(count + BEHIND <= stores.len(), "{count} of {} nodes to revoke leave too few", stores.len());
    let fleet = sessions(stores).await?;
    // The first round carries every node's schema; what follows is daily life.
    tokio::time::sleep(Options::default().interval).await;
    let mut closed = Vec::with_capacity(count);
    for node in &fleet.nodes()[..count] {
        closed.push(revoke(hub.api(), node).await?.closed);
    }
    fleet.stop(PATIENCE).await;
    let name = |what: &str| format!("{engine}: revoke to closed session, {} sessions, {what}", stores.len());
    closed.sort_unstable();
    report.figure(&name("median"), "ms", milliseconds(closed[count / 2]), Target::Less);
    let p99 = closed[(count * 99).div_ceil(100) - 1];
    report.figure(&name("p99"), "ms", milliseconds(p99), Target::AtMost(REVOKED_WITHIN_MS));
    Ok(())
}

/// Puts `length` revoked nodes into the database, and revokes some more; then once more while somebody fetches the list
/// all the time, which has to be made anew after each.
pub(crate) async fn behind_a_long_list(
    report: &mut Report,
    engine: &str,
    hub: &mut Hub,
    database: Option<&TestDatabase>,
    stores: &[IdentityStore],
    length: usize,
) -> Result<()> {
    ensure!(stores.len() >= 2 * BEHIND, "{} nodes are too few", stores.len());
    ensure!(hub.stop()?.success(), "the hub did not stop well");
    let url = database.map_or_else(|| format!("sqlite://{}", hub.state_dir().join("hub.db").display()), url_of);
    let authority = fill(&url, length).await?;
    hub.restart()?;
    core::give(hub.process()?.id())?;

    let fleet = sessions(&stores[..2 * BEHIND]).await?;
    let mut worst = Duration::ZERO;
    for node in &fleet.nodes()[..BEHIND] {
        let took = revoke(hub.api(), node).await?;
        worst = worst.max(took.answered).max(took.closed);
    }
    let name = |what: &str| format!("{engine}: revoke with {length} revoked already, {what}");
    report.figure(&name(&format!("worst of {BEHIND}")), "ms", milliseconds(worst), Target::AtMost(REVOKED_WITHIN_MS));

    let fetching = Fetching::start(hub.api().clone(), format!("/crl/{authority}"));
    let mut worst = Duration::ZERO;
    for node in &fleet.nodes()[BEHIND..] {
        let took = revoke(hub.api(), node).await?;
        worst = worst.max(took.answered).max(took.closed);
    }
    let mut made = fetching.stop()?;
    made.sort_unstable();
    report.figure(&name("its list fetched all the time"), "ms", milliseconds(worst), Target::AtMost(REVOKED_WITHIN_MS));
    let slowest = made.last().copied().context("no list was fetched")?;
    report.figure(&format!("{engine}: a list of {length}, made anew"), "ms", milliseconds(slowest), Target::Less);
    fleet.stop(PATIENCE).await;
    Ok(())
}

/// From the call on.
struct Took {
    answered: Duration,
    closed: Duration,
}

async fn revoke(api: &Api, node: &Arc<SimulatedNode>) -> Result<Took> {
    let mut link = node.link().context("a node without a link")?;
    let (api, path) = (api.clone(), format!("/api/v1/nodes/{}/revoke", node.id()));
    let began = Instant::now();
    let closed = async move {
        let ended = tokio::time::timeout(PATIENCE, link.wait_for(|status| !status.is_up())).await;
        ended.context("a revoked node's session did not end")??;
        anyhow::Ok(began.elapsed())
    };
    let answered = tokio::task::spawn_blocking(move || {
        api.post(&path, &json!({ "reason": "key_compromise" }))?.ok()?;
        anyhow::Ok(began.elapsed())
    });
    let (answered, closed) = tokio::join!(answered, closed);
    Ok(Took { answered: answered??, closed: closed? })
}

async fn sessions(stores: &[IdentityStore]) -> Result<Fleet> {
    let fleet = Fleet::start(&Options::default(), stores)?;
    ensure!(fleet.wait_for_sessions(stores.len(), PATIENCE).await, "{} of {} sessions", fleet.up(), stores.len());
    Ok(fleet)
}

/// Somebody who fetches a list over and over.
struct Fetching {
    stop: Arc<AtomicBool>,
    took: Arc<Mutex<Vec<Duration>>>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Fetching {
    fn start(api: Api, path: String) -> Self {
        let (stop, took) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Duration>>>::default());
        let (stopped, times) = (Arc::clone(&stop), Arc::clone(&took));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                api.download(&path)?;
                times.lock().unwrap_or_else(PoisonError::into_inner).push(began.elapsed());
            }
            Ok(())
        });
        Self { stop, took, thread }
    }

    fn stop(self) -> Result<Vec<Duration>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("fetching the list panicked"))??;
        Ok(std::mem::take(&mut self.took.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Revoked nodes as rows, each with one certificate of the tenant's authority; gives that authority's number.
async fn fill(url: &str, count: usize) -> Result<i64> {
    let database = Database::open(url).await?;
    let mut transaction = database.begin_write().await?;
    let authority = "SELECT id FROM authorities WHERE kind = 'nodes' AND tenant = 'bench' AND state = 'active'";
    let authority: i64 = sqlx::query(authority).fetch_one(&mut *transaction).await?.try_get(0)?;
    let now = Timestamp::from(SystemTime::now());
    let ids: Vec<NodeId> = (0..count).map(|_| NodeId::new(now, rand::random())).collect();
    for ids in ids.chunks(ROWS) {
        rows(&mut transaction, ids, authority, now).await?;
    }
    transaction.commit().await?;
    database.close().await;
    Ok(authority)
}

async fn rows(transaction: &mut Transaction, ids: &[NodeId], authority: i64, now: Timestamp) -> Result<()> {
    let ends = now.plus(Duration::from_secs(7 * 86_400)).millis();
    // Ids are random, and so are the hashes and serials made of them.
    let blob = |id: &NodeId| id.to_bytes().to_vec();
    let nodes = "INSERT INTO nodes (id, tenant, kind, software, name, enrolled_at, revoked_at) VALUES";
    let mut query =
        sqlx::query(AssertSqlSafe(format!("{nodes} {}", values(ids.len(), "'bench', 'agent', 'bench-pki'", 4))));
    for id in ids {
        query = query.bind(id.to_string()).bind(id.to_string()).bind(now.millis()).bind(now.millis());
    }
    query.execute(&mut **transaction).await.context("nodes")?;
    let certificates = "INSERT INTO certificates
        (node, tenant, kind, state, authority, serial, spki_sha256, certificate, issued_at, not_after) VALUES";
    let sql = format!("{certificates} {}", values(ids.len(), "'bench', 'agent', 'revoked'", 7));
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for id in ids {
        query = query.bind(id.to_string()).bind(authority).bind(blob(id)).bind(blob(id)).bind(vec![0x30_u8; 600]);
        query = query.bind(now.millis()).bind(ends);
    }
    query.execute(&mut **transaction).await.context("certificates")?;
    let revocations = "INSERT INTO revocations
        (node, tenant, reason, authority, serial, spki_sha256, revoked_at, not_after) VALUES";
    let sql = format!("{revocations} {}", values(ids.len(), "'bench', 'superseded'", 6));
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for id in ids {
        query = query.bind(id.to_string()).bind(authority).bind(blob(id)).bind(blob(id)).bind(now.millis()).bind(ends);
    }
    query.execute(&mut **transaction).await.context("revocations")?;
    Ok(())
}

/// Rows of so many values, with constants after the first of them.
fn values(rows: usize, constants: &str, values: usize) -> String {
    let row = |row: usize| {
        let rest: Vec<String> = (2..=values).map(|value| format!("${}", row * values + value)).collect();
        format!("(${}, {constants}, {})", row * values + 1, rest.join(", "))
    };
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

fn url_of(database: &TestDatabase) -> String {
    database.url().to_owned()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
