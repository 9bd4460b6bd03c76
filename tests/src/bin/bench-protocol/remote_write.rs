//! Prometheus remote-write 1.0: `WriteRequest` in one block of snappy. Field numbers are those of prompb.

use anyhow::Result;
use prost::Message;
use protocol::telemetry::{Row, Schema};

use super::{Codec, Decoded, real, scales};

/// Keeps one request and changes only times and values in it from batch to batch.
pub(super) struct RemoteWrite {
    request: WriteRequest,
    scales: Vec<f64>,
    plain: Vec<u8>,
    encoder: snap::raw::Encoder,
    decoder: snap::raw::Decoder,
}

impl RemoteWrite {
    pub(super) fn new(schema: &Schema) -> Self {
        let label = |name: &str, value: &str| Label { name: name.into(), value: value.into() };
        let series = schema.iter().map(|(metric, target)| {
            let mut labels = vec![label("__name__", &metric.name.replace('.', "_")), label("instance", "host-1")];
            if !target.is_empty() {
                labels.push(label("target", target));
            }
            TimeSeries { labels, samples: Vec::new() }
        });
        Self {
            request: WriteRequest { timeseries: series.collect() },
            scales: scales(schema),
            plain: Vec::new(),
            encoder: snap::raw::Encoder::new(),
            decoder: snap::raw::Decoder::new(),
        }
    }
}

impl Codec for RemoteWrite {
    fn name(&self) -> &'static str {
        "remote-write, snappy"
    }

    fn restart(&mut self, _: usize) -> Result<()> {
        Ok(())
    }

    fn encode(&mut self, rows: &[Row]) -> Result<Vec<u8>> {
        for (index, (series, scale)) in self.request.timeseries.iter_mut().zip(&self.scales).enumerate() {
            let sample = |row: &Row| Sample { value: real(row.values[index], *scale), timestamp: row.at.millis() };
            series.samples.clear();
            series.samples.extend(rows.iter().map(sample));
        }
        self.plain.clear();
        self.request.encode(&mut self.plain)?;
        Ok(self.encoder.compress_vec(&self.plain)?)
    }

    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded> {
        let request = WriteRequest::decode(&*self.decoder.decompress_vec(bytes)?)?;
        let mut decoded = Decoded::default();
        for series in &request.timeseries {
            decoded.samples += series.samples.len();
            decoded.sum += series.samples.iter().map(|sample| sample.value).sum::<f64>();
        }
        Ok(decoded)
    }
}

#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}
