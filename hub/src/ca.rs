//! `hyperfactory-hub ca root`: a fleet root whose key is kept away from the hub, and the ceremonies in which it signs.

mod file;
mod sign;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use data_encoding::{BASE64, HEXLOWER};
use pki::{Authority, CertificateDer, LockedKey, Passphrase, UnlockError, pem};
use protocol::Timestamp;
use serde::{Deserialize, Serialize};
use store::Database;

use crate::audit::Actor;
use crate::authorities::ceremony::{Answers, short};
use crate::authorities::{Authorities, AuthoritiesError, ImportError};
use crate::config::Config;
use crate::hub::now;
use crate::keys::{Keys, KeysError, prompt, verb};
use crate::schema;
pub use file::FileError;
use file::Kind;
pub use sign::Sign;

/// The verbs below `ca`.
#[derive(Subcommand)]
pub enum Ca {
    /// The fleet's root: keep its key offline, and have it sign what the hub asks for.
    #[command(subcommand)]
    Root(Root),
}

/// The verbs below `ca root`.
#[derive(Subcommand)]
pub enum Root {
    /// Shows where the root's key is, and what waits for its signature. Works while the hub runs.
    Status,
    /// Takes the root's key out of the database into a file under a passphrase. Works while the hub runs.
    ///
    /// The key is removed from the database once the file has been read back and opened. Cut off at any moment, the key is in
    /// both places or in the file alone.
    Export {
        /// The file; it must not be there yet.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Where its passphrase comes from.
        #[command(flatten)]
        passphrase: PassphraseFrom,
    },
    /// Writes all that waits for the root's signature to a file, to be carried to where its key is. Works while the hub runs.
    Requests {
        /// The file; it must not be there yet.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Signs what a hub asks for, on a machine that has the root's key: takes neither database nor configuration.
    Sign(Sign),
    /// Takes what the root has signed; what waited for it issues from then on. Works while the hub runs.
    Import {
        /// The file that `ca root sign` wrote.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Brings the root's key back into the database, and signs all that waits. Works while the hub runs.
    Restore {
        /// The file that `ca root export` wrote.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Where its passphrase comes from.
        #[command(flatten)]
        passphrase: PassphraseFrom,
    },
}

/// Where the passphrase comes from.
#[derive(Args)]
pub struct PassphraseFrom {
    /// The passphrase is in this file; `-` is standard input [default: it is asked for at the terminal].
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// A root's key outside of its hub, as it stands in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    /// The root, in PEM.
    root: String,
    /// When it was taken out, for people.
    exported_at: String,
    /// Argon2id's costs and salt, hexadecimal.
    stretch: String,
    /// What the passphrase opens, Base64.
    data_key: String,
    /// What that opens, Base64.
    key: String,
}

/// Does it.
///
/// # Errors
/// A sentence for the operator; [`is_usage`] tells wrong usage from a failure.
pub async fn run(verb: Root, config: &Config) -> anyhow::Result<()> {
    let database = Database::open(&config.database_url()).await?;
    database.migrate(schema::MIGRATIONS).await?;
    let done = async {
        let Some(keys) = Keys::check(&database, &config.master()).await? else {
            bail!("there is no root yet: the hub makes it at its first start, with what is configured here");
        };
        let authorities = Authorities::open(database.clone(), keys, now()).await?;
        authorities.ask_ahead(now()).await?;
        match verb {
            Root::Status => status(&authorities).await,
            Root::Export { file, passphrase } => export(&authorities, &file, passphrase).await,
            Root::Requests { file } => requests(&authorities, &file).await,
            Root::Import { file } => import(&authorities, &file).await,
            Root::Restore { file, passphrase } => restore(&authorities, &file, passphrase).await,
            Root::Sign(sign) => sign.run(now()),
        }
    };
    let done = done.await;
    database.close().await;
    done
}

/// Whether it was asked for wrongly, rather than having failed.
pub fn is_usage(error: &anyhow::Error) -> bool {
    error.downcast_ref::<FileError>().is_some_and(FileError::is_usage)
}

async fn status(authorities: &Authorities) -> anyhow::Result<()> {
    let roots = authorities.roots();
    let root = roots.trusted.first().context("there is no root that issues")?;
    let (_, until) = pki::trust::validity(root)?;
    say(&format!("root        {}, until {until}", short(&authorities.root_pin())));
    if !authorities.root_is_offline().await? {
        say("key         here, sealed in the database");
        return Ok(());
    }
    say("key         offline");
    let awaited = authorities.awaited(None, now()).await?;
    say(&format!("awaited     {} signatures", awaited.len()));
    for one in &awaited {
        let whose = one.tenant.as_deref().map_or(String::new(), |tenant| format!(" of tenant {tenant}"));
        let before = match one.ends {
            Some(at) => format!("the one before ends at {at}"),
            None => "there is none before".to_owned(),
        };
        say(&format!("            {}{whose}, since {}; {before}", one.kind, one.since));
    }
    Ok(())
}

async fn export(authorities: &Authorities, path: &Path, passphrase: PassphraseFrom) -> anyhow::Result<()> {
    let root = match authorities.root_key().await {
        Err(AuthoritiesError::RootOffline) => {
            bail!("the root's key is not here: it was exported before, and the file of that time has it");
        }
        root => root?,
    };
    file::free(path)?;
    let passphrase = passphrase.ask_new()?;
    file::write(path, Kind::Key, &KeyFile::lock(&root, &passphrase, now())?)?;
    let again = KeyFile::open(path, &passphrase);
    let shown = path.display();
    let again = again.with_context(|| format!("the key stays in the database: {shown} can't be opened again"))?;
    if again.certificate_der() != root.certificate_der() {
        bail!("the key stays in the database: {shown} holds another");
    }
    let taken = authorities.take_root_away(&root, &operator(), now()).await;
    taken.with_context(|| {
        format!(
            "{shown} holds the key; see with hyperfactory-hub ca root status whether the database still has it, too"
        )
    })?;
    say(&format!(
        "The key of the root {} is in {shown}, and no longer in the database.\n\
         \n\
         Now:\n\
         1. Copy {shown} to two media at least, keep them in two places, and keep the passphrase in a third. Whoever has a\n   \
            copy and the passphrase is the whole fleet's authority; without either, no new tenant can be signed for, and the\n   \
            fleet ends with its intermediates.\n\
         2. Try a copy where it will be used: hyperfactory-hub ca root sign takes neither database nor configuration.\n\
         3. Delete {shown} from this machine.\n\
         4. Backups of the database from before this moment hold the key, sealed: delete them, or move to another master key\n   \
            (hyperfactory-hub keys rewrap) and destroy the one before.",
        short(&root.spki_sha256())
    ));
    Ok(())
}

async fn requests(authorities: &Authorities, path: &Path) -> anyhow::Result<()> {
    let requests = authorities.requests(now()).await?;
    if requests.requests.is_empty() {
        say("Nothing waits for the root's signature.");
        return Ok(());
    }
    let sum = file::write(path, Kind::Requests, &requests)?;
    numbered(&requests.lines());
    say(&format!(
        "\n{} holds these requests; read this to whoever signs them:\n\n    {}\n\n\
         There: hyperfactory-hub ca root sign --key KEY --requests {} --out SIGNED\n\
         Then here: hyperfactory-hub ca root import --file SIGNED",
        path.display(),
        sum.spoken(),
        path.display()
    ));
    Ok(())
}

async fn import(authorities: &Authorities, path: &Path) -> anyhow::Result<()> {
    let (answers, sum) = file::read::<Answers>(path, Kind::Signed)?;
    let imported = authorities.import(&answers, &operator(), now()).await.map_err(|error| match error {
        ImportError::Authorities(error) => anyhow::Error::from(error),
        error => anyhow::Error::from(error).context(format!("nothing of {} was taken", path.display())),
    })?;
    say(&format!(
        "Taken from {} ({}): {} intermediates, {} links, {}; {} were here already.",
        path.display(),
        sum.spoken(),
        imported.intermediates,
        imported.links,
        if imported.list { "a revocation list" } else { "no new revocation list" },
        imported.known
    ));
    let left = authorities.awaited(None, now()).await?.len();
    if left > 0 {
        say(&format!("{left} signatures are still awaited: hyperfactory-hub ca root status"));
    }
    Ok(())
}

async fn restore(authorities: &Authorities, path: &Path, passphrase: PassphraseFrom) -> anyhow::Result<()> {
    let (key, _) = file::read::<KeyFile>(path, Kind::Key)?;
    let root = key.unlock(path, &passphrase.ask("Passphrase of the root's key: ")?)?;
    match authorities.bring_root_back(&root, &operator(), now()).await? {
        Some(signed) => say(&format!(
            "The root's key is in the database again, and has signed the {signed} things that waited. {} holds it as before.",
            path.display()
        )),
        None => say("The root's key was here already."),
    }
    Ok(())
}

impl KeyFile {
    fn lock(root: &Authority, passphrase: &Passphrase, now: Timestamp) -> Result<Self, UnlockError> {
        let locked = root.lock(passphrase)?;
        Ok(Self {
            root: pem::certificates([root.certificate_der()]),
            exported_at: now.to_string(),
            stretch: HEXLOWER.encode(&locked.stretch),
            data_key: BASE64.encode(&locked.data_key),
            key: BASE64.encode(&locked.key),
        })
    }

    fn open(path: &Path, passphrase: &Passphrase) -> anyhow::Result<Authority> {
        file::read::<Self>(path, Kind::Key)?.0.unlock(path, passphrase)
    }

    /// The root in it. `path` is where it came from.
    fn unlock(&self, path: &Path, passphrase: &Passphrase) -> anyhow::Result<Authority> {
        let parts = || {
            let mut root = pem::read_certificates(&self.root).ok()?;
            let locked = LockedKey {
                stretch: HEXLOWER.decode(self.stretch.as_bytes()).ok()?,
                data_key: BASE64.decode(self.data_key.as_bytes()).ok()?,
                key: BASE64.decode(self.key.as_bytes()).ok()?,
            };
            Some((root.pop()?, locked))
        };
        let (root, locked): (CertificateDer<'_>, _) = parts().ok_or_else(|| FileError::damaged(path))?;
        let unlocked = Authority::unlock(&root, &locked, passphrase);
        unlocked.with_context(|| format!("the key in {} was not opened", path.display()))
    }
}

impl PassphraseFrom {
    /// For something new: asked twice, and not too short.
    fn ask_new(self) -> anyhow::Result<Passphrase> {
        match &self.passphrase_file {
            Some(path) => Ok(verb::passphrase_in(path)?.fit()?),
            None => verb::new_passphrase().map_err(no_terminal),
        }
    }

    fn ask(self, question: &str) -> anyhow::Result<Passphrase> {
        match &self.passphrase_file {
            Some(path) => verb::passphrase_in(path),
            None => prompt::ask(question).map_err(|error| no_terminal(KeysError::Prompt(error))),
        }
    }
}

fn no_terminal(error: KeysError) -> anyhow::Error {
    match error {
        KeysError::Prompt(source) => FileError::NoTerminal { instead: "--passphrase-file", source }.into(),
        error => error.into(),
    }
}

fn operator() -> Actor {
    Actor::operator("hyperfactory-hub")
}

fn numbered(lines: &[String]) {
    for (number, line) in (1..).zip(lines) {
        say(&format!("{number:>4}  {line}"));
    }
}

#[expect(clippy::print_stdout, reason = "the verb's result")]
fn say(text: &str) {
    println!("{text}");
}
