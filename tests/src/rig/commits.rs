//! Kills a hub at one of its commits, counted: just before the commit is there, or just after it and before anybody hears of it.
//!
//! On SQLite by strace, which ends the process at its nth write to a file or its nth sync: what the kernel has taken by then
//! is there after the kill, so the sync is the moment after a commit. On PostgreSQL by standing between hub and server.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::wait::{SOON, until};

/// What sqlx says to end a transaction, as PostgreSQL's simple query protocol has it.
const COMMIT: &[u8] = b"COMMIT\0";

/// Which side of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The commit has not happened.
    Before,
    /// It has, and the hub does not know.
    After,
}

/// Where the commits of a hub are counted.
#[derive(Debug)]
pub enum Commits {
    /// In its process.
    Sqlite,
    /// On its way to the server.
    Postgres(Proxy),
}

impl Commits {
    /// Has the process `hub` killed at its `nth` commit from now on; where commits can't be told from other writes before
    /// they are whole, at its `nth` write.
    pub fn kill_at(&self, hub: u32, nth: usize, side: Side) -> Result<Trap<'_>> {
        match self {
            Self::Sqlite => Tracer::attach(hub, nth, side).map(|tracer| Trap::Sqlite { _tracer: tracer }),
            Self::Postgres(proxy) => {
                *lock(&proxy.aim) = Some(Aim { hub, left: nth, side });
                Ok(Trap::Postgres(proxy))
            }
        }
    }
}

/// A kill that waits for its commit; called off when dropped.
#[derive(Debug)]
pub enum Trap<'a> {
    /// See [`Commits::Sqlite`].
    Sqlite {
        /// Ended with the trap.
        _tracer: Tracer,
    },
    /// See [`Commits::Postgres`].
    Postgres(&'a Proxy),
}

impl Drop for Trap<'_> {
    fn drop(&mut self) {
        if let Self::Postgres(proxy) = self {
            *lock(&proxy.aim) = None;
        }
    }
}

/// A strace on a process.
#[derive(Debug)]
pub struct Tracer(Child);

