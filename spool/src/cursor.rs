//! The cursor file: the ledger, in two slots, of which one is durable and whole whatever happens to the other. What is only
//! noted goes to the other one, again and again, until that is made durable.
//!
//! All numbers are little-endian. The file is two slots of 4096 bytes; the one with the higher generation counts.
//!
//! | offset | size | slot, version 1 |
//! |---|---|---|
//! | 0 | 4 | `HFSC` |
//! | 4 | 2 | version |
//! | 6 | 2 | count of lost ranges, at most 128 |
//! | 8 | 8 | generation, from 1 |
//! | 16 | 8 | epoch |
//! | 24 | 8 | acknowledged through |
//! | 32 | 8 | numbers below this are given out |
//! | 40 | 8 | first number of the newest segment, 0: none yet |
//! | 48 | 8 | numbers ever lost |
//! | 56 | 24 each | lost ranges: first, last, reason (1 overflow, 2 corrupt, 3 disk full, 4 expired, 5 superseded), 7 zeros |
//! | 4092 | 4 | CRC-32C of the bytes before |

use crate::error::SpoolError;
use crate::file::{Directory, SpoolFile, is_ours};
use crate::ledger::Ledger;
use crate::lost::{LostRanges, LostReason};
use crate::segment::MAX_NUMBER;

/// The file's name.
pub(crate) const NAME: &str = "cursor";

const MAGIC: [u8; 4] = *b"HFSC";
const VERSION: u16 = 1;
const SLOT: usize = 4096;
const RANGES: usize = 56;
const RANGE: usize = 24;
const CRC: usize = SLOT - 4;

const _: () = assert!(RANGES + LostRanges::MAX * RANGE <= CRC);

/// The open cursor file.
#[derive(Debug)]
pub(crate) struct Cursor {
    file: SpoolFile,
    /// Of the slot that is durable.
    generation: u64,
    failed: bool,
}

/// What the cursor file held.
#[derive(Debug)]
pub(crate) enum Found {
    /// There is no cursor file.
    Missing,
    /// Neither slot can be read.
    Unreadable,
    /// The ledger as it was last saved.
    Ledger(Cursor, Ledger),
}

impl Cursor {
    /// Bytes the file takes.
    pub(crate) const BYTES: u64 = 2 * SLOT as u64;

    /// Reads the cursor file of `directory`; nothing is written when it is only looked at.
    pub(crate) fn open(directory: &Directory, look: bool) -> Result<Found, SpoolError> {
        let file = match directory.open_file(NAME) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Missing),
            Err(source) if is_ours(&source) => {
                return Err(SpoolError::Directory { path: directory.path().to_owned(), source });
            }
            Err(_) => return Ok(Found::Unreadable),
        };
        let mut best: Option<(u64, Ledger)> = None;
        for slot in 0..2 {
            let mut bytes = [0; SLOT];
            // A slot that cannot be read is as good as one that is damaged.
            let Ok(SLOT) = file.read_at(&mut bytes, slot * SLOT as u64) else { continue };
            if let Some((generation, ledger)) = decode(&bytes)
                && best.as_ref().is_none_or(|(newest, _)| generation > *newest)
            {
                best = Some((generation, ledger));
            }
        }
        Ok(match best {
            Some((generation, ledger)) => {
                // The process before may have ended between the write and the sync. The next save overwrites the
                // other slot, so this one has to be durable first.
                let failed = !look && file.rewrite(Self::BYTES).is_err();
                Found::Ledger(Self { file, generation, failed }, ledger)
            }
            None => Found::Unreadable,
        })
    }

    /// Creates the cursor file with `ledger` in it; complete and durable, or not there.
    pub(crate) fn create(directory: &Directory, ledger: &Ledger) -> Result<Self, SpoolError> {
        let new = format!("{NAME}.new");
        let mut cursor = Self { file: directory.create_file(&new, Self::BYTES)?, generation: 0, failed: false };
        cursor.write(ledger)?;
        directory.rename(&new, NAME)?;
        directory.sync()?;
        Ok(cursor)
    }

    /// Makes `ledger` durable in `directory`. A failure leaves what was saved before.
    pub(crate) fn save(&mut self, directory: &Directory, ledger: &Ledger) -> Result<(), SpoolError> {
        if self.failed {
            *self = Self::create(directory, ledger)?;
            return Ok(());
        }
        let written = self.write(ledger);
        // A file that failed a sync is not asked again; the next save begins another.
        self.failed = written.is_err();
        written
    }

    /// Writes `ledger` without a sync: it outlives this process, and after a power cut what was saved before may count.
    pub(crate) fn note(&mut self, directory: &Directory, ledger: &Ledger) -> Result<(), SpoolError> {
        if self.failed {
            return self.save(directory, ledger);
        }
        let noted = self.put(ledger).map(drop);
        self.failed = noted.is_err();
        noted
    }

    fn write(&mut self, ledger: &Ledger) -> Result<(), SpoolError> {
        let generation = self.put(ledger)?;
        self.file.sync()?;
        self.generation = generation;
        Ok(())
    }

    /// Writes into the slot that is not the durable one; gives its generation.
    fn put(&self, ledger: &Ledger) -> Result<u64, SpoolError> {
        let generation = self.generation + 1;
        let slot = generation % 2 * SLOT as u64;
        self.file.write_at(&encode(ledger, generation), slot).map_err(|source| self.file.failed("write", source))?;
        Ok(generation)
    }
}

