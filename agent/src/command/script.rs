//! Runs a script that this machine's owner has named in the agent's configuration: no shell of ours, no arguments.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use node::commands::Output;
use protocol::CommandId;
use protocol::command::Ending;
use protocol::message::CommandState;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{failed, succeeded, unknown};

/// A script that runs longer is ended.
const LONGEST: Duration = Duration::from_secs(3_600);
/// How long it has to end by itself once it is told to.
const END_WITHIN: Duration = Duration::from_secs(3);
/// How long what it has said is read once it is killed.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long what it started may go on writing once it has ended itself.
const LINGER: Duration = Duration::from_secs(1);
/// What a script finds in its environment beside its command's id.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a script did not run to its end.
enum Cut {
    Told,
    Late,
}

pub(super) async fn run(path: &Path, id: CommandId, stop: &CancellationToken, output: &Output) -> Ending {
    if let Err(why) = trustworthy(path) {
        return failed(why);
    }
    let mut command = Command::new(path);
    command
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("HYPERFACTORY_COMMAND", id.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return failed(format!("{} can't be run: {error}", path.display())),
    };
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    // Read on until it has ended, whatever it is told: who cleans up and finds nobody to say so to is killed by that.
    let mut ended = pin!(converse(&mut child, output));
    let cut = tokio::select! {
        biased;
        () = stop.cancelled() => Cut::Told,
        ended = timeout(LONGEST, ended.as_mut()) => match ended {
            Ok(ended) => return ending(ended),
            Err(_) => Cut::Late,
        },
    };
    // Also what it started itself, which would keep running on its own.
    let signal = |signal| group.map(|group| kill_process_group(group, signal));
    signal(Signal::TERM);
    let has_ended = timeout(END_WITHIN, ended.as_mut()).await.is_ok();
    signal(Signal::KILL);
    if !has_ended {
        let _ = timeout(LAST_WORDS, ended).await;
    }
    match cut {
        Cut::Told => Ending::new(CommandState::Cancelled, "ended while it ran: part of its work may be done"),
        Cut::Late => failed(format!("ended after {} s: part of its work may be done", LONGEST.as_secs())),
    }
}

fn ending(ended: std::io::Result<ExitStatus>) -> Ending {
    match ended {
        Ok(status) if status.success() => succeeded(""),
        Ok(status) => failed(format!("it ended with {status}")),
        Err(error) => unknown(format!("it can't be told how it ended: {error}")),
    }
}

/// What anybody could rewrite, anybody could have the hub run.
fn trustworthy(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| format!("{shown} can't be run: {error}"))?;
    if !metadata.is_file() {
        return Err(format!("{shown} is not a file"));
    }
    if metadata.permissions().mode() & 0o022 != 0 {
        return Err(format!("{shown} can be written by others than its owner: chmod go-w {shown}"));
    }
    Ok(())
}

/// Passes on what it says until it has ended.
async fn converse(child: &mut Child, output: &Output) -> std::io::Result<ExitStatus> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut said = pin!(async { tokio::join!(pass_on(stdout, output), pass_on(stderr, output)) });
    let mut all_said = false;
    loop {
        tokio::select! {
            _ = &mut said, if !all_said => all_said = true,
            status = child.wait() => {
                if !all_said {
                    // A service that it left behind holds its output open.
                    let _ = timeout(LINGER, said).await;
                }
                return status;
            }
        }
    }
}

async fn pass_on(stream: Option<impl AsyncRead + Unpin>, output: &Output) {
    let Some(mut stream) = stream else { return };
    let mut page = vec![0; 4096];
    while let Ok(length) = stream.read(&mut page).await
        && length > 0
    {
        output.write(page.get(..length).unwrap_or_default()).await;
    }
}
