//! The bridge's configuration: `/etc/hyperfactory/bridge.toml` and `HYPERFACTORY_BRIDGE_*`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use node::KafkaStore;
use serde::Deserialize;
use settings::{Period, Secret, Size};
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::class::{self, ClassConfig};
use crate::pace::CatchUp;
use crate::route::{RouteError, Routes};
use crate::standing::Standing;
use crate::step::StepConfig;

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

/// A connection to an MQTT broker.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MqttConfig {
    /// What it is called here and in headers.
    pub name: String,
    /// `host:port` of the broker.
    pub address: String,
    /// Version of the protocol: 3, which is 3.1.1, or 5.
    #[serde(default)]
    pub version: Version,
    /// How long the broker keeps the session after the connection ends, with version 5. Default: for ever, as far as the
    /// broker goes along.
    pub session_expiry: Option<Period>,
    /// Messages that the broker may send before the first of them is acknowledged, with version 5. Default: 1000.
    pub receive_maximum: Option<u16>,
    /// The client id, which names the session that the broker keeps. Default: from the names of bridge and connection.
    pub client_id: Option<String>,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// Authority of the broker's certificate, in PEM; with it the connection is TLS.
    pub ca: Option<PathBuf>,
    /// Quality of service to subscribe with: 0, 1 or 2.
    #[serde(default = "qos")]
    pub qos: u8,
    /// When a message is acknowledged to the broker.
    #[serde(default)]
    pub ack: Ack,
    /// Time without traffic after which a ping is sent.
    #[serde(default = "keep_alive")]
    pub keep_alive: Period,
}

/// A version of MQTT.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(try_from = "u8")]
pub enum Version {
    /// 3.1.1.
    #[default]
    Three,
    /// 5.
    Five,
}

impl TryFrom<u8> for Version {
    type Error = &'static str;

    fn try_from(number: u8) -> Result<Self, &'static str> {
        match number {
            3 => Ok(Self::Three),
            5 => Ok(Self::Five),
            _ => Err("use 3, for MQTT 3.1.1, or 5"),
        }
    }
}

/// When a message is acknowledged to its MQTT broker.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Ack {
    /// Once it is on disk.
    #[default]
    Durable,
    /// Once Kafka has it, or it is a dead letter on disk: a message outlives the loss of the bridge's disk.
    Delivered,
}

/// The tenant's Kafka bus.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct KafkaConfig {
    /// `host:port` of brokers to begin with.
    pub brokers: Vec<String>,
    /// How batches are compressed.
    pub compression: Compression,
    /// How long a record waits for others to share its batch.
    pub linger: Period,
    /// Most bytes of records a second, before compression: while a backlog is delivered, the rest of the line is free for
    /// others. Default: no limit.
    pub max_rate: Option<Size>,
    /// Who goes first when `max_rate` is not enough for all classes.
    pub catch_up: CatchUp,
    /// Largest record with its headers; the brokers have to take it (`max.message.bytes`).
    pub max_record: Size,
    /// Where the bridge's certificate comes from when no file is named. Default: from the hub, if the bridge is enrolled.
    pub tls: Option<Tls>,
    /// Authority of the brokers' certificates, in PEM, in place of the tenant's Kafka roots; with it the connection is TLS.
    pub ca: Option<PathBuf>,
    /// The bridge's certificate, in PEM, in place of one from the hub. When the file changes, the next connection shows the
    /// new one.
    pub certificate: Option<PathBuf>,
    /// Its key, in PEM.
    pub key: Option<PathBuf>,
    /// Where the certificate from the hub is, when that is to be used; see [`Config::enrolled`].
    #[serde(skip)]
    pub issued: Option<KafkaStore>,
    /// Where clients of the brokers note what they are told.
    #[serde(skip)]
    pub standing: Standing,
}

/// What the connection to the brokers is protected by.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// A certificate from the hub.
    Hub,
    /// Nothing.
    Off,
}

/// A way of compressing.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// As it is.
    None,
    /// Fast.
    #[default]
    Lz4,
    /// Small.
    Zstd,
}

/// A route.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RouteConfig {
    /// The MQTT topics it is for: a topic filter.
    pub from: Option<String>,
    /// The one connection it is for. Default: all.
    pub mqtt: Option<String>,
    /// A mapping that is built in, in place of `to` and `key`.
    pub preset: Option<Preset>,
    /// The Kafka topic: a template.
    pub to: Option<String>,
    /// The key: a template. Default: the MQTT topic.
    pub key: Option<String>,
    /// Headers to add: templates by name.
    pub headers: BTreeMap<String, String>,
    /// Its class. Default: none, so its messages wait and are never dropped.
    pub class: Option<String>,
    /// What messages are decoded from; they then go to the Unified Namespace, and to `to` what can't be decoded.
    pub decode: Option<Decode>,
    /// What is done with payloads, in this order, and which messages go no further.
    pub step: Vec<StepConfig>,
}

