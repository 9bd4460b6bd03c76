//! `./bench pki-drill`: the fleet root of 10,000 nodes is rotated while a fifth of them is away.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use hyperfactory_tests::drill::{self, Outcome};
use hyperfactory_tests::report::{Report, Target};
use hyperfactory_tests::rig::Postgres;

/// Rotates a fleet's root through all phases with a fifth of the nodes switched off, and counts who was locked out.
#[derive(Parser)]
struct Arguments {
    /// Writes the rows here as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Nodes on SQLite.
    #[arg(long, default_value_t = 10_000)]
    nodes: usize,
    /// Nodes on PostgreSQL; 0: that is left out.
    #[arg(long, default_value_t = 2_000)]
    nodes_postgresql: usize,
    /// Seconds over which renewals are spread.
    #[arg(long, default_value_t = 60)]
    renew_within: u64,
}

// The fleet has one thread, which this one does not block.
#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let within = Duration::from_secs(arguments.renew_within);
    let mut report = Report::default();
    add(&mut report, "SQLite", &drill::run(arguments.nodes, within, None).await?);
    if arguments.nodes_postgresql > 0 {
        let database = Postgres::from_environment()?.database()?;
        add(&mut report, "PostgreSQL", &drill::run(arguments.nodes_postgresql, within, Some(database.url())).await?);
    }
    report.finish(arguments.json.as_deref())
}

fn add(report: &mut Report, engine: &str, outcome: &Outcome) {
    let mut figure = |name: &str, unit: &str, value: f64, target: Target| {
        report.figure(&format!("{engine}: {name}"), unit, value, target);
    };
    let away = outcome.away as f64;
    figure("nodes there all the time", "count", outcome.online as f64, Target::More);
    figure("troubles of nodes that were there", "count", outcome.troubles.len() as f64, Target::AtMost(0.0));
    figure("sessions and renewals refused until then", "count", outcome.refused.len() as f64, Target::AtMost(0.0));
    figure("handshakes failed until then", "count", outcome.handshakes_failed as f64, Target::AtMost(0.0));
    figure("nodes away in all phases", "count", away, Target::More);
    figure(
        "of them recovered, nobody helping",
        "%",
        100.0 * outcome.recovered as f64 / away.max(1.0),
        Target::AtLeast(100.0),
    );
    figure("findings of audit verify", "count", findings(&outcome.verified), Target::AtMost(0.0));
    for refused in &outcome.refused {
        #[expect(clippy::print_stderr, reason = "a count does not say why")]
        {
            eprintln!("{engine}: {refused}");
        }
    }
    for (phase, took) in &outcome.phases {
        figure(&format!("all who are there ready, phase {phase}"), "s", took.as_secs_f64(), Target::Less);
    }
    figure("all back after the rotation", "s", outcome.back.as_secs_f64(), Target::Less);
    figure("a look at the gates, longest", "ms", outcome.gate.as_secs_f64() * 1e3, Target::Less);
    figure("hub RSS at the end", "MiB", outcome.rss_kib as f64 / 1024.0, Target::Less);
}

/// The number at the start of what `audit verify` says.
fn findings(verified: &str) -> f64 {
    verified.split_ascii_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}
