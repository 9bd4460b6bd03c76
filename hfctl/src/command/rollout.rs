//! `hfctl rollout`: the same command over many nodes, in waves.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use settings::Period;

use super::order::{Order, Why, confirm, somebody, what};
use crate::client::{Client, patiently};
use crate::failure::Failure;
use crate::output::{Output, complain, counted, text, time};

/// Between two looks at a rollout that is watched.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Subcommand)]
pub(crate) enum Rollout {
    /// Starts a rollout: a wave is asked, watched, and followed by the next. It halts by itself when too many nodes fail or
    /// are not well afterwards.
    Start(Box<Start>),
    /// Lists rollouts, newest first.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Shows a rollout, wave by wave.
    Show {
        /// Its number.
        rollout: i64,
        /// Every node of it, instead.
        #[arg(long)]
        nodes: bool,
    },
    /// Follows a rollout until it is over or held. Fails unless it is done.
    Watch {
        /// Its number.
        rollout: i64,
    },
    /// Holds a rollout: nobody else is asked. What was asked for goes on.
    Pause(Act),
    /// Lets a rollout go on. What was wrong with one that halted is accepted, and does not halt it again; whose commands were
    /// taken back then is asked anew.
    Resume(Act),
    /// Gives a rollout up for good: nobody else is asked, and what nobody was told is taken back.
    Abort(Act),
}

/// Which, and why.
#[derive(Args)]
pub(crate) struct Act {
    /// Its number.
    rollout: i64,
    #[command(flatten)]
    why: Why,
}

/// What to do, where, how fast, and why.
#[derive(Args)]
pub(crate) struct Start {
    #[command(flatten)]
    order: Order,
    /// How far each wave reaches, those before it included: a number of nodes, a share, or a label, as in
    /// ring=canary,10%,100%. The last one is 100%.
    #[arg(long, value_delimiter = ',', default_value = "1,10%,50%,100%")]
    waves: Vec<String>,
    /// How long each wave is watched before the next one.
    #[arg(long, value_name = "PERIOD", default_value = "5m")]
    soak: Period,
    /// How long a node has for its command before it counts as timed out.
    #[arg(long, value_name = "PERIOD", default_value = "10m")]
    settle: Period,
    /// Halt when more than this share of a wave fails or times out.
    #[arg(long, value_name = "PERCENT", default_value_t = 10)]
    max_failed: u8,
    /// Halt when more than this share of a wave was well before and is not while it is watched.
    #[arg(long, value_name = "PERCENT", default_value_t = 10)]
    max_regressed: u8,
    /// Most new commands in a minute.
    #[arg(long, value_name = "COMMANDS")]
    rate: Option<u32>,
    /// Have commands start at these times only, as "Mon-Fri 22:00-04:00 +01:00"; can be given several times. Who is away is
    /// asked anew in each, while --valid-for lasts.
    #[arg(long = "window", value_name = "WINDOW")]
    windows: Vec<String>,
    #[command(flatten)]
    why: Why,
    /// Only say who is meant, in which wave.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask first.
    #[arg(long, short)]
    yes: bool,
    /// Follow it until it is over or held. Fails unless it is done.
    #[arg(long)]
    wait: bool,
}

impl Rollout {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        match self {
            Self::Start(start) => start.run(client, output),
            Self::List { limit } => {
                let heads = ["ROLLOUT", "STATE", "WAVE", "WHAT", "BY", "BEGUN", "ENDED", "WHY IT STANDS SO"];
                output.list(client.list("rollouts", &[], Some(limit))?, heads, row, "no rollouts")
            }
            Self::Show { rollout, nodes: true } => {
                let nodes = client.list(&format!("rollouts/{rollout}/nodes"), &[], None)?;
                output.list(
                    nodes,
                    ["WAVE", "NODE", "TENANT", "STATE", "COMMAND", "WHAT CAME OF IT"],
                    node_row,
                    "no nodes",
                )
            }
            Self::Show { rollout, nodes: false } => show(&client.get(&format!("rollouts/{rollout}"), &[])?, output),
            Self::Watch { rollout } => watch(client, &rollout.to_string(), output),
            Self::Pause(act) => act.run("pause", client, output),
            Self::Resume(act) => act.run("resume", client, output),
            Self::Abort(act) => act.run("abort", client, output),
        }
    }
}

