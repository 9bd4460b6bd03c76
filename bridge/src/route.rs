//! Routes: which Kafka topic and key a message of an MQTT topic gets.

mod lint;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::SystemTime;

use protocol::Timestamp;

use crate::config::{Decode, Preset, RouteConfig};
use crate::filter::{Filter, FilterError};
use crate::header;
use crate::mapping::{LONGEST_REMEMBERED, REMEMBERED, Way as Inbound};
use crate::step::{StepError, Steps};
use crate::template::{Template, TemplateError};
use crate::uns;
pub use lint::Lint;

/// Longest name of a Kafka topic.
const LONGEST_TOPIC: usize = 249;

/// Every route, in the order of the configuration: the first that matches counts.
#[derive(Debug)]
pub struct Routes {
    routes: Vec<Route>,
    /// By connection and topic.
    known: HashMap<Box<str>, HashMap<Box<str>, Answer>>,
    passed: Arc<Passed>,
}

/// When a record of each route was last given its target: that is, when it was handed to the brokers.
#[derive(Debug, Default)]
pub struct Passed(Vec<Way>);

/// A route, and when it was last taken.
#[derive(Debug)]
pub struct Way {
    /// The MQTT topic filter.
    pub from: String,
    /// The Kafka topic, or how its name is made.
    pub to: String,
    /// In milliseconds since the Unix epoch; 0 before the first record.
    last: AtomicI64,
}

