//! The hub's configuration: `/etc/hyperfactory/hub.toml` and `HYPERFACTORY_HUB_*`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::Uri;
use pki::{Passphrase, WebName};
use serde::Deserialize;
use settings::{Period, Secret, SettingsError, Size};
use zeroize::Zeroizing;

use crate::alerts;
use crate::enrollment::RecoveryBounds;
use crate::gateway::Admission;
use crate::keys::Master;
use crate::logs::Endpoint;
use crate::web::Pair;

/// Where the hub keeps its state unless told otherwise.
pub const STATE_DIR: &str = "/var/lib/hyperfactory/hub";

/// Every key of the configuration. All have a default: a hub starts without any.
#[derive(Clone, Debug, Deserialize)]
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
    /// PEM file with the certificate for HTTPS, and after it those of its authorities. Read again when it changes, and on
    /// SIGHUP. Default: plain HTTP.
    pub http_certificate: Option<PathBuf>,
    /// PEM file with that certificate's private key, without a passphrase.
    pub http_key: Option<PathBuf>,
    /// `own`: HTTPS with a certificate that the hub issues itself; see `hyperfactory-hub http-authority`.
    pub http_tls: Option<HttpTls>,
    /// Address of the dashboard as people reach it, for links: `https://…`, of this hub or of a proxy in front which
    /// speaks TLS. Default: an address of this machine, or a name in the certificate.
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
    /// How long commands are kept with what they put out, and rollouts after their end.
    pub commands_retention: Period,
    /// How long lines of shipped logs are kept.
    pub logs_retention: Period,
    /// Most bytes of each tenant's lines that are kept; beyond it the oldest go.
    pub logs_size: Size,
    /// Address of a Loki, without a path, to which shipped lines are pushed on.
    pub loki_url: Option<Secret>,
    /// File with the bearer token that it takes; read at each push.
    pub loki_token_file: Option<PathBuf>,
    /// The tenant there: its header X-Scope-OrgID.
    pub loki_tenant: Option<String>,
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

/// What `http-tls` may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HttpTls {
    /// Plain HTTP.
    Off,
    /// A certificate of the hub's own.
    Own,
}

/// How the HTTP side is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    /// Not at all.
    Off,
    /// With a certificate that somebody else issues and renews.
    Files(Pair),
    /// With the hub's own.
    Own,
}

