//! OpenTelemetry's protocol, `ExportMetricsServiceRequest`, in zstd: each batch by itself, or all in one stream that is
//! flushed after each batch. Field numbers are those of opentelemetry-proto 1.x, `metrics.proto`.

use anyhow::{Result, ensure};
use prost::Message;
use protocol::telemetry::{Kind, Row, Schema, Unit};
use zstd::stream::raw::{Decoder, Encoder, InBuffer, Operation, OutBuffer};

use super::{Codec, Decoded, real, scales};

/// zstd's default.
const LEVEL: i32 = 3;

pub(super) enum Compression {
    Batch,
    Stream,
}

/// Keeps one request and changes only times and values in it from batch to batch.
pub(super) struct Otlp {
    declared: Request,
    request: Request,
    scales: Vec<f64>,
    compression: Compression,
    streams: Option<(Encoder<'static>, Decoder<'static>)>,
    plain: Vec<u8>,
}

impl Otlp {
    pub(super) fn new(schema: &Schema, compression: Compression) -> Self {
        let request = Request { resource_metrics: vec![declare(schema)] };
        let scales = scales(schema);
        Self { declared: request.clone(), request, scales, compression, streams: None, plain: Vec::new() }
    }
}

impl Codec for Otlp {
    fn name(&self) -> &'static str {
        match self.compression {
            Compression::Batch => "OTLP, zstd per batch",
            Compression::Stream => "OTLP, zstd stream",
        }
    }

    fn restart(&mut self, rows: usize) -> Result<()> {
        self.streams = Some((Encoder::new(LEVEL)?, Decoder::new()?));
        self.request = self.declared.clone();
        for points in self.request.resource_metrics.iter_mut().flat_map(ResourceMetrics::points) {
            *points = points.iter().flat_map(|point| std::iter::repeat_n(point.clone(), rows)).collect();
        }
        Ok(())
    }

    fn encode(&mut self, rows: &[Row]) -> Result<Vec<u8>> {
        let points = self.request.resource_metrics.iter_mut().flat_map(ResourceMetrics::points);
        let series = points.flat_map(|points| points.chunks_mut(rows.len()));
        for (index, (points, scale)) in series.zip(&self.scales).enumerate() {
            for (point, row) in points.iter_mut().zip(rows) {
                point.time_unix_nano = row.at.millis() as u64 * 1_000_000;
                let value = row.values[index].unwrap_or(0);
                point.value = Some(match *scale {
                    1.0 => Value::AsInt(value),
                    scale => Value::AsDouble(real(Some(value), scale)),
                });
            }
        }
        self.plain.clear();
        self.request.encode(&mut self.plain)?;
        match (&self.compression, &mut self.streams) {
            (Compression::Stream, Some((encoder, _))) => flush(encoder, &self.plain),
            _ => Ok(zstd::bulk::compress(&self.plain, LEVEL)?),
        }
    }

    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded> {
        self.plain.clear();
        match (&self.compression, &mut self.streams) {
            (Compression::Stream, Some((_, decoder))) => unfold(decoder, bytes, &mut self.plain)?,
            _ => self.plain = zstd::bulk::decompress(bytes, 16 << 20)?,
        }
        let mut request = Request::decode(&*self.plain)?;
        let mut decoded = Decoded::default();
        for points in request.resource_metrics.iter_mut().flat_map(ResourceMetrics::points) {
            decoded.samples += points.len();
            decoded.sum += points.iter().map(DataPoint::real).sum::<f64>();
        }
        Ok(decoded)
    }
}

/// Compresses `plain` so that everything of it is in the bytes given.
fn flush(encoder: &mut Encoder<'_>, plain: &[u8]) -> Result<Vec<u8>> {
    let mut out = vec![0; zstd::zstd_safe::compress_bound(plain.len()) + 64];
    let mut input = InBuffer::around(plain);
    let mut output = OutBuffer::around(&mut out[..]);
    while input.pos < plain.len() {
        encoder.run(&mut input, &mut output)?;
    }
    ensure!(encoder.flush(&mut output)? == 0, "zstd needs more room than it said");
    let length = output.pos();
    out.truncate(length);
    Ok(out)
}

