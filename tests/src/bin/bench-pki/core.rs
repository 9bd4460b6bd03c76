//! Who computes where: one core for the server that is measured, the others for those who ask it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use hyperfactory_tests::rig::Usage;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The core of servers.
const SERVERS: usize = 0;

/// Keeps this thread, and the threads and programs it starts from now on, off the servers' core where there is another.
pub(crate) fn leave_to_servers() -> Result<()> {
    let mut cores = sched_getaffinity(None).context("asking for this process's cores")?;
    ensure!(cores.is_set(SERVERS), "core {SERVERS} is not this process's to use");
    if cores.count() > 1 {
        cores.unset(SERVERS);
        sched_setaffinity(None, &cores).context("leaving a core to the servers")?;
    }
    Ok(())
}

/// Gives a running process the servers' core and no other.
pub(crate) fn give(process: u32) -> Result<()> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).context("reading the threads of a server")?;
    for thread in threads {
        let id = thread?.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw).context("a thread's id")?;
        sched_setaffinity(Some(id), &only()).context("giving a core to a server")?;
    }
    Ok(())
}

/// Does `act` on the servers' core.
pub(crate) fn there<T>(act: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = sched_getaffinity(None).context("asking for this thread's cores")?;
    sched_setaffinity(None, &only()).context("moving to the servers' core")?;
    let done = act();
    sched_setaffinity(None, &before).context("moving back from the servers' core")?;
    done
}

/// What a program prints that is run on the servers' core.
pub(crate) fn printed(command: &mut Command) -> Result<String> {
    let output = there(|| command.output().with_context(|| format!("running {command:?}")))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Processor time of a server and its children, in seconds.
pub(crate) fn spent(process: u32) -> Result<f64> {
    Ok(Usage::of_tree(process)?.cpu.as_secs_f64())
}

fn only() -> CpuSet {
    let mut core = CpuSet::new();
    core.set(SERVERS);
    core
}
