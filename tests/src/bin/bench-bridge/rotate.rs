//! What rotations of our bridge's certificates cost: how long records stand still while it goes on with new ones, towards the
//! hub and at the brokers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::{Front, Hub, SOON, kafka_server, until};
use serde_json::json;

use crate::carrier::Running;
use crate::collector::{Collector, doubled};
use crate::faults::wait_for;
use crate::folder;
use crate::kafka::Kafka;
use crate::plant::Mosquitto;

const TENANT: &str = "bench";
/// Rotations at most: a hub issues ten Kafka certificates an hour to a bridge, and the first is for its enrollment.
const MOST: usize = 9;
/// What is said of a certificate that is in use from then on, towards the hub and at the brokers.
const RENEWED: [&str; 2] = ["certificate renewed", "the certificate for Kafka was replaced"];

/// What they came to.
#[derive(Clone, Copy)]
pub(crate) struct Rotations {
    /// How many there were, each of both certificates.
    pub(crate) count: f64,
    /// Milliseconds that passed without a record in Kafka, at most.
    pub(crate) stall: f64,
    /// Milliseconds from publishing to a reader of Kafka, at most.
    pub(crate) latest: f64,
    /// Messages that Mosquitto had taken and Kafka never got, and repetitions in Kafka.
    pub(crate) lost: f64,
    pub(crate) doubled: f64,
}

/// Has a hub renew both certificates, again and again, while `rate` messages a second come for so many seconds.
pub(crate) fn measure(rate: u64, seconds: u64) -> Result<Rotations> {
    let folder = folder()?;
    let (mosquitto, kafka) = (Mosquitto::start(folder.path())?, Kafka::start(folder.path())?);
    let hub = Hub::start()?;
    hub.tenant(TENANT)?;
    let front = Front::before(kafka.brokers(), kafka_server(&hub, TENANT)?)?;
    let token = hub.bridge_token(TENANT, "bench")?;
    let mut bridge = Running::enrolled(folder.path(), &mosquitto, front.address(), &token)?;
    bridge.wait_until_it_carries(&mosquitto, &kafka)?;
    let node = hub.nodes()?.pop().context("the hub knows of no bridge")?;
    let collector = Collector::start(&kafka)?;
    let publishing = mosquitto.publish_paced(rate, Duration::from_secs(seconds))?;
    let mut count = 0;
    while !publishing.is_over() && count < MOST {
        let advice = json!({ "nodes": [node], "within_seconds": 0, "reason": "a benchmark" });
        hub.api().post("/api/v1/renewals", &advice)?.ok()?;
        count += 1;
        until("new certificates", SOON, || {
            bridge.usage()?;
            let said = bridge.said()?;
            Ok(RENEWED.iter().all(|renewed| said.matches(renewed).count() >= count).then_some(()))
        })?;
    }
    let published = publishing.finish()?;
    wait_for(&collector, published);
    let collected = collector.finish(&kafka)?;
    ensure!(front.certificates() > count, "the brokers saw {} certificates", front.certificates());
    Ok(Rotations {
        count: count as f64,
        stall: collected.stall.as_secs_f64() * 1e3,
        latest: collected.late.iter().map(|(_, late)| *late).fold(0.0, f64::max),
        lost: published.saturating_sub(collected.times.len() as u64) as f64,
        doubled: doubled(&collected.times) as f64,
    })
}
