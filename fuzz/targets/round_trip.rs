//! Any rows come back from the codec as they went in.

#![no_main]

use std::sync::Arc;

use protocol::telemetry::{Decoder, Encoder, Row, Schema};
use protocol::{Timestamp, metrics};

const SERIES: usize = 4;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let schema = Arc::new(
        Schema::new(vec![
            (metrics::MEMORY_USED.into(), vec!["".into()]),
            (metrics::NETWORK_RECEIVED.into(), vec!["eth0".into()]),
            (metrics::NETWORK_SENT.into(), vec!["eth0".into()]),
            (metrics::UPTIME.into(), vec!["".into()]),
        ])
        .expect("good"),
    );
    let mut words = bytes.chunks_exact(9).map(|word| {
        let value = i64::from_le_bytes(word[1..].try_into().expect("8 bytes"));
        // Small numbers are the common ones; the first byte shifts them into place.
        (word[0] & 0x80 == 0).then_some(value >> (word[0] & 0x3f))
    });
    let mut rows = Vec::new();
    while let Some(at) = words.next() {
        let values: Vec<_> = words.by_ref().take(SERIES).collect();
        rows.push(Row { at: Timestamp::from_millis(at.unwrap_or(0)), values });
    }
    for row in &mut rows {
        row.values.resize(SERIES, None);
    }
    let mut encoder = Encoder::new();
    let mut decoder = Decoder::default();
    let mut read = Vec::new();
    for rows in rows.chunks(3) {
        let batch = encoder.encode(&schema, rows, false).bytes;
        decoder.decode(&batch, |_, at, values| read.push(Row { at, values: values.to_vec() })).expect("its own");
    }
    assert_eq!(read, rows);
});
