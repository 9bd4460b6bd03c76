//! `hfctl login`: an address and a token, tried and then stored.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde_json::Value;

use crate::client::Client;
use crate::config::{Config, Files};
use crate::failure::Failure;
use crate::output::{Output, complain};
use crate::trust::{self, Fingerprint, Trust};

/// Most bytes of a line that is typed or piped in.
const LINE: u64 = 4096;

/// The token is asked for, or read from standard input or a file: as an argument, every user of this machine could see it.
#[derive(Args)]
pub(crate) struct Login {
    /// The hub's address, such as `https://hub.example:7080`; asked for when not given.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// File that holds the API token.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with the authority that signed the hub's HTTPS certificate.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// SHA-256 of the hub's own authority, as `hyperfactory-hub http-authority` and `api-token` print it: the authority
    /// is then fetched from the hub and kept.
    #[arg(long, value_name = "SHA256", conflicts_with = "ca_file")]
    fingerprint: Option<Fingerprint>,
}

impl Login {
    pub(crate) fn run(self, files: &Files, output: &mut Output) -> Result<(), Failure> {
        let url = match self.url {
            Some(url) => url,
            None => asked("Address of the hub (https://…): ", false)?,
        };
        let token = match &self.token_file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| Failure::Usage(format!("cannot read the token in {}: {error}", path.display())))?,
            None => asked("API token (hft_…): ", true)?,
        };
        let authority = self.fingerprint.map(|fingerprint| trust::authority(&url, fingerprint)).transpose()?;
        let mut ca_file = self.ca_file.as_deref().map(absolute).transpose()?;
        let trust = match (&authority, &ca_file) {
            (Some(authority), _) => Trust::Authority(authority),
            (None, Some(file)) => Trust::File(file),
            (None, None) => Trust::System,
        };
        let client = Client::to(&url, &token, &trust)?;
        client.get::<Value>("nodes", &[("limit", Some("1"))])?;
        if client.url().starts_with("http://") && !local(client.url()) {
            complain("note: without https the token can be read by everyone on the way to this hub");
        }
        if let Some(authority) = &authority {
            ca_file = Some(Config::store_authority(files, authority)?);
        }
        let path = Config::store(files, client.url(), token.trim(), ca_file.as_deref())?;
        output.line(&format!("logged in to {}; stored in {}", client.url(), path.display()))
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::fs::canonicalize(path).map_err(|error| Failure::Usage(format!("cannot read {}: {error}", path.display())))
}

fn local(url: &str) -> bool {
    let host = url.trim_start_matches("http://");
    ["127.", "localhost", "[::1]"].iter().any(|own| host.starts_with(own))
}

/// A line from the terminal, unseen if it is secret, or from standard input.
fn asked(question: &str, secret: bool) -> Result<String, Failure> {
    let stdin = std::io::stdin();
    let terminal = stdin.is_terminal();
    let mut before = None;
    if terminal {
        let mut err = std::io::stderr().lock();
        write!(err, "{question}").and_then(|()| err.flush())?;
        if secret && let Ok(modes) = tcgetattr(&stdin) {
            let mut unseen = modes.clone();
            unseen.local_modes.remove(LocalModes::ECHO);
            if tcsetattr(&stdin, OptionalActions::Now, &unseen).is_ok() {
                before = Some(modes);
            }
        }
    }
    let mut line = String::new();
    let read = std::io::Read::take(stdin.lock(), LINE).read_line(&mut line);
    if let Some(modes) = before {
        // The person's own Enter was not shown either.
        let _ = tcsetattr(&stdin, OptionalActions::Now, &modes);
        complain("");
    }
    read.map_err(|error| Failure::Failed(format!("nothing can be read from standard input: {error}")))?;
    let line = line.trim().to_owned();
    if line.is_empty() {
        return Err(Failure::Usage(format!(
            "nothing was given for {:?}: see hfctl login --help",
            question.trim_end_matches([':', ' '])
        )));
    }
    Ok(line)
}
