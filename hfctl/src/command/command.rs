//! `hfctl command` and `hfctl service`: has nodes do something, and tells what came of it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use protocol::command::{Action, ActionError, Name};
use serde_json::{Value, json};
use settings::Period;

use super::node::find;
use super::operator_key::read;
use super::order::{Order, Why, confirm, somebody, what};
use super::signing::Signing;
use crate::client::{Client, patiently};
use crate::failure::Failure;
use crate::output::{Output, complain, counted, text, time};

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
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
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
    /// Takes a command back, or all of a request: before it has begun for certain, afterwards where it can be stopped.
    #[command(group(ArgGroup::new("which").required(true).args(["command", "request"])))]
    Cancel {
        /// Its id.
        command: Option<String>,
        /// All of this request that are not over.
        #[arg(long)]
        request: Option<String>,
        #[command(flatten)]
        why: Why,
    },
}

/// What to do, where, and why.
#[derive(Args)]
pub(crate) struct Send {
    #[command(flatten)]
    order: Order,
    /// Lines of a log.
    #[arg(long)]
    lines: Option<u32>,
    #[command(flatten)]
    why: Why,
    /// Sign each command with the operator's private key in this file, for nodes that ask for it: at most 250 nodes at once. For
    /// which nodes is shown first.
    #[arg(long, value_name = "FILE")]
    sign_with: Option<PathBuf>,
    /// Only say who is meant.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask first.
    #[arg(long, short)]
    yes: bool,
    /// Wait until all have ended, and show what came of them; of one, what it puts out as it comes. Fails unless all
    /// succeeded.
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
    #[command(flatten)]
    why: Why,
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
        let order = Order {
            action: action.to_owned(),
            service: Some(target.service),
            interval: None,
            script: None,
            nodes: vec![target.node],
            tenant: None,
            labels: Vec::new(),
            search: None,
            all: false,
            valid_for: Period::seconds(60),
            priority: 0,
        };
        let send =
            Send { order, lines, why: target.why, sign_with: target.sign_with, dry_run: false, yes: true, wait: true };
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
                output.list(client.list("commands", &query, Some(limit))?, HEADS, row, "no commands")
            }
            Self::Show { command } => {
                let shown: Value = client.get(&format!("commands/{command}"), &[])?;
                show(&shown, output)
            }
            Self::Watch { command } => {
                client.get::<Value>(&format!("commands/{command}"), &[])?;
                let ended = watch(client, &command, |_| Ok(()))?;
                show(&ended, output)?;
                succeeded(&ended)
            }
            Self::Cancel { command: Some(command), why, .. } => {
                let cancelled = cancel(client, &command, &why)?;
                if output.is_json() { output.json(&cancelled) } else { output.line(&taken_back(&cancelled)) }
            }
            Self::Cancel { request, why, .. } => {
                let path = format!("requests/{}/cancel", request.unwrap_or_default());
                let taken: Value = client.post(&path, &json!({ "reason": why.reason }))?;
                if output.is_json() { output.json(&taken) } else { all_taken_back(&taken, output) }
            }
        }
    }
}

fn cancel(client: &Client, command: &str, why: &Why) -> Result<Value, Failure> {
    client.post(&format!("commands/{command}/cancel"), &json!({ "reason": why.reason }))
}

fn taken_back(command: &Value) -> String {
    let [id, node, state] = ["/id", "/node_name", "/state"].map(|path| text(command, path));
    match state.as_str() {
        "cancelled" => format!("command {id} for {node} is cancelled"),
        state if is_open(command) => format!("command {id} is {state}; {node} is told, and says what comes of it"),
        state => format!("command {id} has ended already: {state}"),
    }
}

fn all_taken_back(taken: &Value, output: &mut Output) -> Result<(), Failure> {
    let [cancelled, told] = ["cancelled", "told"].map(|which| taken[which].as_u64().unwrap_or(0));
    if cancelled + told == 0 {
        complain("nothing was taken back: all of it is over, or was taken back before");
    }
    if cancelled > 0 {
        output.line(&format!("{} cancelled", counted(cancelled, "command is", "commands are")))?;
    }
    if told > 0 {
        let told = counted(told, "command is with its node", "commands are with their nodes");
        output.line(&format!("{told}: what comes of it is told with hfctl command list"))?;
    }
    Ok(())
}

impl Send {
    fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let mut asked = self.order.request(client, &self.why)?;
        asked["lines"] = json!(self.lines);
        let preview: Value = client.post("commands/preview", &asked)?;
        if self.dry_run {
            return if output.is_json() { output.json(&preview) } else { announce(&preview, output) };
        }
        somebody(&preview)?;
        let signing = match &self.sign_with {
            Some(file) => Some((read(file)?, Signing::of(&preview, &asked, self.action()?)?)),
            None => None,
        };
        match &signing {
            Some((_, signing)) => signing.show(),
            None if self.asks() => complain(&format!("{}: {}", what(&preview), names(&preview))),
            None => {}
        }
        if self.asks() {
            confirm()?;
        }
        asked["expected"] = preview["digest"].clone();
        if let Some((key, signing)) = &signing {
            asked["signed"] = signing.sign(key, self.order.valid_for.get());
        }
        let ordered: Value = client.post_once("commands", &asked, "hfctl command list")?;
        if !self.wait {
            return if output.is_json() { output.json(&ordered) } else { told(&ordered, output) };
        }
        let ids: Vec<String> =
            ordered["commands"].as_array().into_iter().flatten().map(|command| text(command, "/id")).collect();
        if let [one] = ids.as_slice()
            && !output.is_json()
        {
            let mut put_out = 0;
            let ended = watch(client, one, |command| match put_out_since(&mut put_out, command) {
                Some(new) => output.line(new),
                None => Ok(()),
            })?;
            if ended["state"] == json!("succeeded") {
                complain(&format!("{}: {}", text(&ended, "/node_name"), text(&ended, "/message")));
            }
            return succeeded(&ended);
        }
        let ended = ids.iter().map(|id| watch(client, id, |_| Ok(()))).collect::<Result<Vec<Value>, Failure>>()?;
        output.list(ended.clone(), HEADS, row, "no commands")?;
        all_succeeded(&ended)
    }
}

