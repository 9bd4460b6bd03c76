//! Tests what a node needs, one thing after the other, and says what to do about what is missing.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use protocol::Timestamp;
use rustix::fs::StatVfs;
use transport::{CloseCode, Endpoint};

use crate::clock::Clock;
use crate::file;
use crate::health::{ProbeError, Report, ask};
use crate::identity::{Identity, IdentityStore};
use crate::link::{Caller, dial, resolve};

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was checked: `certificate`, `address`, `clock`, `disk`.
    pub name: &'static str,
    /// How it is.
    pub outcome: Outcome,
    /// What was found.
    pub said: String,
    /// What to do; empty when nothing is to be done.
    pub advice: String,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It works, and will not for ever.
    Warn,
    /// It does not work.
    Fail,
}

impl Check {
    /// A check that found things as they should be.
    pub fn ok(name: &'static str, said: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Ok, said: said.into(), advice: String::new() }
    }

    /// A check that found something to look after.
    pub fn warn(name: &'static str, said: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Warn, said: said.into(), advice: advice.into() }
    }

    /// A check that found something broken.
    pub fn fail(name: &'static str, said: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Fail, said: said.into(), advice: advice.into() }
    }
}

/// What every node's check looks at.
pub struct Subject<'a> {
    /// Where the identity is.
    pub store: &'a IdentityStore,
    /// The directory the node writes to.
    pub state_directory: &'a Path,
    /// Most bytes the spool may take.
    pub spool_capacity: u64,
    /// Where the running service serves its probes.
    pub health: SocketAddr,
    /// The wall clock.
    pub clock: &'a Clock,
}

/// Checks certificate, hub address, clock and disk. It opens no session: a running node is not disturbed.
pub async fn check(subject: &Subject<'_>) -> Vec<Check> {
    let mut checks = Vec::new();
    match subject.store.load() {
        Ok(Some(identity)) => {
            checks.push(certificate(&identity, subject.clock.now()));
            checks.push(address(&identity, subject.clock).await);
        }
        Ok(None) => checks.push(Check::fail(
            "certificate",
            "this machine is not enrolled",
            "make a join token on the hub's \"Add a node\" page and run the command it shows",
        )),
        Err(error) => checks.push(Check::fail("certificate", chain(&error), String::new())),
    }
    checks.push(clock(ask(subject.health).await));
    checks.push(disk(subject.state_directory, subject.spool_capacity));
    checks
}

/// Whether the certificate is valid now.
pub fn certificate(identity: &Identity, now: Timestamp) -> Check {
    let subject = identity.credential.subject();
    let named = format!("node {} ({}) of tenant {}", identity.name, identity.node, identity.tenant);
    let (from, until) = (subject.not_before, subject.not_after);
    if now < from {
        return Check::fail(
            "certificate",
            format!("{named}: valid from {from}, and it is {now} here"),
            "set this machine's clock",
        );
    }
    if now > until {
        return Check::fail(
            "certificate",
            format!("{named}: expired at {until}, and it is {now} here"),
            "if the clock is right, start the service: it gets a new certificate by itself while the hub lets it, for 90 days \
             unless told otherwise; after that, move the identity file away and enroll again with a new join token",
        );
    }
    let left = until.since(now);
    if left < until.since(from) / 5 {
        return Check::warn(
            "certificate",
            format!("{named}: valid until {until}, and not renewed although that was due"),
            "look at the service's log and make sure that it runs and reaches the hub",
        );
    }
    Check::ok("certificate", format!("{named}: valid until {until}"))
}

/// Whether the hub is found, answers over UDP, and is the hub.
pub async fn address(identity: &Identity, clock: &Clock) -> Check {
    let fail = |said: String| Check::fail("address", said, String::new());
    let addresses = match resolve(&identity.hub).await {
        Ok(addresses) => addresses,
        Err(error) => return fail(chain(&error)),
    };
    let endpoint = match Endpoint::client() {
        Ok(endpoint) => endpoint,
        Err(error) => return fail(chain(&error)),
    };
    // Without the certificate: a second session with this node's certificate would end the running one.
    let dialed = dial(&endpoint, &identity.hub, Caller::Recovering(identity), clock).await;
    let check = match dialed {
        Ok(connection) => {
            let (remote, rtt) = (connection.remote_address(), connection.rtt());
            connection.close(CloseCode::Done, "check");
            Check::ok("address", format!("{} answers at {remote} in {} ms", identity.hub, rtt.as_millis()))
        }
        Err(error) => {
            let listed: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            fail(format!("{} ({}): {}", identity.hub, listed.join(", "), chain(&error)))
        }
    };
    // The hub is to hear of the end of the connection.
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    check
}

