//! What would become of messages: of one, and of traffic that was captured.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io::BufRead;
use std::time::{Duration, Instant, SystemTime};

use data_encoding::HEXLOWER_PERMISSIVE;
use protocol::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::config::Config;
use crate::mapping::{Arrival, Made, Mapped, Mapping};
use crate::plain::plain;
use crate::route::{Routes, Target};
use crate::sparkplug::Tables;
use crate::uns;

/// Longest payload that is shown, in characters.
const SHOWN: usize = 500;
/// Topics of the Unified Namespace whose keys are compared.
const COMPARED: usize = 100_000;
/// Findings of a kind that are shown.
const FINDINGS: usize = 20;

/// Where a message of `topic` would go by each connection, and what it would become. Gives the lines to show, and whether
/// it goes anywhere.
///
/// # Errors
/// When a route can't be used.
pub fn explain(config: &Config, topic: &str, payload: Option<&[u8]>) -> anyhow::Result<(String, bool)> {
    let mut routes = Routes::new(&config.route)?;
    let (mut text, mut well) = (String::new(), true);
    for mqtt in connections(config) {
        let target = match routes.target(mqtt, topic, None) {
            Ok(target) => target,
            Err(why) => {
                well = false;
                let _ = writeln!(text, "by {mqtt}: nowhere: {why}");
                continue;
            }
        };
        let Some(payload) = payload else {
            show(&mut text, mqtt, &target, None);
            class(&mut text, config, &target);
            let ways = routes.ways(mqtt);
            let way = ways.iter().find(|way| way.route == target.route);
            if way.is_some_and(|way| way.decode.is_some() || !way.steps.is_empty()) {
                text.push_str("  it is decoded or changed before: see what becomes of it with --payload FILE\n");
            }
            continue;
        };
        let mut mapping = Mapping::new(routes.ways(mqtt), Tables::open(&config.state_dir, mqtt)?);
        let (received, now) = (Timestamp::from(SystemTime::now()), Instant::now());
        let arrival = Arrival { topic, payload, retained: false, duplicate: false, beside: 0, received, now };
        let made = match mapping.map(&arrival) {
            Mapped::Same => vec![Made::default()],
            Mapped::Made(made) => made,
        };
        if made.is_empty() {
            let _ = writeln!(text, "by {mqtt}: route {} lets it go no further", target.route);
        }
        class(&mut text, config, &target);
        for made in made {
            match routes.target(mqtt, topic, made.uns.as_deref()) {
                Ok(target) => show(&mut text, mqtt, &target, Some((&made, payload))),
                Err(why) => {
                    well = false;
                    let _ = writeln!(text, "by {mqtt}: nowhere: {why}");
                }
            }
        }
    }
    Ok((text, well))
}

fn class(text: &mut String, config: &Config, target: &Target) {
    if let Some(class) = config.route.get(target.route - 1).and_then(|route| route.class.as_ref()) {
        let _ = writeln!(text, "  class {class}");
    }
}

fn connections(config: &Config) -> Vec<&str> {
    let names: Vec<&str> = config.mqtt.iter().map(|mqtt| mqtt.name.as_str()).collect();
    if names.is_empty() { vec!["any"] } else { names }
}

fn show(text: &mut String, mqtt: &str, target: &Target, made: Option<(&Made, &[u8])>) {
    let _ = writeln!(text, "by {mqtt}: route {} to Kafka topic {}, key {}", target.route, target.topic, target.key);
    for (name, value) in &target.headers {
        let _ = writeln!(text, "  header {name}: {value}");
    }
    let Some((made, came)) = made else { return };
    if let Some(uns) = &made.uns {
        let _ = writeln!(text, "  decoded to {uns}{}", if made.birth { ", from a birth: no news" } else { "" });
    }
    if let Some(why) = &made.unmapped {
        let _ = writeln!(text, "  as it came: {why}");
    }
    if made.stale {
        text.push_str("  a death of a life that was over before\n");
    }
    let payload = String::from_utf8_lossy(made.payload.as_deref().unwrap_or(came)).into_owned();
    let shown: String = payload.chars().take(SHOWN).collect();
    let more = if shown.len() < payload.len() { " …" } else { "" };
    let _ = writeln!(text, "  payload: {}{more}", plain(&shown));
}

