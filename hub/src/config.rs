//! The hub's configuration: `/etc/hyperfactory/hub.toml` and `HYPERFACTORY_HUB_*`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pki::Passphrase;
use serde::Deserialize;
use settings::{Period, Secret};
use zeroize::Zeroizing;

use crate::alerts;
use crate::enrollment::RecoveryBounds;
use crate::gateway::Admission;
use crate::keys::Master;

/// Where the hub keeps its state unless told otherwise.
pub const STATE_DIR: &str = "/var/lib/hyperfactory/hub";

/// Every key of the configuration. All have a default: a hub starts without any.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Directory of the embedded database, the master key and `endpoints.json`.
    pub state_dir: PathBuf,
    /// `sqlite:///path` or `postgres://user:password@host/database`. Default: SQLite in the state directory.
    pub database: Option<Secret>,
    /// UDP address for nodes.
    pub quic_listen: SocketAddr,
    /// TCP address of dashboard and API.
    pub http_listen: SocketAddr,
    /// Host and port that join tokens carry: what nodes dial. Default: this machine's host name and the QUIC port.
    pub public_address: Option<String>,
    /// Address of the dashboard as people reach it, for links: that of the proxy in front which speaks TLS. Default: plain
    /// HTTP on `http-listen`.
    pub public_url: Option<String>,
    /// The master key, which guards the CA keys in the database: a file with it. Default: `master.key` in the state
    /// directory, made at the first start.
    pub master_key_file: Option<PathBuf>,
    /// Instead of a file, a passphrase of at least 16 characters that it is made from.
    pub master_passphrase: Option<Secret>,
    /// Instead of a file, a program that keeps it: run with `wrap` or `unwrap`, bytes on standard input, bytes back.
    pub master_command: Option<PathBuf>,
    /// For how long after its certificate's end a node may come back by itself.
    pub recovery_window: Period,
    /// How long telemetry is kept.
    pub retention: Period,
    /// File to which heads of the audit log are added, a line each: best on a disk that this machine can't rewrite.
    pub audit_heads_file: Option<PathBuf>,
    /// HTTP address to which heads of the audit log are posted.
    pub audit_heads_webhook: Option<Secret>,
    /// How often a head of the audit log is published when there is a new one.
    pub audit_heads_every: Period,
    /// Enrollments a second, in all.
    pub enrollments_per_second: u32,
    /// Enrollments a second from one IPv4 address or IPv6 /64.
    pub enrollments_per_source: u32,
    /// How long a node's session may be gone before it counts as lost.
    pub alert_node_lost_after: Period,
    /// How long a service may be unhealthy before that is an alert.
    pub alert_unhealthy_after: Period,
}

impl Default for Config {
    fn default() -> Self {
        let admission = Admission::default();
        Self {
            state_dir: STATE_DIR.into(),
            database: None,
            quic_listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7443),
            http_listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7080),
            public_address: None,
            public_url: None,
            master_key_file: None,
            master_passphrase: None,
            master_command: None,
            recovery_window: Period(RecoveryBounds::default().window),
            retention: Period(Duration::from_secs(7 * 86_400)),
            audit_heads_file: None,
            audit_heads_webhook: None,
            audit_heads_every: Period(Duration::from_secs(3600)),
            enrollments_per_second: admission.enrollments_per_second,
            enrollments_per_source: admission.enrollments_per_source,
            alert_node_lost_after: Period(Duration::from_secs(30)),
            alert_unhealthy_after: Period(Duration::from_secs(30)),
        }
    }
}

impl Config {
    /// Reads file and environment; `state_dir` is what `--state-dir` said and wins over both.
    ///
    /// # Errors
    /// [`settings::SettingsError`]: a sentence for the person who wrote the configuration.
    pub fn load(file: Option<&Path>, state_dir: Option<PathBuf>) -> Result<Self, settings::SettingsError> {
        Self::load_from(Path::new(settings::DIRECTORY), file, state_dir)
    }

