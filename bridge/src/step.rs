//! Steps that a route declares: what is done with a message's payload, and which messages go no further.
//!
//! Steps are taken in their order when a message is received, before it has a number: one that goes no further is
//! acknowledged and counted, and leaves no gap. A message that a step can't be applied to goes on as it came.

mod config;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use settings::Period;

use crate::fields::{Document, NotJson, Path, PathError};
use crate::unit::{Linear, UnitError};
pub use config::{DeadBandConfig, DownSampleConfig, FilterConfig, Scalar, ScaleConfig, StepConfig};

/// Topics that a step remembers something of, and the longest of them. When there are more, it forgets all of them, and lets
/// one more message of each pass; so does a start. All messages of a longer one pass.
const MOST_TOPICS: usize = 10_000;
const LONGEST_TOPIC: usize = 1024;

/// Steps, and what they remember of messages.
#[derive(Clone, Debug, Default)]
pub struct Steps(Vec<Step>);

#[derive(Clone, Debug)]
enum Step {
    Pick(Vec<Path>),
    Rename(Vec<(Path, Path)>),
    Scale(Path, Linear),
    Filter(Path, FilterConfig),
    DownSample { every: Duration, passed: HashMap<Box<str>, Instant> },
    DeadBand { number: Path, band: Band, silence: Option<Duration>, passed: HashMap<Box<str>, (f64, Instant)> },
}

#[derive(Clone, Copy, Debug)]
enum Band {
    Absolute(f64),
    Percent(f64),
}

/// What becomes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on as it came.
    Same,
    /// It goes on with this payload.
    Changed(Vec<u8>),
    /// It goes no further, because of this step, from 1.
    Dropped(usize),
    /// A step can't be applied to it, so it goes on as it came.
    Misfit(Misfit),
}

/// Why a step can't be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("step {step}: {why}")]
pub struct Misfit {
    step: usize,
    why: String,
}

impl Steps {
    /// Parses the steps of a route.
    ///
    /// # Errors
    /// The first that can't be used.
    pub fn new(configured: &[StepConfig]) -> Result<Self, StepError> {
        let parse = |(index, step): (usize, &StepConfig)| {
            Step::new(step).map_err(|source| StepError { step: index + 1, source })
        };
        Ok(Self(configured.iter().enumerate().map(parse).collect::<Result<_, _>>()?))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the steps with a message of `topic` that is there `now`.
    pub fn take(&mut self, topic: &str, payload: &[u8], now: Instant) -> Outcome {
        self.walk(payload, Some((topic, now)))
    }

    /// Takes the steps with what is no news: it was kept at the edge or by the broker, or a birth tells it. None of it is left
    /// out for what else has passed, and nothing is remembered of it: it comes all at once, and not in its time.
    pub fn take_historical(&mut self, payload: &[u8]) -> Outcome {
        self.walk(payload, None)
    }

    fn walk(&mut self, payload: &[u8], live: Option<(&str, Instant)>) -> Outcome {
        let (mut document, mut changed) = (None, false);
        for (index, step) in self.0.iter_mut().enumerate() {
            let done = match (step, live) {
                (Step::DownSample { .. } | Step::DeadBand { .. }, None) => Ok(true),
                (Step::DownSample { every, passed }, Some((topic, now))) => Ok(sample(passed, *every, topic, now)),
                (Step::DeadBand { number, band, silence, passed }, Some((topic, now))) => read(&mut document, payload)
                    .map(|document| has_changed(passed, (*band, *silence), topic, document.number(number), now)),
                (step, _) => read(&mut document, payload)
                    .and_then(|document| step.apply(document).inspect(|_| changed |= step.changes())),
            };
            match done {
                Ok(true) => {}
                Ok(false) => return Outcome::Dropped(index + 1),
                Err(why) => return Outcome::Misfit(Misfit { step: index + 1, why }),
            }
        }
        match document {
            Some(document) if changed => Outcome::Changed(document.as_bytes().to_vec()),
            _ => Outcome::Same,
        }
    }
}

/// The payload as JSON, read once.
fn read<'a>(document: &'a mut Option<Document>, payload: &[u8]) -> Result<&'a mut Document, String> {
    match document {
        Some(document) => Ok(document),
        None => Ok(document.insert(Document::parse(payload).map_err(|error: NotJson| error.to_string())?)),
    }
}

