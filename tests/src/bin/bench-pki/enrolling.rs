//! Nodes that enroll: a handshake, a token and a request in, a certificate out that is committed and audited.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::fleet;
use hyperfactory_tests::report::{Report, Target};
use hyperfactory_tests::rig::{Hub, TestDatabase, Usage};
use node::{Applicant, Clock, IdentityStore};
use pki::JoinToken;
use protocol::NodeKind;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use transport::Endpoint;

use crate::{ENROLLMENTS, core};

/// Nodes that enroll at once: more, and the hub has them prove their addresses first.
const AT_ONCE: usize = 32;
/// Connections to the API that make tokens.
const MAKING_TOKENS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn measure(
    report: &mut Report,
    engine: &str,
    hub: &mut Hub,
    database: Option<&TestDatabase>,
    stores: &[IdentityStore],
) -> Result<()> {
    let tokens = tokens(hub, stores.len()).await?;
    let process = hub.process()?.id();
    let (hub_before, server_before) = (core::spent(process)?, server(database)?);
    let began = Instant::now();
    enroll(stores, tokens).await?;
    let elapsed = began.elapsed().as_secs_f64();
    let (hub_spent, server_spent) = (core::spent(process)? - hub_before, server(database)? - server_before);
    let count = stores.len() as f64;
    let mut figure = |name: &str, unit: &str, value: f64, target: Target| {
        report.figure(&format!("{engine}: {name}"), unit, value, target);
    };
    figure("enrollments over QUIC", "1/s of a core", count / hub_spent, Target::AtLeast(ENROLLMENTS));
    if database.is_some() {
        figure("… with the server's share", "1/s of a core", count / (hub_spent + server_spent), Target::More);
    }
    figure("… by the clock", "1/s", count / elapsed, Target::More);
    Ok(())
}

/// Processor time of the database's processes for the hub.
fn server(database: Option<&TestDatabase>) -> Result<f64> {
    let Some(database) = database else { return Ok(0.0) };
    let name = database.url().rsplit('/').next().context("a database without a name")?;
    Ok(Usage::of_marked(&["postgres"], name)?.cpu.as_secs_f64())
}

/// Tokens are an operator's work, and not part of what is measured.
async fn tokens(hub: &Hub, count: usize) -> Result<Vec<JoinToken>> {
    let api = fleet::Api::new(&hub.endpoints().http, hub.api().token().context("no token")?);
    let mut tasks = JoinSet::new();
    for worker in 0..MAKING_TOKENS {
        let api = api.clone();
        tasks.spawn_blocking(move || {
            let own = (worker..count).step_by(MAKING_TOKENS);
            own.map(|index| api.join_token("bench", &fleet::node_name(index))).collect::<Result<Vec<_>>>()
        });
    }
    let mut tokens = Vec::with_capacity(count);
    while let Some(made) = tasks.join_next().await {
        tokens.append(&mut made??);
    }
    Ok(tokens)
}

async fn enroll(stores: &[IdentityStore], tokens: Vec<JoinToken>) -> Result<()> {
    ensure!(stores.len() == tokens.len(), "{} tokens for {} nodes", tokens.len(), stores.len());
    let endpoint = Endpoint::client()?;
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for (store, token) in stores.iter().zip(tokens) {
        let permit = Arc::clone(&permits).acquire_owned().await?;
        let (store, endpoint) = (store.clone(), endpoint.clone());
        tasks.spawn(async move {
            let _permit = permit;
            let applicant = Applicant { kind: NodeKind::Agent, name: String::new(), software: "bench-pki".to_owned() };
            node::enroll(&endpoint, &store, &token, &applicant, &Clock::system(), PATIENCE).await
        });
        while let Some(done) = tasks.try_join_next() {
            done??;
        }
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}