impl Send {
    /// Whether somebody is asked first: not about nodes they have named themselves.
    fn asks(&self) -> bool {
        !self.yes && self.order.nodes.is_empty()
    }

    /// What is asked for, as nodes take it.
    fn action(&self) -> Result<Action, Failure> {
        let named = self.order.service.clone().unwrap_or_default();
        let (stack, service) = named.split_once('/').unwrap_or((&named, ""));
        let (stack, service) = (stack.to_owned(), service.to_owned());
        let name: Name = self.order.action.parse().map_err(|error: ActionError| Failure::Usage(error.to_string()))?;
        let action = match name {
            Name::ServiceStart => Action::ServiceStart { stack, service },
            Name::ServiceStop => Action::ServiceStop { stack, service },
            Name::ServiceRestart => Action::ServiceRestart { stack, service },
            Name::ServiceLogs => Action::ServiceLogs { stack, service, lines: self.lines.unwrap_or(100) },
            Name::Diagnostics => Action::Diagnostics,
            Name::TelemetryInterval => {
                Action::TelemetryInterval { interval: self.order.interval.map(Period::get).unwrap_or_default() }
            }
            Name::RenewCertificate => Action::RenewCertificate,
            Name::Drain => Action::Drain,
            Name::Backup => Action::Backup { stack },
            Name::Script => Action::Script { name: self.order.script.clone().unwrap_or_default() },
            Name::KafkaAcl => {
                let said = "kafka.acl is the hub's own: say what a bridge may write to with hfctl kafka allow";
                return Err(Failure::Usage(said.into()));
            }
        };
        action.checked().map_err(|error| Failure::Usage(format!("{}: {error}", self.order.action)))
    }
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
    complain(&format!("{}; nothing is done", what(preview)));
    let commands = preview["commands"].as_array().cloned().unwrap_or_default();
    output.list(
        commands,
        ["NODE", "TENANT", "ONLINE", "ID"],
        |command| [text(command, "/name"), text(command, "/tenant"), text(command, "/online"), text(command, "/node")],
        "no node is meant",
    )
}

fn told(ordered: &Value, output: &mut Output) -> Result<(), Failure> {
    let request = text(ordered, "/request");
    complain(&format!("{}; what came of it: hfctl command list --request {request}", what(ordered)));
    let commands = ordered["commands"].as_array().cloned().unwrap_or_default();
    output.list(
        commands,
        ["COMMAND", "NODE", "TENANT", "ONLINE"],
        |command| [text(command, "/id"), text(command, "/name"), text(command, "/tenant"), text(command, "/online")],
        "no node is meant",
    )
}

/// A command that is over, once it is; `look` sees it each time until then. A hub that restarts meanwhile is waited for.
fn watch(
    client: &Client,
    command: &str,
    mut look: impl FnMut(&Value) -> Result<(), Failure>,
) -> Result<Value, Failure> {
    loop {
        let shown: Value = patiently(|| client.get(&format!("commands/{command}"), &[]))?;
        look(&shown)?;
        if !is_open(&shown) {
            return Ok(shown);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// What a command has put out since `before`, by whole lines until it is over, without the end of the last one.
fn put_out_since<'a>(before: &mut usize, command: &'a Value) -> Option<&'a str> {
    let all = command["output"].as_str()?;
    let through = if is_open(command) { all.rfind('\n').map_or(0, |end| end + 1) } else { all.len() };
    let new = all.get(*before..through).filter(|new| !new.is_empty())?;
    *before = through;
    Some(new.strip_suffix('\n').unwrap_or(new))
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

/// Of several, how many did not.
fn all_succeeded(ended: &[Value]) -> Result<(), Failure> {
    let failed: Vec<Failure> = ended.iter().filter_map(|command| succeeded(command).err()).collect();
    match (failed.len(), failed.into_iter().next()) {
        (_, None) => Ok(()),
        (1, Some(one)) => Err(one),
        (many, Some(first)) => {
            Err(Failure::Failed(format!("{many} of {} did not succeed; the first: {first}", ended.len())))
        }
    }
}

const HEADS: [&str; 9] = ["STATE", "ACTION", "NODE", "TENANT", "BY", "MADE", "ENDED", "ID", "WHAT CAME OF IT"];

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_out_is_told_once_by_whole_lines_and_all_of_it_at_the_end() {
        let mut before = 0;
        let mut look = |state: &str, output: &str| {
            put_out_since(&mut before, &json!({ "state": state, "output": output })).map(str::to_owned)
        };
        let looks = [
            ("queued", "", None),
            ("running", "one", None),
            ("running", "one\n\ntw", Some("one\n")),
            ("running", "one\n\ntw", None),
            ("running", "one\n\ntwo\n\n", Some("two\n")),
            ("succeeded", "one\n\ntwo\n\nthr\u{e9}", Some("thr\u{e9}")),
            ("succeeded", "one\n\ntwo\n\nthr\u{e9}", None),
        ];
        for (state, output, new) in looks {
            assert_eq!(look(state, output).as_deref(), new, "{state} {output:?}");
        }
    }
}
