//! The peers, from Debian's packages, as they are used: run on the host and scraped.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hyperfactory_tests::rig::{Process, SOON, Usage, until};

/// What is scraped: an address and a path on it.
#[derive(Clone)]
pub(crate) struct Target {
    address: SocketAddr,
    path: &'static str,
}

/// One that runs; killed when dropped.
pub(crate) struct Peer {
    process: Process,
    target: Target,
}

impl Peer {
    /// prometheus-node-exporter with the collectors that are on by default.
    pub(crate) fn node_exporter(folder: &Path) -> Result<Self> {
        let address = free()?;
        let mut command = Command::new("prometheus-node-exporter");
        command.arg(format!("--web.listen-address={address}"));
        let mut process = Process::start_group(&mut command, &folder.join("node-exporter.log"))?;
        let target = Target { address, path: "/metrics" };
        answers(&mut process, &target)?;
        Ok(Self { process, target })
    }

    /// Netdata at the same interval, without the collectors that watch applications we don't: Python and charts.d.
    pub(crate) fn netdata(folder: &Path) -> Result<Self> {
        let address = free()?;
        let home = folder.join("netdata");
        for name in ["config", "cache", "lib", "log", "home"] {
            fs::create_dir_all(home.join(name))?;
        }
        // It gives up root for a user of its own.
        fs::set_permissions(folder, Permissions::from_mode(0o755))?;
        let owned = Command::new("chown").args(["-R", "netdata"]).arg(&home).status().context("running chown")?;
        if !owned.success() {
            bail!("there is no user netdata: is Debian's package netdata-core installed?");
        }
        let config = folder.join("netdata.conf");
        let at = home.display();
        let (ip, port) = (address.ip(), address.port());
        fs::write(
            &config,
            format!(
                "[global]\nrun as user = netdata\nupdate every = 10\n[db]\nupdate every = 10\n\
                 [directories]\nconfig = {at}/config\ncache = {at}/cache\nlib = {at}/lib\nlog = {at}/log\nhome = {at}/home\n\
                 [web]\nbind to = {ip}:{port}\nweb files owner = root\nweb files group = root\n\
                 [registry]\nenabled = no\n[plugins]\npython.d = no\ncharts.d = no\n[statsd]\nenabled = no\n"
            ),
        )?;
        let mut command = Command::new("netdata");
        command.arg("-D").arg("-c").arg(&config).arg("-P").arg(home.join("pid")).env("DO_NOT_TRACK", "1");
        let mut process = Process::start_group(&mut command, &folder.join("netdata.log"))?;
        let target = Target { address, path: "/api/v1/allmetrics?format=prometheus" };
        answers(&mut process, &target)?;
        Ok(Self { process, target })
    }

    pub(crate) fn target(&self) -> Target {
        self.target.clone()
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of_tree(self.process.id())
    }
}

/// Scrapes both as Prometheus does, compressed, and counts what goes over the wire.
pub(crate) struct Scraper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    bytes: [AtomicU64; 2],
    failed: Mutex<Option<anyhow::Error>>,
}

/// Bytes of requests and responses, without those of TCP and IP.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scraped {
    pub(crate) node_exporter: u64,
    pub(crate) netdata: u64,
}

impl std::ops::Sub for Scraped {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { node_exporter: self.node_exporter - before.node_exporter, netdata: self.netdata - before.netdata }
    }
}

impl Scraper {
    pub(crate) fn start(interval: Duration, node_exporter: Target, netdata: Target) -> Self {
        let shared = Arc::new(Shared { stop: false.into(), bytes: Default::default(), failed: Mutex::new(None) });
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || {
                let mut next = Instant::now();
                while !shared.stop.load(Ordering::Relaxed) {
                    for (target, bytes) in [&node_exporter, &netdata].into_iter().zip(&shared.bytes) {
                        match scrape(target) {
                            Ok(count) => bytes.fetch_add(count, Ordering::Relaxed),
                            Err(error) => {
                                if let Ok(mut failed) = shared.failed.lock() {
                                    failed.get_or_insert(error);
                                }
                                return;
                            }
                        };
                    }
                    next += interval;
                    std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
                }
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// What was counted so far; fails when a scrape has failed.
    pub(crate) fn bytes(&self) -> Result<Scraped> {
        if let Ok(mut failed) = self.shared.failed.lock()
            && let Some(error) = failed.take()
        {
            return Err(error.context("scraping a peer"));
        }
        let [node_exporter, netdata] = &self.shared.bytes;
        Ok(Scraped { node_exporter: node_exporter.load(Ordering::Relaxed), netdata: netdata.load(Ordering::Relaxed) })
    }
}

impl Drop for Scraper {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn scrape(target: &Target) -> Result<u64> {
    let mut stream = TcpStream::connect(target.address).with_context(|| format!("connecting to {}", target.address))?;
    stream.set_read_timeout(Some(SOON))?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: Prometheus/2.42.0\r\nAccept: text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n\
         Accept-Encoding: gzip\r\nConnection: close\r\n\r\n",
        target.path, target.address
    );
    stream.write_all(request.as_bytes())?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    if !response.starts_with(b"HTTP/1.1 200") {
        let line = response.split(|byte| *byte == b'\r').next().unwrap_or_default();
        bail!("{}{} answered {}", target.address, target.path, String::from_utf8_lossy(line));
    }
    Ok((request.len() + response.len()) as u64)
}

fn answers(process: &mut Process, target: &Target) -> Result<()> {
    until("a peer to answer", SOON, || {
        process.check()?;
        scrape(target).map(Some)
    })?;
    Ok(())
}

fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("finding a free port")?.local_addr()?)
}
