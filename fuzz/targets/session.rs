//! Frames of both directions into both ends of a control stream.

#![no_main]

use protocol::frame::{self, Head, MAX_CONTROL};
use protocol::message::{SpoolRange, ToHub, ToNode};
use protocol::session::{HubOutput, HubSession, NodeSession};
use protocol::{SessionId, Timestamp, version};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let now = Timestamp::from_millis(1_790_000_000_000);
    let spool = SpoolRange { epoch: 1, first: 1, last: 0 };
    let (mut node, _) = NodeSession::open(version::SPOKEN, Default::default(), 1, spool, &[], now);
    let mut hub = HubSession::open(version::SPOKEN, now);
    let mut rest = bytes;
    while let Ok(Head::Frame { start, length }) = frame::head(rest, MAX_CONTROL) {
        let Some(payload) = rest.get(start..start + length) else { break };
        if let Ok(message) = frame::decode::<ToHub>(payload) {
            for output in hub.receive(message, now).unwrap_or_default() {
                if let HubOutput::Hello(_) = output {
                    hub.welcome(SessionId::new(now, [0; 10]), None, "fuzz", None, now);
                }
            }
        }
        if let Ok(message) = frame::decode::<ToNode>(payload) {
            let _ = node.receive(message, now);
        }
        rest = &rest[start + length..];
    }
});
