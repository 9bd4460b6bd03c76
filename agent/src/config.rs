//! The agent's configuration: `/etc/hyperfactory/agent.toml` and `HYPERFACTORY_AGENT_*`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use settings::{Period, Secret, Size};
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::container::is_name;
use crate::engine::{self, Address};
use crate::kafka::KafkaConfig;
use crate::policy::{ALL, Policy};
use crate::shipper::Rate;

/// Where the agent keeps its state unless told otherwise.
pub const STATE_DIR: &str = "/var/lib/hyperfactory/agent";

/// Shortest and longest sampling interval: below, the agent would weigh on the host; above, nobody would call it live.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));

/// Every key of the configuration. All have a default: an enrolled agent runs without any.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Directory of the identity and the spool.
    pub state_dir: PathBuf,
    /// The engine: `unix:///path` or `tcp://host:port`. Default: `DOCKER_HOST`, else `/var/run/docker.sock`.
    pub docker_host: Option<String>,
    /// Time from one sample to the next.
    pub interval: Period,
    /// Samples that travel together while nobody looks; changes of state always travel at once.
    pub samples_per_batch: usize,
    /// Most bytes of telemetry kept on disk while the hub can't be reached.
    pub spool_size: Size,
    /// TCP address of `/healthz`, `/readyz`, `/status` and `/metrics`.
    pub health_listen: SocketAddr,
    /// The name to enroll under where the token leaves it open. Default: the host's.
    pub name: Option<String>,
    /// A join token: an agent that is not enrolled yet enrolls with it when it starts.
    pub token: Option<Secret>,
    /// What is logged: a level, or levels for parts, as in `info,hyperfactory_agent=debug`.
    pub log: String,
    /// Which commands of the hub are carried out.
    pub commands: Policy,
    /// Which services' logs are shipped.
    pub logs: Logs,
    /// Brokers where the hub has this agent say what bridges may do.
    pub kafka: KafkaConfig,
}

/// The table `[logs]`: services whose logs are sent to the hub and kept there. None, unless somebody chooses them.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Logs {
    /// Compose projects, or services as `project/service`; `*`: all.
    pub services: Vec<String>,
    /// Lines of one container that are shipped a second; what is more is left out, and counted.
    pub lines_per_second: u32,
    /// Bytes of one container that are shipped a second.
    pub bytes_per_second: Size,
    /// Most bytes of lines kept on disk, compressed, while the hub can't be reached.
    pub spool_size: Size,
}

/// Whether a choice of services includes another, or a service.
pub(crate) fn includes(choice: &str, other: &str) -> bool {
    choice == ALL || choice == other || other.split_once('/').is_some_and(|(stack, _)| stack == choice)
}

impl Default for Logs {
    fn default() -> Self {
        Self {
            services: Vec::new(),
            lines_per_second: 500,
            bytes_per_second: Size(128 << 10),
            spool_size: Size::mebibytes(64),
        }
    }
}

impl Logs {
    /// Whether anything is shipped.
    pub fn is_on(&self) -> bool {
        !self.services.is_empty()
    }

    /// Whether a service's log is shipped.
    pub(crate) fn chooses(&self, stack: &str, service: &str) -> bool {
        self.services.iter().any(|choice| includes(choice, &format!("{stack}/{service}")))
    }

    pub(crate) fn rate(&self) -> Rate {
        Rate { lines: self.lines_per_second, bytes: self.bytes_per_second.bytes() }
    }

    fn checked(&self) -> Result<(), ConfigError> {
        let wrong = |key, why: String| Err(ConfigError::Value { key, why });
        for chosen in &self.services {
            let (stack, service) = chosen.split_once('/').unwrap_or((chosen, "x"));
            if chosen != ALL && !(is_name(stack) && is_name(service)) {
                let why = format!("{chosen:?} is no service: use *, a Compose project, or project/service");
                return wrong("logs.services", why);
            }
        }
        if self.lines_per_second == 0 {
            return wrong("logs.lines-per-second", "use 1 or more; without services nothing is shipped".into());
        }
        if self.bytes_per_second < Size(1 << 10) {
            return wrong("logs.bytes-per-second", "use 1KiB or more".into());
        }
        if self.spool_size < Size::mebibytes(1) {
            return wrong("logs.spool-size", "use 1MiB or more".into());
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: STATE_DIR.into(),
            docker_host: None,
            interval: Period::seconds(15),
            samples_per_batch: node::telemetry::SAMPLES_PER_BATCH,
            spool_size: Size::mebibytes(128),
            health_listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7091),
            name: None,
            token: None,
            log: "info".into(),
            commands: Policy::default(),
            logs: Logs::default(),
            kafka: KafkaConfig::default(),
        }
    }
}

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file, a key or a value.
    #[error(transparent)]
    Settings(#[from] settings::SettingsError),
    /// A value that is of the right kind and makes no sense.
    #[error("`{key}` is not usable: {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
}

