//! A real hub: the binary, its state, and its ports.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::binary::binary;
use super::clock;
use super::netns::{self, Netns};
use super::process::{Process, finish};
use super::wait::{SOON, until};
use crate::api::Api;

/// Where a running hub listens, as it writes it to its state directory.
#[derive(Debug, Clone, Deserialize)]
pub struct Endpoints {
    /// The QUIC socket.
    pub quic: SocketAddr,
    /// Base URL of dashboard and API.
    pub http: String,
}

/// A hub with a state directory of its own; killed when dropped.
#[derive(Debug)]
pub struct Hub {
    state: TempDir,
    settings: Vec<(String, String)>,
    netns: Option<String>,
    endpoints: Endpoints,
    api: Api,
    process: Option<Process>,
}

/// A hub that is yet to be started.
#[derive(Debug)]
pub struct HubBuilder {
    settings: Vec<(String, String)>,
    address: IpAddr,
    netns: Option<String>,
}

impl Hub {
    /// One with the embedded database, on loopback.
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// One with settings of its own.
    pub fn builder() -> HubBuilder {
        HubBuilder { settings: Vec::new(), address: Ipv4Addr::LOCALHOST.into(), netns: None }
    }

    /// Where it listens; the same after a restart.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Its API, as an administrator.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Its state directory.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// Its process; an error when it is stopped.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the hub is stopped")
    }

    /// Kills it as a power cut would.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Stops it by SIGTERM, as a service manager would, and waits for its end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.take().context("the hub is stopped already")?.stop(SOON)
    }

    /// Starts it again with the same state, on the same ports.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("the hub is running: kill or stop it first");
        }
        let (process, _) = serve(self.netns.as_deref(), self.state.path(), &self.settings)?;
        self.process = Some(process);
        Ok(())
    }

    /// Runs the hub's program with `arguments` on its state, and gives what it printed.
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        run(self.state.path(), &self.settings, arguments)
    }

    /// Runs the hub's program with `arguments` on its state to its end, whatever that is.
    pub fn attempt(&self, arguments: &[&str]) -> Result<Output> {
        let mut program = program(self.netns.as_deref(), self.state.path(), &self.settings)?;
        program.args(arguments).output().context("running the hub's program")
    }

    /// Sets its clock off by `offset` (`+365d`, `-5m`), or right again, from its next start on.
    pub fn set_clock(&mut self, offset: Option<&str>) -> Result<()> {
        self.settings.retain(|(name, _)| !clock::VARIABLES.contains(&name.as_str()));
        if let Some(offset) = offset {
            self.settings.extend(clock::off_by(offset)?);
        }
        Ok(())
    }

    /// Ids of all nodes, oldest first.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let page = self.api.get("/api/v1/nodes?limit=500")?.ok()?;
        let items = page["items"].as_array().context("a page without items")?;
        let mut ids: Vec<_> = items.iter().filter_map(|node| node["id"].as_str().map(str::to_owned)).collect();
        ids.sort();
        Ok(ids)
    }

    /// All the hub knows of a node now.
    pub fn node(&self, id: &str) -> Result<Value> {
        self.api.get(&format!("/api/v1/nodes/{id}"))?.ok()
    }

    /// Waits until a node has a session.
    pub fn online(&self, node: &str) -> Result<()> {
        until("a session", SOON, || Ok((self.node(node)?["presence"]["state"] == "online").then_some(())))
    }

    /// Batches of a node's telemetry that the hub has stored.
    pub fn stored(&self, node: &str) -> Result<u64> {
        Ok(self.coverage(node)?.iter().filter_map(|epoch| epoch["stored"].as_u64()).sum())
    }

    /// What the hub has stored of each of a node's spools.
    pub fn coverage(&self, node: &str) -> Result<Vec<Value>> {
        let coverage = self.api.get(&format!("/api/v1/nodes/{node}/coverage"))?.ok()?;
        coverage.as_array().cloned().with_context(|| format!("no list: {coverage}"))
    }

    /// Makes a tenant.
    pub fn tenant(&self, id: &str) -> Result<()> {
        self.api.post("/api/v1/tenants", &json!({ "id": id, "name": id }))?.ok().map(drop)
    }

    /// Makes a join token for one agent of a tenant.
    pub fn join_token(&self, tenant: &str) -> Result<String> {
        self.token(&json!({ "tenant": tenant, "kind": "agent" }))
    }

    /// Makes a join token for one bridge of a tenant.
    pub fn bridge_token(&self, tenant: &str, name: &str) -> Result<String> {
        self.token(&json!({ "tenant": tenant, "kind": "bridge", "name": name }))
    }

    fn token(&self, new: &Value) -> Result<String> {
        let made = self.api.post("/api/v1/tokens", new)?.ok()?;
        Ok(made["token"].as_str().context("no token in the reply")?.to_owned())
    }

    /// A one-time link that signs an administrator in to the dashboard.
    pub fn sign_in_link(&self) -> Result<String> {
        let printed = self.command(&["sign-in"])?;
        let link = printed.split_ascii_whitespace().find(|word| word.starts_with("http"));
        link.map(str::to_owned).with_context(|| format!("no link in: {printed}"))
    }
}

