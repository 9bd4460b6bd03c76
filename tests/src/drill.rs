//! The drill: a fleet goes from one root to the next while a part of its nodes is switched off all the time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::fleet::{self, Fleet, Options, Tokens};
use crate::rig::{Hub, Usage};

/// One node of so many is away.
const AWAY_OF: usize = 5;
/// Tenants, whose nodes take turns.
const TENANTS: usize = 4;
/// What a fleet may take for one phase, or to come back.
const PATIENCE: Duration = Duration::from_secs(900);

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Nodes that were there all the time.
    pub online: usize,
    /// Nodes that were away from before the rotation until it was over.
    pub away: usize,
    /// Whatever kept a node that was there from the hub, or from a new certificate.
    pub troubles: Vec<String>,
    /// Sessions and renewals that the hub refused from the start of the rotation until the others came back, as audited.
    pub refused: Vec<Value>,
    /// Handshakes that failed in that time.
    pub handshakes_failed: u64,
    /// Time until everybody who was there was ready for a phase.
    pub phases: Vec<(String, Duration)>,
    /// The longest time to look at the gate.
    pub gate: Duration,
    /// Nodes that came back by recovery.
    pub recovered: usize,
    /// Time until all were back.
    pub back: Duration,
    /// The hub's memory at the end, KiB.
    pub rss_kib: u64,
    /// What `audit verify` says at the end, with the certificates that the nodes hold.
    pub verified: String,
}