/// A message as `mosquitto_sub -F %J` prints it.
#[derive(Deserialize)]
struct Line {
    topic: String,
    #[serde(default)]
    retain: Option<u8>,
    #[serde(default)]
    tst: Option<String>,
    #[serde(default)]
    payload: Option<Box<RawValue>>,
    #[serde(default, rename = "payload-hex")]
    hex: Option<String>,
}

impl Line {
    fn payload(&self) -> Result<Vec<u8>, String> {
        match (&self.hex, &self.payload) {
            (Some(hex), _) => {
                HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).map_err(|error| format!("payload-hex: {error}"))
            }
            // As %j prints it: text in quotes.
            (None, Some(payload)) => match serde_json::from_str::<String>(payload.get()) {
                Ok(text) => Ok(text.into_bytes()),
                Err(_) => Ok(payload.get().as_bytes().to_vec()),
            },
            (None, None) => Ok(Vec::new()),
        }
    }
}

/// What became of a route's messages.
#[derive(Default)]
struct Tally {
    messages: u64,
    records: u64,
    filtered: u64,
    unmapped: Findings,
    nowhere: Findings,
}

/// How often something was found, and where at first.
#[derive(Default)]
struct Findings {
    count: u64,
    first: Option<String>,
}

impl Findings {
    fn add(&mut self, what: impl FnOnce() -> String) {
        self.count += 1;
        self.first.get_or_insert_with(what);
    }

    fn tell(&self, text: &mut String, level: &str, what: &str) {
        if let Some(first) = &self.first {
            let _ = writeln!(text, "{level}  {} {what}, the first: {}", self.count, plain(first));
        }
    }
}

/// What would become of captured messages. Gives the lines to show, and whether each was read and has a place to go.
///
/// # Errors
/// When a route can't be used, or the lines can't be read.
pub fn captured(config: &Config, lines: impl BufRead) -> anyhow::Result<(String, bool)> {
    let mut routes = Routes::new(&config.route)?;
    let names = connections(config);
    let mut mappings: Vec<Mapping> =
        names.iter().map(|mqtt| Mapping::new(routes.ways(mqtt), Tables::in_memory())).collect();
    let (mut tallies, mut unread, mut untaken) =
        (BTreeMap::<(usize, usize), Tally>::new(), Findings::default(), Findings::default());
    let (mut messages, mut keys) = (0u64, Keys::default());
    let (begun, mut first, mut latest) = (Instant::now(), None, 0);
    for (number, line) in (1..).zip(lines.lines()) {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let parsed = serde_json::from_str::<Line>(&line).map_err(|error| error.to_string());
        let read = parsed.and_then(|line| line.payload().map(|payload| (line, payload)));
        let (line, payload) = match read {
            Ok(read) => read,
            Err(why) => {
                unread.add(|| format!("line {number}: {why}"));
                continue;
            }
        };
        messages += 1;
        // One that does not say when it came, came with the one before it.
        if let Some(at) = line.tst.as_deref().and_then(millis) {
            (first, latest) = (first.or(Some(at)), at);
        }
        let since = u64::try_from(latest - first.unwrap_or(latest)).unwrap_or_default();
        let arrival = Arrival {
            topic: &line.topic,
            payload: &payload,
            retained: line.retain == Some(1),
            duplicate: false,
            beside: 0,
            received: Timestamp::from_millis(latest),
            now: begun + Duration::from_millis(since),
        };
        let mut taken = false;
        for (index, (mqtt, mapping)) in names.iter().zip(&mut mappings).enumerate() {
            let Some(route) = routes.route(mqtt, &line.topic) else { continue };
            taken = true;
            let tally = tallies.entry((index, route)).or_default();
            tally.messages += 1;
            let made = match mapping.map(&arrival) {
                Mapped::Same => vec![Made::default()],
                Mapped::Made(made) => made,
            };
            tally.filtered += u64::from(made.is_empty());
            for made in made {
                match routes.target(mqtt, &line.topic, made.uns.as_deref()) {
                    Ok(target) => {
                        tally.records += 1;
                        if target.topic == uns::TOPIC {
                            keys.add(made.uns.as_deref().unwrap_or(&line.topic));
                        }
                    }
                    Err(why) => tally.nowhere.add(|| format!("{}: {why}", line.topic)),
                }
                if let Some(why) = &made.unmapped {
                    tally.unmapped.add(|| format!("{}: {why}", line.topic));
                }
            }
        }
        if !taken {
            untaken.add(|| line.topic.clone());
        }
    }
    let mut text = String::new();
    let _ = writeln!(text, "ok    {messages} messages read");
    for ((index, route), tally) in &tallies {
        let way = routes.passed();
        let way = route
            .checked_sub(1)
            .and_then(|index| way.ways().get(index).map(|way| format!("{} to {}", way.from, way.to)));
        let _ = writeln!(
            text,
            "ok    by {}, route {route} ({}): {} messages become {} records, {} are filtered",
            names.get(*index).unwrap_or(&"any"),
            way.unwrap_or_default(),
            tally.messages,
            tally.records,
            tally.filtered
        );
        tally.unmapped.tell(&mut text, "warn", "go on as they came");
        tally.nowhere.tell(&mut text, "fail", "become dead letters");
    }
    untaken.tell(&mut text, "warn", "are of topics that no route is for");
    unread.tell(&mut text, "fail", "lines are no messages");
    keys.lint(&mut text);
    let well = unread.count == 0 && tallies.values().all(|tally| tally.nowhere.count == 0);
    Ok((text, well))
}

