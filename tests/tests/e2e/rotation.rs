//! Rotations of a real hub's authorities, with real sessions: the drill, and kill -9 at every step.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::drill::{self, Outcome};
use hyperfactory_tests::fleet::{self, Fleet, Options, SimulatedNode, Tokens};
use hyperfactory_tests::rig::{Hub, Postgres, SOON, until};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

/// Longest that a kill waits from the start of a step on.
const LATEST: Duration = Duration::from_millis(160);

/// The fleet has one thread, which the test does not block.
fn runtime() -> Result<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

fn judge(nodes: usize, outcome: &Outcome) -> Result<()> {
    ensure!((outcome.online, outcome.away) == (nodes - nodes / 5, nodes / 5), "{outcome:?}");
    let well = outcome.troubles.is_empty() && outcome.refused.is_empty() && outcome.handshakes_failed == 0;
    ensure!(well, "nodes that were there had trouble: {outcome:?}");
    ensure!(outcome.recovered == outcome.away, "{outcome:?}");
    ensure!(outcome.verified.starts_with("0 findings in "), "{outcome:?}");
    Ok(())
}

#[test]
fn a_root_is_rotated_while_a_fifth_of_500_nodes_is_away_on_sqlite() -> Result<()> {
    let outcome = runtime()?.block_on(drill::run(500, Duration::from_secs(10), None))?;
    judge(500, &outcome)
}

#[test]
fn a_root_is_rotated_while_a_fifth_of_500_nodes_is_away_on_postgresql() -> Result<()> {
    let database = Postgres::from_environment()?.database()?;
    let outcome = runtime()?.block_on(drill::run(500, Duration::from_secs(10), Some(database.url())))?;
    judge(500, &outcome)
}

/// A rotation that is killed again and again, and where it was seen to be.
struct Rotation {
    hub: Hub,
    id: Option<u64>,
    kills: u32,
    before: u32,
    after: u32,
}

impl Rotation {
    /// Where it stands; `None` when there is none.
    fn phase(&self) -> Result<Option<String>> {
        let path = match self.id {
            Some(id) => format!("/api/v1/rotations/{id}"),
            None => return Ok(None),
        };
        let shown = self.hub.api().get(&path)?.ok()?;
        Ok(shown["phase"].as_str().map(str::to_owned))
    }

    /// The rotation under way, if there is one that was not there before.
    fn begun(&mut self) -> Result<bool> {
        let open = self.hub.api().get("/api/v1/rotations?state=open")?.ok()?;
        self.id = open["items"][0]["id"].as_u64();
        Ok(self.id.is_some())
    }

    /// Takes a step, and kills the hub while it does: at first at once, then later and later, until the step is done.
    fn step(&mut self, verb: Option<&str>, to: &str) -> Result<()> {
        let from = self.phase()?;
        let mut wait = Duration::from_millis(4);
        loop {
            let (path, body) = match (verb, self.id) {
                (Some(verb), Some(id)) => (
                    format!("/api/v1/rotations/{id}/{verb}"),
                    json!({ "from": from, "leave": 1000, "renew_within_seconds": 1 }),
                ),
                _ => ("/api/v1/rotations".to_owned(), json!({ "kind": "root", "reason": "killed" })),
            };
            let api = self.hub.api().clone();
            std::thread::scope(|scope| -> Result<()> {
                let asked = scope.spawn(move || api.post(&path, &body).map(|reply| reply.status));
                let began = std::time::Instant::now();
                while began.elapsed() < wait && !asked.is_finished() {
                    std::hint::spin_loop();
                }
                self.hub.kill()?;
                // It was answered, or it was not: both may be.
                drop(asked.join());
                Ok(())
            })?;
            self.kills += 1;
            self.hub.restart()?;
            let done = match verb {
                Some(_) => {
                    let now = self.phase()?;
                    ensure!(now == from || now.as_deref() == Some(to), "from {from:?} to {to}, and it is at {now:?}");
                    now.as_deref() == Some(to)
                }
                None => self.begun()?,
            };
            if done {
                self.after += 1;
                return Ok(());
            }
            self.before += 1;
            wait = (wait * 2).min(LATEST);
        }
    }
}

