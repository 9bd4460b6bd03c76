//! `./bench bridge`: how many messages a bridge brings from MQTT to Kafka, at what cost, how soon, and what is lost or comes
//! twice when it is killed or the broker hangs; ours beside mq-bridge-app, and mosquitto_sub with a Kafka producer behind it.

mod carrier;
mod collector;
mod faults;
mod forward;
mod kafka;
mod message;
mod plant;
mod rotate;
mod waiting;
mod work;

use std::path::PathBuf;

use anyhow::{Context, Result};
use carrier::Carrier;
use clap::{Parser, Subcommand};
use hyperfactory_tests::report::{Report, Target};
use tempfile::TempDir;

use crate::faults::Toll;

/// What three kills may double: each what comes within 15 ms at 10,000 messages a second.
const DOUBLED: Target = Target::AtMost(450.0);

/// Measures bridges between a Mosquitto and librdkafka's mock cluster, each a process of its own.
#[derive(Parser)]
struct Arguments {
    /// Writes the rows here as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Messages of the backlog that is drained.
    #[arg(long, default_value_t = 500_000)]
    backlog: u64,
    /// Messages a second of the live figures.
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
    /// Seconds of the live figures.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Seconds that the broker hangs.
    #[arg(long, default_value_t = 20)]
    hang: u64,
    /// Seconds of messages while certificates are rotated, up to nine times.
    #[arg(long, default_value_t = 90)]
    rotating: u64,
    /// Bytes of the log that waits.
    #[arg(long, default_value_t = 10_000_000_000)]
    waiting: u64,
    /// Ours alone.
    #[arg(long)]
    alone: bool,
    /// What to measure: drain, live, kills, hang; and for ours waiting, which takes as much disk as the log that waits, and
    /// rotate.
    #[arg(long, value_delimiter = ',', default_values = ["drain", "live", "kills", "hang"])]
    only: Vec<String>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What a process of the benchmark's own is for.
#[derive(Subcommand)]
enum Role {
    /// A Kafka cluster; tells in a file where it listens.
    #[command(hide = true)]
    Kafka {
        /// The file.
        file: PathBuf,
    },
    /// Produces a record from each line of its input: topic, blank, payload.
    #[command(hide = true)]
    Forward {
        /// Where the cluster listens.
        brokers: String,
    },
}

/// What one bridge came to.
#[derive(Default)]
struct Figures {
    drain: Option<work::Drain>,
    live: Option<work::Live>,
    kills: Option<Toll>,
    hang: Option<Toll>,
    waiting: Option<waiting::Waiting>,
    rotations: Option<rotate::Rotations>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.role {
        Some(Role::Kafka { file }) => return kafka::serve(file),
        Some(Role::Forward { brokers }) => return forward::run(brokers),
        None => {}
    }
    let ours = measure(&Carrier::Ours, &arguments)?;
    let mut peers = Vec::new();
    if !arguments.alone {
        peers.push(("mq-bridge-app", measure(&Carrier::MqBridge, &arguments)?));
        peers.push(("mosquitto_sub | producer", measure(&Carrier::Subscriber, &arguments)?));
    }
    tabulate(&ours, &peers, arguments.rate, arguments.waiting).finish(arguments.json.as_deref())
}

fn measure(carrier: &Carrier, arguments: &Arguments) -> Result<Figures> {
    let wanted = |what: &str| arguments.only.iter().any(|only| only == what);
    let mut figures = Figures::default();
    if wanted("drain") {
        figures.drain = Some(work::drain(carrier, arguments.backlog).context("draining a backlog")?);
    }
    if wanted("live") {
        figures.live = Some(work::live(carrier, arguments.rate, arguments.seconds).context("live messages")?);
    }
    if wanted("kills") {
        figures.kills = Some(faults::kills(carrier, arguments.rate).context("three kills")?);
    }
    if wanted("hang") {
        figures.hang = Some(faults::hang(carrier, arguments.rate, arguments.hang).context("a broker that hangs")?);
    }
    if wanted("waiting") && matches!(carrier, Carrier::Ours) {
        figures.waiting = Some(waiting::measure(arguments.waiting).context("a log that waits")?);
    }
    if wanted("rotate") && matches!(carrier, Carrier::Ours) {
        let rotations = rotate::measure(arguments.rate, arguments.rotating).context("rotations")?;
        figures.rotations = Some(rotations);
    }
    Ok(figures)
}

fn tabulate(ours: &Figures, peers: &[(&str, Figures)], rate: u64, waiting: u64) -> Report {
    let mut report = Report::default();
    let mut row = |name: &str, unit: &str, target: Target, of: &dyn Fn(&Figures) -> Option<f64>| {
        let Some(own) = of(ours) else { return };
        let theirs: Vec<_> = peers.iter().filter_map(|(peer, figures)| Some((*peer, of(figures)?))).collect();
        for (peer, figure) in &theirs {
            report.beside(name, unit, own, peer, *figure, target);
        }
        if theirs.is_empty() {
            report.figure(name, unit, own, target);
        }
    };
    let at = |what: &str| format!("{what}, {rate} messages/s");
    row("drain", "1/s", Target::AtLeast(120_000.0), &|of| of.drain.map(|drain| drain.rate));
    row("CPU per million, drain", "s", Target::AtMost(7.0), &|of| of.drain.map(|drain| drain.cpu));
    row(&at("CPU per million"), "s", Target::AtMost(20.0), &|of| of.live.map(|live| live.cpu));
    row(&at("published to in Kafka, p50"), "ms", Target::Less, &|of| of.live.map(|live| live.p50));
    row(&at("published to in Kafka, p99"), "ms", Target::AtMost(20.0), &|of| of.live.map(|live| live.p99));
    row(&at("resident memory"), "MiB", Target::AtMost(30.0), &|of| of.live.map(|live| live.rss_mib));
    row("3 kills: lost", "messages", Target::AtMost(0.0), &|of| of.kills.map(|toll| toll.lost));
    // Who loses messages has it easy not to double any.
    let kept = |toll: Toll, doubled: f64| (toll.lost == 0.0).then_some(doubled);
    row("3 kills: doubled", "messages", DOUBLED, &|of| of.kills.and_then(|toll| kept(toll, toll.doubled)));
    row("3 kills: doubled, but for the headers", "messages", DOUBLED, &|of| of.kills?.unmarked);
    row("broker hangs, and a kill: lost", "messages", Target::AtMost(0.0), &|of| of.hang.map(|toll| toll.lost));
    row("broker hangs, and a kill: doubled", "messages", DOUBLED, &|of| {
        of.hang.and_then(|toll| kept(toll, toll.doubled))
    });
    row("broker hangs, and a kill: doubled, but for the headers", "messages", DOUBLED, &|of| of.hang?.unmarked);
    let catch_up = Target::AtLeast(10.0 * rate as f64);
    row("catch-up after the hang", "1/s", catch_up, &|of| of.hang.and_then(|toll| toll.catch_up));
    let of = |what: &str| format!("log of {:.0} GB, {what}", waiting as f64 / 1e9);
    row(&of("ready"), "s", Target::AtMost(1.0), &|of| of.waiting.map(|waiting| waiting.ready));
    row(&of("resident memory"), "MiB", Target::AtMost(64.0), &|of| of.waiting.map(|waiting| waiting.rss_mib));
    row(&of("memory while it is sent"), "MiB", Target::AtMost(64.0), &|of| {
        of.waiting.map(|waiting| waiting.sending_mib)
    });
    let of = |what: &str| at(&format!("rotations of both certificates: {what}"));
    row(&of("done"), "rotations", Target::AtLeast(9.0), &|of| of.rotations.map(|rotations| rotations.count));
    row(&of("time without a record"), "ms", Target::AtMost(1000.0), &|of| {
        of.rotations.map(|rotations| rotations.stall)
    });
    row(&of("published to in Kafka, latest"), "ms", Target::AtMost(1000.0), &|of| {
        of.rotations.map(|rotations| rotations.latest)
    });
    row(&of("lost"), "messages", Target::AtMost(0.0), &|of| of.rotations.map(|rotations| rotations.lost));
    row(&of("doubled"), "messages", Target::AtMost(0.0), &|of| of.rotations.map(|rotations| rotations.doubled));
    report
}

/// A folder for one measurement, on the disk that the programs are on: /tmp may be memory.
fn folder() -> Result<TempDir> {
    let own = std::env::current_exe().context("finding the benchmark's own executable")?;
    tempfile::tempdir_in(own.parent().context("the executable is in no folder")?).context("making a folder")
}
