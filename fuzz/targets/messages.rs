//! Every message a peer may send; the first byte chooses which.

#![no_main]

use protocol::command::Action;
use protocol::frame::decode;
use protocol::message::{
    Acknowledge, BatchBody, EnrollReply, EnrollRequest, RecoverProof, RecoverReply, RecoverRequest, ToHub, ToNode, Upload,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 11 {
        0 => drop(decode::<EnrollRequest>(bytes)),
        1 => drop(decode::<EnrollReply>(bytes)),
        2 => drop(decode::<ToHub>(bytes)),
        3 => drop(decode::<ToNode>(bytes)),
        4 => drop(decode::<Upload>(bytes)),
        5 => drop(decode::<Acknowledge>(bytes)),
        6 => drop(decode::<RecoverRequest>(bytes)),
        7 => drop(decode::<RecoverReply>(bytes)),
        8 => drop(decode::<RecoverProof>(bytes)),
        9 => drop(Action::from_bytes(bytes)),
        _ => drop(decode::<BatchBody>(bytes)),
    }
});