impl Passed {
    /// Takes over when those ways were last taken that were there `before`.
    fn follow(&self, before: &Self) {
        for way in &self.0 {
            let same = before.0.iter().find(|other| other.from == way.from && other.to == way.to);
            if let Some(same) = same {
                way.last.store(same.last.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
    }

    /// The ways, in the order of the routes.
    pub fn ways(&self) -> &[Way] {
        &self.0
    }
}

impl Way {
    /// When it was last taken.
    pub fn last(&self) -> Option<Timestamp> {
        Some(self.last.load(Ordering::Relaxed)).filter(|last| *last != 0).map(Timestamp::from_millis)
    }
}

type Answer = Result<Arc<Target>, NoTarget>;

#[derive(Debug)]
struct Route {
    from: Filter,
    /// The one connection it is for, or all.
    mqtt: Option<String>,
    to: To,
    headers: Vec<(String, Template)>,
    decode: Option<Decode>,
    steps: Steps,
}

#[derive(Debug)]
enum To {
    Template { topic: Template, key: Template },
    Umh,
}

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The Kafka topic.
    pub topic: String,
    /// The key: what has the same one stays in order.
    pub key: String,
    /// Headers beside the bridge's own.
    pub headers: Vec<(String, String)>,
    /// Number of the route, from 1.
    pub route: usize,
}

/// Why a message goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTarget {
    /// No route's filter matches.
    #[error("no route matches")]
    Unrouted,
    /// The route wants a level that the topic does not have.
    #[error("route {route} wants level {level}, which the topic does not have")]
    Level {
        /// Number of the route, from 1.
        route: usize,
        /// The level, from 1.
        level: usize,
    },
    /// The Kafka topic would have a name that no topic has.
    #[error("route {route} makes {topic:?}, which is no name of a Kafka topic")]
    Topic {
        /// Number of the route, from 1.
        route: usize,
        /// What was made.
        topic: String,
    },
    /// Not a topic of the Unified Namespace.
    #[error("not a topic of the Unified Namespace: {0}")]
    Uns(&'static str),
}

impl Routes {
    /// Parses the routes of the configuration.
    ///
    /// # Errors
    /// The first that can't be used.
    pub fn new(configured: &[RouteConfig]) -> Result<Self, RouteError> {
        let parse = |(index, route): (usize, &RouteConfig)| {
            Route::new(route).map_err(|source| RouteError { route: index + 1, source })
        };
        let routes: Vec<Route> = configured.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        let ways = routes.iter().zip(configured).map(|(route, configured)| Way {
            from: route.from.to_string(),
            to: configured.to.clone().unwrap_or_else(|| uns::TOPIC.to_owned()),
            last: AtomicI64::new(0),
        });
        let passed = Arc::new(Passed(ways.collect()));
        Ok(Self { routes, known: HashMap::new(), passed })
    }

    /// Those that come after `before`: when a route was last taken is known of those that stay.
    pub fn after(self, before: &Passed) -> Self {
        self.passed.follow(before);
        self
    }

    /// Where a message of `topic` goes that came by the connection `mqtt`, and was decoded to the topic `uns` of the Unified
    /// Namespace, if it was.
    ///
    /// # Errors
    /// [`NoTarget`] says why it goes nowhere.
    pub fn target(&mut self, mqtt: &str, topic: &str, uns: Option<&str>) -> Result<Arc<Target>, NoTarget> {
        let target = self.known_target(mqtt, topic)?;
        let target = match uns {
            Some(uns) => {
                let (to, key) = (uns::TOPIC.to_owned(), uns::key(uns).map_err(NoTarget::Uns)?);
                Arc::new(Target { topic: to, key, ..Target::clone(&target) })
            }
            None => target,
        };
        if let Some(way) = self.passed.0.get(target.route - 1) {
            way.last.store(Timestamp::from(SystemTime::now()).millis(), Ordering::Relaxed);
        }
        Ok(target)
    }

    /// Number of the route, from 1, that is for messages of `topic` by the connection `mqtt`.
    pub fn route(&self, mqtt: &str, topic: &str) -> Option<usize> {
        self.routes.iter().position(|route| route.is_for(mqtt) && route.from.matches(topic)).map(|index| index + 1)
    }

    /// Which route is taken, and when it last was.
    pub fn passed(&self) -> Arc<Passed> {
        Arc::clone(&self.passed)
    }

    fn known_target(&mut self, mqtt: &str, topic: &str) -> Result<Arc<Target>, NoTarget> {
        if let Some(known) = self.known.get(mqtt).and_then(|topics| topics.get(topic)) {
            return known.clone();
        }
        let target = self.work_out(mqtt, topic).map(Arc::new);
        if topic.len() > LONGEST_REMEMBERED {
            return target;
        }
        if self.known.values().map(HashMap::len).sum::<usize>() >= REMEMBERED {
            self.known.clear();
        }
        self.known.entry(mqtt.into()).or_default().insert(topic.into(), target.clone());
        target
    }

    /// The filters to subscribe to on the connection `mqtt`, without those that another one covers: their messages
    /// would come twice.
    pub fn filters(&self, mqtt: &str) -> Vec<Filter> {
        self.subscribed(mqtt).into_iter().map(|(_, filter)| filter.clone()).collect()
    }

    /// The same, each with the place of its route.
    fn subscribed(&self, mqtt: &str) -> Vec<(usize, &Filter)> {
        let mut filters: Vec<(usize, &Filter)> = Vec::new();
        for (index, route) in self.routes.iter().enumerate().filter(|(_, route)| route.is_for(mqtt)) {
            if !filters.iter().any(|(_, filter)| !filter.is_shared() && filter.covers(&route.from)) {
                filters.retain(|(_, filter)| route.from.is_shared() || !route.from.covers(filter));
                filters.push((index, &route.from));
            }
        }
        filters
    }

    /// What the routes do with messages that come in by the connection `mqtt`.
    pub fn ways(&self, mqtt: &str) -> Vec<Inbound> {
        let ours = self.routes.iter().enumerate().filter(|(_, route)| route.is_for(mqtt));
        let way = |(index, route): (usize, &Route)| Inbound {
            route: index + 1,
            from: route.from.clone(),
            decode: route.decode,
            steps: route.steps.clone(),
        };
        ours.map(way).collect()
    }

    /// The same, that notes where another notes which route is taken.
    pub fn noting(self, passed: Arc<Passed>) -> Self {
        Self { passed, ..self }
    }

    fn work_out(&self, mqtt: &str, topic: &str) -> Result<Target, NoTarget> {
        let number = self.route(mqtt, topic).ok_or(NoTarget::Unrouted)?;
        let route = self.routes.get(number - 1).ok_or(NoTarget::Unrouted)?;
        let short = |level| NoTarget::Level { route: number, level };
        let (to, key) = match &route.to {
            To::Umh => (uns::TOPIC.to_owned(), uns::key(topic).map_err(NoTarget::Uns)?),
            To::Template { topic: to, key } => {
                (to.fill(topic, mqtt, '.').map_err(short)?, key.fill(topic, mqtt, '/').map_err(short)?)
            }
        };
        if !is_topic(&to) {
            return Err(NoTarget::Topic { route: number, topic: to });
        }
        let fill =
            |(name, value): &(String, Template)| Ok((name.clone(), value.fill(topic, mqtt, '/').map_err(short)?));
        let headers = route.headers.iter().map(fill).collect::<Result<_, _>>()?;
        Ok(Target { topic: to, key, headers, route: number })
    }
}

impl Route {
    fn new(configured: &RouteConfig) -> Result<Self, Wrong> {
        let (from, to) = match (configured.preset, &configured.to) {
            (Some(Preset::Umh), None) => (configured.from.as_deref().unwrap_or(uns::FILTER), To::Umh),
            (None, Some(to)) => {
                let topic: Template = to.parse()?;
                if topic.is_constant() && !topic.fill("", "", '.').is_ok_and(|name| name.is_empty() || is_topic(&name))
                {
                    return Err(Wrong::Topic(to.clone()));
                }
                let key = configured.key.as_deref().unwrap_or("{topic}").parse()?;
                (configured.from.as_deref().ok_or(Wrong::From)?, To::Template { topic, key })
            }
            _ => return Err(Wrong::To),
        };
        if matches!(to, To::Umh) && configured.decode.is_some() {
            return Err(Wrong::Decode);
        }
        if matches!(to, To::Umh) && configured.key.is_some() {
            return Err(Wrong::Key);
        }
        if let Some(name) = configured.headers.keys().find(|name| name.starts_with(header::OWN) || name.contains('\0'))
        {
            return Err(Wrong::Header(name.clone()));
        }
        let headers = configured.headers.iter().map(|(name, value)| Ok((name.clone(), value.parse()?)));
        Ok(Self {
            from: from.parse()?,
            mqtt: configured.mqtt.clone(),
            to,
            headers: headers.collect::<Result<_, TemplateError>>()?,
            decode: configured.decode,
            steps: Steps::new(&configured.step)?,
        })
    }

    fn is_for(&self, mqtt: &str) -> bool {
        self.mqtt.as_deref().is_none_or(|only| only == mqtt)
    }
}

fn is_topic(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=LONGEST_TOPIC).contains(&name.len()) && name != "." && name != ".." && name.chars().all(legal)
}

/// A route that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("route {route} is not usable")]
pub struct RouteError {
    route: usize,
    #[source]
    source: Wrong,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Wrong {
    #[error("`from` is missing: the topics it is for")]
    From,
    #[error("give either `to`, a Kafka topic, or `preset`")]
    To,
    #[error("a preset makes the key itself; leave `key` out")]
    Key,
    #[error("`decode` takes `to`, the Kafka topic of what can't be decoded, and no preset")]
    Decode,
    #[error("{0:?} is no name of a Kafka topic: 1 to 249 letters, digits, '.', '_' and '-'")]
    Topic(String),
    #[error("{0:?} is no name for a header: those that begin with hf- are the bridge's own, and none has a NUL")]
    Header(String),
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Step(#[from] StepError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::StepConfig;

    fn route(from: &str, to: &str) -> RouteConfig {
        RouteConfig { from: Some(from.into()), to: Some(to.into()), ..RouteConfig::default() }
    }

    fn umh() -> RouteConfig {
        RouteConfig { preset: Some(Preset::Umh), ..RouteConfig::default() }
    }

    #[test]
    fn the_first_route_that_matches_counts() {
        let narrow = RouteConfig {
            key: Some("{2}".into()),
            headers: [("line".to_owned(), "{1}".to_owned())].into(),
            ..route("plant/+", "narrow.{1}")
        };
        let mut routes = Routes::new(&[umh(), narrow, route("plant/#", "wide")]).unwrap();
        let target = routes.target("m", "plant/press", None).unwrap();
        assert_eq!((target.topic.as_str(), target.key.as_str(), target.route), ("narrow.plant", "press", 2));
        assert_eq!(target.headers, [("line".to_owned(), "plant".to_owned())]);
        let target = routes.target("m", "plant/press/1", None).unwrap();
        assert_eq!((target.topic.as_str(), target.key.as_str()), ("wide", "plant/press/1"));
        let target = routes.target("m", "umh/v1/acme/_raw/x", None).unwrap();
        assert_eq!((target.topic.as_str(), target.key.as_str()), ("umh.messages", "umh.v1.acme._raw.x"));
        assert_eq!(routes.target("m", "other", None), Err(NoTarget::Unrouted));
        assert!(matches!(routes.target("m", "umh/v1/x", None), Err(NoTarget::Uns(_))));
    }

    #[test]
    fn what_is_decoded_goes_to_the_namespace_and_the_rest_where_the_route_says() {
        let decoding = RouteConfig { decode: Some(Decode::SparkplugB), ..route("spBv1.0/#", "sparkplug") };
        let mut routes = Routes::new(&[decoding]).unwrap();
        let mut target = |uns| routes.target("m", "spBv1.0/g/NDATA/e", uns);
        let decoded = target(Some("umh/v1/g/e/_raw/a")).unwrap();
        assert_eq!((decoded.topic.as_str(), decoded.key.as_str()), ("umh.messages", "umh.v1.g.e._raw.a"));
        let rest = target(None).unwrap();
        assert_eq!((rest.topic.as_str(), rest.key.as_str()), ("sparkplug", "spBv1.0/g/NDATA/e"));
    }

    #[test]
    fn a_topic_too_long_to_be_remembered_has_its_target_all_the_same() {
        let mut routes = Routes::new(&[route("a/#", "x")]).unwrap();
        let long = format!("a/{}", "b".repeat(LONGEST_REMEMBERED));
        assert_eq!(routes.target("m", &long, None).unwrap().key, long);
        assert!(routes.known.is_empty());
    }

    #[test]
    fn a_name_that_kafka_has_not_goes_nowhere() {
        let mut routes = Routes::new(&[route("a/#", "x.{2}")]).unwrap();
        assert!(matches!(routes.target("m", "a/line 1", None), Err(NoTarget::Topic { route: 1, .. })));
        assert_eq!(routes.target("m", "a", None), Err(NoTarget::Level { route: 1, level: 2 }));
    }

    #[test]
    fn routes_of_another_connection_do_not_count() {
        let only = RouteConfig { mqtt: Some("north".into()), ..route("#", "north") };
        let mut routes = Routes::new(&[only, route("a", "rest")]).unwrap();
        assert_eq!(routes.target("north", "a", None).unwrap().topic, "north");
        assert_eq!(routes.target("south", "a", None).unwrap().topic, "rest");
        assert_eq!(routes.filters("south").iter().map(Filter::as_str).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn filters_that_others_cover_are_not_subscribed() {
        let routes =
            Routes::new(&[route("a/b", "x"), route("a/#", "x"), route("a/+/c", "x"), route("b", "x")]).unwrap();
        assert_eq!(routes.filters("m").iter().map(Filter::as_str).collect::<Vec<_>>(), ["a/#", "b"]);
    }

    #[test]
    fn a_route_that_makes_no_sense_is_refused() {
        let header =
            |name: &str| RouteConfig { headers: [(name.to_owned(), "1".to_owned())].into(), ..route("a", "x") };
        for (wrong, why) in [
            (RouteConfig::default(), "either `to`"),
            (RouteConfig { from: None, ..route("a", "x") }, "`from` is missing"),
            (route("a", "x y"), "no name of a Kafka topic"),
            (route("a#", "x"), "not a topic filter"),
            (route("a", "{x}"), "is not known"),
            (RouteConfig { key: Some("k".into()), ..umh() }, "leave `key` out"),
            (RouteConfig { decode: Some(Decode::SparkplugB), ..umh() }, "takes `to`"),
            (header("hf-sequence"), "the bridge's own"),
            (header("a\0"), "none has a NUL"),
            (RouteConfig { step: vec![StepConfig::Pick(Vec::new())], ..route("a", "x") }, "step 1 is not usable"),
        ] {
            let refused = Routes::new(&[wrong]).unwrap_err();
            let cause = std::error::Error::source(&refused).unwrap().to_string();
            assert!(refused.to_string().contains("route 1") && cause.contains(why), "{refused}: {cause}");
        }
    }
}
