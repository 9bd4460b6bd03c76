//! Commands through kill -9 of hub and nodes, acknowledgements that are lost and deliveries that come again, and the proof:
//! no effect twice, none lost, and every final state true by the nodes' own accounts.

mod account;
mod site;
mod verdict;

use std::collections::{BTreeMap, HashMap};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use protocol::CommandId;
use protocol::command::State;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::api::Api;
use crate::fleet::Errand;
use crate::rig::{Towards, until};

use site::{PATIENCE, Site};
use verdict::{Row, Wrong, judge};

/// How long a request is tried while the hub is down.
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// Most items of a page of the API.
const PAGE: usize = 500;
/// Commands that are described one by one when they are wrong.
const EXAMPLES: usize = 10;
/// An id and a line's end: what a success puts out.
const OUTPUT: u64 = 37;

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// At least so many commands.
    pub commands: usize,
    /// Processes of simulated nodes.
    pub herds: usize,
    /// Nodes of each.
    pub herd: usize,
    /// Faults.
    pub rounds: usize,
    /// Makes one run like another.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Commands that were asked for.
    pub commands: usize,
    /// Times the hub was killed.
    pub hub_kills: u32,
    /// Times a process of simulated nodes was killed.
    pub herd_kills: u32,
    /// Times the real agent was killed.
    pub agent_kills: u32,
    /// Times the network went deaf in a direction.
    pub deaf: u32,
    /// Datagrams that were lost.
    pub datagrams_lost: u64,
    /// Datagrams that came twice.
    pub datagrams_doubled: u64,
    /// Times a command came to a simulated node that had it already.
    pub came_again: u64,
    /// Commands that had more than one effect.
    pub twice: u64,
    /// Commands of which nobody knows what came of them, or that are not there any more.
    pub lost: u64,
    /// Commands whose final state is not what their node says.
    pub untrue: u64,
    /// Rows and effects that nobody has asked for.
    pub strange: u64,
    /// Commands by their final state.
    pub states: BTreeMap<&'static str, u64>,
    /// Some of what is wrong.
    pub examples: Vec<String>,
    /// From the first request to the last end.
    pub took: Duration,
}

/// One request for all nodes.
struct Request {
    key: String,
    errand: Errand,
    body: Value,
    /// So many of its commands are taken back at once.
    taken_back: usize,
}

/// What was asked of nodes, by the command's id.
type Asked = HashMap<CommandId, Errand>;

/// Does it; `database` is the hub's, `None` the embedded one.
///
/// # Errors
/// When something does not come back, or the rig fails. What is wrong with commands is in the outcome.
pub fn run(plan: &Plan, database: Option<&str>) -> Result<Outcome> {
    let mut site = Site::start(plan, database)?;
    let mut outcome = Outcome::default();
    let mut random = SmallRng::seed_from_u64(plan.seed);
    let requests = plan.commands.div_ceil(site.nodes);
    let mut asked = Asked::new();
    let began = Instant::now();
    for round in 0..plan.rounds {
        let (from, to) = (round * requests / plan.rounds, (round + 1) * requests / plan.rounds);
        let requests: Vec<Request> = (from..to).map(|number| request(&site, number, &mut random)).collect();
        let api = site.hub.api().clone();
        let made = thread::scope(|scope| {
            let posting = scope.spawn(|| post_all(&api, &requests));
            let fault = fault(&mut site, &mut outcome, &mut random);
            let made = posting.join().map_err(|_| anyhow!("the requests panicked"))?;
            fault.and(made)
        });
        asked.extend(made.with_context(|| format!("round {round} of seed {}", plan.seed))?);
        until("the commands to get on their way", PATIENCE, || {
            Ok((first(&site.hub.api().get(&path("queued", PAGE, None))?.ok()?)? < PAGE).then_some(()))
        })?;
    }
    // What does not come to an end is counted, and told apart from what does.
    let _ = until("every command to end", PATIENCE, || settled(site.hub.api()));
    outcome.took = began.elapsed();
    site.all_are_there()?;
    outcome.commands = asked.len();
    outcome.datagrams_lost = site.relay.lost();
    outcome.datagrams_doubled = site.relay.doubled();
    weigh(&site, &asked, &mut outcome)?;
    site.stop()?;
    Ok(outcome)
}

