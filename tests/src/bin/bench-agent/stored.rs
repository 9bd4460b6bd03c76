//! What the hub has stored, decoded: how many samples, in how many bytes.

use std::collections::HashMap;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use prost::Message;
use protocol::message::BatchBody;
use protocol::telemetry::Decoder;
use store::{Database, sqlx};

/// A body's stream, its number there, when the hub received it, and itself.
type Body = (i64, i64, i64, Vec<u8>);

/// Counted over the batches that a hub's embedded database received from one moment on: what a node does at its start,
/// such as naming its series, is not what it does for the rest of the year.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// Measured values.
    pub(crate) samples: u64,
    /// The codec's output for them.
    pub(crate) bytes: u64,
    /// The most series that one row had.
    pub(crate) series: usize,
}

impl Stored {
    /// Reads the database beside the hub that writes it; `since` is when to begin to count.
    pub(crate) fn read(state_dir: &Path, since: SystemTime) -> Result<Self> {
        let since = since.duration_since(SystemTime::UNIX_EPOCH)?.as_millis() as i64;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let database = Database::open(&format!("sqlite://{}", state_dir.join("hub.db").display())).await?;
            let chunks: Vec<Body> = sqlx::query_as("SELECT stream, first_sequence, received_at, bodies FROM chunks")
                .fetch_all(database.reader())
                .await?;
            let mut bodies: Vec<Body> = sqlx::query_as("SELECT stream, sequence, received_at, body FROM batches")
                .fetch_all(database.reader())
                .await?;
            database.close().await;
            for (stream, first, at, chunk) in chunks {
                let split = split(&chunk)?.into_iter().zip(first..);
                bodies.extend(split.map(|(body, sequence)| (stream, sequence, at, body)));
            }
            Self::count(bodies, since)
        })
    }

    fn count(mut bodies: Vec<Body>, since: i64) -> Result<Self> {
        bodies.sort_by_key(|(stream, sequence, _, _)| (*stream, *sequence));
        let mut stored = Self::default();
        let mut decoders: HashMap<i64, Decoder> = HashMap::new();
        for (stream, sequence, at, body) in bodies {
            let samples = BatchBody::decode(body.as_slice()).context("reading a stored batch")?.samples;
            if samples.is_empty() {
                continue;
            }
            let counts = at >= since;
            if counts {
                stored.bytes += samples.len() as u64;
            }
            let decoder = decoders.entry(stream).or_default();
            let decoded = decoder.decode(&samples, |schema, _, values| {
                if counts {
                    stored.samples += values.iter().flatten().count() as u64;
                }
                stored.series = stored.series.max(schema.len());
            });
            decoded.with_context(|| format!("decoding batch {sequence}"))?;
        }
        Ok(stored)
    }
}

/// Bodies, each after its length as a LEB128 varint.
fn split(mut chunk: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut bodies = Vec::new();
    while !chunk.is_empty() {
        let length = prost::decode_length_delimiter(&mut chunk)?;
        let Some((body, rest)) = chunk.split_at_checked(length) else { bail!("a stored chunk is cut short") };
        bodies.push(body.to_vec());
        chunk = rest;
    }
    Ok(bodies)
}
