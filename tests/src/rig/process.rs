//! One child process of a test: its log in a file, its end certain.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::wait::until;

/// A running program; dropped, it and what it started are killed.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    group: bool,
}

impl Process {
    /// Starts `command`, its output appended to the file `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        Self::launch(command, log, false)
    }

    /// The same for a program that starts others: they are killed together.
    pub fn start_group(command: &mut Command, log: &Path) -> Result<Self> {
        Self::launch(command.process_group(0), log, true)
    }

    fn launch(command: &mut Command, log: &Path, group: bool) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("sharing the log file")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { child, name, log: log.to_owned(), group })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The end of what it has written, for an error to quote.
    pub fn last_words(&self) -> String {
        format!("the end of its log:\n{}", tail(&self.log()))
    }

    /// Fails with the end of its log when it is no longer running.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} has ended ({status}); {}", self.name, self.last_words());
        }
        Ok(())
    }

    /// Ends it as a power cut would: SIGKILL, and gone when this returns.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end by SIGTERM; fails when it has not done so `within` the time given.
    pub fn stop(&mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(within)
    }

    /// Sends it a signal; none is sent to a process that has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        // Not yet waited for, so the id is still its own.
        let pid = Pid::from_child(&self.child);
        if self.group { kill_process_group(pid, signal) } else { kill_process(pid, signal) }
            .with_context(|| format!("signalling {}", self.name))
    }

    /// Waits for its end.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let status = until(&format!("the end of {}", self.name), within, || Ok(self.child.try_wait()?));
        status.with_context(|| self.last_words())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
        if std::thread::panicking() {
            let said = tail(&self.log());
            #[expect(clippy::print_stderr, reason = "a failed test shows what its programs said")]
            {
                eprintln!("--- {} said:\n{said}", self.name);
            }
        }
    }
}

/// Runs `command` to its end and gives what it printed; fails with what it complained of.
pub(super) fn finish(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let said = words.join(" ".as_ref());
    let output = output.with_context(|| format!("running {}", said.display()))?;
    if !output.status.success() {
        bail!("{}: {}", said.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} printed what is no text", said.display()))
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::SOON;

    #[test]
    fn a_process_that_ended_early_is_reported_with_what_it_said() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut process =
            Process::start(Command::new("sh").args(["-c", "echo port taken; exit 2"]), &folder.path().join("log"))?;
        process.wait(SOON)?;
        let error = process.check().unwrap_err().to_string();
        assert!(error.contains("exit status: 2") && error.contains("port taken"), "{error}");
        Ok(())
    }

    #[test]
    fn a_group_ends_with_its_leader() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut process = Process::start_group(
            Command::new("sh").args(["-c", "sleep 600 & echo $!; wait"]),
            &folder.path().join("log"),
        )?;
        let grandchild: i32 = until("the grandchild", SOON, || Ok(Some(process.log().trim().parse()?)))?;
        process.kill()?;
        until("the grandchild's end", SOON, || Ok((!still_running(grandchild)).then_some(())))
    }

    /// A killed orphan may stay a zombie where no init reaps it.
    fn still_running(pid: i32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }
}
