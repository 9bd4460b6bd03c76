//! kill -9 of the hub at every commit of an enrollment, a renewal and a revocation: before it, and after it unheard.

use std::cell::RefCell;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use hyperfactory_tests::drill;
use hyperfactory_tests::fleet::{self, Fleet, Options, Tokens};
use hyperfactory_tests::rig::{Commits, Hub, Postgres, Proxy, SOON, Side, TestDatabase, until};
use node::IdentityStore;
use pki::Serial;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

/// More commits than any of the three takes, and more writes.
const MOST: usize = 80;
/// What an act leads to comes within this.
const SETTLES: Duration = Duration::from_millis(100);

/// What is done while the hub is killed; it goes on by itself until it is done.
type Act = Box<dyn FnOnce() -> Result<()> + Send>;

/// A hub that is killed at its commits, and the nodes that must not be hurt by it.
struct Range {
    hub: Hub,
    commits: Commits,
    runtime: Runtime,
    stores: Vec<IdentityStore>,
    kills: usize,
    _database: Option<TestDatabase>,
}

impl Range {
    fn sqlite() -> Result<Self> {
        Self::new(Hub::builder(), Commits::Sqlite, None)
    }

    fn postgresql() -> Result<Self> {
        let database = Postgres::from_environment()?.database()?;
        let (proxy, url) = Proxy::before(database.url())?;
        Self::new(Hub::builder().set("database", url), Commits::Postgres(proxy), Some(database))
    }

    fn new(hub: hyperfactory_tests::rig::HubBuilder, commits: Commits, database: Option<TestDatabase>) -> Result<Self> {
        let hub = hub.set("enrollments-per-source", "500").start()?;
        hub.tenant("acme")?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { hub, commits, runtime, stores: Vec::new(), kills: 0, _database: database })
    }

    /// Does `act` with a kill at each commit in turn, until one comes to its end without a kill; The hub is
    /// up again before `settle` looks at what came of it. Gives the number of commits that it was killed at.
    fn sweep(
        &mut self,
        side: Side,
        mut act: impl FnMut(&mut Self) -> Result<Act>,
        mut settle: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<usize> {
        for nth in 1..=MOST {
            let act = act(self)?;
            let process = self.hub.process()?.id();
            let trap = self.commits.kill_at(process, nth, side).with_context(|| format!("{side:?} {nth} {process}"))?;
            let acting = thread::spawn(act);
            let killed = loop {
                if self.hub.process()?.check().is_err() {
                    break true;
                }
                if acting.is_finished() {
                    // What the act leads to may commit, too.
                    break until("a kill", SETTLES, || Ok(self.hub.process()?.check().is_err().then_some(()))).is_ok();
                }
                thread::yield_now();
            };
            drop(trap);
            if killed {
                self.kills += 1;
                self.hub.kill()?;
                self.hub.restart()?;
            }
            acting
                .join()
                .map_err(|_| anyhow!("the act panicked"))?
                .with_context(|| format!("{side:?} commit {nth}"))?;
            if let Err(error) = settle(self) {
                let said = self.hub.process()?.last_words();
                return Err(error.context(format!("{side:?} commit {nth}, killed: {killed}; {said}")));
            }
            if !killed {
                return Ok(nth - 1);
            }
        }
        Err(anyhow!("killed {MOST} times, and still not at the end"))
    }

    fn enroll_one(&mut self) -> Result<Act> {
        let token: pki::JoinToken = self.hub.join_token("acme")?.parse()?;
        let tokens = Tokens::made(move |_| Ok(token.clone()));
        let store = IdentityStore::memory();
        self.stores.push(store.clone());
        let runtime = self.runtime.handle().clone();
        Ok(Box::new(move || runtime.block_on(fleet::enroll(&[store], &tokens)).map(drop)))
    }

    fn start(&self, stores: &[IdentityStore]) -> Result<Fleet> {
        let _entered = self.runtime.enter();
        // Whoever says something often finds out soon that the hub of its session is no more.
        let options =
            Options { series: 30, interval: Duration::from_secs(1), samples_per_batch: 1, ..Options::default() };
        let fleet = Fleet::start(&options, stores)?;
        until("every node's session", SOON * 2, || Ok((fleet.up() == stores.len()).then_some(())))?;
        Ok(fleet)
    }

    /// Every node gets in with what it holds, and the log has every certificate.
    fn nobody_is_locked_out(mut self, least: usize) -> Result<()> {
        ensure!(self.kills >= least, "{} kills", self.kills);
        let fleet = self.start(&self.stores)?;
        self.runtime.block_on(fleet.stop(SOON));
        let verified = drill::verified(&mut self.hub, &self.stores)?;
        ensure!(verified.starts_with("0 findings in "), "{verified}");
        Ok(())
    }
}

fn enrollments(mut range: Range) -> Result<()> {
    for side in [Side::Before, Side::After] {
        let commits = range.sweep(side, Range::enroll_one, |_| Ok(()))?;
        ensure!(commits >= 1, "{commits} commits");
    }
    range.nobody_is_locked_out(2)
}

