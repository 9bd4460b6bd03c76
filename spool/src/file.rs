//! The few things the spool asks of a file system, each with the error of the spool.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

use crate::error::SpoolError;
#[cfg(test)]
use crate::rehearsal as hook;

/// Written where a file system cannot zero a range by itself.
static ZEROS: [u8; 16 << 10] = [0; 16 << 10];

/// The spool's directory, held by this process alone.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    handle: File,
    lock: File,
}

/// An open file of the spool.
#[derive(Debug)]
pub(crate) struct SpoolFile {
    path: PathBuf,
    file: Arc<File>,
}

impl Directory {
    /// Creates the directory when it is not there, and takes it for this process.
    pub(crate) fn open(path: &Path) -> Result<Self, SpoolError> {
        let refused = |source: io::Error| match is_full(&source) {
            true => SpoolError::NoSpace { path: path.to_owned() },
            false => SpoolError::Directory { path: path.to_owned(), source },
        };
        std::fs::create_dir_all(path).map_err(refused)?;
        let handle = File::open(path).map_err(refused)?;
        let lock = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(lock).map_err(refused)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), handle, lock }),
            Err(Errno::WOULDBLOCK) => Err(SpoolError::Busy { path: path.to_owned() }),
            Err(errno) => Err(refused(errno.into())),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the files in it, sorted.
    pub(crate) fn names(&self) -> Result<Vec<String>, SpoolError> {
        let list = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(&self.path)? {
                names.extend(entry?.file_name().into_string());
            }
            names.sort_unstable();
            Ok(names)
        };
        list().map_err(|source| SpoolError::Io { doing: "list", path: self.path.clone(), source })
    }

    /// Opens an existing file to read and write.
    pub(crate) fn open_file(&self, name: &str) -> io::Result<SpoolFile> {
        let path = self.path.join(name);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
        }
        Ok(SpoolFile { path, file: Arc::new(file) })
    }

    /// Creates a file of `bytes` zeros that are allocated, where the file system can, and durable. The name is not
    /// durable before [`Self::sync`].
    pub(crate) fn create_file(&self, name: &str, bytes: u64) -> Result<SpoolFile, SpoolError> {
        let path = self.path.join(name);
        let create = || -> io::Result<SpoolFile> {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
            #[cfg(test)]
            hook::created(&self.path, &file);
            let file = SpoolFile { path: path.clone(), file: Arc::new(file) };
            file.allocate(bytes)?;
            file.file.set_len(bytes)?;
            file.sync_raw()?;
            Ok(file)
        };
        create().map_err(|source| {
            let _ = self.remove(name);
            self.failed("allocate", name, source)
        })
    }

    /// Renames; durable after [`Self::sync`].
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), SpoolError> {
        std::fs::rename(self.path.join(from), self.path.join(to))
            .map_err(|source| self.failed("rename", from, source))?;
        #[cfg(test)]
        hook::renamed(&self.path);
        Ok(())
    }

    /// Removes; durable after [`Self::sync`].
    pub(crate) fn remove(&self, name: &str) -> Result<(), SpoolError> {
        #[cfg(test)]
        hook::removing(&self.path.join(name));
        let path = self.path.join(name);
        let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        removed.map_err(|source| self.failed("remove", name, source))?;
        #[cfg(test)]
        hook::renamed(&self.path);
        Ok(())
    }

    /// Makes creations, renames and removals durable.
    pub(crate) fn sync(&self) -> Result<(), SpoolError> {
        let path = || self.path.clone();
        self.handle.sync_all().map_err(|source| SpoolError::Io { doing: "sync", path: path(), source })?;
        #[cfg(test)]
        hook::directory_synced(&self.path);
        Ok(())
    }

    /// Whether the file system says it has room for `bytes` more; `true` when it does not say.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        rustix::fs::fstatvfs(&self.handle).map_or(true, |stat| stat.f_bavail.saturating_mul(stat.f_frsize) >= bytes)
    }

    pub(crate) fn full(&self) -> SpoolError {
        SpoolError::NoSpace { path: self.path.clone() }
    }

    fn failed(&self, doing: &'static str, name: &str, source: io::Error) -> SpoolError {
        if is_full(&source) { self.full() } else { SpoolError::Io { doing, path: self.path.join(name), source } }
    }
}

