//! `hfctl operator-key`: keys with which people sign commands, so that a hub alone can't order what takes a person.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use pki::OperatorKey as Key;
use serde_json::{Value, json};

use super::order::Why;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, complain, text, time};

#[derive(Subcommand)]
pub(crate) enum OperatorKey {
    /// Makes a key: the private half in a new file that only you can read, the public one printed for agents to pin.
    Create {
        /// The file; keep it off the hub.
        file: PathBuf,
    },
    /// Prints the public half of a key.
    Show {
        /// The file with the private key.
        file: PathBuf,
    },
    /// Registers a key's public half at the hub, which then passes on what it signs.
    Register {
        /// The file with the private key; it stays here.
        file: PathBuf,
        /// Whose it is.
        #[arg(long)]
        name: String,
        #[command(flatten)]
        why: Why,
    },
    /// Lists registered keys.
    List,
    /// Takes a key back: the hub passes on nothing that it signed, and takes back what of that is not over. Have it out of
    /// agents' configurations as well.
    Revoke {
        /// Its id.
        id: String,
        #[command(flatten)]
        why: Why,
    },
}

impl OperatorKey {
    pub(crate) fn run(
        self,
        client: impl FnOnce() -> Result<Client, Failure>,
        output: &mut Output,
    ) -> Result<(), Failure> {
        match self {
            Self::Create { file } => {
                let key = Key::generate().map_err(|error| Failure::Failed(error.to_string()))?;
                write(&file, &key)?;
                complain(&format!(
                    "{} is the private key: keep it off the hub. The public key, for agents to pin:",
                    file.display()
                ));
                output.line(&key.public().to_string())
            }
            Self::Show { file } => output.line(&read(&file)?.public().to_string()),
            Self::Register { file, name, why } => {
                let key = read(&file)?.public().to_string();
                let asked = json!({ "name": name, "public_key": key, "reason": why.reason });
                let made: Value = client()?.post("operator-keys", &asked)?;
                if output.is_json() {
                    return output.json(&made);
                }
                output.line(&format!("key {} is registered as {}", text(&made, "/id"), text(&made, "/name")))
            }
            Self::List => output.list(
                client()?.list("operator-keys", &[], None)?,
                ["NAME", "TENANT", "REGISTERED", "BY", "REVOKED", "ID", "PUBLIC KEY"],
                |key| {
                    [
                        text(key, "/name"),
                        text(key, "/tenant"),
                        time(key, "/created_at"),
                        text(key, "/created_by"),
                        time(key, "/revoked_at"),
                        text(key, "/id"),
                        text(key, "/public_key"),
                    ]
                },
                "no operator keys yet; make one with: hfctl operator-key create FILE",
            ),
            Self::Revoke { id, why } => {
                client()?.act(&format!("operator-keys/{id}/revoke"), &json!({ "reason": why.reason }))?;
                output.line(&format!("key {id} is revoked"))
            }
        }
    }
}

fn write(file: &Path, key: &Key) -> Result<(), Failure> {
    let written = || {
        let mut opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        opened.write_all(key.to_text().as_bytes())?;
        opened.write_all(b"\n")?;
        opened.sync_all()
    };
    written().map_err(|error: std::io::Error| Failure::Failed(format!("cannot write {}: {error}", file.display())))
}

/// The private key in a file.
pub(crate) fn read(file: &Path) -> Result<Key, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::Usage(format!("{}: {error}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| failed(&error))?;
    text.parse().map_err(|error: pki::OperatorKeyError| failed(&error))
}
