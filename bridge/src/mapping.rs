//! What a connection makes of its messages before they have a number: readings of the Unified Namespace out of Sparkplug B,
//! and the steps of routes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use protocol::Timestamp;

use crate::config::Decode;
use crate::filter::Filter;
use crate::sparkplug::{self, Rest, Tables};
use crate::step::{Outcome, Steps};

/// Topics whose route is remembered, and the longest of them; beyond it all are looked up anew.
pub(crate) const REMEMBERED: usize = 10_000;
pub(crate) const LONGEST_REMEMBERED: usize = 1024;
/// What does not fit is told this often.
const REPEAT: Duration = Duration::from_secs(60);

/// The routes of a connection that do something with messages.
#[derive(Debug, Default)]
pub struct Mapping {
    /// All of the connection, for the first that matches counts.
    ways: Vec<Way>,
    /// Whether none of them does anything.
    idle: bool,
    known: HashMap<Box<str>, Option<usize>>,
    tables: Tables,
    births_wanted: u64,
    /// What was told, and when.
    told: HashMap<&'static str, Instant>,
}

/// A route, as it concerns messages that come in.
#[derive(Clone, Debug)]
pub struct Way {
    /// Its number, from 1.
    pub route: usize,
    /// The topics it is for.
    pub from: Filter,
    /// What is decoded.
    pub decode: Option<Decode>,
    /// What is done with payloads.
    pub steps: Steps,
}

/// A message that has come.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// Its payload.
    pub payload: &'a [u8],
    /// The broker had kept it.
    pub retained: bool,
    /// It may have come before.
    pub duplicate: bool,
    /// Bytes of what its publisher added, which goes with all that it becomes.
    pub beside: usize,
    /// The time of day.
    pub received: Timestamp,
    /// The time for what lasts.
    pub now: Instant,
}

/// What becomes of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Mapped {
    /// It goes on as it came.
    Same,
    /// These go on in its place; none of them when it is filtered.
    Made(Vec<Made>),
}

/// What goes on in a message's place.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Topic of the Unified Namespace, when it is decoded.
    pub uns: Option<String>,
    /// Its payload, when it is another.
    pub payload: Option<Vec<u8>>,
    /// Why it is as it came.
    pub unmapped: Option<String>,
    /// It comes from a birth.
    pub birth: bool,
    /// It was kept at the edge.
    pub historical: bool,
    /// It is a death of a life that was over before.
    pub stale: bool,
    /// Its sender does not want it to be kept.
    pub transient: bool,
}

impl Mapping {
    /// The mapping by these routes; what was learnt of Sparkplug is in `tables`.
    pub fn new(ways: Vec<Way>, tables: Tables) -> Self {
        let mut mapping = Self { tables, ..Self::default() };
        mapping.change(ways);
        mapping
    }

    /// Goes on with these routes, and what was learnt; what steps remember of messages is forgotten.
    pub fn change(&mut self, ways: Vec<Way>) {
        self.idle = ways.iter().all(|way| way.decode.is_none() && way.steps.is_empty());
        self.ways = ways;
        self.known.clear();
    }

    /// What was learnt that has to be on disk before a message is acknowledged.
    pub fn saving(&mut self) -> Option<sparkplug::Saving> {
        self.tables.saving()
    }

    /// How many messages there were since this was last asked by which a host application would ask for a birth.
    pub fn births_wanted(&mut self) -> u64 {
        std::mem::take(&mut self.births_wanted)
    }

    /// What becomes of a message.
    pub fn map(&mut self, arrival: &Arrival<'_>) -> Mapped {
        let Some(index) = self.way(arrival.topic) else { return Mapped::Same };
        match self.ways.get(index).and_then(|way| way.decode) {
            Some(Decode::SparkplugB) => self.decode(arrival, index),
            None => match self.step(arrival, index, arrival.topic, |steps| {
                if arrival.retained {
                    steps.take_historical(arrival.payload)
                } else {
                    steps.take(arrival.topic, arrival.payload, arrival.now)
                }
            }) {
                Outcome::Same => Mapped::Same,
                Outcome::Changed(payload) => Mapped::Made(vec![Made { payload: Some(payload), ..Made::default() }]),
                Outcome::Dropped(_) => Mapped::Made(Vec::new()),
                Outcome::Misfit(misfit) => {
                    Mapped::Made(vec![Made { unmapped: Some(misfit.to_string()), ..Made::default() }])
                }
            },
        }
    }