/// There and back, and then through: after each step the hub is killed before, in or after its commit.
fn killed_at_every_step(database: Option<&str>) -> Result<()> {
    const NODES: usize = 5;
    let runtime = runtime()?;
    let mut builder = Hub::builder().set("enrollments-per-source", "500");
    if let Some(database) = database {
        builder = builder.set("database", database);
    }
    let hub = builder.start()?;
    hub.tenant("acme")?;
    let stores = fleet::identity_stores(None, NODES);
    let api = fleet::Api::new(&hub.endpoints().http, hub.api().token().context("no token")?);
    runtime.block_on(fleet::enroll(&stores, &Tokens::from_api(api, vec!["acme".into()])))?;
    let options = Options { series: 30, ..Options::default() };
    let fleet = runtime.block_on(async { Fleet::start(&options, &stores) })?;
    let all_up = |what: &str| {
        until(what, SOON * 4, || Ok((fleet.up() == NODES).then_some(()))).with_context(|| {
            let of = |node: &Arc<SimulatedNode>| {
                format!("{:?}, before: {:?}", node.link().map(|link| link.borrow().state.clone()), node.take_troubles())
            };
            fleet.nodes().iter().map(of).collect::<Vec<_>>().join("; ")
        })
    };
    all_up("the nodes")?;
    // One is away all the time.
    fleet.nodes()[0].set_there(false);
    let mut rotation = Rotation { hub, id: None, kills: 0, before: 0, after: 0 };
    let there_and_back = [
        (None, "prepare"),
        (Some("advance"), "trust"),
        (Some("advance"), "issue"),
        (Some("advance"), "retire"),
        (Some("back"), "issue"),
        (Some("back"), "trust"),
        (Some("back"), "prepare"),
        (Some("back"), "aborted"),
    ];
    for (verb, to) in there_and_back {
        rotation.step(verb, to)?;
    }
    rotation.id = None;
    for (verb, to) in [
        (None, "prepare"),
        (Some("advance"), "trust"),
        (Some("advance"), "issue"),
        (Some("advance"), "retire"),
        (Some("advance"), "done"),
    ] {
        rotation.step(verb, to)?;
    }
    let Rotation { mut hub, kills, before, after, .. } = rotation;
    ensure!(after == 13 && before > 0, "{kills} kills: {before} before the commit, {after} after it");
    fleet.nodes()[0].set_there(true);
    all_up("all nodes, also the one that was away")?;
    let steps = hub.api().get("/api/v1/audit?action=rotation.&limit=500")?.ok()?;
    let steps = steps["items"].as_array().map(Vec::len);
    ensure!(steps == Some(13), "a step has one record: {steps:?}");
    let roots: Value = hub.api().get("/api/v1/authorities")?.ok()?;
    let roots =
        roots.as_array().context("no list")?.iter().filter(|one| one["kind"] == "root" && one["state"] == "active");
    ensure!(roots.count() == 1, "one root issues");
    runtime.block_on(fleet.stop(SOON));
    let verified = drill::verified(&mut hub, &stores)?;
    ensure!(verified.starts_with("0 findings in "), "{verified}");
    Ok(())
}

#[test]
fn a_hub_that_is_killed_at_every_step_locks_nobody_out_and_logs_every_certificate_on_sqlite() -> Result<()> {
    killed_at_every_step(None)
}

#[test]
fn a_hub_that_is_killed_at_every_step_locks_nobody_out_and_logs_every_certificate_on_postgresql() -> Result<()> {
    let database = Postgres::from_environment()?.database()?;
    killed_at_every_step(Some(database.url()))
}

#[test]
fn a_join_token_of_before_is_good_until_the_old_root_is_retired_and_then_says_why_not() -> Result<()> {
    let runtime = runtime()?;
    let mut hub = Hub::start()?;
    hub.tenant("acme")?;
    let tokens: Vec<pki::JoinToken> = (0..4).map(|_| Ok(hub.join_token("acme")?.parse()?)).collect::<Result<_>>()?;
    let stores = fleet::identity_stores(None, tokens.len());
    let join = |place: usize, token: &pki::JoinToken| {
        let token = token.clone();
        let tokens = Tokens::made(move |_| Ok(token.clone()));
        runtime.block_on(fleet::enroll(&stores[place..=place], &tokens))
    };
    let begun = hub.api().post("/api/v1/rotations", &json!({ "kind": "root", "reason": "tokens" }))?.ok()?;
    let path = format!("/api/v1/rotations/{}/advance", begun["id"]);
    for (place, from) in ["prepare", "trust", "issue"].into_iter().enumerate() {
        join(place, &tokens[place]).with_context(|| format!("in the phase {from}"))?;
        hub.api().post(&path, &json!({ "from": from, "leave": 100 }))?.ok()?;
    }
    // A token that is good for nothing tells when the hub shows the new root alone.
    let mut good_for_nothing = tokens[3].clone();
    good_for_nothing.secret = [7; 32];
    let rotated = |error: &anyhow::Error| format!("{error:#}").contains("the fleet's root has been rotated since");
    until("the hub to show the new root alone", SOON, || Ok(join(3, &good_for_nothing).err().filter(rotated)))?;
    let refused = join(3, &tokens[3]).err().context("a token of before is still good")?;
    ensure!(rotated(&refused), "{refused:#}");
    // Whoever joined on the way has a session, whatever it was told then.
    let fleet =
        runtime.block_on(async { Fleet::start(&Options { series: 30, ..Options::default() }, &stores[..3]) })?;
    until("their sessions", SOON * 2, || Ok((fleet.up() == 3).then_some(())))?;
    runtime.block_on(fleet.stop(SOON));
    let verified = drill::verified(&mut hub, &stores[..3])?;
    ensure!(verified.starts_with("0 findings in "), "{verified}");
    Ok(())
}
