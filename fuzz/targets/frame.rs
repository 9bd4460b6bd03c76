//! A stream of frames, as a reader takes them apart.

#![no_main]

use protocol::frame::{self, Head, MAX_CONTROL};
use protocol::message::ToHub;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(Head::Frame { start, length }) = frame::head(rest, MAX_CONTROL) {
        let Some(payload) = rest.get(start..start + length) else { break };
        if let Ok(message) = frame::decode::<ToHub>(payload) {
            let mut again = Vec::new();
            frame::encode(&message, usize::MAX, &mut again).expect("no limit");
        }
        rest = &rest[start + length..];
    }
});
