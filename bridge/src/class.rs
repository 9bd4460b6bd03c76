//! Classes of topics: each has a log of its own, so that none takes another's room, and says what gives way when that is
//! used up. What names no class waits at its broker, and is never dropped.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use settings::{Period, Size};
use spool::{LostReason, Options};

use crate::config::{Config, ConfigError};
use crate::log::Log;

/// Most classes: each has two threads, a connection to Kafka and files of its own.
const MOST: usize = 8;
/// In a log of so many mebibytes, records may be as long as in any.
const MOST_FOR_RECORDS: u64 = 128;
/// Where the classes' directories are, in the state directory.
const FOLDER: &str = "classes";

/// A class as it is configured.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClassConfig {
    /// What routes call it, and headers.
    pub name: String,
    /// What gives way when its room is used up.
    pub overflow: Overflow,
    /// Most bytes of its records kept on disk.
    #[serde(default = "size")]
    pub size: Size,
    /// Records older than this are dropped. Default: none is.
    pub max_age: Option<Period>,
}

fn size() -> Size {
    Size::mebibytes(256)
}

/// What gives way when a class's room is used up.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// Nothing: MQTT messages are not acknowledged, and wait at their broker.
    Block,
    /// The oldest records.
    DropOldest,
    /// The newest records.
    DropNewest,
    /// Records of topics that have a later one; then the oldest.
    LatestPerTopic,
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Block => "block",
            Self::DropOldest => "drop-oldest",
            Self::DropNewest => "drop-newest",
            Self::LatestPerTopic => "latest-per-topic",
        })
    }
}

/// A class, or what belongs to none.
#[derive(Clone, Debug)]
pub struct Class {
    /// Its name; empty for what belongs to none.
    pub name: String,
    /// What gives way.
    pub overflow: Overflow,
    /// Older records are dropped.
    pub max_age: Option<Duration>,
    /// Directory of its log.
    pub log_dir: PathBuf,
    /// Directory of its dead letters.
    pub dead_letter_dir: PathBuf,
    size: Size,
    /// Bytes of the disk that it leaves to what may not be dropped.
    leave: u64,
}

impl Class {
    /// All there are: first what belongs to none, then the configured ones in their order, then those that are configured
    /// no longer and have a directory, whose records are still delivered.
    pub fn all(config: &Config) -> Vec<Self> {
        let none = Self {
            name: String::new(),
            overflow: Overflow::Block,
            max_age: None,
            log_dir: config.log_dir(),
            dead_letter_dir: config.dead_letter_dir(),
            size: config.log_size,
            leave: 0,
        };
        let folder = config.state_dir.join(FOLDER);
        let class = |name: &str, overflow, max_age, size| Self {
            name: name.to_owned(),
            overflow,
            max_age,
            log_dir: folder.join(name).join("log"),
            dead_letter_dir: folder.join(name).join("dead-letters"),
            size,
            leave: if overflow == Overflow::Block { 0 } else { config.log_size.bytes() / 4 },
        };
        let mut all = vec![none];
        for ClassConfig { name, overflow, size, max_age } in &config.class {
            all.push(class(name, *overflow, max_age.map(|age| age.get()), *size));
        }
        for name in former(&folder, config) {
            all.push(class(&name, Overflow::Block, None, config.log_size));
        }
        all
    }

    /// What to call it before a person.
    pub fn title(&self) -> &str {
        if self.name.is_empty() { "records" } else { &self.name }
    }

    /// How its log is laid out.
    pub fn options(&self) -> Options {
        let overflow = match self.overflow {
            Overflow::Block | Overflow::LatestPerTopic => spool::Overflow::Refuse,
            Overflow::DropOldest => spool::Overflow::DropOldest,
            Overflow::DropNewest => spool::Overflow::DropNewest,
        };
        Options { overflow, leave_bytes: self.leave, ..Log::options(self.log_dir.clone(), self.size.bytes()) }
    }
}

/// Whether a loss for this reason is what was asked for. A log that drops nothing gives no other reason than damage; so what
/// has one was dropped as its class asked for then, whatever is configured now.
pub fn is_drop(reason: LostReason) -> bool {
    reason != LostReason::Corrupt
}

/// Directories of classes that are not configured.
fn former(folder: &Path, config: &Config) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.path().join("log").is_dir()).map(|entry| entry.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    names.filter(|name| config.class.iter().all(|class| class.name != *name)).collect()
}