impl Step {
    fn new(configured: &StepConfig) -> Result<Self, Wrong> {
        Ok(match configured {
            StepConfig::Pick(fields) if fields.is_empty() => return Err(Wrong::Empty("pick")),
            StepConfig::Pick(fields) => Self::Pick(fields.iter().map(|field| field.parse()).collect::<Result<_, _>>()?),
            StepConfig::Rename(names) if names.is_empty() => return Err(Wrong::Empty("rename")),
            StepConfig::Rename(names) => {
                let parse =
                    |(from, to): (&String, &String)| Ok::<(Path, Path), PathError>((from.parse()?, to.parse()?));
                Self::Rename(names.iter().map(parse).collect::<Result<_, _>>()?)
            }
            StepConfig::Scale(scale) => {
                let linear = match (&scale.from, &scale.to, scale.factor, scale.offset) {
                    (Some(from), Some(to), None, None) => Linear::between(from, to)?,
                    (None, None, None, None) => return Err(Wrong::Scale),
                    (None, None, factor, offset) => {
                        let [factor, offset] = [factor.unwrap_or(1.0), offset.unwrap_or(0.0)];
                        if !factor.is_finite() || !offset.is_finite() {
                            return Err(Wrong::NoNumber("scale"));
                        }
                        Linear { factor, offset }
                    }
                    _ => return Err(Wrong::Scale),
                };
                Self::Scale(path(scale.field.as_deref())?, linear)
            }
            StepConfig::Filter(filter) => {
                if *filter == (FilterConfig { field: filter.field.clone(), ..FilterConfig::default() }) {
                    return Err(Wrong::Filter);
                }
                if filter.numbers().any(f64::is_nan) {
                    return Err(Wrong::NoNumber("filter"));
                }
                Self::Filter(path(filter.field.as_deref())?, filter.clone())
            }
            StepConfig::DownSample(DownSampleConfig { every }) => {
                Self::DownSample { every: every.get(), passed: HashMap::new() }
            }
            StepConfig::DeadBand(dead) => {
                let band = match (dead.band, dead.percent) {
                    (Some(band), None) if band >= 0.0 => Band::Absolute(band),
                    (None, Some(percent)) if percent >= 0.0 => Band::Percent(percent),
                    _ => return Err(Wrong::DeadBand),
                };
                let silence = dead.at_least_every.map(Period::get);
                Self::DeadBand { number: path(dead.field.as_deref())?, band, silence, passed: HashMap::new() }
            }
        })
    }

    fn changes(&self) -> bool {
        matches!(self, Self::Pick(_) | Self::Rename(_) | Self::Scale(..))
    }

    /// Does what it does with any message; gives whether that goes on.
    fn apply(&self, document: &mut Document) -> Result<bool, String> {
        match self {
            Self::Pick(fields) => {
                if !document.pick(fields) {
                    return Err("it has none of the fields to pick".into());
                }
            }
            Self::Rename(names) => document.rename(names),
            Self::Scale(field, linear) => match document.text(field).as_deref() {
                None | Some("null") => {}
                Some(_) => {
                    let number = document.number(field).ok_or_else(|| format!("{field} is no number"))?;
                    let scaled = linear.apply(number);
                    if !scaled.is_finite() {
                        return Err(format!("{field} becomes too large"));
                    }
                    document.replace(field, scaled);
                }
            },
            Self::Filter(field, filter) => return Ok(filter.holds(document, field)),
            // They look at what has passed before.
            Self::DownSample { .. } | Self::DeadBand { .. } => {}
        }
        Ok(true)
    }
}

fn path(field: Option<&str>) -> Result<Path, PathError> {
    field.map_or_else(|| Ok(Path::default()), str::parse)
}