impl HubBuilder {
    /// Sets a key of the configuration, such as `database`, by its environment variable.
    pub fn set(mut self, key: &str, value: impl Into<String>) -> Self {
        self.settings.push((format!("HYPERFACTORY_HUB_{}", key.to_uppercase().replace('-', "_")), value.into()));
        self
    }

    /// Sets a variable of its environment that is no key, as a service manager does.
    pub fn variable(mut self, name: &str, value: impl Into<String>) -> Self {
        self.settings.push((name.to_owned(), value.into()));
        self
    }

    /// Sets its clock off by `offset`, such as `+365d`.
    pub fn clock(mut self, offset: &str) -> Result<Self> {
        self.settings.extend(clock::off_by(offset)?);
        Ok(self)
    }

    /// Lets nodes reach it at this address of the machine instead of loopback.
    pub fn at(mut self, address: impl Into<IpAddr>) -> Self {
        self.address = address.into();
        self
    }

    /// Runs it inside a namespace, where it listens with the namespace's address for nodes and for people.
    pub fn inside(mut self, netns: &Netns) -> Self {
        self.netns = Some(netns.name().to_owned());
        self.at(netns.inside())
    }

    /// Starts it and waits until it answers.
    pub fn start(self) -> Result<Hub> {
        let state = tempfile::tempdir()?;
        // Join tokens carry the address, so the port must be known before the first start.
        let (quic, http) = match self.netns {
            // In a namespace of its own every port is free.
            Some(_) => (SocketAddr::new(self.address, 7443), SocketAddr::new(self.address, 7080)),
            None => {
                let free = UdpSocket::bind((self.address, 0)).context("finding a free UDP port")?.local_addr()?;
                (free, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))
            }
        };
        let mut settings = self.settings;
        for (key, value) in [("QUIC_LISTEN", quic), ("PUBLIC_ADDRESS", quic), ("HTTP_LISTEN", http)] {
            settings.push((format!("HYPERFACTORY_HUB_{key}"), value.to_string()));
        }
        let (process, endpoints) = serve(self.netns.as_deref(), state.path(), &settings)?;
        // The base URL may name a host, as a certificate does.
        let port = endpoints.http.rsplit(':').next().unwrap_or_default().parse().context("a URL without a port")?;
        settings.retain(|(name, _)| name != "HYPERFACTORY_HUB_HTTP_LISTEN");
        settings.push(("HYPERFACTORY_HUB_HTTP_LISTEN".to_owned(), SocketAddr::new(http.ip(), port).to_string()));

        let printed = run(state.path(), &settings, &["api-token", "--role", "admin", "--name", "rig"])?;
        let token = printed.split_ascii_whitespace().find(|word| word.starts_with("hft_"));
        let token = token.with_context(|| format!("no API token in: {printed}"))?;
        let api = anonymous(state.path(), &settings, &endpoints)?.with_token(token);
        Ok(Hub { state, settings, netns: self.netns, endpoints, api, process: Some(process) })
    }
}

/// Starts `serve` and waits for the file in which it says where it listens.
fn serve(netns: Option<&str>, state: &Path, settings: &[(String, String)]) -> Result<(Process, Endpoints)> {
    let file = state.join("endpoints.json");
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("removing the old endpoints");
        }
        _ => {}
    }
    let mut command = program(netns, state, settings)?;
    let mut process = Process::start(command.arg("serve"), &log(state))?;
    let endpoints = until("the hub to listen", SOON, || {
        process.check()?;
        Ok(Some(serde_json::from_slice::<Endpoints>(&std::fs::read(&file)?)?))
    });
    let endpoints = endpoints.with_context(|| process.last_words())?;
    let anonymous = anonymous(state, settings, &endpoints)?;
    let answers = until("the hub to answer", SOON, || {
        process.check()?;
        anonymous.get("/healthz")?.ok().map(|_| Some(()))
    });
    answers.with_context(|| process.last_words())?;
    Ok((process, endpoints))
}

/// The API of a hub that listens; over HTTPS by the authority it says, or the chain it was given.
fn anonymous(state: &Path, settings: &[(String, String)], endpoints: &Endpoints) -> Result<Api> {
    if !endpoints.http.starts_with("https:") {
        return Ok(Api::new(endpoints.http.clone()));
    }
    let given = settings.iter().find(|(name, _)| name == "HYPERFACTORY_HUB_HTTP_CERTIFICATE");
    let authorities = match given {
        Some((_, path)) => std::fs::read(path).with_context(|| format!("reading {path}"))?,
        None => run(state, settings, &["http-authority"])?.into_bytes(),
    };
    Ok(Api::trusting(endpoints.http.clone(), &authorities))
}

fn run(state: &Path, settings: &[(String, String)], arguments: &[&str]) -> Result<String> {
    finish(program(None, state, settings)?.args(arguments))
}

fn program(netns: Option<&str>, state: &Path, settings: &[(String, String)]) -> Result<Command> {
    let mut command = netns::command(netns, binary("hyperfactory-hub")?);
    command.env("HYPERFACTORY_HUB_STATE_DIR", state).envs(settings.iter().map(|(name, value)| (name, value)));
    Ok(command)
}

/// Outside of what the hub itself writes, but gone with it.
fn log(state: &Path) -> PathBuf {
    state.join("rig.log")
}