fn encode(ledger: &Ledger, generation: u64) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    let ranges = &ledger.lost.as_slice()[..ledger.lost.as_slice().len().min(LostRanges::MAX)];
    slot[..4].copy_from_slice(&MAGIC);
    slot[4..6].copy_from_slice(&VERSION.to_le_bytes());
    slot[6..8].copy_from_slice(&u16::try_from(ranges.len()).unwrap_or(u16::MAX).to_le_bytes());
    let numbers =
        [generation, ledger.epoch, ledger.acknowledged, ledger.next, ledger.newest_segment, ledger.lost_total];
    for (number, place) in numbers.iter().zip(slot[8..].chunks_exact_mut(8)) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    for (range, place) in ranges.iter().zip(slot[RANGES..CRC].chunks_exact_mut(RANGE)) {
        place[..8].copy_from_slice(&range.first.to_le_bytes());
        place[8..16].copy_from_slice(&range.last.to_le_bytes());
        place[16] = match range.reason {
            LostReason::Overflow => 1,
            LostReason::Corrupt => 2,
            LostReason::DiskFull => 3,
            LostReason::Expired => 4,
            LostReason::Superseded => 5,
        };
    }
    let crc = crc32c::crc32c(&slot[..CRC]);
    slot[CRC..].copy_from_slice(&crc.to_le_bytes());
    slot
}