fn request(site: &Site, number: usize, random: &mut SmallRng) -> Request {
    let errand = match random.random_range(0..10) {
        0 => Errand::Fail,
        1 | 2 => Errand::Linger,
        _ => Errand::Count,
    };
    // Some end before those who are away are back.
    let valid_for = Duration::from_secs(if random.random_bool(0.1) { 1 } else { 3_600 });
    Request {
        key: format!("request-{number}"),
        errand,
        body: site.ask(errand, valid_for),
        taken_back: if random.random_bool(0.2) { 3 } else { 0 },
    }
}

/// Has all of them taken, however often the hub is not there.
fn post_all(api: &Api, requests: &[Request]) -> Result<Vec<(CommandId, Errand)>> {
    let mut made = Vec::new();
    for request in requests {
        let taken = again(|| api.post_once("/api/v1/commands", &request.key, &request.body))?;
        let commands = taken["commands"].as_array().context("no commands")?;
        let ids = commands.iter().map(|command| id(&command["id"])).collect::<Result<Vec<_>>>()?;
        for id in ids.iter().take(request.taken_back) {
            again(|| api.post(&format!("/api/v1/commands/{id}/cancel"), &json!({ "reason": "an ordeal" })))?;
        }
        made.extend(ids.into_iter().map(|id| (id, request.errand)));
    }
    Ok(made)
}

/// Until it is done: what was done without being told is not done again.
fn again(mut ask: impl FnMut() -> Result<crate::api::Reply>) -> Result<Value> {
    let began = Instant::now();
    loop {
        match ask() {
            Ok(reply) if reply.status < 300 => return Ok(reply.body),
            // Too much is open, or the hub does not know all nodes yet.
            Ok(reply) if reply.status < 500 && reply.status != 409 && reply.status != 429 => {
                bail!("the hub answered {}: {}", reply.status, reply.body)
            }
            last => ensure!(began.elapsed() < PATIENCE, "the hub does not take a request: {last:?}"),
        }
        thread::sleep(TRY_AGAIN);
    }
}

/// What is to be killed, and which direction loses everything before.
fn fault(site: &mut Site, outcome: &mut Outcome, random: &mut SmallRng) -> Result<()> {
    let moment = |random: &mut SmallRng| thread::sleep(Duration::from_millis(random.random_range(0..250)));
    moment(random);
    let deaf: &[Towards] = match random.random_range(0..4) {
        0 => &[],
        1 => &[Towards::Hub],
        2 => &[Towards::Nodes],
        _ => &[Towards::Hub, Towards::Nodes],
    };
    // What is sent now is not heard by who is killed next, or by who asks afterwards.
    for towards in deaf {
        site.relay.set_deaf(*towards, true);
        outcome.deaf += 1;
    }
    if !deaf.is_empty() {
        moment(random);
    }
    let hub = random.random_bool(0.5);
    if hub {
        site.hub.kill()?;
        outcome.hub_kills += 1;
    }
    let mut killed = Vec::new();
    for (place, herd) in site.herds.iter_mut().enumerate() {
        if random.random_bool(0.3) {
            herd.kill()?;
            outcome.herd_kills += 1;
            killed.push(place);
        }
    }
    let agent = random.random_bool(0.4);
    if agent {
        site.agent.kill()?;
        outcome.agent_kills += 1;
    }
    moment(random);
    for towards in deaf {
        site.relay.set_deaf(*towards, false);
    }
    for place in killed {
        site.herds.get_mut(place).context("no such herd")?.run()?;
    }
    if agent {
        site.agent.run()?;
    }
    if hub {
        site.hub.restart()?;
    }
    Ok(())
}

