//! What the hub has stored, decoded: how many samples, in how many bytes.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use prost::Message;
use protocol::message::BatchBody;
use protocol::telemetry::Decoder;
use store::{Database, sqlx};

/// Counted over all batches in a hub's embedded database.
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
    /// Reads the database beside the hub that writes it.
    pub(crate) fn read(state_dir: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let database = Database::open(&format!("sqlite://{}", state_dir.join("hub.db").display())).await?;
            let chunks: Vec<(i64, i64, Vec<u8>)> = sqlx::query_as("SELECT stream, first_sequence, bodies FROM chunks")
                .fetch_all(database.reader())
                .await?;
            let batches: Vec<(i64, i64, Vec<u8>)> =
                sqlx::query_as("SELECT stream, sequence, body FROM batches").fetch_all(database.reader()).await?;
            database.close().await;
            let mut bodies: Vec<(i64, i64, Vec<u8>)> = batches;
            for (stream, first, chunk) in chunks {
                bodies.extend(split(&chunk)?.into_iter().zip(first..).map(|(body, sequence)| (stream, sequence, body)));
            }
            Self::count(bodies)
        })
    }

    fn count(mut bodies: Vec<(i64, i64, Vec<u8>)>) -> Result<Self> {
        bodies.sort_by_key(|(stream, sequence, _)| (*stream, *sequence));
        let mut stored = Self::default();
        let mut decoders: HashMap<i64, Decoder> = HashMap::new();
        for (stream, sequence, body) in bodies {
            let samples = BatchBody::decode(body.as_slice()).context("reading a stored batch")?.samples;
            if samples.is_empty() {
                continue;
            }
            stored.bytes += samples.len() as u64;
            let decoder = decoders.entry(stream).or_default();
            let decoded = decoder.decode(&samples, |schema, _, values| {
                stored.samples += values.iter().flatten().count() as u64;
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