impl Act {
    fn run(&self, verb: &str, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let done: Value =
            client.post(&format!("rollouts/{}/{verb}", self.rollout), &json!({ "reason": self.why.reason }))?;
        if output.is_json() {
            return output.json(&done);
        }
        output.line(&progress(&done))
    }
}

impl Start {
    fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let mut asked = self.request(client)?;
        asked["preview"] = json!(true);
        let preview: Value = client.post("rollouts", &asked)?;
        if self.dry_run && output.is_json() {
            return output.json(&preview);
        }
        if !self.dry_run {
            somebody(&preview)?;
        }
        if self.dry_run || !self.yes {
            let waves = preview["waves"].as_array().cloned().unwrap_or_default();
            let in_waves = counted(waves.len() as u64, "wave", "waves");
            complain(&format!("{}, in {in_waves}", what(&preview)));
            for wave in &waves {
                let [number, online] = ["/number", "/online"].map(|path| text(wave, path));
                let nodes = counted(wave["nodes"].as_u64().unwrap_or(0), "node", "nodes");
                let first: Vec<&str> =
                    wave["first"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                let more = wave["nodes"].as_u64().unwrap_or(0) > first.len() as u64;
                let more = if more { ", …" } else { "" };
                complain(&format!("  wave {number}: {nodes}, {online} online: {}{more}", first.join(", ")));
            }
        }
        if self.dry_run {
            complain("nothing is done");
            return Ok(());
        }
        if !self.yes {
            confirm()?;
        }
        asked["preview"] = json!(false);
        asked["command"]["expected"] = preview["digest"].clone();
        let started: Value = client.post_once("rollouts", &asked, "hfctl rollout list")?;
        if self.wait {
            return watch(client, &text(&started, "/id"), output);
        }
        if output.is_json() { output.json(&started) } else { output.line(&progress(&started)) }
    }

    fn request(&self, client: &Client) -> Result<Value, Failure> {
        Ok(json!({
            "command": self.order.request(client, &self.why)?,
            "waves": self.waves,
            "rate_per_minute": self.rate,
            "windows": self.windows,
            "settle_seconds": self.settle.get().as_secs(),
            "soak_seconds": self.soak.get().as_secs(),
            "max_failed_percent": self.max_failed,
            "max_regressed_percent": self.max_regressed,
        }))
    }
}

/// Says each time when something has changed, until nothing more does by itself.
fn watch(client: &Client, rollout: &str, output: &mut Output) -> Result<(), Failure> {
    let path = format!("rollouts/{rollout}");
    let (mut shown, mut said) = (client.get::<Value>(&path, &[])?, String::new());
    loop {
        let now = progress(&shown);
        if now != said {
            if output.is_json() {
                output.json_line(&shown)?
            } else {
                output.line(&now)?
            }
            said = now;
        }
        match shown["state"].as_str() {
            Some("running") => {
                std::thread::sleep(LOOK_EVERY);
                shown = patiently(|| client.get(&path, &[]))?;
            }
            Some("done") => return Ok(()),
            _ => {
                let (state, why) = (text(&shown, "/state"), text(&shown, "/why"));
                let next = match state.as_str() {
                    "halted" => format!("; see hfctl rollout show {rollout} --nodes, then resume or abort it"),
                    "paused" => format!("; hfctl rollout resume {rollout} lets it go on"),
                    _ => String::new(),
                };
                return Err(Failure::Failed(format!("rollout {rollout} is {state}: {why}{next}")));
            }
        }
    }
}

