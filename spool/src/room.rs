//! The room a spool holds beside its segments: spare files kept allocated, and files set aside as unusable.

use std::path::PathBuf;

use crate::error::SpoolError;
use crate::file::{Directory, SpoolFile};
use crate::options::Options;

/// Most files kept for someone to look at; older ones are removed.
const MAX_QUARANTINED: usize = 4;

const SPARE: &str = ".free";
const QUARANTINE: &str = ".quarantine";

/// Spare and quarantined files.
#[derive(Debug, Default)]
pub(crate) struct Room {
    spares: Vec<String>,
    quarantined: Vec<(String, u64)>,
    created: u64,
}

impl Room {
    /// Takes up the spare and quarantined files among `names`. Spares are cleared again: a crash may have come between.
    pub(crate) fn open(directory: &Directory, options: &Options, names: &[String]) -> Result<Self, SpoolError> {
        let mut room = Self::default();
        for name in names.iter().filter(|name| name.ends_with(QUARANTINE)) {
            let bytes = std::fs::metadata(directory.path().join(name)).map_or(0, |metadata| metadata.len());
            room.quarantined.push((name.clone(), bytes));
        }
        for name in names.iter().filter(|name| name.ends_with(SPARE)) {
            let cleared = room.spares.len() < options.spares()
                && directory.open_file(name).is_ok_and(|file| file.clear(options.segment_bytes).is_ok());
            if cleared {
                room.spares.push(name.clone());
            } else {
                directory.remove(name)?;
            }
        }
        room.prune(directory)?;
        Ok(room)
    }

    /// Bytes of all these files.
    pub(crate) fn bytes(&self, options: &Options) -> u64 {
        let quarantined: u64 = self.quarantined.iter().map(|(_, bytes)| bytes).sum();
        quarantined + self.spares.len() as u64 * options.segment_bytes
    }

    /// Whether fewer spares are there than there should be.
    pub(crate) fn is_short(&self, options: &Options) -> bool {
        self.spares.len() < options.spares()
    }

    /// A cleared, allocated file and its name; `segments` are the bytes that segments take. `None` when the capacity
    /// is used up.
    pub(crate) fn take(
        &mut self,
        directory: &Directory,
        options: &Options,
        segments: u64,
    ) -> Result<Option<(String, SpoolFile)>, SpoolError> {
        while let Some(name) = self.spares.pop() {
            // One that cannot be opened any more is no room.
            if let Ok(file) = directory.open_file(&name) {
                return Ok(Some((name, file)));
            }
        }
        if !self.fits(directory, options, segments)? {
            return Ok(None);
        }
        if is_for_others(directory, options, segments) {
            return Ok(None);
        }
        self.allocate(directory, options).map(Some)
    }

    /// Allocates missing spares as far as the capacity and the disk allow; gives back whether none is missing for want
    /// of disk.
    pub(crate) fn top_up(&mut self, directory: &Directory, options: &Options, segments: u64) -> bool {
        while self.is_short(options) {
            let room = segments + self.bytes(options) + options.segment_bytes;
            if room > options.capacity_bytes || is_for_others(directory, options, segments) {
                return true;
            }
            match self.allocate(directory, options) {
                Ok((name, _)) => self.spares.push(name),
                Err(_) => return false,
            }
        }
        true
    }

    /// Keeps the room of a segment that is no longer needed as a spare, or gives it back when there are enough. The
    /// caller has made durable that it is not needed.
    pub(crate) fn recycle(&mut self, directory: &Directory, options: &Options, name: &str) -> Result<(), SpoolError> {
        if !self.is_short(options) {
            return directory.remove(name);
        }
        let spare = self.name();
        directory.rename(name, &spare)?;
        // Its records are gone for good only once their name is.
        directory.sync()?;
        let cleared = directory
            .open_file(&spare)
            .map_err(|source| SpoolError::Io { doing: "open", path: directory.path().join(&spare), source })
            .and_then(|file| file.clear(options.segment_bytes));
        if cleared.is_err() {
            return directory.remove(&spare);
        }
        self.spares.push(spare);
        Ok(())
    }

    /// Sets a file aside for someone to look at, and gives back its new path.
    pub(crate) fn quarantine(&mut self, directory: &Directory, name: &str) -> Result<PathBuf, SpoolError> {
        let free = |new: &String| !directory.path().join(new).exists();
        let new = (1u32..)
            .map(|copy| if copy == 1 { format!("{name}{QUARANTINE}") } else { format!("{name}.{copy}{QUARANTINE}") })
            .find(free)
            .unwrap_or_default();
        let path = directory.path().join(&new);
        let bytes = std::fs::metadata(directory.path().join(name)).map_or(0, |metadata| metadata.len());
        directory.rename(name, &new)?;
        self.quarantined.push((new, bytes));
        self.prune(directory)?;
        Ok(path)
    }

    /// Whether another segment fits the capacity, if need be in place of quarantined files.
    fn fits(&mut self, directory: &Directory, options: &Options, segments: u64) -> Result<bool, SpoolError> {
        while segments + self.bytes(options) + options.segment_bytes > options.capacity_bytes {
            if self.quarantined.is_empty() {
                return Ok(false);
            }
            let (oldest, _) = self.quarantined.remove(0);
            directory.remove(&oldest)?;
        }
        Ok(true)
    }

    fn allocate(&mut self, directory: &Directory, options: &Options) -> Result<(String, SpoolFile), SpoolError> {
        // Asking first spares a full disk from creating and removing a file with every try.
        if !directory.has_room(options.segment_bytes) {
            return Err(directory.full());
        }
        let name = self.name();
        let file = directory.create_file(&name, options.segment_bytes)?;
        Ok((name, file))
    }

    fn name(&mut self) -> String {
        loop {
            self.created += 1;
            let name = format!("spare-{}{SPARE}", self.created);
            if !self.spares.contains(&name) {
                return name;
            }
        }
    }

    fn prune(&mut self, directory: &Directory) -> Result<(), SpoolError> {
        while self.quarantined.len() > MAX_QUARANTINED {
            let (oldest, _) = self.quarantined.remove(0);
            directory.remove(&oldest)?;
        }
        Ok(())
    }
}

/// Whether what the disk has left is to be left to others, where segments take so many bytes already.
fn is_for_others(directory: &Directory, options: &Options, segments: u64) -> bool {
    let wanted = options.segment_bytes.saturating_add(options.leave_bytes);
    options.leave_bytes > 0 && segments >= options.reserve_bytes && !directory.has_room(wanted)
}
