//! Where a hub listens, and where others reach it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::config::{Config, Encryption};

/// Where a running hub listens; written to `endpoints.json` in the state directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoints {
    /// Address of the QUIC socket.
    pub quic: SocketAddr,
    /// Base URL of dashboard and API.
    pub http: String,
}

impl Endpoints {
    /// File name in the state directory.
    pub const FILE: &str = "endpoints.json";

    /// Base URL of dashboard and API: as configured, or of the hub that runs, or by default.
    ///
    /// # Errors
    /// When the configuration contradicts itself.
    pub fn of(config: &Config) -> Result<String, settings::SettingsError> {
        let scheme = if config.encryption()? == Encryption::Off { "http" } else { "https" };
        let configured = config.public()?.map(|url| url.base);
        Ok(configured
            .or_else(|| Self::read(&config.state_dir).map(|endpoints| endpoints.http))
            .unwrap_or_else(|| format!("{scheme}://{}", reachable(config.http_listen))))
    }

    pub(super) fn write(&self, state_dir: &Path) -> anyhow::Result<()> {
        let (file, new) = (state_dir.join(Self::FILE), state_dir.join("endpoints.json.new"));
        let write = || std::fs::write(&new, serde_json::to_vec(self)?).and_then(|()| std::fs::rename(&new, &file));
        write().with_context(|| format!("cannot write {}", file.display()))
    }

    /// Those of the hub that runs, or last ran, in `state_dir`.
    pub fn read(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(state_dir.join(Self::FILE)).ok()?).ok()
    }
}

pub(super) async fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    TcpListener::bind(config.http_listen).await.with_context(|| {
        format!(
            "cannot listen on TCP {}: see who has the port with `ss -tlnp`, or set http-listen \
             (HYPERFACTORY_HUB_HTTP_LISTEN) to another address",
            config.http_listen
        )
    })
}

/// What a node dials when nobody configured it: this machine's name, or loopback when the hub listens there alone.
pub(super) fn dialed(quic: SocketAddr) -> String {
    if quic.ip().is_unspecified() {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        format!("{name}:{}", quic.port())
    } else {
        quic.to_string()
    }
}

/// An address to open in a browser on this machine.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if !ip.is_unspecified() => address,
        IpAddr::V4(_) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        IpAddr::V6(_) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port()),
    }
}
