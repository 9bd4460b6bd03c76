//! `hyperfactory-hub keys`: which master key the fleet's data keys are under, and moving them to another.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use pki::Passphrase;
use store::Database;
use zeroize::Zeroizing;

use super::{Keys, KeysError, Master, Status, master, prompt};
use crate::audit::Actor;
use crate::config::Config;
use crate::hub::now;
use crate::schema;

/// What is done with the keys.
#[derive(Subcommand)]
pub enum Verb {
    /// Shows which master key the data keys are under, and whether the configuration gives it.
    Status,
    /// Moves all data keys to another master key. Issues nothing anew; then configure the new one and restart the hub.
    ///
    /// All of them move in one transaction: whenever this is cut off, either the old key or the new one opens all, and
    /// `hyperfactory-hub keys status` says which.
    Rewrap(To),
}

/// The master key to move to.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct To {
    /// A key file; made when it is not there.
    #[arg(long, value_name = "FILE")]
    to_file: Option<PathBuf>,
    /// A passphrase, asked for at the terminal.
    #[arg(long)]
    to_passphrase: bool,
    /// The passphrase in this file; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    to_passphrase_file: Option<PathBuf>,
    /// A program that is run with `wrap` and `unwrap`.
    #[arg(long, value_name = "PROGRAM")]
    to_command: Option<PathBuf>,
}

/// Does it.
///
/// # Errors
/// A sentence for the operator.
pub async fn run(verb: Verb, config: &Config) -> anyhow::Result<()> {
    let database = Database::open(&config.database_url()).await?;
    database.migrate(schema::MIGRATIONS).await?;
    let done = match verb {
        Verb::Status => status(&database, config).await,
        Verb::Rewrap(to) => rewrap(&database, config, to).await,
    };
    database.close().await;
    done
}

async fn status(database: &Database, config: &Config) -> anyhow::Result<()> {
    let Some(Status { master, data_keys }) = Keys::status(database).await? else {
        say("No keys yet: the hub makes them at its first start.");
        return Ok(());
    };
    say(&format!("master key  {}  {} since {}", master.id, master.kind, master.created_at));
    say(&format!("data keys   {data_keys}: the fleet's, and one for each tenant"));
    match Keys::check(database, &config.master()).await {
        Ok(_) => say(&format!("opens       yes: {} gives it", config.master())),
        Err(error @ KeysError::Store(_)) => return Err(error.into()),
        Err(error) => {
            say(&format!("opens       NO: {}", crate::rows::chain(&error)));
            bail!("the configuration does not give the master key that the data keys are under");
        }
    }
    Ok(())
}

async fn rewrap(database: &Database, config: &Config, to: To) -> anyhow::Result<()> {
    let Some(keys) = Keys::check(database, &config.master()).await? else {
        bail!("there is nothing to move yet: the hub makes its keys at its first start");
    };
    let to = to.master()?;
    let advice = to.kind().advice();
    let Status { master, data_keys } = keys.rewrap(database, &to, &Actor::operator("hyperfactory-hub"), now()).await?;
    say(&format!("Moved {data_keys} data keys to the master key {} ({to}).", master.id));
    say(&format!(
        "Now configure {advice}, and restart the hub. Keep the old key as long as you keep backups from before."
    ));
    Ok(())
}

impl To {
    fn master(self) -> anyhow::Result<Master> {
        if let Some(path) = self.to_file {
            if !path.exists() {
                master::make(&path)?;
            }
            return Ok(Master::File(path));
        }
        if let Some(program) = self.to_command {
            return Ok(Master::Command(program));
        }
        if let Some(path) = self.to_passphrase_file {
            return Ok(Master::Passphrase(passphrase_in(&path)?));
        }
        Ok(Master::Passphrase(new_passphrase()?))
    }
}

/// Asks for a new passphrase, twice.
pub(crate) fn new_passphrase() -> Result<Passphrase, KeysError> {
    let ask = |question: &str| prompt::ask(question).map_err(KeysError::Prompt);
    let passphrase = ask("New passphrase: ")?.fit()?;
    if ask("The same again: ")?.matches(&passphrase) { Ok(passphrase) } else { Err(KeysError::Mistyped) }
}

/// A passphrase from a file, or from standard input.
pub(crate) fn passphrase_in(path: &Path) -> anyhow::Result<Passphrase> {
    let mut text = Zeroizing::new(String::with_capacity(4096));
    if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("standard input is not text")?;
    } else {
        std::fs::File::open(path)
            .and_then(|mut file| file.read_to_string(&mut text))
            .with_context(|| format!("cannot read the passphrase in {}", path.display()))?;
    }
    Ok(Passphrase::new(text))
}

#[expect(clippy::print_stdout, reason = "the verb's result")]
fn say(text: &str) {
    println!("{text}");
}
