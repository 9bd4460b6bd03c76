//! What nodes are to do, and which: the part that a command and a rollout share.

use std::io::{BufRead as _, IsTerminal as _};

use clap::Args;
use serde_json::{Value, json};
use settings::Period;

use super::node::find;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{complain, counted, text};

/// What, and where.
#[derive(Args)]
pub(crate) struct Order {
    /// The action.
    #[arg(value_parser = ["service.start", "service.stop", "service.restart", "service.logs", "diagnostics",
                          "telemetry.interval", "certificate.renew", "drain", "backup", "script"])]
    pub(crate) action: String,
    /// The service: STACK/SERVICE; for backup, STACK.
    #[arg(long, value_name = "STACK/SERVICE")]
    pub(crate) service: Option<String>,
    /// Time between samples, for telemetry.interval: 100ms to 1h.
    #[arg(long, value_name = "PERIOD")]
    pub(crate) interval: Option<Period>,
    /// The script's name in the agent's configuration.
    #[arg(long, value_name = "NAME")]
    pub(crate) script: Option<String>,
    /// On this node, by id or name; can be given several times.
    #[arg(long = "node", value_name = "NODE", conflicts_with_all = ["tenant", "labels", "search", "all"])]
    pub(crate) nodes: Vec<String>,
    /// On all agents of this tenant.
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// On all agents with this label; can be given several times.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub(crate) labels: Vec<String>,
    /// On all agents whose name, host name, tenant or id holds this text.
    #[arg(long, value_name = "TEXT")]
    pub(crate) search: Option<String>,
    /// On all agents.
    #[arg(long)]
    pub(crate) all: bool,
    /// For how long it may still start, where a node is away, from when it is asked: 1s to 30d.
    #[arg(long, value_name = "PERIOD", default_value = "1h")]
    pub(crate) valid_for: Period,
    /// What is greater goes first on a node.
    #[arg(long, default_value_t = 0)]
    pub(crate) priority: u32,
}

/// Why it is done.
#[derive(Args)]
pub(crate) struct Why {
    /// Why, in one line: it is in the audit log, and shown with what comes of it.
    #[arg(long, value_name = "WHY")]
    pub(crate) reason: String,
}

impl Order {
    /// As the hub takes it.
    pub(crate) fn request(&self, client: &Client, why: &Why) -> Result<Value, Failure> {
        self.check()?;
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
            "interval_ms": self.interval.map(|interval| interval.get().as_millis() as u64),
            "script": self.script,
            "target": { "nodes": nodes, "tenant": self.tenant, "labels": self.labels, "query": self.search, "all": self.all },
            "reason": why.reason,
            "valid_for_seconds": self.valid_for.get().as_secs(),
            "priority": self.priority,
        }))
    }

    /// What is missing is said in the words it can be given in.
    fn check(&self) -> Result<(), Failure> {
        let missing = match self.action.as_str() {
            "script" => self.script.is_none().then_some("--script NAME"),
            "telemetry.interval" => self.interval.is_none().then_some("--interval PERIOD"),
            "backup" => self.service.is_none().then_some("--service STACK"),
            of if of.starts_with("service.") => self.service.is_none().then_some("--service STACK/SERVICE"),
            _ => None,
        };
        if let Some(missing) = missing {
            return Err(Failure::Usage(format!("{} needs {missing}", self.action)));
        }
        let named = self.tenant.is_some() || !self.labels.is_empty() || self.search.is_some() || self.all;
        if self.nodes.is_empty() && !named {
            let said = "which nodes? name them with --node, or say --tenant, --label or --search, or --all";
            return Err(Failure::Usage(said.into()));
        }
        Ok(())
    }
}

/// Refuses what nobody would do.
pub(crate) fn somebody(preview: &Value) -> Result<(), Failure> {
    match preview["nodes"].as_u64() {
        Some(0) => Err(Failure::Usage("no node is meant by that, and nothing was done: see hfctl node list".into())),
        _ => Ok(()),
    }
}

/// `restart shop/web on 12 nodes`.
pub(crate) fn what(preview: &Value) -> String {
    format!("{} on {}", text(preview, "/what"), counted(preview["nodes"].as_u64().unwrap_or(0), "node", "nodes"))
}

/// Asks whoever sits at the terminal; without one, nothing is done to nodes nobody has named.
pub(crate) fn confirm() -> Result<(), Failure> {
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
