//! `hyperfactory-hub ca root sign`: what is run where the root's key is. It needs neither database nor configuration.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use protocol::Timestamp;
use serde_json::json;

use super::file::{self, FileError, Kind, Sum};
use super::{KeyFile, PassphraseFrom, numbered, say};
use crate::authorities::ceremony::{Requests, Signed, short};
use crate::keys::prompt;

/// What to sign, and with what.
#[derive(Args)]
pub struct Sign {
    /// The file that `ca root export` wrote.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The file that `ca root requests` wrote.
    #[arg(long, value_name = "FILE")]
    requests: PathBuf,
    /// Where what is signed is written; it must not be there yet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// To which a line is added for all that is signed [default: beside the key, with .log at its end].
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Signs without asking.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    passphrase: PassphraseFrom,
}

impl Sign {
    /// Does it.
    ///
    /// # Errors
    /// A sentence for whoever signs; nothing was signed then, or it is in the log.
    pub fn run(self, now: Timestamp) -> anyhow::Result<()> {
        let (key, _) = file::read::<KeyFile>(&self.key, Kind::Key)?;
        let (requests, sum) = file::read::<Requests>(&self.requests, Kind::Requests)?;
        file::free(&self.out)?;
        let root = key.unlock(&self.key, &self.passphrase.ask("Passphrase of the root's key: ")?)?;
        let plan = requests.judge(&root, now).with_context(|| format!("{} is not signed", self.requests.display()))?;
        let made_at = Timestamp::from_millis(requests.made_at_ms);
        say(&format!(
            "The root {}, until {}, signs what a hub asked for at {made_at}:\n",
            short(&root.spki_sha256()),
            root.not_after()
        ));
        let lines = plan.lines();
        numbered(&lines);
        say(&format!("\nThe hub's operator reads the same from `ca root requests`:\n\n    {}\n", sum.spoken()));
        if !self.yes {
            let question = format!("Sign these {}? Type yes: ", lines.len());
            let answer = prompt::confirm(&question)
                .map_err(|source| FileError::NoTerminal { instead: "--yes and --passphrase-file", source })?;
            if !answer {
                bail!("nothing was signed");
            }
        }
        let (answers, signed) = plan.sign(&root, sum.hex().to_owned(), now)?;
        let log = self.log.unwrap_or_else(|| {
            let mut path = OsString::from(&self.key);
            path.push(".log");
            path.into()
        });
        // Before anybody can have it.
        note(&log, &sum, &signed, now).with_context(|| {
            format!("nothing was signed: cannot add to the log {}; choose another with --log", log.display())
        })?;
        let signed = file::write(&self.out, Kind::Signed, &answers)?;
        say(&format!(
            "Signed, and noted in {}. Carry {} ({}) to the hub: hyperfactory-hub ca root import --file {}",
            log.display(),
            self.out.display(),
            signed.spoken(),
            self.out.display()
        ));
        Ok(())
    }
}

/// Adds a line for each thing signed; they are on the disk when this returns.
fn note(path: &Path, requests: &Sum, signed: &[Signed], now: Timestamp) -> std::io::Result<()> {
    let mut lines = String::new();
    for one in signed {
        lines.push_str(&json!({ "at": now.to_string(), "requests": requests.hex(), "signed": one }).to_string());
        lines.push('\n');
    }
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.write_all(lines.as_bytes())?;
    file.sync_all()
}
