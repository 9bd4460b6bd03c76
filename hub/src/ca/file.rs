//! Files that travel between a hub and its offline root: each says what it is and holds a sum of its content, is there
//! whole or not at all, and never takes the place of another.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Largest file that is read: the requests of a hundred thousand tenants.
const LARGEST: u64 = 64 * 1024 * 1024;
const VERSION: u64 = 1;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Key,
    Requests,
    Signed,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Key, Self::Requests, Self::Signed];

    /// As the file says it.
    const fn name(self) -> &'static str {
        match self {
            Self::Key => "root-key",
            Self::Requests => "signing-requests",
            Self::Signed => "signed",
        }
    }

    const fn said(self) -> &'static str {
        match self {
            Self::Key => "a root's key (ca root export)",
            Self::Requests => "signing requests (ca root requests)",
            Self::Signed => "what a root has signed (ca root sign)",
        }
    }
}

/// A file. What it is comes first, so that one that was cut off still says so.
#[derive(Serialize)]
struct Whole<'a> {
    hyperfactory: &'static str,
    version: u64,
    sha256: &'a str,
    content: Value,
}

/// SHA-256 of a file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sum(String);

impl Sum {
    fn of(content: &Value) -> Self {
        Self(HEXLOWER.encode(digest(&SHA256, content.to_string().as_bytes()).as_ref()))
    }

    /// All of it, hexadecimal.
    pub(super) fn hex(&self) -> &str {
        &self.0
    }

    /// As much of it as two people compare by voice: 96 bits, which nobody makes another file for.
    pub(super) fn spoken(&self) -> String {
        let groups: Vec<&str> = (0..6).filter_map(|group| self.0.get(group * 4..group * 4 + 4)).collect();
        groups.join(" ")
    }
}

/// Refuses a path where something is.
///
/// # Errors
/// [`FileError::Exists`].
pub(super) fn free(path: &Path) -> Result<(), FileError> {
    match path.symlink_metadata() {
        Ok(_) => Err(FileError::Exists(path.to_owned())),
        Err(_) => Ok(()),
    }
}

/// Writes a new file that this user alone can read; it is on the disk when this returns.
///
/// # Errors
/// [`FileError::Exists`] when something is there, [`FileError::Write`] when it can't be written; then there is no file.
pub(super) fn write(path: &Path, kind: Kind, content: &impl Serialize) -> Result<Sum, FileError> {
    free(path)?;
    let failed = |source| FileError::Write { path: path.to_owned(), source };
    let content = serde_json::to_value(content).map_err(|error| failed(error.into()))?;
    let sum = Sum::of(&content);
    let whole = Whole { hyperfactory: kind.name(), version: VERSION, sha256: sum.hex(), content };
    let text = serde_json::to_string_pretty(&whole).map_err(|error| failed(error.into()))? + "\n";
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    match put(&part, path, text.as_bytes()) {
        Ok(()) => Ok(sum),
        Err(error) => {
            let _ = fs::remove_file(&part);
            if error.kind() == ErrorKind::AlreadyExists {
                Err(FileError::Exists(path.to_owned()))
            } else {
                Err(failed(error))
            }
        }
    }
}

fn put(part: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    // What was left by one that was cut off.
    match fs::remove_file(part) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    match renameat_with(CWD, part, CWD, path, RenameFlags::NOREPLACE) {
        // A file system that does not know how: what came here meanwhile was not looked for by anybody but this user.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) if path.symlink_metadata().is_err() => fs::rename(part, path)?,
        renamed => renamed?,
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Reads a file of this kind.
///
/// # Errors
/// [`FileError`] tells another kind of file from a damaged one.
pub(super) fn read<T: DeserializeOwned>(path: &Path, kind: Kind) -> Result<(T, Sum), FileError> {
    let mut text = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut text));
    opened.map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    let other = |found: &'static str| FileError::Other { path: path.to_owned(), wanted: kind.said(), found };
    if text.len() as u64 > LARGEST {
        return Err(other("larger than 64 MiB"));
    }
    let Ok(mut whole) = serde_json::from_slice::<Value>(&text) else {
        // Cut off or altered, it still begins as it did.
        let begins = String::from_utf8_lossy(&text).contains("\"hyperfactory\"");
        return Err(if begins { FileError::damaged(path) } else { other("no file of this program's") });
    };
    let Some(name) = whole["hyperfactory"].as_str() else { return Err(other("no file of this program's")) };
    if name != kind.name() {
        let found = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        return Err(other(found.map_or("a file of another release", Kind::said)));
    }
    if whole["version"] != VERSION {
        return Err(other("of a later release: use that one"));
    }
    let content = whole["content"].take();
    let sum = Sum::of(&content);
    if whole["sha256"].as_str() != Some(sum.hex()) {
        return Err(FileError::damaged(path));
    }
    let content = serde_json::from_value(content).map_err(|_| FileError::damaged(path))?;
    Ok((content, sum))
}

