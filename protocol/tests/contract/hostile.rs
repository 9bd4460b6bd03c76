//! Bytes of a hostile peer: every decoder answers with a value or an error, never with a panic, and no small message
//! makes it do much. The targets in `fuzz/` try the same for longer.

use std::sync::Arc;

use proptest::prelude::*;
use prost::Message;
use protocol::command::Action;
use protocol::frame::{self, Head};
use protocol::message::{
    Acknowledge, Batch, BatchBody, EnrollReply, EnrollRequest, Hello, SpoolRange, ToHub, ToNode, Upload, VersionRange,
    to_hub, to_node,
};
use protocol::session::{HubSession, NodeSession};
use protocol::telemetry::{CodecError, Decoder, Encoder, Row, Schema};
use protocol::{Timestamp, metrics, version};

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..300)
}

/// A key batch and the delta batch after it.
fn batches() -> [Vec<u8>; 2] {
    let metrics = vec![
        (metrics::CPU_BUSY.into(), vec!["".into()]),
        (metrics::NETWORK_SENT.into(), vec!["eth0".into(), "eth1".into()]),
    ];
    let schema = Arc::new(Schema::new(metrics).expect("good"));
    let row = |at: i64| Row { at: Timestamp::from_millis(at), values: vec![Some(at), Some(at << 30), None] };
    let mut encoder = Encoder::new();
    [vec![row(5), row(6)], vec![row(17), row(29), row(40)]].map(|rows| encoder.encode(&schema, &rows, false).bytes)
}

