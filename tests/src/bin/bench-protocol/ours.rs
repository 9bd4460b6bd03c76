//! The telemetry codec of this project.

use std::sync::Arc;

use anyhow::Result;
use protocol::telemetry::{Decoder, Encoder, Row, Schema};

use super::{Codec, Decoded, real, scales};

pub(super) struct Ours {
    schema: Arc<Schema>,
    scales: Vec<f64>,
    encoder: Encoder,
    decoder: Decoder,
    row: Vec<Option<i64>>,
}

impl Ours {
    pub(super) fn new(schema: &Arc<Schema>) -> Self {
        let (encoder, decoder) = (Encoder::new(), Decoder::default());
        Self { schema: schema.clone(), scales: scales(schema), encoder, decoder, row: Vec::new() }
    }
}

impl Codec for Ours {
    fn name(&self) -> &'static str {
        "hyperfactory"
    }

    fn restart(&mut self, _: usize) -> Result<()> {
        (self.encoder, self.decoder) = (Encoder::new(), Decoder::default());
        Ok(())
    }

    fn encode(&mut self, rows: &[Row]) -> Result<Vec<u8>> {
        Ok(self.encoder.encode(&self.schema, rows, false).bytes)
    }

    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded> {
        let mut decoded = Decoded::default();
        self.decoder.decode_with(bytes, &mut self.row, |_, _, values| {
            decoded.samples += values.len();
            decoded.sum += values.iter().zip(&self.scales).map(|(value, scale)| real(*value, *scale)).sum::<f64>();
        })?;
        Ok(decoded)
    }
}

/// Memory per series of a decoder that has read a batch, without the schema, which decoders share.
pub(super) fn decoder_bytes(schema: &Arc<Schema>, samples: &[Row]) -> Result<f64> {
    let batch = Encoder::new().encode(schema, &samples[..1], true).bytes;
    let mut decoder = Decoder::default();
    decoder.decode(&batch, |_, _, _| ())?;
    Ok(decoder.memory() as f64 / schema.len() as f64)
}
