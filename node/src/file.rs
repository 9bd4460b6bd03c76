//! Small private files that are either the old one or the new one, whatever happens in between.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};

/// Reads a file of at most `limit` bytes; `None` when there is none.
///
/// # Errors
/// [`FileError`], which says what to do.
pub fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(FileError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(Some(bytes))
}

/// Replaces `path` with `bytes`, readable by the owner alone. On return the new file survives a power cut; on an
/// error, or a crash, the old one is whole.
///
/// # Errors
/// [`FileError`], which says what to do.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let failed = |source| FileError::Write { path: path.to_owned(), source };
    let directory = path.parent().unwrap_or(Path::new("."));
    create_directory(directory)?;
    let temporary = temporary(path);
    let written = (|| {
        // A leftover of a crash may be someone's symbolic link or carry other permissions: never write through it.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(failed)
}

/// Where the new file is until it takes its place. Not in place of what follows a dot: another name may have the same before it.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Removes a file, durably; one that is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    let failed = |source| FileError::Write { path: path.to_owned(), source };
    match fs::remove_file(path) {
        Ok(()) => File::open(path.parent().unwrap_or(Path::new(".")))
            .and_then(|directory| directory.sync_all())
            .map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Creates a directory that only its owner may enter. One that is already there is left as it is: it may be
/// shared with others, and the files in it are private themselves.
pub(crate) fn create_directory(directory: &Path) -> Result<(), FileError> {
    let failed = |source| FileError::Directory { path: directory.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)
}

/// Gives files that root made in a directory to the user that the directory belongs to.
pub(crate) fn hand_over(directory: &Path) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let Ok(owner) = fs::metadata(directory).map(|directory| (directory.uid(), directory.gid())) else { return };
    if owner.0 == 0 {
        return;
    }
    for file in fs::read_dir(directory).into_iter().flatten().flatten() {
        if let Err(error) = give(&file.path(), owner) {
            tracing::warn!(file = %file.path().display(), %error, "the service may not be able to read a file");
        }
    }
}

/// Gives a file that root made to its directory's owner, and nothing else: that owner may have put a link to another's file
/// in its place, also just now.
fn give(path: &Path, (user, group): (u32, u32)) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let found = rustix::fs::fstat(&file)?;
    let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
    if is_file && found.st_uid == 0 && found.st_nlink == 1 {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        rustix::fs::chownat(&file, "", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

/// A file of the node's state that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Reading failed.
    #[error("cannot read {}: check that this user owns it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot write {}: check the disk's free space and that this user owns the directory", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory could not be made private.
    #[error("cannot prepare the directory {}: check its owner, or choose another with --state-dir", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Larger than any file of its kind.
    #[error("{} is longer than {limit} bytes and cannot be what it should be", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        limit: u64,
    },
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").permissions().mode() & 0o777
    }

    #[test]
    fn a_replaced_file_is_private_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().expect("tempdir");
        let state = directory.path().join("state");
        let path = state.join("identity.json");
        replace(&path, b"one").expect("written");
        replace(&path, b"two").expect("replaced");
        assert_eq!(read(&path, 10).expect("read").as_deref(), Some(&b"two"[..]));
        assert_eq!((mode(&path), mode(&state)), (0o600, 0o700));
        assert_eq!(fs::read_dir(&state).expect("list").count(), 1);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_whole() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("identity.json");
        replace(&path, b"old").expect("written");
        // A directory in the temporary file's place makes the write fail before anything is replaced.
        fs::create_dir(temporary(&path)).expect("blocker");
        assert!(matches!(replace(&path, b"new"), Err(FileError::Write { .. })));
        assert_eq!(read(&path, 10).expect("read").as_deref(), Some(&b"old"[..]));
    }

    #[test]
    fn a_leftover_link_is_not_written_through() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (path, victim) = (directory.path().join("identity.json"), directory.path().join("victim"));
        fs::write(&victim, "untouched").expect("victim");
        std::os::unix::fs::symlink(&victim, temporary(&path)).expect("link");
        replace(&path, b"secret").expect("written");
        assert_eq!(fs::read_to_string(&victim).expect("victim"), "untouched");
    }

    #[test]
    fn what_root_made_is_handed_over_and_what_is_linked_to_is_not() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().expect("tempdir");
        let state = directory.path().join("state");
        replace(&state.join("identity.json"), b"x").expect("written");
        std::os::unix::fs::chown(&state, Some(12_345), Some(12_345)).expect("chown");
        let shadow = |name: &str| {
            let path = directory.path().join(name);
            fs::write(&path, "root's").expect("written");
            path
        };
        let (pointed_at, linked) = (shadow("pointed-at"), shadow("linked"));
        std::os::unix::fs::symlink(&pointed_at, state.join("enroll-key.json")).expect("link");
        fs::hard_link(&linked, state.join("renew-key.json")).expect("link");
        hand_over(&state);
        // As when a link takes the file's place after it was looked at.
        give(&state.join("enroll-key.json"), (12_345, 12_345)).expect("passed over");
        let owner = |path: &Path| fs::metadata(path).expect("there").uid();
        assert_eq!(owner(&state.join("identity.json")), 12_345);
        assert_eq!((owner(&pointed_at), owner(&linked)), (0, 0));
    }

    #[test]
    fn a_directory_that_was_there_keeps_its_rights() {
        let directory = tempfile::tempdir().expect("tempdir");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        replace(&directory.path().join("identity.json"), b"x").expect("written");
        assert_eq!(mode(directory.path()), 0o755);
    }

    #[test]
    fn an_absent_file_is_none_and_an_endless_one_is_refused() {
        let directory = tempfile::tempdir().expect("tempdir");
        assert!(read(&directory.path().join("none"), 10).expect("read").is_none());
        let long = directory.path().join("long");
        fs::write(&long, [0; 11]).expect("written");
        assert!(matches!(read(&long, 10), Err(FileError::TooLarge { .. })));
        remove(&long).expect("removed");
        remove(&long).expect("already gone");
    }
}
