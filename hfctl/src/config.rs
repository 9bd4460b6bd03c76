//! Which hub, and with which token: `hfctl.toml`, the environment, or the quickstart's own file.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use settings::Secret;

use crate::failure::Failure;

/// What `hfctl.toml` holds.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// The hub's address: `https://hub.example:7080`.
    pub(crate) url: Option<String>,
    /// An API token, `hft_…`.
    pub(crate) token: Option<Secret>,
    /// PEM file with the authority that signed the hub's HTTPS certificate; the system's authorities without it.
    pub(crate) ca_file: Option<PathBuf>,
}

/// Where configuration is.
#[derive(Debug)]
pub(crate) struct Files {
    /// Written by `login`.
    login: PathBuf,
    /// Named on the command line: it has to exist.
    named: bool,
    /// Written by the quickstart.
    quickstart: PathBuf,
}

impl Files {
    /// The files of this user.
    pub(crate) fn of(named: Option<PathBuf>) -> Result<Self, Failure> {
        let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        let base = |variable: &str, below_home: &str| {
            let set = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
            set.or_else(|| Some(home.as_ref()?.join(below_home)))
                .ok_or_else(|| Failure::Usage(format!("set HOME or {variable}: hfctl keeps its login there")))
        };
        let quickstart = base("XDG_STATE_HOME", ".local/state")?.join("hyperfactory/quickstart/hfctl.toml");
        Ok(match named {
            Some(login) => Self { login, named: true, quickstart },
            None => Self {
                login: base("XDG_CONFIG_HOME", ".config")?.join("hyperfactory/hfctl.toml"),
                named: false,
                quickstart,
            },
        })
    }

    /// The file to read: what was named, the login, or the quickstart's. `None` when there is none.
    fn to_read(&self) -> Option<&Path> {
        if self.named || self.login.exists() {
            return Some(&self.login);
        }
        self.quickstart.exists().then_some(&self.quickstart)
    }
}

impl Config {
    /// Reads file and environment.
    pub(crate) fn load(files: &Files) -> Result<Self, Failure> {
        let file = files.to_read();
        let read = |environment: Vec<_>| match file {
            Some(_) => settings::load::<Self>("hfctl", file, environment),
            None => settings::load_from(files.login.parent().unwrap_or(Path::new("/")), "hfctl", None, environment),
        };
        let wrong = |error: settings::SettingsError| Failure::Usage(error.to_string());
        let stored = read(Vec::new()).map_err(wrong)?;
        let config = read(std::env::vars_os().collect()).map_err(wrong)?;
        // A stored token is for the hub it is stored with: it must not go to another.
        let same_token = |one: &Option<Secret>, other: &Option<Secret>| matches!((one, other), (Some(one), Some(other)) if one.expose() == other.expose());
        let address = |config: &Self| config.url.as_deref().map(|url| url.trim_end_matches('/').to_owned());
        if address(&config) != address(&stored) && same_token(&config.token, &stored.token) {
            return Err(Failure::Usage(format!(
                "the stored token is for {}, not for {}: set HYPERFACTORY_HFCTL_TOKEN or HYPERFACTORY_HFCTL_TOKEN_FILE \
                 as well, or run hfctl login",
                stored.url.as_deref().unwrap_or("another hub"),
                config.url.as_deref().unwrap_or_default(),
            )));
        }
        Ok(config)
    }

    /// Writes the login, readable by this user alone.
    pub(crate) fn store(files: &Files, url: &str, token: &str, ca_file: Option<&Path>) -> Result<PathBuf, Failure> {
        #[derive(Serialize)]
        #[serde(rename_all = "kebab-case")]
        struct Stored<'a> {
            url: &'a str,
            token: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            ca_file: Option<&'a Path>,
        }
        let text = toml::to_string(&Stored { url, token, ca_file })
            .map_err(|error| Failure::Failed(format!("the login can't be written as TOML: {error}")))?;
        write(&files.login, &text)?;
        Ok(files.login.clone())
    }

    /// Writes a hub's own authority beside the login, and says where.
    pub(crate) fn store_authority(files: &Files, pem: &str) -> Result<PathBuf, Failure> {
        let path = files.login.with_extension("ca.pem");
        write(&path, pem)?;
        std::path::absolute(&path).map_err(|error| Failure::Failed(format!("where is {}? {error}", path.display())))
    }
}

/// Writes a file for this user alone; a half-written one is never seen.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::Failed(format!("cannot write {}: {error}", path.display()));
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let fresh = path.with_file_name(name);
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    write().map_err(|error| {
        drop(std::fs::remove_file(&fresh));
        failed(error)
    })
}
