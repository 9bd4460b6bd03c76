//! Strict configuration: one TOML file, environment variables that win over it, and errors that say what to do.
//!
//! The keys are the fields of the caller's own structure, found by asking its `Deserialize` implementation; nothing
//! is listed twice. A key `http.listen-address` of the hub is also `HYPERFACTORY_HUB_HTTP_LISTEN_ADDRESS`; a key that
//! holds a [`Secret`] also takes the path of a file in `…_FILE`.

mod environment;
mod error;
mod file;
mod known;
mod tree;
mod value;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub use error::SettingsError;
pub use value::{Period, Secret, Size, ValueError};

/// Where configuration files are, unless a caller says otherwise.
pub const DIRECTORY: &str = "/etc/hyperfactory";

/// Loads the settings of `binary` ("hub", "agent", …).
///
/// `file` is what `--config` named: it has to exist. Without it `HYPERFACTORY_<BINARY>_CONFIG` is asked, and then
/// `/etc/hyperfactory/<binary>.toml`, which may be missing. `environment` is usually [`std::env::vars_os`]. A
/// variable that is set but empty counts as not set.
///
/// Give `T` serde's container attributes `default` and `rename_all = "kebab-case"`; a field without a default is a key
/// that must be set.
///
/// # Errors
/// An unreadable or malformed file, a key or `HYPERFACTORY_<BINARY>_…` variable that is not known, a value that does
/// not fit its key, a required key that is missing. Each is a sentence for the person who wrote the configuration.
pub fn load<T: DeserializeOwned>(
    binary: &str,
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<T, SettingsError> {
    load_from(Path::new(DIRECTORY), binary, file, environment)
}

/// [`load`] with another directory in place of `/etc/hyperfactory`.
///
/// # Errors
/// As [`load`].
pub fn load_from<T: DeserializeOwned>(
    directory: &Path,
    binary: &str,
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<T, SettingsError> {
    let known = known::Keys::of::<T>();
    let variables = environment::Variables::of(binary, environment)?;
    let named = file.map(Path::to_path_buf).or_else(|| variables.config());
    let required = named.is_some();
    let path = named.unwrap_or_else(|| default_path(directory, binary));
    let mut tree = file::read(&path, required, &known)?;
    variables.overlay(&known, &mut tree)?;
    T::deserialize(tree).map_err(|trouble| trouble.into_error(&path, &variables))
}

/// Where the configuration of `binary` is when nobody says otherwise.
pub fn default_path(directory: &Path, binary: &str) -> PathBuf {
    directory.join(format!("{binary}.toml"))
}

#[cfg(test)]
mod tests;