fn renewals(mut range: Range) -> Result<()> {
    for side in [Side::Before, Side::After] {
        let fleet = RefCell::new(None);
        let commits = range.sweep(
            side,
            |range| {
                // A new one each time: it has not learned to wait longer and longer.
                range.enroll_one()?()?;
                let store = range.stores.last().context("no node")?.clone();
                let started = range.start(std::slice::from_ref(&store))?;
                let node = Arc::clone(&started.nodes()[0]);
                *fleet.borrow_mut() = Some(started);
                let serial = move || -> Result<Serial> { Ok(node.stored()?.credential.subject().serial) };
                let (node, old) = (Arc::clone(&fleet.borrow().as_ref().context("no node")?.nodes()[0]), serial()?);
                Ok(Box::new(move || {
                    let mut asked = None;
                    until("a new certificate", SOON * 2, || {
                        let session = Some(node.counted().sessions);
                        match (serial()? == old, node.is_up()) {
                            (false, up) => return Ok(up.then_some(())),
                            // A session that was cut off takes the wish along.
                            (true, true) if asked != session => {
                                node.renew();
                                asked = session;
                            }
                            (true, _) => {}
                        }
                        Ok(None)
                    })
                }))
            },
            |range| {
                let fleet = fleet.take().context("no node")?;
                let node = &fleet.nodes()[0];
                until("the session", SOON * 2, || Ok(node.is_up().then_some(())))?;
                until("the hub to know the certificate", SOON * 2, || {
                    let held = node.stored()?.credential.subject().serial.to_string();
                    let shown = range.hub.node(&node.id().to_string())?;
                    let shown = &shown["certificate"]["serial"];
                    ensure!(*shown == *held, "the node holds {held}, the hub shows {shown}: {:?}", node.status());
                    Ok(Some(()))
                })?;
                range.runtime.block_on(fleet.stop(SOON));
                Ok(())
            },
        )?;
        ensure!(commits >= 2, "{commits} commits");
    }
    range.nobody_is_locked_out(4)
}

fn revocations(mut range: Range) -> Result<()> {
    // Enough for every commit, one each.
    let mut nodes = Vec::new();
    for side in [Side::Before, Side::After] {
        let commits = range.sweep(
            side,
            |range| {
                range.enroll_one()?()?;
                let store = range.stores.pop().context("no node")?;
                let node = store.load()?.context("no identity")?.node.to_string();
                nodes.push((node.clone(), store));
                let api = range.hub.api().clone();
                Ok(Box::new(move || {
                    let path = format!("/api/v1/nodes/{node}/revoke");
                    until("the revocation", SOON * 2, || {
                        let answer = api.post(&path, &json!({ "reason": "key_compromise" }))?;
                        // It may have been done unheard.
                        Ok((answer.status == 204).then_some(()))
                    })
                }))
            },
            |_| Ok(()),
        )?;
        ensure!(commits >= 1, "{commits} commits");
    }
    for (node, _) in &nodes {
        let shown = range.hub.node(node)?;
        ensure!(shown["revoked_at"].is_string(), "{shown}");
    }
    let records = range.hub.api().get("/api/v1/audit?action=node.revoked&limit=500")?.ok()?;
    let records = records["items"].as_array().context("no list")?;
    ensure!(records.len() == nodes.len(), "{} records of {} revocations", records.len(), nodes.len());
    // One that nobody revoked has a session, so that those who have none are not merely late.
    range.enroll_one()?()?;
    let bystander = range.start(&range.stores)?;
    let stores: Vec<_> = nodes.iter().map(|(_, store)| store.clone()).collect();
    let revoked = {
        let _entered = range.runtime.enter();
        Fleet::start(&Options { series: 30, ..Options::default() }, &stores)?
    };
    until("each to be told", SOON * 2, || {
        let told =
            |node: &fleet::SimulatedNode| node.status().is_some_and(|status| format!("{status:?}").contains("revoked"));
        ensure!(revoked.up() == 0, "{} revoked nodes have a session", revoked.up());
        Ok(revoked.nodes().iter().all(|node| told(node)).then_some(()))
    })?;
    range.runtime.block_on(async { (revoked.stop(SOON).await, bystander.stop(SOON).await) });
    range.nobody_is_locked_out(2)
}

#[test]
fn an_enrollment_survives_a_kill_at_every_commit_on_sqlite() -> Result<()> {
    enrollments(Range::sqlite()?)
}

#[test]
fn an_enrollment_survives_a_kill_at_every_commit_on_postgresql() -> Result<()> {
    enrollments(Range::postgresql()?)
}

#[test]
fn a_renewal_survives_a_kill_at_every_commit_on_sqlite() -> Result<()> {
    renewals(Range::sqlite()?)
}

#[test]
fn a_renewal_survives_a_kill_at_every_commit_on_postgresql() -> Result<()> {
    renewals(Range::postgresql()?)
}

#[test]
fn a_revocation_survives_a_kill_at_every_commit_on_sqlite() -> Result<()> {
    revocations(Range::sqlite()?)
}

#[test]
fn a_revocation_survives_a_kill_at_every_commit_on_postgresql() -> Result<()> {
    revocations(Range::postgresql()?)
}
