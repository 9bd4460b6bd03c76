//! `./bench chaos`: 2,000 rounds of power cuts and cable cuts, half on SQLite, half on PostgreSQL.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use hyperfactory_tests::chaos::{self, Outcome};
use hyperfactory_tests::report::{Report, Target};
use hyperfactory_tests::rig::Postgres;

/// Kills hub and agents and cuts the cable between them, round after round, and counts what was lost or doubled.
#[derive(Parser)]
struct Arguments {
    /// Writes the rows here as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds in all.
    #[arg(long, default_value_t = 2_000)]
    rounds: u32,
    /// Makes one run like another.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut report = Report::default();
    let half = arguments.rounds / 2;
    add(&mut report, "SQLite", half, &chaos::run(half, arguments.seed, None)?);
    let database = Postgres::from_environment()?.database()?;
    let rest = arguments.rounds - half;
    add(&mut report, "PostgreSQL", rest, &chaos::run(rest, arguments.seed + 1, Some(database.url()))?);
    report.finish(arguments.json.as_deref())
}

fn add(report: &mut Report, engine: &str, rounds: u32, outcome: &Outcome) {
    let figures = [
        ("rounds survived", outcome.rounds.into(), Target::AtLeast(rounds.into())),
        ("hub kills", outcome.hub_kills.into(), Target::More),
        ("agent kills", outcome.agent_kills.into(), Target::More),
        ("cable cuts", outcome.cuts.into(), Target::More),
        ("batches stored", outcome.batches as f64, Target::More),
        ("batches missing", outcome.missing as f64, Target::AtMost(0.0)),
        ("batches counted twice", outcome.doubled as f64, Target::AtMost(0.0)),
        ("batches given up by a node", outcome.lost as f64, Target::AtMost(0.0)),
    ];
    for (name, value, target) in figures {
        report.figure(&format!("{engine}: {name}"), "count", value, target);
    }
}