/// Generation and ledger of a slot; `None` when it is damaged or says what cannot be.
fn decode(slot: &[u8; SLOT]) -> Option<(u64, Ledger)> {
    let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
    let crc = slot.last_chunk().map_or(0, |chunk| u32::from_le_bytes(*chunk));
    if slot[..4] != MAGIC || slot[4..6] != VERSION.to_le_bytes() || crc != crc32c::crc32c(&slot[..CRC]) {
        return None;
    }
    let count = usize::from(u16::from_le_bytes([slot[6], slot[7]]));
    let mut ledger = Ledger {
        epoch: word(&slot[16..]),
        acknowledged: word(&slot[24..]),
        next: word(&slot[32..]),
        newest_segment: word(&slot[40..]),
        lost_total: word(&slot[48..]),
        ..Ledger::default()
    };
    let known = 1..=MAX_NUMBER;
    if count > LostRanges::MAX
        || !known.contains(&ledger.next)
        || ledger.acknowledged >= ledger.next
        || ledger.newest_segment > MAX_NUMBER
    {
        return None;
    }
    for place in slot[RANGES..CRC].chunks_exact(RANGE).take(count) {
        let (first, last) = (word(place), word(&place[8..]));
        let reason = match place[16] {
            1 => LostReason::Overflow,
            2 => LostReason::Corrupt,
            3 => LostReason::DiskFull,
            4 => LostReason::Expired,
            5 => LostReason::Superseded,
            _ => return None,
        };
        if first > last || first <= ledger.acknowledged || last >= ledger.next {
            return None;
        }
        ledger.lost.add(first..=last, reason);
    }
    Some((word(&slot[8..]), ledger))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(0x1122_3344_5566_7788);
        ledger.next = 5000;
        ledger.newest_segment = 4000;
        ledger.acknowledge(100);
        ledger.lose(200, 300, LostReason::Overflow);
        ledger.lose(301, 301, LostReason::Corrupt);
        ledger.lose(400, 500, LostReason::DiskFull);
        ledger.lose(501, 501, LostReason::Expired);
        ledger.lose(502, 510, LostReason::Superseded);
        ledger
    }

    #[test]
    fn a_slot_round_trips() {
        assert_eq!(decode(&encode(&ledger(), 9)), Some((9, ledger())));
        assert_eq!(decode(&encode(&Ledger::new(3), 1)), Some((1, Ledger::new(3))));
    }

    #[test]
    fn the_format_is_these_bytes() {
        let slot = encode(&ledger(), 9);
        assert_eq!(slot[..16], *b"HFSC\x01\0\x05\0\x09\0\0\0\0\0\0\0");
        assert_eq!(slot[56..80], *b"\xc8\0\0\0\0\0\0\0\x2c\x01\0\0\0\0\0\0\x01\0\0\0\0\0\0\0");
        assert_eq!(crc32c::crc32c(&slot[..CRC]).to_le_bytes(), slot[CRC..]);
    }

    #[test]
    fn a_slot_with_any_bit_turned_is_refused() {
        let slot = encode(&ledger(), 9);
        for byte in 0..SLOT {
            let mut damaged = slot;
            damaged[byte] ^= 1 << (byte % 8);
            assert_eq!(decode(&damaged), None, "byte {byte}");
        }
    }

    #[test]
    fn the_slots_are_written_in_turn_and_the_newer_whole_one_counts() {
        let path = tempfile::tempdir().expect("a directory");
        let directory = Directory::open(path.path()).expect("opened");
        assert!(matches!(Cursor::open(&directory, false), Ok(Found::Missing)));
        let mut cursor = Cursor::create(&directory, &ledger()).expect("created");
        let mut newer = ledger();
        newer.acknowledge(250);
        cursor.save(&directory, &newer).expect("saved");
        assert!(matches!(Cursor::open(&directory, false), Ok(Found::Ledger(_, found)) if found == newer));

        let file = path.path().join(NAME);
        let bytes = std::fs::read(&file).expect("read");
        let newest = if decode(bytes[..SLOT].try_into().expect("a slot")).expect("whole").0 == 2 { 0 } else { SLOT };
        let mut damaged = bytes.clone();
        damaged[newest + 30] ^= 1;
        std::fs::write(&file, &damaged).expect("written");
        assert!(matches!(Cursor::open(&directory, false), Ok(Found::Ledger(_, found)) if found == ledger()));
        damaged[SLOT - newest + 30] ^= 1;
        std::fs::write(&file, &damaged).expect("written");
        assert!(matches!(Cursor::open(&directory, false), Ok(Found::Unreadable)));
        for length in [0, 1, SLOT - 1] {
            std::fs::write(&file, &bytes[..length]).expect("written");
            assert!(matches!(Cursor::open(&directory, false), Ok(Found::Unreadable)));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_with_a_good_checksum_never_panic(bytes in prop::collection::vec(any::<u8>(), 48 + 24 * 4), count in 0u16..200) {
            let mut slot = [0; SLOT];
            slot[..4].copy_from_slice(&MAGIC);
            slot[4..6].copy_from_slice(&VERSION.to_le_bytes());
            slot[6..8].copy_from_slice(&count.to_le_bytes());
            slot[8..8 + bytes.len()].copy_from_slice(&bytes);
            let crc = crc32c::crc32c(&slot[..CRC]);
            slot[CRC..].copy_from_slice(&crc.to_le_bytes());
            if let Some((_, ledger)) = decode(&slot) {
                prop_assert!(ledger.acknowledged < ledger.next && ledger.lost.last().is_none_or(|last| last < ledger.next));
            }
        }
    }
}