    /// [`Self::load`] with another directory in place of `/etc/hyperfactory`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_from(
        directory: &Path,
        file: Option<&Path>,
        state_dir: Option<PathBuf>,
    ) -> Result<Self, settings::SettingsError> {
        let mut config: Self = settings::load_from(directory, "hub", file, std::env::vars_os())?;
        config.one_master()?;
        if let Some(state_dir) = state_dir {
            config.state_dir = state_dir;
        }
        Ok(config)
    }

    /// URL of the database.
    pub fn database_url(&self) -> String {
        match &self.database {
            Some(url) => url.expose().to_owned(),
            None => format!("sqlite://{}", self.state_dir.join("hub.db").display()),
        }
    }

    /// Where the master key comes from.
    pub fn master(&self) -> Master {
        match (&self.master_key_file, &self.master_passphrase, &self.master_command) {
            (Some(file), ..) => Master::File(file.clone()),
            (_, Some(passphrase), _) => {
                Master::Passphrase(Passphrase::new(Zeroizing::new(passphrase.expose().to_owned())))
            }
            (.., Some(program)) => Master::Command(program.clone()),
            _ => Master::Unsaid(self.state_dir.join("master.key")),
        }
    }

    fn one_master(&self) -> Result<(), settings::SettingsError> {
        let given = [
            ("master-key-file", self.master_key_file.is_some()),
            ("master-passphrase", self.master_passphrase.is_some()),
            ("master-command", self.master_command.is_some()),
        ];
        match given.iter().filter(|(_, given)| *given).map(|(key, _)| *key).collect::<Vec<_>>().as_slice() {
            [first, second, ..] => Err(settings::SettingsError::Invalid {
                place: "the configuration".into(),
                key: (*second).into(),
                message: format!("there is one master key, and `{first}` is set too: unset one of them"),
            }),
            _ => Ok(()),
        }
    }

    /// How patient the alert rules are.
    pub fn alert_policy(&self) -> alerts::Policy {
        alerts::Policy {
            lost_after: self.alert_node_lost_after.get(),
            service_after: self.alert_unhealthy_after.get(),
            ..alerts::Policy::default()
        }
    }

    /// Admission as configured.
    pub fn admission(&self) -> Admission {
        Admission {
            enrollments_per_second: self.enrollments_per_second.max(1),
            enrollments_per_source: self.enrollments_per_source.max(1),
            ..Admission::default()
        }
    }

    /// How far a node may come back by itself.
    pub fn recovery(&self) -> RecoveryBounds {
        RecoveryBounds { window: self.recovery_window.get(), ..RecoveryBounds::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_configuration_is_a_good_one_and_a_misspelt_key_is_not() {
        let load = |pairs: &[(&str, &str)]| {
            let variables = pairs.iter().map(|(name, value)| (name.into(), value.into()));
            settings::load_from::<Config>(Path::new("/nonexistent"), "hub", None, variables)
        };
        let config = load(&[]).expect("defaults");
        assert_eq!(config.database_url(), "sqlite:///var/lib/hyperfactory/hub/hub.db");
        let config = load(&[("HYPERFACTORY_HUB_HTTP_LISTEN", "127.0.0.1:0")]).expect("known key");
        assert_eq!(config.http_listen.port(), 0);
        let config = load(&[("HYPERFACTORY_HUB_MASTER_KEY_FILE", "/k"), ("HYPERFACTORY_HUB_MASTER_COMMAND", "/c")]);
        let error = config.expect("known keys").one_master().expect_err("two").to_string();
        assert!(error.contains("`master-key-file` is set too"), "{error}");
        let error = load(&[("HYPERFACTORY_HUB_HTTP_LISTENN", "x")]).expect_err("misspelt").to_string();
        assert!(error.contains("HYPERFACTORY_HUB_HTTP_LISTEN"), "{error}");
    }
}
