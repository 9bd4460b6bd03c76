//! The bridge's configuration: `/etc/hyperfactory/bridge.toml` and `HYPERFACTORY_BRIDGE_*`.

mod kafka;
mod mqtt;
mod route;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use node::KafkaStore;
use serde::Deserialize;
use settings::{Period, Secret, Size};
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::class::{self, ClassConfig};
use crate::route::{RouteError, Routes};
pub use kafka::{Compression, KafkaConfig, Tls};
pub use mqtt::{Ack, MqttConfig, Version};
pub use route::{Decode, Preset, RouteConfig};

/// Where the bridge keeps its state unless told otherwise.
pub const STATE_DIR: &str = "/var/lib/hyperfactory/bridge";

/// Every key of the configuration.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Directory of the log and the dead letters.
    pub state_dir: PathBuf,
    /// The bridge's name in the headers of what it delivers; never change it while records are on their way. Default: the
    /// id that it enrolled with.
    pub name: Option<String>,
    /// A join token: a bridge that is not enrolled yet enrolls with it when it starts.
    pub token: Option<Secret>,
    /// Time from one report to the hub to the next.
    pub interval: Period,
    /// Most bytes of telemetry kept on disk while the hub can't be reached.
    pub spool_size: Size,
    /// TCP address of `/healthz`, `/readyz`, `/status` and `/metrics`, when it is enrolled.
    pub health_listen: SocketAddr,
    /// Most bytes of records kept on disk while Kafka can't be reached; when they are used up, MQTT messages are no longer
    /// acknowledged, and wait at their broker.
    pub log_size: Size,
    /// Most bytes of records kept that Kafka refused for good; the oldest give way.
    pub dead_letter_size: Size,
    /// What is logged: a level, or levels for parts, as in `info,hyperfactory_bridge=debug`.
    pub log: String,
    /// Where messages come from.
    pub mqtt: Vec<MqttConfig>,
    /// Where they go.
    pub kafka: KafkaConfig,
    /// Classes of topics that may be dropped, or have room of their own.
    pub class: Vec<ClassConfig>,
    /// Which message goes where; the first that matches counts.
    pub route: Vec<RouteConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: STATE_DIR.into(),
            name: None,
            token: None,
            interval: Period::seconds(15),
            spool_size: Size::mebibytes(32),
            health_listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7092),
            log_size: Size::mebibytes(1024),
            dead_letter_size: Size::mebibytes(64),
            log: "info".into(),
            mqtt: Vec::new(),
            kafka: KafkaConfig::default(),
            class: Vec::new(),
            route: Vec::new(),
        }
    }
}

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file, a key or a value.
    #[error(transparent)]
    Settings(#[from] settings::SettingsError),
    /// A route.
    #[error(transparent)]
    Route(#[from] RouteError),
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
        let mut config: Self = settings::load("bridge", file, std::env::vars_os())?;
        if let Some(state_dir) = state_dir {
            config.state_dir = state_dir;
        }
        config.checked()
    }

    fn checked(self) -> Result<Self, ConfigError> {
        let wrong = |key, why: &str| Err(ConfigError::Value { key, why: why.into() });
        if self.log_size < Size::mebibytes(1) {
            return wrong("log-size", "use 1MiB or more");
        }
        if self.spool_size < Size::mebibytes(1) {
            return wrong("spool-size", "use 1MiB or more");
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&self.interval.get()) {
            return wrong("interval", "use from 100ms to 1h");
        }
        if self.dead_letter_size < Size::mebibytes(1) {
            return wrong("dead-letter-size", "use 1MiB or more");
        }
        // A lone word that is no level would count as the name of a part, and all else would be silent.
        let is_level = |part: &str| part.contains('=') || part.trim().parse::<LevelFilter>().is_ok();
        if self.log.parse::<Targets>().is_err() || !self.log.split(',').all(is_level) {
            return wrong("log", "use off, error, warn, info, debug or trace, or part=level, with commas between");
        }
        if self.name.as_deref().is_some_and(|name| !is_name(name)) {
            return wrong("name", NAME);
        }
        let mut names = BTreeSet::new();
        for mqtt in &self.mqtt {
            mqtt.check()?;
            if !names.insert(mqtt.name.as_str()) {
                return wrong("mqtt.name", &format!("{} is given twice", mqtt.name));
            }
        }
        for route in &self.route {
            if let Some(mqtt) = route.mqtt.as_deref().filter(|mqtt| !names.contains(mqtt)) {
                return wrong("route.mqtt", &format!("there is no [[mqtt]] with the name {mqtt:?}"));
            }
        }
        self.kafka.check(!self.class.is_empty())?;
        class::check(&self)?;
        Routes::new(&self.route)?;
        Ok(self)
    }

    /// Whether it says all that a running bridge needs.
    ///
    /// # Errors
    /// The first that is missing.
    pub fn complete(&self) -> Result<(), ConfigError> {
        let missing = |key, why: &str| Err(ConfigError::Value { key, why: why.into() });
        if self.mqtt.is_empty() {
            return missing("mqtt", "there is no [[mqtt]]: nowhere to read from");
        }
        if self.kafka.brokers.is_empty() {
            return missing("kafka.brokers", "there is none: nowhere to deliver to");
        }
        if self.route.is_empty() {
            return missing("route", "there is no [[route]]: nothing to read");
        }
        Ok(())
    }

    /// As it is for a bridge that is enrolled, or is not: one that is has its Kafka certificate from the hub, unless the
    /// configuration says otherwise.
    ///
    /// # Errors
    /// When the hub is to give one to a bridge that it does not know.
    pub fn enrolled(mut self, enrolled: bool) -> Result<Self, ConfigError> {
        if self.kafka.tls == Some(Tls::Hub) && !enrolled {
            let why = "the hub gives a certificate to a bridge that is enrolled: run hyperfactory-bridge enroll".into();
            return Err(ConfigError::Value { key: "kafka.tls", why });
        }
        let from_hub = enrolled && self.kafka.certificate.is_none() && self.kafka.tls != Some(Tls::Off);
        self.kafka.issued = from_hub.then(|| KafkaStore::directory(&self.state_dir));
        Ok(self)
    }

    /// Keys in which `new` differs that are read at a start alone; the others are [`Self::route`], `kafka.max-rate` and
    /// `kafka.catch-up`.
    pub fn read_at_start(&self, new: &Self) -> Vec<&'static str> {
        let (kafka, next) = (&self.kafka, &new.kafka);
        let differs = [
            ("state-dir", self.state_dir != new.state_dir),
            ("name", self.name != new.name),
            ("interval", self.interval != new.interval),
            ("spool-size", self.spool_size != new.spool_size),
            ("health-listen", self.health_listen != new.health_listen),
            ("log-size", self.log_size != new.log_size),
            ("dead-letter-size", self.dead_letter_size != new.dead_letter_size),
            ("log", self.log != new.log),
            ("class", self.class != new.class),
            ("mqtt", self.mqtt != new.mqtt),
            ("kafka.brokers", kafka.brokers != next.brokers),
            ("kafka.compression", kafka.compression != next.compression),
            ("kafka.linger", kafka.linger != next.linger),
            ("kafka.max-record", kafka.max_record != next.max_record),
            ("kafka.tls", kafka.tls != next.tls),
            ("kafka.ca", kafka.ca != next.ca),
            ("kafka.certificate", kafka.certificate != next.certificate),
            ("kafka.key", kafka.key != next.key),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }

    /// What is logged.
    pub fn log(&self) -> Targets {
        self.log.parse().unwrap_or_default()
    }

    /// Directory of the records that are on their way.
    pub fn log_dir(&self) -> PathBuf {
        self.state_dir.join("log")
    }

    /// Directory of the records that Kafka refused.
    pub fn dead_letter_dir(&self) -> PathBuf {
        self.state_dir.join("dead-letters")
    }
}

