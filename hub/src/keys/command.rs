//! The external command that keeps the master key: run with `wrap` or `unwrap`, bytes in and out, no shell.
//!
//! The master key itself is made here and stored as what `wrap` gave for it, so that the command is run once at each start
//! of the hub, however many tenants there are.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use pki::{MasterKey, SealError};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

/// How long the command may take: a KMS behind a slow network answers within seconds.
const DEADLINE: Duration = Duration::from_secs(30);
/// Most bytes it may give: a wrapped key of 32 bytes is a few hundred.
const OUTPUT_MAX: usize = 16 * 1024;
/// How much of what it says on standard error is passed on.
const SAID_MAX: usize = 600;
/// Variables that hold the hub's own secrets and are none of the command's business.
const OWN_VARIABLES: &str = "HYPERFACTORY_HUB_";

/// The command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It can't be run.
    #[error("cannot run {program}, which keeps the master key: see that it exists and is executable")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It said no.
    #[error("{program} {verb} has failed ({status}): {said}")]
    Failed {
        /// The program.
        program: PathBuf,
        /// `wrap` or `unwrap`.
        verb: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
    /// It did not end.
    #[error("{program} {verb} did not end within {} s and was killed: see that what it talks to answers", DEADLINE.as_secs())]
    Late {
        /// The program.
        program: PathBuf,
        /// `wrap` or `unwrap`.
        verb: &'static str,
    },
    /// It gave something else than bytes that can be used.
    #[error("{program} {verb} gave {what}: see that it writes nothing but the result to its standard output")]
    Output {
        /// The program.
        program: PathBuf,
        /// `wrap` or `unwrap`.
        verb: &'static str,
        /// What it gave.
        what: &'static str,
    },
    /// The pipes to it broke.
    #[error("lost {program} while it ran")]
    Pipe {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The key could not be made.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Makes a master key, and what the command gave for it, once that has been seen to give the key back.
pub(super) async fn make(program: &Path) -> Result<(MasterKey, Vec<u8>), CommandError> {
    let key = MasterKey::generate()?;
    let wrapped = run(program, "wrap", &*key.to_bytes()).await?.to_vec();
    let output = |what| CommandError::Output { program: program.to_owned(), verb: "wrap", what };
    if wrapped.is_empty() {
        return Err(output("nothing"));
    }
    if wrapped.windows(MasterKey::LENGTH).any(|window| window == key.to_bytes().as_slice()) {
        return Err(output("the key as it is"));
    }
    if unwrap(program, &wrapped).await?.id() != key.id() {
        return Err(output("what does not unwrap to the same key"));
    }
    Ok((key, wrapped))
}

/// The master key that was wrapped.
pub(super) async fn unwrap(program: &Path, wrapped: &[u8]) -> Result<MasterKey, CommandError> {
    let bytes = run(program, "unwrap", wrapped).await?;
    let bytes = Zeroizing::new(<[u8; MasterKey::LENGTH]>::try_from(bytes.as_slice()).map_err(|_| {
        CommandError::Output { program: program.to_owned(), verb: "unwrap", what: "another number of bytes than 32" }
    })?);
    Ok(MasterKey::from_bytes(*bytes)?)
}

async fn run(program: &Path, verb: &'static str, input: &[u8]) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    let mut command = Command::new(program);
    command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(OWN_VARIABLES)) {
        command.env_remove(name);
    }
    let mut child = command.spawn().map_err(|source| CommandError::Start { program: program.to_owned(), source })?;
    let group = child.id();
    let Ok(ended) = tokio::time::timeout(DEADLINE, converse(&mut child, input)).await else {
        // Also what the program started itself, which would keep running on its own.
        if let Some(group) = group.and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        return Err(CommandError::Late { program: program.to_owned(), verb });
    };
    let (status, output, said) = ended.map_err(|source| CommandError::Pipe { program: program.to_owned(), source })?;
    if !status.success() {
        let said = String::from_utf8_lossy(&said).trim().replace(char::is_control, " ");
        return Err(CommandError::Failed { program: program.to_owned(), verb, status, said });
    }
    if output.len() > OUTPUT_MAX {
        return Err(CommandError::Output { program: program.to_owned(), verb, what: "more than 16 KiB" });
    }
    Ok(output)
}

/// Writes and reads at once: neither side waits for the other.
async fn converse(
    child: &mut Child,
    input: &[u8],
) -> std::io::Result<(ExitStatus, Zeroizing<Vec<u8>>, Zeroizing<Vec<u8>>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A program that has read enough, or none of it, says by its status whether that was well.
            let _ = stdin.write_all(input).await;
        }
    };
    let ((), output, said) = tokio::join!(write, read(stdout, OUTPUT_MAX + 1), read(stderr, SAID_MAX));
    let (output, said) = (output?, said?);
    Ok((child.wait().await?, output, said))
}

/// At most `most` bytes; room for them is taken at once, so that growing leaves no copies behind.
async fn read(from: Option<impl AsyncRead + Unpin>, most: usize) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(most + 1));
    if let Some(mut from) = from {
        (&mut from).take(most as u64).read_to_end(&mut bytes).await?;
        // Read on, so that the program does not hang on a full pipe.
        tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}