impl Config {
    /// Reads file and environment; `state_dir` is what `--state-dir` said and wins over both.
    ///
    /// # Errors
    /// [`ConfigError`]: a sentence for the person who wrote the configuration.
    pub fn load(file: Option<&Path>, state_dir: Option<PathBuf>) -> Result<Self, ConfigError> {
        let mut config: Self = settings::load("agent", file, std::env::vars_os())?;
        if let Some(state_dir) = state_dir {
            config.state_dir = state_dir;
        }
        config.checked()
    }

    fn checked(self) -> Result<Self, ConfigError> {
        let wrong = |key, why: String| Err(ConfigError::Value { key, why });
        let (shortest, longest) = INTERVAL;
        if !(shortest..=longest).contains(&self.interval.get()) {
            return wrong("interval", format!("use from {} to {}", Period(shortest), Period(longest)));
        }
        if !(1..=60).contains(&self.samples_per_batch) {
            return wrong("samples-per-batch", "use from 1 to 60".into());
        }
        if self.spool_size < Size::mebibytes(1) {
            return wrong("spool-size", "use 1MiB or more".into());
        }
        // A lone word that is no level would count as the name of a part, and all else would be silent.
        let is_level = |part: &str| part.contains('=') || part.trim().parse::<LevelFilter>().is_ok();
        if self.log.parse::<Targets>().is_err() || !self.log.split(',').all(is_level) {
            return wrong(
                "log",
                "use off, error, warn, info, debug or trace, or part=level, with commas between".into(),
            );
        }
        self.commands.checked()?;
        self.logs.checked()?;
        self.kafka.checked()?;
        self.engine(None)?;
        Ok(self)
    }

    /// Where the engine is. `docker_host` is the value of `DOCKER_HOST`.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for an address of a kind that can't be used.
    pub fn engine(&self, docker_host: Option<&str>) -> Result<Address, ConfigError> {
        let docker_host = docker_host.filter(|host| !host.is_empty());
        let (key, address) = match (self.docker_host.as_deref(), docker_host) {
            (Some(configured), _) => ("docker-host", configured),
            (None, Some(host)) => ("DOCKER_HOST", host),
            (None, None) => ("docker-host", engine::DEFAULT),
        };
        address.parse().map_err(|error: engine::AddressError| ConfigError::Value { key, why: error.to_string() })
    }

    /// What is logged.
    pub fn log(&self) -> Targets {
        self.log.parse().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let variables = pairs.iter().map(|(name, value)| (name.into(), value.into()));
        settings::load_from::<Config>(Path::new("/nonexistent"), "agent", None, variables)?.checked()
    }

    #[test]
    fn nothing_has_to_be_configured() {
        let config = load(&[]).unwrap();
        assert_eq!(config.interval.get(), Duration::from_secs(15));
        assert_eq!(config.health_listen.to_string(), "127.0.0.1:7091");
        assert_eq!(config.engine(None).unwrap().to_string(), "unix:///var/run/docker.sock");
    }

