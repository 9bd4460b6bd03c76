//! Who takes part: a hub, processes of many simulated nodes behind a bad network, and a real agent.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use super::Plan;
use super::account::Accounts;
use crate::fleet::{self, Errand, Tokens};
use crate::rig::{Agent, Hub, Process, Relay, binary, until};

/// The tenant whose nodes they all are.
pub(super) const TENANT: &str = "ordeal";
/// Only a failure takes so long.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// Where files are in memory: the nodes sync each record of their journals.
const MEMORY: &str = "/dev/shm";

pub(super) struct Site {
    pub(super) hub: Hub,
    pub(super) relay: Relay,
    pub(super) herds: Vec<Herd>,
    pub(super) agent: Agent,
    /// The real agent's id.
    pub(super) agent_node: String,
    /// Nodes of all kinds.
    pub(super) nodes: usize,
    /// The digest of all of them.
    all: String,
    scripts: TempDir,
    folder: TempDir,
}

/// A process of simulated nodes, and what of them outlives it.
pub(super) struct Herd {
    folder: PathBuf,
    hub: SocketAddr,
    nodes: usize,
    process: Option<Process>,
}

impl Herd {
    fn identities(&self) -> PathBuf {
        self.folder.join("identities")
    }

    pub(super) fn run(&mut self) -> Result<()> {
        let mut command = Command::new(binary("hyperfactory-fleet")?);
        command.args(["--series", "20", "--interval", "30", "--batch", "1", "--sockets", "1"]);
        command.args(["--hub", &self.hub.to_string(), "--nodes", &self.nodes.to_string()]);
        command.arg("--identities").arg(self.identities()).arg("--errands").arg(&self.folder);
        self.process = Some(Process::start(&mut command, &self.folder.join("log"))?);
        Ok(())
    }

    /// Kills it as a power cut would.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }
}

impl Site {
    pub(super) fn start(plan: &Plan, database: Option<&str>) -> Result<Self> {
        let mut builder =
            Hub::builder().set("enrollments-per-second", "100000").set("enrollments-per-source", "100000");
        if let Some(database) = database {
            builder = builder.set("database", database);
        }
        let hub = builder.start()?;
        hub.tenant(TENANT)?;
        let relay = Relay::before(hub.endpoints().quic, plan.seed)?;
        let folder = if Path::new(MEMORY).is_dir() { tempfile::tempdir_in(MEMORY)? } else { tempfile::tempdir()? };
        let herd = |number: usize| Herd {
            folder: folder.path().join(format!("herd-{number}")),
            hub: relay.address(),
            nodes: plan.herd,
            process: None,
        };
        let mut herds: Vec<Herd> = (0..plan.herds).map(herd).collect();
        let stores: Vec<_> =
            herds.iter().flat_map(|herd| fleet::identity_stores(Some(herd.identities()), plan.herd)).collect();
        let api = fleet::Api::new(&hub.endpoints().http, hub.api().token().context("no token")?);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(fleet::enroll(&stores, &Tokens::from_api(api, vec![TENANT.to_owned()])))?;

        let scripts = tempfile::tempdir()?;
        let effects = effects(&scripts);
        std::fs::write(&effects, "")?;
        let did = format!("echo $HYPERFACTORY_COMMAND >> {}", effects.display());
        let mut named = Vec::new();
        for (errand, does) in [
            (Errand::Count, format!("echo $HYPERFACTORY_COMMAND; {did}")),
            (Errand::Linger, format!("echo $HYPERFACTORY_COMMAND; sleep 0.2; {did}")),
            (Errand::Fail, "exit 3".to_owned()),
        ] {
            let path = scripts.path().join(errand.as_str());
            std::fs::write(&path, format!("#!/bin/sh\n{does}\n"))?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
            named.push(format!("{} = {:?}", errand.as_str(), path.display().to_string()));
        }
        let mut agent = Agent::create()?
            .set("docker-host", "unix:///nonexistent/docker.sock")
            .set("commands-scripts", format!("{{ {} }}", named.join(", ")));
        agent.enroll(&hub.join_token(TENANT)?)?;
        agent.run()?;
        for herd in &mut herds {
            herd.run()?;
        }
        let (nodes, agent_node) = (stores.len() + 1, agent.node()?);
        let all = String::new();
        let mut site = Self { hub, relay, herds, agent, agent_node, nodes, all, scripts, folder };
        site.all_are_there()?;
        let any = json!({ "action": "drain", "reason": "an ordeal", "target": { "tenant": TENANT } });
        let preview = site.hub.api().post("/api/v1/commands/preview", &any)?.ok()?;
        ensure!(preview["nodes"] == json!(nodes), "not all are meant: {preview}");
        site.all = preview["digest"].as_str().context("no digest")?.to_owned();
        Ok(site)
    }

    /// Waits until every node has a session.
    pub(super) fn all_are_there(&self) -> Result<()> {
        until("every node's session", PATIENCE, || {
            let page = self.hub.api().get("/api/v1/nodes?limit=500&state=online")?.ok()?;
            let there = page["items"].as_array().map_or(0, Vec::len);
            ensure!(there == self.nodes, "{there} of {}", self.nodes);
            Ok(Some(()))
        })
    }

    /// What a request for all nodes holds.
    pub(super) fn ask(&self, errand: Errand, valid_for: Duration) -> serde_json::Value {
        json!({
            "action": "script",
            "script": errand.as_str(),
            "reason": "an ordeal",
            "target": { "tenant": TENANT },
            "expected": self.all,
            "valid_for_seconds": valid_for.as_secs(),
        })
    }

    /// What all nodes say of their commands.
    pub(super) fn accounts(&self) -> Result<Accounts> {
        let mut accounts = Accounts::default();
        for herd in &self.herds {
            accounts.read(&herd.folder)?;
        }
        accounts.read_effects(&effects(&self.scripts))?;
        Ok(accounts)
    }

    /// Ends everybody; the hub in order.
    pub(super) fn stop(mut self) -> Result<()> {
        for herd in &mut self.herds {
            herd.kill()?;
        }
        self.agent.kill()?;
        ensure!(self.hub.stop()?.success(), "the hub did not stop well");
        self.hub.command(&["audit", "verify"])?;
        self.folder.close().context("removing the nodes' files")
    }
}

fn effects(scripts: &TempDir) -> PathBuf {
    scripts.path().join("effects")
}