fn unfold(decoder: &mut Decoder<'_>, bytes: &[u8], plain: &mut Vec<u8>) -> Result<()> {
    let mut input = InBuffer::around(bytes);
    let mut chunk = [0; 1 << 16];
    loop {
        let mut output = OutBuffer::around(&mut chunk[..]);
        decoder.run(&mut input, &mut output)?;
        let length = output.pos();
        plain.extend_from_slice(&chunk[..length]);
        if input.pos == bytes.len() && length < chunk.len() {
            return Ok(());
        }
    }
}

fn declare(schema: &Schema) -> ResourceMetrics {
    let attribute = |key: &str, value: &str| KeyValue {
        key: key.into(),
        value: Some(AnyValue { string_value: Some(value.into()) }),
    };
    let metrics = schema.metrics().map(|(metric, _, targets)| {
        let point = |target: &str| DataPoint {
            attributes: if target.is_empty() { Vec::new() } else { vec![attribute("target", target)] },
            ..DataPoint::default()
        };
        let series = targets.iter().map(|target| point(target)).collect();
        let (gauge, sum) = match metric.kind {
            Kind::Gauge => (Some(Gauge { data_points: series }), None),
            Kind::Counter => (None, Some(Sum { data_points: series, aggregation_temporality: 2, is_monotonic: true })),
        };
        Metric { name: metric.name.to_string(), unit: unit(metric.unit).into(), gauge, sum }
    });
    ResourceMetrics {
        resource: Some(Resource { attributes: vec![attribute("host.name", "host-1")] }),
        scope_metrics: vec![ScopeMetrics { metrics: metrics.collect() }],
    }
}

fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes => "By",
        Unit::Kibibytes => "KiBy",
        Unit::Milliseconds => "ms",
        Unit::Seconds => "s",
        _ => "1",
    }
}

impl ResourceMetrics {
    /// The points of each metric, in order.
    fn points(&mut self) -> impl Iterator<Item = &mut Vec<DataPoint>> {
        let metrics = self.scope_metrics.iter_mut().flat_map(|scope| &mut scope.metrics);
        metrics.filter_map(|metric| match (&mut metric.gauge, &mut metric.sum) {
            (Some(gauge), _) => Some(&mut gauge.data_points),
            (None, Some(sum)) => Some(&mut sum.data_points),
            (None, None) => None,
        })
    }
}

impl DataPoint {
    fn real(&self) -> f64 {
        match self.value {
            Some(Value::AsDouble(value)) => value,
            Some(Value::AsInt(value)) => value as f64,
            None => 0.0,
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_metrics: Vec<ResourceMetrics>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceMetrics {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_metrics: Vec<ScopeMetrics>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeMetrics {
    #[prost(message, repeated, tag = "2")]
    metrics: Vec<Metric>,
}

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    unit: String,
    #[prost(message, optional, tag = "5")]
    gauge: Option<Gauge>,
    #[prost(message, optional, tag = "7")]
    sum: Option<Sum>,
}

#[derive(Clone, PartialEq, Message)]
struct Gauge {
    #[prost(message, repeated, tag = "1")]
    data_points: Vec<DataPoint>,
}

#[derive(Clone, PartialEq, Message)]
struct Sum {
    #[prost(message, repeated, tag = "1")]
    data_points: Vec<DataPoint>,
    #[prost(int32, tag = "2")]
    aggregation_temporality: i32,
    #[prost(bool, tag = "3")]
    is_monotonic: bool,
}

#[derive(Clone, PartialEq, Message)]
struct DataPoint {
    #[prost(fixed64, tag = "2")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "3")]
    time_unix_nano: u64,
    #[prost(oneof = "Value", tags = "4, 6")]
    value: Option<Value>,
    #[prost(message, repeated, tag = "7")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, Copy, PartialEq, prost::Oneof)]
enum Value {
    #[prost(double, tag = "4")]
    AsDouble(f64),
    #[prost(sfixed64, tag = "6")]
    AsInt(i64),
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    string_value: Option<String>,
}
