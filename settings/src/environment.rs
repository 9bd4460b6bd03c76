//! The environment variables of one binary: every one has to name a key, and wins over the file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::SettingsError;
use crate::known::{self, Key, Keys};
use crate::tree::Node;

/// The variable, after the prefix, that names the configuration file.
const CONFIG: &str = "CONFIG";

/// The variables that start with `HYPERFACTORY_<BINARY>_` and are not empty, by the rest of their name.
pub(crate) struct Variables {
    prefix: String,
    values: BTreeMap<String, String>,
}

impl Variables {
    /// Picks this binary's variables out of `environment`.
    pub(crate) fn of(
        binary: &str,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, SettingsError> {
        let prefix = format!("HYPERFACTORY_{}_", upper(binary));
        let mut values = BTreeMap::new();
        for (name, value) in environment {
            let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(&prefix)) else { continue };
            let value =
                value.into_string().map_err(|_| SettingsError::NotText { variable: format!("{prefix}{rest}") })?;
            if !value.is_empty() {
                values.insert(rest.to_owned(), value);
            }
        }
        Ok(Self { prefix, values })
    }

    /// The configuration file that the environment names.
    pub(crate) fn config(&self) -> Option<PathBuf> {
        self.values.get(CONFIG).map(PathBuf::from)
    }

    /// The variable that sets the key at `path`.
    pub(crate) fn name(&self, path: &[&str]) -> String {
        format!("{}{}", self.prefix, rest(path))
    }

    /// Puts every variable's value over what the tree has.
    pub(crate) fn overlay(&self, known: &Keys, tree: &mut Node) -> Result<(), SettingsError> {
        for (rest, value) in &self.values {
            if rest == CONFIG {
                continue;
            }
            let variable = format!("{}{rest}", self.prefix);
            let (key, text) = match find(known, rest) {
                Some((key, Form::Plain)) => (key, value.clone()),
                Some((key, Form::File)) => (key, self.contents(rest, &variable, Path::new(value))?),
                None => return Err(SettingsError::UnknownVariable { nearest: self.nearest(known, rest), variable }),
            };
            tree.put(&key.path, Node::Text(text, variable));
        }
        Ok(())
    }

    /// The secret in the file that `variable` names.
    fn contents(&self, rest: &str, variable: &str, path: &Path) -> Result<String, SettingsError> {
        let plain = rest.strip_suffix(FILE).unwrap_or(rest);
        if self.values.contains_key(plain) {
            return Err(SettingsError::Twice { variable: format!("{}{plain}", self.prefix) });
        }
        std::fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(|source| SettingsError::SecretFile {
            variable: variable.to_owned(),
            path: path.to_owned(),
            source,
        })
    }

    fn nearest(&self, known: &Keys, written: &str) -> Option<String> {
        let plain = known.iter().map(|key| rest(&key.path));
        let files = known.iter().filter(|key| key.secret).map(|key| format!("{}{FILE}", rest(&key.path)));
        known::nearest(written, plain.chain(files)).map(|rest| format!("{}{rest}", self.prefix))
    }
}

/// Ending of a variable that names the file a secret is in.
const FILE: &str = "_FILE";

/// How a variable gives its value.
enum Form {
    Plain,
    File,
}

fn find<'a>(known: &'a Keys, written: &str) -> Option<(&'a Key, Form)> {
    let plain = known.iter().find(|key| rest(&key.path) == written).map(|key| (key, Form::Plain));
    plain.or_else(|| {
        let named = written.strip_suffix(FILE)?;
        known.iter().find(|key| key.secret && rest(&key.path) == named).map(|key| (key, Form::File))
    })
}

/// `["http", "listen-address"]` as `HTTP_LISTEN_ADDRESS`.
fn rest(path: &[&str]) -> String {
    path.iter().map(|name| upper(name)).collect::<Vec<_>>().join("_")
}

fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}