impl Tracer {
    fn attach(hub: u32, nth: usize, side: Side) -> Result<Self> {
        let calls = match side {
            Side::Before => "pwrite64",
            Side::After => "fdatasync,fsync",
        };
        let held = || -> Result<bool> {
            for task in std::fs::read_dir(format!("/proc/{hub}/task"))? {
                let status = std::fs::read_to_string(task?.path().join("status"))?;
                let says = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim);
                // One that is dead has met its commit already.
                if says("TracerPid:") == "0" && !says("State:").starts_with(['Z', 'X']) {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        // A thread that begins while strace takes hold of the others may escape it: then it does so again.
        until("strace to hold every thread of the hub", SOON, || {
            let strace = Command::new("strace")
                .args(["-f", "-q", "-o", "/dev/null", "-p", &hub.to_string()])
                .args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:signal=KILL:when={nth}")])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            let tracer = Self(strace.context("starting strace")?);
            let sure = until("all threads", SOON / 10, || Ok(held()?.then_some(())));
            Ok(sure.is_ok().then_some(tracer))
        })
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Lets go of the process, where SIGKILL might leave it stopped.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

/// Between a hub and its PostgreSQL: passes everything on, until it is told to kill.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    aim: Arc<Mutex<Option<Aim>>>,
    over: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Clone, Copy)]
struct Aim {
    hub: u32,
    left: usize,
    side: Side,
}

impl Proxy {
    /// One in front of the server at `url`; with the URL by which a hub uses it.
    pub fn before(url: &str) -> Result<(Self, String)> {
        let (scheme, rest) = url.split_once("://").context("a URL without a scheme")?;
        let (authority, database) = rest.split_once('/').context("a URL without a database")?;
        let (user, server) = authority.rsplit_once('@').context("a URL without a user")?;
        let server: SocketAddr = server.parse().context("the server's address")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening before PostgreSQL")?;
        let (address, aim, over) = (listener.local_addr()?, Arc::default(), Arc::default());
        let accepting = thread::spawn({
            let (aim, over) = (Arc::clone(&aim), Arc::clone(&over));
            move || accept(&listener, server, &aim, &over)
        });
        let url = format!("{scheme}://{user}@{address}/{database}");
        Ok((Self { address, aim, over, accepting: Some(accepting) }, url))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // It is looked at with the next connection.
        if TcpStream::connect(self.address).is_ok()
            && let Some(accepting) = self.accepting.take()
        {
            let _ = accepting.join();
        }
    }
}

/// Serves connections until it is `over`. One that says nothing is none: a hub is killed while it connects, too.
fn accept(listener: &TcpListener, server: SocketAddr, aim: &Arc<Mutex<Option<Aim>>>, over: &AtomicBool) {
    for client in listener.incoming().flatten() {
        if over.load(Ordering::SeqCst) {
            return;
        }
        let Ok(server) = TcpStream::connect(server) else { continue };
        let _ = server.set_nodelay(true);
        let _ = client.set_nodelay(true);
        // Set to the hub that is to be killed at the answer to its commit.
        let doomed = Arc::new(Mutex::new(None));
        if let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) {
            let (aim, doomed) = (Arc::clone(aim), Arc::clone(&doomed));
            thread::spawn(move || forward(from, to, |bytes, carried| asked(bytes, carried, &aim, &doomed)));
        }
        thread::spawn(move || {
            forward(server, client, |_, _| match lock(&doomed).take() {
                Some(hub) => !killed(hub),
                None => true,
            });
        });
    }
}

/// Passes bytes on while `look` says so; it sees them behind the end of what went before.
fn forward(mut from: TcpStream, mut to: TcpStream, mut look: impl FnMut(&[u8], &[u8]) -> bool) {
    let (mut buffer, mut carried) = (vec![0; 64 << 10], Vec::new());
    while let Ok(read) = from.read(&mut buffer)
        && read > 0
    {
        let bytes = &buffer[..read];
        if !look(bytes, &carried) || to.write_all(bytes).is_err() {
            break;
        }
        carried.extend_from_slice(bytes);
        carried.drain(..carried.len().saturating_sub(COMMIT.len() - 1));
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Whether what the hub says is to be passed on.
fn asked(bytes: &[u8], carried: &[u8], aim: &Mutex<Option<Aim>>, doomed: &Mutex<Option<u32>>) -> bool {
    let said = [carried, bytes].concat();
    if !said.windows(COMMIT.len()).any(|window| window == COMMIT) {
        return true;
    }
    let mut aim = lock(aim);
    let Some(aimed) = aim.as_mut() else { return true };
    aimed.left -= 1;
    if aimed.left > 0 {
        return true;
    }
    let Aim { hub, side, .. } = *aimed;
    *aim = None;
    match side {
        Side::Before => !killed(hub),
        Side::After => {
            *lock(doomed) = Some(hub);
            true
        }
    }
}

fn killed(process: u32) -> bool {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    process.is_some_and(|process| kill_process(process, Signal::KILL).is_ok())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_goes_away_in_silence_ends_nothing_for_others() -> Result<()> {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (proxy, _) = Proxy::before(&format!("postgres://rig@{}/rig", server.local_addr()?))?;
        drop(TcpStream::connect(proxy.address)?);
        let mut client = TcpStream::connect(proxy.address)?;
        client.write_all(b"a query")?;
        client.shutdown(Shutdown::Write)?;
        let heard = server.incoming().take(2).map(|stream| {
            let mut said = String::new();
            stream?.read_to_string(&mut said)?;
            Ok(said)
        });
        let mut heard = heard.collect::<Result<Vec<_>>>()?;
        heard.sort();
        assert_eq!(heard, ["", "a query"]);
        Ok(())
    }
}
