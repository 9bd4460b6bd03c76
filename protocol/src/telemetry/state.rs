//! The state that encoder and decoder both have after a batch, and the walk over a row that moves it on.

use std::sync::Arc;

use super::Schema;
use super::model::{Coder, Model, Series};
use crate::Timestamp;

#[derive(Clone)]
pub(super) struct State {
    pub(super) schema: Arc<Schema>,
    /// Batches since the key batch, modulo 256.
    pub(super) ordinal: u8,
    at: Option<Timestamp>,
    /// Between the last two rows, ms.
    interval: i64,
    model: Box<Model>,
    series: Box<[Series]>,
}

impl State {
    /// The state before a key batch's first row.
    pub(super) fn new(schema: Arc<Schema>) -> Self {
        let series = vec![Series::NEW; schema.len()].into_boxed_slice();
        Self { schema, ordinal: 0, at: None, interval: 0, model: Box::new(Model::new()), series }
    }

    /// How far `at` is from the time expected of the next row, which it then is.
    pub(super) fn tell(&mut self, at: Timestamp) -> i64 {
        let surprise = at.millis().wrapping_sub(self.expected());
        self.learn(surprise);
        surprise
    }

    /// The time of the next row.
    pub(super) fn learn(&mut self, surprise: i64) -> Timestamp {
        let at = Timestamp::from_millis(self.expected().wrapping_add(surprise));
        self.interval = self.at.map_or(0, |last| at.millis().wrapping_sub(last.millis()));
        self.at = Some(at);
        at
    }

    fn expected(&self) -> i64 {
        self.at.map_or(0, |last| last.millis().wrapping_add(self.interval))
    }

    /// Tells (`value` gives what to tell) or learns (`found` is given it) one row's values.
    #[inline(always)]
    pub(super) fn row(
        &mut self,
        coder: &mut impl Coder,
        value: impl Fn(usize) -> Option<i64>,
        mut found: impl FnMut(usize, Option<i64>),
    ) {
        for (kind, places, beside) in self.schema.columns() {
            let width = places.len();
            for index in places {
                let beside = beside && self.series[index - width].surprised();
                let series = &mut self.series[index];
                found(index, self.model.code(coder, kind, beside, series, value(index)));
            }
        }
    }

    /// Bytes on the heap, without the schema.
    pub(super) fn memory(&self) -> usize {
        size_of::<Model>() + size_of_val(&*self.series)
    }

    /// Time and values of the newest row.
    pub(super) fn latest(&self) -> Option<(Timestamp, impl ExactSizeIterator<Item = Option<i64>>)> {
        Some((self.at?, self.series.iter().map(Series::latest)))
    }
}
