//! What is lost and what comes twice when a bridge is killed, and when the Kafka end hangs.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::carrier::Carrier;
use crate::collector::{Collector, doubled};
use crate::folder;
use crate::kafka::Kafka;
use crate::plant::Mosquitto;

/// Kills, and the time before each.
const KILLS: u32 = 3;
const BETWEEN: Duration = Duration::from_secs(3);
/// When nothing new came for so long, nothing more will. Longer than a producer takes to give up a silent broker.
const QUIET: Duration = Duration::from_secs(25);

/// What it came to.
#[derive(Clone, Copy)]
pub(crate) struct Toll {
    /// Messages that Mosquitto had taken and Kafka never got.
    pub(crate) lost: f64,
    /// Repetitions in Kafka.
    pub(crate) doubled: f64,
    /// Repetitions that the headers do not show to be any; nothing when there are no such headers.
    pub(crate) unmarked: Option<f64>,
    /// Messages a second that came after a hang, until none was left waiting.
    pub(crate) catch_up: Option<f64>,
}

/// Kills `carrier` three times while `rate` messages a second come.
pub(crate) fn kills(carrier: &Carrier, rate: u64) -> Result<Toll> {
    let folder = folder()?;
    let (mosquitto, kafka) = (Mosquitto::start(folder.path())?, Kafka::start(folder.path())?);
    let mut bridge = carrier.start(folder.path(), &mosquitto, &kafka)?;
    bridge.wait_until_it_carries(&mosquitto, &kafka)?;
    let collector = Collector::start(&kafka)?;
    let publishing = mosquitto.publish_paced(rate, BETWEEN * (KILLS + 1))?;
    for _ in 0..KILLS {
        std::thread::sleep(BETWEEN);
        bridge.kill()?;
        bridge.start_again()?;
    }
    let published = publishing.finish()?;
    wait_for(&collector, published);
    toll(collector, &kafka, published, None)
}

/// Has the Kafka end hang for so many seconds while `rate` messages a second come, and kills `carrier` half way.
pub(crate) fn hang(carrier: &Carrier, rate: u64, seconds: u64) -> Result<Toll> {
    let folder = folder()?;
    let (mosquitto, mut kafka) = (Mosquitto::start(folder.path())?, Kafka::start(folder.path())?);
    let mut bridge = carrier.start(folder.path(), &mosquitto, &kafka)?;
    bridge.wait_until_it_carries(&mosquitto, &kafka)?;
    let collector = Collector::start(&kafka)?;
    let half = Duration::from_secs(seconds) / 2;
    let publishing = mosquitto.publish_paced(rate, BETWEEN + 2 * half)?;
    std::thread::sleep(BETWEEN);
    kafka.hang()?;
    std::thread::sleep(half);
    bridge.kill()?;
    bridge.start_again()?;
    std::thread::sleep(half);
    kafka.go_on()?;
    let published = publishing.finish()?;
    let catch_up = wait_for(&collector, published);
    toll(collector, &kafka, published, catch_up)
}

fn toll(collector: Collector, kafka: &Kafka, published: u64, catch_up: Option<f64>) -> Result<Toll> {
    let collected = collector.finish(kafka)?;
    let came = collected.times.len() as u64;
    Ok(Toll {
        lost: published.saturating_sub(came) as f64,
        doubled: doubled(&collected.times) as f64,
        unmarked: (!collected.unmarked.is_empty()).then(|| doubled(&collected.unmarked) as f64),
        catch_up,
    })
}

/// Waits until all that was published is there, or nothing comes any more; then a little, for what comes twice. Gives
/// how many came a second, from the first that came on.
pub(crate) fn wait_for(collector: &Collector, published: u64) -> Option<f64> {
    let before = collector.messages();
    let (mut first, mut last) = (None, (Instant::now(), before));
    while last.1 < published && last.0.elapsed() < QUIET {
        std::thread::sleep(Duration::from_millis(10));
        let now = (Instant::now(), collector.messages());
        if now.1 > last.1 {
            first.get_or_insert(now);
            last = now;
        }
    }
    std::thread::sleep(Duration::from_secs(1));
    let (since, there) = first?;
    Some((last.1 - there) as f64 / last.0.duration_since(since).as_secs_f64())
}