proptest! {
    #[test]
    fn any_frame_is_read_or_refused(bytes in bytes(), limit in 0..1_000usize) {
        if let Ok(Head::Frame { start, length }) = frame::head(&bytes, limit) {
            prop_assert!(start <= bytes.len() && length <= limit);
        }
    }

    #[test]
    fn any_message_is_read_or_refused(bytes in bytes()) {
        let _ = frame::decode::<EnrollRequest>(&bytes);
        let _ = frame::decode::<EnrollReply>(&bytes);
        let _ = frame::decode::<ToHub>(&bytes);
        let _ = frame::decode::<ToNode>(&bytes);
        let _ = frame::decode::<Upload>(&bytes);
        let _ = frame::decode::<Acknowledge>(&bytes);
        let _ = frame::decode::<BatchBody>(&bytes);
        if let Ok(action) = Action::from_bytes(&bytes) {
            prop_assert_eq!(Action::from_bytes(&action.to_bytes()), Ok(action));
        }
    }

    #[test]
    fn any_samples_are_read_or_refused(bytes in bytes(), format in 0..4u8) {
        let with_format: Vec<u8> = [&[format][..], &bytes].concat();
        let [key, _] = batches();
        for bytes in [&bytes, &with_format] {
            let _ = Decoder::default().decode(bytes, |schema, _, values| assert_eq!(schema.len(), values.len()));
            let mut decoder = Decoder::default();
            decoder.decode(&key, |_, _, _| ()).expect("good");
            let _ = decoder.decode(bytes, |schema, _, values| assert_eq!(schema.len(), values.len()));
        }
        let _ = Schema::from_bytes(&bytes);
    }

    /// Nearly right gets further than random: wrong bytes in good batches.
    #[test]
    fn any_damage_to_samples_is_read_or_refused(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(), more in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let [mut key, mut delta] = batches();
        let mut decoder = Decoder::default();
        decoder.decode(&key, |_, _, _| ()).expect("good");
        for bytes in [&mut key, &mut delta] {
            for (place, byte) in &damage {
                let place = place.index(bytes.len());
                bytes[place] = *byte;
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            bytes.extend(&more);
        }
        let _ = decoder.decode(&delta, |_, _, _| ());
        let _ = decoder.decode(&key, |_, _, _| ());
    }

    #[test]
    fn any_control_messages_leave_both_ends_standing(
        messages in prop::collection::vec((bytes(), any::<i64>()), 0..8), greeted in any::<bool>(),
    ) {
        let now = Timestamp::from_millis(1);
        let spool = SpoolRange { epoch: 1, first: 1, last: 0 };
        let (mut node, hello) = NodeSession::open(version::SPOKEN, Default::default(), 1, spool, &[], now);
        let mut hub = HubSession::open(version::SPOKEN, now);
        if greeted {
            hub.receive(hello, now).expect("good");
        }
        for (bytes, at) in messages {
            let now = Timestamp::from_millis(at);
            if let Ok(message) = frame::decode::<ToHub>(&bytes) {
                let _ = hub.receive(message, now);
            }
            if let Ok(message) = frame::decode::<ToNode>(&bytes) {
                let _ = node.receive(message, now);
            }
            let _ = (hub.tick(now), node.tick(now), hub.deadline(), node.deadline());
        }
    }
}

#[test]
fn extreme_numbers_in_control_messages_leave_both_ends_standing() {
    for millis in [i64::MIN, -1, 0, i64::MAX] {
        let now = Timestamp::from_millis(millis);
        for last in [0, 1, u64::MAX] {
            let spool = SpoolRange { epoch: 1, first: last, last };
            let versions = VersionRange { oldest: u32::MIN, newest: u32::MAX };
            let hello = Hello { versions: Some(versions), spool: Some(spool), sent_at_ms: millis, ..Hello::default() };
            let mut hub = HubSession::open(version::SPOKEN, now);
            let _ = hub.receive(to_hub::Message::Hello(hello).into(), now);
        }
        let spool = SpoolRange { epoch: 1, first: 1, last: 0 };
        let (mut node, _) = NodeSession::open(version::SPOKEN, Default::default(), 1, spool, &[], now);
        let welcome = protocol::message::Welcome {
            version: 1,
            session_id: vec![0; 16],
            received_at_ms: i64::MIN,
            sent_at_ms: i64::MAX,
            renew_at_ms: millis,
            ..Default::default()
        };
        assert!(node.receive(to_node::Message::Welcome(welcome).into(), now).is_ok());
    }
}

/// The head of a key batch with this schema, `rows` times of one byte each, and `padding` more.
fn key_batch(schema: &Schema, rows: usize, padding: usize) -> Vec<u8> {
    let mut bytes = vec![1];
    prost::encoding::encode_varint(schema.as_bytes().len() as u64, &mut bytes);
    bytes.extend(schema.as_bytes());
    prost::encoding::encode_varint(rows as u64, &mut bytes);
    bytes.resize(bytes.len() + rows + padding, 0);
    bytes
}

#[test]
fn few_bytes_cannot_claim_many_samples() {
    let targets: Vec<Box<str>> = (0..100).map(|number| number.to_string().into()).collect();
    let metrics = metrics::ALL.iter().map(|metric| ((*metric).into(), targets.clone())).collect();
    let schema = Schema::new(metrics).expect("good");
    let decode = |rows, padding| Decoder::default().decode(&key_batch(&schema, rows, padding), |_, _, _| ());
    assert_eq!(decode(1, 0), Ok(()), "what an honest node sends passes");
    assert!(matches!(decode(200, 0), Err(CodecError::TooLarge { .. })));
    assert!(matches!(decode(2_000, 1_000_000), Err(CodecError::TooLarge { samples: 6_000_000.., .. })));
}

#[test]
fn counts_beyond_the_bytes_are_refused() {
    let many = [0xff, 0xff, 0xff, 0xff, 0x0f];
    for bytes in [
        [&[1][..], &many].concat(),
        [&[1, 5][..], &many].concat(),
        [&[1, 6, 1][..], &many].concat(),
        [&[1, 2, 0, 0][..], &many].concat(),
    ] {
        assert_eq!(Decoder::default().decode(&bytes, |_, _, _| ()), Err(CodecError::Truncated), "{bytes:?}");
    }
    let overlong = [&[1][..], &[0xff; 10]].concat();
    assert_eq!(Decoder::default().decode(&overlong, |_, _, _| ()), Err(CodecError::Number));
}

#[test]
fn a_schema_that_unfolds_is_refused() {
    // One long name, and then thousands that share all of it: 3 bytes each on the wire, 1000 in memory.
    let mut bytes = vec![1, 0x90, 0x4e, 0, 0xe8, 0x07];
    bytes.extend([b'x'; 1_000]);
    for number in 0..9_999u32 {
        bytes.extend([0xe8, 0x07, 2, (number % 90) as u8 + 33, (number / 90) as u8 + 14]);
    }
    bytes.push(0);
    assert!(matches!(Schema::from_bytes(&bytes), Err(CodecError::Schema(_))));
}

#[test]
fn broken_schemas_are_refused() {
    let cases: [(&[u8], CodecError); 5] = [
        (&[1, 1, 1, 1, b'x', 0], CodecError::Prefix),
        (&[1, 1, 0, 1, 0xff, 0], CodecError::Text),
        (&[0, 1, 0, 1, b'm', 0, 0, 0, 0], CodecError::Group),
        (&[0, 0, 7], CodecError::Trailing),
        (&[], CodecError::Truncated),
    ];
    for (bytes, error) in cases {
        assert_eq!(Schema::from_bytes(bytes).expect_err("broken"), error, "{bytes:?}");
    }
    assert_eq!(Decoder::default().decode(&[9], |_, _, _| ()), Err(CodecError::Format(9)));
    assert_eq!(Decoder::default().decode(&[], |_, _, _| ()), Err(CodecError::Truncated));
}

#[test]
fn deep_nesting_is_refused() {
    // A message inside a message, for ever: prost stops at its recursion limit.
    let mut bytes = Batch::default().encode_to_vec();
    for _ in 0..300 {
        let mut outer = vec![0x0a];
        prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
        outer.extend(&bytes);
        bytes = outer;
    }
    let _ = frame::decode::<Upload>(&bytes);
    let _ = frame::decode::<BatchBody>(&bytes);
}