fn sample(passed: &mut HashMap<Box<str>, Instant>, every: Duration, topic: &str, now: Instant) -> bool {
    if passed.get(topic).is_some_and(|last| now.saturating_duration_since(*last) < every) {
        return false;
    }
    remember(passed, topic, now);
    true
}

/// Whether a number is further from what passed last than the band, or that is long ago.
fn has_changed(
    passed: &mut HashMap<Box<str>, (f64, Instant)>,
    (band, silence): (Band, Option<Duration>),
    topic: &str,
    value: Option<f64>,
    now: Instant,
) -> bool {
    // What is no number is news, and so is the next number.
    let Some(value) = value else {
        passed.remove(topic);
        return true;
    };
    let within = passed.get(topic).is_some_and(|(last, at)| {
        band.holds(*last, value) && silence.is_none_or(|silence| now.saturating_duration_since(*at) < silence)
    });
    if !within {
        remember(passed, topic, (value, now));
    }
    !within
}

fn remember<T>(passed: &mut HashMap<Box<str>, T>, topic: &str, what: T) {
    if let Some(known) = passed.get_mut(topic) {
        *known = what;
        return;
    }
    if topic.len() > LONGEST_TOPIC {
        return;
    }
    if passed.len() >= MOST_TOPICS {
        passed.clear();
    }
    passed.insert(topic.into(), what);
}

impl Band {
    fn holds(self, last: f64, value: f64) -> bool {
        let width = match self {
            Self::Absolute(band) => band,
            Self::Percent(percent) => last.abs() * percent / 100.0,
        };
        (value - last).abs() <= width
    }
}

impl FilterConfig {
    /// What values are compared with, as far as it is numbers.
    fn numbers(&self) -> impl Iterator<Item = f64> {
        let number = |scalar: &Scalar| if let Scalar::Number(number) = scalar { Some(*number) } else { None };
        let scalars = [&self.equals, &self.differs].into_iter().filter_map(move |scalar| number(scalar.as_ref()?));
        scalars.chain(self.above).chain(self.below)
    }

    fn holds(&self, document: &Document, field: &Path) -> bool {
        let text = document.text(field).filter(|text| text != "null");
        let number = document.number(field);
        let is = |wanted: &Scalar| text.as_deref().is_some_and(|text| wanted.is(text));
        self.present.is_none_or(|present| text.is_some() == present)
            && self.equals.as_ref().is_none_or(is)
            && !self.differs.as_ref().is_some_and(is)
            && self.above.is_none_or(|bound| number.is_some_and(|number| number > bound))
            && self.below.is_none_or(|bound| number.is_some_and(|number| number < bound))
    }
}

impl Scalar {
    fn is(&self, text: &str) -> bool {
        match self {
            Self::Truth(truth) => text == if *truth { "true" } else { "false" },
            // Beyond 2^53 the nearest that a computer's number can be is that of many.
            Self::Whole(whole) => match text.parse::<i128>() {
                Ok(value) => value == i128::from(*whole),
                Err(_) => Self::Number(*whole as f64).is(text),
            },
            Self::Number(number) => serde_json::from_str::<f64>(text).is_ok_and(|value| value == *number),
            Self::Text(wanted) => serde_json::from_str::<String>(text).is_ok_and(|value| value == *wanted),
        }
    }
}

