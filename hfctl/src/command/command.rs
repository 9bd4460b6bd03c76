//! `hfctl command` and `hfctl service`: has nodes do something, and tells what came of it.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use data_encoding::BASE64;
use pki::OperatorKey;
use protocol::Timestamp;
use protocol::command::{Action, ActionError, Name, Signature};
use serde_json::{Value, json};
use settings::Period;

use super::node::find;
use super::operator_key::read;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, complain, text, time};

/// Between two looks at a command that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Nodes that are named before they are only counted.
const NAMED: usize = 10;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Has nodes do something. What each may do is up to its owner: see the table "commands" in its agent.toml.
    Send(Send),
    /// Lists commands, newest first.
    List {
        /// Only this node's: its id, or its name.
        #[arg(long)]
        node: Option<String>,
        /// Only this tenant's.
        #[arg(long)]
        tenant: Option<String>,
        /// Only those that stand so.
        #[arg(long, value_parser = ["queued", "delivered", "running", "succeeded", "failed", "expired", "cancelled", "unknown"])]
        state: Option<String>,
        /// Only those of this request.
        #[arg(long)]
        request: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Shows a command and what it put out.
    Show {
        /// Its id.
        command: String,
    },
    /// Waits until a command has ended, and shows it. Fails unless it succeeded.
    Watch {
        /// Its id.
        command: String,
    },
    /// Takes a command back: before it has begun for certain, afterwards where it can be stopped.
    Cancel {
        /// Its id.
        command: String,
        /// For the audit log.
        #[arg(long, default_value = "")]
        reason: String,
    },
}

/// What to do, where, and why.
#[derive(Args)]
pub(crate) struct Send {
    /// The action.
    #[arg(value_parser = ["service.start", "service.stop", "service.restart", "service.logs", "diagnostics",
                          "telemetry.interval", "certificate.renew", "drain", "backup", "script"])]
    action: String,
    /// The service: STACK/SERVICE; for backup, STACK.
    #[arg(long, value_name = "STACK/SERVICE")]
    service: Option<String>,
    /// Lines of a log.
    #[arg(long)]
    lines: Option<u32>,
    /// Time between samples, for telemetry.interval: 100ms to 1h.
    #[arg(long, value_name = "PERIOD")]
    interval: Option<Period>,
    /// The script's name in the agent's configuration.
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
    /// Why, for the audit log.
    #[arg(long, default_value = "")]
    reason: String,
    /// For how long it may still start, where a node is away: 1s to 30d.
    #[arg(long, value_name = "PERIOD", default_value = "1h")]
    valid_for: Period,
    /// What is greater goes first.
    #[arg(long, default_value_t = 0)]
    priority: u32,
    /// Sign each command with the operator's private key in this file, for nodes that ask for it.
    #[arg(long, value_name = "FILE")]
    sign_with: Option<PathBuf>,
    /// Only say who is meant.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask first.
    #[arg(long, short)]
    yes: bool,
    /// Wait until all have ended, and show what came of them. Fails unless all succeeded.
    #[arg(long)]
    wait: bool,
}

#[derive(Subcommand)]
pub(crate) enum Service {
    /// Starts a service's containers, and waits until they run.
    Start(Target),
    /// Stops a service's containers. Its node's owner must have allowed it.
    Stop(Target),
    /// Restarts a service's containers, and waits until they run again.
    Restart(Target),
    /// Shows the last lines of a service's log.
    Logs {
        #[command(flatten)]
        target: Target,
        /// How many.
        #[arg(long, short = 'n', default_value_t = 100)]
        lines: u32,
    },
}

/// One service on one node.
#[derive(Args)]
pub(crate) struct Target {
    /// The service: STACK/SERVICE, as `hfctl node show` lists them.
    #[arg(value_name = "STACK/SERVICE")]
    service: String,
    /// Its node, by id or name.
    #[arg(long)]
    node: String,
    /// Why, for the audit log.
    #[arg(long, default_value = "")]
    reason: String,
    /// Sign it with the operator's private key in this file, where the node asks for it.
    #[arg(long, value_name = "FILE")]
    sign_with: Option<PathBuf>,
}

impl Service {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let (action, target, lines) = match self {
            Self::Start(target) => ("service.start", target, None),
            Self::Stop(target) => ("service.stop", target, None),
            Self::Restart(target) => ("service.restart", target, None),
            Self::Logs { target, lines } => ("service.logs", target, Some(lines)),
        };
        let send = Send {
            action: action.to_owned(),
            service: Some(target.service),
            lines,
            interval: None,
            script: None,
            nodes: vec![target.node],
            tenant: None,
            labels: Vec::new(),
            search: None,
            all: false,
            reason: target.reason,
            valid_for: Period::seconds(60),
            priority: 0,
            sign_with: target.sign_with,
            dry_run: false,
            yes: true,
            wait: true,
        };
        send.run(client, output)
    }
}

