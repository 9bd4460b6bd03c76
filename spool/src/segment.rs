//! The segment file: its format, and how its records are written and checked.
//!
//! All numbers are little-endian. A segment is named after its first record's number, `00000000000000000042.seg`,
//! is allocated at its full size, and holds zeros where nothing was written yet.
//!
//! | offset | size | segment header, version 1 |
//! |---|---|---|
//! | 0 | 4 | `HFSG` |
//! | 4 | 2 | version |
//! | 6 | 2 | flags; bit 0: the first record is a key |
//! | 8 | 8 | epoch |
//! | 16 | 8 | number of the first record |
//! | 24 | 4 | size of the file, in pages of 4096 bytes |
//! | 28 | 4 | CRC-32C of the bytes before |
//!
//! Records follow each other, each at a multiple of 8.
//!
//! | offset | size | record |
//! |---|---|---|
//! | 0 | 4 | length of the body |
//! | 4 | 1 | flags; bit 0: a key |
//! | 5 | 3 | zero |
//! | 8 | 8 | number |
//! | 16 | 4 | CRC-32C of the body |
//! | 20 | 4 | CRC-32C of the bytes before, continued from the CRC-32C of epoch and first number |
//! | 24 | … | body, and zeros up to the next multiple of 8 |
//!
//! The header has a checksum of its own so that a damaged body still tells its number and length. The seed ties a
//! record to its segment: what a reused file held before does not pass. The segment header only repeats what the name
//! and the cursor know, so damage to it costs nothing.

/// Bytes of the segment header.
pub(crate) const HEADER: u64 = 32;
/// Bytes of a record's header.
pub(crate) const RECORD_HEADER: usize = 24;
/// Segments are whole pages.
pub(crate) const PAGE: u64 = 4096;
/// Records start at multiples of this.
pub(crate) const ALIGNMENT: u64 = 8;
/// Numbers above this are taken for damage: nobody gets there by counting.
pub(crate) const MAX_NUMBER: u64 = 1 << 62;

const MAGIC: [u8; 4] = *b"HFSG";
const VERSION: u16 = 1;
const FLAG_KEY: u8 = 1;
const EXTENSION: &str = ".seg";

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) epoch: u64,
    pub(crate) first: u64,
    pub(crate) starts_with_key: bool,
    /// Size of the file: a shorter one was cut.
    pub(crate) pages: u32,
}

/// What a record's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) sequence: u64,
    pub(crate) key: bool,
    /// Bytes of the body.
    pub(crate) length: u32,
    body_crc: u32,
}

/// Ties records to one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seed(u32);

/// The name of the segment that begins with the record `first`.
pub(crate) fn name(first: u64) -> String {
    format!("{first:020}{EXTENSION}")
}

/// The first record's number, from a segment's name.
pub(crate) fn first_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(EXTENSION)?;
    let plain = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|first| plain && (1..=MAX_NUMBER).contains(first))
}

/// Bytes that a record with a body of `length` bytes takes.
pub(crate) fn record_size(length: usize) -> u64 {
    (RECORD_HEADER as u64 + length as u64).next_multiple_of(ALIGNMENT)
}