/// A step that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("step {step} is not usable")]
pub struct StepError {
    step: usize,
    #[source]
    source: Wrong,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Wrong {
    #[error("`{0}` names no field")]
    Empty(&'static str),
    #[error("`scale` takes `from` and `to`, two units, or `factor` and `offset`")]
    Scale,
    #[error("`filter` takes one or more of `present`, `equals`, `differs`, `above` and `below`")]
    Filter,
    #[error("`dead-band` takes `band` or `percent`, 0 or more")]
    DeadBand,
    #[error("`{0}` has a number that is none (nan), or no end (inf): give one that values can be compared with")]
    NoNumber(&'static str),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Unit(#[from] UnitError),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn steps(toml: &str) -> Result<Steps, StepError> {
        #[derive(serde::Deserialize)]
        struct Route {
            step: Vec<StepConfig>,
        }
        Steps::new(&toml::from_str::<Route>(&format!("step = [{toml}]")).unwrap().step)
    }

    /// What passes of these payloads of one topic, a second apart.
    fn passing(toml: &str, payloads: &[&str]) -> Vec<String> {
        let (mut steps, begun) = (steps(toml).unwrap(), Instant::now());
        let mut passed = Vec::new();
        for (second, payload) in (0..).zip(payloads) {
            match steps.take("t", payload.as_bytes(), begun + Duration::from_secs(second)) {
                Outcome::Same | Outcome::Misfit(_) => passed.push((*payload).to_owned()),
                Outcome::Changed(payload) => passed.push(String::from_utf8(payload).unwrap()),
                Outcome::Dropped(_) => {}
            }
        }
        passed
    }

    #[test]
    fn steps_are_taken_in_their_order() {
        let toml = r#"
            { filter = { field = "state", equals = "run" } },
            { pick = ["temp_f", "pos"] },
            { rename = { temp_f = "temp.c" } },
            { scale = { field = "temp.c", from = "°F", to = "°C" } },
            { dead-band = { field = "temp.c", band = 0.5 } }"#;
        let payloads = [
            r#"{"state":"run","temp_f":212,"pos":1.10}"#,
            r#"{"state":"stop","temp_f":300}"#,
            r#"{"state":"run","temp_f":212.8}"#,
            r#"{"state":"run","temp_f":213}"#,
        ];
        assert_eq!(passing(toml, &payloads), [r#"{"pos":1.10,"temp":{"c":100.0}}"#, r#"{"temp":{"c":100.555555556}}"#]);
    }

    #[test]
    fn filters_hold_when_all_of_it_does() {
        let of = |toml: &str, payload: &str| passing(&format!("{{ filter = {{ {toml} }} }}"), &[payload]).len() == 1;
        for (toml, yes, no) in [
            ("field = 'a', equals = 'x'", r#"{"a":"x"}"#, r#"{"a":"y"}"#),
            ("field = 'a', equals = 5", r#"{"a":5.0}"#, r#"{"a":"5"}"#),
            ("field = 'a', equals = 9007199254740993", r#"{"a":9007199254740993}"#, r#"{"a":9007199254740992}"#),
            ("field = 'a', differs = 9007199254740993", r#"{"a":9007199254740992}"#, r#"{"a":9007199254740993}"#),
            ("field = 'a', equals = true", r#"{"a":true}"#, "{}"),
            ("field = 'a', differs = 'x'", "{}", r#"{"a":"x"}"#),
            ("field = 'a', present = true", r#"{"a":0}"#, r#"{"a":null}"#),
            ("field = 'a', above = 1, below = 3", r#"{"a":2}"#, r#"{"a":3}"#),
            ("above = 1", "2", "1"),
        ] {
            assert!(of(toml, yes) && !of(toml, no), "{toml}");
        }
    }

    #[test]
    fn a_sample_passes_in_a_time_and_a_number_that_has_changed() {
        let sampled = passing("{ down-sample = { every = '3s' } }", &["0", "1", "2", "3", "x", "5", "6"]);
        assert_eq!(sampled, ["0", "3", "6"]);
        let changed = passing("{ dead-band = { band = 1 } }", &["5", "6", "6.5", "6", "null", "6", "7"]);
        assert_eq!(changed, ["5", "6.5", "null", "6"]);
        let changed =
            passing("{ dead-band = { percent = 10, at-least-every = '3s' } }", &["100", "110", "95", "100", "111"]);
        assert_eq!(changed, ["100", "100", "111"]);
    }

    #[test]
    fn topics_are_apart_and_forgetting_lets_one_more_pass() {
        let (mut steps, now) = (steps("{ down-sample = { every = '1h' } }").unwrap(), Instant::now());
        for number in 0..=MOST_TOPICS {
            assert_eq!(steps.take(&number.to_string(), b"1", now), Outcome::Same);
        }
        assert_eq!(steps.take("0", b"1", now), Outcome::Same, "it was forgotten");
        assert_eq!(steps.take("0", b"1", now), Outcome::Dropped(1));
        let long = "t".repeat(LONGEST_TOPIC + 1);
        assert!((0..2).all(|_| steps.take(&long, b"1", now) == Outcome::Same), "it is too long to be remembered");
    }

    #[test]
    fn what_a_step_can_not_be_applied_to_goes_on_as_it_came() {
        let now = Instant::now();
        for (toml, payload, expected) in [
            ("{ pick = ['a'] }", "on", "step 1: it is not JSON"),
            ("{ pick = ['a'] }", r#"{"b":1}"#, "none of the fields"),
            ("{ pick = ['a'] }, { scale = { field = 'a', factor = 2 } }", r#"{"a":"1"}"#, "step 2: a is no number"),
            ("{ scale = { factor = 1e300 } }", "1e300", "too large"),
            ("{ filter = { field = 'a', present = true } }", "\u{0}", "not JSON"),
            ("{ dead-band = { band = 1 } }", "{", "not JSON"),
        ] {
            match steps(toml).unwrap().take("t", payload.as_bytes(), now) {
                Outcome::Misfit(misfit) => assert!(misfit.to_string().contains(expected), "{toml}: {misfit}"),
                other => panic!("{toml}: {other:?}"),
            }
        }
        // There is nothing to scale.
        let mut scale = steps("{ scale = { field = 'a', factor = 2 } }").unwrap();
        assert!(matches!(scale.take("t", b"{}", now), Outcome::Changed(same) if same == b"{}"));
    }

    #[test]
    fn steps_that_make_no_sense_are_refused() {
        for (toml, why) in [
            ("{ pick = [] }", "names no field"),
            ("{ pick = ['a..b'] }", "is no field"),
            ("{ scale = { field = 'a' } }", "two units"),
            ("{ scale = { from = 'bar', factor = 2 } }", "two units"),
            ("{ scale = { from = 'bar', to = 'm' } }", "do not measure the same"),
            ("{ filter = { field = 'a' } }", "one or more of"),
            ("{ dead-band = { field = 'a' } }", "`band` or `percent`"),
            ("{ dead-band = { band = -1 } }", "0 or more"),
            ("{ dead-band = { band = nan } }", "0 or more"),
            ("{ filter = { above = nan } }", "`filter` has a number that is none"),
            ("{ filter = { differs = nan } }", "`filter` has a number that is none"),
            ("{ scale = { factor = inf } }", "`scale` has a number that is none"),
            ("{ scale = { offset = nan } }", "`scale` has a number that is none"),
        ] {
            let refused = steps(toml).unwrap_err();
            let cause = std::error::Error::source(&refused).unwrap().to_string();
            assert!(refused.to_string().contains("step 1") && cause.contains(why), "{toml}: {cause}");
        }
    }

    proptest! {
        /// Nobody is further than the band from what passed last.
        #[test]
        fn what_a_dead_band_keeps_back_is_within_it(values in prop::collection::vec(-50i32..50, 1..40), band in 0..20i32) {
            let mut steps = steps(&format!("{{ dead-band = {{ band = {band} }} }}")).unwrap();
            let (now, mut last) = (Instant::now(), None);
            for value in values {
                match steps.take("t", value.to_string().as_bytes(), now) {
                    Outcome::Dropped(_) => prop_assert!(last.is_some_and(|last: i32| (last - value).abs() <= band)),
                    _ => {
                        prop_assert!(last.is_none_or(|last: i32| (last - value).abs() > band));
                        last = Some(value);
                    }
                }
            }
        }

        #[test]
        fn arbitrary_payloads_do_not_panic(payload in prop::collection::vec(any::<u8>(), 0..30)) {
            let toml = "{ dead-band = { band = 1 } }, { rename = { a = 'b' } }, { scale = { factor = 2 } }, { pick = ['b'] }";
            let _ = steps(toml).unwrap().take("t", &payload, Instant::now());
        }
    }
}