/// `public-url`, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublicUrl {
    /// The address, without a slash at its end.
    pub(crate) base: String,
    /// Whether it is HTTPS.
    pub(crate) secure: bool,
    /// The host in it.
    pub(crate) host: WebName,
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
            http_certificate: None,
            http_key: None,
            http_tls: None,
            public_url: None,
            master_key_file: None,
            master_passphrase: None,
            master_command: None,
            recovery_window: Period(RecoveryBounds::default().window),
            retention: Period(Duration::from_secs(7 * 86_400)),
            commands_retention: Period(Duration::from_secs(90 * 86_400)),
            logs_retention: Period(Duration::from_secs(7 * 86_400)),
            logs_size: Size::mebibytes(1024),
            loki_url: None,
            loki_token_file: None,
            loki_tenant: None,
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
    /// Where shipped lines are pushed on to, if anywhere.
    ///
    /// # Errors
    /// When there is more said of it than where it is.
    pub(crate) fn loki(&self) -> Result<Option<Endpoint>, SettingsError> {
        let (token_file, tenant) = (self.loki_token_file.clone(), self.loki_tenant.clone());
        match &self.loki_url {
            Some(url) => Ok(Some(Endpoint { url: url.clone(), token_file, tenant })),
            None if token_file.is_some() => Err(invalid("loki-token-file", "it is for `loki-url`: set that too")),
            None if tenant.is_some() => Err(invalid("loki-tenant", "it is for `loki-url`: set that too")),
            None => Ok(None),
        }
    }

    /// Reads file and environment; `state_dir` is what `--state-dir` said and wins over both.
    ///
    /// # Errors
    /// A sentence for the person who wrote the configuration.
    pub fn load(file: Option<&Path>, state_dir: Option<PathBuf>) -> Result<Self, SettingsError> {
        Self::load_from(Path::new(settings::DIRECTORY), file, state_dir)
    }

    /// [`Self::load`] with another directory in place of `/etc/hyperfactory`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_from(directory: &Path, file: Option<&Path>, state_dir: Option<PathBuf>) -> Result<Self, SettingsError> {
        let mut config: Self = settings::load_from(directory, "hub", file, std::env::vars_os())?;
        config.one_master()?;
        if let Some(state_dir) = state_dir {
            config.state_dir = state_dir;
        }
        config.encryption()?;
        config.loki()?;
        Ok(config)
    }

    /// How the HTTP side is encrypted.
    ///
    /// # Errors
    /// When the keys for it contradict each other.
    pub(crate) fn encryption(&self) -> Result<Encryption, SettingsError> {
        let encryption = match (&self.http_certificate, &self.http_key, self.http_tls) {
            (None, None, None | Some(HttpTls::Off)) => Encryption::Off,
            (None, None, Some(HttpTls::Own)) => Encryption::Own,
            (Some(_), Some(_), Some(_)) => {
                return Err(invalid("http-tls", "`http-certificate` is set too: unset one of them"));
            }
            (Some(certificate), Some(key), None) => {
                Encryption::Files(Pair { certificate: certificate.clone(), key: key.clone() })
            }
            (Some(_), None, _) => {
                return Err(invalid("http-certificate", "HTTPS takes its private key too: set `http-key`"));
            }
            (None, Some(_), _) => {
                return Err(invalid("http-key", "HTTPS takes a certificate for it too: set `http-certificate`"));
            }
        };
        match self.public()? {
            Some(url) if !url.secure && encryption != Encryption::Off => {
                Err(invalid("public-url", format!("{:?} says http, and the hub speaks HTTPS: write https", url.base)))
            }
            _ => Ok(encryption),
        }
    }

    /// The address of the dashboard as people reach it, if the configuration says it.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn public(&self) -> Result<Option<PublicUrl>, SettingsError> {
        let Some(text) = &self.public_url else { return Ok(None) };
        let base = text.trim().trim_end_matches('/');
        let read = || {
            let uri: Uri = base.parse().ok()?;
            let secure = match uri.scheme_str()? {
                "https" => true,
                "http" => false,
                _ => return None,
            };
            Some(PublicUrl { base: base.to_owned(), secure, host: uri.host()?.parse().ok()? })
        };
        let like = "it is like https://hub.example or https://hub.example:7080";
        read().map(Some).ok_or_else(|| invalid("public-url", format!("{text:?} is no address of a dashboard; {like}")))
    }

    /// Whether people's passwords would cross a network in the clear: no HTTPS here, none said to be in front.
    pub(crate) fn is_exposed(&self) -> Result<bool, SettingsError> {
        let in_front = self.public()?.is_some_and(|url| url.secure);
        Ok(self.encryption()? == Encryption::Off && !in_front && !self.http_listen.ip().is_loopback())
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

    fn one_master(&self) -> Result<(), SettingsError> {
        let given = [
            ("master-key-file", self.master_key_file.is_some()),
            ("master-passphrase", self.master_passphrase.is_some()),
            ("master-command", self.master_command.is_some()),
        ];
        match given.iter().filter(|(_, given)| *given).map(|(key, _)| *key).collect::<Vec<_>>().as_slice() {
            [first, second, ..] => {
                Err(invalid(second, format!("there is one master key, and `{first}` is set too: unset one of them")))
            }
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

/// For what is wrong with keys together.
fn invalid(key: &str, message: impl Into<String>) -> SettingsError {
    SettingsError::Invalid { place: "the configuration".into(), key: key.into(), message: message.into() }
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
        let config = load(&[("HYPERFACTORY_HUB_HTTP_TLS", "own")]).expect("a known word");
        assert_eq!(config.encryption().expect("an answer"), Encryption::Own);
        let error = load(&[("HYPERFACTORY_HUB_HTTP_TLS", "on")]).expect_err("another").to_string();
        assert!(error.contains("`off` or `own`"), "{error}");
    }

    #[test]
    fn the_example_shows_every_default() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/hub.toml");
        let text = std::fs::read_to_string(example).expect("the example");
        // Keys have no blank after their '#'; prose has.
        let key = |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).map(str::to_owned);
        let keys: Vec<String> = text.lines().filter_map(key).collect();
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("hub.toml"), keys.join("\n")).expect("written");
        let config = Config::load_from(directory.path(), None, None).expect("good");
        let defaults = Config::default();
        assert_eq!(config.database_url(), defaults.database_url());
        assert!(matches!((config.master(), defaults.master()), (Master::File(a), Master::Unsaid(b)) if a == b));
        // What is an example, or stands for what is so without it.
        let config = Config {
            database: None,
            master_key_file: None,
            public_address: None,
            public_url: None,
            http_certificate: None,
            http_key: None,
            loki_url: None,
            loki_token_file: None,
            loki_tenant: None,
            audit_heads_file: None,
            audit_heads_webhook: None,
            ..config
        };
        assert_eq!(format!("{config:?}"), format!("{defaults:?}"));
    }

    #[test]
    fn keys_for_https_that_contradict_each_other_are_refused() {
        let config = |certificate: bool, key: bool, tls, url: &str| Config {
            http_certificate: certificate.then(|| "/etc/hub/fullchain.pem".into()),
            http_key: key.then(|| "/etc/hub/key.pem".into()),
            http_tls: tls,
            public_url: (!url.is_empty()).then(|| url.to_owned()),
            ..Config::default()
        };
        let good = |config: Config| config.encryption().map_err(|error| error.to_string());
        assert_eq!(good(config(false, false, None, "")), Ok(Encryption::Off));
        assert_eq!(good(config(false, false, Some(HttpTls::Off), "http://hub.example/")), Ok(Encryption::Off));
        assert!(matches!(good(config(true, true, None, "https://hub.example")), Ok(Encryption::Files(_))));
        let bad = |config: Config, says: &str| {
            let error = good(config).expect_err(says);
            assert!(error.contains(says), "{error}");
        };
        bad(config(true, false, None, ""), "set `http-key`");
        bad(config(false, true, Some(HttpTls::Own), ""), "set `http-certificate`");
        bad(config(true, true, Some(HttpTls::Own), ""), "unset one of them");
        bad(config(true, true, Some(HttpTls::Off), ""), "unset one of them");
        bad(config(false, false, Some(HttpTls::Own), "http://hub.example"), "write https");
        for url in ["hub.example", "ftp://hub.example", "https://", "https://a b"] {
            bad(config(false, false, None, url), "is no address of a dashboard");
        }
    }

    #[test]
    fn a_password_in_the_clear_beyond_this_machine_is_noticed() {
        let config = |listen: &str, url: Option<&str>, tls| Config {
            http_listen: listen.parse().expect("an address"),
            public_url: url.map(str::to_owned),
            http_tls: tls,
            ..Config::default()
        };
        let exposed = |config: Config| config.is_exposed().expect("good");
        assert!(exposed(config("0.0.0.0:7080", None, None)));
        assert!(exposed(config("192.0.2.7:7080", Some("http://hub.example"), None)));
        assert!(!exposed(config("127.0.0.1:7080", None, None)));
        assert!(!exposed(config("0.0.0.0:7080", Some("https://hub.example"), None)));
        assert!(!exposed(config("0.0.0.0:7080", None, Some(HttpTls::Own))));
    }
}
