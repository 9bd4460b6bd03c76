//! What can be wrong with a configuration, told to the person who wrote it.

use std::io;
use std::path::PathBuf;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: check that it exists and is readable, or name another with --config", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{path}:{line}: {message}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// The file has a key that does not exist.
    #[error("{path}:{line}: there is no key `{key}`; {}", advice(nearest.as_deref(), "remove it"), path = path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key, with dots.
        key: String,
        /// The key that was probably meant.
        nearest: Option<String>,
    },
    /// The environment has a variable with this binary's prefix that does not exist.
    #[error("there is no setting for the environment variable {variable}; {}", advice(nearest.as_deref(), "unset it"))]
    UnknownVariable {
        /// The variable.
        variable: String,
        /// The variable that was probably meant.
        nearest: Option<String>,
    },
    /// A variable is not UTF-8.
    #[error("the value of the environment variable {variable} is not UTF-8 text; correct or unset it")]
    NotText {
        /// The variable.
        variable: String,
    },
    /// A secret is given twice.
    #[error("both {variable} and {variable}_FILE are set; unset one of them")]
    Twice {
        /// The variable without `_FILE`.
        variable: String,
    },
    /// The file that a `…_FILE` variable names cannot be read.
    #[error("cannot read {path}, which {variable} names: check that it exists and is readable by this user", path = path.display())]
    SecretFile {
        /// The variable.
        variable: String,
        /// The file it names.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A value does not fit its key.
    #[error("{place}: `{key}` is not usable: {message}")]
    Invalid {
        /// File and line, or the variable.
        place: String,
        /// The key, with dots.
        key: String,
        /// What is wrong and what would fit.
        message: String,
    },
    /// A key without a default is not set.
    #[error("`{key}` is not set; add it to {path} or set {variable}", path = path.display())]
    Missing {
        /// The key, with dots.
        key: String,
        /// The configuration file.
        path: PathBuf,
        /// The variable that sets it.
        variable: String,
    },
}

fn advice(nearest: Option<&str>, otherwise: &str) -> String {
    nearest.map_or_else(|| format!("{otherwise} or check its spelling"), |nearest| format!("did you mean `{nearest}`?"))
}