impl SegmentHeader {
    pub(crate) fn to_bytes(self) -> [u8; HEADER as usize] {
        let mut bytes = [0; HEADER as usize];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&u16::from(self.starts_with_key).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.pages.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` when the bytes are not a segment header of this version.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER as usize] = bytes.first_chunk()?;
        let good = bytes[..4] == MAGIC
            && u16_at(bytes, 4) == VERSION
            && u32_at(bytes, 28) == crc32c::crc32c(&bytes[..28])
            && (1..=MAX_NUMBER).contains(&u64_at(bytes, 16));
        let starts_with_key = u16_at(bytes, 6) & 1 == 1;
        let (epoch, first, pages) = (u64_at(bytes, 8), u64_at(bytes, 16), u32_at(bytes, 24));
        good.then_some(Self { epoch, first, starts_with_key, pages })
    }
}

impl Seed {
    pub(crate) fn of(epoch: u64, first: u64) -> Self {
        Self(crc32c::crc32c_append(crc32c::crc32c(&epoch.to_le_bytes()), &first.to_le_bytes()))
    }
}

impl RecordHeader {
    /// `None` when the bytes are not the header of a record of the seed's segment.
    pub(crate) fn from_bytes(bytes: &[u8], seed: Seed) -> Option<Self> {
        let bytes: &[u8; RECORD_HEADER] = bytes.first_chunk()?;
        let good = bytes[5..8] == [0; 3]
            && (1..=MAX_NUMBER).contains(&u64_at(bytes, 8))
            && u32_at(bytes, 20) == crc32c::crc32c_append(seed.0, &bytes[..20]);
        good.then(|| Self {
            sequence: u64_at(bytes, 8),
            key: bytes[4] & FLAG_KEY != 0,
            length: u32_at(bytes, 0),
            body_crc: u32_at(bytes, 16),
        })
    }

    /// Whether this is the body the header was written for.
    pub(crate) fn matches(&self, body: &[u8]) -> bool {
        body.len() == self.length as usize && crc32c::crc32c(body) == self.body_crc
    }

    /// Bytes the record takes.
    pub(crate) fn size(&self) -> u64 {
        record_size(self.length as usize)
    }
}

/// Appends a record to `group`; it is not valid before [`stamp`].
pub(crate) fn push_record(group: &mut Vec<u8>, sequence: u64, key: bool, body: &[u8]) {
    let end = group.len() + usize::try_from(record_size(body.len())).unwrap_or(usize::MAX);
    group.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    group.extend_from_slice(&[if key { FLAG_KEY } else { 0 }, 0, 0, 0]);
    group.extend_from_slice(&sequence.to_le_bytes());
    group.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
    group.extend_from_slice(&[0; 4]);
    group.extend_from_slice(body);
    group.resize(end, 0);
}

/// Makes the records of `group` valid for one segment; a group that failed there can be stamped for another.
pub(crate) fn stamp(group: &mut [u8], seed: Seed) {
    let mut rest = group;
    while rest.len() >= RECORD_HEADER {
        let crc = crc32c::crc32c_append(seed.0, &rest[..20]);
        rest[20..24].copy_from_slice(&crc.to_le_bytes());
        let size = usize::try_from(record_size(u32_at(rest, 0) as usize)).unwrap_or(usize::MAX);
        let (_, after) = rest.split_at_mut(size.min(rest.len()));
        rest = after;
    }
}

/// A number of a fixed place; the caller's slice is long enough by its type or its check.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_format_is_these_bytes() {
        let header =
            SegmentHeader { epoch: 0x0102_0304_0506_0708, first: 42, starts_with_key: true, pages: 16 }.to_bytes();
        assert_eq!(
            header,
            [
                0x48, 0x46, 0x53, 0x47, 1, 0, 1, 0, 8, 7, 6, 5, 4, 3, 2, 1, 42, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0x54,
                0xb4, 0xc9, 0xdf
            ]
        );
        let mut group = Vec::new();
        push_record(&mut group, 42, true, b"body");
        stamp(&mut group, Seed::of(0x0102_0304_0506_0708, 42));
        assert_eq!(
            group,
            [
                4, 0, 0, 0, 1, 0, 0, 0, 42, 0, 0, 0, 0, 0, 0, 0, 80, 201, 63, 38, 5, 229, 92, 152, b'b', b'o', b'd',
                b'y', 0, 0, 0, 0
            ]
        );
        assert_eq!(name(42), "00000000000000000042.seg");
    }

    #[test]
    fn only_the_names_of_segments_are_segments() {
        assert_eq!(first_of(&name(42)), Some(42));
        for other in
            ["42.seg", "cursor", "0000000000000000004x.seg", "+0000000000000000042.seg", &name(0), &name(u64::MAX)]
        {
            assert_eq!(first_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_record_of_another_segment_does_not_pass() {
        let mut group = Vec::new();
        push_record(&mut group, 42, true, b"body");
        stamp(&mut group, Seed::of(1, 42));
        assert!(RecordHeader::from_bytes(&group, Seed::of(1, 42)).is_some());
        assert!(RecordHeader::from_bytes(&group, Seed::of(1, 41)).is_none());
        assert!(RecordHeader::from_bytes(&group, Seed::of(2, 42)).is_none());
    }

    proptest! {
        #[test]
        fn records_round_trip(records in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..50)), 0..10)) {
            let (mut group, seed) = (Vec::new(), Seed::of(7, 1));
            for (index, (key, body)) in records.iter().enumerate() {
                push_record(&mut group, index as u64 + 1, *key, body);
            }
            stamp(&mut group, Seed::of(8, 1));
            stamp(&mut group, seed);
            let mut at = 0;
            for (index, (key, body)) in records.iter().enumerate() {
                let header = RecordHeader::from_bytes(&group[at..], seed).expect("valid");
                prop_assert_eq!((header.sequence, header.key), (index as u64 + 1, *key));
                prop_assert!(header.matches(&group[at + RECORD_HEADER..at + RECORD_HEADER + body.len()]));
                at += header.size() as usize;
            }
            prop_assert_eq!(at, group.len());
        }

        #[test]
        fn arbitrary_bytes_are_no_header(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(SegmentHeader::from_bytes(&bytes), None);
            prop_assert_eq!(RecordHeader::from_bytes(&bytes, Seed::of(0, 1)), None);
        }
    }
}
