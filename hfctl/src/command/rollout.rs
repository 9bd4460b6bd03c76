//! `hfctl rollout`: the same command over many nodes, in waves.

use std::io::{BufRead as _, IsTerminal as _};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use settings::Period;

use super::node::find;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, complain, text, time};

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
        #[arg(long, default_value_t = 50)]
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
    /// Lets a rollout go on. What was wrong with one that halted is accepted, and does not halt it again.
    Resume(Act),
    /// Gives a rollout up for good: nobody else is asked, and what nobody was told is taken back.
    Abort(Act),
}

/// Which, and why.
#[derive(Args)]
pub(crate) struct Act {
    /// Its number.
    rollout: i64,
    /// Why, for the audit log.
    #[arg(long)]
    reason: String,
}

/// What to do, where, how fast, and why.
#[derive(Args)]
pub(crate) struct Start {
    /// The action.
    #[arg(value_parser = ["service.start", "service.stop", "service.restart", "service.logs", "diagnostics",
                          "telemetry.interval", "certificate.renew", "drain", "backup", "script"])]
    action: String,
    /// The service: STACK/SERVICE; for backup, STACK.
    #[arg(long, value_name = "STACK/SERVICE")]
    service: Option<String>,
    /// Time between samples, for telemetry.interval: 100ms to 1h.
    #[arg(long, value_name = "PERIOD")]
    interval: Option<Period>,
    /// The script's name in the agents' configuration.
    #[arg(long)]
    script: Option<String>,
    /// On this node, by id or name; can be given several times.
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<String>,
    /// On all agents of this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// On all agents with this label; can be given several times.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// On all agents whose name, host name, tenant or id holds this text.
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// On all agents.
    #[arg(long)]
    all: bool,
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
    /// Make commands at these times only, as "Mon-Fri 22:00-04:00 +01:00"; can be given several times.
    #[arg(long = "window", value_name = "WINDOW")]
    windows: Vec<String>,
    /// For how long a node that is away may still start, from when it is asked: 1s to 30d.
    #[arg(long, value_name = "PERIOD", default_value = "1h")]
    valid_for: Period,
    /// What is greater goes first on a node.
    #[arg(long, default_value_t = 0)]
    priority: u32,
    /// Why, for the audit log.
    #[arg(long)]
    reason: String,
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
            client.post(&format!("rollouts/{}/{verb}", self.rollout), &json!({ "reason": self.reason }))?;
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
        if self.dry_run || !self.yes {
            let waves = preview["waves"].as_array().cloned().unwrap_or_default();
            let all = text(&preview, "/nodes");
            complain(&format!("{} on {all} nodes, in {} waves", text(&preview, "/what"), waves.len()));
            for wave in &waves {
                let [number, nodes, online] = ["/number", "/nodes", "/online"].map(|path| text(wave, path));
                let first: Vec<&str> =
                    wave["first"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                let more = wave["nodes"].as_u64().unwrap_or(0) > first.len() as u64;
                let more = if more { ", …" } else { "" };
                complain(&format!("  wave {number}: {nodes} nodes, {online} online: {}{more}", first.join(", ")));
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
        asked["command"]["expected_nodes"] = preview["nodes"].clone();
        let started: Value = client.post_once("rollouts", &asked)?;
        if self.wait {
            return watch(client, &text(&started, "/id"), output);
        }
        if output.is_json() { output.json(&started) } else { output.line(&progress(&started)) }
    }

    fn request(&self, client: &Client) -> Result<Value, Failure> {
        let (stack, service) = match self.service.as_deref().map(|named| (named, named.split_once('/'))) {
            Some((_, Some((stack, service)))) => (Some(stack), Some(service)),
            Some((stack, None)) if self.action == "backup" => (Some(stack), None),
            Some((named, None)) => {
                return Err(Failure::Usage(format!("{named:?} is not a service: name it STACK/SERVICE")));
            }
            None => (None, None),
        };
        let nodes = self.nodes.iter().map(|node| find(client, node)).collect::<Result<Vec<String>, Failure>>()?;
        Ok(json!({
            "command": {
                "action": self.action,
                "stack": stack,
                "service": service,
                "interval_ms": self.interval.map(|interval| interval.get().as_millis() as u64),
                "script": self.script,
                "target": { "nodes": nodes, "tenant": self.tenant, "labels": self.labels, "query": self.search, "all": self.all },
                "reason": self.reason,
                "valid_for_seconds": self.valid_for.get().as_secs(),
                "priority": self.priority,
            },
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

/// Asks whoever sits at the terminal.
fn confirm() -> Result<(), Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::Usage(
            "nobody can be asked whether this is meant: look with --dry-run, then say --yes".into(),
        ));
    }
    complain("Type yes to do it:");
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Failure::Failed("nothing was done".into())) }
}

/// Says each time when something has changed, until nothing more does by itself.
fn watch(client: &Client, rollout: &str, output: &mut Output) -> Result<(), Failure> {
    let mut said = String::new();
    loop {
        let shown: Value = client.get(&format!("rollouts/{rollout}"), &[])?;
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
            Some("running") => std::thread::sleep(LOOK_EVERY),
            Some("done") => return Ok(()),
            _ => {
                let (state, why) = (text(&shown, "/state"), text(&shown, "/why"));
                return Err(Failure::Failed(format!("rollout {rollout} is {state}: {why}")));
            }
        }
    }
}

/// Where a rollout stands, on one line.
fn progress(rollout: &Value) -> String {
    let count = |name: &str| {
        let waves = rollout["waves"].as_array().into_iter().flatten();
        waves.filter_map(|wave| wave["counts"][name].as_u64()).sum::<u64>()
    };
    let [id, state, wave, waves] = ["/id", "/state", "/wave", "/wave_count"].map(|path| text(rollout, path));
    let mut line = format!("rollout {id}: {state}, wave {wave} of {waves}, {} done", count("succeeded"));
    for (name, word) in [
        ("failed", "failed"),
        ("timed_out", "timed out"),
        ("regressed", "not well"),
        ("at_work", "at work"),
        ("waiting", "not there"),
        ("pending", "not asked"),
    ] {
        match count(name) {
            0 => {}
            number => line.push_str(&format!(", {number} {word}")),
        }
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
    let heads =
        ["WAVE", "STATE", "NODES", "DONE", "FAILED", "TIMED OUT", "NOT WELL", "AT WORK", "NOT THERE", "NOT ASKED"];
    let mut rows = vec![heads.map(str::to_owned)];
    rows.extend(rollout["waves"].as_array().into_iter().flatten().map(|wave| {
        [
            "/number",
            "/state",
            "/nodes",
            "/counts/succeeded",
            "/counts/failed",
            "/counts/timed_out",
            "/counts/regressed",
            "/counts/at_work",
            "/counts/waiting",
            "/counts/pending",
        ]
        .map(|path| text(wave, path))
    }));
    output.columns(&rows)
}
