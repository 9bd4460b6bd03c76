//! Telemetry batches one after the other into one decoder: each as long as its first byte says, in tens.

#![no_main]

use protocol::telemetry::Decoder;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut decoder = Decoder::default();
    let mut rest = bytes;
    while let Some((length, more)) = rest.split_first() {
        let (batch, more) = more.split_at(more.len().min(usize::from(*length) * 10));
        let _ = decoder.decode(batch, |schema, _, values| assert_eq!(schema.len(), values.len()));
        rest = more;
    }
});