/// How nodes can stand that have not done it, with the words for it.
const OTHERS: [(&str, &str); 9] = [
    ("failed", "failed"),
    ("timed_out", "timed out"),
    ("regressed", "not well any more"),
    ("at_work", "at work"),
    ("waiting", "asked and not there yet"),
    ("missed", "not back in time"),
    ("cancelled", "taken back"),
    ("skipped", "left out"),
    ("pending", "not asked"),
];

/// Those of these waves that have not done it.
fn others<'a>(waves: impl Iterator<Item = &'a Value> + Clone) -> Vec<String> {
    let count = |name: &str| waves.clone().filter_map(|wave| wave["counts"][name].as_u64()).sum::<u64>();
    let counts = OTHERS.iter().map(|(name, word)| (count(name), word));
    counts.filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect()
}

/// Where a rollout stands, on one line.
fn progress(rollout: &Value) -> String {
    let waves = rollout["waves"].as_array().into_iter().flatten();
    let done: u64 = waves.clone().filter_map(|wave| wave["counts"]["succeeded"].as_u64()).sum();
    let [id, state, wave, count] = ["/id", "/state", "/wave", "/wave_count"].map(|path| text(rollout, path));
    let mut line = format!("rollout {id}: {state}, wave {wave} of {count}, {done} done");
    for said in others(waves) {
        line.push_str(&format!(", {said}"));
    }
    if rollout["waits_for"].is_string() {
        line.push_str(&format!("; waits for {}", text(rollout, "/waits_for")));
    }
    line
}

fn row(rollout: &Value) -> [String; 8] {
    [
        text(rollout, "/id"),
        text(rollout, "/state"),
        format!("{}/{}", text(rollout, "/wave"), text(rollout, "/wave_count")),
        text(rollout, "/what"),
        text(rollout, "/started_by"),
        time(rollout, "/started_at"),
        time(rollout, "/ended_at"),
        text(rollout, "/why"),
    ]
}

fn node_row(node: &Value) -> [String; 6] {
    let word = |name: &str, word: &str| if node[name] == json!(true) { format!(" ({word})") } else { String::new() };
    let state = format!("{}{}{}", text(node, "/state"), word("timed_out", "timed out"), word("regressed", "not well"));
    [
        text(node, "/wave"),
        text(node, "/name"),
        text(node, "/tenant"),
        state,
        text(node, "/command"),
        text(node, "/message"),
    ]
}

fn show(rollout: &Value, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(rollout);
    }
    let windows: Vec<&str> = rollout["windows"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    output.columns(&[
        ["rollout".to_owned(), text(rollout, "/id")],
        ["what".into(), text(rollout, "/what")],
        ["state".into(), text(rollout, "/state")],
        ["why it stands so".into(), text(rollout, "/why")],
        ["since".into(), format!("{} by {}", time(rollout, "/changed_at"), text(rollout, "/changed_by"))],
        ["waits for".into(), text(rollout, "/waits_for")],
        ["until".into(), time(rollout, "/waits_until")],
        ["reason".into(), text(rollout, "/reason")],
        ["begun".into(), format!("{} by {}", time(rollout, "/started_at"), text(rollout, "/started_by"))],
        ["ended".into(), time(rollout, "/ended_at")],
        ["windows".into(), if windows.is_empty() { "at any time".to_owned() } else { windows.join("; ") }],
    ])?;
    output.line("")?;
    let mut rows = vec![["WAVE", "STATE", "NODES", "DONE", "THE OTHERS"].map(str::to_owned)];
    rows.extend(rollout["waves"].as_array().into_iter().flatten().map(|wave| {
        let [number, state, nodes, done] =
            ["/number", "/state", "/nodes", "/counts/succeeded"].map(|path| text(wave, path));
        [number, state, nodes, done, others(std::iter::once(wave)).join(", ")]
    }));
    output.columns(&rows)
}