/// Topics of the Unified Namespace, by the key that the usual rule gives them.
#[derive(Default)]
struct Keys {
    topics: BTreeMap<String, BTreeSet<String>>,
    count: usize,
}

impl Keys {
    fn add(&mut self, topic: &str) {
        if self.count < COMPARED {
            let news = self.topics.entry(uns::usual_key(topic)).or_default().insert(topic.to_owned());
            self.count += usize::from(news);
        }
    }

    fn lint(&self, text: &mut String) {
        let meet = self.topics.iter().filter(|(_, topics)| topics.len() > 1);
        for (key, topics) in meet.take(FINDINGS) {
            let topics = topics.iter().map(|topic| plain(topic)).collect::<Vec<_>>().join(", ");
            let key = plain(key);
            let _ = writeln!(text, "warn  {topics}: by the usual rule all have the key {key}; here each has its own");
        }
        let changed = self.topics.values().flatten();
        for topic in changed.filter(|topic| uns::changed_levels(topic).next().is_some()).take(FINDINGS) {
            let levels = uns::changed_levels(topic).map(|level| format!("{level:?}")).collect::<Vec<_>>().join(", ");
            let key = uns::key(topic).unwrap_or_default();
            let topic = plain(topic);
            let _ = writeln!(text, "warn  {topic}: {levels} has characters that no key may have; its key is {key}");
        }
    }
}

