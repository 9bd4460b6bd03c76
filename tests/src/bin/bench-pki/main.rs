//! `./bench pki`: what a certificate costs, from the curve's arithmetic to a durable and audited enrollment, and how
//! fast a revocation cuts a session.
//!
//! The hub, and whatever stands beside it, has one core for itself; the nodes have the others. Rates per core are by
//! the processor time the server took, so that a busy machine does not change them much. The hub's rate limits for
//! enrollment are lifted: the nodes all come from one address.

mod cfssl;
mod core;
mod crypto;
mod enrolling;
mod renewing;
mod revoking;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use hyperfactory_tests::fleet;
use hyperfactory_tests::report::{Report, Target};
use hyperfactory_tests::rig::{Hub, Postgres, TestDatabase};
use node::IdentityStore;

/// Measures certificates: issued, renewed and revoked.
#[derive(Parser)]
struct Arguments {
    /// Writes the rows here as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Nodes that enroll on each database, and then hold sessions.
    #[arg(long, default_value_t = 5_000)]
    nodes: usize,
    /// Nodes that then renew, each twice.
    #[arg(long, default_value_t = 1_000)]
    renewing: usize,
    /// Nodes that are revoked one after the other while all others hold sessions.
    #[arg(long, default_value_t = 300)]
    revoked: usize,
    /// Nodes that have been revoked already when one more is.
    #[arg(long, default_value_t = 100_000)]
    denylist: usize,
    /// Processor time spent on each figure of pure computation, and time spent on the peer's server.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Measures this part alone: crypto, sqlite or postgresql.
    #[arg(long)]
    only: Option<String>,
}

/// Enrollments that a core is to do in a second, and how long a revocation may take.
const ENROLLMENTS: f64 = 700.0;
const REVOKED_WITHIN_MS: f64 = 50.0;
/// How much of what the curve's arithmetic allows is to be left once a request is read and a certificate written.
const SHARE_OF_FLOOR: f64 = 0.6;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let wanted = |part: &str| arguments.only.as_deref().is_none_or(|only| only == part);
    // Before the runtime's threads are there: they inherit it.
    core::leave_to_servers()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut report = Report::default();
    let spend = Duration::from_secs(arguments.seconds);
    if wanted("crypto") {
        let floor = crypto::floor()?;
        let ours = crypto::issued_per_second(spend)?;
        report.above(
            "a request checked and its certificate signed",
            "1/s of a core",
            ours,
            "openssl speed: 1 verify + 1 sign",
            floor,
            Target::Share(SHARE_OF_FLOOR),
        );
    }
    if wanted("sqlite") {
        runtime.block_on(measure(&mut report, "SQLite", None, &arguments, spend))?;
    }
    if wanted("postgresql") {
        let database = Postgres::from_environment()?.database()?;
        runtime.block_on(measure(&mut report, "PostgreSQL", Some(&database), &arguments, spend))?;
    }
    report.finish(arguments.json.as_deref())
}

async fn measure(
    report: &mut Report,
    engine: &str,
    database: Option<&TestDatabase>,
    arguments: &Arguments,
    spend: Duration,
) -> Result<()> {
    let mut builder = Hub::builder().set("enrollments-per-second", "100000").set("enrollments-per-source", "100000");
    if let Some(database) = database {
        builder = builder.set("database", database.url());
    }
    let mut hub = builder.start()?;
    core::give(hub.process()?.id())?;
    hub.tenant("bench")?;
    let stores = fleet::identity_stores(None, arguments.nodes);
    enrolling::measure(report, engine, &mut hub, database, &stores).await?;
    renewing::measure(report, engine, &mut hub, part(&stores, arguments.renewing)?, spend).await?;
    revoking::from_call_to_close(report, engine, &hub, &stores, arguments.revoked).await?;
    // Of those that are not revoked yet.
    let left = &stores[arguments.revoked..];
    revoking::behind_a_long_list(report, engine, &mut hub, database, left, arguments.denylist).await?;
    ensure!(hub.stop()?.success(), "the hub did not stop well");
    Ok(())
}

fn part(stores: &[IdentityStore], count: usize) -> Result<&[IdentityStore]> {
    ensure!(count <= stores.len(), "{count} nodes are more than the {} that enroll", stores.len());
    Ok(&stores[..count])
}
