//! Rows to batches.

use std::sync::Arc;

use super::range::RangeEncoder;
use super::state::State;
use super::{MAX_SAMPLES_PER_BYTE, Row, Schema, varint};
use crate::Timestamp;

/// First byte of a batch that decodes alone.
pub(super) const KEY: u8 = 0x01;
/// First byte of a batch that continues the one before it.
pub(super) const DELTA: u8 = 0x02;

/// Makes batches of rows; each continues the one before, unless it is a key batch.
///
/// When a batch is lost before anybody decoded it, ask for a key batch next.
#[derive(Clone, Default)]
pub struct Encoder {
    state: Option<State>,
}

/// One batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// It decodes alone.
    pub key: bool,
    /// The batch.
    pub bytes: Vec<u8>,
}

impl Encoder {
    /// An encoder whose first batch will be a key batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Encodes `rows`, oldest first, whose values stand in the order of `schema`; values a row lacks count as not
    /// measured. It will be a key batch when `key` says so, at the start, and whenever the schema changes.
    ///
    /// A decoder refuses more than [`super::MAX_SAMPLES`] in one batch: give long histories in several.
    pub fn encode(&mut self, schema: &Arc<Schema>, rows: &[Row], key: bool) -> Encoded {
        let mut bytes = Vec::with_capacity(16 + rows.len() * schema.len() / 2);
        let key = self.append(schema, rows.iter().map(|row| (row.at, &*row.values)), key, &mut bytes);
        Encoded { key, bytes }
    }

    /// Like [`Self::encode`], from borrowed rows to the end of `out`; says whether it is a key batch.
    pub fn append<'a>(
        &mut self,
        schema: &Arc<Schema>,
        rows: impl ExactSizeIterator<Item = (Timestamp, &'a [Option<i64>])> + Clone,
        key: bool,
        out: &mut Vec<u8>,
    ) -> bool {
        let start = out.len();
        let state = match self.state.take() {
            Some(mut state) if !key && (Arc::ptr_eq(&state.schema, schema) || state.schema == *schema) => {
                state.ordinal = state.ordinal.wrapping_add(1);
                out.extend([DELTA, state.ordinal]);
                state
            }
            _ => {
                out.push(KEY);
                varint::put(schema.as_bytes().len() as u64, out);
                out.extend(schema.as_bytes());
                State::new(schema.clone())
            }
        };
        let state = self.state.insert(state);
        let key = out[start] == KEY;
        varint::put(rows.len() as u64, out);
        for (at, _) in rows.clone() {
            varint::put(varint::zigzag(state.tell(at)), out);
        }
        let body = out.len();
        let samples = schema.len() * rows.len().max(usize::from(key));
        let mut coder = RangeEncoder::new(out);
        for (_, values) in rows {
            state.row(&mut coder, |index| values.get(index).copied().flatten(), |_, _| {});
        }
        coder.finish(body);
        out.resize(out.len().max(start + samples.div_ceil(MAX_SAMPLES_PER_BYTE)), 0);
        key
    }
}