/// Milliseconds since the Unix epoch of a time as `2026-11-28T17:52:11.123456+0100`.
fn millis(text: &str) -> Option<i64> {
    let part = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    let seconds = part(11, 13)? * 3600 + part(14, 16)? * 60 + part(17, 19)?;
    let rest = text.get(19..)?;
    let fraction: String =
        rest.strip_prefix('.').unwrap_or("").chars().take_while(char::is_ascii_digit).take(3).collect();
    let zone = match rest.rfind(['+', '-']) {
        Some(at) => {
            let digits = rest.get(at + 1..)?.replace(':', "");
            let minutes = digits.get(..2)?.parse::<i64>().ok()? * 60 + digits.get(2..4)?.parse::<i64>().ok()?;
            if rest.get(at..=at)? == "-" { -minutes } else { minutes }
        }
        None => 0,
    };
    // Days since the Unix epoch of a date; a year begins in March here, so that the leap day is its last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * month + 2) / 5 + day
            - 719_469;
    let fraction = format!("{fraction:0<3}").parse::<i64>().ok()?;
    Some((days * 86_400 + seconds - zone * 60) * 1000 + fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(routes: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bridge.toml");
        std::fs::write(&file, format!("[[mqtt]]\nname = 'm'\naddress = 'b:1'\n{routes}")).unwrap();
        Config::load(Some(&file), Some(folder.path().join("none"))).unwrap()
    }

    const ROUTES: &str = "[[route]]\npreset = 'umh'\n\
         [[route]]\nfrom = 'm/#'\nto = 'machines'\nkey = '{2}'\n\
         step = [{ pick = ['v'] }, { down-sample = { every = '10s' } }]";

    #[test]
    fn a_message_is_explained() {
        let config = config(ROUTES);
        let said = |topic, payload: &str| explain(&config, topic, Some(payload.as_bytes())).unwrap().0;
        assert_eq!(
            said("m/a", r#"{"v": 1.50, "w": 2}"#),
            "by m: route 2 to Kafka topic machines, key a\n  payload: {\"v\":1.50}\n"
        );
        assert!(
            said("m/a", "on").contains("  as it came: step 1: it is not JSON")
                && said("m/a", "on").ends_with("payload: on\n")
        );
        let (said, well) = explain(&config, "m/a", None).unwrap();
        assert!(well && said.contains("--payload FILE"), "{said}");
        assert_eq!(
            explain(&config, "m", None).unwrap(),
            ("by m: nowhere: route 2 wants level 2, which the topic does not have\n".into(), false)
        );
    }

    #[test]
    fn captured_traffic_is_tried_and_linted() {
        let lines = r#"
{"tst":"2026-11-28T10:00:00.000000+0100","topic":"m/a","qos":1,"retain":0,"payloadlen":9,"payload":{"v":1,"w":2}}
{"tst":"2026-11-28T10:00:09.999000+0100","topic":"m/a","qos":1,"retain":0,"payload":"{\"v\":2}"}
{"tst":"2026-11-28T09:00:10.000000Z","topic":"m/a","payload":{"v":3}}
{"topic":"m/b","payload-hex":"6F6e"}
{"topic":"umh/v1/a/_raw/Temp °C","payload":1}
{"topic":"umh/v1/a/_raw/Temp_°C","payload":1}
{"topic":"umh/v1/a","payload":1}
{"topic":"other","payload":1}
nonsense
"#;
        let (said, well) = captured(&config(ROUTES), lines.as_bytes()).unwrap();
        for expected in [
            "ok    8 messages read",
            "by m, route 1 (umh/v1/# to umh.messages): 3 messages become 2 records, 0 are filtered",
            "by m, route 2 (m/# to machines): 4 messages become 3 records, 1 are filtered",
            "warn  1 go on as they came, the first: m/b: step 1: it is not JSON",
            "fail  1 become dead letters, the first: umh/v1/a: not a topic of the Unified Namespace",
            "warn  1 are of topics that no route is for, the first: other",
            "fail  1 lines are no messages, the first: line 10:",
            "umh/v1/a/_raw/Temp °C, umh/v1/a/_raw/Temp_°C: by the usual rule all have the key umh.v1.a._raw.Temp__C",
            "umh/v1/a/_raw/Temp °C: \"Temp °C\" has characters that no key may have; its key is umh.v1.a._raw.Temp__C-",
        ] {
            assert!(said.contains(expected), "{expected}\n{said}");
        }
        assert!(!well);
        let (said, well) = captured(&config(ROUTES), &br#"{"topic":"m/a","payload":{"v":1}}"#[..]).unwrap();
        assert!(well, "{said}");
    }

    #[test]
    fn what_does_not_say_when_it_came_came_with_the_one_before_it() {
        let lines = r#"
{"topic":"m/a","payload":{"v":1}}
{"tst":"2026-11-28T10:00:00Z","topic":"m/a","payload":{"v":2}}
{"topic":"m/a","payload":{"v":3}}
{"tst":"2026-11-28T09:59:00Z","topic":"m/a","payload":{"v":4}}
{"tst":"2026-11-28T10:00:10Z","topic":"m/a","payload":{"v":5}}
"#;
        let (said, _) = captured(&config(ROUTES), lines.as_bytes()).unwrap();
        assert!(said.contains("5 messages become 2 records, 3 are filtered"), "{said}");
    }

    #[test]
    fn times_are_read() {
        assert_eq!(millis("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(millis("2026-11-28T17:52:11.123456+0100"), Some(1_795_884_731_123));
        assert_eq!(millis("2024-02-29T23:59:59.5-02:30"), Some(1_709_260_199_500));
        assert_eq!(millis("yesterday"), None);
    }
}