impl Command {
    pub(crate) fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        match self {
            Self::Send(send) => send.run(client, output),
            Self::List { node, tenant, state, request, limit } => {
                let node = node.map(|node| find(client, &node)).transpose()?;
                let query = [
                    ("node", node.as_deref()),
                    ("tenant", tenant.as_deref()),
                    ("state", state.as_deref()),
                    ("request", request.as_deref()),
                ];
                let heads = ["STATE", "ACTION", "NODE", "TENANT", "BY", "MADE", "ENDED", "ID", "WHAT CAME OF IT"];
                output.list(client.list("commands", &query, Some(limit))?, heads, row, "no commands")
            }
            Self::Show { command } => {
                let shown: Value = client.get(&format!("commands/{command}"), &[])?;
                show(&shown, output)
            }
            Self::Watch { command } => {
                let ended = watch(client, &command)?;
                show(&ended, output)?;
                succeeded(&ended)
            }
            Self::Cancel { command, reason } => {
                let cancelled: Value =
                    client.post(&format!("commands/{command}/cancel"), &json!({ "reason": reason }))?;
                if output.is_json() {
                    return output.json(&cancelled);
                }
                output.line(&match text(&cancelled, "/state").as_str() {
                    "cancelled" => format!("command {command} is cancelled"),
                    state if is_open(&cancelled) => {
                        format!("command {command} is {state}; its node is told, and says what comes of it")
                    }
                    state => format!("command {command} has ended already: {state}"),
                })
            }
        }
    }
}

impl Send {
    fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let mut asked = self.request(client)?;
        let preview: Value = client.post("commands/preview", &asked)?;
        if self.dry_run {
            return if output.is_json() { output.json(&preview) } else { announce(&preview, output) };
        }
        if !self.yes && self.nodes.is_empty() {
            confirm(&preview)?;
        }
        asked["expected_nodes"] = preview["nodes"].clone();
        if let Some(file) = &self.sign_with {
            asked["signed"] = self.signed(&read(file)?, &preview)?;
        }
        let ordered: Value = client.post_once("commands", &asked)?;
        if !self.wait {
            return if output.is_json() { output.json(&ordered) } else { told(&ordered, output) };
        }
        let ids = ordered["commands"].as_array().into_iter().flatten().map(|command| text(command, "/id"));
        let ended = ids.map(|id| watch(client, &id)).collect::<Result<Vec<Value>, Failure>>()?;
        match ended.as_slice() {
            [one] if !output.is_json() => results(one, output)?,
            _ => {
                let heads = ["STATE", "ACTION", "NODE", "TENANT", "BY", "MADE", "ENDED", "ID", "WHAT CAME OF IT"];
                output.list(ended.clone(), heads, row, "no commands")?;
            }
        }
        ended.iter().try_for_each(succeeded)
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
            "action": self.action,
            "stack": stack,
            "service": service,
            "lines": self.lines,
            "interval_ms": self.interval.map(|interval| interval.get().as_millis() as u64),
            "script": self.script,
            "target": { "nodes": nodes, "tenant": self.tenant, "labels": self.labels, "query": self.search, "all": self.all },
            "reason": self.reason,
            "valid_for_seconds": self.valid_for.get().as_secs(),
            "priority": self.priority,
        }))
    }
}

impl Send {
    /// Signs what was asked for, as it is understood here: of the hub, only the ids are taken.
    fn signed(&self, key: &OperatorKey, preview: &Value) -> Result<Value, Failure> {
        let arguments = self.action()?.to_bytes();
        let now: Timestamp = SystemTime::now().into();
        let not_after = now.plus(self.valid_for.get());
        let commands = preview["commands"].as_array().into_iter().flatten().map(|command| {
            let (node, id) = (text(command, "/node"), text(command, "/id"));
            let wrong =
                |_| Failure::Failed("the hub's preview has ids that are none: is it of another version?".into());
            let message =
                Signature::message(node.parse().map_err(wrong)?, id.parse().map_err(wrong)?, &arguments, not_after);
            let signature = BASE64.encode(&key.sign(&message));
            complain(&format!("signed for {} ({node})", text(command, "/name")));
            Ok(json!({ "node": node, "id": id, "signature": signature }))
        });
        let commands = commands.collect::<Result<Vec<Value>, Failure>>()?;
        Ok(json!({
            "key": key.public().to_string(),
            "not_after_ms": not_after.millis(),
            "arguments": BASE64.encode(&arguments),
            "commands": commands,
        }))
    }

    /// What is asked for, as nodes take it.
    fn action(&self) -> Result<Action, Failure> {
        let named = self.service.clone().unwrap_or_default();
        let (stack, service) = named.split_once('/').unwrap_or((&named, ""));
        let (stack, service) = (stack.to_owned(), service.to_owned());
        let name: Name = self.action.parse().map_err(|error: ActionError| Failure::Usage(error.to_string()))?;
        let action = match name {
            Name::ServiceStart => Action::ServiceStart { stack, service },
            Name::ServiceStop => Action::ServiceStop { stack, service },
            Name::ServiceRestart => Action::ServiceRestart { stack, service },
            Name::ServiceLogs => Action::ServiceLogs { stack, service, lines: self.lines.unwrap_or(100) },
            Name::Diagnostics => Action::Diagnostics,
            Name::TelemetryInterval => {
                Action::TelemetryInterval { interval: self.interval.map(Period::get).unwrap_or_default() }
            }
            Name::RenewCertificate => Action::RenewCertificate,
            Name::Drain => Action::Drain,
            Name::Backup => Action::Backup { stack },
            Name::Script => Action::Script { name: self.script.clone().unwrap_or_default() },
            Name::KafkaAcl => {
                let said = "kafka.acl is the hub's own: say what a bridge may write to with hfctl kafka allow";
                return Err(Failure::Usage(said.into()));
            }
        };
        action.checked().map_err(|error| Failure::Usage(format!("{}: {error}", self.action)))
    }
}

