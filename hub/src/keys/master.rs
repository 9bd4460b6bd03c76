//! Where the master key comes from: a file, a passphrase, or a command behind which a KMS or an HSM may stand.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use pki::{MasterKey, Passphrase, Stretch};
use protocol::Timestamp;
use zeroize::Zeroizing;

use super::{Described, KeysError, command, prompt};
use crate::words::words;

/// A source of the master key.
#[derive(Clone, Debug)]
pub enum Master {
    /// Nobody has said: the key file in the state directory, made at the first start. Where the database is under a
    /// passphrase, that is asked for at the terminal.
    Unsaid(PathBuf),
    /// A key file.
    File(PathBuf),
    /// A passphrase.
    Passphrase(Passphrase),
    /// A program that is run with `wrap` or `unwrap`, bytes on its standard input, and gives bytes back.
    Command(PathBuf),
}

/// The kinds of source, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A key file.
    File,
    /// A passphrase.
    Passphrase,
    /// An external command.
    Command,
}

words! {
    Kind { File = "file", Passphrase = "passphrase", Command = "command" }
    or KindError = |text| KindError(text.to_owned())
}

impl Kind {
    /// How to configure one.
    pub(crate) const fn advice(self) -> &'static str {
        match self {
            Self::File => "master-key-file (HYPERFACTORY_HUB_MASTER_KEY_FILE) alone",
            Self::Passphrase => "master-passphrase (HYPERFACTORY_HUB_MASTER_PASSPHRASE_FILE) alone",
            Self::Command => "master-command (HYPERFACTORY_HUB_MASTER_COMMAND) alone",
        }
    }
}

/// Text that names no kind.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no kind of master key that this release knows")]
pub struct KindError(String);

impl Master {
    /// Which kind it is; a file where nobody has said.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Unsaid(_) | Self::File(_) => Kind::File,
            Self::Passphrase(_) => Kind::Passphrase,
            Self::Command(_) => Kind::Command,
        }
    }

    /// The key that `stored` describes.
    pub(super) async fn open(&self, stored: &Described) -> Result<MasterKey, KeysError> {
        let key = match (self, stored.kind) {
            (Self::Unsaid(path) | Self::File(path), Kind::File) => read(path)?,
            (Self::Unsaid(_), Kind::Passphrase) => {
                let passphrase = prompt::ask("Passphrase of the master key: ").map_err(KeysError::Prompt)?;
                Stretch::from_bytes(&stored.parameters)?.key(&passphrase)?
            }
            (Self::Passphrase(passphrase), Kind::Passphrase) => {
                Stretch::from_bytes(&stored.parameters)?.key(passphrase)?
            }
            (Self::Command(program), Kind::Command) => command::unwrap(program, &stored.parameters).await?,
            _ => return Err(KeysError::OtherKind { stored: stored.clone(), configured: self.kind() }),
        };
        if key.id() == stored.id {
            return Ok(key);
        }
        Err(KeysError::OtherMasterKey { stored: stored.clone(), given: self.to_string() })
    }

    /// A master key for data keys that are under none yet, or under another. A key file that is there is used as it is.
    pub(super) async fn create(&self, now: Timestamp) -> Result<(MasterKey, Described), KeysError> {
        let (key, parameters) = match self {
            Self::Unsaid(path) if !path.exists() => (make(path)?, Vec::new()),
            Self::Unsaid(path) | Self::File(path) => (read(path)?, Vec::new()),
            Self::Passphrase(passphrase) => {
                let stretch = Stretch::new()?;
                (stretch.key(&passphrase.clone().fit()?)?, stretch.to_bytes())
            }
            Self::Command(program) => command::make(program).await?,
        };
        let described = Described { id: key.id(), kind: self.kind(), parameters, created_at: now };
        Ok((key, described))
    }
}

impl fmt::Display for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsaid(path) | Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Passphrase(_) => f.write_str("the passphrase"),
            Self::Command(path) => write!(f, "the command {}", path.display()),
        }
    }
}

/// Makes a key file that only this user can read, and is on the disk when this returns.
pub(super) fn make(path: &Path) -> Result<MasterKey, KeysError> {
    let key = MasterKey::generate()?;
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(key.to_text().as_bytes())?;
        file.sync_all()?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| KeysError::File {
        doing: "write",
        path: path.display().to_string(),
        advice: "see that its directory exists and that this user may write there",
        source,
    })?;
    tracing::info!(path = %path.display(), "made the master key that seals the fleet's CA keys: keep a copy of it elsewhere");
    Ok(key)
}

fn read(path: &Path) -> Result<MasterKey, KeysError> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|source| KeysError::File {
        doing: "read",
        path: path.display().to_string(),
        advice: match source.kind() {
            ErrorKind::PermissionDenied => "see that this user may read it",
            _ => "restore it from the copy made when the hub was set up; without it the fleet's keys stay sealed",
        },
        source,
    })?;
    text.parse().map_err(|source| KeysError::NoKey { path: path.display().to_string(), source })
}