/// Judges the classes of a configuration, and the routes' names of them.
///
/// # Errors
/// The first that can't be used.
pub fn check(config: &Config) -> Result<(), ConfigError> {
    let wrong = |key, why: String| Err(ConfigError::Value { key, why });
    let mut names = BTreeSet::new();
    for class in &config.class {
        if !crate::config::is_name(&class.name) || class.name.starts_with('.') {
            return wrong("class.name", crate::config::NAME.into());
        }
        if !names.insert(class.name.as_str()) {
            return wrong("class.name", format!("{} is given twice", class.name));
        }
        if class.size < Size::mebibytes(1) {
            return wrong("class.size", "use 1MiB or more".into());
        }
        if class.max_age.is_some_and(|age| age.get() < Duration::from_secs(1)) {
            return wrong("class.max-age", "use 1s or more".into());
        }
    }
    if names.len() > MOST {
        return wrong("class", format!("use up to {MOST}"));
    }
    for route in &config.route {
        if let Some(class) = route.class.as_deref().filter(|class| !names.contains(class)) {
            return wrong("route.class", format!("there is no [[class]] with the name {class:?}"));
        }
    }
    Ok(())
}

/// What is doubtful about the classes and the sizes of their logs, for a person.
pub fn lints(config: &Config) -> Vec<String> {
    let mut lints: Vec<String> = Class::all(config).iter().filter_map(|class| too_small(class, config)).collect();
    for class in &config.class {
        let name = &class.name;
        if !config.route.iter().any(|route| route.class.as_ref() == Some(name)) {
            lints.push(format!("class {name}: no route is of it"));
        }
    }
    for mqtt in &config.mqtt {
        let own = config.route.iter().filter(|route| route.mqtt.as_ref().is_none_or(|only| *only == mqtt.name));
        let blocks = |class: &Option<String>| {
            let class = class.as_ref().and_then(|name| config.class.iter().find(|class| class.name == *name));
            class.is_none_or(|class| class.overflow == Overflow::Block)
        };
        let (waits, drops): (Vec<_>, Vec<_>) = own.partition(|route| blocks(&route.class));
        if !waits.is_empty() && !drops.is_empty() {
            lints.push(format!(
                "mqtt {}: it carries what may be dropped and what may not; when the room of the latter is used up, all of it \
                 waits at its broker, for a connection's messages are acknowledged in their order: give what may be dropped \
                 an [[mqtt]] of its own",
                mqtt.name
            ));
        }
    }
    lints
}

/// Says so when a log does not take what Kafka would.
fn too_small(class: &Class, config: &Config) -> Option<String> {
    let (takes, wanted) = (class.options().max_record(), config.kafka.max_record);
    if wanted.bytes() <= takes as u64 {
        return None;
    }
    let enough = |mebibytes: &u64| Log::options(PathBuf::new(), mebibytes << 20).max_record() as u64 >= wanted.bytes();
    let advice = match (1..=MOST_FOR_RECORDS).find(enough) {
        Some(mebibytes) => format!("give it {mebibytes}MiB"),
        None => {
            "no log takes more than 2MiB: set kafka.max-record so, and have what publishes send less at once".into()
        }
    };
    let key = if class.name.is_empty() { "log-size".into() } else { format!("class {}: size", class.name) };
    Some(format!(
        "{key} {}: messages of more than some {takes} bytes become dead letters, cut, although kafka.max-record is {wanted}; \
         {advice}",
        class.size
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_does_not_take_what_kafka_would_is_told_with_what_would() {
        let config = |log_size, max_record| {
            let mut config = Config { state_dir: "/nowhere".into(), log_size, ..Config::default() };
            config.kafka.max_record = max_record;
            lints(&config)
        };
        assert_eq!(config(Size::mebibytes(1024), Size(2_000_000)), [""; 0]);
        assert_eq!(config(Size::mebibytes(30), Size(1_000_000)).len(), 1);
        let [said] = config(Size::mebibytes(1), Size(1_000_000)).try_into().unwrap();
        assert!(
            said.starts_with("log-size 1MiB: messages of more than some 32256 bytes")
                && said.ends_with("give it 31MiB")
        );
        assert_eq!(config(Size::mebibytes(31), Size(1_000_000)), [""; 0]);
        let [said] = config(Size::mebibytes(1024), Size(10_000_000)).try_into().unwrap();
        assert!(said.contains("no log takes more than 2MiB"), "{said}");
    }
}