impl Drop for Directory {
    /// A child process that was forked and has not begun its program yet has the lock file open too; closing ours
    /// would not release it.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

impl SpoolFile {
    /// The same open file.
    pub(crate) fn share(&self) -> Self {
        Self { path: self.path.clone(), file: Arc::clone(&self.file) }
    }

    pub(crate) fn length(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.len())
    }

    /// Fills `buffer` from `offset` on; fewer bytes only at the end of the file.
    pub(crate) fn read_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while !buffer.is_empty() {
            match self.file.read_at(buffer, offset) {
                Ok(0) => break,
                Ok(read) => {
                    filled += read;
                    offset += read as u64;
                    buffer = &mut buffer[read..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        hook::writing(&self.file, offset, bytes.len());
        self.file.write_all_at(bytes, offset)
    }

    /// Makes what was written durable. After a failure nothing is known about it, and asking again would not help:
    /// the kernel reports a failed write once and then forgets it.
    pub(crate) fn sync(&self) -> Result<(), SpoolError> {
        self.sync_raw().map_err(|source| self.failed("sync", source))
    }

    /// Writes again what is in the file until `until`, and makes it durable. After a failed sync the kernel may hold
    /// bytes for written that are not; those it writes only when they change.
    pub(crate) fn rewrite(&self, until: u64) -> Result<(), SpoolError> {
        let rewrite = || {
            let (mut chunk, mut offset) = (vec![0; ZEROS.len()], 0);
            while offset < until {
                let wanted = usize::try_from(until - offset).map_or(chunk.len(), |left| left.min(chunk.len()));
                let read = self.read_at(&mut chunk[..wanted], offset)?;
                if read == 0 {
                    break;
                }
                self.write_at(&chunk[..read], offset)?;
                offset += read as u64;
            }
            self.sync_raw()
        };
        rewrite().map_err(|source| self.failed("sync", source))
    }

    /// Overwrites everything with zeros, keeping the room allocated, and makes it `bytes` long.
    pub(crate) fn clear(&self, bytes: u64) -> Result<(), SpoolError> {
        self.clear_raw(bytes).map_err(|source| self.failed("clear", source))
    }

    /// Puts zeros where nothing should be, from `from` until `until`, and makes the file at least `bytes` long.
    pub(crate) fn blank(&self, from: u64, until: u64, bytes: u64) -> Result<(), SpoolError> {
        let blank = || {
            self.write_zeros(from, until)?;
            if self.length()? < bytes {
                self.file.set_len(bytes)?;
            }
            self.sync_raw()
        };
        blank().map_err(|source| self.failed("clear", source))
    }

    fn write_zeros(&self, mut from: u64, until: u64) -> io::Result<()> {
        while from < until {
            let chunk = usize::try_from(until - from).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            self.write_at(&ZEROS[..chunk], from)?;
            from += chunk as u64;
        }
        Ok(())
    }

    fn clear_raw(&self, bytes: u64) -> io::Result<()> {
        #[cfg(test)]
        hook::writing(&self.file, 0, usize::try_from(bytes).unwrap_or(usize::MAX));
        match rustix::fs::fallocate(&*self.file, FallocateFlags::ZERO_RANGE, 0, bytes) {
            Ok(()) => {}
            Err(errno) if is_unsupported(errno) => {
                self.allocate(bytes)?;
                self.write_zeros(0, bytes)?;
            }
            Err(errno) => return Err(errno.into()),
        }
        self.file.set_len(bytes)?;
        self.sync_raw()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&*self.file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(()),
            Err(errno) if is_unsupported(errno) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn sync_raw(&self) -> io::Result<()> {
        #[cfg(test)]
        hook::before_sync(&self.file)?;
        self.file.sync_data()?;
        #[cfg(test)]
        hook::synced(&self.file);
        Ok(())
    }

    pub(crate) fn failed(&self, doing: &'static str, source: io::Error) -> SpoolError {
        if is_full(&source) {
            let directory = self.path.parent().unwrap_or(&self.path);
            return SpoolError::NoSpace { path: directory.to_owned() };
        }
        SpoolError::Io { doing, path: self.path.clone(), source }
    }
}

/// Whether the error is about this process, not about a file: it may be gone after a restart or a `chown`.
pub(crate) fn is_ours(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::ACCESS | Errno::PERM | Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::ROFS)
    )
}

/// Whether the error says that there is no room, on the disk or in a quota.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOSPC | Errno::DQUOT))
}

fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)
}
