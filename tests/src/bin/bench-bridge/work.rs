//! What a bridge does when all is well: drain a backlog, and carry what comes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::carrier::Carrier;
use crate::collector::Collector;
use crate::folder;
use crate::kafka::Kafka;
use crate::plant::Mosquitto;

/// Longest wait for a backlog to be drained.
const PATIENCE: Duration = Duration::from_secs(180);
/// At the beginning of live messages, what is not counted.
const WARM: Duration = Duration::from_secs(3);
/// How often the cluster is asked how many records it has.
const LOOK: Duration = Duration::from_millis(50);

/// A backlog that was drained.
#[derive(Clone, Copy)]
pub(crate) struct Drain {
    /// Messages a second, from the first in Kafka to the last.
    pub(crate) rate: f64,
    /// CPU seconds of the bridge's own processes for a million messages, its start included.
    pub(crate) cpu: f64,
}

/// Live messages.
#[derive(Clone, Copy)]
pub(crate) struct Live {
    /// CPU seconds of the bridge's own processes for a million messages.
    pub(crate) cpu: f64,
    /// Milliseconds from publishing to a reader of Kafka.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) rss_mib: f64,
}

/// Has `carrier` drain `messages` that its session holds.
pub(crate) fn drain(carrier: &Carrier, messages: u64) -> Result<Drain> {
    let folder = folder()?;
    let (mosquitto, kafka) = (Mosquitto::start(folder.path())?, Kafka::start(folder.path())?);
    let mut bridge = carrier.start(folder.path(), &mosquitto, &kafka)?;
    bridge.wait_until_it_carries(&mosquitto, &kafka)?;
    bridge.stop()?;
    let before = kafka.records()?;
    mosquitto.publish(1..=messages)?;
    bridge.start_again()?;
    let begun = Instant::now();
    let (mut first, mut last) = (None, (begun, before));
    while last.1 < before + messages {
        std::thread::sleep(LOOK);
        let now = (Instant::now(), kafka.records()?);
        if now.1 > before {
            first.get_or_insert(now);
        }
        if now.1 > last.1 {
            last = now;
        }
        bridge.usage()?;
        ensure!(begun.elapsed() < PATIENCE, "{} of {messages} messages came", last.1 - before);
    }
    let cpu = bridge.usage()?.cpu.as_secs_f64() / (messages as f64 / 1e6);
    let (since, there) = first.context("nothing came")?;
    let rate = (last.1 - there) as f64 / last.0.duration_since(since).as_secs_f64();
    Ok(Drain { rate, cpu })
}

/// Has `carrier` carry `rate` messages a second for so many seconds.
pub(crate) fn live(carrier: &Carrier, rate: u64, seconds: u64) -> Result<Live> {
    let folder = folder()?;
    let (mosquitto, kafka) = (Mosquitto::start(folder.path())?, Kafka::start(folder.path())?);
    let mut bridge = carrier.start(folder.path(), &mosquitto, &kafka)?;
    bridge.wait_until_it_carries(&mosquitto, &kafka)?;
    let collector = Collector::start(&kafka)?;
    let time = Duration::from_secs(seconds);
    let publishing = mosquitto.publish_paced(rate, WARM + time)?;
    std::thread::sleep(WARM);
    let (before, begun) = (bridge.usage()?.cpu, Instant::now());
    std::thread::sleep(time.saturating_sub(Duration::from_millis(500)));
    let (usage, taken) = (bridge.usage()?, begun.elapsed());
    let published = publishing.finish()?;
    let waiting = Instant::now();
    while collector.messages() < published {
        ensure!(waiting.elapsed() < PATIENCE, "{} of {published} messages came", collector.messages());
        std::thread::sleep(LOOK);
    }
    let collected = collector.finish(&kafka)?;
    let warm = rate * WARM.as_secs();
    let mut late: Vec<f64> =
        collected.late.iter().filter(|(number, _)| *number > warm).map(|(_, late)| *late).collect();
    late.sort_by(f64::total_cmp);
    let at = |share: f64| late.get((late.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    let carried = rate as f64 * taken.as_secs_f64() / 1e6;
    Ok(Live {
        cpu: (usage.cpu - before).as_secs_f64() / carried,
        p50: at(0.5),
        p99: at(0.99),
        rss_mib: usage.rss_kib as f64 / 1024.0,
    })
}
