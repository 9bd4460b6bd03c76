//! A log of gigabytes that waits for Kafka: how soon the bridge is ready with it, and what memory it takes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyperfactory_tests::rig::{SOON, until};
use spool::{Options, Overflow, Spool};

use crate::carrier::{Carrier, Running};
use crate::folder;
use crate::kafka::Kafka;
use crate::message::{payload, topic};
use crate::plant::Mosquitto;

/// Records that one sync makes durable.
const GROUP: u64 = 10_000;
/// How long memory is watched, before Kafka takes something and after.
const WATCH: Duration = Duration::from_secs(10);

/// What it came to.
#[derive(Clone, Copy)]
pub(crate) struct Waiting {
    /// Seconds from the start to the subscription.
    pub(crate) ready: f64,
    /// The most memory while Kafka takes nothing, and while it does.
    pub(crate) rss_mib: f64,
    pub(crate) sending_mib: f64,
}

/// Has our bridge start with a log of `bytes`.
pub(crate) fn measure(bytes: u64) -> Result<Waiting> {
    let folder = folder()?;
    let log = folder.path().join("state").join("log");
    fill(&log, bytes).context("filling the log")?;
    let (mosquitto, mut kafka) = (Mosquitto::start(folder.path())?, Kafka::start(folder.path())?);
    kafka.hang()?;
    let begun = Instant::now();
    let mut bridge = Carrier::Ours.start(folder.path(), &mosquitto, &kafka)?;
    until("the subscription", SOON, || Ok(bridge.said()?.contains(" subscribed").then_some(())))?;
    let ready = begun.elapsed().as_secs_f64();
    let rss_mib = watch(&mut bridge)?;
    kafka.go_on()?;
    let sending_mib = watch(&mut bridge)?;
    bridge.kill()?;
    Ok(Waiting { ready, rss_mib, sending_mib })
}

/// The most memory for a while.
fn watch(bridge: &mut Running) -> Result<f64> {
    let (begun, mut most) = (Instant::now(), 0);
    while begun.elapsed() < WATCH {
        most = most.max(bridge.usage()?.rss_kib);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(most as f64 / 1024.0)
}

/// A log as the bridge writes it: of what is published in the other measurements.
fn fill(log: &Path, bytes: u64) -> Result<()> {
    let options = Options { group_bytes: 4 << 20, overflow: Overflow::Refuse, ..Options::new(log, 2 * bytes) };
    let (mut spool, _) = Spool::open(options, 1)?;
    let (mut number, mut record) = (0, Vec::new());
    while spool.status().bytes < bytes {
        for _ in 0..GROUP {
            number += 1;
            encode(&mut record, &topic(number), &payload(number));
            spool.append(&record, true)?;
        }
        spool.sync()?;
    }
    Ok(())
}

/// Version 1 of the bridge's record, by the connection that the configuration has.
fn encode(record: &mut Vec<u8>, topic: &str, payload: &str) {
    record.clear();
    record.extend([1, 1]);
    record.extend(0i64.to_le_bytes());
    record.push(5);
    record.extend(u16::try_from(topic.len()).unwrap_or_default().to_le_bytes());
    record.extend(b"plant");
    record.extend(topic.as_bytes());
    record.extend(payload.as_bytes());
}