/// A format that messages are decoded from.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Decode {
    /// Sparkplug B.
    SparkplugB,
}

/// A mapping that is built in.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// The Unified Namespace of the United Manufacturing Hub.
    Umh,
}

fn qos() -> u8 {
    1
}

fn keep_alive() -> Period {
    Period::seconds(30)
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

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            compression: Compression::default(),
            linger: Period(Duration::from_millis(5)),
            max_rate: None,
            catch_up: CatchUp::default(),
            max_record: Size(1_000_000),
            tls: None,
            ca: None,
            certificate: None,
            key: None,
            issued: None,
            standing: Standing::default(),
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
            if !is_name(&mqtt.name) {
                return wrong("mqtt.name", NAME);
            }
            if !names.insert(mqtt.name.as_str()) {
                return wrong("mqtt.name", &format!("{} is given twice", mqtt.name));
            }
            if mqtt.host_and_port().is_none() {
                return wrong(
                    "mqtt.address",
                    &format!("{:?} is not host:port, like \"broker.plant:1883\"", mqtt.address),
                );
            }
            if mqtt.qos > 2 {
                return wrong("mqtt.qos", "use 0, 1 or 2");
            }
            if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&mqtt.keep_alive.get()) {
                return wrong("mqtt.keep-alive", "use from 1s to 1h");
            }
            if mqtt.version == Version::Three && (mqtt.session_expiry.is_some() || mqtt.receive_maximum.is_some()) {
                return wrong("mqtt.version", "session-expiry and receive-maximum take version = 5");
            }
            if mqtt.receive_maximum == Some(0) {
                return wrong("mqtt.receive-maximum", "use 1 or more");
            }
            if mqtt.client_id.as_deref().is_some_and(str::is_empty) {
                return wrong("mqtt.client-id", "a session that the broker keeps has a name");
            }
        }
        for route in &self.route {
            if let Some(mqtt) = route.mqtt.as_deref().filter(|mqtt| !names.contains(mqtt)) {
                return wrong("route.mqtt", &format!("there is no [[mqtt]] with the name {mqtt:?}"));
            }
        }
        if self.kafka.certificate.is_some() != self.kafka.key.is_some() {
            return wrong("kafka.certificate", "`kafka.certificate` and `kafka.key` go together");
        }
        if self.kafka.tls.is_some() && self.kafka.certificate.is_some() {
            return wrong(
                "kafka.tls",
                "it is for a bridge without `kafka.certificate` and `kafka.key`: leave out one or the other",
            );
        }
        if self.kafka.tls == Some(Tls::Off) && self.kafka.ca.is_some() {
            return wrong("kafka.tls", "`kafka.ca` asks for TLS: leave out one or the other");
        }
        if self.kafka.certificate.is_some() && self.kafka.ca.is_none() {
            return wrong(
                "kafka.ca",
                "a certificate is shown over TLS only: name the authority of the brokers' certificates",
            );
        }
        if !(Size(1024)..=Size(100_000_000)).contains(&self.kafka.max_record) {
            return wrong("kafka.max-record", "use from 1KiB to 100MB");
        }
        if self.kafka.max_rate.is_some_and(|rate| rate < Size(1024)) {
            return wrong("kafka.max-rate", "use 1KiB or more, in a second");
        }
        if self.kafka.catch_up == CatchUp::LiveFirst && (self.kafka.max_rate.is_none() || self.class.is_empty()) {
            return wrong(
                "kafka.catch-up",
                "live-first says which [[class]] goes first within `kafka.max-rate`: give both, or leave it out",
            );
        }
        if self.kafka.linger.get() > Duration::from_secs(1) {
            return wrong("kafka.linger", "use up to 1s");
        }
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

impl MqttConfig {
    /// Messages that the broker may send before the first of them is acknowledged. So many are synced to disk together.
    pub fn receive_maximum(&self) -> u16 {
        self.receive_maximum.unwrap_or(1000)
    }

    /// The address in its two parts.
    pub fn host_and_port(&self) -> Option<(&str, u16)> {
        let (host, port) = self.address.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Some((host, port.parse().ok().filter(|port| *port > 0)?)).filter(|(host, _)| !host.is_empty())
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

    #[test]
    fn addresses_have_two_parts() {
        let of = |address: &str| MqttConfig {
            name: "a".into(),
            address: address.into(),
            version: Version::Three,
            session_expiry: None,
            receive_maximum: None,
            client_id: None,
            username: None,
            password: None,
            ca: None,
            qos: 1,
            ack: Ack::Durable,
            keep_alive: keep_alive(),
        };
        assert_eq!(of("[::1]:1883").host_and_port(), Some(("::1", 1883)));
        assert_eq!(of("broker:0").host_and_port(), None);
        assert_eq!(of(":1883").host_and_port(), None);
    }
}
