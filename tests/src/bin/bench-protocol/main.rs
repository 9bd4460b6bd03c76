//! `./bench protocol`: the telemetry codec beside OTLP with zstd and Prometheus remote-write with snappy.
//!
//! All encode and decode the same real samples, half an hour of a host with 30 services at a 10 s interval, batch by
//! batch, and give the same numbers out again. Time is processor time: the median of many passes over all of it.

#[path = "../../../../protocol/fixtures/host.rs"]
mod host;
mod otlp;
mod ours;
mod remote_write;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use hyperfactory_tests::report::{Report, Target};
use protocol::telemetry::{Row, Schema};
use rustix::time::{ClockId, clock_gettime};

#[derive(Parser)]
struct Options {
    /// Writes one row per figure to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Processor time spent on each figure of speed.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
}

/// Rows of a batch as an agent sends them; and at the least, when somebody is looking.
const ROWS: [usize; 2] = [4, 1];
/// Millions of samples per second that a core is to encode, and to decode.
const SPEED: f64 = 50.0;

/// A way to put rows into bytes. Batches go to `decode` in the order in which `encode` made them.
trait Codec {
    fn name(&self) -> &'static str;
    /// Starts over, as a new connection does; all batches will have `rows` rows.
    fn restart(&mut self, rows: usize) -> Result<()>;
    fn encode(&mut self, rows: &[Row]) -> Result<Vec<u8>>;
    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded>;
}

/// What came out of a batch: how many samples, and the sum of their real values, so that each was looked at.
#[derive(Clone, Copy, Default)]
struct Decoded {
    samples: usize,
    sum: f64,
}

/// What a codec came to.
struct Figures {
    bytes_per_sample: f64,
    /// Millions of samples per second.
    encode: f64,
    decode: f64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let spend = Duration::from_secs(options.seconds);
    let (schema, samples) = host::samples().context("protocol/fixtures/host.txt is not what it should be")?;

    let mut ours: Box<dyn Codec> = Box::new(ours::Ours::new(&schema));
    let mut peers: Vec<Box<dyn Codec>> = vec![
        Box::new(otlp::Otlp::new(&schema, otlp::Compression::Batch)),
        Box::new(otlp::Otlp::new(&schema, otlp::Compression::Stream)),
        Box::new(remote_write::RemoteWrite::new(&schema)),
    ];
    let mut report = Report::default();
    for (rows, size) in ROWS.into_iter().zip([0.6, 1.0]) {
        let ours = measure(&mut *ours, &schema, &samples, rows, spend)?;
        for peer in &mut peers {
            let theirs = measure(&mut **peer, &schema, &samples, rows, spend)?;
            let mut beside = |figure: &str, unit, ours, theirs, target| {
                let name = format!("{figure}, {rows} row{} a batch", if rows == 1 { "" } else { "s" });
                report.beside(&name, unit, ours, peer.name(), theirs, target);
            };
            let (less, more) = (Target::AtMost(size), Target::AtLeast(SPEED));
            beside("size", "B/sample", ours.bytes_per_sample, theirs.bytes_per_sample, less);
            beside("encode", "M samples/s", ours.encode, theirs.encode, more);
            beside("decode", "M samples/s", ours.decode, theirs.decode, more);
        }
    }
    report.figure("decoder, beside the schema", "B/series", ours::decoder_bytes(&schema, &samples)?, Target::Less);
    report.finish(options.json.as_deref())
}

fn measure(codec: &mut dyn Codec, schema: &Schema, samples: &[Row], rows: usize, spend: Duration) -> Result<Figures> {
    let samples = &samples[..samples.len() - samples.len() % rows];
    let count = samples.len() * schema.len();
    let encode = |codec: &mut dyn Codec| -> Result<Vec<Vec<u8>>> {
        codec.restart(rows)?;
        samples.chunks(rows).map(|rows| codec.encode(rows)).collect()
    };
    let decode = |codec: &mut dyn Codec, batches: &[Vec<u8>]| -> Result<Decoded> {
        codec.restart(rows)?;
        batches.iter().try_fold(Decoded::default(), |all, batch| {
            let batch = codec.decode(batch)?;
            Ok(Decoded { samples: all.samples + batch.samples, sum: all.sum + batch.sum })
        })
    };

    let batches = encode(codec)?;
    let (decoded, expected) = (decode(codec, &batches)?, sum(schema, samples));
    ensure!(decoded.samples == count, "{} gave {} of {count} samples", codec.name(), decoded.samples);
    ensure!((decoded.sum / expected - 1.0).abs() < 1e-9, "{} gave other values than it took", codec.name());

    // The first batch brings the declarations, once in a connection's life.
    let bytes: usize = batches.iter().skip(1).map(Vec::len).sum();
    let per_second = |pass: Duration| count as f64 / pass.as_secs_f64() / 1e6;
    Ok(Figures {
        bytes_per_sample: bytes as f64 / (count - rows * schema.len()) as f64,
        encode: per_second(median(spend, || encode(codec).map(drop))?),
        decode: per_second(median(spend, || decode(codec, &batches).map(drop))?),
    })
}

/// Median processor time of one pass.
fn median(spend: Duration, mut pass: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut passes = Vec::new();
    let mut spent = Duration::ZERO;
    while spent < spend || passes.len() < 3 {
        let start = processor_time()?;
        pass()?;
        let took = processor_time()?.saturating_sub(start);
        passes.push(took);
        spent += took;
    }
    passes.sort();
    Ok(passes[passes.len() / 2])
}

fn processor_time() -> Result<Duration> {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).context("reading the processor time")
}

fn sum(schema: &Schema, samples: &[Row]) -> f64 {
    let scales = scales(schema);
    samples.iter().flat_map(|row| row.values.iter().zip(&scales)).map(|(value, scale)| real(*value, *scale)).sum()
}

/// What one unit of each series' integers is worth.
fn scales(schema: &Schema) -> Vec<f64> {
    schema.iter().map(|(metric, _)| 0.1f64.powi(metric.decimals.into())).collect()
}

fn real(value: Option<i64>, scale: f64) -> f64 {
    value.unwrap_or(0) as f64 * scale
}