    fn decode(&mut self, arrival: &Arrival<'_>, index: usize) -> Mapped {
        let Arrival { topic, payload, retained, duplicate, beside, received, now } = *arrival;
        let message = sparkplug::Message { topic, payload, received: received.millis(), retained, duplicate, beside };
        let decoded = sparkplug::decode(&mut self.tables, &message);
        self.births_wanted += u64::from(decoded.wants_birth);
        if let Some(gap) = decoded.gap {
            self.tell("gap", now, || tracing::warn!("Sparkplug B: {gap}"));
        }
        if decoded.wants_birth {
            self.tell("birth", now, || {
                tracing::warn!(topic, "Sparkplug B: a birth is wanted, and a host application has to ask for it");
            });
        }
        let mut made = Vec::with_capacity(decoded.readings.len());
        for reading in decoded.readings {
            let outcome = self.step(arrival, index, &reading.topic, |steps| {
                if reading.historical || reading.birth || retained {
                    steps.take_historical(&reading.payload)
                } else {
                    steps.take(&reading.topic, &reading.payload, now)
                }
            });
            let made_of = |payload, unmapped| Made {
                uns: Some(reading.topic.clone()),
                payload: Some(payload),
                unmapped,
                birth: reading.birth,
                historical: reading.historical,
                stale: false,
                transient: reading.transient,
            };
            match outcome {
                Outcome::Same => made.push(made_of(reading.payload.clone(), None)),
                Outcome::Changed(payload) => made.push(made_of(payload, None)),
                Outcome::Dropped(_) => {}
                Outcome::Misfit(misfit) => made.push(made_of(reading.payload.clone(), Some(misfit.to_string()))),
            }
        }
        match decoded.rest {
            Rest::Nothing => Mapped::Made(made),
            Rest::NoData if made.is_empty() => Mapped::Same,
            Rest::NoData => {
                made.push(Made::default());
                Mapped::Made(made)
            }
            Rest::Stale => Mapped::Made(vec![Made { stale: true, ..Made::default() }]),
            Rest::Unresolved(why) => {
                made.push(Made { unmapped: Some(why), ..Made::default() });
                Mapped::Made(made)
            }
        }
    }

    /// Takes the steps of the arrival's route with what became of it so far.
    fn step(
        &mut self,
        arrival: &Arrival<'_>,
        index: usize,
        topic: &str,
        take: impl FnOnce(&mut Steps) -> Outcome,
    ) -> Outcome {
        let Some(way) = self.ways.get_mut(index) else { return Outcome::Same };
        let outcome = take(&mut way.steps);
        if let Outcome::Misfit(misfit) = &outcome {
            let route = way.route;
            self.tell("misfit", arrival.now, || {
                tracing::warn!(topic, "route {route}: a message goes on as it came: {misfit}")
            });
        }
        outcome
    }

    /// The route of a topic, when it does something: its place among the ways.
    fn way(&mut self, topic: &str) -> Option<usize> {
        if self.idle {
            return None;
        }
        if let Some(known) = self.known.get(topic) {
            return *known;
        }
        let found = self.ways.iter().position(|way| way.from.matches(topic));
        let does = |way: &Way| way.decode.is_some() || !way.steps.is_empty();
        let found = found.filter(|index| self.ways.get(*index).is_some_and(does));
        if topic.len() <= LONGEST_REMEMBERED {
            if self.known.len() >= REMEMBERED {
                self.known.clear();
            }
            self.known.insert(topic.into(), found);
        }
        found
    }

    /// Says something of a kind now and again.
    fn tell(&mut self, kind: &'static str, now: Instant, say: impl FnOnce()) {
        if self.told.get(kind).is_none_or(|told| now.saturating_duration_since(*told) > REPEAT) {
            self.told.insert(kind, now);
            say();
        }
    }
}