/// Whether every command has come to an end that its node has told, where it had been told of it.
fn settled(api: &Api) -> Result<Option<()>> {
    for state in ["queued", "delivered", "running"] {
        ensure!(first(&api.get(&path(state, 1, None))?.ok()?)? == 0, "some are {state}");
    }
    let mut untold = 0;
    each(api, "unknown", |row| {
        untold += u64::from(row["told"] != json!(true));
        Ok(())
    })?;
    ensure!(untold == 0, "{untold} are unknown, and not told by their nodes");
    Ok(Some(()))
}

/// Compares all rows with what was asked for and what the nodes say.
fn weigh(site: &Site, asked: &Asked, outcome: &mut Outcome) -> Result<()> {
    let accounts = site.accounts()?;
    let mut rows = HashMap::new();
    each(site.hub.api(), "", |row| {
        rows.insert(id(&row["id"])?, (read(row)?, row["node"] == json!(site.agent_node)));
        Ok(())
    })?;
    for (id, errand) in asked {
        let account = accounts.of(*id);
        outcome.came_again += account.came.saturating_sub(1);
        let verdict = match rows.get(id) {
            Some((row, agent)) => {
                *outcome.states.entry(row.state.as_str()).or_default() += 1;
                judge(row, *errand, &account, *agent)
            }
            None => Err(Wrong::Lost),
        };
        let Err(wrong) = verdict else { continue };
        *match wrong {
            Wrong::Twice => &mut outcome.twice,
            Wrong::Lost => &mut outcome.lost,
            Wrong::Untrue => &mut outcome.untrue,
        } += 1;
        if outcome.examples.len() < EXAMPLES {
            outcome.examples.push(format!("{id} ({errand:?}) is {wrong:?}: {:?}, {account:?}", rows.get(id)));
        }
    }
    let unasked = rows.keys().filter(|id| !asked.contains_key(id)).count()
        + accounts.iter().filter(|(id, account)| account.effects > 0 && !asked.contains_key(id)).count();
    outcome.strange = unasked as u64;
    // A few of them are looked at whole.
    let succeeded: Vec<&CommandId> =
        rows.iter().filter(|(_, (row, _))| row.state == State::Succeeded).map(|(id, _)| id).collect();
    for id in succeeded.sample(&mut SmallRng::seed_from_u64(1), 100) {
        let command = site.hub.api().get(&format!("/api/v1/commands/{id}"))?.ok()?;
        if command["output"] != json!(format!("{id}\n")) {
            outcome.untrue += 1;
            outcome.examples.push(format!("{id} has put out {}", command["output"]));
        }
    }
    Ok(())
}

fn read(row: &Value) -> Result<Row> {
    Ok(Row {
        state: row["state"].as_str().context("no state")?.parse()?,
        told: row["told"] == json!(true),
        output_bytes: row["output_bytes"].as_u64().unwrap_or(0),
        output_due: OUTPUT,
    })
}

/// Every command that stands so; in any state when it is empty.
fn each(api: &Api, state: &str, mut take: impl FnMut(&Value) -> Result<()>) -> Result<()> {
    let mut cursor: Option<String> = None;
    loop {
        let page = api.get(&path(state, PAGE, cursor.as_deref()))?.ok()?;
        page["items"].as_array().context("a page without items")?.iter().try_for_each(&mut take)?;
        cursor = page["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            return Ok(());
        }
    }
}

fn path(state: &str, limit: usize, cursor: Option<&str>) -> String {
    let state = if state.is_empty() { String::new() } else { format!("&state={state}") };
    let cursor = cursor.map_or(String::new(), |cursor| format!("&cursor={cursor}"));
    format!("/api/v1/commands?limit={limit}{state}{cursor}")
}

/// Items of a page.
fn first(page: &Value) -> Result<usize> {
    Ok(page["items"].as_array().context("a page without items")?.len())
}

fn id(value: &Value) -> Result<CommandId> {
    value.as_str().context("no id")?.parse().context("an id that is none")
}
