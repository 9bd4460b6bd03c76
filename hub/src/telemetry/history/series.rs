//! Rows to points: counters to rates, many samples to one point a step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use protocol::Timestamp;
use protocol::message::BatchBody;
use protocol::telemetry::{Decoder, Kind, Metric, Schema};

use super::{Point, Selector, SeriesPoints};
use crate::telemetry::state::scaled;

/// A counter read twice within this time has a rate; over it, what lies between is unknown.
pub(super) const RATE_WITHIN: Duration = Duration::from_secs(300);

/// Gathers the points of the selected series from bodies in their order.
pub(super) struct Collector {
    selectors: Vec<Selector>,
    from: Timestamp,
    to: Timestamp,
    step: i64,
    decoder: Decoder,
    row: Vec<Option<i64>>,
    /// Where the selected series stand in the schema at hand.
    columns: Vec<(usize, usize)>,
    schema: Option<Arc<Schema>>,
    gathered: Vec<Gathered>,
    numbers: BTreeMap<(Box<str>, Box<str>), usize>,
}

struct Gathered {
    metric: Metric,
    last: Option<(Timestamp, i64)>,
    steps: BTreeMap<i64, Step>,
}

struct Step {
    at: Timestamp,
    count: u32,
    sum: f64,
    min: f64,
    max: f64,
}

impl Collector {
    pub(super) fn new(selectors: Vec<Selector>, from: Timestamp, to: Timestamp, step: Duration) -> Self {
        Self {
            selectors,
            from,
            to,
            step: i64::try_from(step.as_millis()).unwrap_or(i64::MAX).max(1),
            decoder: Decoder::default(),
            row: Vec::new(),
            columns: Vec::new(),
            schema: None,
            gathered: Vec::new(),
            numbers: BTreeMap::new(),
        }
    }

    /// What comes next starts with a key batch.
    pub(super) fn restart(&mut self) {
        self.decoder = Decoder::default();
    }

    /// Takes in bodies that stand one after the other, each behind its length.
    pub(super) fn chunk(&mut self, mut bytes: &[u8]) {
        self.restart();
        while let Ok(length) = prost::encoding::decode_varint(&mut bytes) {
            let Some((body, rest)) = usize::try_from(length).ok().and_then(|length| bytes.split_at_checked(length))
            else {
                return;
            };
            self.body(body);
            bytes = rest;
        }
    }

    /// Takes in one body. One that can't be read leaves a gap until the next key batch.
    pub(super) fn body(&mut self, body: &[u8]) {
        let Ok(body) = BatchBody::decode(body) else { return };
        if body.samples.is_empty() {
            return;
        }
        let mut decoder = std::mem::take(&mut self.decoder);
        let mut row = std::mem::take(&mut self.row);
        drop(decoder.decode_with(&body.samples, &mut row, |schema, at, values| self.row(schema, at, values)));
        self.decoder = decoder;
        self.row = row;
    }

    pub(super) fn finish(self) -> Vec<SeriesPoints> {
        let Self { numbers, gathered, .. } = self;
        let mut gathered: Vec<Option<Gathered>> = gathered.into_iter().map(Some).collect();
        numbers
            .into_iter()
            .filter_map(|((metric, target), number)| {
                let gathered = gathered.get_mut(number)?.take()?;
                let points: Vec<Point> = gathered.steps.into_values().map(Step::point).collect();
                (!points.is_empty()).then(|| SeriesPoints {
                    metric: metric.into(),
                    target: target.into(),
                    unit: gathered.metric.unit,
                    kind: gathered.metric.kind,
                    points,
                })
            })
            .collect()
    }

    fn row(&mut self, schema: &Schema, at: Timestamp, values: &[Option<i64>]) {
        if self.schema.as_deref().is_none_or(|known| known != schema) {
            self.select(schema);
        }
        let Self { columns, gathered, from, to, step, .. } = self;
        for (column, number) in &*columns {
            let (Some(Some(raw)), Some(series)) = (values.get(*column), gathered.get_mut(*number)) else { continue };
            let Some(value) = series.value(at, *raw) else { continue };
            if at >= *from && at < *to {
                series.add(at, (at.millis() - from.millis()) / *step, value);
            }
        }
    }

    fn select(&mut self, schema: &Schema) {
        self.columns.clear();
        for (metric, range, targets) in schema.metrics() {
            for (column, target) in range.zip(targets) {
                let wanted = |selector: &Selector| {
                    *selector.metric == *metric.name && selector.target.as_deref().is_none_or(|t| *t == **target)
                };
                if !self.selectors.iter().any(wanted) {
                    continue;
                }
                let gathered = &mut self.gathered;
                let number = *self.numbers.entry((metric.name.clone(), target.clone())).or_insert_with(|| {
                    gathered.push(Gathered { metric: metric.clone(), last: None, steps: BTreeMap::new() });
                    gathered.len() - 1
                });
                self.columns.push((column, number));
            }
        }
        // A copy by bytes: the decoder lends the schema only for the call.
        self.schema = Schema::from_bytes(schema.as_bytes()).ok().map(Arc::new);
    }
}

impl Gathered {
    /// What a sample is worth: a gauge's level; a counter's growth per second since the sample before, unless that is
    /// long ago, the counter started again or the clock was set back.
    fn value(&mut self, at: Timestamp, raw: i64) -> Option<f64> {
        if self.metric.kind == Kind::Gauge {
            return Some(scaled(raw, &self.metric));
        }
        let (earlier, before) = self.last.replace((at, raw))?;
        let passed = at.since(earlier);
        let grown = raw.checked_sub(before)?;
        (grown >= 0 && !passed.is_zero() && passed <= RATE_WITHIN)
            .then(|| scaled(grown, &self.metric) / passed.as_secs_f64())
    }

    fn add(&mut self, at: Timestamp, step: i64, value: f64) {
        let step = self.steps.entry(step).or_insert(Step { at, count: 0, sum: 0.0, min: value, max: value });
        step.at = step.at.max(at);
        step.count += 1;
        step.sum += value;
        step.min = step.min.min(value);
        step.max = step.max.max(value);
    }
}

impl Step {
    fn point(self) -> Point {
        Point { at: self.at, mean: self.sum / f64::from(self.count), min: self.min, max: self.max }
    }
}