    #[test]
    fn the_engine_is_where_the_key_or_docker_host_says() {
        let config = load(&[]).unwrap();
        assert_eq!(config.engine(Some("tcp://10.0.0.9:2375")).unwrap().to_string(), "tcp://10.0.0.9:2375");
        assert_eq!(config.engine(Some("")).unwrap().to_string(), engine::DEFAULT);
        let refused = config.engine(Some("ssh://root@host")).unwrap_err().to_string();
        assert!(refused.contains("DOCKER_HOST") && refused.contains("use unix://"), "{refused}");
        let config = load(&[("HYPERFACTORY_AGENT_DOCKER_HOST", "/run/other.sock")]).unwrap();
        assert_eq!(config.engine(Some("tcp://10.0.0.9:2375")).unwrap().to_string(), "unix:///run/other.sock");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        for (variable, value, expected) in [
            ("HYPERFACTORY_AGENT_INTERVAL", "10ms", "`interval` is not usable: use from 100ms to 1h"),
            ("HYPERFACTORY_AGENT_SAMPLES_PER_BATCH", "0", "`samples-per-batch` is not usable: use from 1 to 60"),
            ("HYPERFACTORY_AGENT_SPOOL_SIZE", "1KiB", "`spool-size` is not usable: use 1MiB or more"),
            ("HYPERFACTORY_AGENT_LOG", "loud", "`log` is not usable"),
            ("HYPERFACTORY_AGENT_DOCKER_HOST", "https://host", "`docker-host` is not usable"),
            ("HYPERFACTORY_AGENT_LOGS_SERVICES", "shop/", "`logs.services` is not usable: \"shop/\" is no service"),
            ("HYPERFACTORY_AGENT_LOGS_LINES_PER_SECOND", "0", "`logs.lines-per-second` is not usable"),
            ("HYPERFACTORY_AGENT_LOGS_SPOOL_SIZE", "1KiB", "`logs.spool-size` is not usable: use 1MiB or more"),
            (
                "HYPERFACTORY_AGENT_KAFKA_BROKERS",
                "redpanda",
                "`kafka.brokers` is not usable: \"redpanda\" is not host:port",
            ),
            ("HYPERFACTORY_AGENT_KAFKA_KEY", "/etc/k", "`kafka.certificate` is not usable: name both"),
            ("HYPERFACTORY_AGENT_INTERVALL", "10s", "HYPERFACTORY_AGENT_INTERVAL"),
        ] {
            let refused = load(&[(variable, value)]).unwrap_err().to_string();
            assert!(refused.contains(expected), "{variable}={value}: {refused}");
        }
    }

    #[test]
    fn logs_are_shipped_of_what_is_chosen_and_of_nothing_else() {
        assert!(!load(&[]).unwrap().logs.is_on());
        let chosen = |services: &str| load(&[("HYPERFACTORY_AGENT_LOGS_SERVICES", services)]).unwrap().logs;
        let logs = chosen("shop,press/plc");
        assert!(logs.is_on() && logs.chooses("shop", "web") && logs.chooses("press", "plc"));
        assert!(!logs.chooses("press", "web") && !logs.chooses("shopping", "web"));
        assert!(chosen("*").chooses("any", "thing"));
    }

    #[test]
    fn a_misspelt_key_is_refused_with_the_one_that_was_meant() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, "interval = \"10s\"\nspool-sise = \"64MiB\"\n").unwrap();
        let refused = Config::load(Some(&path), None).unwrap_err().to_string();
        assert!(refused.contains("agent.toml:2") && refused.contains("spool-size"), "{refused}");
    }

    #[test]
    fn a_token_is_not_shown() {
        let config = load(&[("HYPERFACTORY_AGENT_TOKEN", "hfj_secret")]).unwrap();
        assert!(!format!("{config:?}").contains("hfj_secret"));
    }

    #[test]
    fn commands_have_a_table_of_their_own_and_variables_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        let text = "[commands]\naccept = [\"service.restart\"]\nprojects = [\"shop\"]\n\n\
                    [commands.scripts]\nrotate = \"/usr/local/sbin/rotate\"\n";
        std::fs::write(&path, text).unwrap();
        let read = settings::load_from::<Config>(Path::new("/nonexistent"), "agent", Some(&path), []);
        let commands = read.unwrap().checked().unwrap().commands;
        assert_eq!((&*commands.accept, &*commands.projects), (&["service.restart".into()][..], &["shop".into()][..]));
        assert_eq!(commands.scripts["rotate"], Path::new("/usr/local/sbin/rotate"));
        let config = load(&[("HYPERFACTORY_AGENT_COMMANDS_SCRIPTS", "{ a = \"/bin/a\" }")]).unwrap();
        assert_eq!(config.commands.scripts["a"], Path::new("/bin/a"));
        let refused =
            load(&[("HYPERFACTORY_AGENT_COMMANDS_ACCEPT", "service.restart,reboot")]).unwrap_err().to_string();
        assert!(refused.contains("\"reboot\" is no action"), "{refused}");
    }
}
