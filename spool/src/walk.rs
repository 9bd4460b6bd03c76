//! Walks the records of one segment file with a small window, and finds the way again after damage.

use std::io;

use crate::file::SpoolFile;
use crate::segment::{ALIGNMENT, HEADER, RECORD_HEADER, RecordHeader, Seed};

/// Bytes read at once. A longer record makes the window longer for as long as it is looked at.
const WINDOW: usize = 16 << 10;
/// What a disk gives or refuses as one.
const PAGE: u64 = 4096;

/// A position in a segment file.
#[derive(Debug)]
pub(crate) struct Walk {
    file: SpoolFile,
    seed: Seed,
    /// Where the next record is expected.
    offset: u64,
    /// Nothing is read from here on.
    end: u64,
    window: Vec<u8>,
    window_at: u64,
    read_bytes: u64,
}

/// A record whose checksums are right; its body is at [`Walk::body`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) header: RecordHeader,
    pub(crate) offset: u64,
}

impl Place {
    /// Where the record ends and the next may begin.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.header.size()
    }
}

impl Walk {
    /// Begins at the first record; reads nothing from `end` on.
    pub(crate) fn new(file: SpoolFile, seed: Seed, end: u64) -> Self {
        Self { file, seed, offset: HEADER, end, window: Vec::new(), window_at: 0, read_bytes: 0 }
    }

    /// Where the next record is expected.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes read from the file so far.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Goes back to a record that was found.
    pub(crate) fn back_to(&mut self, place: Place) {
        self.offset = place.offset;
    }

    /// The segment has grown: reads up to `end` now.
    pub(crate) fn extend(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// The record at the position, and moves behind it; `None` when there is none that is whole.
    pub(crate) fn next(&mut self) -> io::Result<Option<Place>> {
        let found = self.record_at(self.offset)?;
        if let Some(place) = found {
            self.offset = place.end();
        }
        Ok(found)
    }

    /// The next whole record after damage at the position, with a number of at least `lowest`, and moves behind it.
    pub(crate) fn resync(&mut self, lowest: u64) -> io::Result<Option<Place>> {
        let mut offset = self.offset;
        while offset + (RECORD_HEADER as u64) <= self.end {
            if let Some(place) = self.record_at(offset)?.filter(|place| place.header.sequence >= lowest) {
                self.offset = place.end();
                return Ok(Some(place));
            }
            offset += ALIGNMENT;
        }
        Ok(None)
    }

    /// The next record header from `offset` on whose own checksum is right, whatever its body, with a number of at
    /// least `lowest`.
    pub(crate) fn header_from(&mut self, mut offset: u64, lowest: u64) -> io::Result<Option<Place>> {
        while offset + (RECORD_HEADER as u64) <= self.end {
            let seed = self.seed;
            let header = RecordHeader::from_bytes(self.bytes(offset, RECORD_HEADER)?, seed);
            if let Some(header) = header.filter(|header| header.sequence >= lowest) {
                return Ok(Some(Place { header, offset }));
            }
            offset += ALIGNMENT;
        }
        Ok(None)
    }

    /// The end of the last byte from `offset` on that is not zero, or `None` when all are.
    pub(crate) fn written_after(&mut self, mut offset: u64) -> io::Result<Option<u64>> {
        let mut last = None;
        while offset < self.end {
            let bytes = self.bytes(offset, WINDOW)?;
            let (length, found) = (bytes.len() as u64, bytes.iter().rposition(|byte| *byte != 0));
            last = found.map(|at| offset + at as u64 + 1).or(last);
            if length == 0 {
                break;
            }
            offset += length;
        }
        Ok(last)
    }

    /// The body of a record that was found.
    pub(crate) fn body(&mut self, place: Place) -> io::Result<&[u8]> {
        self.bytes(place.offset + RECORD_HEADER as u64, place.header.length as usize)
    }

    /// The open file.
    pub(crate) fn into_file(self) -> SpoolFile {
        self.file
    }

    fn record_at(&mut self, offset: u64) -> io::Result<Option<Place>> {
        let seed = self.seed;
        let Some(header) = RecordHeader::from_bytes(self.bytes(offset, RECORD_HEADER)?, seed) else {
            return Ok(None);
        };
        let place = Place { header, offset };
        Ok(header.matches(self.body(place)?).then_some(place))
    }

    /// Up to `length` bytes from `offset` on; fewer only at the end.
    fn bytes(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        let length = usize::try_from(self.end.saturating_sub(offset)).map_or(length, |left| left.min(length));
        let inside = offset >= self.window_at && offset + length as u64 <= self.window_at + self.window.len() as u64;
        if !inside {
            self.fill(offset, length)?;
        }
        let start = usize::try_from(offset - self.window_at).unwrap_or(usize::MAX);
        let window = self.window.get(start..).unwrap_or_default();
        Ok(&window[..length.min(window.len())])
    }

    fn fill(&mut self, offset: u64, length: usize) -> io::Result<()> {
        let left = usize::try_from(self.end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = length.max(WINDOW).min(left);
        if self.window.capacity() > WINDOW && wanted <= WINDOW {
            self.window = Vec::new();
        }
        self.window.resize(wanted, 0);
        self.window_at = offset;
        let read = match self.file.read_at(&mut self.window, offset) {
            Ok(read) => read,
            Err(error) => self.salvage(offset, error)?,
        };
        self.window.truncate(read);
        self.read_bytes += read as u64;
        Ok(())
    }

    /// Reads page by page what can be read. A page that cannot is damage like any other, as long as the disk still
    /// gives the file's beginning; when not even that is there, the trouble is larger than a page.
    fn salvage(&mut self, offset: u64, error: io::Error) -> io::Result<usize> {
        self.window.fill(0);
        if self.file.read_at(&mut [0; HEADER as usize], 0).is_err() {
            self.window.clear();
            return Err(error);
        }
        let mut at = 0;
        while at < self.window.len() {
            let page_end = (offset + at as u64 + 1).next_multiple_of(PAGE);
            let until = usize::try_from(page_end - offset).map_or(self.window.len(), |end| end.min(self.window.len()));
            if self.file.read_at(&mut self.window[at..until], offset + at as u64).is_err() {
                self.window[at..until].fill(0);
            }
            at = until;
        }
        Ok(self.window.len())
    }
}
