//! Batches to rows.

use std::sync::Arc;

use super::encode::{DELTA, KEY};
use super::range::RangeDecoder;
use super::schema::{Schema, SchemaError, Schemas};
use super::state::State;
use super::varint::{self, Reader};
use super::{MAX_SAMPLES, MAX_SAMPLES_PER_BYTE};
use crate::Timestamp;

/// Reads the batches of one encoder. Holds 16 bytes per series and about 1 KiB, beside the schema, which it can
/// share.
#[derive(Clone, Default)]
pub struct Decoder {
    state: Option<State>,
    schemas: Option<Arc<Schemas>>,
}

impl Decoder {
    /// A decoder that shares equal schemas with the others of `schemas`.
    pub fn sharing(schemas: Arc<Schemas>) -> Self {
        Self { state: None, schemas: Some(schemas) }
    }

    /// Decodes a batch and gives each of its rows to `on_row`, oldest first.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are not the batch that follows; the next one must then be a key batch. Rows
    /// may have been given out before the error was found.
    pub fn decode(
        &mut self,
        bytes: &[u8],
        on_row: impl FnMut(&Schema, Timestamp, &[Option<i64>]),
    ) -> Result<(), CodecError> {
        self.decode_with(bytes, &mut Vec::new(), on_row)
    }

    /// Like [`Self::decode`], with the caller's memory for the row, so that it can serve many decoders.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_with(
        &mut self,
        bytes: &[u8],
        row: &mut Vec<Option<i64>>,
        mut on_row: impl FnMut(&Schema, Timestamp, &[Option<i64>]),
    ) -> Result<(), CodecError> {
        // On any error the state stays away: nothing may be decoded on top of half a batch.
        let previous = self.state.take();
        let mut reader = Reader(bytes);
        let (mut state, key) = match reader.byte()? {
            KEY => (State::new(self.declared(&mut reader, previous)?), true),
            DELTA => {
                let mut state = previous.ok_or(CodecError::NoKey)?;
                let (expected, found) = (state.ordinal.wrapping_add(1), reader.byte()?);
                if expected != found {
                    return Err(CodecError::OutOfOrder { expected, found });
                }
                state.ordinal = found;
                (state, false)
            }
            other => return Err(CodecError::Format(other)),
        };
        let rows = reader.count()?;
        let samples = state.schema.len().saturating_mul(rows.max(usize::from(key)));
        if samples > MAX_SAMPLES.min(bytes.len().saturating_mul(MAX_SAMPLES_PER_BYTE)) {
            return Err(CodecError::TooLarge { samples, bytes: bytes.len() });
        }
        let mut times = Reader(reader.0);
        for _ in 0..rows {
            reader.number()?;
        }
        let mut coder = RangeDecoder::new(reader.0);
        row.clear();
        row.resize(state.schema.len(), None);
        for _ in 0..rows {
            let at = state.learn(varint::unzigzag(times.number()?));
            state.row(&mut coder, |_| None, |index, value| row[index] = value);
            on_row(&state.schema, at, row);
        }
        self.state = Some(state);
        Ok(())
    }

    /// The schema of the last batch; `None` before the first and after an error.
    pub fn schema(&self) -> Option<&Arc<Schema>> {
        self.state.as_ref().map(|state| &state.schema)
    }

    /// The newest row's time and values; `None` before the first and after an error.
    pub fn latest(&self) -> Option<(Timestamp, impl ExactSizeIterator<Item = Option<i64>>)> {
        self.state.as_ref()?.latest()
    }

    /// Bytes of memory it holds, without the schema.
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.state.as_ref().map_or(0, State::memory)
    }

    fn declared(&self, reader: &mut Reader<'_>, previous: Option<State>) -> Result<Arc<Schema>, CodecError> {
        let length = reader.count()?;
        let bytes = reader.bytes(length)?;
        match (previous, &self.schemas) {
            (Some(state), _) if state.schema.as_bytes() == bytes => Ok(state.schema),
            (_, Some(schemas)) => schemas.from_bytes(bytes),
            (_, None) => Schema::from_bytes(bytes).map(Arc::new),
        }
    }
}

/// Bytes that are not the batch expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// It ends too early, or announces more than it holds.
    #[error("a telemetry batch is cut short")]
    Truncated,
    /// A number over 64 bits.
    #[error("a telemetry batch holds a number over 64 bits")]
    Number,
    /// Neither a key nor a delta batch.
    #[error("a telemetry batch is of the unknown format {0:#04x}; a newer version of this program may read it")]
    Format(u8),
    /// A delta batch without the batch before it.
    #[error("a telemetry delta batch came without a key batch before it; start at a key batch")]
    NoKey,
    /// Another batch's turn.
    #[error("telemetry batch {found} since the key batch came where {expected} was due (modulo 256)")]
    OutOfOrder {
        /// Number due, modulo 256.
        expected: u8,
        /// Number found.
        found: u8,
    },
    /// More samples than the limits or its size allow.
    #[error("a telemetry batch of {bytes} bytes claims {samples} samples, more than allowed")]
    TooLarge {
        /// Rows × series.
        samples: usize,
        /// Size of the batch.
        bytes: usize,
    },
    /// A name shares more with the one before than that is long.
    #[error("a telemetry schema shares more of a name than there is")]
    Prefix,
    /// A name is not UTF-8.
    #[error("a telemetry schema holds a name that is not UTF-8")]
    Text,
    /// A metric's targets are not declared.
    #[error("a telemetry schema refers to targets it does not declare")]
    Group,
    /// Bytes behind the end of the schema.
    #[error("a telemetry schema is followed by bytes that mean nothing")]
    Trailing,
    /// The schema breaks a rule.
    #[error("a telemetry schema can't be")]
    Schema(#[from] SchemaError),
}