pub(crate) const NAME: &str = "use 1 to 64 letters, digits, '-', '_' and '.'";

pub(crate) fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bridge.toml");
        std::fs::write(&file, text).unwrap();
        settings::load_from::<Config>(directory.path(), "bridge", Some(&file), [])?.checked()
    }

    #[test]
    fn the_example_is_a_configuration_that_runs() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/bridge.toml");
        let text = std::fs::read_to_string(example).unwrap();
        let config = load(&text).unwrap();
        config.complete().unwrap();
        assert!(Routes::new(&config.route).unwrap().lints().is_empty());
        // What is commented out are the defaults, or examples: it has to be readable, too.
        let all: String = text
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
            .fold(String::new(), |all, line| all + line + "\n");
        let config = load(&all).unwrap();
        let defaults = Config::default();
        assert_eq!((config.log_size, config.dead_letter_size), (defaults.log_size, defaults.dead_letter_size));
        assert_eq!((config.kafka.linger, config.kafka.max_record), (defaults.kafka.linger, defaults.kafka.max_record));
        assert_eq!((config.kafka.compression, config.log), (defaults.kafka.compression, defaults.log));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        let mqtt = "[[mqtt]]\nname = 'a'\naddress = 'broker:1883'\n";
        for (text, expected) in [
            ("log-size = '1KiB'".to_owned(), "use 1MiB or more"),
            ("log = 'loud'".to_owned(), "`log` is not usable"),
            (format!("{mqtt}{mqtt}"), "a is given twice"),
            (format!("{mqtt}qos = 3"), "use 0, 1 or 2"),
            (format!("{mqtt}ack = 'read'"), "expected `durable` or `delivered`"),
            (format!("{mqtt}keep-alive = '10ms'"), "from 1s to 1h"),
            (format!("{mqtt}version = 4"), "use 3, for MQTT 3.1.1, or 5"),
            (format!("{mqtt}receive-maximum = 10"), "take version = 5"),
            (format!("{mqtt}version = 5\nreceive-maximum = 0"), "use 1 or more"),
            (format!("{mqtt}nmae = 'b'"), "nmae"),
            ("[[mqtt]]\nname = 'a'\naddress = 'broker'".to_owned(), "is not host:port"),
            ("[[mqtt]]\nname = 'a b'\naddress = 'b:1'".to_owned(), "letters, digits"),
            ("[[route]]\nfrom = 'a'\nto = 'b'\nmqtt = 'c'".to_owned(), "no [[mqtt]] with the name \"c\""),
            ("[[route]]\nfrom = 'a'".to_owned(), "route 1 is not usable"),
            ("[kafka]\nkey = '/k'".to_owned(), "go together"),
            ("[kafka]\nkey = '/k'\ncertificate = '/c'".to_owned(), "over TLS only"),
            ("[kafka]\nmax-rate = '10B'".to_owned(), "use 1KiB or more"),
            ("[kafka]\nmax-rate = '1MiB'\ncatch-up = 'live-first'".to_owned(), "give both"),
            ("[kafka]\nmax-rate = '1MiB'\ncatch-up = 'newest'".to_owned(), "expected `strict` or `live-first`"),
            ("[kafka]\ntls = 'off'\nca = '/a'".to_owned(), "asks for TLS"),
            ("[kafka]\ntls = 'hub'\nkey = '/k'\ncertificate = '/c'".to_owned(), "leave out one"),
            ("[kafka]\nbroker = []".to_owned(), "kafka.broker"),
            ("[[class]]\nname = 'a'".to_owned(), "overflow"),
            ("[[class]]\nname = 'a'\noverflow = 'drop'".to_owned(), "expected one of `block`, `drop-oldest`"),
            ("[[class]]\nname = '..'\noverflow = 'block'".to_owned(), "letters, digits"),
            ("[[class]]\nname = 'a'\noverflow = 'block'\nsize = '1KiB'".to_owned(), "use 1MiB or more"),
            ("[[class]]\nname = 'a'\noverflow = 'block'\nmax-age = '1ms'".to_owned(), "use 1s or more"),
            ("[[route]]\nfrom = 'a'\nto = 'b'\nclass = 'c'".to_owned(), "no [[class]] with the name \"c\""),
        ] {
            let refused = load(&text).unwrap_err().to_string();
            assert!(refused.contains(expected), "{text}: {refused}");
        }
        assert!(load("").unwrap().complete().unwrap_err().to_string().contains("`mqtt`"));
    }

    #[test]
    fn the_certificate_comes_from_the_hub_when_the_bridge_is_enrolled_and_no_file_says_otherwise() {
        let from_hub = |text: &str, enrolled: bool| {
            load(text).unwrap().enrolled(enrolled).map(|config| config.kafka.issued.is_some())
        };
        assert!(from_hub("", true).unwrap() && !from_hub("", false).unwrap());
        assert!(from_hub("[kafka]\nca = '/a'", true).unwrap(), "a file for the brokers' authority alone");
        assert!(!from_hub("[kafka]\nca = '/a'\ncertificate = '/c'\nkey = '/k'", true).unwrap());
        assert!(!from_hub("[kafka]\ntls = 'off'", true).unwrap());
        let refused = from_hub("[kafka]\ntls = 'hub'", false).unwrap_err().to_string();
        assert!(refused.contains("hyperfactory-bridge enroll"), "{refused}");
    }

    proptest! {
        /// The targets in `fuzz/` try the same for longer.
        #[test]
        fn any_file_is_read_or_refused(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..4), 1..6),
            text in ".{0,20}",
        ) {
            let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/bridge.toml");
            let example = std::fs::read_to_string(example).unwrap();
            let mut lines: Vec<String> = example.lines().map(|line| line.trim_start_matches('#').to_owned()).collect();
            for (at, other, what) in changes {
                let (at, other) = (at.index(lines.len()), other.index(lines.len()));
                match what {
                    0 => lines.swap(at, other),
                    1 => lines[at] = lines[other].clone(),
                    2 => lines[at] = lines[at].replace(|c: char| c.is_ascii_digit() || c == '"', &text),
                    _ => lines[at] += &text,
                }
            }
            if let Ok(config) = load(&lines.join("\n")) {
                let _ = crate::show::check(&config);
                let _ = crate::dry_run::explain(&config, &text, Some(text.as_bytes()));
            }
            let _ = load(&text);
        }
    }
}
