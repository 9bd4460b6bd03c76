//! Telemetry: what a node measures, as series declared once and rows of integers in a fraction of a byte each.
//!
//! One format serves wire, spool and history; `telemetry.md`, beside the protobuf contract, describes it to the bit.
//!
//! A **key** batch carries the schema and decodes alone. A **delta** batch continues from the state that the batch
//! before it left behind in the encoder and in every decoder, so both must see every batch, once and in order.
//!
//! ```
//! use std::sync::Arc;
//! use hyperfactory_protocol::{Timestamp, metrics, telemetry::{Decoder, Encoder, Row, Schema}};
//!
//! let schema = Arc::new(Schema::new(vec![
//!     (metrics::CPU_BUSY.into(), vec!["".into()]),
//!     (metrics::NETWORK_SENT.into(), vec!["eth0".into(), "eth1".into()]),
//! ])?);
//! let row = Row { at: Timestamp::from_millis(1_790_000_000_000), values: vec![Some(2_500), Some(1 << 40), None] };
//! let mut encoder = Encoder::new();
//! let key = encoder.encode(&schema, std::slice::from_ref(&row), false);
//! assert!(key.key, "the first batch always is");
//!
//! let mut decoder = Decoder::default();
//! decoder.decode(&key.bytes, |_, at, values| {
//!     assert_eq!((at, values), (row.at, row.values.as_slice()));
//! })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod decode;
mod encode;
mod model;
mod range;
mod schema;
mod state;
mod varint;

use crate::Timestamp;

pub use decode::{CodecError, Decoder};
pub use encode::{Encoded, Encoder};
pub use schema::{Kind, Metric, Schema, SchemaError, Schemas, Unit};

/// Most series of one schema: 512 KiB of state in a decoder.
pub const MAX_SERIES: usize = 32 * 1024;
/// Most samples (rows × series) of one batch: some 13,000 rows of an ordinary node, tens of milliseconds of work.
pub const MAX_SAMPLES: usize = 4 * 1024 * 1024;
/// Most samples that one byte of a batch may stand for. An encoder pads a batch that is better than this with zeros,
/// so that a few hostile bytes can't claim much work or memory.
pub const MAX_SAMPLES_PER_BYTE: usize = 128;

/// What was measured at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// When.
    pub at: Timestamp,
    /// One value per series, in the schema's order; `None`: not measured. The real value is
    /// integer / 10^[`Metric::decimals`].
    pub values: Vec<Option<i64>>,
}