impl Mapped {
    /// Whether nothing goes on.
    pub fn is_filtered(&self) -> bool {
        matches!(self, Self::Made(made) if made.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RouteConfig;
    use crate::route::Routes;

    fn mapping(routes: &str) -> Mapping {
        #[derive(serde::Deserialize)]
        struct Plan {
            route: Vec<RouteConfig>,
        }
        let plan: Plan = toml::from_str(routes).unwrap();
        Mapping::new(Routes::new(&plan.route).unwrap().ways("m"), Tables::in_memory())
    }

    fn map(mapping: &mut Mapping, topic: &str, payload: &str) -> Mapped {
        let (received, now) = (Timestamp::from_millis(5), Instant::now());
        let payload = payload.as_bytes();
        mapping.map(&Arrival { topic, payload, retained: false, duplicate: false, beside: 0, received, now })
    }

    #[test]
    fn the_first_route_that_matches_says_what_is_done() {
        let mut mapping = mapping(
            "[[route]]\nfrom = 'a/plain'\nto = 'x'\n\
             [[route]]\nfrom = 'a/#'\nto = 'x'\nmqtt = 'other'\nstep = [{ pick = ['none'] }]\n\
             [[route]]\nfrom = 'a/#'\nto = 'x'\nstep = [{ pick = ['v'] }, { filter = { field = 'v', above = 1 } }]",
        );
        assert_eq!(map(&mut mapping, "a/plain", "{}"), Mapped::Same);
        assert_eq!(map(&mut mapping, "b", "{}"), Mapped::Same);
        let made = Made { payload: Some(br#"{"v":2}"#.to_vec()), ..Made::default() };
        assert_eq!(map(&mut mapping, "a/b", r#"{"v":2,"w":1}"#), Mapped::Made(vec![made]));
        assert!(map(&mut mapping, "a/b", r#"{"v":1}"#).is_filtered());
        let Mapped::Made(made) = map(&mut mapping, "a/b", "on") else { panic!("it is no JSON") };
        assert!(made[0].payload.is_none() && made[0].unmapped.as_ref().unwrap().contains("step 1: it is not JSON"));
    }

    #[test]
    fn steps_of_a_route_that_decodes_are_taken_with_each_reading() {
        let mut mapping = mapping(
            "[[route]]\nfrom = 'spBv1.0/#'\nto = 'sparkplug'\ndecode = 'sparkplug-b'\n\
             step = [{ dead-band = { field = 'value', band = 1 } }]",
        );
        // Two metrics, a = 1 and b = 1, by name.
        let payload = "\x12\x07\x0a\x01a\x20\x03\x50\x01\x12\x07\x0a\x01b\x20\x03\x50\x01";
        let Mapped::Made(made) = map(&mut mapping, "spBv1.0/g/NDATA/e", payload) else { panic!("it is decoded") };
        let topics: Vec<_> = made.iter().map(|made| made.uns.as_deref().unwrap()).collect();
        assert_eq!(topics, ["umh/v1/g/e/_raw/a", "umh/v1/g/e/_raw/b"]);
        assert!(map(&mut mapping, "spBv1.0/g/NDATA/e", payload).is_filtered());
        assert_eq!(map(&mut mapping, "spBv1.0/g/NDEATH/e", ""), Mapped::Same);
        let Mapped::Made(made) = map(&mut mapping, "spBv1.0/g/NDATA/e", "?") else { panic!("it is no payload") };
        assert!(made[0].uns.is_none() && made[0].unmapped.as_ref().unwrap().contains("not Sparkplug B"));
        // A metric by a number that no birth has told.
        assert_eq!(mapping.births_wanted(), 0);
        map(&mut mapping, "spBv1.0/g/NDATA/e", "\x12\x04\x10\x07\x50\x01");
        assert_eq!((mapping.births_wanted(), mapping.births_wanted()), (1, 0));
    }

    #[test]
    fn what_the_edge_had_kept_is_not_thinned_out_and_does_not_thin_out_what_is_live() {
        let mut mapping = mapping(
            "[[route]]\nfrom = 'spBv1.0/#'\nto = 'sparkplug'\ndecode = 'sparkplug-b'\n\
             step = [{ filter = { field = 'value', above = 0 } }, { down-sample = { every = '1h' } },\n\
             { dead-band = { field = 'value', band = 1 } }]",
        );
        // The metric a, by name, and whether it is historical.
        let metric = |value: char, historical: char| format!("\x12\x09\x0a\x01a\x20\x03\x28{historical}\x50{value}");
        let live = metric('\x05', '\0');
        let kept = metric('\x05', '\x01').repeat(2) + &metric('\0', '\x01');
        let mut passing = |payload: &str| match map(&mut mapping, "spBv1.0/g/NDATA/e", payload) {
            Mapped::Made(made) => made.len(),
            Mapped::Same => panic!("it is decoded"),
        };
        assert_eq!((passing(&kept), passing(&live), passing(&live), passing(&kept)), (2, 1, 0, 2));
    }

    #[test]
    fn what_was_retained_or_a_birth_tells_is_not_thinned_out_and_does_not_thin_out_what_is_live() {
        let mut mapping = mapping(
            "[[route]]\nfrom = 'spBv1.0/#'\nto = 'sparkplug'\ndecode = 'sparkplug-b'\nstep = [{ down-sample = { every = '1h' } }]\n\
             [[route]]\nfrom = 'a'\nto = 'x'\nstep = [{ down-sample = { every = '1h' } }, { dead-band = { band = 1 } }]",
        );
        let now = Instant::now();
        let mut passing = |topic: &str, payload: &str, retained: bool| {
            let (payload, received) = (payload.as_bytes(), Timestamp::from_millis(5));
            let arrival = Arrival { topic, payload, retained, duplicate: false, beside: 0, received, now };
            !mapping.map(&arrival).is_filtered()
        };
        let retained =
            [passing("a", "5", true), passing("a", "5", false), passing("a", "5", false), passing("a", "5", true)];
        assert_eq!(retained, [true, true, false, true]);
        // The metric a, by name.
        let metric = "\x12\x07\x0a\x01a\x20\x03\x50\x01";
        let mut of = |kind: &str, retained: bool| passing(&format!("spBv1.0/g/{kind}/e"), metric, retained);
        let births =
            [of("NBIRTH", false), of("NDATA", false), of("NDATA", false), of("NBIRTH", false), of("NDATA", true)];
        assert_eq!(births, [true, true, false, true, true]);
    }

    #[test]
    fn a_topic_too_long_to_be_remembered_goes_its_way_all_the_same() {
        let mut mapping = mapping("[[route]]\nfrom = 'a/#'\nto = 'x'\nstep = [{ filter = { above = 1 } }]");
        let long = format!("a/{}", "b".repeat(LONGEST_REMEMBERED));
        assert!(map(&mut mapping, &long, "1").is_filtered() && map(&mut mapping, &long, "1").is_filtered());
        assert_eq!(map(&mut mapping, &long, "2"), Mapped::Same);
        assert!(mapping.known.is_empty());
    }
}
