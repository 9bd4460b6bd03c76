//! Length-delimited frames: an unsigned LEB128 length, then one protobuf message.

use prost::Message;

/// Largest frame of an enrollment stream: a request with an RSA-sized CSR fits many times over.
pub const MAX_ENROLL: usize = 16 * 1024;
/// Largest frame of a control stream.
pub const MAX_CONTROL: usize = 64 * 1024;
/// Largest frame of a telemetry stream: a key batch of some 20,000 series.
pub const MAX_TELEMETRY: usize = 1024 * 1024;
/// Largest frame of a stream of shipped logs: a batch that nothing could compress.
pub const MAX_SHIPMENT: usize = 136 * 1024;
/// Largest frame of a live log stream: some 16 KiB of lines, and one more of the longest.
pub const MAX_LOG: usize = 32 * 1024;

/// Most bytes a length may take.
const MAX_LENGTH_BYTES: usize = 4;

/// Appends `message` as one frame to `out`.
///
/// # Errors
/// [`FrameError::TooLarge`] when the encoded message is longer than `limit`; `out` is then unchanged.
pub fn encode<M: Message>(message: &M, limit: usize, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let length = message.encoded_len();
    if length > limit {
        return Err(FrameError::TooLarge { length, limit });
    }
    out.reserve(length + MAX_LENGTH_BYTES);
    prost::encoding::encode_varint(length as u64, out);
    message.encode_raw(out);
    Ok(())
}

/// What stands at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Head {
    /// The buffer ends within the length.
    Incomplete,
    /// A frame: its payload starts at `start` and is `length` bytes long (the buffer may not hold all of it yet).
    Frame {
        /// Offset of the payload.
        start: usize,
        /// Length of the payload in bytes.
        length: usize,
    },
}

/// Reads the length at the start of `buffer`.
///
/// # Errors
/// [`FrameError::TooLarge`] over `limit`, [`FrameError::BadLength`] when the length is not minimal LEB128 of at
/// most 4 bytes.
pub fn head(buffer: &[u8], limit: usize) -> Result<Head, FrameError> {
    let mut length = 0usize;
    for (index, byte) in buffer.iter().take(MAX_LENGTH_BYTES).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            if *byte == 0 && index > 0 {
                return Err(FrameError::BadLength);
            }
            if length > limit {
                return Err(FrameError::TooLarge { length, limit });
            }
            return Ok(Head::Frame { start: index + 1, length });
        }
    }
    if buffer.len() >= MAX_LENGTH_BYTES { Err(FrameError::BadLength) } else { Ok(Head::Incomplete) }
}

/// Decodes a frame's payload.
///
/// # Errors
/// [`FrameError::Malformed`] when it is not a message of this type.
pub fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, FrameError> {
    M::decode(payload).map_err(FrameError::Malformed)
}

/// A frame that breaks the contract.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than the stream allows.
    #[error("a frame of {length} bytes is over this stream's limit of {limit}")]
    TooLarge {
        /// Bytes announced.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The length is not a minimal LEB128 number of at most 4 bytes.
    #[error("a frame's length is malformed")]
    BadLength,
    /// The payload is not a message of the expected type.
    #[error("a frame's payload is not the expected message")]
    Malformed(#[source] prost::DecodeError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Acknowledge;

    #[test]
    fn a_frame_is_its_length_and_its_bytes() {
        let mut out = Vec::new();
        encode(&Acknowledge { epoch: 1, through: 300 }, MAX_TELEMETRY, &mut out).expect("fits");
        assert_eq!(out, [12, 0x09, 1, 0, 0, 0, 0, 0, 0, 0, 0x10, 0xac, 0x02]);
        assert_eq!(head(&out, MAX_TELEMETRY).expect("good"), Head::Frame { start: 1, length: 12 });
        assert_eq!(decode::<Acknowledge>(&out[1..]).expect("good").through, 300);
    }

    #[test]
    fn lengths_are_bounded_minimal_and_short() {
        assert!(matches!(head(&[], 10), Ok(Head::Incomplete)));
        assert!(matches!(head(&[0x80], 10), Ok(Head::Incomplete)));
        assert!(matches!(head(&[11], 10), Err(FrameError::TooLarge { length: 11, limit: 10 })));
        assert!(matches!(head(&[0x80, 0], 10), Err(FrameError::BadLength)));
        assert!(matches!(head(&[0xff; 5], usize::MAX), Err(FrameError::BadLength)));
    }
}
