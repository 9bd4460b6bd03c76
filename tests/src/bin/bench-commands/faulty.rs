//! Commands through kills, lost acknowledgements and deliveries that come again: none twice, none lost, every end true.

use anyhow::Result;
use hyperfactory_tests::ordeal::{self, Outcome, Plan};
use hyperfactory_tests::report::{Report, Target};
use hyperfactory_tests::rig::Postgres;

/// Has `commands` commands done on each engine. Blocks.
pub(crate) fn measure(commands: usize) -> Result<Report> {
    let mut report = Report::default();
    if commands == 0 {
        return Ok(report);
    }
    let plan = Plan { commands, herds: 4, herd: 50, rounds: 50, seed: 1 };
    add(&mut report, "SQLite", &ordeal::run(&plan, None)?);
    let database = Postgres::from_environment()?.database()?;
    add(&mut report, "PostgreSQL", &ordeal::run(&Plan { seed: 2, ..plan }, Some(database.url()))?);
    Ok(report)
}

fn add(report: &mut Report, engine: &str, outcome: &Outcome) {
    let none = Target::AtMost(0.0);
    let kills = outcome.hub_kills + outcome.herd_kills + outcome.agent_kills;
    let name = |what: &str| format!("{engine}: {} commands through faults: {what}", outcome.commands);
    report.figure(&name("effects that came twice"), "", outcome.twice as f64, none);
    report.figure(&name("lost"), "", outcome.lost as f64, none);
    report.figure(&name("final state not what the node says"), "", outcome.untrue as f64, none);
    report.figure(&name("rows or effects nobody asked for"), "", outcome.strange as f64, none);
    // Without these, the figures above would say nothing.
    report.figure(&name("kill -9 of hub, agent and nodes' processes"), "", kills.into(), Target::AtLeast(1.0));
    report.figure(&name("directions deaf before a kill"), "", outcome.deaf.into(), Target::AtLeast(1.0));
    report.figure(&name("deliveries that came again"), "", outcome.came_again as f64, Target::AtLeast(1.0));
    let unknown = outcome.states.get("unknown").copied().unwrap_or(0);
    report.figure(&name("under way when their node was killed: unknown"), "", unknown as f64, Target::Less);
    report.figure(&name("taken"), "s", outcome.took.as_secs_f64(), Target::Less);
    for example in &outcome.examples {
        tracing::error!("{example}");
    }
}