/// Rotates the fleet root of a new hub with `nodes` nodes, a fifth of them away in all phases. Renewals are spread over
/// `renew_within`.
///
/// # Errors
/// When a phase does not come to its end, or not everybody comes back.
pub async fn run(nodes: usize, renew_within: Duration, database: Option<&str>) -> Result<Outcome> {
    let mut builder = Hub::builder().set("enrollments-per-second", "100000").set("enrollments-per-source", "100000");
    if let Some(database) = database {
        builder = builder.set("database", database);
    }
    let mut hub = builder.start()?;
    let tenants: Vec<String> = (0..TENANTS).map(|number| format!("tenant-{number}")).collect();
    for tenant in &tenants {
        hub.tenant(tenant)?;
    }
    let stores = fleet::identity_stores(None, nodes);
    let api = fleet::Api::new(&hub.endpoints().http, hub.api().token().context("no token")?);
    fleet::enroll(&stores, &Tokens::from_api(api, tenants)).await?;
    let options = Options { interval: Duration::from_secs(60), series: 30, sockets: 16, ..Options::default() };
    let fleet = Fleet::start(&options, &stores)?;
    ensure!(fleet.wait_for_sessions(nodes, PATIENCE).await, "{} of {nodes} sessions", fleet.up());
    let before = stores[0].load()?.context("no identity")?.roots;

    let away = nodes / AWAY_OF;
    let (off, on): (Vec<_>, Vec<_>) = fleet.nodes().iter().enumerate().partition(|(index, _)| index % AWAY_OF == 0);
    off.iter().for_each(|(_, node)| node.set_there(false));
    wait("the hub to miss those who are away", || Ok(sessions(&hub)? == nodes - away)).await?;
    let failed = metric(&hub, "hyperfactory_hub_handshakes_failed_total")?;
    // When all came at once, some may have come twice.
    let refused_before = refused(&hub)?.len();
    on.iter().for_each(|(_, node)| drop(node.take_troubles()));

    let started = json!({ "kind": "root", "reason": "a drill" });
    let mut rotation = hub.api().post("/api/v1/rotations", &started)?.ok()?;
    let path = format!("/api/v1/rotations/{}", rotation["id"]);
    let mut outcome = Outcome {
        online: nodes - away,
        away,
        troubles: Vec::new(),
        refused: Vec::new(),
        handshakes_failed: 0,
        phases: Vec::new(),
        gate: Duration::ZERO,
        recovered: 0,
        back: Duration::ZERO,
        rss_kib: 0,
        verified: String::new(),
    };
    while rotation["phase"] != "done" {
        let phase = rotation["phase"].as_str().context("no phase")?.to_owned();
        let began = Instant::now();
        let missing = loop {
            let looked = Instant::now();
            rotation = hub.api().get(&path)?.ok()?;
            outcome.gate = outcome.gate.max(looked.elapsed());
            let missing = rotation["forward"]["missing_count"].as_u64().context("no gate")? as usize;
            let first = rotation["forward"]["missing"].as_array().context("no list")?;
            // Who has just gone is online in the database for a moment.
            if missing <= away && first.iter().all(|one| one["presence"] == "lost" || one["presence"] == "left") {
                break missing;
            }
            ensure!(began.elapsed() < PATIENCE, "in {phase}, {missing} are still not ready: {rotation}");
            // A look costs the hub something, and a fleet takes its time.
            tokio::time::sleep(Duration::from_millis(250)).await;
        };
        ensure!(missing == if phase == "prepare" { 0 } else { away }, "in {phase}, {missing} are missing");
        outcome.phases.push((phase.clone(), began.elapsed()));
        let step = |leave: usize| {
            let step = json!({ "from": phase, "leave": leave, "renew_within_seconds": renew_within.as_secs() });
            hub.api().post(&format!("{path}/advance"), &step)
        };
        if missing > 0 {
            let refused = step(missing - 1)?;
            ensure!(refused.status == 409, "went on without {missing}: {}", refused.body);
        }
        rotation = step(missing)?.ok()?;
    }
    for (_, node) in &on {
        outcome.troubles.extend(node.take_troubles());
        ensure!(node.is_up(), "a node that was there is not in session: {:?}", node.status());
    }
    outcome.refused = refused(&hub)?.split_off(refused_before);
    outcome.handshakes_failed = metric(&hub, "hyperfactory_hub_handshakes_failed_total")? - failed;

    let began = Instant::now();
    off.iter().for_each(|(_, node)| node.set_there(true));
    wait("all to come back", || Ok(fleet.up() == nodes)).await?;
    outcome.back = began.elapsed();
    outcome.recovered = audited(&hub, "node.recovered")?.len();
    // What they were told they have taken: one root, and not the one of before.
    wait("all to trust the new root alone", || {
        for node in fleet.nodes() {
            let roots = node.stored()?.roots;
            if roots.len() != 1 || roots == before {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await?;
    ensure!(fleet.wait_until_delivered(PATIENCE).await, "the fleet could not hand over all it holds");
    outcome.rss_kib = Usage::of_tree(hub.process()?.id())?.rss_kib;
    fleet.stop(PATIENCE).await;
    outcome.verified = verified(&mut hub, &stores)?;
    Ok(outcome)
}

/// Stops the hub and verifies its log against every certificate that `stores` hold.
///
/// # Errors
/// When the hub does not stop well, or the log is not in order.
pub fn verified(hub: &mut Hub, stores: &[node::IdentityStore]) -> Result<String> {
    let mut pem = String::new();
    for store in stores {
        let identity = store.load()?.context("a node without an identity")?;
        for certificate in identity.credential.chain() {
            pem += &format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", BASE64.encode(certificate));
        }
    }
    let directory = tempfile::tempdir()?;
    let held = directory.path().join("held.pem");
    std::fs::write(&held, pem)?;
    ensure!(hub.stop()?.success(), "the hub did not stop well");
    hub.command(&["audit", "verify", "--certificate", &held.display().to_string()])
}

async fn wait(what: &str, reached: impl Fn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !reached()? {
        if began.elapsed() > PATIENCE {
            bail!("waited {} s for {what}", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn sessions(hub: &Hub) -> Result<usize> {
    Ok(metric(hub, "hyperfactory_hub_sessions")? as usize)
}

fn metric(hub: &Hub, name: &str) -> Result<u64> {
    let text = hub.api().get("/metrics")?.ok()?;
    let line = text.as_str().context("no metrics")?.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {name}"))?.trim().parse()?)
}

/// Sessions and renewals that were refused so far, the oldest first.
fn refused(hub: &Hub) -> Result<Vec<Value>> {
    let mut all = audited(hub, "renewal.refused")?;
    all.extend(audited(hub, "session.refused")?);
    all.sort_by_key(|entry| entry["id"].as_u64());
    Ok(all)
}

/// Entries of an action, all pages of them.
fn audited(hub: &Hub, action: &str) -> Result<Vec<Value>> {
    let (mut entries, mut cursor) = (Vec::new(), String::new());
    loop {
        let mut page: Value = hub.api().get(&format!("/api/v1/audit?action={action}&limit=500{cursor}"))?.ok()?;
        let Value::Array(items) = page["items"].take() else { bail!("a page without items: {page}") };
        entries.extend(items);
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(entries),
        }
    }
}