/// Asks whoever sits at the terminal; without one, nothing is done to nodes nobody has named.
fn confirm(preview: &Value) -> Result<(), Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::Usage(
            "nobody can be asked whether this is meant: look with --dry-run, then say --yes".into(),
        ));
    }
    complain(&format!("{} on {} nodes: {}", text(preview, "/what"), text(preview, "/nodes"), names(preview)));
    complain("Type yes to do it:");
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Failure::Failed("nothing was done".into())) }
}

fn names(ordered: &Value) -> String {
    let commands = ordered["commands"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut named: Vec<String> = commands.iter().take(NAMED).map(|command| text(command, "/name")).collect();
    if commands.len() > NAMED {
        named.push(format!("and {} more", commands.len() - NAMED));
    }
    named.join(", ")
}

fn announce(preview: &Value, output: &mut Output) -> Result<(), Failure> {
    complain(&format!("{} on {} nodes; nothing is done", text(preview, "/what"), text(preview, "/nodes")));
    let commands = preview["commands"].as_array().cloned().unwrap_or_default();
    output.list(
        commands,
        ["NODE", "TENANT", "ONLINE", "ID"],
        |command| [text(command, "/name"), text(command, "/tenant"), text(command, "/online"), text(command, "/node")],
        "no node is meant",
    )
}

fn told(ordered: &Value, output: &mut Output) -> Result<(), Failure> {
    complain(&format!("request {}: {}", text(ordered, "/request"), text(ordered, "/what")));
    let commands = ordered["commands"].as_array().cloned().unwrap_or_default();
    output.list(
        commands,
        ["COMMAND", "NODE", "TENANT", "ONLINE"],
        |command| [text(command, "/id"), text(command, "/name"), text(command, "/tenant"), text(command, "/online")],
        "no node is meant",
    )
}

fn watch(client: &Client, command: &str) -> Result<Value, Failure> {
    loop {
        let shown: Value = client.get(&format!("commands/{command}"), &[])?;
        if !is_open(&shown) {
            return Ok(shown);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn is_open(command: &Value) -> bool {
    matches!(command["state"].as_str(), Some("queued" | "delivered" | "running"))
}

fn succeeded(command: &Value) -> Result<(), Failure> {
    match command["state"].as_str() {
        Some("succeeded") => Ok(()),
        _ => {
            let (state, node) = (text(command, "/state"), text(command, "/node_name"));
            let said = text(command, "/message");
            let failure = format!("{node}: {state}: {said}");
            Err(if command["refused"] == json!(true) { Failure::Refused(failure) } else { Failure::Failed(failure) })
        }
    }
}

fn row(command: &Value) -> [String; 9] {
    [
        text(command, "/state"),
        text(command, "/what"),
        text(command, "/node_name"),
        text(command, "/tenant"),
        text(command, "/requested_by"),
        time(command, "/created_at"),
        time(command, "/ended_at"),
        text(command, "/id"),
        text(command, "/message"),
    ]
}

/// What one command put out, as it is, and beside it what came of it.
fn results(command: &Value, output: &mut Output) -> Result<(), Failure> {
    if let Some(said) = command["output"].as_str().filter(|said| !said.is_empty()) {
        output.line(said.trim_end())?;
    }
    if command["state"] == json!("succeeded") {
        complain(&format!("{}: {}", text(command, "/node_name"), text(command, "/message")));
    }
    Ok(())
}

fn show(command: &Value, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(command);
    }
    let sure = if command["told"] == json!(true) || is_open(command) { "" } else { " (as far as the hub knows)" };
    output.columns(&[
        ["command".to_owned(), text(command, "/id")],
        ["what".into(), text(command, "/what")],
        [
            "node".into(),
            format!("{} of {} ({})", text(command, "/node_name"), text(command, "/tenant"), text(command, "/node")),
        ],
        ["state".into(), format!("{}{sure}", text(command, "/state"))],
        ["came of it".into(), text(command, "/message")],
        ["asked by".into(), text(command, "/requested_by")],
        ["why".into(), text(command, "/reason")],
        ["made".into(), time(command, "/created_at")],
        ["may start until".into(), time(command, "/deadline")],
        ["began".into(), time(command, "/started_at")],
        ["ended".into(), time(command, "/ended_at")],
        ["taken back by".into(), text(command, "/cancelled_by")],
    ])?;
    match command["output"].as_str().filter(|said| !said.is_empty()) {
        Some(said) => {
            output.line("")?;
            output.line(said.trim_end())
        }
        None => Ok(()),
    }
}