/// Whether this machine's clock agrees with the hub's, as the running service measured it.
pub fn clock(report: Result<Report, ProbeError>) -> Check {
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            return Check::warn(
                "clock",
                format!("not compared with the hub's: {error}"),
                "start the service; it compares the clocks whenever it connects",
            );
        }
    };
    let Some(offset) = report.clock_offset_seconds else {
        return Check::warn(
            "clock",
            "not compared with the hub's: the service had no session yet",
            "see the check of the address",
        );
    };
    let advice = "set up time synchronisation, for example with `timedatectl set-ntp true`; if this clock is right, \
                  the hub's is wrong";
    match report.clock.as_str() {
        "ahead" => Check::fail("clock", format!("{offset:.1} s ahead of the hub's"), advice),
        "behind" => Check::fail("clock", format!("{:.1} s behind the hub's", -offset), advice),
        _ => Check::ok("clock", format!("within {:.1} s of the hub's", offset.abs())),
    }
}

/// Whether the state directory takes files, and the disk a full spool.
pub fn disk(directory: &Path, spool_capacity: u64) -> Check {
    const PROBE: &str = "check-probe";
    let path = directory.join(PROBE);
    if let Err(error) = file::replace(&path, b"probe").and_then(|()| file::remove(&path)) {
        return Check::fail("disk", chain(&error), String::new());
    }
    let free = match rustix::fs::statvfs(directory) {
        Ok(StatVfs { f_bavail, f_frsize, .. }) => f_bavail.saturating_mul(f_frsize),
        Err(error) => return Check::fail("disk", format!("{}: {error}", directory.display()), String::new()),
    };
    let (free, wanted) = (free >> 20, spool_capacity >> 20);
    if free < wanted {
        return Check::warn(
            "disk",
            format!("{} MiB free in {}, less than the {wanted} MiB a full spool takes", free, directory.display()),
            "free some space, or lower the spool's size in the configuration",
        );
    }
    Check::ok("disk", format!("{} is writable, {free} MiB free", directory.display()))
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn report(clock: &str, offset: Option<f64>) -> Report {
        Report {
            software: String::new(),
            session_up: true,
            link: String::new(),
            since: String::new(),
            clock_offset_seconds: offset,
            clock: clock.to_owned(),
            certificate_not_after: String::new(),
            renew_at: String::new(),
            renewal_trouble: None,
            batches_pending: 0,
            batches_lost: 0,
            spool_bytes: 0,
            spool_trouble: None,
            log_batches_pending: None,
            log_batches_lost: None,
            log_spool_trouble: None,
            last_sample_seconds: 0.0,
            sampling_trouble: None,
            kafka: None,
        }
    }

    #[test]
    fn a_wrong_clock_fails_and_an_unknown_one_warns() {
        assert_eq!(clock(Ok(report("synchronized", Some(0.2)))).outcome, Outcome::Ok);
        assert_eq!(clock(Ok(report("unknown", None))).outcome, Outcome::Warn);
        let behind = clock(Ok(report("behind", Some(-75.0))));
        assert_eq!((behind.outcome, behind.said.as_str()), (Outcome::Fail, "75.0 s behind the hub's"));
        assert!(behind.advice.contains("timedatectl"));
        let address = SocketAddr::from(([127, 0, 0, 1], 7091));
        let stopped = ProbeError::NotRunning { address, source: io::ErrorKind::ConnectionRefused.into() };
        let unknown = clock(Err(stopped));
        assert!(unknown.outcome == Outcome::Warn && unknown.advice.contains("start the service"));
    }

    #[test]
    fn a_disk_is_tried_by_writing_to_it() {
        let directory = tempfile::tempdir().expect("tempdir");
        assert_eq!(disk(directory.path(), 1).outcome, Outcome::Ok);
        assert_eq!(std::fs::read_dir(directory.path()).expect("list").count(), 0, "nothing is left behind");
        assert_eq!(disk(directory.path(), u64::MAX).outcome, Outcome::Warn);
        let file = directory.path().join("file");
        std::fs::write(&file, "").expect("written");
        let broken = disk(&file.join("state"), 1);
        assert!(broken.outcome == Outcome::Fail && broken.said.contains("--state-dir"), "{}", broken.said);
    }
}
