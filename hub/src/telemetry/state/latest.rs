//! The newest figures of a node: two rows, so that counters have a rate.

use std::sync::Arc;

use protocol::Timestamp;
use protocol::telemetry::{Kind, Metric, Schema};

use super::row::Row;

/// One row of figures at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was measured, by the node's clock.
    pub at: Timestamp,
    /// What its columns are.
    pub schema: Arc<Schema>,
    values: Row,
}

impl Sample {
    /// A row in the order of `schema`.
    pub fn new(at: Timestamp, schema: Arc<Schema>, values: impl Iterator<Item = Option<i64>>) -> Self {
        Self { at, schema, values: Row::new(values) }
    }

    /// The integers, in the order of the schema.
    pub fn values(&self) -> impl Iterator<Item = Option<i64>> {
        self.values.iter()
    }

    fn raw(&self, index: usize) -> Option<i64> {
        self.values.iter().nth(index).flatten()
    }
}

/// The newest row and the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latest {
    /// The newest.
    pub sample: Sample,
    /// The one before; `None` at the start. Its schema may be another.
    pub previous: Option<Sample>,
}

impl Latest {
    /// When the newest row was measured, by the node's clock.
    pub fn at(&self) -> Timestamp {
        self.sample.at
    }

    /// The real value of `metric` on `target` (`""`: the host): a gauge's level, a counter's total.
    pub fn value(&self, metric: &str, target: &str) -> Option<f64> {
        let index = self.sample.schema.index(metric, target)?;
        let (metric, _) = self.sample.schema.series(index)?;
        self.sample.raw(index).map(|raw| scaled(raw, metric))
    }

    /// A counter's growth per second over the newest two rows; `None` for a gauge, and when it started again.
    pub fn rate(&self, metric: &str, target: &str) -> Option<f64> {
        let index = self.sample.schema.index(metric, target)?;
        self.rate_at(index)
    }

    /// What a chart of this series would show now: a gauge's level, a counter's rate.
    pub fn current(&self, index: usize) -> Option<f64> {
        let (metric, _) = self.sample.schema.series(index)?;
        match metric.kind {
            Kind::Gauge => self.sample.raw(index).map(|raw| scaled(raw, metric)),
            Kind::Counter => self.rate_at(index),
        }
    }

    /// Every target of `metric`, with [`Latest::current`].
    pub fn targets(&self, metric: &str) -> Vec<(&str, Option<f64>)> {
        self.sample
            .schema
            .metrics()
            .filter(|(known, _, _)| &*known.name == metric)
            .flat_map(|(_, range, targets)| range.zip(targets))
            .map(|(index, target)| (&**target, self.current(index)))
            .collect()
    }

    fn rate_at(&self, index: usize) -> Option<f64> {
        let previous = self.previous.as_ref()?;
        let (metric, target) = self.sample.schema.series(index)?;
        let before = if Arc::ptr_eq(&previous.schema, &self.sample.schema) {
            index
        } else {
            previous.schema.index(&metric.name, target)?
        };
        let seconds = self.sample.at.since(previous.at).as_secs_f64();
        let grown = self.sample.raw(index)?.checked_sub(previous.raw(before)?)?;
        (metric.kind == Kind::Counter && grown >= 0 && seconds > 0.0).then(|| scaled(grown, metric) / seconds)
    }

    /// The newest two of this and `sample`; older rows change nothing, unless the node's clock was `set_back` before they were measured.
    pub(super) fn advance(&mut self, sample: Sample, set_back: bool) {
        if sample.at <= self.sample.at && !set_back {
            return;
        }
        self.previous = Some(std::mem::replace(&mut self.sample, sample));
    }
}

/// The real value of a stored integer.
pub(crate) fn scaled(raw: i64, metric: &Metric) -> f64 {
    raw as f64 / 10f64.powi(i32::from(metric.decimals))
}