/// A file that can't be used, or not be asked for.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Something is there.
    #[error("{} is there already, and nothing is overwritten: choose another name", .0.display())]
    Exists(PathBuf),
    /// It can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is {found}; wanted is {wanted}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// There is nobody to ask.
    #[error("there is no terminal to ask at: use {instead}")]
    NoTerminal {
        /// The option to use.
        instead: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was altered or cut off.
    #[error("{} is damaged: take another copy of it", .0.display())]
    Damaged(PathBuf),
    /// It can't be written.
    #[error("cannot write {}: see that its directory exists, has room, and that this user may write there", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    pub(super) fn damaged(path: &Path) -> Self {
        Self::Damaged(path.to_owned())
    }

    /// Whether another file or option would do.
    pub(super) fn is_usage(&self) -> bool {
        matches!(self, Self::Exists(_) | Self::Read { .. } | Self::Other { .. } | Self::NoTerminal { .. })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_reads_back_is_private_and_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("requests");
        fs::write(directory.path().join("requests.part"), "left over").expect("written");
        let sum = write(&path, Kind::Requests, &json!({ "b": 1, "a": "x" })).expect("written");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let (content, read_sum) = read::<Value>(&path, Kind::Requests).expect("read");
        assert_eq!((content, &read_sum), (json!({ "a": "x", "b": 1 }), &sum));
        assert_eq!(sum.spoken().len(), 6 * 4 + 5);
        let again = write(&path, Kind::Requests, &json!({}));
        assert!(matches!(again, Err(FileError::Exists(_))), "{again:?}");
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 1, "nothing else is left");
        // Line ends that were changed on the way are no damage.
        let text = fs::read_to_string(&path).expect("text").replace('\n', "\r\n");
        fs::write(&path, text).expect("written");
        assert_eq!(read::<Value>(&path, Kind::Requests).expect("read").1, sum);
    }

    #[test]
    fn what_it_is_instead_is_said() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        write(&path, Kind::Signed, &json!({ "a": 1 })).expect("written");
        let error = read::<Value>(&path, Kind::Key).expect_err("another kind");
        assert!(error.is_usage() && error.to_string().contains("is what a root has signed"), "{error}");
        let whole = fs::read_to_string(&path).expect("text");
        for (text, usage, part) in [
            ("PEM?".to_owned(), true, "no file of this program's"),
            ("{}".to_owned(), true, "no file of this program's"),
            (whole.replace("\"version\": 1", "\"version\": 2"), true, "a later release"),
            (whole.replace("\"a\": 1", "\"a\": 2"), false, "damaged"),
            (whole[..whole.len() - 4].to_owned(), false, "damaged"),
            (whole[..whole.len() / 2].to_owned(), false, "damaged"),
        ] {
            fs::write(&path, text).expect("written");
            let error = read::<Value>(&path, Kind::Signed).expect_err(part);
            assert!(error.is_usage() == usage && error.to_string().contains(part), "{error}");
        }
        let gone = read::<Value>(&directory.path().join("nothing"), Kind::Key).expect_err("nothing");
        assert!(gone.is_usage() && matches!(gone, FileError::Read { .. }), "{gone}");
    }
}
